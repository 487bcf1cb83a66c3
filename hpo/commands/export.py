"""`hpo export`: the best weights of a trial as a file that needs no hpo, beside it what else it takes to use them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from hpo.errors import CheckpointError, DataError, ExperimentError, UnknownRun
from hpo.results import Store
from hpo.storage import brought, is_url


@click.command("export")
@click.argument("run", metavar="RUN")
@click.argument("rest", nargs=-1, metavar="[TRIAL] FILE")
@click.option("--results", default="results", show_default=True, metavar="PLACE", help="Folder or URL of the store.")
def command(run: str, rest: tuple[str, ...], results: str) -> None:
    """Write the best weights of TRIAL of RUN, by default of its best one, to FILE.

    FILE ends in .pt or .pth, for torch.load, or in .safetensors. The configuration is written beside it as JSON, and
    how raw inputs are normalised and what the outputs mean (docs/export.md).
    """
    store = Store(results)
    number, path = _parted(rest)
    run_id = store.find_run(run)["run_id"]
    row = _row(store, run_id, number)
    beside = write(store, run_id, row, path)
    best = "" if row["best_step"] is None else f", best at step {row['best_step']}"
    click.echo(f"wrote {path} and {beside}: trial {row['trial']} of {run_id}{best}")


def write(store: Store, run_id: str, row: Mapping[str, Any], path: Path) -> Path:
    """The JSON file that now holds how to use the best weights of a trial, beside `path`, which now holds them.

    Args:
        store: That of the run.
        run_id: Of the trial.
        row: Of the trial, with a checkpoint.
        path: Its suffix is the format.

    Raises:
        DataError: The checkpoint is gone, or holds no weights.
        ExperimentError: The suffix is no format, or the folder cannot be written.
    """
    from hpo.training import weights_file  # torch, which other commands do without

    target = store.paths(run_id).located(row["checkpoint"])
    try:
        with brought(target if is_url(target) else str(Path(target).resolve())) as checkpoint:
            weights = weights_file.read_weights(checkpoint)
            preprocessing = weights_file.read_preprocessing(checkpoint)
    except CheckpointError as error:
        raise DataError(error.problem, where=error.where, remedy="choose another trial with `hpo best`") from None
    try:
        return weights_file.write_plain(path, weights, config=json.loads(row["config"]), preprocessing=preprocessing)
    except OSError as error:
        raise ExperimentError(
            f"cannot be written: {error.strerror or error}", where=str(path), remedy="name a folder that is there"
        ) from error


def _parted(rest: tuple[str, ...]) -> tuple[int | None, Path]:
    if not 1 <= len(rest) <= 2:
        raise ExperimentError(
            f"{len(rest)} arguments follow the run, not [TRIAL] FILE",
            where="hpo export",
            remedy="e.g. hpo export cifar_lr_dropout model.pt, or hpo export cifar_lr_dropout 5 model.pt",
        )
    trial, path = rest if len(rest) == 2 else ("", rest[0])
    if trial and not (trial.isascii() and trial.isdigit()):
        raise ExperimentError(
            f"{trial!r} is not the number of a trial",
            where="TRIAL",
            remedy="e.g. hpo export cifar_lr_dropout 5 model.pt",
        )
    return (int(trial) if trial else None), Path(path).expanduser()


def _row(store: Store, run_id: str, number: int | None) -> dict[str, Any]:
    """The trial's row, or that of the best one; it has a checkpoint."""
    rows: list[dict[str, Any]] = store.trials(run_id).to_pylist()
    if number is None:
        best = store.best(run_id, limit=1).to_pylist()
        if not best:
            raise UnknownRun("no trial has a finite score", where=run_id, remedy="`hpo sql` shows what the trials did")
        number = best[0]["trial"]
    row = next((row for row in rows if row["trial"] == number), None)
    if row is None:
        known = f"the run has {len(rows)} trials" + (f": 0 to {len(rows) - 1}" if rows else "")
        raise UnknownRun(f"there is no trial {number}", where=run_id, remedy=known)
    if row["checkpoint"] is None:
        having = [str(other["trial"]) for other in rows if other["checkpoint"] is not None]
        raise UnknownRun(
            f"trial {number} has no checkpoint: those of the best trials stay (keep_checkpoints)",
            where=run_id,
            remedy=f"trials that have one: {', '.join(having)}" if having else "no trial of the run has one",
        )
    return row
