"""What goes on with a model, told to all who listen: looked up once a second, and made into messages once for all.

A listener that does not read its messages is let go; its browser comes back and asks for what it missed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import orjson

from streamkm.errors import NotFoundError, StreamkmError
from streamkm.records import TopicPartition
from streamkm.service import entries, shape
from streamkm.service import schemas_live as schemas
from streamkm.service.errors import Problem
from streamkm.service.jobs import job_json, seen
from streamkm.service.reader import Reader, dumps
from streamkm.service.status import status
from streamkm.service.times import iso
from streamkm.state import Progress, Recent, Snapshot
from streamkm.stores.base import Job, ModelInfo

log = logging.getLogger("streamkm.service")

EVERY = 1.0
"""Seconds between two looks."""
SPAN = 5.0
"""Seconds that a rate is taken over."""
SAMPLE = 250
"""Most points of a sample, and `NUMBERS` most numbers."""
NUMBERS = 10_000
MOST_LISTENERS = 200
MOST_OF_ONE = 50
"""Listeners of one token, or of one address without."""
MOST_WAITING = 64
"""Messages that a listener may leave unread."""
MOST_AT_ONCE = 100
"""Snapshots that are told one by one after a time in which nobody could be asked."""


class Message(NamedTuple):
    """One for a listener.

    Attributes
    ----------
    event
        ``now``, ``sample``, ``job`` or ``snapshot``.
    data
        JSON.
    snapshot
        That a ``snapshot`` is about.
    """

    event: str
    data: bytes
    snapshot: Snapshot | None = None

    def encoded(self) -> bytes:
        """As server-sent events have it."""
        number = b"" if self.snapshot is None else b"id: %d\n" % self.snapshot.id
        return b"%bevent: %b\ndata: %b\n\n" % (number, self.event.encode(), self.data)


Listener = asyncio.Queue[Message | None]
"""None: it is over."""


class Look(NamedTuple):
    """What the store said."""

    info: ModelInfo
    recent: Recent | None
    jobs: Sequence[Job]
    snapshots: Sequence[Snapshot]


@dataclass
class Seen:
    """What was known at the look before."""

    created_at: float = 0.0
    snapshot: int = 0
    recent_at: int = -1
    projection: schemas.Projection | None = None
    projected: int = -1


class Hub:
    """One task for each model that somebody listens to.

    Parameters
    ----------
    reader
        Where everything comes from.
    stale_after
        See `streamkm.service.status.status`.
    """

    def __init__(self, reader: Reader, stale_after: float) -> None:
        self._reader, self._stale_after = reader, stale_after
        self._channels: dict[str, Channel] = {}
        self._places: Counter[str] = Counter()
        self._closed = False

    async def admit(self, model: str, who: str) -> Callable[[], None]:
        """Keep a place for one who listens; what is returned gives it back.

        Parameters
        ----------
        model
            What it wants to be told about.
        who
            Token, or address without one, each of which has a share of the places.

        Raises
        ------
        NotFoundError
            There is no such model.
        Problem
            429: too many of its own listen. 503: too many in all.
        """
        await self._reader.model(model)
        later = {"Retry-After": "10"}
        if self._places[who] >= MOST_OF_ONE:
            raise Problem(429, "too-many", f"{MOST_OF_ONE} of yours listen already", hint="End one", headers=later)
        if self._closed or self._places.total() >= MOST_LISTENERS:
            raise Problem(503, "too-many", f"{MOST_LISTENERS} listen already", hint="Ask later", headers=later)
        self._places[who] += 1

        def give_back() -> None:
            self._places[who] -= 1
            if not self._places[who]:
                del self._places[who]

        return give_back

    @contextlib.asynccontextmanager
    async def listen(self, model: str) -> AsyncIterator[Listener]:
        """Be told what goes on: all that is committed from the moment on at which this is entered."""
        channel = self._channels.get(model)
        if channel is None:
            channel = self._channels[model] = Channel(self._reader, model, self._stale_after)
        listener = channel.join()
        try:
            # Before the first look it is open what will be news, and what was there already.
            await channel.looked.wait()
            yield listener
        finally:
            channel.listeners.discard(listener)
            if not channel.listeners and self._channels.get(model) is channel:
                del self._channels[model]
                channel.close()

    def close(self) -> None:
        """End all streams, or the server waits for their readers to leave."""
        self._closed = True
        for channel in self._channels.values():
            channel.end()


class Channel:
    """The listeners of one model, and the task that looks for them."""

    def __init__(self, reader: Reader, model: str, stale_after: float) -> None:
        self.reader, self.model, self.stale_after = reader, model, stale_after
        self.listeners: set[Listener] = set()
        self.jobs: dict[str, float] = {}
        self.seen = Seen()
        self.steps: deque[Progress] = deque()
        self.latest: dict[str, Message] = {}
        self.looked = asyncio.Event()
        self.task = asyncio.create_task(self._run())

    def join(self) -> Listener:
        """A new listener, told at once what the others know."""
        listener: Listener = asyncio.Queue(MOST_WAITING)
        for message in self.latest.values():
            listener.put_nowait(message)
        self.listeners.add(listener)
        return listener

    def close(self) -> None:
        """Look no more."""
        self.task.cancel()

    def end(self) -> None:
        """Tell all listeners that it is over."""
        for listener in list(self.listeners):
            self._let_go(listener)

    def _let_go(self, listener: Listener) -> None:
        self.listeners.discard(listener)
        while not listener.empty():
            listener.get_nowait()
        listener.put_nowait(None)

    def _tell(self, message: Message) -> None:
        if message.event in {"now", "sample"}:
            self.latest[message.event] = message
        for listener in list(self.listeners):
            try:
                listener.put_nowait(message)
            except asyncio.QueueFull:
                log.info("%s: a listener does not read what it is told, it is let go", self.model)
                self._let_go(listener)

    async def _run(self) -> None:
        try:
            await self._look_on()
        finally:
            self.looked.set()  # nobody waits for a look that will not be

    async def _look_on(self) -> None:
        failing = False
        while True:
            try:
                await self._step()
                failing = False
            except NotFoundError:
                self.end()  # it was deleted
                return
            except StreamkmError as e:
                if not failing:
                    log.warning("%s: listeners are told nothing for now: %s", self.model, e)
                failing = True
            except Exception:
                log.exception("%s: cannot tell what goes on", self.model)
                self.end()
                return
            await asyncio.sleep(EVERY)

    async def _step(self) -> None:
        look = await self.reader.ask(self._look)
        if look.info.created_at != self.seen.created_at:
            # Another model has taken the name, or it is the first look: what was published before is not news.
            self.seen = Seen(look.info.created_at, look.info.last_snapshot)
            self.jobs = {job.id: job.updated_at for job in look.jobs}
            self.steps.clear()
        self.looked.set()
        self._count(look.info.progress)
        newest = await self.reader.newest(look.info)
        snapshot = newest.snapshot if newest is not None else None
        now = self.reader.clock()
        for message in await self.reader.work(lambda: self._messages(look, snapshot, now)):
            self._tell(message)
        self.jobs = {job.id: job.updated_at for job in look.jobs}

    def _messages(self, look: Look, newest: Snapshot | None, now: float) -> list[Message]:
        """What a look has to tell. In a thread, and for one look at a time."""
        told = []
        for s in look.snapshots:
            told.append(Message("snapshot", entries.entry(s), s))
            self.seen.snapshot = s.id
        told.append(Message("now", dumps(self._now(look, newest, now))))
        for job in look.jobs:
            job = seen(job, now)  # noqa: PLW2901
            if self.jobs.get(job.id) != job.updated_at:
                told.append(Message("job", orjson.dumps(job_json(job))))
        done = look.info.progress.commit_seq if look.info.progress else 0
        if newest is not None and look.recent is not None and len(look.recent.points) and self.seen.recent_at != done:
            self.seen.recent_at = done
            points = entries.thinned(look.recent.points, min(SAMPLE, max(1, NUMBERS // len(newest.fields))))
            told.append(Message("sample", self._sample(newest, points)))
        return told

    def _look(self) -> Look:
        """Everything in one turn of a store's thread."""
        store = self.reader.store
        info = store.model(self.model)
        new: list[Snapshot] = []
        if info.created_at == self.seen.created_at and info.last_snapshot > self.seen.snapshot:
            gap = info.last_snapshot - self.seen.snapshot
            found = store.snapshots(self.model, before=info.last_snapshot + 1, limit=min(gap, MOST_AT_ONCE))
            new = [s for s in reversed(found) if s.id > self.seen.snapshot and entries.in_charge(s)]
        return Look(info, store.recent(self.model), store.jobs(self.model), new)

    def _count(self, progress: Progress | None) -> None:
        if progress is None:
            return
        if not self.steps or progress.commit_seq > self.steps[-1].commit_seq:
            self.steps.append(progress)
        while len(self.steps) > 2 and progress.committed_at - self.steps[1].committed_at >= SPAN:
            self.steps.popleft()

    def _rate(self, now: float, counted: int, before: int) -> float | None:
        if len(self.steps) < 2:
            return None
        # Without commits the last rate is no longer true.
        last = self.steps[-1].committed_at
        until = last if now - last < 3 * EVERY else now
        return (counted - before) / max(until - self.steps[0].committed_at, 1e-3)

    def _now(self, look: Look, newest: Snapshot | None, now: float) -> schemas.Now:
        info, p = look.info, look.info.progress
        word, why = status(info, now, self.stale_after)
        first = self.steps[0] if self.steps else None
        return schemas.Now(
            at=iso(now),
            status=word,
            why=why,
            paused=info.paused,
            points=p.counters.points if p else 0,
            bad=p.counters.bad if p else 0,
            lag=p.lag if p and p.lag >= 0 else None,
            rate=self._rate(now, p.counters.points, first.counters.points) if p and first else None,
            committed_at=iso(p.committed_at) if p else None,
            snapshot=shape.ref(newest) if newest else None,
            n_clusters=len(newest.ids) if newest else info.spec.n_clusters,
            inertia=shape.number(newest.inertia) if newest else None,
            partitions=[
                self._partition(tp, at, look.recent, first, now) for tp, at in sorted((p.position if p else {}).items())
            ],
        )

    def _partition(
        self, tp: TopicPartition, at: int, recent: Recent | None, first: Progress | None, now: float
    ) -> schemas.PartitionNow:
        end = recent.ends.get(tp) if recent is not None else None
        return schemas.PartitionNow(
            topic=tp.topic,
            partition=tp.partition,
            offset=at,
            end=end,
            lag=max(0, end - at) if end is not None else None,
            rate=self._rate(now, at, first.position.get(tp, at)) if first else None,
        )

    def _sample(self, s: Snapshot, points: entries.Points) -> bytes:
        if self.seen.projection is None or self.seen.projected != s.id:
            self.seen.projection, self.seen.projected = entries.project(s, points, self.seen.projection), s.id
        return entries.sample(s, points, self.seen.projection)
