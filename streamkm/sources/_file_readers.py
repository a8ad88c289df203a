"""Tables on disk, read a bounded block at a time: csv, npy and parquet."""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from streamkm.errors import FileFormatError

Column = NDArray[np.generic]

BLOCK_BYTES = 4 << 20
"""Bytes of a csv file read at once."""
LONGEST_ROW_BYTES = 64 << 20
BLOCK_ROWS = 1 << 17
"""Rows of an npy or parquet file read at once."""
_QUOTE, _NEWLINE = ord('"'), ord("\n")


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """The rows [start, stop) of a file, by column."""

    start: int
    stop: int
    columns: dict[str, Column]


class Reader(Protocol):
    """One file."""

    names: tuple[str, ...]

    def rows(self) -> int:
        """How many rows it has."""
        ...

    def block(self, row: int) -> Block:
        """A block that contains this row, ``0 <= row < rows()``."""
        ...

    def close(self) -> None:
        """Give the file back."""
        ...


def open_reader(path: str, fields: Sequence[str] | None) -> Reader:
    """Open a file by what its name says.

    Raises
    ------
    FileFormatError
        It is of another kind, or has not the fields asked for.
    """
    suffix = Path(path).suffix.lower()
    makers: dict[str, Callable[[str, Sequence[str] | None], Reader]] = {
        ".csv": CsvReader,
        ".tsv": CsvReader,
        ".npy": NpyReader,
        ".parquet": ParquetReader,
        ".pq": ParquetReader,
    }
    if suffix not in makers:
        raise FileFormatError(
            f"{suffix or 'a file without suffix'} is not a kind of file that is read here",
            where=path,
            hint=f"Known are {', '.join(sorted(makers))}",
        )
    return makers[suffix](path, fields)


def _selected(path: str, names: Sequence[str], fields: Sequence[str] | None) -> tuple[str, ...]:
    if fields is None:
        return tuple(names)
    for field in fields:
        if field not in names:
            shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
            raise FileFormatError("there is no such column", where=f"{path}, column {field!r}", hint=f"It has {shown}")
    return tuple(fields)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


