"""Reads npy files and npz archives, memory-mapped."""

from __future__ import annotations

import contextlib
import math
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from streamkm.connectors.files import tables
from streamkm.connectors.files.places import Place
from streamkm.connectors.files.tables import Block, Column, ColumnSelection, KnownRowCount, Profile
from streamkm.errors import FileFormatError, SettingsError, StreamkmError

_NUMBERS = "iuf"
_BROKEN = (
    *(ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error, TokenError, SyntaxError),
    *(SystemError, RuntimeError, MemoryError),
)
"""Exceptions that numpy and zipfile raise for damaged files."""


class NpyReader(KnownRowCount):
    """An array: (n,), (n, d) with columns "0", "1", ..., or structured with named columns."""

    def __init__(self, place: Place, selection: ColumnSelection) -> None:
        with place.on_disk() as path, _array_errors(place.name):
            array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise FileFormatError("the file is an archive of arrays, not an npy array", where=place.name)
        _check_table(place.name, array.shape, array.dtype)
        columns = _columns_of(array.shape, array.dtype)
        self._name, self._kinds = place.name, columns
        self.names = tuple(selection.resolve(place.name, list(columns)))
        self._array, self._all, self._rows = array, list(columns), len(array)
        kinds = [array.dtype[name] for name in self.names] if array.dtype.names else [array.dtype]
        self.fits_float32 = all(np.can_cast(kind, np.float32) for kind in kinds)

    def block(self, row: int) -> Block:
        start = row - row % tables.BLOCK_ROWS
        stop = min(start + tables.BLOCK_ROWS, self._rows)
        part = self._array[start:stop]
        with _array_errors(self._name):
            return Block(start, stop, {name: _column(part, self._all, name) for name in self.names})

    def profile(self) -> Profile:
        return _profile(self._name, self._kinds, self._rows)

    def close(self) -> None:
        self._array = np.empty(0)


@dataclass(frozen=True, slots=True)
class _Member:
    """An array of an archive, by its header."""

    name: str
    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        """Size of its values in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


class NpzReader(KnownRowCount):
    """An archive with one table, (n, d) or structured; its arrays (n,) are additional columns.

    Without a table the arrays (n,) are the columns. Each array that is read is decompressed to a temporary file first.
    """

    def __init__(self, place: Place, selection: ColumnSelection) -> None:
        self._name = place.name
        self._arrays: dict[str, NDArray[Any]] = {}
        self._stack = contextlib.ExitStack()
        try:
            with _array_errors(self._name):
                path = self._stack.enter_context(place.on_disk())
                self._zip = self._stack.enter_context(zipfile.ZipFile(path))
                members = [self._header(name) for name in self._zip.namelist() if name.endswith(".npy")]
            self._choose(members, selection)
        except BaseException:
            self._stack.close()
            raise

    def _header(self, name: str) -> _Member:
        return _member(self._zip, name, self._name)

    def _choose(self, members: list[_Member], selection: ColumnSelection) -> None:
        tables = [m for m in members if len(m.shape) == 2 or (len(m.shape) == 1 and m.dtype.names)]
        if len(tables) > 1:
            names = ", ".join(m.name[:-4] for m in tables)
            raise FileFormatError(
                f"the archive has several tables: {names}", where=self._name, hint="Save one of them as npy"
            )
        vectors = [m for m in members if len(m.shape) == 1 and not m.dtype.names]
        self._columns: dict[str, tuple[_Member, str]] = {}
        kinds: dict[str, str] = {}
        if tables:
            _check_table(self._name, tables[0].shape, tables[0].dtype)
            columns = _columns_of(tables[0].shape, tables[0].dtype)
            self._columns = {name: (tables[0], name) for name in columns}
            kinds = dict(columns)
            vectors = [m for m in vectors if m.shape[0] == tables[0].shape[0] and m.dtype.kind in _NUMBERS + "U"]
        elif len({m.shape for m in vectors}) != 1:
            shapes = ", ".join(f"{m.name[:-4]} {m.shape}" for m in members) or "nothing"
            raise FileFormatError(f"the arrays do not form a table: {shapes}", where=self._name)
        else:
            for m in vectors:
                _check_table(f"{self._name}, array {m.name[:-4]!r}", m.shape, m.dtype)
            kinds = {m.name[:-4]: m.dtype.kind for m in vectors}
        for m in vectors:
            self._columns.setdefault(m.name[:-4], (m, "0"))
        self._kinds = {name: kinds.get(name, "") for name in self._columns}
        self._rows = (tables or vectors)[0].shape[0]
        self.names = tuple(selection.resolve(self._name, list(self._columns)))
        types = [m.dtype[n] if m.dtype.names else m.dtype for m, n in map(self._columns.__getitem__, self.names)]
        self.fits_float32 = all(np.can_cast(kind, np.float32) for kind in types)

    def block(self, row: int) -> Block:
        start = row - row % tables.BLOCK_ROWS
        stop = min(start + tables.BLOCK_ROWS, self._rows)
        columns = {}
        for name in self.names:
            member, column = self._columns[name]
            part = self._unpacked(member)[start:stop]
            with _array_errors(self._name):
                columns[name] = _column(part, list(_columns_of(member.shape, member.dtype)), column)
        return Block(start, stop, columns)

    def _unpacked(self, member: _Member) -> NDArray[Any]:
        if member.name not in self._arrays:
            size = member.size
            if size > shutil.disk_usage(tempfile.gettempdir()).free:
                raise SettingsError(
                    f"array {member.name[:-4]!r} takes {size >> 20:,} MiB decompressed, more than the free "
                    f"space of the temporary folder ({tempfile.gettempdir()})",
                    where=self._name,
                    hint="Set TMPDIR to a folder with more space",
                )
            with _array_errors(self._name), tempfile.TemporaryFile() as file:
                with self._zip.open(member.name) as packed:
                    _read_header(packed)
                    while size and (piece := packed.read(min(size, 1 << 20))):
                        file.write(piece)
                        size -= len(piece)
                file.flush()
                if not self._rows:
                    return np.empty(member.shape, member.dtype)
                self._arrays[member.name] = np.memmap(
                    file, member.dtype, "r", 0, member.shape, "F" if member.fortran_order else "C"
                )
        return self._arrays[member.name]

    def profile(self) -> Profile:
        return _profile(self._name, self._kinds, self._rows)

    def close(self) -> None:
        self._arrays.clear()
        self._stack.close()


def _profile(path: str, kinds: Mapping[str, str], rows: int) -> Profile:
    """Statistics by data types, without reading values. Arrays are used completely: no column is an identifier."""
    found = Profile(path, list(kinds))
    for facts in found.columns:
        facts.integers = False
        if kinds[facts.name] and kinds[facts.name] in _NUMBERS:
            facts.numbers = max(1, rows)
        else:
            facts.others, facts.reason = 1, "text" if kinds[facts.name] else "an array beside the table"
    found.finish(rows, whole=True)
    return found


def _member(archive: zipfile.ZipFile, name: str, where: str) -> _Member:
    """Read the header of an array, and check it against the archive's directory."""
    with archive.open(name) as file:
        shape, fortran_order, dtype = _read_header(file)
        begins = file.tell()
    if dtype.hasobject:
        raise FileFormatError("arrays of objects are not supported", where=f"{where}, array {name[:-4]!r}")
    member = _Member(name, shape, fortran_order, dtype)
    has = archive.getinfo(name).file_size - begins
    if has != member.size:
        raise FileFormatError(
            f"array {name[:-4]!r} has {has} bytes and its header says {member.size}: it is damaged",
            where=where,
        )
    return member


