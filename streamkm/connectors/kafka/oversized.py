"""Truncates oversized records of compressed batches while they are decompressed.

Each step is a generator that yields None when the buffer of a poll is full, and continues in the next poll.
"""

from __future__ import annotations

from collections.abc import Generator

from streamkm.connectors.kafka.decompression import CompressedBatch
from streamkm.connectors.kafka.record_format import STATUS_MESSAGES, InvalidBatchError, encode_record
from streamkm.kernels.decode import record_batch
from streamkm.records import MAX_KEPT_BYTES

_LONGEST_VARINT = 10


def decompress_more(batch: CompressedBatch) -> Generator[None, None, None]:
    """Decompress some more, in the next poll if the buffer is full.

    Raises
    ------
    InvalidBatchError
        The batch ends inside a record.
    """
    while batch.buffer.full:
        yield None
    if not batch.decompress_more():
        raise InvalidBatchError(STATUS_MESSAGES[record_batch.UNFINISHED])


def truncate_record(batch: CompressedBatch) -> Generator[None, None, int]:
    """Replace the next record, which is longer than `DecompressionBuffer.max_record_bytes`, by a truncated one.

    A value of at most `DecompressionBuffer.max_value_bytes` bytes is kept whole, of a longer one `MAX_KEPT_BYTES`. A
    key or headers of more than `DecompressionBuffer.max_record_bytes` bytes are truncated as well.

    Returns
    -------
    int
        Original size in bytes of the value if it was truncated, else of the record if key or headers were; 0 if neither
        was.

    Raises
    ------
    InvalidBatchError
        The record is damaged, or the batch ends inside it.
    """
    buffer = batch.buffer
    length = yield from _read_varint(batch)
    stop = batch.read + length
    yield from _read_field(batch, 1, 1, stop)  # attributes: unused by Kafka
    time_delta = yield from _read_varint(batch)
    delta = yield from _read_varint(batch)
    size = yield from _read_varint(batch)
    key = yield from _read_field(batch, size, buffer.max_record_bytes, stop)
    cut = length if size > buffer.max_record_bytes else 0
    size = yield from _read_varint(batch)
    kept = size if size <= buffer.max_value_bytes else MAX_KEPT_BYTES
    value = yield from _read_field(batch, size, kept, stop)
    cut = size if size > kept else cut
    count = yield from _read_varint(batch)
    headers: list[bytes | None] = []
    left = buffer.max_record_bytes
    for _ in range(count):
        pair = []
        for _ in range(2):
            size = yield from _read_varint(batch)
            left -= max(0, size) + 1
            pair.append((yield from _read_field(batch, size, max(0, left), stop)))
        if left < 0:
            cut = cut or length
            yield from _read_field(batch, stop - batch.read, 0, stop)
            break
        headers += pair
    if batch.read != stop or count < 0:
        raise InvalidBatchError(STATUS_MESSAGES[record_batch.BAD_LENGTH])
    batch.replace(encode_record(key, value, headers, time_delta, delta))
    return cut


def _read_varint(batch: CompressedBatch) -> Generator[None, None, int]:
    """Parse the next varint."""
    while batch.end - batch.at < _LONGEST_VARINT:
        while batch.buffer.full:
            yield None
        if not batch.decompress_more():
            break
    value, at = record_batch.read_varint(batch.data, batch.at, batch.end)
    if at < 0:
        raise InvalidBatchError(STATUS_MESSAGES[-int(at)])
    batch.advance(int(at))
    return int(value)


def _read_field(batch: CompressedBatch, size: int, kept: int, stop: int) -> Generator[None, None, bytes | None]:
    """Read a field of `size` bytes and return its first `kept` bytes; None for a negative size."""
    if size > stop - batch.read:
        raise InvalidBatchError(STATUS_MESSAGES[record_batch.BAD_LENGTH])
    found, left = bytearray(), size
    while left > 0:
        here = min(left, batch.end - batch.at)
        take = min(here, kept - len(found))
        found += batch.data[batch.at : batch.at + take].tobytes()
        batch.advance(batch.at + here)
        left -= here
        if left:
            batch.discard()
            yield from decompress_more(batch)
    return None if size < 0 else bytes(found)
