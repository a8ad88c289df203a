"""Jobs: recomputations that run in a process of their own, one at a time, with their state in the store.

The service must not hold numba's work, and a job that is killed by the system for its memory must not take the service
with it. So a job is a child that says on its standard error how far it is, a JSON object a line.
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

MOST_QUEUED = 20
BEAT = 1.0
"""Seconds between two notes of a running job in the store."""
QUEUED_BEAT = 10.0
"""The same of one that waits."""
LOST_AFTER = 30.0
"""Seconds without a note after which nobody works on a job any more."""
PATIENCE = 5.0
"""Seconds between SIGTERM and SIGKILL."""
_FOLDER = os.sep
"""Where a child runs: nobody who may write into the folder of the service can put something there for it."""
NICE = 10
"""Where cores are few, answers and the live consumer come first."""
MOST_OF_AN_ERROR = 2000
MOST_OF_A_LINE = 1 << 16
_LAST_LINES = 20
DELETED = "the model was deleted"
GONE = "the service that ran it is gone"
_STARTING: Json = {"stage": "starting"}
_FIELDS = tuple(JobProgress.model_fields)

Command = Callable[[str, Json], Sequence[str]]
"""Model and what is asked -> the program and its arguments."""


def job_json(job: Job) -> dict[str, Any]:
    """A job as the API tells it."""
    return {
        "id": job.id,
        "model": job.model,
        "state": job.state,
        "asked": job.asked,
        "progress": {name: job.progress.get(name) for name in _FIELDS},
        "snapshot": job.snapshot or None,
        "error": job.error,
        "created_at": format_time(job.created_at),
        "updated_at": format_time(job.updated_at),
    }


def seen(job: Job, now: float, lost_after: float = LOST_AFTER) -> Job:
    """A job as one must see it: failed, if it should be worked on and nobody noted anything for so many seconds."""
    if job.state in {"queued", "running"} and now - job.updated_at > lost_after:
        return dataclasses.replace(job, state="failed", error=GONE, updated_at=now)
    return job


class Jobs:
    """Runs jobs, one at a time, in the order they come.

    Parameters
    ----------
    store
        Where their state is kept; asked from threads.
    command
        What makes the command of a job. The child tells how far it is by JSON lines on its standard error: objects
        with ``stage`` and the other names of `JobProgress`, and at the end one with ``snapshot``. It reads no input,
        and what it writes to its standard output is dropped.
    environment
        Of the child, all of it. Secrets go this way: arguments can be seen by every user of the machine.
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
        self._jobs: OrderedDict[str, Job] = OrderedDict()  # those that wait, and the one that runs
        self._stop: dict[str, str] = {}  # id -> why it is to end
        self._wake = asyncio.Event()
        self._runner: asyncio.Task[None] | None = None
        self._closed = self._given_up = False

    async def submit(self, model: str, asked: Json) -> Job:
        """Take a job.

        Raises
        ------
        Problem
            429: too many are waiting.
        StoreError
            It cannot be noted.
        """
        if self._closed:
            raise Problem(503, "store-unavailable", "the service is leaving", hint="Ask again")
        if len(self._jobs) >= MOST_QUEUED + 1:
            raise Problem(
                429,
                "too-many",
                f"{MOST_QUEUED} jobs are waiting",
                hint="Ask again when one has ended, or cancel one",
                headers={"Retry-After": "30"},
            )
        now = self._clock()
        job = Job(uuid.uuid4().hex[:16], model, dict(asked), "queued", dict(_STARTING), 0, "", now, now)
        self._jobs[job.id] = job  # at once: others must not slip past the limit while the store is asked
        try:
            await asyncio.to_thread(self._store.put_job, job)
        except BaseException:
            self._jobs.pop(job.id, None)
            raise
        if self._runner is None or self._runner.done():
            self._runner = asyncio.create_task(self._run_all())
        return job

    async def cancel(self, job: Job, why: str = "somebody cancelled it") -> Job:
        """End a job that waits or runs; one of another service too, which sees it at its next note."""
        mine = self._jobs.get(job.id)
        if mine is None:
            ended = dataclasses.replace(job, state="cancelled", error=why, updated_at=self._clock())
            await asyncio.to_thread(self._store.put_job, ended)
            return ended
        self._stop.setdefault(job.id, why)
        self._wake.set()
        if mine.state == "queued":
            return await self._end(mine, "cancelled", why)
        return mine

    async def drop(self, model: str) -> None:
        """End all jobs of a model that is gone, without a note in the store."""
        for job in [j for j in self._jobs.values() if j.model == model]:
            self._stop.setdefault(job.id, DELETED)
            if job.state == "queued":
                self._jobs.pop(job.id, None)
        self._wake.set()

    async def close(self) -> None:
        """End all jobs, and wait until they have ended."""
        self._closed = True
        for job in reversed(list(self._jobs.values())):
            with contextlib.suppress(StreamkmError):
                await self.cancel(job, "the service stopped")
        if self._runner is not None:
            await self._runner

    async def _run_all(self) -> None:
        waiting = asyncio.create_task(self._keep_waiting())
        try:
            while job := next(iter(self._jobs.values()), None):
                try:
                    await self._run(job)
                except Exception as e:
                    log.exception("job %s", job.id)
                    await self._end(self._jobs.get(job.id, job), "failed", f"the service could not run it ({e})")
                finally:
                    self._jobs.pop(job.id, None)
                    self._stop.pop(job.id, None)
        finally:
            waiting.cancel()

    async def _keep_waiting(self) -> None:
        """Note of the jobs that wait that somebody means to run them; end those that another service cancelled."""
        while True:
            await asyncio.sleep(QUEUED_BEAT)
            for job in list(self._jobs.values()):
                if job.state == "queued" and job.id in self._jobs:
                    await self._note(job)
                    if job.id in self._stop and self._jobs[job.id].state == "queued":
                        await self._end(job, "cancelled", self._stop[job.id])

    async def _run(self, job: Job) -> None:
        if job.id in self._stop:
            await self._end(job, "cancelled", self._stop[job.id])
            return
        try:
            command = self._command(job.model, job.asked)
            child = await asyncio.create_subprocess_exec(
                *command,
                env=self._environment,
                cwd=_FOLDER,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,  # an interrupt from the terminal is for the service, which ends its jobs itself
            )
        except StreamkmError as e:
            await self._end(job, "failed", str(e))
            return
        except OSError as e:
            await self._end(job, "failed", f"the program could not be started ({e.strerror})")
            return
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, child.pid, NICE)
        told = _Told()
        assert child.stderr is not None  # noqa: S101
        reading = asyncio.create_task(told.read(child.stderr))
        try:
            job = await self._watch(job, child, told)
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
            # A grandchild may hold the pipe open for ever.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(reading, PATIENCE)
        why = self._stop.get(job.id)
        if child.returncode == 0 and told.snapshot:
            job = dataclasses.replace(job, snapshot=told.snapshot)
            await self._end(job, "done", "", told.progress)
        elif why is not None:
            await self._end(job, "cancelled", why, told.progress)
        else:
            await self._end(job, "failed", told.error(child.returncode or 0), told.progress)

    async def _watch(self, job: Job, child: asyncio.subprocess.Process, told: _Told) -> Job:
        """Note how far it is until it has ended, or was made to."""
        ended = asyncio.create_task(child.wait())
        kill_at: float | None = None
        while True:
            job = dataclasses.replace(job, state="running", progress=dict(told.progress))
            self._jobs[job.id] = job
            await self._note(job)
            if job.id in self._stop and kill_at is None:
                kill_at = time.monotonic() + PATIENCE
                with contextlib.suppress(ProcessLookupError):
                    child.terminate()
            elif kill_at is not None and time.monotonic() >= kill_at:
                with contextlib.suppress(ProcessLookupError):
                    child.kill()
            woken = asyncio.create_task(self._wake.wait())
            await asyncio.wait({ended, woken}, timeout=BEAT, return_when=asyncio.FIRST_COMPLETED)
            woken.cancel()
            self._wake.clear()
            if ended.done():
                return job

    async def _note(self, job: Job) -> None:
        """Write a job down, unless somebody else ended it meanwhile; a store that is away ends no job."""
        job = dataclasses.replace(job, updated_at=self._clock())

        def note() -> str:
            try:
                there = self._store.job(job.model, job.id)
            except NotFoundError:
                return DELETED
            if there.state == "cancelled":
                return there.error or "somebody cancelled it"
            self._store.put_job(job)
            return ""

        try:
            why = await asyncio.to_thread(note)
        except StreamkmError as e:
            log.warning("job %s cannot be noted: %s", job.id, e)
            return
        if why:
            self._stop.setdefault(job.id, why)

    async def _end(self, job: Job, state: JobState, error: str, progress: Json | None = None) -> Job:
        ended = dataclasses.replace(
            job,
            state=state,
            error=error[:MOST_OF_AN_ERROR],
            progress=dict(job.progress if progress is None else progress),
            updated_at=self._clock(),
        )
        self._jobs.pop(job.id, None)
        # A store that is away for longer shows it as lost, which is true.
        for pause in () if self._given_up else (0.2, 1.0, 0.0):
            try:
                if self._stop.get(job.id) != DELETED:
                    await asyncio.to_thread(self._store.put_job, ended)
                break
            except StreamkmError as e:
                log.warning("the end of job %s cannot be noted: %s", job.id, e)
                if self._closed:  # leaving must not take a busy timeout for each job
                    self._given_up = True
                    break
                await asyncio.sleep(pause)
        log.info("job %s of %s: %s %s", job.id, job.model, state, ended.error)
        return ended


