"""Kafka's record batches as columns: what kafka-python's fetcher holds, without a Python object per record.

kafka-python makes a ``ConsumerRecord`` of every record (measured: about 0.2M records/s on one core). Its fetcher hands
each fetched piece of a partition to a class that it looks up as ``fetcher.PartitionRecords``, asks that object for
``take(n)`` records, counts them with ``len`` and moves the partition's position to its ``next_fetch_offset``.
`BatchRecords` is such a class: it gives the same records, at the same positions, as arrays. That hook is private, so it
is used only with the versions in `_kafka_socket.VERSIONS`, for which a test compares both ways record for record; other
versions go the plain way.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import crc32c
import numpy as np
from numpy.typing import NDArray

from streamkm.errors import CorruptBatchError, SettingsError
from streamkm.kernels import wire
from streamkm.records import Bytes, Headers
from streamkm.sources._kafka_formats import DECODERS, Legacy

# Kafka's RecordBatch header: base offset, length, leader epoch, magic, crc, attributes, last offset delta, base
# timestamp, max timestamp, producer id, producer epoch, base sequence, record count.
_HEADER = struct.Struct(">qiibIhiqqqhii")
_PREFIX = struct.Struct(">qi")  # what a batch of any format begins with: offset, length of the rest
_MAGIC_AT = 16
_CRC_FROM = 21  # the checksum covers everything from the attributes on
_CODEC, _APPEND_TIME, _TRANSACTIONAL, _CONTROL = 0x07, 0x08, 0x10, 0x20
_NO_PRODUCER = -1
_LAST_OFFSET = (1 << 63) - 1
_ABORT = 0  # type of an abort marker; a commit marker is 1

_WHY = {
    wire.TRUNCATED: "its records end in the middle",
    wire.BAD_VARINT: "a record has a number of more than 64 bits",
    wire.BAD_LENGTH: "a record has an impossible length",
    wire.TRAILING_BYTES: "bytes are left after its last record",
    wire.BAD_OFFSET: "its offsets do not increase",
}


class Columns(NamedTuple):
    """Some consecutive records: row i of each array is a record; ``starts`` is where it begins in ``data``."""

    data: Bytes
    starts: NDArray[np.int64]
    begins: NDArray[np.int64]
    ends: NDArray[np.int64]
    offsets: NDArray[np.int64]
    timestamps: NDArray[np.int64]

    def rows(self, a: int, b: int) -> Columns:
        """Rows [a, b), as views."""
        return Columns(self.data, *(column[a:b] for column in self[1:]))

    def details(self, i: int) -> tuple[bytes | None, Headers]:
        """Key and headers of row i."""
        return record_details(self.data, int(self.starts[i]))


class Taken:
    """What `BatchRecords.take` gives: as long as its records are many, but iterated it gives few `Columns`."""

    def __init__(self, parts: Sequence[Columns]) -> None:
        self.parts = parts
        self.count = sum(len(part.offsets) for part in parts)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Columns]:
        return iter(self.parts)


def join(parts: Sequence[Columns]) -> Columns:
    """Put consecutive pieces of one partition together; bytes are copied only if they lie in several buffers."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0].data
    if all(part.data is first for part in parts):
        return Columns(first, *(np.concatenate(columns) for columns in zip(*(part[1:] for part in parts), strict=True)))
    size = 0
    pieces, moved = [], []
    for part in parts:
        # Only the bytes of these records: a piece may be a small rest of a large buffer.
        low = int(part.starts[0])
        length, high = _varint(part.data, int(part.starts[-1]))
        high += length
        shift = size - low
        pieces.append(part.data[low:high])
        ends = np.where(part.ends < 0, part.ends, part.ends + shift)
        moved.append((part.starts + shift, part.begins + shift, ends, part.offsets, part.timestamps))
        size += high - low
    return Columns(np.concatenate(pieces), *(np.concatenate(columns) for columns in zip(*moved, strict=True)))


