"""Plain data on its way from a source to a model: what was read, where it stood, what was wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Headers = tuple[tuple[str, bytes | None], ...]
KEPT_VALUE_BYTES = 1 << 16
"""Bytes of a bad record's value that are kept; the whole stays in the topic at its offset."""
HEADER_BYTES = 64
"""What a header takes beside its name and value, which may both be empty."""


class TopicPartition(NamedTuple):
    """One partition of a topic; for a file the topic is its path and the partition 0."""

    topic: str
    partition: int

    def __str__(self) -> str:
        return f"{self.topic}-{self.partition}"


Position = Mapping[TopicPartition, int]
"""The offset of the next record to read, for each partition.

Not "last offset + 1": transaction markers and holes of compaction lie between."""


class Mark(NamedTuple):
    """A position that was committed to a group of the broker, and the note that its writer left beside it."""

    offset: int
    note: str


class BatchRange(NamedTuple):
    """The half-open range of offsets [start, stop) of one partition that went into one mini-batch."""

    partition: TopicPartition
    start: int
    stop: int


class RawRecord(NamedTuple):
    """One record as the broker has it. Columns (`ByteRecords`) carry the stream; this is for looking at one of them.

    Attributes
    ----------
    size
        Bytes of the whole, where `value` is only its beginning; else None.
    """

    partition: TopicPartition
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    size: int | None = None

    @property
    def weight(self) -> int:
        """Bytes that key, value and headers take here."""
        headers = sum(len(name) + len(content or b"") + HEADER_BYTES for name, content in self.headers)
        return len(self.key or b"") + len(self.value or b"") + headers


@dataclass(frozen=True, slots=True, eq=False)
class ByteRecords:
    """Consecutive records of one partition as columns: the undecoded range [start, stop).

    Attributes
    ----------
    partition
        Where they were read.
    start, stop
        Position before the first and after the last record. ``stop`` is the source's position, so it may lie beyond
        ``offsets[-1] + 1``; the range may also be empty of records and still move on.
    data
        (bytes,) uint8, read-only: the values, anywhere in it.
    begins, ends
        (n,) int64: value i is ``data[begins[i]:ends[i]]``; ``ends[i] == -1`` is a null value (a tombstone).
    offsets
        (n,) int64, increasing.
    timestamps
        (n,) int64, milliseconds since 1970; -1 where the record has none.
    details
        Gives key and headers of record i, for the few that somebody looks at.
    cut
        Offsets of records that are not here whole, as they are larger than the source was asked for, and how many bytes
        they have.
    """

    partition: TopicPartition
    start: int
    stop: int
    data: Bytes
    begins: NDArray[np.int64]
    ends: NDArray[np.int64]
    offsets: NDArray[np.int64]
    timestamps: NDArray[np.int64]
    details: Callable[[int], tuple[bytes | None, Headers]] | None = None
    cut: Mapping[int, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.offsets)

    def split(self, offset: int) -> tuple[ByteRecords, ByteRecords]:
        """The ranges [start, offset) and [offset, stop); ``start <= offset <= stop``."""
        i = int(np.searchsorted(self.offsets, offset))
        details = self.details
        tail_details = None if details is None else lambda j: details(i + j)
        head = ByteRecords(
            self.partition, self.start, offset, self.data,
            self.begins[:i], self.ends[:i], self.offsets[:i], self.timestamps[:i], details, self.cut,
        )  # fmt: skip
        tail = ByteRecords(
            self.partition, offset, self.stop, self.data,
            self.begins[i:], self.ends[i:], self.offsets[i:], self.timestamps[i:], tail_details, self.cut,
        )  # fmt: skip
        return head, tail

    def value(self, i: int) -> bytes | None:
        """Value of record i, or None for a tombstone."""
        return None if self.ends[i] < 0 else self.data[self.begins[i] : self.ends[i]].tobytes()

    def size(self, i: int) -> int:
        """Bytes of the whole value of record i, which may not all be here; 0 for a tombstone."""
        here = max(0, int(self.ends[i] - self.begins[i]))
        return self.cut.get(int(self.offsets[i]), here) if self.cut else here

    def record(self, i: int, most: int | None = None) -> RawRecord:
        """Record i with its key and headers, and `most` bytes of its value, or all."""
        key, headers = self.details(i) if self.details is not None else (None, ())
        begin, end, size = int(self.begins[i]), int(self.ends[i]), self.size(i)
        stop = end if most is None else min(end, begin + most)
        value = None if end < 0 else self.data[begin:stop].tobytes()
        whole = value is None or len(value) == size
        place = self.partition, int(self.offsets[i]), int(self.timestamps[i])
        return RawRecord(*place, key, value, headers, None if whole else size)

    def kept(self, i: int) -> RawRecord:
        """Record i as a bad record is kept: no more than `kept_part` of it."""
        return kept_part(self.record(i, KEPT_VALUE_BYTES))


