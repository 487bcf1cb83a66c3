"""What a run shows of itself while it goes on: gauges that every node's metrics port serves to Prometheus.

The driver is their one writer, and sets what is true now again and again. What it no longer sets, since the trial gave
its place back or the driver ended, Ray forgets within `FORGOTTEN_AFTER_S`; so nothing has to be taken away, and all are
gauges: a counter stays on its node's port until the node ends.
"""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol

import ray
from ray.util.metrics import Gauge

from hpo.engine.study import Study
from hpo.engine.trials import Lease
from hpo.engine.worker import Trained
from hpo.trial import TrialState

EVERY_S = 2.5
"""Between two settings. A node takes over every 10 s what was set last, and what was not set in between is a gap."""
FORGOTTEN_AFTER_S = 30.0
"""Ray shows a value for twice those 10 s after it was taken over last."""
PREFIX = "ray_"
"""What Ray puts before the names."""


@dataclass(frozen=True)
class Metric:
    """A gauge: its name without Ray's prefix, its labels beside experiment and run, and what it shows."""

    name: str
    labels: tuple[str, ...]
    shows: str

    @property
    def served_as(self) -> str:
        """The name that Prometheus sees."""
        return PREFIX + self.name


_STATES = (*(state.value for state in TrialState), "waiting")
LABELS = ("experiment", "run")
"""Labels that every gauge has."""
METRICS = (
    Metric("hpo_best_value", ("metric",), "goal metric of the best trial so far, as it was measured"),
    Metric("hpo_best_trial", (), "number of the best trial so far"),
    Metric("hpo_trials", ("state",), "trials in each state; `waiting` have not begun"),
    Metric("hpo_queue", (), "trials that are to train now and have no place yet"),
    Metric("hpo_steps_done", (), "steps that this driver got reports of"),
    Metric("hpo_steps_busy_s", (), "seconds that these steps took, added up: divided by them, the mean"),
    Metric("hpo_samples_per_s", (), "samples a second in the last steps of the trials that train, added up"),
    Metric("hpo_trial_score", ("trial",), "goal metric of the last step, its sign turned so that larger is better"),
    Metric("hpo_trial_metric", ("trial", "metric"), "each metric of the last step, the losses among them"),
    Metric("hpo_trial_epoch", ("trial",), "epochs trained"),
    Metric("hpo_trial_step_s", ("trial",), "seconds of the last step"),
    Metric("hpo_trial_samples_per_s", ("trial",), "samples a second in the last step"),
    Metric("hpo_trial_device_memory_mb", ("trial",), "peak device memory of the trial in MiB, where it has a GPU"),
    Metric("hpo_trial_busy_share", ("trial",), "seconds in steps per second of the trial's process, 0 to 1"),
    Metric("hpo_gpu_busy_share", ("node", "gpu"), "its trials' busy shares, each times its share of the GPU, 0 to 1"),
    Metric("hpo_gpu_device_memory_mb", ("node", "gpu"), "peak device memory of its trials, added up, in MiB"),
    Metric("hpo_gpu_trials", ("node", "gpu"), "trials that train on the GPU"),
)


class Write(Protocol):
    """Sets a gauge."""

    def __call__(self, name: str, value: float, **labels: str) -> None:
        """Have `name` show `value`; `labels` are those beside experiment and run."""


class RayGauges:
    """The gauges of a run, served by the node that the driver is on; Ray has to be connected."""

    def __init__(self, *, experiment: str, run: str) -> None:
        always = dict(zip(LABELS, map(_ascii, (experiment, run)), strict=True))
        self._gauges = {
            metric.name: Gauge(metric.name, metric.shows, (*LABELS, *metric.labels)).set_default_tags(always)
            for metric in METRICS
        }

    @property
    def every_s(self) -> float:
        """How often to set them, so that Ray, as it was told to, finds each whenever it takes them over."""
        return min(EVERY_S, float(ray._config.metrics_report_interval_ms()) / 4000)

    def __call__(self, name: str, value: float, **labels: str) -> None:
        """Set it."""
        self._gauges[name].set(value, {label: _ascii(text) for label, text in labels.items()})


def _ascii(text: str) -> str:
    r"""Ray raises where a label is anything else: `größe` becomes `gr\xf6\xdfe`."""
    return text if text.isascii() else text.encode("ascii", "backslashreplace").decode("ascii")


