"""Opens a table by what its name says, and adds the columns that stand in its path."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from streamkm.errors import FileFormatError
from streamkm.sources._array_readers import NpyReader, NpzReader
from streamkm.sources._csv_reader import CsvReader
from streamkm.sources._file_places import Place
from streamkm.sources._frame_readers import frame_reader
from streamkm.sources._tables import Block, Column, Reader, Wanted

__all__ = ["Reader", "numeric_columns", "open_reader"]

_MAKERS: dict[str, Callable[[Place, Wanted], Reader]] = {
    ".csv": CsvReader,
    ".tsv": CsvReader,
    ".npy": NpyReader,
    ".npz": NpzReader,
    ".parquet": frame_reader,
    ".pq": frame_reader,
    ".arrow": frame_reader,
    ".feather": frame_reader,
    ".ipc": frame_reader,
}


def open_reader(place: Place, fields: Sequence[str] | None) -> Reader:
    """Open a file by what its name says.

    Parameters
    ----------
    place
        The file.
    fields
        Columns to read, all when None; also those of its path (``year=2026/``), which a column of the file hides.

    Raises
    ------
    FileFormatError
        It is of another kind, or has not the fields asked for.
    """
    keys = place.hive_keys()
    reader = _maker(place)(place, Wanted(fields, elsewhere=tuple(keys)))
    added = {
        name: value for name, value in keys.items() if name not in reader.names and (fields is None or name in fields)
    }
    return HiveReader(reader, added, fields) if added else reader


def numeric_columns(place: Place) -> tuple[str, ...]:
    """Names of the columns of a file that are numbers; of a csv file, by its first rows.

    Raises
    ------
    FileFormatError
        It is not what its name says.
    """
    reader = _maker(place)(place, Wanted(numeric=True))
    reader.close()
    return reader.names


def _maker(place: Place) -> Callable[[Place, Wanted], Reader]:
    if place.suffix not in _MAKERS:
        raise FileFormatError(
            f"{place.suffix or 'a file without suffix'} is not a kind of file that is read here",
            where=place.name,
            hint=f"Known are {', '.join(sorted(_MAKERS))}",
        )
    return _MAKERS[place.suffix]


class HiveReader:
    """A file with some more columns, the same value in each row."""

    def __init__(self, reader: Reader, added: dict[str, str | None], fields: Sequence[str] | None) -> None:
        self._reader, self._added, self.single = reader, added, False
        self.names = (*reader.names, *added) if fields is None else tuple(fields)
        self.rows, self.ended, self.share, self.close = reader.rows, reader.ended, reader.share, reader.close

    def block(self, row: int) -> Block:
        """See `Reader`."""
        block = self._reader.block(row)
        n = block.stop - block.start
        columns = block.columns | {name: _constant(value, n) for name, value in self._added.items()}
        return Block(block.start, block.stop, {name: columns[name] for name in self.names})


def _constant(value: str | None, n: int) -> Column:
    try:
        return np.full(n, np.nan if value is None else float(value))
    except ValueError:
        return np.array([value] * n, dtype=object)
