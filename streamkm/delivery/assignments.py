"""Each record of a model's topic with the cluster it belongs to, onto another topic, exactly once.

A transaction of the broker holds the assignments of some records and the position behind them. So whoever goes on after
a death, wherever it happened, reads on from where the last whole transaction ended, and those who read committed
records only see each assignment once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from streamkm.delivery.base import Decodes, Reads, Snapshots, Transactions
from streamkm.errors import (
    BrokerUnreachableError,
    CorruptBatchError,
    NotFoundError,
    PositionLostError,
    SettingsError,
    SourceError,
    StoreUnavailableError,
    StreamkmError,
)
from streamkm.kernels.nearest import nearest, scores
from streamkm.records import Batch, BatchRange, ByteRecords, CommittedOffset, Outgoing, Position, TopicPartition
from streamkm.reporting import Report
from streamkm.state import Snapshot

log = logging.getLogger(__name__)

POLL_SECONDS = 0.25
FIRST_BACKOFF, LAST_BACKOFF = 1.0, 30.0


class Assigned(NamedTuple):
    """What a snapshot says about n points; arrays (n,)."""

    ids: NDArray[np.int64]
    distances: NDArray[np.float64]
    scores: NDArray[np.float64]
    """Distances in spreads of the cluster, as `OnlineKMeans.outlier_score`."""


@dataclass
class Counts:
    """Records read: ``records == assigned + bad + tombstones``; `lost` were gone before they could be read."""

    records: int = 0
    assigned: int = 0
    bad: int = 0
    tombstones: int = 0
    lost: int = 0


@dataclass(frozen=True)
class AssignOptions:
    """How an `Assigner` works.

    Attributes
    ----------
    batch
        Most records in a transaction.
    commit_every
        Seconds after which a transaction ends, however few it has.
    start
        ``beginning`` or ``end``: where a target that has no position of ours starts; None: at the beginning if it has
        no records either. ``committed``: at the position that is there, whoever put it there. Partitions that are new
        later are read from their beginning.
    skip_lost
        Go on behind records that are gone before they were read, or cannot be read, instead of leaving with an error.
    freshness
        Seconds for which the newest snapshot is taken to be the newest.
    look_every
        Seconds between two looks for new partitions.
    refresh_every
        Seconds after which the position is written again though nothing came: a broker forgets that of a silent group
        (``offsets.retention.minutes``, 7 days).
    """

    batch: int = 10_000
    commit_every: float = 0.1
    start: str | None = None
    skip_lost: bool = False
    freshness: float = 1.0
    look_every: float = 10.0
    refresh_every: float = 3600.0


DEFAULTS = AssignOptions()


def assign(s: Snapshot, points: NDArray[np.float64]) -> Assigned:
    """Find the cluster of each point, by the snapshot's way to measure distances.

    Parameters
    ----------
    points
        (n, d), finite; for the cosine distance none of zeros only.
    """
    if s.distance == "cosine":
        points = points / np.linalg.norm(points, axis=1)[:, None]
    index, distances = nearest(s.centroids * s.factors, points * s.factors)
    return Assigned(s.ids[index], distances, scores(distances, index, s.spreads, s.weights))


def messages(topic: str, s: Snapshot, records: ByteRecords, batch: Batch) -> list[Outgoing]:
    """The assignments of a batch as records.

    Parameters
    ----------
    topic
        Where they go; each into the partition of the number it came from.
    records, batch
        What was read, and the points in it.

    Returns
    -------
    list
        One for each point, in the order of the offsets. A score that is no finite number is null.
    """
    if not len(batch):
        return []
    found = assign(s, batch.points)
    rows = np.searchsorted(records.offsets, batch.offsets)
    source, partition = records.partition
    details = records.details
    columns = (
        rows.tolist(),
        batch.offsets.tolist(),
        records.timestamps[rows].tolist(),
        found.ids.tolist(),
        found.distances.tolist(),
        found.scores.tolist(),
    )
    out = []
    for row, offset, timestamp, cluster, distance, score in zip(*columns, strict=True):
        value = orjson.dumps(
            {
                "model": s.model,
                "snapshot": s.id,
                "id": cluster,
                "distance": distance,
                "score": score,
                "topic": source,
                "partition": partition,
                "offset": offset,
            }
        )
        key = None if details is None else details(row)[0]
        out.append(Outgoing(topic, key, value, (), timestamp, partition))
    return out


def _read_note(metadata: str) -> dict[str, Any]:
    """What a note says; nothing, if it is not one of ours."""
    try:
        found = orjson.loads(metadata)
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


class Assigner:
    """Reads a model's topic and writes each record's cluster to another.

    Parameters
    ----------
    model, target
        Name of the model; topic that the assignments go to, made with as many partitions as are read.
    open_source, open_writer
        Give a fresh one; called again after an error.
    codec, store
        Of the model.
    options
        How.
    clock
        Seconds of a clock that does not go back.
    """

    def __init__(
        self,
        model: str,
        target: str,
        *,
        open_source: Callable[[], Reads],
        open_writer: Callable[[], Transactions],
        codec: Decodes,
        store: Snapshots,
        options: AssignOptions = DEFAULTS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.counts = Counts()
        self._model, self._target, self._options, self._clock = model, target, options, clock
        self._open_source, self._open_writer = open_source, open_writer
        self._codec, self._store = codec, store
        self._snapshot: Snapshot | None = None
        self._asked_at = -float("inf")
        self._report = Report(
            log, model, clock, fate="it gets no assignment; others of its kind are counted once a minute"
        )
        self._store_away = False
        self._epoch = self._total = 0
        self._unreadable: BatchRange | None = None

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set; a broker or store that is away is waited for.

        Raises
        ------
        WriterFencedError
            Another process writes the same now.
        PositionLostError
            Records are gone that were not read yet.
        TopicNotFoundError, TopicChangedError, CorruptBatchError, SettingsError
            It cannot be read, or not as the topic it was; or the position is not the one that was left there.
        """
        backoff = FIRST_BACKOFF
        while not stop.is_set():
            before = self.counts.records
            try:
                self._session(stop)
            except CorruptBatchError as error:
                if not self._options.skip_lost or error.lost is None:
                    raise
                topic, partition, first, until = error.lost
                self._unreadable = BatchRange(TopicPartition(topic, partition), first, until)
                self.counts.lost += until - first
                log.warning("%s: %d records get no assignment: %s", self._model, until - first, error)
            except (BrokerUnreachableError, StoreUnavailableError) as error:
                if self.counts.records > before:
                    backoff = FIRST_BACKOFF
                log.warning("%s: trying again in %.0f s: %s", self._model, backoff, error)
                stop.wait(backoff)
                backoff = min(2 * backoff, LAST_BACKOFF)

    def _session(self, stop: threading.Event) -> None:
        """From a fresh writer and source to an error, or `stop`."""
        if not self._wait_for_snapshot(stop):
            return
        # The writer first: it ends what a dead one left open, and only then does the position stand still.
        writer = self._open_writer()
        try:
            source = self._open_source()
            try:
                self._work(source, writer, stop)
            finally:
                source.close()
        finally:
            writer.close()

    def _work(self, source: Reads, writer: Transactions, stop: threading.Event) -> None:
        if others := writer.group_conflict():
            raise SettingsError(
                f"{others}: where it reads, the positions of this target would be moved",
                where=self._target,
                hint="End it, or have it use another name; or choose another target",
            )
        partitions = source.partitions()
        writer.make_topic(self._target, len(partitions))
        self._epoch = 0
        position = self._start(source, writer, partitions)
        looked = written = self._clock()
        while not stop.is_set():
            self._report.look(self.counts.records, self.report)
            if self._clock() - looked > self._options.look_every:
                looked = self._clock()
                if set(source.partitions()) - set(position):
                    position = self._start(source, writer, source.partitions())
            out, counts = self._gather(source, stop)
            reached = source.position()
            if reached != position or self._clock() - written > self._options.refresh_every:
                written = self._clock()
                source.confirm()  # else the records may be of a topic that was made anew under this name
                self._total += len(out)
                writer.write(out, self._marks(reached))
                position = dict(reached)
                self._count(counts)

    def _marks(self, position: Position) -> dict[TopicPartition, CommittedOffset]:
        """A position with the note by which it is known again as ours."""
        ours = {"model": self._model, "target": self._target, "epoch": self._epoch, "count": self._total}
        return {tp: CommittedOffset(at, orjson.dumps(ours | {"offset": at}).decode()) for tp, at in position.items()}

    def _known(
        self, writer: Transactions, partitions: Sequence[TopicPartition]
    ) -> tuple[dict[TopicPartition, int], bool]:
        """The position that a session before this one left, and whether somebody else has put some of it there.

        Raises
        ------
        SettingsError
            Somebody else has, and nobody said that it is to be gone on from.
        """
        found = writer.committed(partitions)
        known: dict[TopicPartition, int] = {}
        moved: list[str] = []
        for tp, mark in sorted(found.items()):
            metadata = _read_note(mark.metadata)
            if (metadata.get("model"), metadata.get("target"), metadata.get("offset")) == (
                self._model,
                self._target,
                mark.offset,
            ):
                self._total = max(self._total, int(metadata.get("count", 0)))
                if self._epoch <= int(metadata.get("epoch", 0)):
                    self._epoch = int(metadata["epoch"])
                known[tp] = mark.offset
                continue
            was = f", {metadata['offset']} when it was left" if "offset" in metadata else ""
            moved.append(f"{tp}@{mark.offset}{was}")
            if self._options.start == "committed":
                known[tp] = mark.offset
        if moved and self._options.start is None:
            raise SettingsError(
                f"somebody else has moved the position: {', '.join(moved[:5])}"
                f"{f' and {len(moved) - 5} more' if len(moved) > 5 else ''}. "
                "Going on there could leave records out, or repeat them",
                where=self._target,
                hint="End what uses this consumer group, and say where to go on: --start committed at that position, "
                "--start beginning (which may repeat) or --start end (which may leave out)",
            )
        return known, bool(moved)

    def _start(self, source: Reads, writer: Transactions, partitions: Sequence[TopicPartition]) -> Position:
        """Seek to the group's position, and to where a partition that has none begins."""
        first = not self._epoch
        committed, moved = self._known(writer, partitions)
        if first:
            self._epoch += 1
        if not committed and self._options.start is None and not writer.is_empty(self._target):
            raise SettingsError(
                "the target has records, and nobody knows how far they reach: the broker has forgotten it (as it does "
                "7 days after the last one), or they are of somebody else",
                where=self._target,
                hint="Say where to go on: --start end leaves out what is in the topic, --start beginning may repeat it",
            )
        beginning = source.beginning()
        fresh = source.end() if self._options.start == "end" and not committed else beginning
        position = {tp: committed.get(tp, fresh[tp]) for tp in partitions}
        lost = {tp: beginning[tp] - at for tp, at in position.items() if at < beginning[tp]}
        if lost and not self._options.skip_lost:
            tp = min(lost)
            raise PositionLostError(
                f"{sum(lost.values())} records are gone that have no assignment yet: {tp} begins at {beginning[tp]}",
                where=f"{tp}@{position[tp]}",
                hint="Give --on-data-loss skip to go on behind them",
            )
        if lost:
            log.warning("%s: %d records are gone and get no assignment", self._model, sum(lost.values()))
            self.counts.lost += sum(lost.values())
            position |= {tp: beginning[tp] for tp in lost}
        unreadable, self._unreadable = self._unreadable, None
        if unreadable is not None and position.get(unreadable.partition, unreadable.stop) < unreadable.stop:
            position[unreadable.partition] = unreadable.stop
        if moved or position != committed:
            # Once it is written, a start at the end stays where it was, and the position is ours.
            writer.write((), self._marks(position))
        source.seek(position)
        return position

    def _gather(self, source: Reads, stop: threading.Event) -> tuple[list[Outgoing], Counts]:
        """Assign what comes until a transaction is full or old enough."""
        options = self._options
        out: list[Outgoing] = []
        counts = Counts()
        polled = list(source.poll(POLL_SECONDS, options.batch))
        deadline = self._clock() + options.commit_every
        while polled:
            source.ask()  # answered while we work
            snapshot = self._newest()
            for records in polled:
                if not isinstance(records, ByteRecords):
                    raise SourceError("these records have no bytes", where=str(records.partition))
                batch = self._codec.decode(records)
                self._report.bad(batch.bad)
                out += messages(self._target, snapshot, records, batch)
                counts.records += len(records)
                counts.assigned += len(batch)
                counts.bad += len(batch.bad)
                counts.tombstones += batch.tombstones
            left = deadline - self._clock()
            if counts.records >= options.batch or left <= 0 or stop.is_set():
                break
            try:
                polled = list(source.poll(left, options.batch - counts.records))
            except CorruptBatchError:
                break  # what came before it is written first; the next poll raises it again
        return out, counts

    def _count(self, more: Counts) -> None:
        c = self.counts
        c.records += more.records
        c.assigned += more.assigned
        c.bad += more.bad
        c.tombstones += more.tombstones

    def report(self) -> str:
        """What became of the records so far, and by which snapshot, as a sentence."""
        c = self.counts
        by = f"by snapshot {self._snapshot.id}" if self._snapshot is not None else "no snapshot yet"
        lost = f", {c.lost:,} lost" if c.lost else ""
        return f"{c.assigned:,} assigned, {c.bad:,} bad, {c.tombstones:,} tombstones{lost}, {by}"

    def end(self) -> None:
        """Say how it ended."""
        self._report.end(self.counts.records, self.report())

    def _wait_for_snapshot(self, stop: threading.Event) -> bool:
        said = False
        while not stop.is_set():
            try:
                self._newest()
            except NotFoundError:
                if not said:
                    log.info("%s: waiting for its first snapshot", self._model)
                said = True
                stop.wait(self._options.freshness)
            else:
                return True
        return False

    def _newest(self) -> Snapshot:
        """The newest snapshot, or that of a moment ago."""
        now = self._clock()
        if self._snapshot is not None and now - self._asked_at < self._options.freshness:
            return self._snapshot
        self._asked_at = now
        try:
            self._snapshot = self._store.snapshot(self._model)
            self._store_away = False
        except StreamkmError as error:
            if self._snapshot is None or not isinstance(error, StoreUnavailableError):
                raise
            if not self._store_away:
                log.warning("%s: going on with snapshot %d: %s", self._model, self._snapshot.id, error)
            self._store_away = True
        return self._snapshot
