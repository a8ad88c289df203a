"""Runs recomputation jobs, one at a time, each in a child process, with their state in the store.

A child process keeps the memory of the computation out of the service: a job that the system kills for its memory must
not end the service. The child reports its progress on standard error, as one JSON object per line.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import time
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson

from streamkm.errors import NotFoundError, StreamkmError
from streamkm.service.problems import Problem
from streamkm.service.schemas.control import JobProgress
from streamkm.state import Json
from streamkm.stores.base import Job, JobState, Store
from streamkm.times import format_time

log = logging.getLogger("streamkm.service")

MAX_QUEUED = 20
"""Jobs that may wait."""
HEARTBEAT_SECONDS = 1.0
"""Seconds between two updates of a running job in the store."""
QUEUED_HEARTBEAT_SECONDS = 10.0
"""Seconds between two updates of a queued job."""
LOST_AFTER_SECONDS = 30.0
"""Seconds without an update after which a job is lost: the service that ran it is gone."""
KILL_AFTER_SECONDS = 5.0
"""Seconds between SIGTERM and SIGKILL."""
NICE = 10
"""Niceness of a child: responses and the live consumer have priority."""
MAX_ERROR_CHARS = 2000
MAX_LINE_BYTES = 1 << 16
"""Longest line of a child's output; the rest is dropped."""
_LAST_LINES = 20
"""Lines of a child's output that are kept for its error message."""
_WORKING_DIRECTORY = os.sep
"""Of a child: files in the working directory of the service must not be loaded by it."""
DELETED = "the model was deleted"
LOST = "the service that ran it is gone"
CANCELLED = "cancelled on request"
_STARTING: Json = {"stage": "starting"}
_FIELDS = tuple(JobProgress.model_fields)

Command = Callable[[str, Json], Sequence[str]]
"""Model and options of a job -> program and arguments."""


def job_json(job: Job) -> dict[str, Any]:
    """A job as JSON, as in ``/jobs``."""
    return {
        "id": job.id,
        "model": job.model,
        "state": job.state,
        "options": job.options,
        "progress": {name: job.progress.get(name) for name in _FIELDS},
        "snapshot": job.snapshot or None,
        "error": job.error,
        "created_at": format_time(job.created_at),
        "updated_at": format_time(job.updated_at),
    }


def with_lost_state(job: Job, now: float, lost_after: float = LOST_AFTER_SECONDS) -> Job:
    """The job, failed if it is queued or running but was not updated for `lost_after` seconds."""
    if job.state in {"queued", "running"} and now - job.updated_at > lost_after:
        return dataclasses.replace(job, state="failed", error=LOST, updated_at=now)
    return job


