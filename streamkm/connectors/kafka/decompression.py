"""The bounded place where compressed record batches are unpacked."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from streamkm.connectors.kafka import legacy_formats as formats
from streamkm.connectors.kafka.record_format import InvalidBatchError
from streamkm.kernels.decode import record_batch
from streamkm.records import Bytes

MAX_DECOMPRESSED_BYTES = 64 << 20
"""Bytes that one poll decompresses, at most, where nothing else is said."""
MAX_VALUE_BYTES = 1 << 20
"""Bytes of a value beyond which only its beginning is kept, where nothing else is said."""
_STEP_BYTES = 1 << 18
"""Bytes that are unpacked before records are looked for, if there are so many."""


class DecompressionBuffer:
    """Where one poll unpacks what is compressed, and how much it may unpack.

    A poll is bounded by records and by what was fetched, but a byte of a fetch can become thousands. So all that a poll
    decompresses lies in one array of bounded size, where it is read without another copy; what does not fit has to wait
    for the next poll, which has an array of its own.

    Parameters
    ----------
    most
        Bytes that are decompressed between two calls of `reset`; not fewer than some of the longest records take.
    max_value_bytes
        Bytes of a value beyond which nobody wants more than its beginning.

    Attributes
    ----------
    max_record_bytes
        Bytes of a record beyond which it is not looked at as a whole.
    end, used
        Bytes that lie here, and that were decompressed for it.
    """

    def __init__(self, most: int = MAX_DECOMPRESSED_BYTES, max_value_bytes: int = MAX_VALUE_BYTES) -> None:
        self.max_value_bytes = max_value_bytes
        self.max_record_bytes = max(max_value_bytes, formats.CHUNK_BYTES) + formats.CHUNK_BYTES
        self._spare = 3 * self.max_record_bytes + 4 * formats.CHUNK_BYTES
        self._most = max(most - self._spare, 2 * formats.CHUNK_BYTES)
        self._data: Bytes | None = None
        self.reset()

    def reset(self) -> None:
        """A new poll: all that was unpacked belongs to those who have it."""
        self._data = None
        self.end = self.used = 0

    @property
    def full(self) -> bool:
        """Whether this poll has unpacked all that it may."""
        return max(self.used, self.end) > self._most

    @property
    def data(self) -> Bytes:
        """The bytes, for reading only; those below `end` have a meaning."""
        if self._data is None:
            self._data = np.empty(self._most + self._spare, np.uint8)  # no memory before something is written
            self._view = self._data.view()
            self._view.flags.writeable = False  # one type of array for the kernels, whatever the buffer was
        return self._view

    def put(self, at: int, piece: bytes | Bytes) -> None:
        """Write `piece` at `at`, which becomes the end of what there is."""
        _ = self.data
        self.end = at + len(piece)
        assert self._data is not None  # noqa: S101  # just made
        self._data[at : self.end] = np.frombuffer(piece, np.uint8) if isinstance(piece, bytes) else piece


class CompressedBatch:
    """The records of a compressed batch, unpacked piece by piece into a `DecompressionBuffer`.

    ``buffer.data[at:buffer.end]`` is decompressed and not parsed yet; records before `retained` were returned.
    Between two polls that little lies elsewhere, so that the room is not held.

    Parameters
    ----------
    pieces
        What the batch becomes.
    name
        Of its compression.
    """

    def __init__(self, buffer: DecompressionBuffer, pieces: Iterator[bytes], name: str) -> None:
        self.buffer, self._pieces, self._name = buffer, pieces, name
        self._suspended: Bytes | None = None
        self._error: InvalidBatchError | None = None
        self.read = 0
        self.at = self.retained = buffer.end

    def suspend(self) -> None:
        """Leave the room, before its poll ends."""
        if self._suspended is None:
            self._suspended = self.data[self.at : self.end].copy()

    def resume(self) -> None:
        """Come back, into the room of another poll."""
        if self._suspended is not None:
            self.at = self.retained = self.buffer.end
            self.buffer.put(self.at, self._suspended)
            self._suspended = None

    @property
    def data(self) -> Bytes:
        """The room's bytes."""
        return self.buffer.data

    @property
    def end(self) -> int:
        """Where they end."""
        return self.buffer.end

    def advance(self, at: int) -> None:
        """What lies before `at` is read."""
        self.read += at - self.at
        self.at = at

    def retain(self) -> None:
        """What is read was given to somebody."""
        self.retained = self.at

    def discard(self) -> None:
        """What is read is not needed: its place is free again."""
        if self.at > self.retained:
            self.buffer.put(self.retained, self.data[self.at : self.end].copy())
            self.at = self.retained

    def replace(self, record: bytes) -> None:
        """Put `record` in the place of all that is read and was given to nobody; it is the next to be read."""
        rest = self.data[self.at : self.end].copy()
        self.buffer.put(self.retained, record)
        self.buffer.put(self.end, rest)
        self.at = self.retained

    def length(self) -> int | None:
        """How long the next record says to be, if enough of it is there to tell."""
        value, at = record_batch.read_varint(self.data, self.at, self.end)
        return int(value) if at > 0 else None

    def decompress_more(self) -> bool:
        """Unpack some more; False at the end.

        Raises
        ------
        InvalidBatchError
            What the decompressor says; all that it gave before comes first.
        """
        got = 0
        while got < _STEP_BYTES and self._error is None:
            try:
                piece = next(self._pieces, None)
            except Exception as error:  # noqa: BLE001  # each codec has errors of its own
                self._error = InvalidBatchError(f"its {self._name} data cannot be decompressed: {error}")
                self._error.__cause__ = error
                break
            if piece is None:
                return got > 0
            got += len(piece)
            self.buffer.used += len(piece)
            self.buffer.put(self.buffer.end, piece)
        if not got and self._error is not None:
            raise self._error
        return True
