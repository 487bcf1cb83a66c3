"""`hpo submit`, `hpo attach`, `hpo jobs`: runs on a cluster, from a laptop that may be closed."""

from __future__ import annotations

import contextlib
import json
import logging
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from hpo.errors import ExperimentError, HpoError
from hpo.experiment_file import load, parse_settings
from hpo.files import write_atomically
from hpo.storage import cache_folder, is_url

if TYPE_CHECKING:
    from hpo.engine.jobs import Job, Jobs

_INTERRUPTED = 130  # as a run ends that was asked to stop
_PATIENCE_S = 600.0
_AGAIN_S = 3.0
_REMEMBERED = 100
_CLUSTER = click.option(
    "--cluster", metavar="YAML", help="The cluster that `ray up YAML` started; the one used last by default."
)
_ADDRESS = click.option("--address", metavar="URL", help="Its dashboard instead, e.g. http://127.0.0.1:8265.")
_TALKATIVE = ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.packaging")
_NOT_FOR_A_JOB = ("--address", "--cpus", "--gpus", "--dashboard", "--dry-run")


@click.command(context_settings={"ignore_unknown_options": True})
@_CLUSTER
@_ADDRESS
@click.option("--detach", is_flag=True, help="Do not follow its log.")
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="FILE [RUN OPTIONS]")
@click.pass_context
def submit(
    context: click.Context, words: tuple[str, ...], *, cluster: str | None, address: str | None, detach: bool
) -> None:
    """Run the experiment in FILE on a cluster, as a job that goes on when this machine sleeps.

    \b
    hpo submit experiments/x.py --cluster clusters/gpu.yaml --results /shared/results
    hpo attach

    The options of `hpo run` can be given too. --results and --data-dir name places on the cluster: full paths on
    storage that all nodes share, or s3://. Ctrl-C leaves the job alone.
    """  # noqa: D301 - click wants the character \b itself
    file, experiment, results = _checked(words, context)
    target = _Target.of(cluster, address)
    with target.jobs() as jobs:
        options = [word for word in words if word != file]
        job = jobs.submit(Path(file).resolve(), options, experiment=experiment, facts={"results": results})
    target.remember(job.id)
    click.echo(f"job {job.id} begins; Ctrl-C leaves it running, `hpo attach {job.id}` comes back")
    if not detach:
        sys.exit(_follow(target, job.id))


@click.command()
@click.argument("name", required=False, metavar="[JOB|RUN]")
@_CLUSTER
@_ADDRESS
def attach(name: str | None, *, cluster: str | None, address: str | None) -> None:
    """Follow the log of a job again: of the newest, or of JOB, or of the one that drives RUN.

    The exit code is the run's.
    """
    target = _Target.of(cluster, address, job=name)
    with target.jobs() as jobs:
        job = jobs.find(name)
    target.remember(job.id)
    sys.exit(_follow(target, job.id))


@click.command()
@_CLUSTER
@_ADDRESS
@click.option("--stop", metavar="JOB|RUN", help="Ask it to stop, as Ctrl-C would: steps in progress are saved.")
def jobs(*, cluster: str | None, address: str | None, stop: str | None) -> None:
    """List the jobs of a cluster, newest first, or stop one."""
    with _Target.of(cluster, address, job=stop).jobs() as there:
        if stop is None:
            _draw(there.all())
            return
        job = there.find(stop, running=True)
        if job.ended or not there.stop(job.id):
            raise HpoError(
                f"it is not running, but {job.state}", where=job.id, remedy="`hpo jobs` shows what is running"
            )
    click.echo(f"asked {job.id} to stop; `hpo attach {job.id}` shows how it ends")


def _checked(words: Sequence[str], beside: click.Context) -> tuple[str, str, str]:
    """File, experiment and store of a job, all of which are in order; nothing has been sent yet.

    The words are read by the command `run`, which stands beside `submit` in the context.
    """
    assert beside.parent is not None and isinstance(beside.parent.command, click.Group)  # noqa: S101, PT018
    context = beside.parent.command.commands["run"].make_context("submit", list(words))
    given: Mapping[str, Any] = context.params
    for option in _NOT_FOR_A_JOB:
        name = option.removeprefix("--").replace("-", "_")
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            raise ExperimentError(
                "it is for a run on this machine", where=option, remedy=f"leave {option} out: a job runs on its cluster"
            )
    for option in ("results", "data_dir"):
        place = given[option]
        if place is not None and not (place.startswith("/") or is_url(place)):
            raise ExperimentError(
                f"{place!r} is not a full path, and the job has a folder of its own",
                where=f"--{option.replace('_', '-')}",
                remedy="name a folder that all nodes of the cluster share, or s3://",
            )
    overrides = parse_settings(given["settings"])
    overrides |= {name: given[name] for name in ("trials", "seed") if given[name] is not None}
    file = load(given["file"], quick=given["quick"], overrides=overrides)
    return given["file"], file.name, given["results"]