class JobRunner:
    """Runs jobs, one at a time, in the order of their submission.

    Parameters
    ----------
    store
        Keeps the state of the jobs; used from threads.
    command
        Makes the command of a job. The child reports its progress by JSON lines on standard error: objects with
        ``stage`` and the other fields of `JobProgress`, and at the end one with ``snapshot``. It gets no input, and its
        standard output is discarded.
    environment
        The whole environment of the child. Secrets are passed in it: every user of the machine can see arguments.
    clock
        Seconds since 1970.
    """

    def __init__(
        self,
        store: Store,
        command: Command,
        environment: Mapping[str, str],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._command = command
        self._environment = dict(environment)
        self._clock = clock
        self._jobs: OrderedDict[str, Job] = OrderedDict()  # queued, and the running one
        self._stop: dict[str, str] = {}  # id -> why it is cancelled
        self._wake = asyncio.Event()
        self._runner: asyncio.Task[None] | None = None
        self._closed = self._store_lost = False

    async def submit(self, model: str, options: Json) -> Job:
        """Queue a job.

        Parameters
        ----------
        model
            Name of the model.
        options
            Fields of `streamkm.service.schemas.control.JobRequest`.

        Raises
        ------
        Problem
            429: too many jobs are queued. 503: the service is shutting down.
        StoreError
            The job cannot be stored.
        """
        if self._closed:
            raise Problem(503, "store-unavailable", "the service is shutting down", hint="Retry")
        if len(self._jobs) >= MAX_QUEUED + 1:
            raise Problem(
                429,
                "too-many",
                f"{MAX_QUEUED} jobs are queued",
                hint="Retry when one has ended, or cancel one",
                headers={"Retry-After": "30"},
            )
        now = self._clock()
        job = Job(uuid.uuid4().hex[:16], model, dict(options), "queued", dict(_STARTING), 0, "", now, now)
        self._jobs[job.id] = job  # before the store is updated, so that concurrent requests see it
        try:
            await asyncio.to_thread(self._store.put_job, job)
        except BaseException:
            self._jobs.pop(job.id, None)
            raise
        if self._runner is None or self._runner.done():
            self._runner = asyncio.create_task(self._run_all())
        return job

    async def cancel(self, job: Job, why: str = CANCELLED) -> Job:
        """Cancel a queued or running job; a job of another service ends at its next update."""
        own = self._jobs.get(job.id)
        if own is None:
            ended = dataclasses.replace(job, state="cancelled", error=why, updated_at=self._clock())
            await asyncio.to_thread(self._store.put_job, ended)
            return ended
        self._stop.setdefault(job.id, why)
        self._wake.set()
        if own.state == "queued":
            return await self._end(own, "cancelled", why)
        return own

    async def drop(self, model: str) -> None:
        """End all jobs of a deleted model, without storing their end."""
        for job in [j for j in self._jobs.values() if j.model == model]:
            self._stop.setdefault(job.id, DELETED)
            if job.state == "queued":
                self._jobs.pop(job.id, None)
        self._wake.set()

    async def close(self) -> None:
        """Cancel all jobs, and wait until they have ended."""
        self._closed = True
        for job in reversed(list(self._jobs.values())):
            with contextlib.suppress(StreamkmError):
                await self.cancel(job, "the service stopped")
        if self._runner is not None:
            await self._runner

    async def _run_all(self) -> None:
        heartbeat = asyncio.create_task(self._refresh_queued())
        try:
            while job := next(iter(self._jobs.values()), None):
                try:
                    await self._run(job)
                except Exception as e:
                    log.exception("job %s", job.id)
                    await self._end(self._jobs.get(job.id, job), "failed", f"internal error of the service ({e})")
                finally:
                    self._jobs.pop(job.id, None)
                    self._stop.pop(job.id, None)
        finally:
            heartbeat.cancel()

    async def _refresh_queued(self) -> None:
        """Update the queued jobs in the store, and end those that another service cancelled."""
        while True:
            await asyncio.sleep(QUEUED_HEARTBEAT_SECONDS)
            for job in list(self._jobs.values()):
                if job.state == "queued" and job.id in self._jobs:
                    await self._save(job)
                    if job.id in self._stop and self._jobs[job.id].state == "queued":
                        await self._end(job, "cancelled", self._stop[job.id])

    async def _run(self, job: Job) -> None:
        if job.id in self._stop:
            await self._end(job, "cancelled", self._stop[job.id])
            return
        try:
            command = self._command(job.model, job.options)
            child = await asyncio.create_subprocess_exec(
                *command,
                env=self._environment,
                cwd=_WORKING_DIRECTORY,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,  # Ctrl-C must reach the service only, which ends its jobs itself
            )
        except StreamkmError as e:
            await self._end(job, "failed", str(e))
            return
        except OSError as e:
            await self._end(job, "failed", f"the program could not be started ({e.strerror})")
            return
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, child.pid, NICE)
        output = _ChildOutput()
        assert child.stderr is not None  # noqa: S101
        reading = asyncio.create_task(output.read(child.stderr))
        try:
            job = await self._watch(job, child, output)
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
            # A grandchild may keep the pipe open.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(reading, KILL_AFTER_SECONDS)
        why = self._stop.get(job.id)
        if child.returncode == 0 and output.snapshot:
            job = dataclasses.replace(job, snapshot=output.snapshot)
            await self._end(job, "done", "", output.progress)
        elif why is not None:
            await self._end(job, "cancelled", why, output.progress)
        else:
            await self._end(job, "failed", output.error(child.returncode or 0), output.progress)

    async def _watch(self, job: Job, child: asyncio.subprocess.Process, output: _ChildOutput) -> Job:
        """Store the progress of a job until its child has ended; terminate the child if the job is cancelled."""
        ended = asyncio.create_task(child.wait())
        kill_at: float | None = None
        while True:
            job = dataclasses.replace(job, state="running", progress=dict(output.progress))
            self._jobs[job.id] = job
            await self._save(job)
            if job.id in self._stop and kill_at is None:
                kill_at = time.monotonic() + KILL_AFTER_SECONDS
                with contextlib.suppress(ProcessLookupError):
                    child.terminate()
            elif kill_at is not None and time.monotonic() >= kill_at:
                with contextlib.suppress(ProcessLookupError):
                    child.kill()
            woken = asyncio.create_task(self._wake.wait())
            await asyncio.wait({ended, woken}, timeout=HEARTBEAT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            woken.cancel()
            self._wake.clear()
            if ended.done():
                return job

    async def _save(self, job: Job) -> None:
        """Store a job unless another service has cancelled it; an unavailable store does not end the job."""
        job = dataclasses.replace(job, updated_at=self._clock())

        def save() -> str:
            try:
                stored = self._store.job(job.model, job.id)
            except NotFoundError:
                return DELETED
            if stored.state == "cancelled":
                return stored.error or CANCELLED
            self._store.put_job(job)
            return ""

        try:
            why = await asyncio.to_thread(save)
        except StreamkmError as e:
            log.warning("job %s cannot be stored: %s", job.id, e)
            return
        if why:
            self._stop.setdefault(job.id, why)

    async def _end(self, job: Job, state: JobState, error: str, progress: Json | None = None) -> Job:
        ended = dataclasses.replace(
            job,
            state=state,
            error=error[:MAX_ERROR_CHARS],
            progress=dict(job.progress if progress is None else progress),
            updated_at=self._clock(),
        )
        self._jobs.pop(job.id, None)
        # If the store stays unavailable, the job is shown as lost later.
        for delay in () if self._store_lost else (0.2, 1.0, 0.0):
            try:
                if self._stop.get(job.id) != DELETED:
                    await asyncio.to_thread(self._store.put_job, ended)
                break
            except StreamkmError as e:
                log.warning("the end of job %s cannot be stored: %s", job.id, e)
                if self._closed:  # shutting down must not wait for a busy timeout per job
                    self._store_lost = True
                    break
                await asyncio.sleep(delay)
        log.info("job %s of %s: %s %s", job.id, job.model, state, ended.error)
        return ended


class _ChildOutput:
    """Parsed standard error of a child: progress, resulting snapshot and last lines."""

    def __init__(self) -> None:
        self.progress: dict[str, Any] = dict(_STARTING)
        self.snapshot = 0
        self._last: deque[str] = deque(maxlen=_LAST_LINES)

    async def read(self, stream: asyncio.StreamReader) -> None:
        """Read to the end; an overlong line is truncated."""
        rest = b""
        while part := await stream.read(MAX_LINE_BYTES):
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                self._line(line)
            rest = rest[:MAX_LINE_BYTES]
        self._line(rest)

    def _line(self, line: bytes) -> None:
        text = line.decode(errors="replace").strip()
        if not text:
            return
        try:
            found = orjson.loads(text)  # unlike json it limits the depth
        except orjson.JSONDecodeError:
            self._last.append(text)
            return
        if not isinstance(found, dict):
            self._last.append(text)
        elif isinstance(found.get("snapshot"), int):
            self.snapshot = found["snapshot"]
        elif "stage" in found:
            with contextlib.suppress(ValueError):  # not a valid progress
                self.progress = JobProgress.model_validate(found).model_dump(exclude_none=True)
        elif found.get("level") in {"warning", "error", "critical"}:
            self._last.append(str(found.get("message", "")))

    def error(self, status: int) -> str:
        """The error message: the last lines from "error:" on, or the last line."""
        lines = list(self._last)
        at = next((i for i, line in enumerate(lines) if line.startswith(("error:", "Error:"))), None)
        if at is not None:
            return " ".join([lines[at].partition(":")[2].strip(), *lines[at + 1 :]])
        how = f"it was ended by signal {-status}" if status < 0 else f"it exited with status {status}"
        return f"{how}: {lines[-1]}" if lines else how
