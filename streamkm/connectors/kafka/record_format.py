"""Parsing and encoding of single records in Kafka's format 2."""

from __future__ import annotations

from collections.abc import Sequence

from streamkm.kernels.decode import record_batch
from streamkm.records import Bytes, Headers

STATUS_MESSAGES = {
    record_batch.TRUNCATED: "its records end in the middle",
    record_batch.UNFINISHED: "its records end in the middle",
    record_batch.BAD_VARINT: "a record has a number of more than 64 bits",
    record_batch.BAD_LENGTH: "a record has an impossible length",
    record_batch.TRAILING_BYTES: "bytes are left after its last record",
    record_batch.BAD_OFFSET: "its offsets do not increase",
}
"""Message for each status of `record_batch.parse_records`."""


class InvalidBatchError(Exception):
    """The rest of a batch cannot be read."""


def read_varint(data: Bytes, pos: int) -> tuple[int, int]:
    """Parse a zigzag varint at `pos` of (n,) bytes; returns its value and the index behind it."""
    value, pos = record_batch.read_varint(data, pos, len(data))
    return int(value), int(pos)


def record_details(data: Bytes, start: int) -> tuple[bytes | None, Headers]:
    """Parse key and headers of the record at `start` of (n,) bytes, which must be valid."""
    _, pos = read_varint(data, start)  # length
    pos += 1  # attributes
    _, pos = read_varint(data, pos)  # timestamp
    _, pos = read_varint(data, pos)  # offset
    key, pos = _field(data, pos)
    _, pos = _field(data, pos)
    count, pos = read_varint(data, pos)
    headers: list[tuple[str, bytes | None]] = []
    for _ in range(count):
        name, pos = _field(data, pos)
        value, pos = _field(data, pos)
        # Header names should be UTF-8; a producer that violates this must not make its record unreadable.
        headers.append(((name or b"").decode("utf-8", "replace"), value))
    return key, tuple(headers)


def _field(data: Bytes, pos: int) -> tuple[bytes | None, int]:
    size, pos = read_varint(data, pos)
    return (None, pos) if size < 0 else (data[pos : pos + size].tobytes(), pos + size)


def encode_record(
    key: bytes | None, value: bytes | None, headers: Sequence[bytes | None] = (), time_delta: int = 0, delta: int = 0
) -> bytes:
    """Encode a record.

    Parameters
    ----------
    key, value
        None is encoded as null.
    headers
        Names and values in turn.
    time_delta, delta
        Timestamp and offset relative to the batch's base.
    """
    body = b"\0" + _encode_varint(time_delta) + _encode_varint(delta) + _encode_field(key) + _encode_field(value)
    body += _encode_varint(len(headers) // 2) + b"".join(map(_encode_field, headers))
    return _encode_varint(len(body)) + body


def _encode_field(field: bytes | None) -> bytes:
    return _encode_varint(-1) if field is None else _encode_varint(len(field)) + field


def _encode_varint(value: int) -> bytes:
    raw = (value << 1) ^ (value >> 63)
    out = bytearray()
    while raw > 0x7F:
        out.append(0x80 | raw & 0x7F)
        raw >>= 7
    out.append(raw)
    return bytes(out)
