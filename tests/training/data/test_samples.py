from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo.errors import DataError
from hpo.training.data import Samples


def numbered(num: int) -> Samples:
    return Samples(np.arange(num, dtype=np.float64).reshape(num, 1), np.arange(num))


@given(st.integers(2, 60), st.floats(0.05, 0.9))
def test_what_is_held_out_and_what_is_kept_are_all(num: int, ratio: float) -> None:
    samples = numbered(num).held_out(ratio)
    assert samples.test is not None
    assert sorted([*samples.targets, *samples.test.targets]) == list(range(num))
    assert abs(len(samples.test) - ratio * num) <= 1
    assert (samples.inputs[:, 0] == samples.targets).all()
    assert samples.fingerprint == numbered(num).held_out(ratio).fingerprint


def test_classes_are_held_out_in_proportion() -> None:
    strata = np.repeat([0, 1], [80, 20])
    test = numbered(100).held_out(0.2, strata=strata).test
    assert test is not None
    assert np.bincount(strata[test.targets]).tolist() == [16, 4]


def test_nothing_is_held_out_where_there_is_a_test_part_or_none_is_wanted() -> None:
    with_test = Samples(np.zeros((3, 1)), np.zeros(3), numbered(2))
    assert with_test.held_out(0.5) is with_test
    assert numbered(5).held_out(0.0).test is None


def test_the_fingerprint_tells_values_shapes_types_and_test_parts_apart() -> None:
    one = numbered(4)
    others = [
        Samples(one.inputs + 1, one.targets),
        Samples(one.inputs, one.targets + 1),
        Samples(one.inputs.astype(np.float32), one.targets),
        Samples(one.inputs.reshape(4, 1, 1), one.targets),
        Samples(one.inputs, one.targets, one),
    ]
    assert len({one.fingerprint, *(other.fingerprint for other in others)}) == 6
    assert one.fingerprint == Samples(np.asfortranarray(one.inputs), one.targets.copy()).fingerprint


def test_others_than_the_run_was_started_with_are_refused() -> None:
    samples = numbered(3)
    samples.check_same(samples.fingerprint, where="x")
    with pytest.raises(DataError, match=rf"x: its fingerprint is {samples.fingerprint} here, but 0123 where the run"):
        samples.check_same("0123", where="x")


def test_the_test_part_has_the_shapes_of_the_train_part() -> None:
    with pytest.raises(
        DataError, match=r"a sample of the test part has .* \(\(2,\), \(\)\), .* \(\(1,\), \(\)\)\n  give"
    ):
        Samples(np.zeros((3, 1)), np.zeros(3), Samples(np.zeros((3, 2)), np.zeros(3)))


@pytest.mark.parametrize(("inputs", "targets"), [(3, 2), (0, 0)])
def test_as_many_targets_as_inputs(inputs: int, targets: int) -> None:
    with pytest.raises(DataError, match=f"samples: {inputs} inputs and {targets} targets are not as many, or none"):
        Samples(np.zeros((inputs, 2)), np.zeros(targets))