@dataclass
class _Process:
    """The last that a trial's process reported; `busy_s` are the seconds in steps since `since`."""

    lease: Lease
    trained: Trained
    at: float
    since: float
    busy_s: float = 0.0
    share: float = 0.0

    @property
    def samples_per_s(self) -> float:
        """In its last step."""
        return self.trained.step.num_samples / self.trained.step_s if self.trained.step_s > 0 else 0.0

    def sum_up(self) -> float:
        """Its share of time in steps up to its last report; where none came since it was asked last, as then."""
        if self.at > self.since:
            self.share = min(self.busy_s / (self.at - self.since), 1.0)
            self.since, self.busy_s = self.at, 0.0
        return self.share


class Gauges:
    """Sets the gauges from what the desk sees; a report costs it about a microsecond.

    Args:
        study: Of the run.
        write: Where values go.
        every_s: Between two settings.
        clock: Seconds.
    """

    def __init__(
        self,
        study: Study,
        write: Write,
        *,
        every_s: float = EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._study, self._write, self._every_s, self._clock = study, write, every_s, clock
        self._processes: dict[tuple[str, int], _Process] = {}
        self._steps, self._busy_s = 0, 0.0
        self._set_at = -math.inf

    def reported(self, lease: Lease, trained: Trained) -> None:
        """A step of a lease ended."""
        now = self._clock()
        key = (trained.node, trained.pid)
        process = self._processes.get(key)
        if process is None:
            process = self._processes[key] = _Process(lease, trained, now, since=now - trained.step_s)
        process.lease, process.trained, process.at = lease, trained, now
        process.busy_s += trained.step_s
        self._steps += 1
        self._busy_s += trained.step_s

    def round(self, training: Collection[tuple[int, int]], *, num_gpus: float) -> None:
        """Set what is true now, if that is due.

        Args:
            training: Trial and attempt of the leases that have a place.
            num_gpus: GPUs of each trial, of all its workers together.
        """
        now = self._clock()
        if now - self._set_at < self._every_s:
            return
        self._set_at = now
        self._set_run(len(training))
        held = []
        for key, process in list(self._processes.items()):
            if (process.lease.trial, process.lease.attempt) in training:
                held.append(process)
                self._set_trial(process, process.sum_up())
            elif now - process.at > FORGOTTEN_AFTER_S:
                del self._processes[key]
        self._write("hpo_samples_per_s", sum(process.samples_per_s for process in held))
        self._set_gpus(held, num_gpus=num_gpus)

    def _set_run(self, num_training: int) -> None:
        study, write = self._study, self._write
        if study.best is not None and study.best.best_score is not None:
            goal = study.experiment.goal
            write("hpo_best_value", goal.sign * study.best.best_score, metric=goal.metric)
            write("hpo_best_trial", study.best.number)
        states = Counter(trial.state.value for trial in study.trials)
        states["waiting"] = max(study.num_trials - len(study.trials), 0)
        for state in _STATES:
            write("hpo_trials", states[state], state=state)
        write("hpo_queue", max(study.num_leased - num_training, 0))
        write("hpo_steps_done", self._steps)
        write("hpo_steps_busy_s", self._busy_s)

    def _set_trial(self, process: _Process, share: float) -> None:
        trained, trial, write = process.trained, str(process.lease.trial), self._write
        step, goal = trained.step, self._study.experiment.goal
        write("hpo_trial_score", goal.sign * step.metrics[goal.metric], trial=trial)
        for name, value in step.metrics.items():
            write("hpo_trial_metric", value, trial=trial, metric=name)
        write("hpo_trial_epoch", step.epoch, trial=trial)
        write("hpo_trial_step_s", trained.step_s, trial=trial)
        write("hpo_trial_busy_share", share, trial=trial)
        if step.num_samples:
            write("hpo_trial_samples_per_s", process.samples_per_s, trial=trial)
        if step.device_memory_mb is not None:
            write("hpo_trial_device_memory_mb", step.device_memory_mb, trial=trial)

    def _set_gpus(self, processes: Collection[_Process], *, num_gpus: float) -> None:
        on_gpu: defaultdict[tuple[str, str], list[_Process]] = defaultdict(list)
        for process in processes:
            for place in process.trained.gpus:
                on_gpu[place].append(process)  # once for each of its workers that is there
        for (node, gpu), sharing in on_gpu.items():
            share = sum(process.share * num_gpus / len(process.trained.gpus) for process in sharing)
            memory = sum(process.trained.step.device_memory_mb or 0.0 for process in sharing)
            self._write("hpo_gpu_busy_share", min(share, 1.0), node=node, gpu=gpu)
            self._write("hpo_gpu_device_memory_mb", memory, node=node, gpu=gpu)
            self._write("hpo_gpu_trials", len({process.lease.trial for process in sharing}), node=node, gpu=gpu)
