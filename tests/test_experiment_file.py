"""Experiments as files: how they fail, and when they count as changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpo.errors import ExperimentError
from hpo.experiment_file import load

BODY = '''"""What is x?"""
from hpo import Asha, Experiment, Maximize, uniform
from tests.engine.toy import Toy

TRIALS = 4

experiment = Experiment(
    task=Toy(), space={"x": uniform(0, 1)}, goal=Maximize("score"), trials=TRIALS, policy=Asha(9),
    quick={"trials": 2, "asha.max_epochs": 3},
)
'''


def write(folder: Path, text: str, name: str = "what_is_x.py") -> Path:
    path = folder / name
    path.write_text(text)
    return path


class TestLoading:
    def test_the_name_is_that_of_the_file(self, tmp_path: Path) -> None:
        file = load(write(tmp_path, BODY))
        assert file.name == "what_is_x"
        assert file.experiment.trials == 4

    def test_quick_and_then_overrides_are_applied(self, tmp_path: Path) -> None:
        file = load(write(tmp_path, BODY), quick=True, overrides={"trials": 3})
        assert file.experiment.trials == 3
        assert file.experiment.max_steps == 3

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("x = 1\n", r"x\.py: the name `experiment` is missing"),
            ("experiment = 1\n", r"x\.py: the name `experiment` is a int"),
            ("a = 1\nb = a / 0\n", r"x\.py:2: importing it raised ZeroDivisionError"),
            ("a = 1\ndef f(:\n", r"x\.py:2: importing it raised SyntaxError"),
            (BODY.replace("uniform(0, 1)", "uniform(1, 0)"), r"x\.py: space\.x: low=1 is not below high=0"),
            (BODY.replace('"asha.max', '"ahsa.max'), r"(?s)x\.py: quick: ahsa\.max_epochs: nobody takes it"),
        ],
    )
    def test_an_error_names_the_file(self, tmp_path: Path, text: str, message: str) -> None:
        with pytest.raises(ExperimentError, match=message):
            load(write(tmp_path, text))

    def test_a_missing_file(self) -> None:
        with pytest.raises(ExperimentError, match=r"nowhere\.py: there is no such file"):
            load("nowhere.py")

    def test_quick_without_quick_settings(self, tmp_path: Path) -> None:
        text = BODY.replace('    quick={"trials": 2, "asha.max_epochs": 3},\n', "")
        with pytest.raises(ExperimentError, match=r"quick: it has no quick settings"):
            load(write(tmp_path, text), quick=True)

    def test_smoke_is_tiny_as_far_as_the_experiment_takes_it(self, tmp_path: Path) -> None:
        experiment = load(write(tmp_path, BODY), smoke=True, overrides={"seed": 3}).experiment
        assert (experiment.num_trials, experiment.seed) == (2, 3)
        assert "train_samples" not in experiment.fixed  # which the toy does not know
        shipped = load(Path(__file__).parent.parent / "experiments" / "cifar_lr_dropout.py", smoke=True).experiment
        assert shipped.num_trials == 2
        assert shipped.fixed["epochs"] == 2
        assert shipped.fixed["train_samples"] == 256
        assert shipped.fixed["filters"] == (32, 32, 64, 64, 128)  # as --quick has it

    @pytest.mark.parametrize(
        ("begins_with", "settings"),
        [
            ('choice(None, Best("other"))', "space={'start_from': %s}"),
            ('Best("other")', "fixed={'start.start_from': %s}"),
            ('"trial:0"', "space={'start_from': choice(None, %s)}"),
        ],
    )
    def test_smoke_needs_no_other_run(self, tmp_path: Path, begins_with: str, settings: str) -> None:
        text = f"""
from hpo import Asha, Best, Experiment, Minimize, choice, uniform
from tests.training.line import LineFit
declared = {{"space": {{"lr": uniform(0.1, 0.2)}}}} | dict({settings % begins_with})
experiment = Experiment(task=LineFit(), goal=Minimize("val_loss"), trials=4, policy=Asha(9), **declared)
"""
        file = write(tmp_path, text)
        experiment = load(file, smoke=True).experiment
        name = "start.start_from" if "start.start" in settings else "start_from"
        if "trial:0" in begins_with:
            assert name in experiment.space
        else:
            assert experiment.fixed[name] is None
            assert name not in experiment.space
        assert load(file, smoke=True, overrides={name: "best:other"}).experiment.fixed[name] == "best:other"

    def test_a_file_may_bear_the_name_of_a_module(self, tmp_path: Path) -> None:
        assert load(write(tmp_path, BODY, "random.py")).name == "random"
        import random

        assert random.Random(1).random() > 0

    def test_modules_beside_it_can_be_imported(self, tmp_path: Path) -> None:
        write(tmp_path, "LOW = 0\n", "beside_x.py")
        file = load(write(tmp_path, BODY.replace("TRIALS = 4", "import beside_x\nTRIALS = 4")))
        assert "beside_x.py" in file.description["source"]


class TestDigest:
    def digest(self, tmp_path: Path, text: str) -> str:
        return load(write(tmp_path, text)).digest

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ('"""What is x?"""', '"""What is x, then?"""'),
            ("TRIALS = 4", "TRIALS = 40  # more"),
            ("trials=TRIALS,", "trials=TRIALS * 2, per_trial=__import__('hpo').PerTrial(gpus=0),"),
        ],
    )
    def test_docstring_comments_and_number_of_trials_do_not_count(self, tmp_path: Path, old: str, new: str) -> None:
        assert self.digest(tmp_path, BODY) == self.digest(tmp_path, BODY.replace(old, new))

    def test_code_that_trials_run_counts(self, tmp_path: Path) -> None:
        model = "WIDTH = 3\n\ndef model():\n    return WIDTH\n\nexperiment ="
        first = self.digest(tmp_path, BODY.replace("experiment =", model))
        wider = self.digest(tmp_path, BODY.replace("experiment =", model.replace("3", "4")))
        commented = self.digest(tmp_path, BODY.replace("experiment =", model.replace("return", "# yes\n    return")))
        assert first != self.digest(tmp_path, BODY)
        assert first != wider
        assert first == commented

    def test_what_an_import_means_counts_where_trials_use_it(self, tmp_path: Path) -> None:
        body = BODY.replace(
            "experiment =", "from math import sin as wave\n\ndef model():\n    return wave(1)\n\nexperiment ="
        )
        assert self.digest(tmp_path, body) != self.digest(tmp_path, body.replace("sin as", "cos as"))
        unused = BODY.replace("TRIALS", "import math\nTRIALS", 1)
        assert self.digest(tmp_path, BODY) == self.digest(tmp_path, unused)

    def test_it_can_be_loaded_from_its_own_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        write(tmp_path, "import torch\n" + BODY)
        assert list(load("what_is_x.py").description["source"]) == ["what_is_x.py"]

    def test_overrides_count(self, tmp_path: Path) -> None:
        path = write(tmp_path, BODY)
        assert load(path).digest != load(path, quick=True).digest
        assert load(path).digest == load(path, overrides={"trials": 9}).digest
