"""Live streams: the store is polled once per second and model, and each message is sent to all listeners of the model.

A listener that falls behind is disconnected; its browser reconnects and requests what it missed. The polling of a model
ends at the first poll without listeners, so clients that open and close streams do not start it again each time.
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
from streamkm.service import serializers
from streamkm.service.job_runner import job_json, with_lost_state
from streamkm.service.problems import Problem
from streamkm.service.schemas import live as schemas
from streamkm.service.snapshot_cache import StoreReader, to_json
from streamkm.service.status import status
from streamkm.state import Progress, Recent, Snapshot
from streamkm.stores.base import Job, ModelInfo
from streamkm.times import format_time

log = logging.getLogger("streamkm.service")

POLL_SECONDS = 1.0
"""Seconds between two polls of the store."""
RATE_WINDOW_SECONDS = 5.0
"""Seconds over which rates are averaged."""
MAX_SAMPLE_POINTS = 250
MAX_SAMPLE_NUMBERS = 10_000
"""Size of a sample message, in points and in numbers."""
MAX_LISTENERS = 200
MAX_LISTENERS_PER_CLIENT = 50
"""Listeners of one token, or of one network without a token."""
MAX_QUEUED_MESSAGES = 64
"""Messages that a listener may fall behind."""
MAX_CATCH_UP_SNAPSHOTS = 100
"""Snapshots that are sent one by one after a time in which the store could not be polled."""


class StreamMessage(NamedTuple):
    """A message to the listeners of a model.

    Attributes
    ----------
    event
        ``now``, ``sample``, ``job`` or ``snapshot``.
    data
        JSON.
    snapshot
        Snapshot of a ``snapshot`` message.
    """

    event: str
    data: bytes
    snapshot: Snapshot | None = None

    def encoded(self) -> bytes:
        """As a server-sent event."""
        event_id = b"" if self.snapshot is None else b"id: %d\n" % self.snapshot.id
        return b"%bevent: %b\ndata: %b\n\n" % (event_id, self.event.encode(), self.data)


Listener = asyncio.Queue[StreamMessage | None]
"""Messages of one stream; None ends it."""


def end(listener: Listener) -> None:
    """End a stream before the messages that wait for it."""
    while not listener.empty():
        listener.get_nowait()
    listener.put_nowait(None)


class PolledData(NamedTuple):
    """Result of one poll."""

    info: ModelInfo
    recent: Recent | None
    jobs: Sequence[Job]
    snapshots: Sequence[Snapshot]


@dataclass
class ChannelState:
    """What the last poll of a channel has seen.

    Attributes
    ----------
    created_at
        When the model was created, in seconds since 1970: tells a model from a later one of the same name.
    snapshot
        Number of the last snapshot that was sent.
    sample_commit
        Commit of the last sample that was sent.
    projection, projected_snapshot
        Axes of the last sample, and the snapshot that they were computed from.
    """

    created_at: float = 0.0
    snapshot: int = 0
    sample_commit: int = -1
    projection: schemas.Projection | None = None
    projected_snapshot: int = -1


class Broadcaster:
    """Runs one polling task for each model that has listeners.

    Parameters
    ----------
    reader
        Access to the store.
    stale_after
        See `streamkm.service.status.status`.
    """

    def __init__(self, reader: StoreReader, stale_after: float) -> None:
        self._reader, self._stale_after = reader, stale_after
        self._channels: dict[str, Channel] = {}
        self._listeners: Counter[str] = Counter()
        self._closed = False

    async def reserve(self, model: str, client: str) -> Callable[[], None]:
        """Count a new listener.

        Parameters
        ----------
        model
            Model that it listens to.
        client
            Key of the client; see `streamkm.service.auth.client_key`.

        Returns
        -------
        Function that releases the reservation.

        Raises
        ------
        NotFoundError
            The model does not exist.
        Problem
            429: the client has too many listeners. 503: there are too many in all.
        """
        channel = self._channels.get(model)
        if channel is None or not channel.polled.is_set():
            await self._reader.model(model)
        headers = {"Retry-After": "10"}
        if self._listeners[client] >= MAX_LISTENERS_PER_CLIENT:
            message = f"this client has {MAX_LISTENERS_PER_CLIENT} open streams already"
            raise Problem(429, "too-many", message, hint="Close one", headers=headers)
        if self._closed or self._listeners.total() >= MAX_LISTENERS:
            message = f"{MAX_LISTENERS} streams are open already"
            raise Problem(503, "too-many", message, hint="Retry later", headers=headers)
        self._listeners[client] += 1

        def release() -> None:
            self._listeners[client] -= 1
            if not self._listeners[client]:
                del self._listeners[client]

        return release

    @contextlib.asynccontextmanager
    async def listen(self, model: str) -> AsyncIterator[Listener]:
        """Listen to a model: everything that is committed after the context is entered."""
        channel = self._channels.get(model)
        if channel is None:
            channel = self._channels[model] = Channel(
                self._reader, model, self._stale_after, lambda: self._channels.pop(model)
            )
        listener = channel.subscribe()
        try:
            # Before the first poll, new snapshots cannot be told from old ones.
            await channel.polled.wait()
            yield listener
        finally:
            channel.listeners.discard(listener)

    def close(self) -> None:
        """End all streams; else the server would wait for the clients to close them."""
        self._closed = True
        for channel in list(self._channels.values()):
            channel.end()


class Channel:
    """The listeners of one model, and the task that polls the store for them.

    Parameters
    ----------
    reader, stale_after
        As in `Broadcaster`.
    model
        Name of the model.
    on_end
        Called when polling ends; from then on nothing is sent.
    """

    def __init__(self, reader: StoreReader, model: str, stale_after: float, on_end: Callable[[], object]) -> None:
        self.reader, self.model, self.stale_after, self.on_end = reader, model, stale_after, on_end
        self.listeners: set[Listener] = set()
        self.jobs: dict[str, float] = {}
        self.state = ChannelState()
        self.steps: deque[Progress] = deque()
        self.latest: dict[str, StreamMessage] = {}
        self.polled = asyncio.Event()
        self.task = asyncio.create_task(self._run())

    def subscribe(self) -> Listener:
        """A new listener; it starts with the latest messages."""
        listener: Listener = asyncio.Queue(MAX_QUEUED_MESSAGES)
        for message in self.latest.values():
            listener.put_nowait(message)
        self.listeners.add(listener)
        return listener

    def end(self) -> None:
        """End the streams of all listeners."""
        for listener in list(self.listeners):
            self.listeners.discard(listener)
            end(listener)

    def _send(self, message: StreamMessage) -> None:
        if message.event in {"status", "sample"}:
            self.latest[message.event] = message
        for listener in list(self.listeners):
            try:
                listener.put_nowait(message)
            except asyncio.QueueFull:
                log.info("%s: a listener is too slow and is disconnected", self.model)
                self.listeners.discard(listener)
                end(listener)

    async def _run(self) -> None:
        try:
            await self._poll_while_heard()
        finally:
            self.on_end()
            self.end()
            self.polled.set()  # release the listeners that wait for the first poll

    async def _poll_while_heard(self) -> None:
        failing = False
        while self.listeners:
            try:
                await self._poll()
                failing = False
            except NotFoundError:
                return  # the model was deleted
            except StreamkmError as e:
                if not failing:
                    log.warning("%s: live streams are interrupted: %s", self.model, e)
                failing = True
            except Exception:
                log.exception("%s: live streams failed", self.model)
                return
            await asyncio.sleep(POLL_SECONDS)

    async def _poll(self) -> None:
        data = await self.reader.query(self._read_store)
        if data.info.created_at != self.state.created_at:
            # The first poll, or a new model of the same name: snapshots that exist already are not news.
            self.state = ChannelState(data.info.created_at, data.info.last_snapshot)
            self.jobs = {job.id: job.updated_at for job in data.jobs}
            self.steps.clear()
        self.polled.set()
        self._add_step(data.info.progress)
        newest = await self.reader.newest(data.info)
        snapshot = newest.snapshot if newest is not None else None
        now = self.reader.clock()
        for message in await self.reader.run_in_thread(lambda: self._build_messages(data, snapshot, now)):
            self._send(message)
        self.jobs = {job.id: job.updated_at for job in data.jobs}

    def _build_messages(self, data: PolledData, newest: Snapshot | None, now: float) -> list[StreamMessage]:
        """The messages of a poll. Runs in a thread, for one poll of the channel at a time."""
        messages = []
        for s in data.snapshots:
            messages.append(StreamMessage("snapshot", serializers.history_entry(s), s))
            self.state.snapshot = s.id
        messages.append(StreamMessage("status", to_json(self._status(data, newest, now))))
        for job in data.jobs:
            job = with_lost_state(job, now)  # noqa: PLW2901
            if self.jobs.get(job.id) != job.updated_at:
                messages.append(StreamMessage("job", orjson.dumps(job_json(job))))
        commit = data.info.progress.commit_seq if data.info.progress else 0
        recent = data.recent
        if newest is not None and recent is not None and len(recent.points) and self.state.sample_commit != commit:
            self.state.sample_commit = commit
            limit = min(MAX_SAMPLE_POINTS, max(1, MAX_SAMPLE_NUMBERS // len(newest.fields)))
            points = serializers.subsample(recent.points, limit)
            messages.append(StreamMessage("sample", self._sample(newest, points)))
        return messages

    def _read_store(self) -> PolledData:
        """All queries of a poll, in one thread."""
        store = self.reader.store
        info = store.model(self.model)
        new: list[Snapshot] = []
        if info.created_at == self.state.created_at and info.last_snapshot > self.state.snapshot:
            gap = info.last_snapshot - self.state.snapshot
            found = store.snapshots(self.model, before=info.last_snapshot + 1, limit=min(gap, MAX_CATCH_UP_SNAPSHOTS))
            new = [s for s in reversed(found) if s.id > self.state.snapshot and serializers.in_charge(s)]
        return PolledData(info, store.recent(self.model), store.jobs(self.model), new)

    def _add_step(self, progress: Progress | None) -> None:
        if progress is None:
            return
        if not self.steps or progress.commit_seq > self.steps[-1].commit_seq:
            self.steps.append(progress)
        while len(self.steps) > 2 and progress.committed_at - self.steps[1].committed_at >= RATE_WINDOW_SECONDS:
            self.steps.popleft()

    def _rate(self, now: float, count: int, first_count: int) -> float | None:
        """Rate per second over the window; None before the second commit."""
        if len(self.steps) < 2:
            return None
        # Without new commits the rate falls.
        last = self.steps[-1].committed_at
        until = last if now - last < 3 * POLL_SECONDS else now
        return (count - first_count) / max(until - self.steps[0].committed_at, 1e-3)

    def _status(self, data: PolledData, newest: Snapshot | None, now: float) -> schemas.LiveStatus:
        info, p = data.info, data.info.progress
        first = self.steps[0] if self.steps else None
        return schemas.LiveStatus(
            **dict(serializers.model_status(info, newest, *status(info, now, self.stale_after))),
            time=format_time(now),
            paused=info.paused,
            rate=self._rate(now, p.counters.points, first.counters.points) if p and first else None,
            inertia=serializers.number(newest.inertia) if newest else None,
            partitions=[
                self._partition(tp, offset, data.recent, first, now)
                for tp, offset in sorted((p.position if p else {}).items())
            ],
        )

    def _partition(
        self, tp: TopicPartition, offset: int, recent: Recent | None, first: Progress | None, now: float
    ) -> schemas.PartitionStatus:
        end = recent.ends.get(tp) if recent is not None else None
        return schemas.PartitionStatus(
            topic=tp.topic,
            partition=tp.partition,
            offset=offset,
            end=end,
            lag=max(0, end - offset) if end is not None else None,
            rate=self._rate(now, offset, first.position.get(tp, offset)) if first else None,
        )

    def _sample(self, s: Snapshot, points: serializers.Points) -> bytes:
        if self.state.projection is None or self.state.projected_snapshot != s.id:
            self.state.projection = serializers.project(s, points, self.state.projection)
            self.state.projected_snapshot = s.id
        return serializers.sample(s, points, self.state.projection)
