"""Record batches as columns, without a Python object per record.

kafka-python creates a ``ConsumerRecord`` for each record (measured: about 0.2M records/s on one core). Its fetcher
passes each fetched piece of a partition to the class ``fetcher.PartitionRecords``, calls ``take(n)`` on the object,
counts the records with ``len`` and sets the partition's position to its ``next_fetch_offset``. `BatchRecords` replaces
that class: it returns the same records, at the same positions, as arrays. The hook is private, so it is used only with
the versions in `sockets.SUPPORTED_VERSIONS`, for which a test compares both ways record for record; other versions use
the public API.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import Any, NamedTuple

import crc32c
import numpy as np
from kafka.record.legacy_records import LegacyRecordBatch  # type: ignore[import-untyped]
from numpy.typing import NDArray

from streamkm.connectors.kafka.decompression import DECOMPRESSORS, CompressedBatch, DecompressionBuffer
from streamkm.connectors.kafka.oversized import decompress_more, truncate_record
from streamkm.connectors.kafka.record_format import (
    STATUS_MESSAGES,
    InvalidBatchError,
    encode_record,
    read_varint,
    record_details,
)
from streamkm.errors import CorruptBatchError, SettingsError
from streamkm.kernels.decode import record_batch
from streamkm.records import Bytes, Headers, TopicPartition

# Kafka's RecordBatch header: base offset, length, leader epoch, magic, crc, attributes, last offset delta, base
# timestamp, max timestamp, producer id, producer epoch, base sequence, record count.
_HEADER = struct.Struct(">qiibIhiqqqhii")
_PREFIX = struct.Struct(">qi")  # start of a batch of any format: offset, length of the rest
_MAGIC_AT = 16
_CRC_FROM = 21  # the checksum covers a batch from this byte
_CODEC, _APPEND_TIME, _TRANSACTIONAL, _CONTROL = 0x07, 0x08, 0x10, 0x20
_NO_PRODUCER = -1
_LAST_OFFSET = (1 << 63) - 1
_ABORT = 0  # type of an abort marker; a commit marker is 1
_MIN_RECORD_BYTES = 7  # bytes of an empty record
_MIN_MESSAGE_BYTES = 4  # bytes of a message of formats 0 and 1 before the first field that is not its length
_NOT_TRUNCATED: Mapping[int, int] = MappingProxyType({})


class RecordColumns(NamedTuple):
    """Consecutive records as columns; row i of each array is a record.

    Attributes
    ----------
    data
        Bytes that hold the records.
    starts
        (n,) index of each record in `data`.
    begins, ends
        (n,) start and end of each value in `data`; the end is -1 for a null value.
    offsets
        (n,) offsets.
    timestamps
        (n,) timestamps, ms since the epoch; -1 for none.
    cut
        Original size in bytes of truncated records, by offset.
    """

    data: Bytes
    starts: NDArray[np.int64]
    begins: NDArray[np.int64]
    ends: NDArray[np.int64]
    offsets: NDArray[np.int64]
    timestamps: NDArray[np.int64]
    cut: Mapping[int, int] = _NOT_TRUNCATED

    def rows(self, a: int, b: int) -> RecordColumns:
        """Rows [a, b), as views."""
        return columns(self.data, (column[a:b] for column in self.table), self.cut)

    @property
    def table(self) -> tuple[NDArray[np.int64], ...]:
        """All columns but `data`, each of shape (n,) for n records."""
        return self[1:6]

    def details(self, i: int) -> tuple[bytes | None, Headers]:
        """Key and headers of row i."""
        return record_details(self.data, int(self.starts[i]))


def columns(data: Bytes, table: Iterable[NDArray[np.int64]], cut: Mapping[int, int] = _NOT_TRUNCATED) -> RecordColumns:
    """Combine (n,) columns of n records, in the order of `RecordColumns`, with their (bytes,) data."""
    starts, begins, ends, offsets, timestamps = table
    return RecordColumns(data, starts, begins, ends, offsets, timestamps, cut)


class FetchedRecords:
    """Result of `BatchRecords.take`: its length is a number of records, and its items are `RecordColumns`.

    Parameters
    ----------
    parts
        The records.
    counts
        Length to report; None for the number of records. kafka-python repeats `take` until it has the requested number,
        so the requested number is reported when the decompression buffer is full and no more records can follow.
    """

    def __init__(self, parts: Sequence[RecordColumns], counts: int | None = None) -> None:
        self.parts = parts
        self.count = sum(len(part.offsets) for part in parts) if counts is None else counts

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[RecordColumns]:
        return iter(self.parts)


def join(parts: Sequence[RecordColumns]) -> RecordColumns:
    """Concatenate consecutive parts of one partition; bytes are copied only if the parts have different buffers."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0].data
    cut = {offset: size for part in parts for offset, size in part.cut.items()}
    if all(part.data is first for part in parts):
        tables = zip(*(part.table for part in parts), strict=True)
        return columns(first, map(np.concatenate, tables), cut)
    size = 0
    pieces, moved = [], []
    for part in parts:
        # Only the bytes of these records: a part may be a small piece of a large buffer.
        low = int(part.starts[0])
        length, high = read_varint(part.data, int(part.starts[-1]))
        high += length
        shift = size - low
        pieces.append(part.data[low:high])
        ends = np.where(part.ends < 0, part.ends, part.ends + shift)
        moved.append((part.starts + shift, part.begins + shift, ends, part.offsets, part.timestamps))
        size += high - low
    return columns(np.concatenate(pieces), map(np.concatenate, zip(*moved, strict=True)), cut)


