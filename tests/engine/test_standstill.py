from __future__ import annotations

from hpo.engine.standstill import Standstill


def words(*moments: tuple[float, int, int]) -> list[str]:
    standstill = Standstill(lambda: "a trial needs 1 GPU")
    said = (standstill.word(waiting=waiting, training=training, now=now) for now, waiting, training in moments)
    return [word for word in said if word]


def test_waiting_in_vain_is_said_ever_less_often() -> None:
    assert words(*((float(now), 3, 0) for now in range(100, 700))) == [
        f"nothing trains: 3 trials wait for a place since {minutes} min; a trial needs 1 GPU"
        for minutes in (1, 2, 4, 8)
    ]


def test_whoever_trains_or_has_nothing_to_train_is_left_alone() -> None:
    assert not words(*((float(now), 3, 1) for now in range(700)))
    assert not words(*((float(now), 0, 0) for now in range(700)))


def test_the_time_begins_anew_when_something_trained() -> None:
    moments = [(0.0, 1, 0), (50.0, 1, 0), (55.0, 1, 1), (60.0, 1, 0), (119.0, 1, 0), (120.0, 1, 0)]
    assert words(*moments[:-1]) == []
    assert words(*moments) == ["nothing trains: the next trial waits for a place since 1 min; a trial needs 1 GPU"]
