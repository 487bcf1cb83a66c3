"""The best weights of a trial that goes on in another run, on whose data the earlier ones were not measured."""

from __future__ import annotations

from pathlib import Path

import torch

from hpo.protocols import Setting
from hpo.training import checkpoint
from tests.training.line import LineFit


def test_are_those_of_the_steps_to_come(tmp_path: Path) -> None:
    task = LineFit()
    trainer = task.begin(Setting("cpu", 1, task.locate(None), Path("nowhere"), "val_loss", sign=-1))
    config = {"lr": 1.2, "batch_size": 8, "optimizer": "sgd"}  # each step is worse than the one before
    before, after = tmp_path / "before.pt", tmp_path / "after.pt"
    trainer.begin(config, seed=0)
    first = trainer.step().metrics["val_loss"]
    trainer.save(before)

    def are_those_of_before(*, forgotten: bool) -> bool:
        trainer.begin(config, seed=0)
        trainer.load(before)
        if forgotten:
            trainer.forget_best()
        assert first < trainer.step().metrics["val_loss"] < float("inf")
        trainer.save(after)
        now, then = (checkpoint.best_weights(checkpoint.read(path)) for path in (after, before))
        return all(torch.equal(now[name], then[name]) for name in then)

    assert are_those_of_before(forgotten=False)
    assert not are_those_of_before(forgotten=True)