class _Told:
    """What a child said on its standard error: its progress, and its last words."""

    def __init__(self) -> None:
        self.progress: dict[str, Any] = dict(_STARTING)
        self.snapshot = 0
        self._last: deque[str] = deque(maxlen=_LAST_LINES)

    async def read(self, stream: asyncio.StreamReader) -> None:
        """Read to the end; a line that has no end is cut."""
        rest = b""
        while part := await stream.read(MOST_OF_A_LINE):
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                self._line(line)
            rest = rest[:MOST_OF_A_LINE]
        self._line(rest)

    def _line(self, line: bytes) -> None:
        text = line.decode(errors="replace").strip()
        if not text:
            return
        try:
            found = orjson.loads(text)  # unlike json it stops at a depth
        except orjson.JSONDecodeError:
            self._last.append(text)
            return
        if not isinstance(found, dict):
            self._last.append(text)
        elif isinstance(found.get("snapshot"), int):
            self.snapshot = found["snapshot"]
        elif "stage" in found:
            with contextlib.suppress(ValueError):  # what is no progress is not shown as such
                self.progress = JobProgress.model_validate(found).model_dump(exclude_none=True)
        elif found.get("level") in {"warning", "error", "critical"}:
            self._last.append(str(found.get("message", "")))

    def error(self, status: int) -> str:
        """Why it failed: its last words from "error:" on, or its last line."""
        lines = list(self._last)
        at = next((i for i, line in enumerate(lines) if line.startswith(("error:", "Error:"))), None)
        if at is not None:
            return " ".join([lines[at].partition(":")[2].strip(), *lines[at + 1 :]])
        how = f"it was ended by signal {-status}" if status < 0 else f"it left with status {status}"
        return f"{how}: {lines[-1]}" if lines else how