def array_headers(path: Path) -> dict[str, tuple[tuple[int, ...], int]]:
    """Shape and size in bytes of each array of an npz archive; only headers are read.

    Raises
    ------
    FileFormatError
        The file is not an npz archive.
    """
    with _array_errors(str(path)), zipfile.ZipFile(path) as archive:
        members = [_member(archive, name, str(path)) for name in archive.namelist() if name.endswith(".npy")]
        return {member.name[:-4]: (member.shape, member.size) for member in members}


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    if np.lib.format.read_magic(file) == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    return np.lib.format.read_array_header_2_0(file)


def _columns_of(shape: tuple[int, ...], dtype: np.dtype[Any]) -> dict[str, str]:
    """Column names of an array, each with the kind of its data type."""
    if dtype.names:
        return {name: dtype[name].kind for name in dtype.names}
    return {str(i): dtype.kind for i in range(shape[1] if len(shape) == 2 else 1)}


def _check_table(where: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if len(shape) not in {1, 2} or (dtype.names and len(shape) != 1):
        raise FileFormatError(f"an array of shape {shape} is not a table", where=where)
    kinds = {name: dtype[name] for name in dtype.names} if dtype.names else {"0": dtype}
    for name, kind in kinds.items():
        if kind.kind not in _NUMBERS + "U":
            raise FileFormatError(f"{kind} is not a number", where=f"{where}, column {name!r}")


def _column(part: NDArray[Any], names: list[str], name: str) -> Column:
    if part.dtype.names:
        column = part[name]
    elif part.ndim == 2:
        column = part[:, names.index(name)]
    else:
        column = part
    return column.astype(object) if column.dtype.kind == "U" else np.array(column)


@contextlib.contextmanager
def _array_errors(path: str) -> Iterator[None]:
    """Translate exceptions that numpy and zipfile raise for damaged files."""
    try:
        yield
    except _BROKEN as error:
        if isinstance(error, StreamkmError):
            raise
        kind = "an npz archive" if path.lower().endswith("z") else "an npy array"
        raise FileFormatError(f"the file is not {kind}, or truncated: {error}", where=path) from error
