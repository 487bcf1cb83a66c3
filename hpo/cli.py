"""`hpo`: run experiments, and ask the store what happened."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from typing import Any

import click
import pyarrow as pa
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hpo.commands import jobs as job_commands
from hpo.commands.cluster import cluster as cluster_command
from hpo.commands.export import command as export_command
from hpo.commands.monitor import command as monitor_command
from hpo.commands.plot_schedule import command as plot_schedule_command
from hpo.commands.preflight import command as preflight_command
from hpo.errors import HpoError, UnknownRun
from hpo.results import Store
from hpo.run import command as run_command

_RESULTS = click.option(
    "--results", default="results", show_default=True, metavar="PLACE", help="Folder or URL of the store."
)
_FORMAT = click.option(
    "--format",
    "style",
    type=click.Choice(["table", "csv", "json"]),
    default="table",
    show_default=True,
    help="How to print.",
)
_SHORT = 32
_PIPED_WIDTH = 240
_RUN = click.argument("run", metavar="RUN")


class _Commands(click.Group):
    """A group whose errors are shown without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except HpoError as error:
            Console(stderr=True).print(Text(f"error: {error}", style="red"), soft_wrap=True)
            sys.exit(error.exit_code)


@click.group(cls=_Commands, invoke_without_command=True)
@click.version_option(package_name="hpo")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Tune PyTorch models: run an experiment file, then ask the store what happened.

    \b
    Begin with:   hpo run experiments/cifar_lr_dropout.py --quick
    Then:         hpo runs
                  hpo best cifar_lr_dropout
                  hpo sql "SELECT trial, max(val_accuracy) FROM reports GROUP BY trial"

    RUN is the name of an experiment (its newest run), or a run's id or the beginning of one. Commands that take one
    read the store, and can be used while a run is going on. On a cluster: `cluster check`, `preflight`, `submit`.
    """  # noqa: D301 - click wants the character \b itself
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


main.add_command(run_command)
main.add_command(cluster_command)
main.add_command(export_command)
main.add_command(monitor_command)
main.add_command(plot_schedule_command)
main.add_command(preflight_command)
for job_command in job_commands.commands:
    main.add_command(job_command)


@main.command()
@_RESULTS
@_FORMAT
def runs(results: str, style: str) -> None:
    """List the runs in the store, newest first."""
    query = """
        WITH best AS (
            SELECT run_id, count(*) AS trials,
                   (max({chunk: coalesce(best_chunk, 0), score: best_score})
                    FILTER (best_score IS NOT NULL)).score AS score
            FROM trials GROUP BY run_id)
        SELECT experiment, run_id, state, coalesce(trials, 0) AS trials,
               CASE mode WHEN 'min' THEN -score ELSE score END AS best, goal, dataset, started_at
        FROM runs LEFT JOIN best USING (run_id) ORDER BY started_at DESC"""
    show(Store(results).sql(query), style)


@main.command()
@_RUN
@click.option("--limit", default=10, show_default=True, type=click.IntRange(min=1), help="Trials to show.")
@_RESULTS
@_FORMAT
def best(run: str, limit: int, results: str, style: str) -> None:
    """Show the best trials of RUN, with their configurations."""
    store = Store(results)
    trials = store.best(run, limit=limit)
    show(_for_people(trials, store.find_run(run)) if style == "table" else trials, style)


@main.command()
@click.argument("query", metavar="QUERY")
@_RESULTS
@_FORMAT
def sql(query: str, results: str, style: str) -> None:
    """Answer QUERY (DuckDB's SQL) over the views runs, trials, reports and events."""
    show(Store(results).sql(query), style)


@main.command()
@_RUN
@click.argument("trial", type=click.IntRange(min=0), metavar="TRIAL")
@_RESULTS
def logs(run: str, trial: int, results: str) -> None:
    """Print what TRIAL of RUN printed, and why it failed if it did."""
    store = Store(results)
    run_id = store.find_run(run)["run_id"]
    failures = store.sql(
        f"SELECT attempt, detail->>'cause' AS cause, detail->>'traceback' AS trace FROM events "  # noqa: S608
        f"WHERE run_id = '{run_id}' AND kind = 'failed' AND trial = {trial} ORDER BY seq"
    ).to_pylist()
    printed = store.logs(run_id, trial)
    if not printed and not failures:
        known = store.sql(f"SELECT count(*) AS n FROM trials WHERE run_id = '{run_id}'").to_pylist()[0]["n"]  # noqa: S608
        raise UnknownRun(
            f"trial {trial} has printed nothing and has not failed",
            where=run_id,
            remedy=f"the run has {known} trials: 0 to {max(known - 1, 0)}" if known else "the run has no trials yet",
        )
    for log in printed:
        if len(printed) > 1:
            click.echo(f"--- {log.stem}")
        click.echo(log.read_text(encoding="utf-8", errors="replace"), nl=False)
    for failure in failures:
        click.echo(f"--- attempt {failure['attempt']} failed: {failure['cause']}\n{failure['trace'] or ''}")


@main.command()
@_RUN
@_RESULTS
def stop(run: str, results: str) -> None:
    """Ask RUN to stop, as Ctrl-C would: steps in progress are finished and saved."""
    store = Store(results)
    row = store.find_run(run)
    if row["state"] != "running":
        raise UnknownRun(f"it is not running, but {row['state']}", where=row["run_id"], remedy="hpo runs shows what is")
    store.ask_to_stop(row["run_id"])
    click.echo(f"asked {row['run_id']} to stop")


@main.command()
@_RUN
@click.option("--port", default=6006, show_default=True, type=click.IntRange(min=0, max=65535), help="0: any free one.")
@_RESULTS
def tensorboard(run: str, port: int, results: str) -> None:
    """Start TensorBoard on the curves of RUN."""
    folder = Store(results).curves(run)
    words = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--port", str(port)]
    sys.exit(subprocess.call(words))


def _for_people(trials: pa.Table, run: dict[str, Any]) -> pa.Table:
    """The columns that fit a screen, the goal with its own sign, hyper-parameters that all have in common left out."""
    sign = -1.0 if run["mode"] == "min" else 1.0
    columns: dict[str, Any] = {
        "trial": trials["trial"],
        run["goal"]: [None if score is None else sign * score for score in trials["best_score"].to_pylist()],
        "epochs": trials["epochs"],
        "state": trials["state"],
    }
    for name in trials.column_names:
        if name.startswith("hp_") and (len(set(trials[name].to_pylist())) > 1 or trials.num_rows == 1):
            columns[name.removeprefix("hp_")] = trials[name]
    return pa.table(columns)


def show(table: pa.Table, style: str) -> None:
    """Print a table as the user asked."""
    rows = table.to_pylist()
    if style == "json":
        click.echo(json.dumps(rows, indent=2, default=str))
    elif style == "csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, table.column_names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        click.echo(text.getvalue(), nl=False)
    else:
        _draw(table.column_names, [[_cell(value) for value in row.values()] for row in rows])


def _draw(names: list[str], rows: list[list[str]]) -> None:
    """A table for people: short cells stay whole, long ones are folded."""
    drawn = Table(box=None, header_style="bold", pad_edge=False)
    for index, name in enumerate(names):
        widest = max((len(row[index]) for row in rows), default=0)
        drawn.add_column(name, overflow="fold", no_wrap=widest <= _SHORT)
    for row in rows:
        drawn.add_row(*(Text(cell) for cell in row))
    console = Console() if sys.stdout.isatty() else Console(width=_PIPED_WIDTH)
    console.print(drawn if rows else Text("no rows"))


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    return value.strftime("%Y-%m-%d %H:%M:%S") if hasattr(value, "strftime") else str(value)
