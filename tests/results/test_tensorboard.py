import gc
import logging
import math
import resource

import pytest

from hpo.results import RunPaths, RunStore, TensorBoardWriter
from tests.results.entries import entry, report, train

logging.getLogger("tensorboard").setLevel(logging.ERROR)


def events_of(folder):
    from tensorboardX.proto.event_pb2 import Event

    events = []
    for file in sorted(folder.iterdir()):
        data = file.read_bytes()
        while data:  # length (8 bytes), its checksum (4), the event, its checksum (4)
            length = int.from_bytes(data[:8], "little")
            events.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return events


def scalars(folder) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for event in events_of(folder):
        for value in event.summary.value:
            if value.WhichOneof("value") == "simple_value":
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def test_a_trial_becomes_scalars_and_hyper_parameters(tmp_path):
    with RunStore.create(tmp_path, experiment="e") as store:
        writer = TensorBoardWriter(store.paths, goal="val_accuracy")
        store.listen(writer.feed)
        train(
            store,
            5,
            [0.25, 0.5],
            config={"lr": 0.5, "opt": "sgd", "flip": True, "sizes": (1, 2), "none": None},
            loss=2.0,
        )
        train(store, 6, [math.nan], config={"lr": 0.25}, end="")
    writer.close()
    writer.close()
    folder = store.paths.tensorboard / "trial-00005"
    assert scalars(folder) == {
        "val_accuracy": [(1, 0.25), (2, 0.5)],
        "loss": [(1, 2.0), (2, 2.0)],
        "score": [(1, 0.25), (2, 0.5)],
        "lr": [(1, pytest.approx(0.1)), (2, pytest.approx(0.1))],
        "best_score": [(2, 0.5)],
    }
    tags = [value.tag for event in events_of(folder) for value in event.summary.value]
    assert {tag for tag in tags if tag.startswith("_hparams_")} == {
        "_hparams_/experiment",
        "_hparams_/session_start_info",
        "_hparams_/session_end_info",
    }
    assert math.isnan(scalars(store.paths.tensorboard / "trial-00006")["score"][0][1])


def test_numbers_of_layers_stand_in_a_group_of_their_own(tmp_path):
    paths = RunPaths(tmp_path, "e", "r")
    writer = TensorBoardWriter(paths, goal="dead_share.first")
    layers = {"grad_norm.layer1.0.conv1": 0.5, "grad_norm": 2.0, "dead_share.first": 0.25}
    writer.feed(
        [
            entry(1, "proposed", trial=0, config={"lr": 0.5}),
            entry(2, "report", trial=0, step=1, score=-0.25, metrics=layers),
            entry(3, "stopped", trial=0, step=1, state="completed", reason=""),
        ]
    )
    writer.close()
    folder = paths.tensorboard / "trial-00000"
    told = scalars(folder)
    assert told.pop("score") == told.pop("best_score") == [(1, -0.25)]
    assert told == {"grad_norm/layer1.0.conv1": [(1, 0.5)], "grad_norm": [(1, 2.0)], "dead_share/first": [(1, 0.25)]}
    [described] = [v for event in events_of(folder) for v in event.summary.value if v.tag == "_hparams_/experiment"]
    shown = described.metadata.plugin_data.content
    assert b"dead_share/first" in shown
    assert b"dead_share.first" not in shown


def test_times_are_those_of_the_journal(tmp_path):
    paths = RunPaths(tmp_path, "e", "r")
    writer = TensorBoardWriter(paths, goal="val_accuracy")
    writer.feed([entry(1, "report", trial=0, step=1, **report(0.5))])
    writer.close()
    assert events_of(paths.tensorboard / "trial-00000")[-1].wall_time == 1_000_001.0


def test_a_resumed_trial_goes_on_in_a_file_beside(tmp_path):
    paths = RunPaths(tmp_path, "e", "r")
    begin = [
        entry(1, "proposed", trial=0, config={"lr": 0.5}),
        entry(2, "report", trial=0, step=1, **report(0.75)),
        entry(3, "paused", trial=0, step=1, reason="rung"),
    ]
    writer = TensorBoardWriter(paths, goal="val_accuracy")
    writer.feed(begin)
    writer.close()
    writer = TensorBoardWriter(paths, goal="val_accuracy", recovered=begin)
    writer.feed([entry(4, "started", trial=0), entry(5, "report", trial=0, step=2, **report(0.5))])
    writer.feed([entry(6, "stopped", trial=0, step=2, state="completed", reason="")])
    writer.close()
    folder = paths.tensorboard / "trial-00000"
    assert len(list(folder.iterdir())) == 2
    assert scalars(folder)["score"] == [(1, 0.75), (2, 0.5)]
    assert scalars(folder)["best_score"] == [(2, 0.75)]


def test_a_disk_that_refuses_ends_the_files_and_nothing_else(tmp_path, caplog):
    paths = RunPaths(tmp_path, "e", "r")
    paths.work.mkdir(parents=True)
    paths.tensorboard.write_text("in the way")
    with caplog.at_level(logging.WARNING, "hpo"):
        writer = TensorBoardWriter(paths, goal="val_accuracy")
        writer.feed([entry(1, "report", trial=0, step=1, **report(0.5))])
        writer.close()
    assert "TensorBoard's files of run r end here" in caplog.text


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_a_disk_that_is_full_ends_the_files_and_nothing_else(tmp_path, caplog):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = TensorBoardWriter(RunPaths(tmp_path, "e", "r"), goal="val_accuracy")
    with caplog.at_level(logging.WARNING, "hpo"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))  # no file may grow beyond
        try:
            writer.feed([entry(step, "report", trial=0, step=step, **report(0.5)) for step in range(1, 200)])
            writer.close()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    gc.collect()  # tensorboardX leaves a file open that it cannot flush
    assert "TensorBoard's files of run r end here: [Errno 27]" in caplog.text
