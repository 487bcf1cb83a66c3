"""Runs on a cluster that is not here: Ray's jobs, reached through the dashboard on the cluster's head."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from hpo.engine.cluster import shipped
from hpo.engine.tokens import authorization, refusal
from hpo.engine.tunnels import Unreachable
from hpo.errors import HpoError

_REQUEST_S = 60.0
_SILENCE_S = 60.0
_AGAIN_S = 2.0
_ELSEWHERE = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
STOP_WITHIN_S = 3600
"""A job that is asked to stop may finish the steps in progress for so long before Ray kills it."""


class UnknownJob(HpoError):  # noqa: N818 - reads as what it says
    """No such job is on the cluster."""

    exit_code = 2


class AmbiguousJob(HpoError):  # noqa: N818
    """A name means several jobs."""

    exit_code = 2


@dataclass(frozen=True)
class Job:
    """A job as the cluster tells it.

    Attributes:
        id: Its name.
        state: `PENDING`, `RUNNING`, `SUCCEEDED`, `FAILED` or `STOPPED`.
        facts: `job_name` (the experiment's), `results`; `run` and more as soon as the run is open.
        message: What Ray has to say about the state.
        began_at: Seconds since 1970; None before it began.
        exit_code: Of the run; None before its end, and where it was stopped.
    """

    id: str
    state: str
    facts: Mapping[str, str] = field(default_factory=dict)
    message: str = ""
    began_at: float | None = None
    exit_code: int | None = None

    @property
    def ended(self) -> bool:
        """Whether it will not go on."""
        return self.state in ENDED

    def likeness(self, name: str) -> int:
        """How well `name` fits: 3 its id or its run's, 2 its experiment's, 1 the beginning of an id, 0 not at all."""
        ids = (self.id, self.facts.get("run", ""))
        if name in ids:
            return 3
        if name == self.facts.get("job_name"):
            return 2
        return int(any(text.startswith(name) for text in ids))


def new_job_id(experiment: str) -> str:
    """A name that says whose job it is, and that nobody else makes: `digits-20261121-105503-ab12`."""
    return f"{experiment}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def chosen(jobs: Sequence[Job], name: str, *, running: bool = False) -> Job | None:
    """The job that `name` fits best, of jobs in the order newest first; the newest where it fits several of one study.

    Args:
        jobs: The jobs there are.
        name: A job's id, a run's, an experiment's, or the beginning of an id.
        running: Prefer those that have not ended, and of these take none that is only one of several.

    Raises:
        AmbiguousJob: An id of several begins so; or several are running that are called so.
    """
    best = max((job.likeness(name) for job in jobs), default=0)
    if not best:
        return None
    found = [job for job in jobs if job.likeness(name) == best]
    going = [job for job in found if running and not job.ended]
    several = {job.facts.get("run", job.id): job.id for job in reversed(going or found)}
    if len(several) > 1 and (best == 1 or going):
        raise AmbiguousJob(
            f"it may be any of {', '.join(list(several.values())[-5:])}", where=name, remedy="name one of them"
        )
    return (going or found)[0]


class Jobs:
    """The jobs of one cluster.

    Args:
        url: Its dashboard, `http://127.0.0.1:8265`.
        where: What the user called the cluster, for errors.

    Raises:
        Unreachable: Nobody answers there.
        HpoError: The cluster refuses this machine's token, there is none, or anyone could read it on its way.
    """

    def __init__(self, url: str, *, where: str) -> None:
        self._where = where
        with self._explained(), _without(_ELSEWHERE):
            self._client = _PatientClient(url, headers=dict(authorization(where, url=url)))

    def submit(self, file: Path, words: Sequence[str], *, experiment: str, facts: Mapping[str, str]) -> Job:
        """The new job, which runs `file` with the code beside it on the cluster's head, with these options."""
        job = new_job_id(experiment)
        command = shlex.join(["python", "-m", "hpo.run", file.name, "--address", "auto", *words])
        with self._explained(), shipped(file) as folder:
            self._client.submit_job(
                entrypoint=command,
                submission_id=job,
                metadata={"job_name": experiment, **facts},
                runtime_env={"working_dir": folder, "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WITHIN_S)}},
            )
        return self.get(job)

    def get(self, job: str) -> Job:
        """The job as it is now.

        Raises:
            UnknownJob: There is none.
        """
        with self._explained():
            return _told(self._client.get_job_info(job))

    def all(self) -> list[Job]:
        """Every submitted job, newest first."""
        with self._explained():
            found = [_told(details) for details in self._client.list_jobs() if details.submission_id]
        return sorted(found, key=lambda job: job.began_at or 0.0, reverse=True)

    def find(self, name: str | None, *, running: bool = False) -> Job:
        """The job that is `chosen` by its name; the newest of all by default.

        Raises:
            UnknownJob: There is none.
            AmbiguousJob: There are several.
        """
        jobs = self.all()
        job = next(iter(jobs), None) if name is None else chosen(jobs, name, running=running)
        if job is not None:
            return job
        known = ", ".join(job.id for job in jobs[:5])
        raise UnknownJob(
            f"there is no job {name or ''}".rstrip(),
            where=self._where,
            remedy=f"there are: {known}" if known else "the cluster has had none: begin one with `hpo submit`",
        )

    def stop(self, job: str) -> bool:
        """Ask it to stop, as Ctrl-C would: steps in progress are finished and saved; False where it has ended."""
        with self._explained():
            return bool(self._client.stop_job(job))

    def follow(self, job: str, write: Callable[[str], object], *, shown: list[int]) -> Job:
        """The job at its end; `write` gets its log from the beginning, and then as it grows.

        Args:
            job: Its id.
            write: Takes text.
            shown: One number: characters that have been written before and are left out; kept up to date.

        Raises:
            Unreachable: The connection was lost: begin again with the same `shown`.
        """
        while True:
            with self._explained():
                asyncio.run(self._tail(job, write, shown))
            found = self.get(job)
            if found.ended:
                return found
            time.sleep(_AGAIN_S)

    async def _tail(self, job: str, write: Callable[[str], object], shown: list[int]) -> None:
        """Write the log's news until it ends, or nothing was heard for so long that the connection may be dead."""
        seen = 0
        log = self._client.tail_job_logs(job)
        try:
            while True:
                text = await asyncio.wait_for(anext(log), _SILENCE_S)
                write(text[max(shown[0] - seen, 0) :])
                seen += len(text)
                shown[0] = max(shown[0], seen)
        except (StopAsyncIteration, TimeoutError):
            return
        finally:
            await log.aclose()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except AuthenticationError as error:
            raise refusal(self._where) from error
        except BrokenPipeError:  # whoever read what was written has gone
            raise
        except (requests.RequestException, aiohttp.ClientError, ConnectionError) as error:
            raise Unreachable(
                f"its dashboard does not answer ({error})",
                where=self._where,
                remedy="see that it is up, and name its YAML with --cluster, or its dashboard with --address",
            ) from error
        except RuntimeError as error:
            raise _refusal(str(error), self._where) from error


class _PatientClient(JobSubmissionClient):  # type: ignore[misc]
    """Ray's client, which by itself waits for an answer for ever."""

    def __init__(self, url: str, *, headers: dict[str, str]) -> None:
        super().__init__(url, headers=headers)
        self._ssl_context: Any = vars(self).get("_ssl_context") or True  # for None, of which aiohttp warns

    def _do_request(self, method: str, endpoint: str, **more: Any) -> Any:
        return super()._do_request(method, endpoint, **{"timeout": _REQUEST_S, **more})


def _refusal(text: str, where: str) -> HpoError:
    if "does not exist" in text:
        return UnknownJob(text.strip(), where=where, remedy="`hpo jobs` shows what there is")
    if "WebSocket" in text:
        return Unreachable("the connection was lost", where=where, remedy="come back with `hpo attach`")
    return HpoError(f"Ray says: {text.strip()}", where=where, remedy="look at the dashboard's log on the head")


def _told(details: Any) -> Job:
    began = details.start_time
    return Job(
        details.submission_id,
        str(getattr(details.status, "value", details.status)),
        dict(details.metadata or {}),
        details.message or "",
        None if began is None else began / 1000,
        details.driver_exit_code,
    )


@contextlib.contextmanager
def _without(names: Sequence[str]) -> Iterator[None]:
    """Hide variables that Ray would follow instead of what it is told."""
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)