class _Target:
    """A cluster: the YAML it was started with, or the URL of its dashboard."""

    def __init__(self, cluster: str) -> None:
        self.cluster = cluster

    @classmethod
    def of(cls, cluster: str | None, address: str | None, *, job: str | None = None) -> _Target:
        """The one that is named, else the one where `job` was last seen, else the one used last."""
        if cluster and address:
            raise HpoError(
                "both --cluster and --address name a cluster", where="--cluster", remedy="leave one of the two out"
            )
        if cluster and not Path(cluster).is_file():
            raise HpoError("there is no such file", where=f"--cluster {cluster}", remedy="name what you gave `ray up`")
        if address and not address.startswith(("http://", "https://")):
            raise HpoError(
                "it is not the URL of a dashboard",
                where=f"--address {address}",
                remedy="e.g. --address http://127.0.0.1:8265",
            )
        named = address or (cluster and str(Path(cluster).resolve()))
        return cls(named or _remembered(job))

    @contextlib.contextmanager
    def jobs(self) -> Iterator[Jobs]:
        """The jobs there, for as long as the context lasts."""
        try:
            from hpo.engine.jobs import Jobs
            from hpo.engine.tunnels import dashboard
        except ModuleNotFoundError as error:
            raise HpoError(
                f"jobs need packages that are not installed ({error.name})",
                where="hpo submit",
                remedy="pip install 'hpo[cluster]'",
            ) from error

        for name in _TALKATIVE:  # each has a level of its own
            logging.getLogger(f"ray.{name}").setLevel(logging.CRITICAL)
        with dashboard(self.cluster) as url:
            yield Jobs(url, where=self.cluster)

    def remember(self, job: str) -> None:
        """Have the next command find the cluster by itself."""
        folder = _memory()
        folder.mkdir(parents=True, exist_ok=True)
        note = json.dumps({"job": job, "cluster": self.cluster}).encode()
        write_atomically(folder / f"{job}.json", lambda file: file.write(note))
        for old in _notes()[_REMEMBERED:]:
            old.unlink(missing_ok=True)


def _memory() -> Path:
    return cache_folder() / "jobs"


def _notes() -> list[Path]:
    """One for each job that was submitted or followed here, newest first."""
    times = {}
    for path in _memory().glob("*.json"):
        with contextlib.suppress(FileNotFoundError):  # another command removes old ones, too
            times[path] = path.stat().st_mtime
    return sorted(times, key=times.__getitem__, reverse=True)


def _likeness(note: Path, job: str) -> int:
    """How well a name fits the job of a note: its id, its experiment's (less day, time and number), a beginning."""
    names = (note.stem, note.stem.rsplit("-", 3)[0])
    return 3 - names.index(job) if job in names else int(note.stem.startswith(job))


def _remembered(job: str | None) -> str:
    notes = _notes()
    if job is not None:
        notes.sort(key=lambda note: _likeness(note, job), reverse=True)
    for path in notes:
        with contextlib.suppress(OSError, ValueError, KeyError):
            return str(json.loads(path.read_text())["cluster"])
    raise HpoError(
        "no cluster is named, and none was used before",
        where="--cluster",
        remedy="name the YAML that you gave `ray up`, or --address http://127.0.0.1:8265",
    )


def _follow(target: _Target, job: str) -> int:
    """The job's exit code, when its log has been shown to the end; 0 after Ctrl-C, which leaves it running."""
    try:
        ended = _to_its_end(target, job)
    except KeyboardInterrupt:
        click.echo(f"\nleft {job} running; come back with: {shlex.join(['hpo', 'attach', job])}")
        return 0
    click.echo(f"job {job}: {ended.state}" + (f" ({ended.message.splitlines()[0]})" if ended.message else ""))
    if ended.state == "STOPPED":
        click.echo("the `hpo submit` that began it goes on from there")
        return _INTERRUPTED
    return ended.exit_code if ended.exit_code is not None else int(ended.state != "SUCCEEDED")


def _to_its_end(target: _Target, job: str) -> Job:
    from hpo.engine.tunnels import Unreachable

    shown, lost_at = [0], None
    while True:
        heard = shown[0]
        try:
            with target.jobs() as jobs:
                return jobs.follow(job, _write, shown=shown)
        except Unreachable as error:
            now = time.monotonic()
            if lost_at is None or shown[0] > heard:
                click.echo(f"! {error.problem}; trying again", err=True)
                lost_at = now
            if now - lost_at > _PATIENCE_S:
                raise
            time.sleep(_AGAIN_S)


def _write(text: str) -> None:
    click.echo(text, nl=False)


def _draw(found: Sequence[Job]) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("job", "experiment", "run", "state", "began", "results"):
        table.add_column(column, no_wrap=True)
    for job in found:
        began = "" if job.began_at is None else f"{datetime.fromtimestamp(job.began_at).astimezone():%Y-%m-%d %H:%M:%S}"
        facts = [job.facts.get(name, "") for name in ("job_name", "run")]
        table.add_row(job.id, *facts, job.state, began, job.facts.get("results", ""))
    console = Console() if sys.stdout.isatty() else Console(width=240)
    console.print(table if found else "no jobs")


commands = (submit, attach, jobs)
