"""Several trials a GPU: what each gets, the desk that calibrates, and whole runs on a Ray that believes in a GPU."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from hpo import NoStopping
from hpo.engine.checkpoints import CheckpointKeeper
from hpo.engine.cluster import Resources, local_gpus
from hpo.engine.desk import Desk
from hpo.engine.plan import sketched
from hpo.engine.sharing import epochs_left, measured_before, places_by_number, shared_out, trials_left
from hpo.engine.study import CROWDED, Study
from hpo.engine.trials import Lease
from hpo.engine.worker import Trained
from hpo.protocols import Step
from hpo.results import RunPaths, Store, read_entries
from tests.engine.loose import LOOSE_FILES
from tests.engine.test_study import Noted, Notes, experiment, replayed, same
from tests.engine.toy import TOY

GPU = Resources(cpus=1, gpus=1)


@dataclass
class Heard:
    said_lines: list[str] = field(default_factory=list)

    def happened(self, line: str) -> None:
        """Nobody asks."""

    def said(self, line: str) -> None:
        self.said_lines.append(line)

    def round(self, desk: Desk) -> None:
        """Nothing is drawn."""


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def desk_of(clock: Clock, **settings: Any) -> tuple[Desk, Notes, Heard]:
    notes, heard = Notes(), Heard()
    study = Study(experiment(**{"trials": 40, "policy": NoStopping(1000), **settings}), notes)
    keeper = CheckpointKeeper(study, LOOSE_FILES, appended=lambda: 0, kept=lambda: 0, clock=clock)
    return Desk(study, keeper, heard, num_gpus=1, stop_request=Path("/nowhere"), clock=clock), notes, heard


def share(
    desk: Desk, resources: Resources, *, nodes: list[Mapping[str, float]], entries: list[Noted] | None = None
) -> Resources:
    return shared_out(desk, resources, nodes=nodes, plan=sketched(desk.study.experiment, TOY), entries=entries or [])


class TestPlaces:
    @pytest.mark.parametrize(
        ("resources", "nodes", "num_trials", "places"),
        [
            (GPU, [{"CPU": 16, "GPU": 1}], 64, {1: 1, 2: 2, 4: 4, 8: 8}),
            (GPU, [{"CPU": 16, "GPU": 4}], 64, {1: 4, 2: 8, 4: 16}),
            (GPU, [{"CPU": 16, "GPU": 1}], 3, {1: 1, 2: 2}),
            (GPU, [{"CPU": 6, "GPU": 1}], 64, {1: 1, 2: 2, 4: 4}),
            (GPU, [{"CPU": 8, "GPU": 4}, {"CPU": 8}], 64, {1: 4, 2: 8}),
            (GPU, [{"CPU": 2, "GPU": 4}], 64, {1: 2}),
            (Resources(cpus=4, gpus=1), [{"CPU": 16, "GPU": 1}], 64, {1: 1, 2: 2, 4: 4}),
            (Resources(cpus=1, gpus=0.5), [{"CPU": 16, "GPU": 2}], 64, {2: 4, 4: 8, 8: 16}),
            (Resources(cpus=1, gpus=0.1), [{"CPU": 16, "GPU": 1}], 64, {10: 10}),
        ],
    )
    def test_fill_every_gpu(
        self, resources: Resources, nodes: list[Mapping[str, float]], num_trials: int, places: dict[int, int]
    ) -> None:
        assert places_by_number(resources, nodes, num_trials=num_trials) == places


class TestToBeginWith:
    def test_without_a_gpu_the_cores_say_how_many(self) -> None:
        desk, _, heard = desk_of(Clock())
        assert share(desk, Resources(cpus=1, gpus=0), nodes=[{"CPU": 2}]) == Resources(cpus=1, gpus=0)
        assert desk.calibration is None
        assert heard.said_lines == ["no GPU is to be shared: 2 at a time, as many trials as the cores bear"]

    def test_what_was_measured_before_is_kept(self) -> None:
        desk, _, heard = desk_of(Clock())
        entries = [Noted(1, "concurrent", None, None, None, {"trials_per_gpu": 4})]
        assert share(desk, GPU, nodes=[{"CPU": 16, "GPU": 1}], entries=entries) == Resources(cpus=1, gpus=0.25)
        assert desk.calibration is None
        assert heard.said_lines == ["4 on each GPU at a time, as this run has measured before"]
        assert measured_before([]) is None

    @pytest.mark.parametrize("settings", [{"trials": 1}, {}])
    def test_where_no_more_fit_nothing_is_measured(self, settings: dict[str, Any]) -> None:
        desk, _, heard = desk_of(Clock(), **settings)
        cpus = 1 if not settings else 16
        assert share(desk, GPU, nodes=[{"CPU": cpus, "GPU": 1}]) is GPU
        assert desk.calibration is None
        assert heard.said_lines == ["1 at a time: cores or trials for more on each GPU are not there"]

    def test_epochs_and_trials_that_are_left(self) -> None:
        desk, _, _ = desk_of(Clock(), trials=3, policy=NoStopping(4))
        plan = sketched(desk.study.experiment, TOY)
        assert (epochs_left(desk, plan), trials_left(desk.study)) == (12, 3)
        lease = desk.lease()
        assert lease is not None
        for number in range(1, 5):
            desk.report(lease, trained(number))
        assert (epochs_left(desk, plan), trials_left(desk.study)) == (8, 2)


def trained(number: int, pid: int = 1) -> Trained:
    return Trained(number, Step({"score": 0.5}, number, 100), 1.0, "node", pid)


class TestDesk:
    """Trials train one second a step, however many share the GPU, and each attempt in a process of its own."""

    def go(self, desk: Desk, clock: Clock) -> dict[int, Lease]:
        """Lease and train until the desk moves or has settled; returns the leases that are open then."""
        calibration = desk.calibration
        assert calibration is not None
        leases: dict[int, Lease] = {}
        steps: dict[int, int] = {}
        while len(leases) < calibration.slots:
            lease = desk.lease()
            assert lease is not None
            leases[lease.trial], steps[lease.trial] = lease, desk.study.trials[lease.trial].step
        while not desk.emptying and not calibration.settled:
            clock.now += 1.0
            for number in list(leases):
                steps[number] += 1
                if not desk.report(leases[number], trained(steps[number], pid=number)):
                    del leases[number]
        return leases

    def test_puts_trials_off_moves_and_goes_on_until_it_has_chosen(self) -> None:
        clock = Clock()
        desk, notes, heard = desk_of(clock)
        share(desk, GPU, nodes=[{"CPU": 4, "GPU": 1}])
        assert not self.go(desk, clock)  # the only one was put off
        assert desk.emptying
        assert not desk.closing
        assert desk.wants_checkpoint(Lease(0, 1, {}, 0, "new", None))
        assert desk.move() == 2
        assert not desk.emptying
        assert not self.go(desk, clock)
        assert desk.move() == 4
        assert list(self.go(desk, clock)) == [0, 1, 2, 3]
        assert desk.calibration is not None
        assert desk.calibration.settled
        assert heard.said_lines == [
            "4 trials a GPU: 400 samples/s against 100 with 1, 200 with 2 (cores or trials for more are not there)"
        ]
        [chosen] = [entry for entry in notes.entries if entry.kind == "concurrent"]
        assert chosen.detail["trials_per_gpu"] == 4
        assert {entry.detail["reason"] for entry in notes.entries if entry.kind == "interrupted"} == {
            "another number of trials a GPU comes next"
        }
        assert same(replayed(desk.study, notes), desk.study)

    def test_a_wish_to_stop_goes_before(self) -> None:
        clock = Clock()
        desk, _, _ = desk_of(clock)
        share(desk, GPU, nodes=[{"CPU": 4, "GPU": 1}])
        self.go(desk, clock)
        desk.close_down("the test asks")
        desk.move()
        assert desk.emptying
        assert desk.closing

    def test_out_of_memory_at_a_number_that_is_tried_is_not_the_trials_own(self) -> None:
        clock = Clock()
        desk, notes, heard = desk_of(clock, max_failures=0)
        share(desk, GPU, nodes=[{"CPU": 4, "GPU": 1}])
        self.go(desk, clock)
        desk.move()
        leases = [desk.lease(), desk.lease()]
        for lease in leases:
            assert lease is not None
            desk.failed(lease, cause="out_of_memory", message="too much", trace="")
        assert heard.said_lines == ["1 trial a GPU: 100 samples/s (2 do not fit into its memory)"]
        assert [entry.detail["cause"] for entry in notes.entries if entry.kind == "failed"] == [CROWDED] * 2
        assert [trial.num_failures for trial in desk.study.trials] == [0, 0]
        assert desk.move() == 1
        assert same(replayed(desk.study, notes), desk.study)


BODY = """
from hpo import *
from tests.engine.toy import Toy
experiment = Experiment(
    task=Toy(), space={"x": uniform(0.0, 1.0)}, fixed={"sleep_s": 0.05, "memory_mb": 100.0}, goal=Maximize("score"),
    trials=8, policy=NoStopping(9000), concurrent="auto", checkpoint_every_s=1000.0,
)
"""

TELLS = """
import json, os
from dataclasses import dataclass
from hpo import *
from tests.engine.toy import Toy, ToyTrainer

