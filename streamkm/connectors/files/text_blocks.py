"""Text files that are read in blocks of complete rows, whose positions are kept as they are found."""

from __future__ import annotations

import contextlib
import gzip
import os
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

from streamkm.connectors.files.places import Place
from streamkm.connectors.files.tables import Block
from streamkm.errors import FileFormatError


class RowBlock(NamedTuple):
    """The rows [start, stop) of a file: bytes [begin, end), with the first row on a line counted from 1."""

    start: int
    stop: int
    begin: int
    end: int
    line: int
    lines: int


class TextBlocks(ABC):
    """Base of readers of text that is optionally compressed by gzip; seeking back to a known block is cheap.

    Parameters
    ----------
    place
        The file.
    """

    row_count_known = False
    notes: tuple[str, ...] = ()

    def __init__(self, place: Place) -> None:
        self._path, self.fits_float32 = place.name, False
        self._raw = place.open()
        self._file = gzip.GzipFile(fileobj=self._raw) if place.packed else self._raw
        self._index: list[RowBlock] = []
        self._complete = False
        self._last: Block | None = None
        try:
            self._size = self._raw.seek(0, os.SEEK_END)
            self._raw.seek(0)
        except BaseException:
            self.close()
            raise

    @abstractmethod
    def _scan(self) -> None:
        """Add the next block to the index, or set `_complete`."""

    def rows(self) -> int:
        """See `Reader`."""
        while not self._complete:
            self._scan()
        return self._index[-1].stop if self._index else 0

    def is_past_end(self, row: int) -> bool:
        """See `Reader`."""
        while not self._complete and (not self._index or self._index[-1].stop <= row):
            self._scan()
        return row >= (self._index[-1].stop if self._index else 0)

    def _block_of(self, row: int) -> RowBlock:
        return next(block for block in reversed(self._index) if block.start <= row)

    @contextlib.contextmanager
    def _gzip_errors(self) -> Iterator[None]:
        try:
            yield
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise FileFormatError(f"the file is not gzip, or truncated: {error}", where=self._path) from error

    def close(self) -> None:
        """Close the file."""
        self._last = None
        self._file.close()
        self._raw.close()