class BatchRecords:
    """The records that one fetch returned for one partition; replaces kafka-python's ``Fetcher.PartitionRecords``.

    Attributes that kafka-python reads: ``topic_partition``, ``next_fetch_offset``, ``leader_epoch``, ``bytes_read``,
    and the truth value (False once all records are taken). After an error every `take` raises it again: kafka-python's
    own class returns nothing instead, and its ``poll`` then never ends.

    Compressed batches are decompressed in chunks, so a position may lie inside of a batch that is not completely
    decompressed. The records read before an error do not depend on the sizes of `take`: all records before the first
    byte that cannot be read, and none of a batch with a wrong checksum.
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
        buffer: DecompressionBuffer | None = None,
    ) -> None:
        if key_deserializer is not None or value_deserializer is not None:
            raise SettingsError("records are read as bytes: deserializers are not supported")
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
        self._buffer: Any = memoryview(records._buffer)  # noqa: SLF001  # MemoryRecords would copy each batch
        self._data: Bytes = np.frombuffer(self._buffer, np.uint8)
        self._data.flags.writeable = False  # one array type for the kernels
        self._decompression = buffer if buffer is not None else DecompressionBuffer()
        self._each_take_is_a_poll = buffer is None
        self._chunks = self._read()
        self._limit = 0
        self._next = fetch_offset
        self._compressed: CompressedBatch | None = None
        self._error: Exception | None = None
        self._drained = False

    def __bool__(self) -> bool:
        return not self._drained

    def drain(self) -> None:
        """Discard the remaining records."""
        if not self._drained:
            self._drained = True
            self._chunks.close()
            self._compressed = None
            self._data = np.empty(0, np.uint8)
            if self._metric_aggregator:
                self._metric_aggregator.record(self.topic_partition, self.bytes_read, self.records_read)
            self._on_drain(self)

    def take(self, n: int | None = None) -> FetchedRecords:
        """The next records, at most `n` and as many as the decompression buffer holds.

        Parameters
        ----------
        n
            Maximum number of records; None for all.

        Raises
        ------
        CorruptBatchError
            The next batch cannot be read.
        """
        if self._error is not None:
            raise self._error
        if self._each_take_is_a_poll:
            self._decompression.reset()
        parts: list[RecordColumns] = []
        self._limit = requested = n if n is not None else 1 << 62
        if self._compressed is not None and not self._decompression.full:
            self._compressed.resume()
        while self._limit > 0 and not self._drained:
            if self._decompression.full:
                break
            try:
                chunk = next(self._chunks)
            except StopIteration:
                self.drain()
                break
            except Exception as error:
                self._error = error
                if not parts:
                    raise
                break  # records before it are valid; the next call raises
            if chunk is None:
                break
            parts.append(chunk)
            self._limit -= len(chunk.offsets)
            self.records_read += len(chunk.offsets)
            self.next_fetch_offset = self._next
        if self._compressed is not None:
            self._compressed.suspend()
        return FetchedRecords(parts, requested if self._decompression.full else None)

    def _read(self) -> Generator[RecordColumns | None, None, None]:
        """All records, at most `_limit` at a time; None when the decompression buffer of a poll is full.

        With each part, `_next` becomes the offset behind its last record.
        """
        buffer, pos = self._buffer, 0
        while len(buffer) - pos >= _PREFIX.size:
            base_offset, length = _PREFIX.unpack_from(buffer, pos)
            end = pos + _PREFIX.size + length
            if end > len(buffer):  # the last batch of a fetch may be incomplete
                return
            if end - pos <= _MAGIC_AT:
                raise self._corrupt(base_offset, base_offset, "it is shorter than its header", end)
            magic = buffer[pos + _MAGIC_AT]
            if magic > 2:
                raise self._corrupt(base_offset, base_offset, f"its format {magic} is unknown", end)
            yield from (self._legacy if magic < 2 else self._batch)(pos, end)
            self.bytes_read += end - pos
            pos = end

    def _skip_to(self, position: int) -> None:
        """Advance the position over offsets without records."""
        self.next_fetch_offset = max(self.next_fetch_offset, position)

    def _batch(self, pos: int, end: int) -> Iterator[RecordColumns | None]:
        """Read a batch of format 2."""
        if end - pos < _HEADER.size:
            base_offset, _ = _PREFIX.unpack_from(self._buffer, pos)
            raise self._corrupt(base_offset, base_offset, "it is shorter than its header", end)
        (base, _, epoch, _, crc, attributes, delta, first_time, max_time, producer, _, _, count) = _HEADER.unpack_from(
            self._buffer, pos
        )
        last = base + delta
        if not 0 <= base <= last < _LAST_OFFSET:
            raise self._corrupt(base, last, "its offsets are impossible", end)
        if self._check_crcs and crc32c.crc32c(self._buffer[pos + _CRC_FROM : end]) != crc:
            raise self._corrupt(base, last, "its checksum does not match", end)
        self.leader_epoch = epoch
        control = attributes & _CONTROL
        if self._read_committed and producer > _NO_PRODUCER:
            while self._aborted and self._aborted[0].first_offset <= last:
                self._aborted_producers.add(self._aborted.popleft().producer_id)
            if not control and attributes & _TRANSACTIONAL and producer in self._aborted_producers:
                self._skip_to(last + 1)
                return
        if control and not self._read_committed:
            self._skip_to(last + 1)
            return
        if count < 0:
            raise self._corrupt(base, last, "its record count is impossible", end)
        begin = pos + _HEADER.size
        codec = attributes & _CODEC
        append_time = max_time if attributes & _APPEND_TIME else -1
        batch = _BatchCursor(base, last, first_time, append_time, count, 0 if control else self.next_fetch_offset)
        try:
            rows = self._compressed_rows(batch, codec, begin, end) if codec else self._plain_rows(batch, begin, end)
            for chunk in rows:
                if chunk is None or not control:
                    yield chunk
                elif _is_abort(chunk):
                    self._aborted_producers.discard(producer)
        except InvalidBatchError as broken:
            raise self._corrupt(base, last, str(broken), end) from broken.__cause__
        self._skip_to(last + 1)

    def _plain_rows(self, batch: _BatchCursor, at: int, end: int) -> Iterator[RecordColumns | None]:
        """Records of an uncompressed batch."""
        # A record has at least 7 bytes; a wrong count must not allocate more memory than the batch has bytes.
        if batch.left * _MIN_RECORD_BYTES > end - at:
            raise InvalidBatchError("its record count is impossible")
        while batch.left:
            status, chunk, stop = batch.parse(self._data, at, end, self._limit)
            self._decompression.used += stop - at
            at = stop
            if chunk is not None:
                self._next = batch.position(sound=at == end)
                yield chunk
            if status != record_batch.OK:
                raise InvalidBatchError(STATUS_MESSAGES[status])
            if batch.left and self._decompression.full:
                yield None
        if at != end:
            raise InvalidBatchError(STATUS_MESSAGES[record_batch.TRAILING_BYTES])

    def _compressed_rows(self, batch: _BatchCursor, codec: int, begin: int, end: int) -> Iterator[RecordColumns | None]:
        """Records of a compressed batch, decompressed as far as the buffer allows."""
        if codec not in DECOMPRESSORS:
            raise InvalidBatchError(f"its compression {codec} is unknown")
        name, decode = DECOMPRESSORS[codec]
        compressed = self._compressed = CompressedBatch(self._decompression, decode(self._buffer[begin:end]), name)
        try:
            if batch.left:
                yield from decompress_more(compressed)
            while batch.left:
                status, chunk, at = batch.parse(compressed.data, compressed.at, compressed.end, self._limit)
                compressed.advance(at)
                if chunk is not None:
                    yield self._emit(batch, compressed, chunk)
                if status == record_batch.UNFINISHED:
                    compressed.discard()  # bytes that were parsed before
                    length = compressed.length()
                    if length is None or length <= self._decompression.max_record_bytes:
                        yield from decompress_more(compressed)
                        continue
                    size = yield from truncate_record(compressed)
                    status, chunk, at = batch.parse(compressed.data, compressed.at, compressed.end, 1)
                    compressed.advance(at)
                    if chunk is not None:
                        cut = {int(chunk.offsets[0]): size} if size else chunk.cut
                        yield self._emit(batch, compressed, chunk._replace(cut=cut))
                if status not in {record_batch.OK, record_batch.UNFINISHED}:
                    raise InvalidBatchError(STATUS_MESSAGES[status])
            if compressed.at != compressed.end or compressed.decompress_more():
                raise InvalidBatchError(STATUS_MESSAGES[record_batch.TRAILING_BYTES])
        finally:
            self._compressed = None

    def _emit(self, batch: _BatchCursor, compressed: CompressedBatch, chunk: RecordColumns) -> RecordColumns:
        """Mark a part as returned; after the last record of a valid batch the position is behind the batch."""
        compressed.retain()
        self._next = batch.position(
            sound=not batch.left and compressed.at == compressed.end and not compressed.decompress_more()
        )
        return chunk

    def _legacy(self, pos: int, end: int) -> Iterator[RecordColumns]:
        """Read a message (set) of formats 0 and 1, record by record: such topics are old and rare."""
        base_offset, _ = _PREFIX.unpack_from(self._buffer, pos)
        try:
            batch = _LegacyMessages(self._buffer[pos:end], self._buffer[pos + _MAGIC_AT])
            sound = not self._check_crcs or batch.validate_crc()
            found = list(batch) if sound else []
            sound = sound and (not self._check_crcs or all(record.validate_crc() for record in found))
        except Exception as error:
            raise self._corrupt(base_offset, base_offset, f"it cannot be read: {error}", end) from error
        if not sound:
            raise self._corrupt(base_offset, base_offset, "its checksum does not match", end)
        offsets = [record.offset for record in found]
        if not all(a < b for a, b in pairwise([-1, *offsets, _LAST_OFFSET])):
            raise self._corrupt(base_offset, base_offset, STATUS_MESSAGES[record_batch.BAD_OFFSET], end)
        blob = bytearray()
        table = np.empty((5, len(found)), np.int64)
        for i, record in enumerate(found):
            timestamp = -1 if record.timestamp is None else record.timestamp
            start = len(blob)
            blob += encode_record(record.key, record.value)
            value_end = len(blob) - 1  # one byte for "no headers" follows the value
            null = record.value is None
            table[:, i] = (
                start,
                value_end if null else value_end - len(record.value),
                -1 if null else value_end,
                record.offset,
                timestamp,
            )
        chunk = columns(np.frombuffer(bytes(blob), np.uint8), table)
        at, n = int(np.searchsorted(chunk.offsets, self.next_fetch_offset)), len(found)
        while at < n:
            here = chunk.rows(at, min(at + self._limit, n))
            at += len(here.offsets)
            self._next = int(here.offsets[-1]) + 1
            yield here
        self._skip_to(int(chunk.offsets[-1]) + 1 if found else base_offset + 1)

    def _corrupt(self, base: int, last: int, why: str, end: int) -> CorruptBatchError:
        """The error for the batch that ends at `end`, with the offset range that is lost with it."""
        stop = last + 1
        if 0 < end <= len(self._buffer) - _PREFIX.size:  # a damaged header does not change where it starts
            following, _ = _PREFIX.unpack_from(self._buffer, end)
            stop = following if base < following < _LAST_OFFSET else stop
        at = max(base, self.next_fetch_offset)
        tp = TopicPartition(*self.topic_partition)
        return CorruptBatchError(
            f"the record batch of offsets {base} to {last} cannot be read: {why}",
            where=f"{tp}@{at}",
            hint="Restore the partition from a replica; or give --on-data-loss skip to continue behind it, at "
            f"offset {stop}, and record these offsets as lost",
            lost=(*tp, at, stop) if at < stop else None,
        )


class _BatchCursor:
    """Progress within a batch of format 2.

    Parameters
    ----------
    base, last, base_time, append_time
        As for `record_batch.parse_records`.
    left
        Number of records not parsed yet.
    start
        Records with smaller offsets were read before; the position may lie inside of a batch.
    """

    def __init__(self, base: int, last: int, base_time: int, append_time: int, left: int, start: int) -> None:
        self.base, self.last, self.base_time, self.append_time = base, last, base_time, append_time
        self.left, self.start = left, start
        self.previous = base - 1

    def position(self, *, sound: bool) -> int:
        """The offset behind the last parsed record; behind the batch if it was the last one of a valid batch."""
        return self.last + 1 if sound and not self.left else self.previous + 1

    def parse(self, data: Bytes, at: int, end: int, most: int) -> tuple[int, RecordColumns | None, int]:
        """Parse up to `most` records from ``data[at:end]``; returns status, new records and end index."""
        n = min(self.left, most, (end - at) // _MIN_RECORD_BYTES + 1)
        table = np.empty((5, n), np.int64)
        times = self.base_time, self.append_time
        status, rows, stop = record_batch.parse_records(
            data, at, end, self.base, self.previous, self.last, *times, table
        )
        status, rows, stop = int(status), int(rows), int(stop)
        if rows < n // 2:
            table = table[:, :rows].copy()
        return status, self._unread(columns(data, table[:, :rows])), stop

    def _unread(self, chunk: RecordColumns) -> RecordColumns | None:
        n = len(chunk.offsets)
        if not n:
            return None
        self.left -= n
        self.previous = int(chunk.offsets[-1])
        if chunk.offsets[0] >= self.start:
            return chunk
        first = int(np.searchsorted(chunk.offsets, self.start))
        return chunk.rows(first, n) if first < n else None


class _LegacyMessages(LegacyRecordBatch):  # type: ignore[misc]
    """Messages of formats 0 and 1; kafka-python's class loops forever if a length is less than the header's."""

    def _read_header(self, pos: int) -> tuple[Any, ...]:
        header: tuple[Any, ...] = super()._read_header(pos)
        if header[1] < _MIN_MESSAGE_BYTES:
            raise ValueError(f"a message has the length {header[1]}")
        return header


def _is_abort(chunk: RecordColumns) -> bool:
    key, _ = chunk.details(0)
    return key is not None and len(key) >= 4 and int.from_bytes(key[2:4], "big") == _ABORT


def compile_parser() -> None:
    """Compile the parser of record batches, or load it from numba's cache."""
    record = np.frombuffer(encode_record(b"k", b"v"), np.uint8)
    record.flags.writeable = False
    record_batch.parse_records(record, 0, len(record), 0, -1, 0, 0, -1, np.empty((5, 1), np.int64))
    record_details(record, 0)
