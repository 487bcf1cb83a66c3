"""The laws of `Trainer`, to be inherited by the tests of every task."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from hpo.errors import CheckpointError
from hpo.protocols import Trainer
from tests.training.fresh import Order, exact, in_new_process, task_of, trainer_of


def same(first: Any, second: Any) -> bool:
    """Whether two nested containers of tensors are equal bit for bit."""
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, Mapping):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return type(first) is type(second) and (first == second or (first != first and second != second))  # noqa: PLR0124


def saved(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


class TrainerContract:
    """Inherit, and say which task, two configurations, and the goal metric."""

    task: ClassVar[str]
    config: ClassVar[dict[str, Any]]
    other_config: ClassVar[dict[str, Any]]
    metric: ClassVar[str]
    interval: ClassVar[int] = 3
    """Batches that give an epoch of `config` several steps, the last of them shorter."""
    seed = 7

    @pytest.fixture
    def trainer(self, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
        return trainer_of(self.task, metric=self.metric, cache_dir=str(tmp_path_factory.mktemp("cache")))

    def order(self, tmp_path: Path, **changed: Any) -> Order:
        settings = {"config": self.config, "steps": 3, "load": None, **changed}
        return Order(
            self.task,
            seed=self.seed,
            metric=self.metric,
            cache_dir=str(tmp_path),
            save=str(tmp_path / "new.pt"),
            **settings,
        )

    def test_equals_a_trainer_in_a_new_process(self, trainer: Trainer, tmp_path: Path) -> None:
        trainer.begin(self.other_config, seed=self.seed + 1)
        trainer.step()
        random.random(), np.random.random(), torch.rand(3)  # noqa: NPY002
        torch.set_num_threads(2)
        trainer.begin(self.config, seed=self.seed)
        here = [exact(trainer.step()) for _ in range(3)]
        trainer.save(tmp_path / "here.pt")
        there = in_new_process(self.order(tmp_path))
        assert here == there
        assert same(saved(tmp_path / "here.pt"), saved(tmp_path / "new.pt"))

    def test_goes_on_in_a_new_process_as_if_nothing_had_happened(self, trainer: Trainer, tmp_path: Path) -> None:
        trainer.begin(self.config, seed=self.seed)
        trainer.step()
        trainer.save(tmp_path / "first.pt")
        here = [exact(trainer.step()) for _ in range(2)]
        trainer.save(tmp_path / "here.pt")
        there = in_new_process(self.order(tmp_path, steps=2, load=str(tmp_path / "first.pt")))
        assert here == there
        assert same(saved(tmp_path / "here.pt"), saved(tmp_path / "new.pt"))

    def test_goes_on_in_the_middle_of_an_epoch_in_a_new_process(self, trainer: Trainer, tmp_path: Path) -> None:
        config = {**self.config, "val_check_interval": self.interval}
        trainer.begin(self.config, seed=self.seed)
        whole = trainer.step().num_samples
        trainer.begin(config, seed=self.seed)
        begun = [trainer.step()]
        trainer.save(tmp_path / "first.pt")
        while begun[-1].num_epochs == 0:
            begun.append(trainer.step())
        assert len(begun) > 1
        assert [step.num_epochs for step in begun] == [0] * (len(begun) - 1) + [1]
        assert {step.epoch for step in begun} == {1}
        assert sum(step.num_samples for step in begun) == whole
        assert begun[-1].num_samples < begun[0].num_samples
        here = [exact(step) for step in (*begun[1:], trainer.step())]
        trainer.save(tmp_path / "here.pt")
        order = self.order(tmp_path, config=config, steps=len(here), load=str(tmp_path / "first.pt"))
        assert here == in_new_process(order)
        assert same(saved(tmp_path / "here.pt"), saved(tmp_path / "new.pt"))

    def test_a_seed_decides_all_and_another_seed_differs(self, trainer: Trainer) -> None:
        def first(seed: int) -> dict[str, Any]:
            trainer.begin(self.config, seed=seed)
            return exact(trainer.step())

        assert first(1) == first(1)
        assert first(1) != first(2)

    def test_steps_report_every_declared_metric(self, trainer: Trainer) -> None:
        trainer.begin(self.config, seed=self.seed)
        steps = [trainer.step(), trainer.step()]
        assert set(steps[0].metrics) == set(task_of(self.task).metrics)
        assert [step.epoch for step in steps] == [1, 2]
        assert steps[0].num_samples > 0
        assert [step.finished for step in steps] == [False, False]

    def test_finishes_with_the_epochs_of_its_configuration(self, trainer: Trainer) -> None:
        trainer.begin({**self.config, "epochs": 2}, seed=self.seed)
        assert [trainer.step().finished for _ in range(2)] == [False, True]

    def test_save_returns_the_size_and_leaves_one_file(self, trainer: Trainer, tmp_path: Path) -> None:
        trainer.begin(self.config, seed=self.seed)
        trainer.step()
        assert trainer.save(tmp_path / "a.pt") == (tmp_path / "a.pt").stat().st_size
        assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]

    def test_the_announced_size_is_the_size(self, trainer: Trainer, tmp_path: Path) -> None:
        trainer.begin(self.config, seed=self.seed)
        trainer.step()
        trainer.step()
        size_mb = trainer.save(tmp_path / "a.pt") / 2**20
        task = task_of(self.task)
        announced = task.checkpoint_mb(self.config, task.locate(None))
        assert 0.4 * announced - 0.05 <= size_mb <= 1.1 * announced + 0.05

    def test_a_snapshot_is_written_as_it_was_taken_however_late(self, trainer: Trainer, tmp_path: Path) -> None:
        trainer.begin(self.config, seed=self.seed)
        trainer.step()
        later, at_once = trainer.snapshot(), trainer.snapshot()
        at_once.write(tmp_path / "at_once.pt")
        while_it_trains = trainer.snapshot()
        trainer.step()
        while_it_trains.write(tmp_path / "while_it_trains.pt")
        trainer.step()
        trainer.begin(self.other_config, seed=self.seed + 1)
        trainer.step()
        with ThreadPoolExecutor(max_workers=1) as thread:
            thread.submit(later.write, tmp_path / "later.pt").result()
        first = saved(tmp_path / "at_once.pt")
        assert same(first, saved(tmp_path / "while_it_trains.pt"))
        assert same(first, saved(tmp_path / "later.pt"))

    def test_taking_a_snapshot_changes_nothing(self, trainer: Trainer) -> None:
        trainer.begin(self.config, seed=self.seed)
        undisturbed = [exact(trainer.step()) for _ in range(2)]
        trainer.begin(self.config, seed=self.seed)
        disturbed = [exact(trainer.step())]
        trainer.snapshot()
        assert [*disturbed, exact(trainer.step())] == undisturbed

    def test_a_save_that_fails_leaves_the_old_file(
        self, trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "a.pt"
        trainer.begin(self.config, seed=self.seed)
        trainer.save(path)
        before = path.read_bytes()
        trainer.step()

        def full_disk(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr("os.fsync", full_disk)
            with pytest.raises(OSError, match="No space left"):
                trainer.save(path)
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]

    def test_a_checkpoint_cut_off_anywhere_is_an_error(self, trainer: Trainer, tmp_path: Path) -> None:
        trainer.begin(self.config, seed=self.seed)
        trainer.save(tmp_path / "whole.pt")
        content = (tmp_path / "whole.pt").read_bytes()
        path = tmp_path / "cut.pt"
        for share in (0.0, 0.01, 0.5, 0.99, 0.9999):
            path.write_bytes(content[: int(len(content) * share)])
            with pytest.raises(CheckpointError, match="cut off or damaged"):
                trainer.load(path)
            with pytest.raises(CheckpointError, match="cut off or damaged"):
                trainer.test(path)

    def test_a_missing_checkpoint_is_an_error(self, trainer: Trainer, tmp_path: Path) -> None:
        trainer.begin(self.config, seed=self.seed)
        with pytest.raises(CheckpointError, match=r"nowhere\.pt: there is no such checkpoint"):
            trainer.load(tmp_path / "nowhere.pt")

    def test_a_checkpoint_of_another_configuration_is_an_error(self, trainer: Trainer, tmp_path: Path) -> None:
        trainer.begin(self.other_config, seed=self.seed)
        trainer.save(tmp_path / "other.pt")
        trainer.begin(self.config, seed=self.seed)
        name = min(
            name
            for name in {*self.config, *self.other_config}
            if json.dumps(self.config.get(name, "nothing")) != json.dumps(self.other_config.get(name, "nothing"))
        )
        with pytest.raises(CheckpointError, match=f"another configuration: {name} is .* there and .* here"):
            trainer.load(tmp_path / "other.pt")

    def test_the_best_weights_are_those_of_the_newest_chunks_best_step(self, trainer: Trainer, tmp_path: Path) -> None:
        trainer.begin(self.config, seed=self.seed)
        sign = -1 if "loss" in self.metric else 1
        scores, weights, chunks = [], [], []
        for number in range(4):
            step = trainer.step()
            scores.append(sign * step.metrics[self.metric])
            chunks.append(step.chunk)
            trainer.save(tmp_path / f"{number}.pt")
            weights.append(saved(tmp_path / f"{number}.pt")["model"])
        last = saved(tmp_path / "3.pt")
        newest = chunks.index(chunks[-1])
        best = scores.index(max(scores[newest:]), newest)
        assert last["best"]["step"] == best + 1
        assert last["best"]["score"] == scores[best]
        kept = last["best"]["model"]
        assert same(last["model"] if kept is None else kept, weights[best])

    def test_the_test_part_is_measured_with_the_best_weights(self, trainer: Trainer, tmp_path: Path) -> None:
        trainer.begin(self.config, seed=self.seed)
        trainer.step()
        trainer.save(tmp_path / "a.pt")
        tested = trainer.test(tmp_path / "a.pt")
        assert tested == trainer.test(tmp_path / "a.pt")
        names = {name.removeprefix("val_") for name in task_of(self.task).metrics if name.startswith("val_")}
        assert set(tested) == {f"test_{name}" for name in names}

    def test_testing_in_the_middle_changes_nothing(self, trainer: Trainer, tmp_path: Path) -> None:
        trainer.begin(self.config, seed=self.seed)
        trainer.step()
        undisturbed = exact(trainer.step())
        trainer.begin(self.config, seed=self.seed)
        trainer.step()
        trainer.save(tmp_path / "a.pt")
        trainer.test(tmp_path / "a.pt")
        assert exact(trainer.step()) == undisturbed

    def test_step_before_begin_is_an_error(self, tmp_path: Path) -> None:
        fresh = trainer_of(self.task, metric=self.metric, cache_dir=str(tmp_path))
        with pytest.raises(RuntimeError, match=r"begin\(\) comes before"):
            fresh.step()
