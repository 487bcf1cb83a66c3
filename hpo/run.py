"""`python -m hpo.run FILE`: run an experiment, or go on with it."""

from __future__ import annotations

import logging
import shlex
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hpo.errors import HpoError
from hpo.experiment_file import ExperimentFile, load, parse_settings
from hpo.storage import cache_folder, is_url

INTERRUPTED = 130
"""Exit code of a run that was asked to stop, as shells use it for Ctrl-C."""

_POSITIVE = click.IntRange(min=1)


def _number_or_auto(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:
    return value if value in (None, "auto") else _POSITIVE(value, param, ctx)


@click.command("run")
@click.argument("file", metavar="FILE")
@click.option("--trials", type=_POSITIVE, help="Trials in total, instead of the experiment's.")
@click.option(
    "--set", "settings", multiple=True, metavar="NAME=VALUE", help="Fix a hyper-parameter, or change a field."
)
@click.option("--results", default="results", show_default=True, metavar="PLACE", help="Folder or URL of the store.")
@click.option(
    "--address", help="Ray cluster to run on (`auto`: this machine's); --results has to be on storage its nodes share."
)
@click.option("--cpus", type=_POSITIVE, help="CPU cores to use on this machine.")
@click.option("--gpus", type=click.IntRange(min=0), help="GPUs to use on this machine.")
@click.option(
    "--concurrent",
    callback=_number_or_auto,
    metavar="N|auto",
    help="Trials at a time, at most; auto: measure how many a GPU bears.",
)
@click.option("--seed", type=click.IntRange(min=0), help="Seed, instead of the experiment's.")
@click.option("--data-dir", metavar="DIR", help="Where to look for data sets first.")
@click.option("--fresh", is_flag=True, help="Begin a new run, whatever there is.")
@click.option("--quick", is_flag=True, help="Ask the same question small: the experiment's quick settings.")
@click.option("--smoke", is_flag=True, help="See in seconds whether it runs at all: two trials of two epochs.")
@click.option("--dry-run", is_flag=True, help="Show what would be done, and do nothing.")
@click.option("--dashboard", is_flag=True, help="Have Ray's dashboard on this machine, and say where.")
@click.option("--test", "with_test", is_flag=True, help="At the end, score the best trial on the test data, once.")
def command(
    file: str,
    *,
    trials: int | None,
    settings: tuple[str, ...],
    seed: int | None,
    quick: bool,
    smoke: bool,
    dry_run: bool,
    **how: Any,
) -> None:
    """Run the experiment in FILE, or go on where its last run stopped."""
    console = Console()
    try:
        overrides = {**parse_settings(settings), **_given(trials=trials, seed=seed)}
        experiment = load(file, quick=quick, smoke=smoke, overrides=overrides)
        code = _dry_run(console, experiment, how) if dry_run else _run(console, experiment, how)
    except HpoError as error:
        Console(stderr=True).print(Text(f"error: {error}", style="red"), soft_wrap=True)
        code = error.exit_code
    except KeyboardInterrupt:
        Console(stderr=True).print(Text(f"stopped at once; go on with: {_again()}"), soft_wrap=True)
        code = INTERRUPTED
    sys.exit(code)


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _again() -> str:
    """The command as it was typed, less what would begin anew."""
    module = Path(sys.argv[0]).name in ("run.py", "__main__.py")
    words = [word for word in sys.argv[1:] if word != "--fresh"]
    return shlex.join([*(("python", "-m", "hpo.run") if module else ("hpo",)), *words])


def _options(how: Mapping[str, Any]) -> Any:
    from hpo.engine.driver import Options

    data_dir = Path(how["data_dir"]).expanduser() if how["data_dir"] else None
    names = ("address", "cpus", "gpus", "concurrent", "fresh", "dashboard")
    return Options(
        results=how["results"] if is_url(how["results"]) else Path(how["results"]).expanduser(),
        cache_dir=cache_folder(),
        data_dir=data_dir,
        **{name: how[name] for name in names},
    )


def _run(console: Console, file: ExperimentFile, how: Mapping[str, Any]) -> int:
    from hpo import live
    from hpo.engine import driver

    logging.getLogger("ray").setLevel(logging.CRITICAL)
    options = _options(how)
    began = time.monotonic()
    opened = driver.run(file, options, live.view(console), with_test=how["with_test"])
    _summary(console, opened, options, time.monotonic() - began)
    if not opened.study.finished:
        return INTERRUPTED
    return 0 if opened.study.best is not None else 1


def _dry_run(console: Console, file: ExperimentFile, how: Mapping[str, Any]) -> int:
    from hpo.engine import driver
    from hpo.engine.growth import trials_of
    from hpo.engine.opening import check_on, choose, run_digest
    from hpo.engine.outlook import outlook
    from hpo.engine.plan import expected
    from hpo.results import Place, Store

    options = _options(how)
    experiment = file.experiment
    places = driver.planned_places(file, options)
    dataset = experiment.task.locate(options.data_dir)
    check_on(file, dataset)
    console.print(
        f"[bold]{file.name}[/] {'(quick) ' if file.quick else ''}digest {run_digest(file, dataset)}",
        highlight=False,
    )
    console.print_json(data={**experiment.describe(), "trials": experiment.num_trials})
    if dataset.fell_back:
        console.print(Text(f"! {dataset.fell_back}", style="bold yellow"), soft_wrap=True)
    store = Store(Place.of(options.results, cache_dir=options.cache_dir.resolve()))
    chosen = choose(file, dataset, store, fresh=options.fresh)
    for line in outlook(file, chosen, store):
        console.print(Text(line), soft_wrap=True)
    plan = expected(experiment, chosen.dataset, continued=chosen.trials or trials_of(store, chosen.run_id))
    for step, trials in plan.trials_at.items():
        console.print(f"about {trials:5d} trials reach epoch {step}", highlight=False)
    saved = 1 - plan.epochs / max(plan.epochs_without_stopping, 1)
    console.print(
        f"about {plan.epochs} epochs in total, {plan.epochs_without_stopping} with no stopping ({saved:.0%} saved)",
        highlight=False,
    )
    console.print(places, highlight=False, soft_wrap=True)
    draws = experiment.domains
    configs = [
        draws.draw(experiment.fixed, seed=experiment.seed, trial=trial)
        for trial in range(min(experiment.num_trials, 8))
    ]
    largest = max(experiment.task.checkpoint_mb(config, dataset) for config in configs)
    kept = min(experiment.keep_checkpoints, experiment.num_trials)
    console.print(
        f"checkpoints: up to {largest:.1f} MiB each, {kept} kept at the end and one for each trial in training: "
        f"{largest * kept:.0f} MiB and {largest:.1f} MiB for each trial at a time",
        highlight=False,
    )
    return 0


def _summary(console: Console, opened: Any, options: Any, took_s: float) -> None:
    from hpo.engine.progress import unit_of
    from hpo.live import configuration, number, seconds

    study, experiment = opened.study, opened.file.experiment
    sign, metric = experiment.goal.sign, experiment.goal.metric
    table = Table(title=f"best of {opened.file.name}", title_justify="left", box=None, header_style="dim")
    for column in ("trial", metric, "step", "state", "configuration"):
        table.add_column(column, overflow="fold")
    for trial in study.top[:5]:
        shown = Text(configuration(trial.config, experiment.space))
        table.add_row(
            str(trial.number), number(sign * trial.best_score), str(trial.best_step), trial.state.value, shown
        )
    console.print()
    console.print(table)
    outcomes = Counter(trial.state.value for trial in study.trials)
    causes = Counter(trial.cause for trial in study.trials if trial.cause and trial.state.ended)
    why = f" ({', '.join(f'{n} {cause}' for cause, n in causes.items())})" if causes else ""
    counted = ", ".join(f"{n} {state}" for state, n in outcomes.items()) or "none begun"
    steps = sum(trial.step for trial in study.trials)
    total = max(study.num_trials, len(study.trials))
    console.print(f"{counted} of {total} trials{why}; {steps} {unit_of(study)}; {seconds(took_s)}", highlight=False)
    for name, value in opened.tested.items():
        console.print(f"{name} of the best trial: {number(value)}", highlight=False)
    end = "" if is_url(options.results) else "/"
    console.print(f"store: {options.results}{end}  run: {opened.paths.run_id}", highlight=False, soft_wrap=True)
    if not study.finished:
        console.print(Text(f"interrupted; go on with: {_again()}"), soft_wrap=True)
    elif opened.nothing_to_do:
        more = "a new shard of the data gives them more to do" if study.continued else "raise --trials for more"
        console.print(f"all of its trials had ended before: {more}, or begin anew with --fresh")
    where = "" if str(options.results) == "results" else f" --results {shlex.quote(str(options.results))}"
    console.print(
        f"next: hpo best {opened.file.name}{where}   hpo tensorboard {opened.file.name}{where}",
        highlight=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    command(prog_name="python -m hpo.run")
