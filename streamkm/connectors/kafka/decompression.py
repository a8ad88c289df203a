"""Bounded decompression of record batches."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Any

import lz4.frame  # type: ignore[import-untyped]
import numpy as np
import snappy  # type: ignore[import-untyped]
import zstandard

from streamkm.connectors.kafka.record_format import InvalidBatchError
from streamkm.kernels.decode import record_batch
from streamkm.records import Bytes

CHUNK_BYTES = 1 << 20
"""Maximum output of a decompressor at a time, bytes."""
_INPUT_BYTES = 1 << 16
"""Input of a decompressor at a time, bytes; it copies what it has not consumed."""
_MAX_SNAPPY_RATIO = 24
"""Maximum compression ratio of snappy. A block that claims more is damaged, and no memory is allocated for it."""
_XERIAL_MAGIC = b"\x82SNAPPY\0"

Chunks = Iterator[bytes]


def _input_chunks(data: memoryview) -> Iterator[memoryview]:
    return (data[at : at + _INPUT_BYTES] for at in range(0, len(data), _INPUT_BYTES))


def _gzip(data: memoryview) -> Chunks:
    member = zlib.decompressobj(wbits=31)
    for part in _input_chunks(data):
        left: Any = part
        while len(left):
            if member.eof:  # concatenated members
                member = zlib.decompressobj(wbits=31)
            piece = member.decompress(left, CHUNK_BYTES)
            yield piece
            left = member.unused_data if member.eof else member.unconsumed_tail
            while len(piece) == CHUNK_BYTES and not (left or member.eof):  # more output may be buffered
                piece = member.decompress(b"", CHUNK_BYTES)
                yield piece
                left = member.unconsumed_tail
    if not member.eof:
        raise ValueError("the data is truncated")


def _snappy(data: memoryview) -> Chunks:
    if data[: len(_XERIAL_MAGIC)] != _XERIAL_MAGIC:
        yield from _snappy_block(data)
        return
    at = 16
    while at < len(data):
        start, at = at + 4, at + 4 + int.from_bytes(data[at : at + 4])
        yield from _snappy_block(data[start:at])


def _snappy_block(data: memoryview) -> Chunks:
    size = at = 0
    while at < min(5, len(data)):
        size |= (data[at] & 0x7F) << 7 * at
        at += 1
        if data[at - 1] < 0x80:
            break
    if size > _MAX_SNAPPY_RATIO * len(data):
        raise ValueError(f"{len(data)} bytes cannot decompress to {size}")
    block = memoryview(snappy.decompress(data.tobytes()))
    for start in range(0, len(block), CHUNK_BYTES):
        yield bytes(block[start : start + CHUNK_BYTES])


def _lz4(data: memoryview) -> Chunks:
    """Chunks of bounded size, whatever the frame header claims. Concatenated frames are supported."""
    frame = lz4.frame.LZ4FrameDecompressor()
    for part in _input_chunks(data):
        left: Any = part
        while len(left) or not (frame.needs_input or frame.eof):
            if frame.eof:
                frame = lz4.frame.LZ4FrameDecompressor()
            yield frame.decompress(left, max_length=CHUNK_BYTES)
            left = (frame.unused_data or b"") if frame.eof else b""
    if not frame.eof:
        raise ValueError("the data is truncated")


def _zstd(data: memoryview) -> Chunks:
    size = min(16 * len(data), CHUNK_BYTES)  # each read allocates its maximum output
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
"""Name and decompressor by the compression type in a batch's attributes."""


MAX_DECOMPRESSED_BYTES = 64 << 20
"""Default maximum of decompressed bytes per poll."""
MAX_VALUE_BYTES = 1 << 20
"""Default size of a value, bytes, beyond which only its beginning is kept."""
_STEP_BYTES = 1 << 18
"""Bytes decompressed before records are parsed, if there are so many."""


