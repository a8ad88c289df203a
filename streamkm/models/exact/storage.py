"""Storage of the large arrays of a fit: in memory or, beyond a limit, in memory-mapped files."""

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
"""Arrays of more than 1/8 of the memory limit are mapped: fewer than four are in use at a time."""

_CHUNK_DIVISOR = 3
"""A chunk of rows may take 1/3 of the memory limit."""

_FOLIO_BYTES = 2 << 20
"""Bytes that touching a single one can load: Linux 6.18 maps folios as a whole."""

_COPY_ROWS = 8
"""Rows copied from a mapped array before its pages are released."""

_ROW_MULTIPLE = 1 << 13
"""Chunks have multiples of this many rows."""


class Storage:
    """Allocates large arrays, and limits how many rows may be in memory at a time.

    The files have no name, so they vanish with the process, however it ends.

    Parameters
    ----------
    memory
        Memory limit in bytes; None to keep everything in memory.
    folder
        Directory of the files; None for the one for temporary files.
    """

    def __init__(self, memory: int | None = None, folder: Path | None = None) -> None:
        self.memory = memory
        self._folder = folder

    def allocate(self, shape: tuple[int, ...], dtype: DTypeLike, fill: float = 0) -> NDArray[Any]:
        """Allocate an array of any shape.

        Parameters
        ----------
        shape, dtype
            Shape and type.
        fill
            Initial value.

        Raises
        ------
        SettingsError
            The directory has no space for it.
        """
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if self.memory is None or size <= self.memory // _MAPPED_DIVISOR:
            return np.full(shape, fill, dtype) if fill else np.zeros(shape, dtype)
        try:
            with tempfile.TemporaryFile(dir=self._folder, buffering=0) as file:
                os.posix_fallocate(file.fileno(), 0, size)  # raises if the disk is full; later it would be SIGBUS
                whole = mmap.mmap(file.fileno(), size)
        except OSError as e:
            where = self._folder or tempfile.gettempdir()
            raise SettingsError(
                f"cannot create a file of {size / 1e9:.1f} GB ({e.strerror})",
                where=str(where),
                hint="Free some disk space there, or raise the memory limit",
            ) from e
        array = np.frombuffer(whole, dtype).reshape(shape)
        if fill:
            for start, stop in self.chunks(shape[0], size // shape[0]):
                array[start:stop] = fill
                release(array, start, stop)
        return array

    def max_rows(self, row_bytes: int) -> int | None:
        """Number of rows that may be in memory, a multiple of 8192; None for all."""
        if self.memory is None:
            return None
        return max(1, self.memory // _CHUNK_DIVISOR // row_bytes // _ROW_MULTIPLE) * _ROW_MULTIPLE

    def chunks(self, n: int, row_bytes: int) -> Iterator[tuple[int, int]]:
        """Divide n rows into ranges that may be in memory, as (start, stop)."""
        step = self.max_rows(row_bytes) or max(n, 1)
        for start in range(0, n, step):
            yield start, min(n, start + step)


def release(array: NDArray[Any], start: int, stop: int) -> None:
    """Release the pages of some rows of a mapped array; they are loaded again when read.

    Parameters
    ----------
    array
        Any shape, C-contiguous. Arrays that are not mapped are ignored.
    start, stop
        Range of rows.
    """
    home = _mapping(array)
    if home is None or start >= stop:
        return
    base = np.frombuffer(home, np.uint8).ctypes.data
    first = array.ctypes.data - base + start * array.strides[0]
    last = array.ctypes.data - base + stop * array.strides[0]
    first -= first % _FOLIO_BYTES  # pages shared with other rows are loaded again too
    home.madvise(mmap.MADV_DONTNEED, first, min(last + -last % _FOLIO_BYTES, len(home)) - first)


def copy_rows(array: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[Any]:
    """Copy scattered rows of an array, without keeping the pages around them in memory.

    Parameters
    ----------
    array
        C-contiguous.
    rows
        (m,) indices.
    """
    if _mapping(array) is None:
        return array[rows]
    found = np.empty((len(rows), *array.shape[1:]), array.dtype)
    for start in range(0, len(rows), _COPY_ROWS):
        found[start : start + _COPY_ROWS] = array[rows[start : start + _COPY_ROWS]]
        release(array, 0, len(array))
    return found


def _mapping(array: NDArray[Any]) -> mmap.mmap | None:
    """Find the mapped file that an array is a view of, if any."""
    base: Any = array
    while base is not None and not isinstance(base, mmap.mmap):
        base = base.obj if isinstance(base, memoryview) else getattr(base, "base", None)
    return base
