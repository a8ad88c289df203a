"""Points on disk: written block by block, read through a memory map.

Layout, little endian: 8 bytes of magic, 8 bytes with the length of a JSON header, the header, zeros up to a multiple of
4096 bytes; the points, row by row; their weights in float64, if there are any.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from streamkm import private_files
from streamkm.errors import DataError, FileFormatError, SourceClosedError

Real = NDArray[np.float32] | NDArray[np.float64]

_MAGIC = b"skmpts1\n"
_ALIGN = 4096
_COPY = 1 << 20


class PointFile:
    """A file of points.

    Created by `create` with `append` and `finish`, or opened by `open`. While it is written it has a temporary name
    beside its path, so that the path always refers to a complete file. As a context manager it is closed at the end,
    and removed if it was not finished.

    Attributes
    ----------
    path
        Its path, once it is finished.
    fields
        Names of the d columns.
    dtype
        float32 or float64.
    """

    def __init__(self, path: Path, fields: tuple[str, ...], dtype: np.dtype[Any]) -> None:
        self.path = path
        self.fields = fields
        self.dtype = dtype
        self._length = 0
        self._out: IO[bytes] | None = None
        self._weights_out: IO[bytes] | None = None
        self._points: Real | None = None
        self._weights: NDArray[np.float64] | None = None

    @classmethod
    def create(cls, path: str | os.PathLike[str], fields: Sequence[str], dtype: DTypeLike = np.float32) -> Self:
        """Create a file; an existing one is replaced by `finish`.

        Parameters
        ----------
        path
            Path of the file.
        fields
            Distinct names of the columns.
        dtype
            float32 or float64.

        Raises
        ------
        DataError
            `fields` or `dtype` are not valid.
        """
        names = tuple(fields)
        if not names or len(set(names)) < len(names):
            raise DataError(f"points need fields, each named once, not {list(names)}", where=str(path))
        if np.dtype(dtype) not in (np.float32, np.float64):
            raise DataError(f"points are float32 or float64, not {np.dtype(dtype)}", where=str(path))
        new = cls(Path(path), names, np.dtype(dtype))
        new._out = private_files.open_file(new._partial, "w+b")
        new._out.write(new._header(0, weighted=True))  # a header of the final length
        return new

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open a finished file.

        Raises
        ------
        FileFormatError
            The file does not exist, is not a file of points, or is truncated.
        """
        path = Path(path)
        try:
            with path.open("rb") as file:
                start = file.read(16)
                length = int.from_bytes(start[8:], "little")
                header = file.read(length) if len(start) == 16 and length < 1 << 24 else b""
        except OSError as e:
            raise FileFormatError(f"cannot be read ({e.strerror})", where=str(path)) from e
        if start[:8] != _MAGIC:
            raise FileFormatError("is not a file of points", where=str(path))
        try:
            head = json.loads(header)
            found = cls(path, tuple(head["fields"]), np.dtype({"float32": "<f4", "float64": "<f8"}[head["dtype"]]))
            found._length, weighted = int(head["rows"]), bool(head["weighted"])
            sound = found._length >= 0 and all(isinstance(field, str) for field in found.fields)
        except (ValueError, KeyError, TypeError, DataError, RecursionError, OverflowError) as e:
            raise FileFormatError("has a damaged header", where=str(path), hint="Write it again") from e
        if not sound:
            raise FileFormatError(f"has {found._length} rows of {found.fields}", where=str(path), hint="Write it again")
        found._map(weighted=weighted)
        return found

    @property
    def _partial(self) -> Path:
        return self.path.with_name(f".{self.path.name}.{os.getpid()}.partial")

    @property
    def _partial_weights(self) -> Path:
        return self.path.with_name(f".{self.path.name}.{os.getpid()}.weights")

    def _header(self, rows: int, *, weighted: bool) -> bytes:
        head = {"fields": list(self.fields), "dtype": self.dtype.name, "weighted": weighted, "rows": rows}
        text = json.dumps(head).encode()
        text = text.ljust(len(text) - len(str(rows)) - len(json.dumps(weighted)) + 32)  # room for any number of rows
        whole = _MAGIC + len(text).to_bytes(8, "little") + text
        return whole.ljust(-(-len(whole) // _ALIGN) * _ALIGN, b"\0")

    def append(self, points: ArrayLike, weights: ArrayLike | None = None) -> None:
        """Append points.

        Parameters
        ----------
        points
            (m, d) finite numbers.
        weights
            (m,) non-negative; None for ones.

        Raises
        ------
        DataError
            The arguments are not valid; nothing was appended.
        SourceClosedError
            The file is finished.
        """
        if self._out is None:
            raise SourceClosedError("the file is finished", where=str(self.path))
        block, shares = self._checked(points, weights)
        if shares is not None and self._weights_out is None:
            self._weights_out = private_files.open_file(self._partial_weights, "w+b")
            ones = np.ones(min(self._length, _COPY))
            for at in range(0, self._length, _COPY):
                self._weights_out.write(ones[: self._length - at].data)
        self._out.write(block.data)
        if self._weights_out is not None:
            self._weights_out.write((np.ones(len(block)) if shares is None else shares).data)
        self._length += len(block)

    def _checked(self, points: ArrayLike, weights: ArrayLike | None) -> tuple[Real, NDArray[np.float64] | None]:
        d = len(self.fields)
        try:
            with np.errstate(over="ignore"):
                block = np.ascontiguousarray(points, self.dtype)
            shares = None if weights is None else np.ascontiguousarray(weights, np.float64)
        except (TypeError, ValueError) as e:
            raise DataError(f"points cannot be read as numbers ({e})", where=str(self.path)) from e
        if block.ndim != 2 or block.shape[1] != d:
            raise DataError(f"points have shape {block.shape}, not (m, {d})", where=str(self.path))
        bad = np.flatnonzero(~np.isfinite(block).all(axis=1))
        if len(bad):
            raise DataError(
                f"row {self._length + bad[0]} has a value that is not finite in {self.dtype}", where=str(self.path)
            )
        if shares is not None and shares.shape != (len(block),):
            raise DataError(f"weights have shape {shares.shape}, not ({len(block)},)", where=str(self.path))
        if shares is not None and not (np.isfinite(shares) & (shares >= 0)).all():
            raise DataError("weights must be finite and not negative", where=str(self.path))
        return block, shares

    def finish(self) -> Self:
        """Complete the file under its path, and open it. The content is on disk before the name is.

        Raises
        ------
        SourceClosedError
            The file is finished.
        """
        if self._out is None:
            raise SourceClosedError("the file is finished", where=str(self.path))
        weighted = self._weights_out is not None
        if self._weights_out is not None:
            gap = -(self._length * len(self.fields) * self.dtype.itemsize) % 8
            self._out.write(bytes(gap))
            self._weights_out.seek(0)
            while piece := self._weights_out.read(_COPY):
                self._out.write(piece)
        self._out.seek(0)
        self._out.write(self._header(self._length, weighted=weighted))
        self._out.flush()
        os.fsync(self._out.fileno())
        self._partial.replace(self.path)
        self._discard()
        fsync_directory(self.path.parent)
        self._map(weighted=weighted)
        return self

    def _map(self, *, weighted: bool) -> None:
        n, d = self._length, len(self.fields)
        start = len(self._header(n, weighted=weighted))
        size = n * d * self.dtype.itemsize
        weights_at = start + size + (-size % 8)
        expected = weights_at + 8 * n if weighted else start + size
        actual = self.path.stat().st_size
        if actual != expected:
            raise FileFormatError(
                f"has {actual} bytes, and {n} points of {d} {self.dtype.name} need {expected}: it is truncated",
                where=str(self.path),
                hint="Write or copy it again",
            )
        if n == 0:
            self._points = np.empty((0, d), self.dtype)
            return
        with self.path.open("rb") as file:
            whole = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
        self._points = whole[start : start + size].view(self.dtype).reshape(n, d)
        if weighted:
            self._weights = whole[weights_at:].view(np.float64)

    def __len__(self) -> int:
        return self._length

    @property
    def shape(self) -> tuple[int, int]:
        """Number of points and of fields."""
        return self._length, len(self.fields)

    @property
    def weights(self) -> NDArray[np.float64] | None:
        """(n,) a read-only view of the file; None if all weights are 1."""
        self._check_open()
        return self._weights

    @property
    def points(self) -> Real:
        """(n, d) a read-only view of the file."""
        self._check_open()
        assert self._points is not None  # noqa: S101 -- just checked
        return self._points

    def rows(self, start: int, stop: int) -> Real:
        """A view of some rows.

        Parameters
        ----------
        start, stop
            Slice, both at least 0.

        Returns
        -------
        ndarray
            (stop - start, d), read-only; not a copy.
        """
        return self.points[start:stop]

    def _check_open(self) -> None:
        if self._out is not None:
            raise SourceClosedError("the file is still being written", where=str(self.path), hint="Call finish first")
        if self._points is None:
            raise SourceClosedError("the file is closed", where=str(self.path))

    def close(self) -> None:
        """Close the file, and remove it if it was not finished. Views stay valid."""
        if self._out is not None:
            self._discard()
        self._points = self._weights = None

    def _discard(self) -> None:
        """Close and remove the temporary files."""
        for file, path in ((self._out, self._partial), (self._weights_out, self._partial_weights)):
            if file is not None:
                file.close()
                path.unlink(missing_ok=True)
        self._out = self._weights_out = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def fsync_directory(folder: Path) -> None:
    """Flush a folder's entries to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_write(path: Path, *, shared: bool = False) -> Iterator[IO[bytes]]:
    """Write a file under a temporary name, and rename it when it is complete and on disk.

    Parameters
    ----------
    path
        The file.
    shared
        Use the permissions of the umask, for results. Otherwise only the owner can read the file.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") if shared else private_files.open_file(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    fsync_directory(path.parent)