class DecompressionBuffer:
    """Memory for the decompressed records of one poll, and its limit.

    The number of records and the fetched bytes of a poll are bounded, but a fetched byte may decompress to thousands.
    Everything that a poll decompresses is therefore written to one array of bounded size, where records are parsed
    without another copy. What does not fit is decompressed by the next poll, which uses a new array.

    Parameters
    ----------
    max_bytes
        Maximum number of bytes decompressed between two calls of `reset`; raised to what a few of the longest records
        take.
    max_value_bytes
        Size of a value beyond which only its beginning is needed.

    Attributes
    ----------
    max_value_bytes
        See above.
    max_record_bytes
        Size of a record beyond which it is not parsed as a whole.
    end
        Number of bytes in the buffer.
    used
        Number of bytes decompressed since `reset`.
    """

    def __init__(self, max_bytes: int = MAX_DECOMPRESSED_BYTES, max_value_bytes: int = MAX_VALUE_BYTES) -> None:
        self.max_value_bytes = max_value_bytes
        self.max_record_bytes = max(max_value_bytes, CHUNK_BYTES) + CHUNK_BYTES
        self._spare = 3 * self.max_record_bytes + 4 * CHUNK_BYTES
        self._limit = max(max_bytes - self._spare, 2 * CHUNK_BYTES)
        self._data: Bytes | None = None
        self.reset()

    def reset(self) -> None:
        """Begin a new poll. The old array belongs to the records that were returned from it."""
        self._data = None
        self.end = self.used = 0

    @property
    def full(self) -> bool:
        """Whether this poll has decompressed its maximum."""
        return max(self.used, self.end) > self._limit

    @property
    def data(self) -> Bytes:
        """The (capacity,) array, read-only; bytes from `end` on are undefined."""
        if self._data is None:
            self._data = np.empty(self._limit + self._spare, np.uint8)  # no memory is used before something is written
            self._view = self._data.view()
            self._view.flags.writeable = False  # one array type for the kernels
        return self._view

    def write(self, at: int, chunk: bytes | Bytes) -> None:
        """Write a (n,) `chunk` at the index `at`; `end` becomes the index behind it."""
        _ = self.data
        self.end = at + len(chunk)
        assert self._data is not None  # noqa: S101  # just made
        self._data[at : self.end] = np.frombuffer(chunk, np.uint8) if isinstance(chunk, bytes) else chunk


class CompressedBatch:
    """A compressed batch that is decompressed in chunks into a `DecompressionBuffer`.

    ``buffer.data[at:buffer.end]`` is decompressed and not parsed yet. Bytes below `retained` belong to returned records
    and are not overwritten. Between two polls the unparsed bytes are kept elsewhere, so that the buffer's array is not
    kept.

    Parameters
    ----------
    buffer
        Buffer to write to.
    pieces
        Decompressed chunks of the batch.
    name
        Name of the compression, for errors.

    Attributes
    ----------
    read
        Number of bytes parsed so far.
    at
        Index of the next byte to parse.
    retained
        Index behind the bytes of returned records.
    """

    def __init__(self, buffer: DecompressionBuffer, pieces: Iterator[bytes], name: str) -> None:
        self.buffer, self._pieces, self._name = buffer, pieces, name
        self._suspended: Bytes | None = None
        self._error: InvalidBatchError | None = None
        self.read = 0
        self.at = self.retained = buffer.end

    def suspend(self) -> None:
        """Move the unparsed bytes out of the buffer, at the end of a poll."""
        if self._suspended is None:
            self._suspended = self.data[self.at : self.end].copy()

    def resume(self) -> None:
        """Move the unparsed bytes back into the buffer, in the next poll."""
        if self._suspended is not None:
            self.at = self.retained = self.buffer.end
            self.buffer.write(self.at, self._suspended)
            self._suspended = None

    @property
    def data(self) -> Bytes:
        """The buffer's (capacity,) array."""
        return self.buffer.data

    @property
    def end(self) -> int:
        """The end of the buffer's data."""
        return self.buffer.end

    def advance(self, at: int) -> None:
        """Mark bytes below `at` as parsed."""
        self.read += at - self.at
        self.at = at

    def retain(self) -> None:
        """Mark the parsed bytes as returned."""
        self.retained = self.at

    def discard(self) -> None:
        """Drop parsed bytes that were not returned."""
        if self.at > self.retained:
            self.buffer.write(self.retained, self.data[self.at : self.end].copy())
            self.at = self.retained

    def replace(self, record: bytes) -> None:
        """Put `record` in the place of the parsed bytes that were not returned; it is parsed next."""
        rest = self.data[self.at : self.end].copy()
        self.buffer.write(self.retained, record)
        self.buffer.write(self.end, rest)
        self.at = self.retained

    def length(self) -> int | None:
        """Length field of the next record; None if it is not complete."""
        value, at = record_batch.read_varint(self.data, self.at, self.end)
        return int(value) if at > 0 else None

    def decompress_more(self) -> bool:
        """Decompress some more; False at the end of the batch.

        Raises
        ------
        InvalidBatchError
            The decompressor failed. Bytes that it gave before are parsed first.
        """
        got = 0
        while got < _STEP_BYTES and self._error is None:
            try:
                piece = next(self._pieces, None)
            except Exception as error:  # noqa: BLE001  # each codec has its own errors
                self._error = InvalidBatchError(f"its {self._name} data cannot be decompressed: {error}")
                self._error.__cause__ = error
                break
            if piece is None:
                return got > 0
            got += len(piece)
            self.buffer.used += len(piece)
            self.buffer.write(self.buffer.end, piece)
        if not got and self._error is not None:
            raise self._error
        return True
