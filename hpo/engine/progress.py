"""Where a run stands, in numbers for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from hpo.engine.desk import Desk
from hpo.engine.plan import Plan
from hpo.engine.study import Study
from hpo.engine.trials import Trial
from hpo.trial import TrialState


@dataclass(frozen=True)
class Progress:
    """A moment of a run.

    Attributes:
        trials: Trials in total.
        by_state: Trials by state; `waiting` are those that have not begun, or have no place.
        epochs: Steps trained by this driver.
        epochs_expected: Steps that the whole run is likely to take, those of earlier drivers included.
        epochs_all: Steps stored so far.
        epochs_per_s: Of this driver so far; None before the first step.
        eta_s: Seconds that are likely left; None before the first step.
        elapsed_s: Seconds that this driver has run.
        best: The best trial so far.
        best_value: Its goal metric, as the user reads it.
        unit: What a step is called: see `unit_of`.
    """

    trials: int
    by_state: Mapping[str, int]
    epochs: int
    epochs_expected: float
    epochs_all: int
    epochs_per_s: float | None
    eta_s: float | None
    elapsed_s: float
    best: Trial | None
    best_value: float | None
    unit: str = "epochs"


def unit_of(study: Study) -> str:
    """What people call the steps of its trials: "epochs", or "steps" where some trial reports more often."""
    parts = any(trial.progress.num_epochs not in (None, trial.step) for trial in study.trials)
    return "steps" if parts else "epochs"


def progress_of(desk: Desk, plan: Plan, *, now: float) -> Progress:
    """Where the desk's run stands at `now`, a reading of the desk's clock."""
    study = desk.study
    states: Counter[str] = Counter(trial.state.value for trial in study.trials)
    total = max(study.num_trials, len(study.trials))  # fewer may be asked for than there are already
    running = [trial for trial in study.trials if trial.state is TrialState.RUNNING]
    without_place = sum((trial.number, trial.attempt) not in desk.training for trial in running)
    states["running"] -= without_place
    states["waiting"] = total - len(study.trials) + without_place
    steps = sum(trial.step for trial in study.trials)
    expected = _expected(study.trials, total, plan)
    elapsed = now - desk.began
    rate = desk.num_steps / elapsed if desk.num_steps and elapsed > 0 else None
    best = study.best
    value = None if best is None or best.best_score is None else study.experiment.goal.sign * best.best_score
    return Progress(
        trials=total,
        by_state={state: number for state, number in states.items() if number},
        epochs=desk.num_steps,
        epochs_expected=max(expected, steps),
        epochs_all=steps,
        epochs_per_s=rate,
        eta_s=max(expected - steps, 0) / rate if rate else None,
        elapsed_s=elapsed,
        best=best,
        best_value=value,
        unit=unit_of(study),
    )


def _expected(trials: list[Trial], total: int, plan: Plan) -> float:
    """Steps in the end: the plan's, corrected by the trials that have ended as far as there are any."""
    planned = plan.epochs / max(plan.trials, 1)
    ended = [trial.step for trial in trials if trial.state.ended and trial.state is not TrialState.FAILED]
    if not ended:
        return planned * total
    share = len(ended) / total
    mean = share * sum(ended) / len(ended) + (1 - share) * planned
    running = [trial for trial in trials if not trial.state.ended]
    return sum(ended) + sum(max(float(trial.step), mean) for trial in running) + mean * (total - len(trials))
