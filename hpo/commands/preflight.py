"""`hpo preflight`: whether the nodes of a cluster are fit for an experiment, before it costs anything."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hpo.experiment_file import load

if TYPE_CHECKING:
    from hpo.engine.preflight import Check, Report

_MARKS = {"PASSED": ("✓", "green"), "WARNED": ("!", "yellow"), "FAILED": ("✗", "bold red"), "NOTHING": ("–", "dim")}
_WIDTH = 200


@click.command("preflight")
@click.argument("file", metavar="FILE")
@click.option("--address", help="Ray cluster to look at (`auto`: this machine's); this machine alone by default.")
@click.option("--results", default="results", show_default=True, metavar="PLACE", help="Folder or URL of the store.")
@click.option("--data-dir", metavar="DIR", help="Where to look for data sets first.")
def command(file: str, *, address: str | None, results: str, data_dir: str | None) -> None:
    """Look whether all nodes of a cluster are fit to run the experiment in FILE, and which of them fails what.

    Exits with 0 where every check passes on every node, else with 1.
    """
    experiment = load(file)
    console = Console() if sys.stdout.isatty() else Console(width=_WIDTH)
    with console.status("starting") as status:
        from hpo.engine.preflight import preflight

        report = preflight(
            experiment,
            results=results,
            data_dir=Path(data_dir).expanduser() if data_dir else None,
            address=address,
            says=lambda check: status.update(f"checking: {check}"),
        )
    show(console, report)
    sys.exit(0 if report.passed else 1)


def show(console: Console, report: Report) -> None:
    """A table of nodes and checks, then what did not pass with its remedies, then who is not fit."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("node", no_wrap=True)
    for check in report.checks:
        table.add_column(check.name, overflow="fold")
    for node in report.nodes:
        table.add_row(node, *(_cell(check, node) for check in report.checks))
    console.print(table)
    for check in report.checks:
        _explain(console, check)
    failed = {node for check in report.checks for node, found in check.findings.items() if found.state.name == "FAILED"}
    console.print()
    if failed:
        console.print(Text(f"not fit: {', '.join(sorted(failed))}", style="bold red"), soft_wrap=True)
    else:
        num_nodes = len(report.nodes) - 1
        console.print(f"{num_nodes} node{'s are' if num_nodes > 1 else ' is'} fit to run it", highlight=False)


def _cell(check: Check, node: str) -> Text:
    found = check.findings.get(node)
    if found is None:
        return Text("")
    mark, style = _MARKS[found.state.name]
    return Text(f"{mark} {found.short}".rstrip(), style=style)


def _explain(console: Console, check: Check) -> None:
    """The sentences of what did not pass, those of several nodes together, and one remedy."""
    nodes_by: dict[tuple[str, str], list[str]] = {}
    for node, found in check.findings.items():
        if found.sentence:
            nodes_by.setdefault((found.state.name, found.sentence), []).append(node)
    for (state, sentence), nodes in nodes_by.items():
        mark, style = _MARKS[state]
        console.print()
        console.print(Text(f"{mark} {check.name}: {', '.join(nodes)}: {sentence}", style=style), soft_wrap=True)
    if nodes_by:
        console.print(Text(f"  {check.remedy}"), soft_wrap=True)