def _varint(data: Bytes, pos: int) -> tuple[int, int]:
    value, pos = wire.read_varint(data, pos, len(data))
    return int(value), int(pos)


def record_details(data: Bytes, start: int) -> tuple[bytes | None, Headers]:
    """Key and headers of the record at `start`, which `wire.parse_records` has found sound."""
    _, pos = _varint(data, start)  # length
    pos += 1  # attributes
    _, pos = _varint(data, pos)  # timestamp
    _, pos = _varint(data, pos)  # offset
    key, pos = _field(data, pos)
    _, pos = _field(data, pos)
    count, pos = _varint(data, pos)
    headers: list[tuple[str, bytes | None]] = []
    for _ in range(count):
        name, pos = _field(data, pos)
        value, pos = _field(data, pos)
        # Names are UTF-8 by Kafka's definition; a producer that broke it must not hide its record.
        headers.append(((name or b"").decode("utf-8", "replace"), value))
    return key, tuple(headers)


def _field(data: Bytes, pos: int) -> tuple[bytes | None, int]:
    size, pos = _varint(data, pos)
    return (None, pos) if size < 0 else (data[pos : pos + size].tobytes(), pos + size)


class BatchRecords:
    """What one fetch brought for one partition; takes the place of kafka-python's ``Fetcher.PartitionRecords``.

    Attributes that kafka-python reads: ``topic_partition``, ``next_fetch_offset``, ``leader_epoch``, ``bytes_read``,
    and the truth value (False once all is taken). After an error every `take` raises it again: kafka-python's own class
    goes silent instead, and its ``poll`` then never returns.
    """

    def __init__(
        self,
        fetch_offset: int,
        tp: Any,
        records: Any,
        *,
        key_deserializer: Any = None,
        value_deserializer: Any = None,
        check_crcs: bool = True,
        isolation_level: int = 0,
        aborted_transactions: Sequence[Any] | None = None,
        metric_aggregator: Any = None,
        on_drain: Callable[[Any], None] = lambda _: None,
    ) -> None:
        if key_deserializer is not None or value_deserializer is not None:
            raise SettingsError("records are read as bytes: deserializers have no place here")
        self.topic_partition = tp
        self.fetch_offset = fetch_offset
        self.next_fetch_offset = fetch_offset
        self.leader_epoch = -1
        self.bytes_read = 0
        self.records_read = 0
        self._check_crcs = check_crcs
        self._read_committed = int(isolation_level) == 1
        self._aborted = deque(sorted(aborted_transactions or (), key=lambda txn: int(txn.first_offset)))
        self._aborted_producers: set[int] = set()
        self._metric_aggregator = metric_aggregator
        self._on_drain = on_drain
        self._buffer: Any = memoryview(records._buffer)  # noqa: SLF001  # of MemoryRecords, which would copy each batch
        self._data: Bytes = np.frombuffer(self._buffer, np.uint8)
        self._data.flags.writeable = False  # one type of array for the kernels, whatever the buffer was
        self._pos = 0
        self._chunk: Columns | None = None
        self._chunk_next = fetch_offset
        self._at = 0
        self._error: Exception | None = None
        self._drained = False

    def __bool__(self) -> bool:
        return not self._drained

    def drain(self) -> None:
        """Give up what is left."""
        if not self._drained:
            self._drained = True
            self._chunk = None
            self._data = np.empty(0, np.uint8)
            if self._metric_aggregator:
                self._metric_aggregator.record(self.topic_partition, self.bytes_read, self.records_read)
            self._on_drain(self)

    def take(self, n: int | None = None) -> Taken:
        """The next `n` records, or fewer."""
        parts: list[Columns] = []
        left = n if n is not None else 1 << 62
        while left > 0 and not self._drained:
            if self._chunk is None:
                try:
                    self._advance()
                except Exception as error:
                    self._error = error
                    if not parts:
                        raise
                    break  # what was read before it is good; the next call raises
                continue
            stop = min(self._at + left, len(self._chunk.offsets))
            part = self._chunk.rows(self._at, stop)
            parts.append(part)
            left -= stop - self._at
            self.records_read += stop - self._at
            self._at = stop
            if stop == len(self._chunk.offsets):
                self._chunk = None
                self.next_fetch_offset = self._chunk_next
            else:
                self.next_fetch_offset = int(part.offsets[-1]) + 1
        return Taken(parts)

    def _advance(self) -> None:
        """Go to the next batch: set `_chunk` if it has records, else move on; drain at the end."""
        if self._error is not None:
            raise self._error
        pos, buffer = self._pos, self._buffer
        if len(buffer) - pos < _PREFIX.size:
            self.drain()
            return
        base_offset, length = _PREFIX.unpack_from(buffer, pos)
        end = pos + _PREFIX.size + length
        if end > len(buffer):  # the broker cuts the last batch of a fetch anywhere
            self.drain()
            return
        if end - pos <= _MAGIC_AT:
            raise self._corrupt(base_offset, base_offset, "it is shorter than its header")
        magic = buffer[pos + _MAGIC_AT]
        if magic > 2:
            raise self._corrupt(base_offset, base_offset, f"its format {magic} is unknown")
        if magic < 2:
            read: tuple[Columns | None, int] = self._legacy(pos, end)
        else:
            read = self._batch(pos, end)
        chunk, next_offset = read
        self._pos = end
        self.bytes_read += end - pos
        if chunk is not None and len(chunk.offsets) and chunk.offsets[0] < self.next_fetch_offset:
            # The position lies inside this batch: the records before it have been read already.
            chunk = chunk.rows(int(np.searchsorted(chunk.offsets, self.next_fetch_offset)), len(chunk.offsets))
        next_offset = max(next_offset, self.next_fetch_offset)
        if chunk is None or not len(chunk.offsets):
            self.next_fetch_offset = next_offset
        else:
            self._chunk, self._chunk_next, self._at = chunk, next_offset, 0

    def _batch(self, pos: int, end: int) -> tuple[Columns | None, int]:
        """Read a batch of format 2: its records (None if it has none for us) and the offset after it."""
        if end - pos < _HEADER.size:
            base_offset, _ = _PREFIX.unpack_from(self._buffer, pos)
            raise self._corrupt(base_offset, base_offset, "it is shorter than its header")
        (base, _, epoch, _, crc, attributes, delta, first_time, max_time, producer, _, _, count) = _HEADER.unpack_from(
            self._buffer, pos
        )
        last = base + delta
        if not 0 <= base <= last < _LAST_OFFSET:
            raise self._corrupt(base, last, "its offsets are impossible")
        if self._check_crcs and crc32c.crc32c(self._buffer[pos + _CRC_FROM : end]) != crc:
            raise self._corrupt(base, last, "its checksum does not match")
        self.leader_epoch = epoch
        control = attributes & _CONTROL
        if self._read_committed and producer > _NO_PRODUCER:
            while self._aborted and self._aborted[0].first_offset <= last:
                self._aborted_producers.add(self._aborted.popleft().producer_id)
            if not control and attributes & _TRANSACTIONAL and producer in self._aborted_producers:
                return None, last + 1
        if control and not self._read_committed:
            return None, last + 1
        body = self._data[pos + _HEADER.size : end]
        codec = attributes & _CODEC
        if codec:
            data, begin, stop = self._decompressed(codec, body, base, last), 0, -1
        else:
            data, begin, stop = self._data, pos + _HEADER.size, end
        # A record takes 7 bytes at least, so that a wrong count cannot ask for more memory than the batch is large.
        stop = len(data) if stop < 0 else stop
        if count < 0 or count * 7 > stop - begin:
            raise self._corrupt(base, last, "its record count is impossible")
        table = np.empty((5, count), np.int64)
        chunk = Columns(data, *table)
        append_time = max_time if attributes & _APPEND_TIME else -1
        status = wire.parse_records(data, begin, stop, base, last, first_time, append_time, *table)
        if status != wire.OK:
            raise self._corrupt(base, last, _WHY[status])
        if control:
            if count and self._is_abort(chunk):
                self._aborted_producers.discard(producer)
            return None, last + 1
        return chunk, last + 1

    def _decompressed(self, codec: int, body: Bytes, base: int, last: int) -> Bytes:
        try:
            name, decode = DECODERS[codec]
        except KeyError:
            raise self._corrupt(base, last, f"its compression {codec} is unknown") from None
        try:
            return np.frombuffer(decode(body.tobytes()), np.uint8)
        except Exception as error:  # each codec has errors of its own
            raise self._corrupt(base, last, f"its {name} data cannot be decompressed: {error}") from error

    @staticmethod
    def _is_abort(chunk: Columns) -> bool:
        key, _ = chunk.details(0)
        return key is not None and len(key) >= 4 and int.from_bytes(key[2:4], "big") == _ABORT

    def _legacy(self, pos: int, end: int) -> tuple[Columns, int]:
        """Read a message (set) of formats 0 and 1, record by record: such topics are old, and rare."""
        base_offset, _ = _PREFIX.unpack_from(self._buffer, pos)
        try:
            batch = Legacy(self._buffer[pos:end], self._buffer[pos + _MAGIC_AT])
            sound = not self._check_crcs or batch.validate_crc()
            found = list(batch) if sound else []
            sound = sound and (not self._check_crcs or all(record.validate_crc() for record in found))
        except Exception as error:
            raise self._corrupt(base_offset, base_offset, f"it cannot be read: {error}") from error
        if not sound:
            raise self._corrupt(base_offset, base_offset, "its checksum does not match")
        offsets = [record.offset for record in found]
        if not all(a < b for a, b in pairwise([-1, *offsets, _LAST_OFFSET])):
            raise self._corrupt(base_offset, base_offset, _WHY[wire.BAD_OFFSET])
        blob = bytearray()
        table = np.empty((5, len(found)), np.int64)
        for i, record in enumerate(found):
            timestamp = -1 if record.timestamp is None else record.timestamp
            start = len(blob)
            blob += _as_record(record.key, record.value)
            value_end = len(blob) - 1  # one byte for "no headers" follows the value
            null = record.value is None
            table[:, i] = (
                start,
                value_end if null else value_end - len(record.value),
                -1 if null else value_end,
                record.offset,
                timestamp,
            )
        chunk = Columns(np.frombuffer(bytes(blob), np.uint8), *table)
        return chunk, int(chunk.offsets[-1]) + 1 if found else base_offset + 1

    def _corrupt(self, base: int, last: int, why: str) -> CorruptBatchError:
        name = f"{self.topic_partition.topic}-{self.topic_partition.partition}"
        return CorruptBatchError(
            f"the record batch of offsets {base} to {last} cannot be read: {why}",
            where=f"{name}@{max(base, self.next_fetch_offset)}",
            hint=f"Restore the partition from a replica, or go on from offset {last + 1} without these records",
        )


def _as_record(key: bytes | None, value: bytes | None) -> bytes:
    """Write a record of format 2 without timestamp, offset and headers, so that `record_details` reads it."""
    body = b"\0\0\0" + _as_field(key) + _as_field(value) + b"\0"
    return _as_varint(len(body)) + body


def _as_field(field: bytes | None) -> bytes:
    return _as_varint(-1) if field is None else _as_varint(len(field)) + field


def _as_varint(value: int) -> bytes:
    raw = (value << 1) ^ (value >> 63)
    out = bytearray()
    while raw > 0x7F:
        out.append(0x80 | raw & 0x7F)
        raw >>= 7
    out.append(raw)
    return bytes(out)


def compile_parser() -> None:
    """Run the parser of record batches once, so that numba's cache on disk holds it before somebody waits for it."""
    record = np.frombuffer(_as_record(b"k", b"v"), np.uint8)
    record.flags.writeable = False
    wire.parse_records(record, 0, len(record), 0, 0, 0, -1, *np.empty((5, 1), np.int64))
    record_details(record, 0)
