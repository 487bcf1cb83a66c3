"""`hpo plot-schedule`: the learning rate of a trial, drawn before anything is trained."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from hpo.errors import ExperimentError
from hpo.experiment import Experiment
from hpo.experiment_file import load, parse_settings
from hpo.search import GridSearch, RandomSearch
from hpo.trial import Config

_HEIGHT, _WIDTH = 14, 72
_EIGHTHS = " ▁▂▃▄▅▆▇█"


@click.command("plot-schedule")
@click.argument("file", metavar="FILE")
@click.option("--trial", default=0, show_default=True, metavar="N", help="Whose configuration, as the search draws it.")
@click.option(
    "--set", "settings", multiple=True, metavar="NAME=VALUE", help="Fix a hyper-parameter, or change a field."
)
@click.option("--quick", is_flag=True, help="With the experiment's `quick` settings.")
@click.option("--data-dir", metavar="DIR", help="Where to look for data sets first.")
@click.option("--csv", "out", metavar="PATH", help="Write epoch, step and rate there.")
def command(
    file: str, *, trial: int, settings: tuple[str, ...], quick: bool, data_dir: str | None, out: str | None
) -> None:
    """Draw the learning rate over the steps of a trial of the experiment in FILE; nothing is trained."""
    experiment = load(file, quick=quick, overrides=parse_settings(settings)).experiment
    config = _configuration(experiment, trial, file=file)
    dataset = experiment.task.locate(Path(data_dir).expanduser() if data_dir else None)
    by_epoch = experiment.task.learning_rates(config, dataset, max_steps=experiment.max_steps)
    if not by_epoch:
        raise ExperimentError(
            f"{type(experiment.task).__name__} tells no learning rate", where=file, remedy="give it `learning_rates`"
        )
    rates = [rate for epoch in by_epoch for rate in epoch]
    if out:
        _write(Path(out), by_epoch)
    named = {name: config[name] for name in ("lr", "lr_schedule", "epochs_warmup", "epochs_ending") if name in config}
    console = Console()
    console.print(Text(f"trial {trial}: " + "  ".join(f"{name}={value}" for name, value in named.items())))
    console.print(Text(picture(rates, width=min(_WIDTH, max(console.width - 12, 20)))))
    steps = len(rates) // len(by_epoch)
    console.print(Text(f"{'':>11}0 … {len(by_epoch)} epochs, the rate set {steps} time{'s'[: steps > 1]} in each"))


def _configuration(experiment: Experiment, trial: int, *, file: str) -> Config:
    search = experiment.search or (GridSearch() if experiment.trials is None else RandomSearch())
    proposer = search.begin(experiment.domains, fixed=experiment.fixed, seed=experiment.seed)
    config = proposer.propose(trial) if 0 <= trial < experiment.num_trials else None
    if config is None:
        last = experiment.num_trials - 1
        raise ExperimentError(f"there is no trial {trial}", where=file, remedy=f"give --trial 0 to {last}")
    return config


def _write(path: Path, by_epoch: Sequence[Sequence[float]]) -> None:
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["epoch", "step", "lr"])
        step = 0
        for epoch, rates in enumerate(by_epoch):
            for rate in rates:
                rows.writerow([epoch, step, repr(rate)])
                step += 1


def picture(rates: Sequence[float], *, width: int, height: int = _HEIGHT) -> str:
    """A column for each share of the steps, as high as the largest rate in it; the axis begins at 0."""
    top = max(rates) or 1.0
    bounds = [len(rates) * column // width for column in range(width + 1)]
    columns = [max(rates[low : max(high, low + 1)]) / top * height for low, high in pairwise(bounds)]
    lines = []
    for row in range(height - 1, -1, -1):
        marks = "".join(_EIGHTHS[round(8 * min(max(column - row, 0), 1))] for column in columns)
        label = f"{top * (row + 1) / height:.2e}" if row in (height - 1, height // 2 - 1) else ""
        lines.append(f"{label:>9} ┤{marks}".rstrip())
    return "\n".join([*lines, f"{'0':>9} ┼{'─' * width}"])
