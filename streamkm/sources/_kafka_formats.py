"""What others decode for us, kept from going round for ever or taking all memory where bytes are damaged."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Iterator
from functools import partial
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


Pieces = Iterator[bytes]


def _gzip(data: bytes) -> Pieces:
    while data:  # such files may come one after the other
        member = zlib.decompressobj(wbits=31)
        yield member.decompress(data, MOST + 1)
        if not member.eof:
            raise ValueError("it ends in the middle")
        data = member.unused_data


def _snappy(data: bytes) -> Pieces:
    if not data.startswith(_XERIAL):
        yield _snappy_block(data)
        return
    at = 16
    while at < len(data):
        start, at = at + 4, at + 4 + int.from_bytes(data[at : at + 4])
        yield _snappy_block(data[start:at])


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


def _lz4(data: bytes) -> Pieces:
    """In pieces, whatever size its header tells; such frames also come one after the other."""
    while data:
        frame = lz4.frame.LZ4FrameDecompressor()
        while not frame.eof:
            piece = frame.decompress(data, max_length=_PIECE)
            if not (piece or data or frame.eof):
                raise ValueError("it ends in the middle")
            yield piece
            data = b""
        data = frame.unused_data or b""


def _zstd(data: bytes) -> Pieces:
    with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data), read_across_frames=True) as reader:
        yield from iter(partial(reader.read, min(16 * len(data), _PIECE)), b"")


def _whole(decompress: Callable[[bytes], Pieces], data: bytes) -> bytes:
    kept, size = [], 0
    for piece in decompress(data):
        size += len(piece)
        if size > MOST:
            raise ValueError(f"it becomes more than {MOST >> 20} MiB")
        kept.append(piece)
    return b"".join(kept)


DECODERS: dict[int, tuple[str, Callable[[bytes], bytes]]] = {
    1: ("gzip", partial(_whole, _gzip)),
    2: ("snappy", partial(_whole, _snappy)),
    3: ("lz4", partial(_whole, _lz4)),
    4: ("zstd", partial(_whole, _zstd)),
}
"""Names and decompressors by the number that a batch has for them."""


class Legacy(LegacyRecordBatch):  # type: ignore[misc]
    """Messages of formats 0 and 1; kafka-python's own goes round for ever where one ends before it begins."""

    def _read_header(self, pos: int) -> tuple[Any, ...]:
        header: tuple[Any, ...] = super()._read_header(pos)
        if header[1] < _SHORTEST:
            raise ValueError(f"a message has the length {header[1]}")
        return header
