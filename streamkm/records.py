"""Plain data between sources and models: records, positions, decoded batches and bad records."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Headers = tuple[tuple[str, bytes | None], ...]
MAX_KEPT_BYTES = 1 << 16
"""Bytes of a bad record's value, key and headers that are kept, each; the original stays in the topic."""
HEADER_OVERHEAD_BYTES = 64
"""Estimated bytes of a header beside its name and value, which may both be empty."""


class TopicPartition(NamedTuple):
    """One partition of a topic; for a file, its path and 0."""

    topic: str
    partition: int

    def __str__(self) -> str:
        return f"{self.topic}-{self.partition}"


Position = Mapping[TopicPartition, int]
"""The offset of the next record to read, by partition.

Not the last offset plus one: transaction markers and gaps from compaction lie between."""


class CommittedOffset(NamedTuple):
    """A position that was committed to a group of the broker, and the note that its writer left beside it."""

    offset: int
    metadata: str


class BatchRange(NamedTuple):
    """The half-open range of offsets [start, stop) of one partition in a mini-batch."""

    partition: TopicPartition
    start: int
    stop: int


class RawRecord(NamedTuple):
    """One record. The stream travels as columns (`ByteRecords`); this is for single records.

    Attributes
    ----------
    timestamp
        Milliseconds since 1970; -1 when the record has none.
    size
        Bytes of the whole value when `value` is truncated; otherwise None.
    """

    partition: TopicPartition
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    size: int | None = None

    @property
    def n_bytes(self) -> int:
        """Bytes of key, value and headers as kept here."""
        headers = sum(len(name) + len(content or b"") + HEADER_OVERHEAD_BYTES for name, content in self.headers)
        return len(self.key or b"") + len(self.value or b"") + headers


