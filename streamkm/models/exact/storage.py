"""Where the large arrays of a fit live: in memory or, beyond a limit, in files that are mapped."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from streamkm.errors import SettingsError

_MAPPED_DIVISOR = 8
"""An array of more than this fraction of the memory is mapped: a fit has less than half as many at a time."""

_CHUNK_DIVISOR = 3
"""What is read at a time may take this fraction of the memory."""

_FOLIO_BYTES = 2 << 20
"""Touching one byte can bring so much of a file around it into memory: Linux 6.18 maps folios as a whole."""

_COPY_ROWS = 8
"""Rows from all over a file that are touched before it is let go of."""

_ROW_MULTIPLE = 1 << 13
"""Rows are taken in multiples of this many."""


class Storage:
    """Makes large arrays, and says how many rows may be looked at before they are let go of.

    Files have no name: they are gone with the process, however it ends.

    Parameters
    ----------
    memory
        Bytes; None to have all in memory.
    folder
        Where files go; None for the folder for temporary ones.
    """

    def __init__(self, memory: int | None = None, folder: Path | None = None) -> None:
        self.memory = memory
        self._folder = folder

    def allocate(self, shape: tuple[int, ...], dtype: DTypeLike, fill: float = 0) -> NDArray[Any]:
        """Make an array.

        Parameters
        ----------
        shape, dtype
            Of which kind.
        fill
            What it has in it.

        Raises
        ------
        SettingsError
            The folder has no room for it.
        """
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if self.memory is None or size <= self.memory // _MAPPED_DIVISOR:
            return np.full(shape, fill, dtype) if fill else np.zeros(shape, dtype)
        try:
            with tempfile.TemporaryFile(dir=self._folder, buffering=0) as file:
                os.posix_fallocate(file.fileno(), 0, size)  # a full disk says so here, not by a signal later
                whole = mmap.mmap(file.fileno(), size)
        except OSError as e:
            where = self._folder or tempfile.gettempdir()
            raise SettingsError(
                f"no file of {size / 1e9:.1f} GB could be made ({e.strerror})",
                where=str(where),
                hint="Free some space there, or allow more memory",
            ) from e
        array = np.frombuffer(whole, dtype).reshape(shape)
        if fill:
            for start, stop in self.chunks(shape[0], size // shape[0]):
                array[start:stop] = fill
                release(array, start, stop)
        return array

    def max_rows(self, row_bytes: int) -> int | None:
        """Tell how many rows may be in memory, a multiple of 8192; None for all."""
        if self.memory is None:
            return None
        return max(1, self.memory // _CHUNK_DIVISOR // row_bytes // _ROW_MULTIPLE) * _ROW_MULTIPLE

    def chunks(self, n: int, row_bytes: int) -> Iterator[tuple[int, int]]:
        """Divide n rows into ranges of as many as may be in memory."""
        step = self.max_rows(row_bytes) or max(n, 1)
        for start in range(0, n, step):
            yield start, min(n, start + step)


def release(array: NDArray[Any], start: int, stop: int) -> None:
    """Take some rows of a mapped array out of this process's memory; they come back when they are read.

    Parameters
    ----------
    array
        C-contiguous; if it is not of a mapped file, nothing happens.
    start, stop
        Which rows.
    """
    home = _mapping(array)
    if home is None or start >= stop:
        return
    base = np.frombuffer(home, np.uint8).ctypes.data
    first = array.ctypes.data - base + start * array.strides[0]
    last = array.ctypes.data - base + stop * array.strides[0]
    first -= first % _FOLIO_BYTES  # pages that are shared with other rows come back to them too
    home.madvise(mmap.MADV_DONTNEED, first, min(last + -last % _FOLIO_BYTES, len(home)) - first)


def copy_rows(array: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[Any]:
    """Copy some rows from all over an array, without keeping what lies around them in memory.

    Parameters
    ----------
    array
        C-contiguous.
    rows
        Which.
    """
    if _mapping(array) is None:
        return array[rows]
    found = np.empty((len(rows), *array.shape[1:]), array.dtype)
    for start in range(0, len(rows), _COPY_ROWS):
        found[start : start + _COPY_ROWS] = array[rows[start : start + _COPY_ROWS]]
        release(array, 0, len(array))
    return found


def _mapping(array: NDArray[Any]) -> mmap.mmap | None:
    """Find the mapped file that an array is a view of."""
    base: Any = array
    while base is not None and not isinstance(base, mmap.mmap):
        base = base.obj if isinstance(base, memoryview) else getattr(base, "base", None)
    return base