@dataclass(frozen=True)
class Tells(Toy):
    def begin(self, setting):
        told = {"device": setting.device, "gpus": setting.gpus, "data": setting.data_memory_fraction,
                "planned_epochs": setting.planned_epochs, "visible": os.environ["CUDA_VISIBLE_DEVICES"]}
        print(json.dumps(told))
        return ToyTrainer(setting, 0)

experiment = Experiment(
    task=Tells(), space={"x": uniform(0.0, 1.0)}, goal=Maximize("score"), trials=8, policy=NoStopping(3),
    per_trial=PerTrial(gpus=0.25, data_memory_fraction=0.5),
)
"""

BELIEVES = ("--cpus", "2", "--gpus", "1")
"""Ray is told of a GPU that it gives out and nobody uses."""


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "toy_study.py"
    path.write_text(BODY)
    return path


def until(study: Path, told: str, *words: str) -> str:
    """What the run printed; it is stopped cleanly once a line matches."""
    command = [sys.executable, "-u", "-m", "hpo.run", str(study), *words]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    driver = subprocess.Popen(
        command, cwd=study.parent, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert driver.stdout is not None
    lines: list[str] = []
    for line in driver.stdout:
        lines.append(line)
        if re.search(told, line):
            driver.send_signal(signal.SIGINT)
            break
    out, _ = driver.communicate(timeout=120)
    assert driver.returncode == 130, "".join([*lines, out])
    return "".join([*lines, out])


def read_again(study: Path) -> Study:
    """The study of the run, its journal held against it; no step was trained twice or left out."""
    from hpo.experiment_file import load

    store = Store(study.parent / "results")
    newest = store.newest("toy_study")
    assert newest is not None
    entries = read_entries(RunPaths(store.root, "toy_study", newest["run_id"]))
    again = Study(load(study).experiment, lambda *_, **__: None)
    again.replay(entries)
    assert not [entry for entry in entries if entry.kind in ("differs", "checkpoint_failed")]
    for trial in again.trials:
        steps = [entry.step for entry in entries if entry.kind == "report" and entry.trial == trial.number]
        assert steps == list(range(1, trial.step + 1))
        resumed = [entry for entry in entries if entry.kind == "started" and entry.trial == trial.number][1:]
        assert all(entry.detail["from_step"] > 0 for entry in resumed if entry.detail["why"] == "resumed")
    return again


@pytest.mark.integration
class TestRuns:
    def test_measures_once_keeps_it_and_loses_no_step(self, study: Path) -> None:
        out = until(study, r"trials? a GPU: ", *BELIEVES)
        assert re.search(r"2 trials a GPU: \d+ samples/s against \d+ with 1; 0\.098 of 10 GiB each", out), out
        trials = read_again(study).trials
        assert len(trials) == 2
        store = Store(study.parent / "results")
        shares = store.sql("SELECT DISTINCT num_gpus FROM reports WHERE trial = 0 ORDER BY 1").to_pylist()
        assert [row["num_gpus"] for row in shares] == [0.5, 1.0]
        out = until(study, r"as this run has measured before", *BELIEVES)
        assert "2 on each GPU at a time, as this run has measured before" in out
        assert "trials a GPU:" not in out
        read_again(study)

    def test_a_share_is_what_each_trial_gets(self, study: Path) -> None:
        study.write_text(TELLS)
        command = [sys.executable, "-m", "hpo.run", str(study), "--cpus", "4", "--gpus", "1"]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
        done = subprocess.run(
            command, cwd=study.parent, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        told = [line for log in study.parent.rglob("*.log") for line in log.read_text().splitlines() if "{" in line]
        assert told
        expected = {"device": "cuda", "gpus": 0.25, "data": 0.5, "planned_epochs": 6.0, "visible": "0"}
        assert [json.loads(line) for line in told] == [expected] * len(told)
        store = Store(study.parent / "results")
        shares = store.sql("SELECT DISTINCT num_gpus, abs(gpu_s - step_s / 4) < 1e-9 AS fits FROM reports").to_pylist()
        assert shares == [{"num_gpus": 0.25, "fits": True}]

    def test_out_of_memory_goes_back_to_fewer(self, study: Path) -> None:
        study.write_text(BODY.replace('"memory_mb"', '"fits": 1, "memory_mb"'))
        out = until(study, r"1 trial a GPU: ", *BELIEVES, "--set", "max_failures=0")
        assert "(2 do not fit into its memory)" in out
        assert all(trial.num_failures == 0 for trial in read_again(study).trials)


ON_A_GPU = """
from hpo import *
from hpo.training import Classification
from hpo.training.data import Digits
from hpo.training.models import ConvNet
experiment = Experiment(
    task=Classification(model=ConvNet, data=Digits()), space={"lr": loguniform(1e-3, 1e-1)},
    goal=Maximize("val_accuracy"), SETTINGS
)
"""


@pytest.mark.gpu
@pytest.mark.integration
@pytest.mark.skipif(not local_gpus(), reason="no GPU is here")
class TestOnGpu:
    def test_four_trials_share_it(self, study: Path) -> None:
        study.write_text(
            ON_A_GPU.replace("SETTINGS", "trials=4, policy=NoStopping(20), per_trial=PerTrial(gpus=0.25, cpus=0.25)")
        )
        command = [sys.executable, "-m", "hpo.run", str(study), "--gpus", "1"]
        done = subprocess.run(command, cwd=study.parent, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        store = Store(study.parent / "results")
        rows = store.sql("SELECT DISTINCT num_gpus, device_memory_mb > 0 AS on_device FROM reports").to_pylist()
        assert rows == [{"num_gpus": 0.25, "on_device": True}]
        at_once = store.sql(
            "SELECT (SELECT max(seq) FROM events WHERE kind = 'started')"
            " < (SELECT min(seq) FROM events WHERE kind = 'stopped') AS so"
        ).to_pylist()
        assert at_once == [{"so": True}]

    def test_how_many_it_bears_is_measured(self, study: Path) -> None:
        settings = "trials=256, policy=NoStopping(2000), concurrent='auto', per_trial=PerTrial(cpus=0.25)"
        study.write_text(ON_A_GPU.replace("SETTINGS", settings))
        out = until(study, r"trials? a GPU: ", "--gpus", "1")
        assert re.search(r"\d trials? a GPU: [\d,.]+ samples/s.* of \d+ GiB each", out), out
        [chosen] = [json.loads(row["detail"]) for row in events(study, "concurrent")]
        assert [one["trials_per_gpu"] for one in chosen["measured"]][:2] == [1, 2]
        assert all(one["samples_per_s"] > 0 and one["memory_mb"] > 0 for one in chosen["measured"])
        read_again(study)


def events(study: Path, kind: str) -> list[dict[str, Any]]:
    found = Store(study.parent / "results").sql(f"SELECT * FROM events WHERE kind = '{kind}'")  # noqa: S608
    return list(found.to_pylist())