@dataclass(frozen=True, slots=True, eq=False)
class ByteRecords:
    """Consecutive records of one partition as columns: the undecoded range [start, stop).

    Attributes
    ----------
    start, stop
        Position before the first and after the last record. ``stop`` is the source's position, so it may be beyond
        ``offsets[-1] + 1``; a range without records still advances.
    data
        (m,) uint8, read-only, contains the values.
    begins, ends
        (n,) int64, value i is ``data[begins[i]:ends[i]]``; ``ends[i] == -1`` is a null value (a tombstone).
    offsets
        (n,) int64, increasing.
    timestamps
        (n,) int64, milliseconds since 1970; -1 where the record has none.
    details
        Returns key and headers of record i; only called for the few records that need them.
    full_sizes
        Bytes of the whole value, by offset, of records that are larger than the source's limit and truncated here.
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
    full_sizes: Mapping[int, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.offsets)

    def split(self, offset: int) -> tuple[ByteRecords, ByteRecords]:
        """Split into the ranges [start, offset) and [offset, stop); ``start <= offset <= stop``."""
        i = int(np.searchsorted(self.offsets, offset))
        details = self.details
        tail_details = None if details is None else lambda j: details(i + j)
        head = ByteRecords(
            self.partition, self.start, offset, self.data,
            self.begins[:i], self.ends[:i], self.offsets[:i], self.timestamps[:i], details, self.full_sizes,
        )  # fmt: skip
        tail = ByteRecords(
            self.partition, offset, self.stop, self.data,
            self.begins[i:], self.ends[i:], self.offsets[i:], self.timestamps[i:], tail_details, self.full_sizes,
        )  # fmt: skip
        return head, tail

    def value(self, i: int) -> bytes | None:
        """Value of record i; None for a tombstone."""
        return None if self.ends[i] < 0 else self.data[self.begins[i] : self.ends[i]].tobytes()

    def size(self, i: int) -> int:
        """Bytes of the whole value of record i, which may be truncated here; 0 for a tombstone."""
        here = max(0, int(self.ends[i] - self.begins[i]))
        return self.full_sizes.get(int(self.offsets[i]), here) if self.full_sizes else here

    def record(self, i: int, max_bytes: int | None = None) -> RawRecord:
        """Record i with its key and headers, and its value, truncated to `max_bytes` if given."""
        key, headers = self.details(i) if self.details is not None else (None, ())
        begin, end, size = int(self.begins[i]), int(self.ends[i]), self.size(i)
        stop = end if max_bytes is None else min(end, begin + max_bytes)
        value = None if end < 0 else self.data[begin:stop].tobytes()
        whole = value is None or len(value) == size
        place = self.partition, int(self.offsets[i]), int(self.timestamps[i])
        return RawRecord(*place, key, value, headers, None if whole else size)

    def truncated(self, i: int) -> RawRecord:
        """Record i, truncated with `truncate_for_quarantine`."""
        return truncate_for_quarantine(self.record(i, MAX_KEPT_BYTES))


@dataclass(frozen=True, slots=True, eq=False)
class ColumnRecords:
    """Consecutive rows of a file with columns (csv, npy, parquet): the range [start, stop) of rows.

    Attributes
    ----------
    columns
        (n,) array by column name. Numbers are numeric arrays with NaN for missing values; text is an object array of
        str or None, for the codec to parse.
    offsets
        (n,) int64, increasing row numbers.
    timestamps
        (n,) int64, milliseconds since 1970; -1 where unknown.
    malformed_rows
        Error messages by offset, for rows with more cells than the header.
    """

    partition: TopicPartition
    start: int
    stop: int
    columns: Mapping[str, NDArray[np.generic]]
    offsets: NDArray[np.int64]
    timestamps: NDArray[np.int64]
    malformed_rows: Mapping[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.offsets)

    def split(self, offset: int) -> tuple[ColumnRecords, ColumnRecords]:
        """Split into the ranges [start, offset) and [offset, stop); ``start <= offset <= stop``."""
        i = int(np.searchsorted(self.offsets, offset))

        def part(rows: slice, start: int, stop: int) -> ColumnRecords:
            columns = {name: column[rows] for name, column in self.columns.items()}
            malformed = {row: message for row, message in self.malformed_rows.items() if start <= row < stop}
            return ColumnRecords(
                self.partition, start, stop, columns, self.offsets[rows], self.timestamps[rows], malformed
            )

        return part(slice(0, i), self.start, offset), part(slice(i, None), offset, self.stop)


Records = ByteRecords | ColumnRecords


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A record that cannot be learned, truncated to `MAX_KEPT_BYTES` of its value.

    Attributes
    ----------
    reason
        Error code: ``not-json``, ``missing-field``, ``not-a-number``, ``not-finite``, ``not-a-time``,
        ``wrong-dimension``, ``too-large`` (the record), ``out-of-range`` (a value), ``event-time-ahead``,
        ``too-many-values`` (a row of a table).
    field
        The field that is wrong; empty when it is the whole record.
    message
        Error message.
    """

    record: RawRecord
    reason: str
    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.record.partition}@{self.record.offset}: {self.message}"


def truncate_for_quarantine(record: RawRecord) -> RawRecord:
    """Truncate a record for the quarantine: value, key and headers to `MAX_KEPT_BYTES` each.

    Returns
    -------
    RawRecord
        With `size` if anything was removed.
    """
    headers, left = [], MAX_KEPT_BYTES
    for name, value in record.headers:
        left -= len(name.encode("utf-8", "replace")) + len(value or b"") + HEADER_OVERHEAD_BYTES
        if left < 0:
            break
        headers.append((name, value))
    key, value = record.key, record.value
    cut = record._replace(
        key=None if key is None else key[:MAX_KEPT_BYTES],
        value=None if value is None else value[:MAX_KEPT_BYTES],
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
        (n, d) float64, C-contiguous and finite; columns in the order of the model's fields.
    times
        (n,) float64, event times in seconds since 1970; NaN where unknown.
    offsets
        (n,) int64, offset of the record of each point.
    bad
        Records that could not be decoded; not in `points`.
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


class ProducerRecord(NamedTuple):
    """A record to write to a topic.

    Attributes
    ----------
    timestamp
        Milliseconds since 1970; negative: the time of writing.
    partition
        Destination; None: chosen by the key.
    """

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp: int = -1
    partition: int | None = None


class DeliveryError(NamedTuple):
    """Why a record was not written.

    Attributes
    ----------
    permanent
        The record itself is the cause: another attempt with the same record would fail again.
    too_large
        The size is the cause, so that larger records would fail too.
    """

    message: str
    permanent: bool
    too_large: bool = False
