"""Tables as text, read a bounded block at a time."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator

import numpy as np
import polars as pl

from streamkm.errors import FileFormatError
from streamkm.sources import _tables
from streamkm.sources._file_places import Place
from streamkm.sources._tables import Block, Column, Wanted

_QUOTE, _NEWLINE = ord('"'), ord("\n")


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

    def __init__(self, place: Place, wanted: Wanted) -> None:
        self._path, self.single = place.name, False
        self._file = place.open()
        # (first row, first byte, byte after) of each block seen so far, and whether that is all.
        self._index: list[tuple[int, int, int, int]] = []
        self._complete = False
        self._last: Block | None = None
        try:
            self._size = self._file.seek(0, os.SEEK_END)
            self._file.seek(0)
            self._header = self._file.readline(_tables.LONGEST_ROW_BYTES)
            self._all = self._parse_header()
            self.names = tuple(self._all)
            numbers = self._numbers() if wanted.numeric else ()
            self.names = wanted.among(self._path, self._all, numbers)
            self._last = None
        except BaseException:
            self._file.close()
            raise

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

    def _numbers(self) -> list[str]:
        """Columns with more numbers than other text in the first block: a stray word does not hide a column."""
        if self.ended(0):
            return []
        found = []
        for name, column in self.block(0).columns.items():
            texts = pl.Series(column.tolist(), dtype=pl.String, strict=False) if column.dtype == object else None
            filled = len(column) - texts.null_count() if texts is not None else np.count_nonzero(~np.isnan(column))
            numbers = texts.cast(pl.Float64, strict=False).count() if texts is not None else filled
            if 2 * numbers > filled:
                found.append(name)
        return found

    def rows(self) -> int:
        while not self._complete:
            self._scan()
        return self._index[-1][1] if self._index else 0

    def ended(self, row: int) -> bool:
        while not self._complete and (not self._index or self._index[-1][1] <= row):
            self._scan()
        return row >= (self._index[-1][1] if self._index else 0)

    def share(self, row: int) -> float:
        before = next((end for start, stop, _, end in reversed(self._index) if start < row), len(self._header))
        return before / max(1, self._size)

    def block(self, row: int) -> Block:
        if self._last is not None and self._last.start <= row < self._last.stop:
            return self._last
        self.ended(row)
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
        size = _tables.BLOCK_BYTES
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
            if size > _tables.LONGEST_ROW_BYTES:
                raise FileFormatError(
                    f"a row is longer than {_tables.LONGEST_ROW_BYTES >> 20} MB", where=f"{self._path}, row {start}"
                )
        if rows:
            self._index.append((start, start + rows, begin, begin + used))

    def _check_last(self, rest: bytes, row: int) -> None:
        """A last row without newline may be whole; with too few values it was cut off."""
        _, cells = next(self._cells([rest.decode("utf-8", "replace")], row))
        if len(cells) < len(self._all):
            raise FileFormatError(
                f"it ends in the middle of a row: {len(cells)} of {len(self._all)} values",
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
            if len(cells) > len(self._all):
                return FileFormatError(
                    f"a row has {len(cells)} values, the header {len(self._all)}", where=f"{self._path}, row {row}"
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
