"""The test data, looked at once: the best trial's best weights."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from hpo.engine.study import Study, Trial
from hpo.errors import HpoError
from hpo.protocols import Setting, Trainer
from hpo.results import RunStore


def score_best(study: Study, store: RunStore, setting: Setting) -> Mapping[str, float]:
    """Metrics of the best trial on the test data; from the journal where it holds them.

    A best trial whose weights were not kept (the run was killed at the wrong moment) is trained again up to its
    best step.

    Raises:
        HpoError: No trial has a finite score.
    """
    best = study.best
    if best is None:
        raise HpoError("no trial has a finite score", where="--test", remedy="look at the failures: hpo logs RUN TRIAL")
    for entry in store.entries:
        if entry.kind == "tested" and (entry.trial, entry.step) == (best.number, best.best_step):
            return dict(entry.detail["metrics"])
    try:
        metrics = _score(study, best, setting)
    except HpoError:
        raise
    except Exception as error:
        raise HpoError(
            f"scoring trial {best.number} raised {type(error).__name__}: {error}",
            where="--test",
            remedy="the run is stored; mend the cause and start the same command again with --test",
        ) from error
    store.append("tested", trial=best.number, step=best.best_step, detail={"metrics": metrics})
    return metrics


def _score(study: Study, best: Trial, setting: Setting) -> dict[str, float]:
    trainer = study.experiment.task.begin(setting)
    trainer.begin(best.config, seed=best.seed)
    with tempfile.TemporaryDirectory() as scratch:
        return dict(trainer.test(_weights(trainer, best, Path(scratch))))


def _weights(trainer: Trainer, best: Trial, scratch: Path) -> Path:
    """A checkpoint that holds the best weights of the trial."""
    kept = best.checkpoint
    there = kept is not None and Path(kept.path).exists()
    if there and kept is not None and kept.step >= best.best_step:
        return Path(kept.path)
    step = 0
    if there and kept is not None:
        trainer.load(Path(kept.path))
        step = kept.step
    for _ in range(step, best.best_step):
        trainer.step()
    path = scratch / "best.pt"
    trainer.save(path)
    return path
