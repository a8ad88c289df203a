"""Reads csv files in bounded blocks."""

from __future__ import annotations

import csv
from collections.abc import Sequence

import numpy as np
import polars as pl

from streamkm.connectors.files import csv_text, tables
from streamkm.connectors.files.places import Place
from streamkm.connectors.files.tables import Block, Column, ColumnSelection, Profile
from streamkm.connectors.files.text_blocks import RowBlock, TextBlocks
from streamkm.errors import FileFormatError


class CsvReader(TextBlocks):
    """A csv file with a header, in UTF-8, optionally compressed by gzip; `csv_text` defines the supported dialects.

    The file is read in blocks that end at the end of a row. Their positions are kept, so that seeking back is cheap. A
    row is a line outside of quotes; an empty line within the file is a row without values.
    """

    def __init__(self, place: Place, selection: ColumnSelection) -> None:
        super().__init__(place)
        self._ahead = (0, b"")  # start and content of bytes that were read and not used yet
        self._scanned: tuple[int, bytes, csv_text.RowEnds | None] = (-1, b"", None)
        self._texts: set[int] = set()
        try:
            self.dialect = self._detect()
            names = self.dialect.names or ()
            self.notes = self.dialect.notes
            self.unnamed = self.dialect.unnamed
            self._chosen = selection.resolve(self._path, names, unnamed=self.unnamed)
            self.names = tuple(self._chosen)
            self._column_indices = [names.index(column) for column, _ in self._chosen.values()]
        except BaseException:
            self.close()
            raise

    def _detect(self) -> csv_text.Dialect:
        size = csv_text.HEAD_BYTES
        while True:
            head = self._read_at(0, size)
            whole = len(head) < size
            dialect = csv_text.detect(head, whole=whole, where=self._path)
            self._ahead = (0, head)
            if dialect is not None:
                break
            size *= 4
            if size > tables.MAX_ROW_BYTES:
                raise FileFormatError(
                    f"the header is longer than {tables.MAX_ROW_BYTES >> 20} MB", where=f"{self._path}, header"
                )
        if dialect.names is None:
            shown = head[dialect.first :].split(b"\n", 1)[0].decode("utf-8", "replace").strip()
            raise FileFormatError(
                f"the file has no header: its first row is {shown[:60]}",
                where=self._path,
                hint="Add a line of column names",
            )
        return dialect

    def _read_at(self, begin: int, size: int) -> bytes:
        """Up to `size` bytes from a position; bytes in the read-ahead buffer are not read again."""
        at, ahead = self._ahead
        with self._gzip_errors():
            if not at <= begin <= at + len(ahead):
                self._file.seek(begin)
                self._ahead = (begin, b"")
                return self._file.read(size)
            if begin + size <= at + len(ahead):
                return ahead[begin - at : begin - at + size]
            self._file.seek(at + len(ahead))
            return ahead[begin - at :] + self._file.read(begin + size - at - len(ahead))

    def progress(self, row: int) -> float:
        if self._file is not self._raw:
            return min(1.0, self._raw.tell() / max(1, self._size))
        before = next(
            (row_block.end for row_block in reversed(self._index) if row_block.start < row), self.dialect.first
        )
        return before / max(1, self._size)

    def block(self, row: int) -> Block:
        if self._last is None or not self._last.start <= row < self._last.stop:
            row_block, found, long_rows = self._parse(row, self._column_indices)
            columns: dict[str, Column] = {}
            for name, series in zip(self.names, found, strict=True):
                numbers = series.dtype == pl.Float64
                columns[name] = series.to_numpy() if numbers else series.to_numpy(allow_copy=True).astype(object)
            width = self.dialect.width
            malformed = {
                row_block.start + i: f"the row has {n} values, the header has {width}" for i, n in long_rows.items()
            }
            self._last = Block(row_block.start, row_block.stop, columns, malformed)
        return self._last

    def _parse(self, row: int, places: Sequence[int]) -> tuple[RowBlock, list[pl.Series], dict[int, int]]:
        self.is_past_end(row)
        row_block = self._block_of(row)
        data, ends = self._bytes(row_block)
        try:
            parsed = csv_text.read(data, self.dialect, places, self._texts, ends)
        except csv_text.CsvError as error:
            at = row_block.start + error.row
            raise FileFormatError(
                f"{error.message} (line {self.line(at)})", where=f"{self._path}, row {at}", hint=error.hint
            ) from error
        found = parsed.columns
        if any(len(series) != row_block.stop - row_block.start for series in found):
            raise FileFormatError("the file changed while it was read", where=f"{self._path}, row {row_block.start}")
        self._texts.update(place for place, series in zip(places, found, strict=True) if series.dtype != pl.Float64)
        return row_block, found, parsed.long_rows

    def _bytes(self, row_block: RowBlock) -> tuple[bytes, csv_text.RowEnds | None]:
        """Bytes of a block, and the ends of its rows if they are known."""
        begin, data, ends = self._scanned
        if begin != row_block.begin:
            data, ends = self._read_at(row_block.begin, row_block.end - row_block.begin), None
        return (data, ends) if data.endswith(b"\n") else (data + b"\n", None)

    def line(self, row: int) -> int:
        """Line number of a row, from 1."""
        row_block = self._block_of(row)
        data, _ = self._bytes(row_block)
        ends = csv_text.row_ends(data, self.dialect).ends
        i = row - row_block.start
        return row_block.line + (data.count(b"\n", 0, int(ends[i - 1])) if 0 < i <= len(ends) else 0)

    def profile(self) -> Profile:
        """Statistics of all columns over at most `PROFILE_BYTES`."""
        names = self.dialect.names or ()
        found = Profile(self._path, names, self.unnamed, self.notes)
        row = 0
        while not self.is_past_end(row):
            row_block, series, _ = self._parse(row, range(len(names)))
            data, ends = self._bytes(row_block)
            with_leading_zeros = csv_text.find_leading_zeros(data, self.dialect, ends)
            for i, (statistics, column) in enumerate(zip(found.columns, series, strict=True)):
                statistics.add(row_block.start, column)
                if i in with_leading_zeros and statistics.leading_zero_example is None:
                    at, text = with_leading_zeros[i]
                    statistics.leading_zero_example = (row_block.start + at, text)
            row = row_block.stop
            if row_block.end > tables.PROFILE_BYTES:
                break
        found.finish(row, whole=self.is_past_end(row), line=self.line)
        return found

    def close(self) -> None:
        self._ahead, self._scanned = (0, b""), (-1, b"", None)
        super().close()

    def _scan(self) -> None:
        """Find the end of the next block and its number of rows, without parsing it."""
        last = self._index[-1] if self._index else None
        start, begin = (last.stop, last.end) if last else (0, self.dialect.first)
        line = last.line + last.lines if last else self.dialect.first_line
        size = tables.BLOCK_BYTES
        while True:
            data = self._read_at(begin, size)
            self._ahead = (begin, data)
            at_end = len(data) < size
            ends = csv_text.row_ends(data, self.dialect)
            rows, used, lines = ends.rows, ends.used, ends.lines
            if not at_end and data[used - 2 : used].strip(b"\r\n") == b"":
                # Empty lines at the end of a block are rows only if other rows follow: they go to the next block.
                filled = len(data[:used].rstrip(b"\r\n"))
                rows = int(np.searchsorted(ends.ends, filled)) + 1 if filled else 0
                used = int(ends.ends[rows - 1]) if rows else 0
            if at_end:
                self._complete = True
                rest = data[used:].strip(b"\r\n")
                if ends.open_quote:
                    line += data.count(b"\n", 0, used)
                    raise FileFormatError(
                        f"the file ends inside a quoted value, which begins in line {line} or later",
                        where=f"{self._path}, row {start + rows}",
                        hint="Is it truncated?",
                    )
                if rest:
                    self._check_last(rest, start + rows)
                    rows, used = rows + 1, len(data)
                else:
                    # Empty lines at the end of the file are not rows.
                    kept = data[:used].rstrip(b"\r\n")
                    rows = csv_text.row_ends(kept + b"\n", self.dialect).rows if kept else 0
                    used = len(kept)
                break
            if rows:
                break
            size *= 4
            if size > tables.MAX_ROW_BYTES:
                raise FileFormatError(
                    f"a row is longer than {tables.MAX_ROW_BYTES >> 20} MB", where=f"{self._path}, row {start}"
                )
        if rows:
            known: csv_text.RowEnds | None = ends
            if used != ends.used:
                known, lines = None, data.count(b"\n", 0, used)
            self._index.append(RowBlock(start, start + rows, begin, begin + used, line, lines))
            self._scanned = (begin, data[:used], known)
            self._ahead = (begin + used, data[used:])

    def _check_last(self, rest: bytes, row: int) -> None:
        """Check a last row without newline; with too few values it is truncated."""
        try:
            _, found = next(self.dialect.rows([rest.decode("utf-8", "replace")]), (0, []))
        except csv.Error:
            return  # raised when the row is read
        if len(found) < self.dialect.width:
            raise FileFormatError(
                f"the last row is truncated: {len(found)} of {self.dialect.width} values",
                where=f"{self._path}, row {row}",
                hint="Is it truncated?",
            )