class CsvReader:
    """A csv file with a header, in UTF-8; separated by commas, or by tabs or semicolons if its header is.

    It is read in blocks that end at the end of a row. Where they begin is remembered, so that going back is cheap.
    A row is a line outside of quotes; an empty line inside the file is a row without values.
    """

    def __init__(self, path: str, fields: Sequence[str] | None) -> None:
        self._path = path
        self._file: BinaryIO = Path(path).open("rb")  # noqa: SIM115  # closed by close()
        try:
            self._header = self._file.readline(LONGEST_ROW_BYTES)
            names = self._parse_header()
            self.names = _selected(path, names, fields)
        except BaseException:
            self._file.close()
            raise
        self._width = len(names)
        # (first row, first byte, byte after) of each block seen so far, and whether that is all.
        self._index: list[tuple[int, int, int, int]] = []
        self._complete = False
        self._last: Block | None = None

    def _parse_header(self) -> list[str]:
        try:
            text = self._header.decode("utf-8-sig").strip("\r\n")
        except UnicodeDecodeError as error:
            raise FileFormatError(f"it is not UTF-8 text: {error}", where=f"{self._path}, header") from error
        if not text:
            raise FileFormatError("it is empty: there is no header", where=self._path)
        self._separator = next((s for s in ",\t;" if s in text), ",")
        names = next(self._cells([text], -1))[1]
        if all(_is_number(name) for name in names):
            raise FileFormatError(
                f"it has no header: its first row is {text[:60]}", where=self._path, hint="Add a line of column names"
            )
        twice = {name for name in names if names.count(name) > 1}
        if twice or "" in names:
            raise FileFormatError(
                f"its header names {'a column twice' if twice else 'a column with nothing'}: {text[:60]}",
                where=self._path,
            )
        return names

    def rows(self) -> int:
        while not self._complete:
            self._scan()
        return self._index[-1][1] if self._index else 0

    def block(self, row: int) -> Block:
        if self._last is not None and self._last.start <= row < self._last.stop:
            return self._last
        while not self._complete and (not self._index or self._index[-1][1] <= row):
            self._scan()
        start, stop, begin, end = next(entry for entry in reversed(self._index) if entry[0] <= row)
        self._file.seek(begin)
        self._last = self._parse(start, stop, self._file.read(end - begin))
        return self._last

    def close(self) -> None:
        self._last = None
        self._file.close()

    def _scan(self) -> None:
        """Find the next block's end and rows, without parsing it."""
        start, begin = (self._index[-1][1], self._index[-1][3]) if self._index else (0, len(self._header))
        size = BLOCK_BYTES
        while True:
            self._file.seek(begin)
            data = self._file.read(size)
            at_end = len(data) < size
            rows, used, open_quote = _whole_rows(data)
            if at_end:
                self._complete = True
                if open_quote:
                    raise FileFormatError(
                        "it ends inside a quoted value",
                        where=f"{self._path}, row {start + rows}",
                        hint="Is it cut off?",
                    )
                rest = data[used:].strip(b"\r\n")
                if rest:
                    rows, used = rows + 1, len(data)
                    self._check_last(rest, start + rows - 1)
                else:
                    # Empty lines at the very end are no rows.
                    kept = data[:used].rstrip(b"\r\n")
                    rows = _whole_rows(kept + b"\n")[0] if kept else 0
                    used = len(kept)
                break
            if rows:
                break
            size *= 4
            if size > LONGEST_ROW_BYTES:
                raise FileFormatError(
                    f"a row is longer than {LONGEST_ROW_BYTES >> 20} MB", where=f"{self._path}, row {start}"
                )
        if rows:
            self._index.append((start, start + rows, begin, begin + used))

    def _check_last(self, rest: bytes, row: int) -> None:
        """A last row without newline may be whole; with too few values it was cut off."""
        _, cells = next(self._cells([rest.decode("utf-8", "replace")], row))
        if len(cells) < self._width:
            raise FileFormatError(
                f"it ends in the middle of a row: {len(cells)} of {self._width} values",
                where=f"{self._path}, row {row}",
                hint="Is it cut off?",
            )

    def _parse(self, start: int, stop: int, data: bytes) -> Block:
        if len(data) == 0 or not data.endswith(b"\n"):
            data += b"\n"
        try:
            frame = pl.read_csv(
                io.BytesIO(self._header.rstrip(b"\r\n") + b"\n" + data),
                separator=self._separator,
                infer_schema=False,
                columns=list(self.names),
            )
        except pl.exceptions.PolarsError as error:
            raise self._explain(start, data, error) from error
        if frame.height != stop - start:
            raise FileFormatError(
                f"its quotes do not pair: {stop - start} lines are {frame.height} rows",
                where=f"{self._path}, rows {start} to {stop}",
            )
        return Block(start, stop, {name: _from_text(frame[name]) for name in self.names})

    def _cells(self, lines: Iterable[str], row: int) -> Iterator[tuple[int, list[str]]]:
        """Rows one by one, each with its number."""
        reader = csv.reader(lines, delimiter=self._separator)
        while True:
            try:
                yield row, next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                where = f"{self._path}, {'header' if row < 0 else f'row {row}'}"
                raise FileFormatError(f"it is not csv: {error}", where=where) from error
            row += 1

    def _explain(self, start: int, data: bytes, error: Exception) -> FileFormatError:
        """Find the row that polars could not read."""
        try:
            text = data.decode()
        except UnicodeDecodeError as broken:
            row = start + data[: broken.start].count(b"\n")
            return FileFormatError(f"it is not UTF-8 text: {broken}", where=f"{self._path}, row {row}")
        for row, cells in self._cells(io.StringIO(text, newline=""), start):
            if len(cells) > self._width:
                return FileFormatError(
                    f"a row has {len(cells)} values, the header {self._width}", where=f"{self._path}, row {row}"
                )
        return FileFormatError(f"it is not csv: {str(error).splitlines()[0]}", where=f"{self._path}, from row {start}")


def _whole_rows(data: bytes) -> tuple[int, int, bool]:
    """How many rows end in `data`, where the last of them ends, and whether a quote is open at the end."""
    raw = np.frombuffer(data, np.uint8)
    newlines = np.flatnonzero(raw == _NEWLINE)
    open_quote = False
    if b'"' in data:
        quotes = np.flatnonzero(raw == _QUOTE)
        newlines = newlines[np.searchsorted(quotes, newlines) % 2 == 0]
        open_quote = len(quotes) % 2 == 1
    return len(newlines), int(newlines[-1]) + 1 if len(newlines) else 0, open_quote


