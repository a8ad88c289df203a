"""Writes the cluster of each record of a model's topic to another topic, exactly once.

One Kafka transaction holds the assignments of a number of records and the source position behind them. After a crash
the next process continues from the last committed transaction, so read-committed consumers see each assignment once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from streamkm.assignment import assign
from streamkm.codecs.base import Codec
from streamkm.connectors.base import TransactionalWriter, VerifiableSource
from streamkm.errors import (
    BrokerUnreachableError,
    CodecUnavailableError,
    CorruptBatchError,
    NotFoundError,
    PositionLostError,
    SettingsError,
    SourceError,
    StoreUnavailableError,
    StreamkmError,
)
from streamkm.records import Batch, BatchRange, ByteRecords, CommittedOffset, Position, ProducerRecord, TopicPartition
from streamkm.reporting import ProgressReporter
from streamkm.state import Snapshot
from streamkm.stores.base import ModelStore

log = logging.getLogger(__name__)

POLL_SECONDS = 0.25
"""Longest wait for the first records of a transaction, s."""
INITIAL_BACKOFF, MAX_BACKOFF = 1.0, 30.0
"""Delays between attempts while the broker or the store is unavailable, s; doubled with each failure."""
_MAX_SHOWN = 5
"""Partitions that an error message lists."""


@dataclass
class AssignmentCounts:
    """Number of records read, by outcome.

    ``records == assigned + bad + tombstones``. Records counted in `lost` were deleted or unreadable and are in none of
    the others.
    """

    records: int = 0
    assigned: int = 0
    bad: int = 0
    tombstones: int = 0
    lost: int = 0

    def add(self, other: AssignmentCounts) -> None:
        """Add the counts of a transaction."""
        self.records += other.records
        self.assigned += other.assigned
        self.bad += other.bad
        self.tombstones += other.tombstones


@dataclass(frozen=True)
class AssignOptions:
    """Settings of an `Assigner`.

    Attributes
    ----------
    batch_size
        Maximum number of records in a transaction.
    commit_interval
        Maximum duration of a transaction, s.
    start
        Where reading starts when the target has no position of this program. ``beginning`` or ``end`` of the topic;
        ``committed``: at the group's position, whoever committed it; None: at the beginning, provided that the target
        is empty. Partitions added later are read from their beginning.
    skip_lost
        Skip records that were deleted or cannot be read, instead of raising an error.
    max_snapshot_age
        Seconds for which a loaded snapshot is used before the store is asked for a newer one.
    partition_check_interval
        Seconds between two checks for new partitions.
    position_refresh_interval
        Seconds after which the position of an idle stream is committed again: a broker deletes the offsets of inactive
        groups (``offsets.retention.minutes``, 7 days by default).
    """

    batch_size: int = 10_000
    commit_interval: float = 0.1
    start: str | None = None
    skip_lost: bool = False
    max_snapshot_age: float = 1.0
    partition_check_interval: float = 10.0
    position_refresh_interval: float = 3600.0


DEFAULTS = AssignOptions()


def assignment_records(topic: str, s: Snapshot, records: ByteRecords, batch: Batch) -> list[ProducerRecord]:
    """Serialize the assignments of a batch.

    Parameters
    ----------
    topic
        Target topic. Each assignment goes to the partition with the number of its source partition.
    s
        Snapshot that assigns.
    records
        Records that were read.
    batch
        Points decoded from `records`.

    Returns
    -------
    list of Outgoing
        One JSON record per point, in the order of offsets. A score that is not finite is written as null.
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
        out.append(ProducerRecord(topic, key, value, (), timestamp, partition))
    return out


def _parse_metadata(metadata: str) -> dict[str, Any]:
    """Parse the metadata of a committed offset; empty unless it is a JSON object."""
    try:
        found = orjson.loads(metadata)
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


