"""Tables as text, read a bounded block at a time."""

from __future__ import annotations

import contextlib
import csv
import gzip
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from streamkm.errors import FileFormatError
from streamkm.sources import _tables, csv_text
from streamkm.sources._file_places import Place
from streamkm.sources._tables import Block, Column, Profile, Wanted


@dataclass(frozen=True, slots=True)
class _Piece:
    """The rows [start, stop) of a file: bytes [begin, end), the first of them in a line counted from 1."""

    start: int
    stop: int
    begin: int
    end: int
    line: int
    lines: int


class CsvReader:
    """A csv file with a header, in UTF-8; packed by gzip too. `csv_text` says what is understood.

    It is read in blocks that end at the end of a row. Where they begin is remembered, so that going back is cheap.
    A row is a line outside of quotes; an empty line inside the file is a row without values.
    """

    counted = False
    notes: tuple[str, ...] = ()

    def __init__(self, place: Place, wanted: Wanted) -> None:
        self._path, self.single = place.name, False
        self._raw = place.open()
        self._file = gzip.GzipFile(fileobj=self._raw) if place.packed else self._raw
        self._index: list[_Piece] = []
        self._complete = False
        self._ahead = (0, b"")  # bytes that were read and not used yet, and where they begin
        self._scanned: tuple[int, bytes, csv_text.Ends | None] = (-1, b"", None)
        self._last: Block | None = None
        self._texts: set[int] = set()
        try:
            self._size = self._raw.seek(0, os.SEEK_END)
            self._raw.seek(0)
            self.dialect = self._detect()
            names = self.dialect.names or ()
            self.notes = self.dialect.notes
            self.unnamed = self.dialect.unnamed
            self._chosen = wanted.among(self._path, names, unnamed=self.unnamed)
            self.names = tuple(self._chosen)
            self._places = [names.index(column) for column, _ in self._chosen.values()]
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
            if size > _tables.LONGEST_ROW_BYTES:
                raise FileFormatError(
                    f"its header is longer than {_tables.LONGEST_ROW_BYTES >> 20} MB", where=f"{self._path}, header"
                )
        if dialect.names is None:
            shown = head[dialect.first :].split(b"\n", 1)[0].decode("utf-8", "replace").strip()
            raise FileFormatError(
                f"it has no header: its first row is {shown[:60]}", where=self._path, hint="Add a line of column names"
            )
        return dialect

    def _read_at(self, begin: int, size: int) -> bytes:
        """So many bytes from a place, or all up to the end; what was read before is not read again."""
        at, ahead = self._ahead
        with self._edge():
            if not at <= begin <= at + len(ahead):
                self._file.seek(begin)
                self._ahead = (begin, b"")
                return self._file.read(size)
            if begin + size <= at + len(ahead):
                return ahead[begin - at : begin - at + size]
            self._file.seek(at + len(ahead))
            return ahead[begin - at :] + self._file.read(begin + size - at - len(ahead))

    @contextlib.contextmanager
    def _edge(self) -> Iterator[None]:
        try:
            yield
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise FileFormatError(
                f"it is not packed by gzip, or ends in the middle: {error}", where=self._path
            ) from error

    def rows(self) -> int:
        while not self._complete:
            self._scan()
        return self._index[-1].stop if self._index else 0

    def ended(self, row: int) -> bool:
        while not self._complete and (not self._index or self._index[-1].stop <= row):
            self._scan()
        return row >= (self._index[-1].stop if self._index else 0)

    def share(self, row: int) -> float:
        if self._file is not self._raw:
            return min(1.0, self._raw.tell() / max(1, self._size))
        before = next((piece.end for piece in reversed(self._index) if piece.start < row), self.dialect.first)
        return before / max(1, self._size)

    def block(self, row: int) -> Block:
        if self._last is None or not self._last.start <= row < self._last.stop:
            piece, found, long = self._cells(row, self._places)
            columns: dict[str, Column] = {}
            for name, series in zip(self.names, found, strict=True):
                numbers = series.dtype == pl.Float64
                columns[name] = series.to_numpy() if numbers else series.to_numpy(allow_copy=True).astype(object)
            width = self.dialect.width
            broken = {piece.start + i: f"it has {n} values, the header {width}" for i, n in long.items()}
            self._last = Block(piece.start, piece.stop, columns, broken)
        return self._last

    def _cells(self, row: int, places: Sequence[int]) -> tuple[_Piece, list[pl.Series], dict[int, int]]:
        self.ended(row)
        piece = next(piece for piece in reversed(self._index) if piece.start <= row)
        data, ends = self._bytes(piece)
        try:
            cells = csv_text.read(data, self.dialect, places, self._texts, ends)
        except csv_text.CsvError as error:
            at = piece.start + error.row
            raise FileFormatError(
                f"{error.message} (line {self.line(at)})", where=f"{self._path}, row {at}", hint=error.hint
            ) from error
        found = cells.columns
        if any(len(series) != piece.stop - piece.start for series in found):
            raise FileFormatError("it changed while it was read", where=f"{self._path}, row {piece.start}")
        self._texts.update(place for place, series in zip(places, found, strict=True) if series.dtype != pl.Float64)
        return piece, found, cells.long

    def _bytes(self, piece: _Piece) -> tuple[bytes, csv_text.Ends | None]:
        """Bytes of a piece, and the ends of its rows where they are known."""
        begin, data, ends = self._scanned
        if begin != piece.begin:
            data, ends = self._read_at(piece.begin, piece.end - piece.begin), None
        return (data, ends) if data.endswith(b"\n") else (data + b"\n", None)

    def line(self, row: int) -> int:
        """Line of the file in which a row begins, from 1."""
        piece = next(piece for piece in reversed(self._index) if piece.start <= row)
        data, _ = self._bytes(piece)
        ends = csv_text.row_ends(data, self.dialect).ends
        i = row - piece.start
        return piece.line + (data.count(b"\n", 0, int(ends[i - 1])) if 0 < i <= len(ends) else 0)

    def profile(self) -> Profile:
        """What all columns hold, as far as `PROFILE_BYTES` reach."""
        names = self.dialect.names or ()
        found = Profile(self._path, names, self.unnamed, self.notes)
        row = 0
        while not self.ended(row):
            piece, series, _ = self._cells(row, range(len(names)))
            data, ends = self._bytes(piece)
            padded = csv_text.padded(data, self.dialect, ends)
            for i, (facts, column) in enumerate(zip(found.columns, series, strict=True)):
                facts.add(piece.start, column)
                if i in padded and facts.padded is None:
                    at, text = padded[i]
                    facts.padded = (piece.start + at, text)
            row = piece.stop
            if piece.end > _tables.PROFILE_BYTES:
                break
        found.finish(row, whole=self.ended(row), line=self.line)
        return found

    def close(self) -> None:
        self._last, self._ahead, self._scanned = None, (0, b""), (-1, b"", None)
        self._file.close()
        self._raw.close()

    def _scan(self) -> None:
        """Find the next block's end and rows, without parsing it."""
        last = self._index[-1] if self._index else None
        start, begin = (last.stop, last.end) if last else (0, self.dialect.first)
        line = last.line + last.lines if last else self.dialect.first_line
        size = _tables.BLOCK_BYTES
        while True:
            data = self._read_at(begin, size)
            self._ahead = (begin, data)
            at_end = len(data) < size
            ends = csv_text.row_ends(data, self.dialect)
            rows, used, lines = ends.rows, ends.used, ends.lines
            if not at_end and data[used - 2 : used].strip(b"\r\n") == b"":
                # Empty lines at the end of a block are rows only if others follow: they go to the next block.
                filled = len(data[:used].rstrip(b"\r\n"))
                rows = int(np.searchsorted(ends.ends, filled)) + 1 if filled else 0
                used = int(ends.ends[rows - 1]) if rows else 0
            if at_end:
                self._complete = True
                rest = data[used:].strip(b"\r\n")
                if ends.open_quote:
                    line += data.count(b"\n", 0, used)
                    raise FileFormatError(
                        f"it ends inside a quoted value, which begins in line {line} or later",
                        where=f"{self._path}, row {start + rows}",
                        hint="Is it cut off?",
                    )
                if rest:
                    self._check_last(rest, start + rows)
                    rows, used = rows + 1, len(data)
                else:
                    # Empty lines at the very end are no rows.
                    kept = data[:used].rstrip(b"\r\n")
                    rows = csv_text.row_ends(kept + b"\n", self.dialect).rows if kept else 0
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
            known: csv_text.Ends | None = ends
            if used != ends.used:
                known, lines = None, data.count(b"\n", 0, used)
            self._index.append(_Piece(start, start + rows, begin, begin + used, line, lines))
            self._scanned = (begin, data[:used], known)
            self._ahead = (begin + used, data[used:])

    def _check_last(self, rest: bytes, row: int) -> None:
        """A last row without newline may be whole; with too few values it was cut off."""
        try:
            _, found = next(self.dialect.rows([rest.decode("utf-8", "replace")]), (0, []))
        except csv.Error:
            return  # it is told when the row is read
        if len(found) < self.dialect.width:
            raise FileFormatError(
                f"it ends in the middle of a row: {len(found)} of {self.dialect.width} values",
                where=f"{self._path}, row {row}",
                hint="Is it cut off?",
            )
