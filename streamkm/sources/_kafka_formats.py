"""What others decode for us, kept from going round for ever or taking all memory where bytes are damaged."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from typing import Any

import lz4.frame  # type: ignore[import-untyped]
import snappy  # type: ignore[import-untyped]
import zstandard
from kafka.record.legacy_records import LegacyRecordBatch  # type: ignore[import-untyped]

MOST = 1 << 28
"""Bytes that a batch may have decompressed. A producer counts its records before it compresses them, and sends 1 MB."""
_DENSEST = 24
"""Snappy makes of a byte at most so many: what says that it is more has to be damaged, and is not given the memory."""
_XERIAL = b"\x82SNAPPY\0"
_PIECE = 1 << 20
_SHORTEST = 4
"""Bytes of a message of formats 0 and 1 before the first that is not its length."""


def _gzip(data: bytes) -> bytes:
    pieces, size = [], 0
    while data and size <= MOST:  # such files may come one after the other
        member = zlib.decompressobj(wbits=31)
        pieces.append(member.decompress(data, MOST + 1))
        size += len(pieces[-1])
        if not member.eof and size <= MOST:
            raise ValueError("it ends in the middle")
        data = member.unused_data
    return _bounded(b"".join(pieces))


def _snappy(data: bytes) -> bytes:
    if not data.startswith(_XERIAL):
        return _snappy_block(data)
    blocks, at, size = [], 16, 0
    while at < len(data):
        at += 4
        stop = at + int.from_bytes(data[at - 4 : at])
        blocks.append(_snappy_block(data[at:stop]))
        size += len(blocks[-1])
        if size > MOST:
            break
        at = stop
    return _bounded(b"".join(blocks))


def _snappy_block(data: bytes) -> bytes:
    told = at = 0
    while at < min(5, len(data)):
        told |= (data[at] & 0x7F) << 7 * at
        at += 1
        if data[at - 1] < 0x80:
            break
    if told > min(_DENSEST * len(data), MOST):
        raise ValueError(f"{len(data)} bytes cannot become {told}")
    return bytes(snappy.decompress(data))


def _lz4(data: bytes) -> bytes:
    """In pieces, whatever size its header tells; such frames also come one after the other."""
    pieces, size = [], 0
    while data:
        frame = lz4.frame.LZ4FrameDecompressor()
        while not frame.eof:
            pieces.append(frame.decompress(data, max_length=_PIECE))
            size += len(pieces[-1])
            if size > MOST or not (pieces[-1] or data or frame.eof):
                break
            data = b""
        if not frame.eof and size <= MOST:
            raise ValueError("it ends in the middle")
        data = frame.unused_data or b"" if size <= MOST else b""
    return _bounded(b"".join(pieces))


def _zstd(data: bytes) -> bytes:
    with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data), read_across_frames=True) as reader:
        pieces, size, piece = [], 0, min(16 * len(data), _PIECE)
        while size <= MOST and (read := reader.read(piece)):
            pieces.append(read)
            size += len(read)
    return _bounded(b"".join(pieces))


def _bounded(data: bytes) -> bytes:
    if len(data) > MOST:
        raise ValueError(f"it becomes more than {MOST >> 20} MiB")
    return data


DECODERS: dict[int, tuple[str, Callable[[bytes], bytes]]] = {
    1: ("gzip", _gzip),
    2: ("snappy", _snappy),
    3: ("lz4", _lz4),
    4: ("zstd", _zstd),
}
"""Names and decompressors by the number that a batch has for them."""


class Legacy(LegacyRecordBatch):  # type: ignore[misc]
    """Messages of formats 0 and 1; kafka-python's own goes round for ever where one ends before it begins."""

    def _read_header(self, pos: int) -> tuple[Any, ...]:
        header: tuple[Any, ...] = super()._read_header(pos)
        if header[1] < _SHORTEST:
            raise ValueError(f"a message has the length {header[1]}")
        return header
