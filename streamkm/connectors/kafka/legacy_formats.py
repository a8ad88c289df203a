"""What others decode for us, kept from going round for ever or taking all memory where bytes are damaged."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Any

import lz4.frame  # type: ignore[import-untyped]
import snappy  # type: ignore[import-untyped]
import zstandard
from kafka.record.legacy_records import LegacyRecordBatch  # type: ignore[import-untyped]

CHUNK_BYTES = 1 << 20
"""Bytes that a decompressor gives at a time, at most."""
_INPUT_BYTES = 1 << 16
"""Bytes that a decompressor gets at a time: what it has not used, it copies."""
_MAX_SNAPPY_RATIO = 24
"""Snappy makes of a byte at most so many: what says that it is more has to be damaged, and is not given the memory."""
_XERIAL_MAGIC = b"\x82SNAPPY\0"
_MIN_MESSAGE_BYTES = 4
"""Bytes of a message of formats 0 and 1 before the first that is not its length."""

Chunks = Iterator[bytes]


def _input_chunks(data: memoryview) -> Iterator[memoryview]:
    return (data[at : at + _INPUT_BYTES] for at in range(0, len(data), _INPUT_BYTES))


def _gzip(data: memoryview) -> Chunks:
    member = zlib.decompressobj(wbits=31)
    for part in _input_chunks(data):
        left: Any = part
        while len(left):
            if member.eof:  # such files may come one after the other
                member = zlib.decompressobj(wbits=31)
            piece = member.decompress(left, CHUNK_BYTES)
            yield piece
            left = member.unused_data if member.eof else member.unconsumed_tail
            while len(piece) == CHUNK_BYTES and not (left or member.eof):  # it may hold more than it was given room for
                piece = member.decompress(b"", CHUNK_BYTES)
                yield piece
                left = member.unconsumed_tail
    if not member.eof:
        raise ValueError("it ends in the middle")


def _snappy(data: memoryview) -> Chunks:
    if data[: len(_XERIAL_MAGIC)] != _XERIAL_MAGIC:
        yield from _snappy_block(data)
        return
    at = 16
    while at < len(data):
        start, at = at + 4, at + 4 + int.from_bytes(data[at : at + 4])
        yield from _snappy_block(data[start:at])


def _snappy_block(data: memoryview) -> Chunks:
    told = at = 0
    while at < min(5, len(data)):
        told |= (data[at] & 0x7F) << 7 * at
        at += 1
        if data[at - 1] < 0x80:
            break
    if told > _MAX_SNAPPY_RATIO * len(data):
        raise ValueError(f"{len(data)} bytes cannot become {told}")
    block = memoryview(snappy.decompress(data.tobytes()))
    for start in range(0, len(block), CHUNK_BYTES):
        yield bytes(block[start : start + CHUNK_BYTES])


def _lz4(data: memoryview) -> Chunks:
    """In pieces, whatever size its header tells; such frames also come one after the other."""
    frame = lz4.frame.LZ4FrameDecompressor()
    for part in _input_chunks(data):
        left: Any = part
        while len(left) or not (frame.needs_input or frame.eof):
            if frame.eof:
                frame = lz4.frame.LZ4FrameDecompressor()
            yield frame.decompress(left, max_length=CHUNK_BYTES)
            left = (frame.unused_data or b"") if frame.eof else b""
    if not frame.eof:
        raise ValueError("it ends in the middle")


def _zstd(data: memoryview) -> Chunks:
    size = min(16 * len(data), CHUNK_BYTES)  # each read asks for the memory of all it may give
    with zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True) as reader:
        while piece := reader.read(size):
            yield piece
            size = min(4 * size, CHUNK_BYTES)


DECOMPRESSORS: dict[int, tuple[str, Callable[[memoryview], Chunks]]] = {
    1: ("gzip", _gzip),
    2: ("snappy", _snappy),
    3: ("lz4", _lz4),
    4: ("zstd", _zstd),
}
"""Names and decompressors by the number that a batch has for them."""


class LegacyMessages(LegacyRecordBatch):  # type: ignore[misc]
    """Messages of formats 0 and 1; kafka-python's own goes round for ever where one ends before it begins."""

    def _read_header(self, pos: int) -> tuple[Any, ...]:
        header: tuple[Any, ...] = super()._read_header(pos)
        if header[1] < _MIN_MESSAGE_BYTES:
            raise ValueError(f"a message has the length {header[1]}")
        return header
