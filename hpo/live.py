"""What a person sees while a run goes on: a live table in a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hpo.engine.desk import Desk
from hpo.engine.opening import OpenRun
from hpo.engine.plan import Plan, expected
from hpo.engine.progress import Progress, progress_of

_STATES = ("running", "completed", "stopped", "paused", "failed", "waiting")


def seconds(value: float | None) -> str:
    """A duration for people: `8 s`, `3 min 20 s`, `2 h 05 min`."""
    if value is None or not math.isfinite(value):
        return "?"
    if value < 60:
        return f"{value:.0f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def number(value: object) -> str:
    """A value of a configuration or a metric, short."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def configuration(config: Mapping[str, Any], names: Mapping[str, Any]) -> str:
    """The searched part of a configuration on one line."""
    return "  ".join(f"{name}={number(config[name])}" for name in names if name in config)


class Watching:
    """What both views share: the plan, the clock, the warning of a long study, and the two Ctrl-C."""

    def __init__(self, console: Console, *, every_s: float) -> None:
        self.console = console
        self._every_s = every_s
        self._drawn = 0.0
        self._warned = False
        self._opened: OpenRun | None = None
        self._plan = Plan(0, {}, 0, 0)

    def begins(self, run: OpenRun) -> None:
        """Say which run it is, and what a person should know about it."""
        self._opened = run
        experiment = run.file.experiment
        self._plan = expected(experiment, run.dataset, continued=run.study.continued)
        verb = "goes on" if run.resumed else "begins"
        self.console.print(
            f"[bold]{run.file.name}[/] run {run.paths.run_id} {verb} on {run.dataset.name}", highlight=False
        )
        for note in run.notes:
            self.console.print(Text(f"! {note}", style="bold yellow"), soft_wrap=True)

    def happened(self, line: str) -> None:
        """Show what happened."""
        self._show(line)

    def said(self, line: str) -> None:
        """Show what has to be read whole, and stays."""
        self.console.print(Text(line, style="bold"), soft_wrap=True)

    @abstractmethod
    def _show(self, line: str) -> None: ...

    @abstractmethod
    def _draw(self, progress: Progress) -> None: ...

    def round(self, desk: Desk) -> None:
        """Draw, every so often."""
        now = time.monotonic()
        if now - self._drawn < self._every_s:
            return
        self._drawn = now
        self._warn_once(desk)
        self._draw(progress_of(desk, self._plan, now=now))

    def _warn_once(self, desk: Desk) -> None:
        """Without a GPU, say how long the whole study will take as soon as the first epochs have been timed."""
        assert self._opened is not None  # noqa: S101 - begins() came first
        file = self._opened.file
        at_a_time = max(len(desk.training), 1)
        if self._warned or desk.num_steps < 2 * at_a_time:
            return
        self._warned = True
        if file.quick or desk.num_gpus or not file.experiment.quick:
            return
        epoch_s = desk.busy_s / desk.num_steps
        left = self._plan.epochs * epoch_s / at_a_time
        self.said(
            f"without a GPU the whole study is likely to take {seconds(left)} ({seconds(epoch_s)} an epoch, "
            f"{at_a_time} at a time); --quick asks the same question in minutes"
        )

    @contextlib.contextmanager
    def stop_signals(self, desk: Desk) -> Iterator[None]:
        """The first Ctrl-C (or SIGTERM) ends the run cleanly, the second at once.

        Both only leave a note, and the desk heeds it between two events; a third one, where Ray itself hangs, does
        not wait for that.
        """

        def on_signal(signum: int, _frame: FrameType | None) -> None:
            if desk.stops_now:
                raise KeyboardInterrupt
            if desk.asked_by:
                desk.stops_now = True
            else:
                desk.asked_by = "Ctrl-C" if signum == signal.SIGINT else signal.Signals(signum).name

        before = {signum: signal.signal(signum, on_signal) for signum in (signal.SIGINT, signal.SIGTERM)}
        try:
            with self._drawing():
                yield
                self._draw(progress_of(desk, self._plan, now=time.monotonic()))
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def _drawing(self) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext()


class PlainView(Watching):
    """One line for each thing that happens, and one for progress now and then."""

    def __init__(self, console: Console, *, every_s: float = 10.0) -> None:
        super().__init__(console, every_s=every_s)
        self._last = ""

    def _show(self, line: str) -> None:
        self.console.print(Text(line), soft_wrap=True)

    def _draw(self, progress: Progress) -> None:
        line = f"{states(progress)}; {pace(progress)}; {best_line(progress, self._space)}"
        if line != self._last:
            self._last = line
            self._show(line)

    @property
    def _space(self) -> Mapping[str, Any]:
        return self._opened.file.experiment.space if self._opened else {}


class LiveView(Watching):
    """A table that is drawn again and again, with what just happened beneath it."""

    def __init__(self, console: Console, *, every_s: float = 0.25) -> None:
        super().__init__(console, every_s=every_s)
        self._lines: deque[tuple[str, str]] = deque(maxlen=6)
        self._live = Live(console=console, auto_refresh=False, transient=False)

    def _drawing(self) -> contextlib.AbstractContextManager[object]:
        return self._live

    def _show(self, line: str) -> None:
        self._lines.append((time.strftime("%H:%M:%S"), line))

    def _draw(self, progress: Progress) -> None:
        self._live.update(self.picture(progress), refresh=True)

    def picture(self, progress: Progress) -> RenderableType:
        """The table for a moment of the run."""
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim", justify="right")
        table.add_column()
        done = min(progress.epochs_all / max(progress.epochs_expected, 1), 1.0)
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            ProgressBar(total=1.0, completed=done, width=32), f"{done:.0%}", f"about {seconds(progress.eta_s)} left"
        )
        table.add_row("trials", states(progress))
        table.add_row(progress.unit, f"{progress.epochs_all} of about {progress.epochs_expected:.0f}, {pace(progress)}")
        space = self._opened.file.experiment.space if self._opened else {}
        table.add_row("best", Text(best_line(progress, space), style="bold green"))
        table.add_row("", bar)
        happenings = Table.grid(padding=(0, 1))
        happenings.add_column(style="dim")
        happenings.add_column(overflow="ellipsis", no_wrap=True)
        for at, line in self._lines:
            happenings.add_row(at, Text(line))
        return Group(table, happenings)


def states(progress: Progress) -> str:
    """Trials by state on one line."""
    parts = [f"{progress.by_state[state]} {state}" for state in _STATES if progress.by_state.get(state)]
    return f"{', '.join(parts)} of {progress.trials}"


def pace(progress: Progress) -> str:
    """Epochs, or steps, per second."""
    rate = progress.epochs_per_s
    if rate is None:
        return f"first {progress.unit} under way"
    return f"{rate:.2g} {progress.unit}/s" if rate < 10 else f"{rate:.0f} {progress.unit}/s"


def best_line(progress: Progress, space: Mapping[str, Any]) -> str:
    """The best trial so far on one line."""
    if progress.best is None or progress.best_value is None:
        return "no finite score yet"
    config = configuration(progress.best.config, space)
    return f"{number(progress.best_value)} (trial {progress.best.number}, step {progress.best.best_step})  {config}"


def view(console: Console) -> LiveView | PlainView:
    """The view that fits where the output goes."""
    return LiveView(console) if console.is_terminal else PlainView(console)
