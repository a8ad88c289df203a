"""Records in memory: for tests, examples, and streams that come from elsewhere in the program."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from streamkm.connectors.columns import byte_records
from streamkm.connectors.positions import check_position
from streamkm.errors import PositionLostError, SettingsError, SourceClosedError
from streamkm.records import ByteRecords, Position, RawRecord, TopicPartition
from streamkm.state import Json


@dataclass
class _Partition:
    records: list[RawRecord] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    beginning: int = 0
    end: int = 0


class MemorySource:
    """Partitions of records in memory, with everything a topic can have: gaps, markers, retention, new partitions.

    `append`, `advance` and `truncate` may be called from other threads while one thread reads.

    Parameters
    ----------
    records
        Initial records, in the order of their offsets in each partition; gaps are allowed.
    topic
        Name for `identity` and for partitions created by number.
    partitions
        Minimum number of partitions of `topic`, empty ones included.

    Attributes
    ----------
    topic
        Name of the topic.
    committed
        The position of the last `commit`.
    """

    def __init__(self, records: Iterable[RawRecord] = (), *, topic: str = "memory", partitions: int = 0) -> None:
        self.topic = topic
        self.committed: dict[TopicPartition, int] = {}
        self._partitions = {TopicPartition(topic, i): _Partition() for i in range(partitions)}
        self._position: dict[TopicPartition, int] = {}
        self._changed = threading.Condition()
        self._closed = False
        self.append(records)

    @classmethod
    def from_values(
        cls, values: Sequence[Sequence[bytes | None]], *, topic: str = "memory", timestamp: int = -1
    ) -> MemorySource:
        """Create a source whose partition i has the records ``values[i]``, from offset 0.

        Parameters
        ----------
        values
            Record values by partition; None is a tombstone.
        topic
            Name of the topic.
        timestamp
            Timestamp of all records, ms since the epoch; -1 for none.
        """
        records = [
            RawRecord(TopicPartition(topic, i), offset, timestamp, None, value)
            for i, partition in enumerate(values)
            for offset, value in enumerate(partition)
        ]
        return cls(records, topic=topic, partitions=len(values))

    def append(self, records: Iterable[RawRecord]) -> None:
        """Append records; an unknown partition is created.

        Raises
        ------
        SettingsError
            An offset is below its partition's end.
        """
        with self._changed:
            for record in records:
                partition = self._partitions.setdefault(record.partition, _Partition())
                if record.offset < partition.end:
                    raise SettingsError(
                        f"offset {record.offset} is below the end, {partition.end}", where=str(record.partition)
                    )
                partition.records.append(record)
                partition.offsets.append(record.offset)
                partition.end = record.offset + 1
            self._changed.notify_all()

    def advance(self, partition: TopicPartition, end: int) -> None:
        """Move a partition's end without a record, as a transaction marker or an aborted record does."""
        with self._changed:
            found = self._partitions.setdefault(partition, _Partition())
            found.end = max(found.end, end)
            self._changed.notify_all()

    def truncate(self, partition: TopicPartition, beginning: int) -> None:
        """Delete records below `beginning`, as retention does."""
        with self._changed:
            found = self._partitions[partition]
            found.beginning = max(found.beginning, min(beginning, found.end))
            keep = bisect_left(found.offsets, found.beginning)
            del found.records[:keep]
            del found.offsets[:keep]
            self._changed.notify_all()

    def identity(self) -> Json:
        self._check()
        return {"kind": "memory", "topic": self.topic}

    def partitions(self) -> tuple[TopicPartition, ...]:
        self._check()
        with self._changed:
            return tuple(sorted(self._partitions))

    def beginning(self) -> Position:
        self._check()
        with self._changed:
            return {tp: self._partitions[tp].beginning for tp in sorted(self._partitions)}

    def end(self) -> Position:
        self._check()
        with self._changed:
            return {tp: self._partitions[tp].end for tp in sorted(self._partitions)}

    def offsets_at(self, seconds: float) -> Position:
        """For each partition the offset of the first record at or after a time, s since the epoch, or else its end."""
        self._check()
        with self._changed:
            return {
                tp: next((r.offset for r in p.records if r.timestamp >= seconds * 1000), p.end)
                for tp, p in self._partitions.items()
            }

    def seek(self, position: Position) -> None:
        self._check()
        with self._changed:
            for tp, offset in position.items():
                check_position(tp, offset, *self._bounds(tp))
            self._position = {tp: position[tp] for tp in sorted(position)}

    def poll(self, timeout: float, max_records: int) -> Sequence[ByteRecords]:
        self._check()
        deadline = time.monotonic() + timeout
        with self._changed:
            while not (got := self._take(max_records)):
                left = deadline - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    break
            return got

    def position(self) -> Position:
        self._check()
        return dict(self._position)

    def commit(self, position: Position) -> None:
        self._check()
        self.committed = dict(position)

    def close(self) -> None:
        self._closed = True

    def _check(self) -> None:
        if self._closed:
            raise SourceClosedError("the source was closed", where=self.topic)

    def _bounds(self, tp: TopicPartition) -> tuple[int, int]:
        if tp not in self._partitions:
            raise PositionLostError("the partition does not exist", where=str(tp))
        partition = self._partitions[tp]
        return partition.beginning, partition.end

    def _take(self, max_records: int) -> list[ByteRecords]:
        out: list[ByteRecords] = []
        for tp, start in self._position.items():
            partition = self._partitions[tp]
            if start < partition.beginning:
                check_position(tp, start, *self._bounds(tp))
            if max_records <= 0 or start >= partition.end:
                continue
            first = bisect_left(partition.offsets, start)
            records = partition.records[first : first + max_records]
            last = first + len(records) == len(partition.records)
            stop = partition.end if last else records[-1].offset + 1
            out.append(byte_records(tp, start, stop, records))
            max_records -= len(records)
        self._position.update({got.partition: got.stop for got in out})
        return out
