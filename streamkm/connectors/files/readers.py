"""Opens a table by its file name, and adds the columns in its path."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from streamkm.connectors.files.arrays import NpyReader, NpzReader
from streamkm.connectors.files.csv import CsvReader
from streamkm.connectors.files.frames import frame_reader
from streamkm.connectors.files.json import JsonReader
from streamkm.connectors.files.places import Place
from streamkm.connectors.files.tables import Block, Column, ColumnSelection, Profile, Reader
from streamkm.errors import FileFormatError

__all__ = ["Reader", "open_reader", "profile"]

_MAKERS: dict[str, Callable[[Place, ColumnSelection], Reader]] = {
    ".csv": CsvReader,
    ".csv.gz": CsvReader,
    ".tsv": CsvReader,
    ".tsv.gz": CsvReader,
    ".jsonl": JsonReader,
    ".jsonl.gz": JsonReader,
    ".ndjson": JsonReader,
    ".ndjson.gz": JsonReader,
    ".npy": NpyReader,
    ".npz": NpzReader,
    ".parquet": frame_reader,
    ".pq": frame_reader,
    ".arrow": frame_reader,
    ".feather": frame_reader,
    ".ipc": frame_reader,
}


def open_reader(place: Place, fields: Sequence[str] | None) -> Reader:
    """Open a file by its name.

    Parameters
    ----------
    place
        The file.
    fields
        Columns to read; None for all. Includes columns in the path (``year=2026/``), unless the file has a column of
        that name.

    Raises
    ------
    FileFormatError
        The kind of file is unknown, or it does not have the fields.
    """
    keys = place.hive_keys()
    reader = _maker(place)(place, ColumnSelection(fields, elsewhere=tuple(keys)))
    added = {
        name: value for name, value in keys.items() if name not in reader.names and (fields is None or name in fields)
    }
    return HiveColumnsReader(reader, added, fields) if added else reader


def profile(place: Place) -> Profile:
    """Statistics of the columns of a file.

    Raises
    ------
    FileFormatError
        The file is not valid.
    """
    reader = _maker(place)(place, ColumnSelection([]))
    try:
        return reader.profile()
    finally:
        reader.close()


def _maker(place: Place) -> Callable[[Place, ColumnSelection], Reader]:
    if place.suffix not in _MAKERS:
        raise FileFormatError(
            f"{place.suffix or 'a file without suffix'} is not a supported kind of file",
            where=place.name,
            hint=f"Known: {', '.join(sorted(_MAKERS))}",
        )
    return _MAKERS[place.suffix]


class HiveColumnsReader:
    """A reader with additional columns that have the same value in each row."""

    def __init__(self, reader: Reader, added: dict[str, str | None], fields: Sequence[str] | None) -> None:
        self._reader, self._added, self.fits_float32 = reader, added, False
        self.names: tuple[str, ...] = (*reader.names, *added)
        if fields is not None:
            own = [name for name in reader.names if name not in added]
            self.names = tuple(
                n for f in fields for n in ((f,) if f in added else (o for o in own if _belongs_to(o, f)))
            )
        self.rows, self.is_past_end, self.progress, self.close = (
            reader.rows,
            reader.is_past_end,
            reader.progress,
            reader.close,
        )
        self.line, self.profile = reader.line, reader.profile
        self.row_count_known, self.notes = reader.row_count_known, reader.notes

    def block(self, row: int) -> Block:
        """See `Reader`."""
        block = self._reader.block(row)
        n = block.stop - block.start
        columns = block.columns | {name: _constant(value, n) for name, value in self._added.items()}
        return Block(block.start, block.stop, {name: columns[name] for name in self.names})


def _belongs_to(name: str, field: str) -> bool:
    """Whether a column is the field itself, or one of its dimensions."""
    return name == field or (name.startswith(f"{field}[") and name.endswith("]"))


def _constant(value: str | None, n: int) -> Column:
    try:
        return np.full(n, np.nan if value is None else float(value))
    except ValueError:
        return np.array([value] * n, dtype=object)