def _from_text(series: pl.Series) -> Column:
    """Numbers if all cells are (an empty one is NaN), else text."""
    numbers = series.cast(pl.Float64, strict=False)
    if numbers.null_count() == series.null_count():
        return numbers.fill_null(float("nan")).to_numpy()
    return series.to_numpy(allow_copy=True).astype(object)


class NpyReader:
    """A numpy array, mapped into memory: (n,), (n, d) with columns "0", "1", ..., or structured with named columns."""

    def __init__(self, path: str, fields: Sequence[str] | None) -> None:
        try:
            self._array: NDArray[np.generic] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise FileFormatError(f"it is not an npy array, or ends in the middle: {error}", where=path) from error
        array = self._array
        names = array.dtype.names or tuple(str(i) for i in range(array.shape[1] if array.ndim == 2 else 1))
        if not isinstance(array, np.ndarray) or array.ndim not in {1, 2} or (array.dtype.names and array.ndim != 1):
            raise FileFormatError(f"an array of shape {np.shape(array)} is not a table", where=path)
        kinds = [array.dtype[name] for name in array.dtype.names] if array.dtype.names else [array.dtype]
        for name, kind in zip(names, kinds, strict=False):
            if kind.kind not in "iufU":
                raise FileFormatError(f"{kind} is not a number", where=f"{path}, column {name!r}")
        self.names = _selected(path, names, fields)
        self._all = names

    def rows(self) -> int:
        return len(self._array)

    def block(self, row: int) -> Block:
        start = row - row % BLOCK_ROWS
        stop = min(start + BLOCK_ROWS, len(self._array))
        part = self._array[start:stop]
        return Block(start, stop, {name: self._column(part, name) for name in self.names})

    def close(self) -> None:
        self._array = np.empty(0)

    def _column(self, part: NDArray[Any], name: str) -> Column:
        if part.dtype.names:
            column = part[name]
        elif part.ndim == 2:
            column = part[:, self._all.index(name)]
        else:
            column = part
        return column.astype(object) if column.dtype.kind == "U" else np.array(column)


class ParquetReader:
    """A parquet file. Times come as seconds since 1970."""

    def __init__(self, path: str, fields: Sequence[str] | None) -> None:
        self._path = path
        with _parquet_edge(self._path):
            schema = pl.read_parquet_schema(path)
            self._frame = pl.scan_parquet(path)
            self._rows = int(self._frame.select(pl.len()).collect().item())
        self.names = _selected(path, list(schema), fields)
        for name in self.names:
            kind = schema[name]
            if kind.is_nested() or kind == pl.Binary:
                raise FileFormatError(
                    f"{kind} is not a number", where=f"{path}, column {name!r}", hint="Name the columns to read"
                )
        self._last: Block | None = None

    def rows(self) -> int:
        return self._rows

    def block(self, row: int) -> Block:
        if self._last is None or not self._last.start <= row < self._last.stop:
            start = row - row % BLOCK_ROWS
            with _parquet_edge(self._path):
                frame = self._frame.select(self.names).slice(start, BLOCK_ROWS).collect()
                columns = {name: _from_series(frame[name]) for name in self.names}
            if frame.height != min(BLOCK_ROWS, self._rows - start):
                raise FileFormatError("it changed while it was read", where=f"{self._path}, row {start}")
            self._last = Block(start, start + frame.height, columns)
        return self._last

    def close(self) -> None:
        self._last = None


@contextlib.contextmanager
def _parquet_edge(path: str) -> Iterator[None]:
    """Map what polars raises for a broken file."""
    try:
        yield
    except (pl.exceptions.PolarsError, OSError) as error:
        said = str(error).splitlines()[0]
        raise FileFormatError(f"it is not parquet, or ends in the middle: {said}", where=path) from error


def _from_series(series: pl.Series) -> Column:
    kind = series.dtype
    if kind.is_temporal() and not isinstance(kind, pl.Duration | pl.Time):
        series = series.cast(pl.Datetime("us")).dt.epoch("us").cast(pl.Float64) / 1e6
        kind = series.dtype
    if kind.is_numeric():
        if kind.is_decimal() or series.null_count():
            series = series.cast(pl.Float64).fill_null(float("nan"))
        return series.to_numpy()
    return np.array(series.cast(pl.String).to_list(), dtype=object)
