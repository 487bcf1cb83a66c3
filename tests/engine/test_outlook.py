"""What is found out before a run begins: by a dry run, and by one that could train nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpo import Best, Experiment, Minimize, NoStopping, loguniform
from hpo.engine.opening import check_on, choose, open_run
from hpo.engine.outlook import outlook
from hpo.errors import ExperimentError
from hpo.experiment_file import ExperimentFile
from hpo.protocols import Dataset
from hpo.results import RunStore, Store
from tests.engine.test_origins import keep, starting
from tests.engine.toy import TOY
from tests.results.entries import RUN_STARTED, train
from tests.training.line import LineFit
from tests.training.test_trainer_fine_tuning import Deep


def file_of(folder: Path, made: Experiment) -> ExperimentFile:
    path = folder / "child.py"
    path.write_text("")
    return ExperimentFile(path, "child.py", made)


class TestWeights:
    def told(self, folder: Path, made: Experiment) -> list[str]:
        file, store = file_of(folder, made), Store(folder / "results")
        return outlook(file, choose(file, TOY, store), store)

    def test_are_named_with_whose_they_are(self, tmp_path: Path) -> None:
        with RunStore.create(tmp_path / "results", experiment="parent") as store:
            store.append("run_started", detail=RUN_STARTED)
            train(store, 0, [0.5], config={})
            weights = keep(store, 0, 1)
            run = store.paths.run_id
        made = starting(Best("parent"), "torchvision:DEFAULT", None)
        found = f"start_from best:parent: trial 0 of run {run}, {weights}"
        assert self.told(tmp_path, made) == [
            "a new run would begin",
            found,
            "start_from torchvision:DEFAULT: offered for the model",
        ]
        begun = open_run(file_of(tmp_path, made), TOY, results=tmp_path / "results")
        begun.store.close()
        assert self.told(tmp_path, made)[:2] == [f"run {begun.paths.run_id} (interrupted) would go on", found]
        Path(weights).unlink()
        with pytest.raises(ExperimentError, match=r"child.py: .*weights that the run began with are gone: /.*trial 0"):
            self.told(tmp_path, made)

    def test_that_are_not_there_are_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(ExperimentError, match=r"child.py: fixed.start_from: there is no file /.*nowhere.pt"):
            self.told(tmp_path, starting(fixed={"start_from": "nowhere.pt"}))


class TestWhatIsFrozen:
    def made(self, **fixed: object) -> Experiment:
        return Experiment(
            task=LineFit(model=Deep),
            space={"lr": loguniform(1e-3, 1e-1)},
            goal=Minimize("val_loss"),
            trials=2,
            policy=NoStopping(2),
            fixed={"batch_size": 8, **fixed},
        )

    @pytest.mark.parametrize("name", ["freeze", "fine_tuning.freeze"])
    def test_and_leaves_nothing_to_train_is_an_error_before_the_run(self, tmp_path: Path, name: str) -> None:
        message = rf"child.py: fixed.{name}: 3 leaves nothing to train: .*\n.*at most 2, or -1"
        with pytest.raises(ExperimentError, match=message):
            check_on(file_of(tmp_path, self.made(**{name: 3})), Dataset("line", "line"))

    def test_and_leaves_the_head_is_none(self, tmp_path: Path) -> None:
        check_on(file_of(tmp_path, self.made(freeze=-1)), Dataset("line", "line"))
