"""The test data, looked at once: the best trial's best weights."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping
from pathlib import Path

from hpo.engine.study import Study
from hpo.engine.trials import Trial
from hpo.errors import CheckpointError, HpoError
from hpo.protocols import Setting, Trainer
from hpo.results import RunPaths, RunStore
from hpo.start_from import asked
from hpo.storage import brought


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
        metrics = _score(study, best, setting, store.paths)
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


def _score(study: Study, best: Trial, setting: Setting, paths: RunPaths) -> dict[str, float]:
    trainer = study.experiment.task.begin(setting)
    trainer.begin(study.experiment.trained(best.config), seed=best.seed)
    with contextlib.ExitStack() as ends:
        scratch = Path(ends.enter_context(tempfile.TemporaryDirectory()))
        state = None
        if best.checkpoint is not None:
            with contextlib.suppress(CheckpointError):  # it is not there; a storage that refuses is another thing
                state = ends.enter_context(brought(paths.located(best.checkpoint.path)))
        began_with = asked(best.config) if study.experiment.task.can_start_from else None
        if best.inherited is not None and (parent := best.inherited.parent) is not None:
            began_with = f"trial {parent.trial} of run {parent.run}"
        return dict(trainer.test(_weights(trainer, best, state, scratch, began_with=began_with)))


def _weights(trainer: Trainer, best: Trial, state: Path | None, scratch: Path, *, began_with: str | None) -> Path:
    """A checkpoint that holds the best weights of the trial, whose newest one is `state`, if there is any.

    Raises:
        HpoError: They are not to be had: the trial has taken over another one's state since, or from it; or it began
            with weights of its own (`began_with`), and has no checkpoint.
    """
    own = state is not None and best.checkpoint is not None and best.checkpoint.source is None
    if best.took_over_at and (best.best_step <= best.took_over_at or not own):
        raise HpoError(
            f"the best weights of trial {best.number} (step {best.best_step}) were not kept: it took over another "
            f"trial's state at step {best.took_over_at}",
            where="--test",
            remedy="hpo best shows the trials that come next",
        )
    if state is None and began_with is not None:
        raise HpoError(
            f"the best weights of trial {best.number} (step {best.best_step}) were not kept, and it began with others "
            f"({began_with})",
            where="--test",
            remedy="hpo best shows the trials that come next",
        )
    step = 0
    if state is not None and best.checkpoint is not None:
        step = best.checkpoint.step
        if step >= best.best_step:
            return state
        trainer.load(state)
        if best.checkpoint.parent is not None:
            trainer.forget_best()
    for _ in range(step, best.best_step):
        trainer.step()
    path = scratch / "best.pt"
    trainer.save(path)
    return path