class Assigner:
    """Reads a model's topic and writes the cluster of each record to a target topic.

    Parameters
    ----------
    model
        Name of the model.
    target
        Topic to write to; created with the number of partitions of the source if it does not exist.
    open_source, open_writer
        Open a new source and a new writer; called at the start and after each error.
    codec
        Codec of the model.
    store
        Store that has the model's snapshots.
    options
        Settings.
    clock
        Monotonic clock, s.

    Attributes
    ----------
    counts
        Outcomes of all records read so far.
    """

    def __init__(
        self,
        model: str,
        target: str,
        *,
        open_source: Callable[[], VerifiableSource],
        open_writer: Callable[[], TransactionalWriter],
        codec: Codec,
        store: ModelStore,
        options: AssignOptions = DEFAULTS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.counts = AssignmentCounts()
        self._model, self._target, self._options, self._clock = model, target, options, clock
        self._open_source, self._open_writer = open_source, open_writer
        self._codec, self._store = codec, store
        self._snapshot: Snapshot | None = None
        self._loaded_at = -float("inf")
        self._reporter = ProgressReporter(
            log, model, clock, consequence="it gets no assignment; more with this reason are counted once a minute"
        )
        self._store_away = False
        self._epoch = self._total = 0
        self._unreadable: BatchRange | None = None

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set. While broker, store or codec are unavailable, try again with a growing delay.

        Raises
        ------
        WriterFencedError
            Another process with the same model and target has taken over.
        PositionLostError
            Records were deleted before they were read, and `AssignOptions.skip_lost` is not set.
        CorruptBatchError
            Records cannot be read, and `AssignOptions.skip_lost` is not set.
        TopicNotFoundError, TopicChangedError
            The source topic does not exist, or was deleted and created again.
        SettingsError
            Another program uses or has changed the group's position.
        """
        backoff = INITIAL_BACKOFF
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
            except (BrokerUnreachableError, CodecUnavailableError, StoreUnavailableError) as error:
                if self.counts.records > before:
                    backoff = INITIAL_BACKOFF
                log.warning("%s: trying again in %.0f s: %s", self._model, backoff, error)
                stop.wait(backoff)
                backoff = min(2 * backoff, MAX_BACKOFF)

    def _session(self, stop: threading.Event) -> None:
        """Open a writer and a source, and work until an error or `stop`."""
        if not self._wait_for_snapshot(stop):
            return
        # The writer first: it ends open transactions of a dead process, so that the group's position is final.
        writer = self._open_writer()
        try:
            source = self._open_source()
            try:
                self._assign_all(source, writer, stop)
            finally:
                source.close()
        finally:
            writer.close()

    def _assign_all(self, source: VerifiableSource, writer: TransactionalWriter, stop: threading.Event) -> None:
        if conflict := writer.group_conflict():
            raise SettingsError(
                f"{conflict}: where it reads, the positions of this target would be moved",
                where=self._target,
                hint="End it, or have it use another name; or choose another target",
            )
        partitions = source.partitions()
        writer.create_topic(self._target, len(partitions))
        self._epoch = 0
        position = self._seek(source, writer, partitions)
        checked_at = committed_at = self._clock()
        while not stop.is_set():
            self._reporter.update(self.counts.records, self.describe)
            if self._clock() - checked_at > self._options.partition_check_interval:
                checked_at = self._clock()
                if set(source.partitions()) - set(position):
                    position = self._seek(source, writer, source.partitions())
            out, counts = self._next_transaction(source, stop)
            reached = source.position()
            if reached != position or self._clock() - committed_at > self._options.position_refresh_interval:
                committed_at = self._clock()
                source.confirm_identity()  # else the records may come from a topic recreated under this name
                self._total += len(out)
                writer.write(out, self._with_metadata(reached))
                position = dict(reached)
                self.counts.add(counts)

    def _with_metadata(self, position: Position) -> dict[TopicPartition, CommittedOffset]:
        """Add the metadata by which a later session recognizes the position as its own."""
        own = {"model": self._model, "target": self._target, "epoch": self._epoch, "count": self._total}
        return {tp: CommittedOffset(at, orjson.dumps(own | {"offset": at}).decode()) for tp, at in position.items()}

    def _committed(
        self, writer: TransactionalWriter, partitions: Sequence[TopicPartition]
    ) -> tuple[dict[TopicPartition, int], bool]:
        """The group's position, and whether another program has changed any of it.

        Raises
        ------
        SettingsError
            Another program has changed it, and `AssignOptions.start` is not set.
        """
        found = writer.committed(partitions)
        own: dict[TopicPartition, int] = {}
        changed: list[str] = []
        for tp, committed in sorted(found.items()):
            metadata = _parse_metadata(committed.metadata)
            names = metadata.get("model"), metadata.get("target"), metadata.get("offset")
            if names == (self._model, self._target, committed.offset):
                self._total = max(self._total, int(metadata.get("count", 0)))
                if self._epoch <= int(metadata.get("epoch", 0)):
                    self._epoch = int(metadata["epoch"])
                own[tp] = committed.offset
                continue
            was = f", {metadata['offset']} when it was left" if "offset" in metadata else ""
            changed.append(f"{tp}@{committed.offset}{was}")
            if self._options.start == "committed":
                own[tp] = committed.offset
        if changed and self._options.start is None:
            more = f" and {len(changed) - _MAX_SHOWN} more" if len(changed) > _MAX_SHOWN else ""
            raise SettingsError(
                f"another program has changed the committed position: {', '.join(changed[:_MAX_SHOWN])}{more}. "
                "Continuing there could skip or repeat records",
                where=self._target,
                hint="Stop the program that uses this consumer group, and choose where to continue: --start committed "
                "at that position, --start beginning (may repeat records) or --start end (may skip records)",
            )
        return own, bool(changed)

    def _seek(
        self, source: VerifiableSource, writer: TransactionalWriter, partitions: Sequence[TopicPartition]
    ) -> Position:
        """Seek to the group's position, and to the start of partitions that have none."""
        first = not self._epoch
        committed, changed = self._committed(writer, partitions)
        if first:
            self._epoch += 1
        if not committed and self._options.start is None and not writer.is_empty(self._target):
            raise SettingsError(
                "the target has records, and no committed position says how far they reach: the broker has deleted it "
                "(by default 7 days after the last commit), or another program wrote them",
                where=self._target,
                hint="Choose where to start: --start end skips what is in the topic, --start beginning may repeat it",
            )
        beginning = source.beginning()
        fresh = source.end() if self._options.start == "end" and not committed else beginning
        position = {tp: committed.get(tp, fresh[tp]) for tp in partitions}
        lost = {tp: beginning[tp] - at for tp, at in position.items() if at < beginning[tp]}
        if lost and not self._options.skip_lost:
            tp = min(lost)
            raise PositionLostError(
                f"{sum(lost.values())} records were deleted before they were assigned: {tp} begins at {beginning[tp]}",
                where=f"{tp}@{position[tp]}",
                hint="Give --on-data-loss skip to continue behind them",
            )
        if lost:
            log.warning("%s: %d records were deleted and get no assignment", self._model, sum(lost.values()))
            self.counts.lost += sum(lost.values())
            position |= {tp: beginning[tp] for tp in lost}
        unreadable, self._unreadable = self._unreadable, None
        if unreadable is not None and position.get(unreadable.partition, unreadable.stop) < unreadable.stop:
            position[unreadable.partition] = unreadable.stop
        if changed or position != committed:
            # Committed at once: a start at the end then stays where it was, and the position carries our metadata.
            writer.write((), self._with_metadata(position))
        source.seek(position)
        return position

    def _next_transaction(
        self, source: VerifiableSource, stop: threading.Event
    ) -> tuple[list[ProducerRecord], AssignmentCounts]:
        """Read and assign records until a transaction is full or has lasted `AssignOptions.commit_interval`."""
        options = self._options
        out: list[ProducerRecord] = []
        counts = AssignmentCounts()
        polled = list(source.poll(POLL_SECONDS, options.batch_size))
        deadline = self._clock() + options.commit_interval
        while polled:
            source.begin_identity_check()  # runs in the background while records are assigned
            snapshot = self._current_snapshot()
            for records in polled:
                if not isinstance(records, ByteRecords):
                    raise SourceError("these records have no bytes", where=str(records.partition))
                batch = self._codec.decode(records)
                self._reporter.bad_records(batch.bad)
                out += assignment_records(self._target, snapshot, records, batch)
                counts.records += len(records)
                counts.assigned += len(batch)
                counts.bad += len(batch.bad)
                counts.tombstones += batch.tombstones
            left = deadline - self._clock()
            if counts.records >= options.batch_size or left <= 0 or stop.is_set():
                break
            try:
                polled = list(source.poll(left, options.batch_size - counts.records))
            except CorruptBatchError:
                break  # records read before it are written first; the next poll raises it again
        return out, counts

    def describe(self) -> str:
        """Outcomes of the records so far and the snapshot in use, for the log."""
        c = self.counts
        by = f"by snapshot {self._snapshot.id}" if self._snapshot is not None else "no snapshot yet"
        lost = f", {c.lost:,} lost" if c.lost else ""
        return f"{c.assigned:,} assigned, {c.bad:,} bad, {c.tombstones:,} tombstones{lost}, {by}"

    def log_summary(self) -> None:
        """Log the outcomes of the whole run."""
        self._reporter.finish(self.counts.records, self.describe())

    def _wait_for_snapshot(self, stop: threading.Event) -> bool:
        logged = False
        while not stop.is_set():
            try:
                self._current_snapshot()
            except NotFoundError:
                if not logged:
                    log.info("%s: waiting for its first snapshot", self._model)
                logged = True
                stop.wait(self._options.max_snapshot_age)
            else:
                return True
        return False

    def _current_snapshot(self) -> Snapshot:
        """The newest snapshot in charge, at most `AssignOptions.max_snapshot_age` old."""
        now = self._clock()
        if self._snapshot is not None and now - self._loaded_at < self._options.max_snapshot_age:
            return self._snapshot
        self._loaded_at = now
        try:
            self._snapshot = self._store.snapshot(self._model)
            self._store_away = False
        except StreamkmError as error:
            if self._snapshot is None or not isinstance(error, StoreUnavailableError):
                raise
            if not self._store_away:
                log.warning("%s: continuing with snapshot %d: %s", self._model, self._snapshot.id, error)
            self._store_away = True
        return self._snapshot