@dataclass(frozen=True, slots=True, eq=False)
class ColumnRecords:
    """Consecutive rows of a file that has columns of its own (csv, npy, parquet): the range [start, stop) of rows.

    Attributes
    ----------
    columns
        Column name -> (n,) array. Numbers are numeric arrays in which a missing value is NaN; text stays text (object
        array of str or None), for the codec to judge.
    broken
        Offsets of rows whose cells belong to no column, each with the sentence for people.
    """

    partition: TopicPartition
    start: int
    stop: int
    columns: Mapping[str, NDArray[np.generic]]
    offsets: NDArray[np.int64]
    timestamps: NDArray[np.int64]
    broken: Mapping[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.offsets)

    def split(self, offset: int) -> tuple[ColumnRecords, ColumnRecords]:
        """The ranges [start, offset) and [offset, stop); ``start <= offset <= stop``."""
        i = int(np.searchsorted(self.offsets, offset))

        def part(rows: slice, start: int, stop: int) -> ColumnRecords:
            columns = {name: column[rows] for name, column in self.columns.items()}
            broken = {at: said for at, said in self.broken.items() if start <= at < stop}
            return ColumnRecords(
                self.partition, start, stop, columns, self.offsets[rows], self.timestamps[rows], broken
            )

        return part(slice(0, i), self.start, offset), part(slice(i, None), offset, self.stop)


Records = ByteRecords | ColumnRecords


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A record that no model can take, with no more than `KEPT_VALUE_BYTES` of its value.

    Attributes
    ----------
    reason
        A word for machines: ``not-json``, ``missing-field``, ``not-a-number``, ``not-finite``, ``not-a-time``,
        ``wrong-dimension``, ``too-large`` (the record), ``out-of-range`` (a value), ``event-time-ahead``,
        ``too-many-values`` (a row of a table).
    field
        The field that is wrong, or "".
    message
        The sentence for people.
    """

    record: RawRecord
    reason: str
    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.record.partition}@{self.record.offset}: {self.message}"


def kept_part(record: RawRecord) -> RawRecord:
    """What a quarantine keeps of a record: the beginnings of a long value and key, and the headers that fit.

    Returns
    -------
    RawRecord
        With `size`, if anything of it is missing.
    """
    headers, left = [], KEPT_VALUE_BYTES
    for name, value in record.headers:
        left -= len(name.encode("utf-8", "replace")) + len(value or b"") + HEADER_BYTES
        if left < 0:
            break
        headers.append((name, value))
    key, value = record.key, record.value
    cut = record._replace(
        key=None if key is None else key[:KEPT_VALUE_BYTES],
        value=None if value is None else value[:KEPT_VALUE_BYTES],
        headers=tuple(headers),
    )
    whole = cut == record
    return cut if whole or record.size is not None else cut._replace(size=len(value or b""))


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Decoded records of one partition's range.

    Attributes
    ----------
    points
        (n, d) float64, C-contiguous, all finite; columns in the order of the model's fields.
    times
        (n,) float64, event time in seconds since 1970 (NaN where unknown).
    offsets
        (n,) int64, the record each point came from.
    bad
        Records that could not be decoded; never among ``points``.
    tombstones
        Number of records with a null value.
    """

    range: BatchRange
    points: NDArray[np.float64]
    times: NDArray[np.float64]
    offsets: NDArray[np.int64]
    bad: tuple[BadRecord, ...] = field(default=())
    tombstones: int = 0

    def __len__(self) -> int:
        return len(self.points)


class Outgoing(NamedTuple):
    """A record on its way to a topic.

    Attributes
    ----------
    timestamp
        Milliseconds since 1970; negative: the time at which it is written.
    partition
        Where it goes; None: wherever its key sends it.
    """

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp: int = -1
    partition: int | None = None


class Refused(NamedTuple):
    """Why a record was not written.

    Attributes
    ----------
    for_good
        It is the record itself: written again as it is, it would be refused again.
    too_large
        Because of its size, so that larger ones would be too.
    """

    message: str
    for_good: bool
    too_large: bool = False
