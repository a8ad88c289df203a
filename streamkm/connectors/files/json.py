"""Reads files of JSON lines in bounded blocks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson
import polars as pl

from streamkm.connectors.files import tables
from streamkm.connectors.files.places import Place
from streamkm.connectors.files.tables import Block, Column, ColumnSelection, Profile, ResolvedColumns
from streamkm.connectors.files.text_blocks import RowBlock, TextBlocks
from streamkm.errors import FileFormatError
from streamkm.field_paths import MISSING, resolve_path

_MAX_NESTING = 32
"""Depth of nested objects in which columns are searched."""


class JsonReader(TextBlocks):
    """A file with a JSON object per line, in UTF-8, optionally compressed by gzip.

    Columns are the names in the first block of lines; members of nested objects are called ``outer.inner``. An array of
    numbers is a column with several dimensions. An empty line is not a row.
    """

    def __init__(self, place: Place, selection: ColumnSelection) -> None:
        super().__init__(place)
        self._at, self._rest, self._line = 0, b"", 1
        self._cached: tuple[int, list[tuple[int, dict[str, Any]]]] | None = None
        try:
            self._all, self._widths = self._columns()
            self._chosen: ResolvedColumns = selection.resolve(self._path, self._all, self._widths)
            self.names = tuple(self._chosen)
        except BaseException:
            self.close()
            raise

    def _columns(self) -> tuple[list[str], dict[str, int]]:
        if self.is_past_end(0):
            raise FileFormatError("the file has no rows", where=self._path)
        names: dict[str, None] = {}
        widths: dict[str, int] = {}
        for _, record in self._rows_of(0)[1]:
            for name, value in _flatten(record):
                names[name] = None
                if name not in widths and isinstance(value, list) and value and all(map(_is_number, value)):
                    widths[name] = len(value)
        return list(names), widths

    def progress(self, row: int) -> float:
        del row
        return min(1.0, self._raw.tell() / max(1, self._size))

    def line(self, row: int) -> int | None:
        start, records = self._rows_of(row)
        return records[row - start][0]

    def block(self, row: int) -> Block:
        if self._last is None or not self._last.start <= row < self._last.stop:
            start, records = self._rows_of(row)
            columns: dict[str, Column] = {}
            for name, (column, part) in self._chosen.items():
                values = [resolve_path(record, column) for _, record in records]
                width = self._widths.get(column)
                columns[name] = _array([_value(value, width if part is not None else None, part) for value in values])
            self._last = Block(start, start + len(records), columns)
        return self._last

    def profile(self) -> Profile:
        found = Profile(self._path, self._all, widths=self._widths)
        row = 0
        while not self.is_past_end(row):
            start, records = self._rows_of(row)
            for facts in found.columns:
                if facts.width is None:
                    values = [_value(resolve_path(record, facts.name), None, None) for _, record in records]
                    array = _array(values)
                    series = pl.Series(array) if array.dtype != object else pl.Series(array.tolist(), dtype=pl.String)
                    facts.add(start, series)
            row = start + len(records)
            if self._index[-1].end > tables.PROFILE_BYTES:
                break
        found.finish(row, whole=self.is_past_end(row), line=self.line)
        return found

    def close(self) -> None:
        self._cached = None
        super().close()

    def _scan(self) -> None:
        """Find the next block of complete lines."""
        start = self._index[-1].stop if self._index else 0
        begin = self._at - len(self._rest)
        size = tables.BLOCK_BYTES
        with self._gzip_errors():
            if self._file.tell() != self._at:
                self._file.seek(self._at)
            while True:
                more = self._file.read(size)
                self._at += len(more)
                self._rest += more
                if len(more) < size:
                    self._complete = True
                    data, self._rest = self._rest, b""
                    break
                end = self._rest.rfind(b"\n") + 1
                if end:
                    data, self._rest = self._rest[:end], self._rest[end:]
                    break
                if len(self._rest) > tables.MAX_ROW_BYTES:
                    raise FileFormatError(
                        f"a line is longer than {tables.MAX_ROW_BYTES >> 20} MB",
                        where=f"{self._path}, line {self._line}",
                    )
        records = self._parse(data, self._line)
        lines = data.count(b"\n")
        if records:
            self._index.append(RowBlock(start, start + len(records), begin, begin + len(data), self._line, lines))
            self._cached = (start, records)
        self._line += lines

    def _rows_of(self, row: int) -> tuple[int, list[tuple[int, dict[str, Any]]]]:
        """The rows of a block, each with its line number."""
        self.is_past_end(row)
        block = self._block_of(row)
        if self._cached is None or self._cached[0] != block.start:
            with self._gzip_errors():
                self._file.seek(block.begin)
                self._cached = (block.start, self._parse(self._file.read(block.end - block.begin), block.line))
        return self._cached

    def _parse(self, data: bytes, line: int) -> list[tuple[int, dict[str, Any]]]:
        records = []
        for i, text in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), line):
            if not text.strip():
                continue
            try:
                record = orjson.loads(text)
            except orjson.JSONDecodeError as error:
                raise FileFormatError(f"the line is not JSON: {error}", where=f"{self._path}, line {i}") from error
            if not isinstance(record, dict):
                raise FileFormatError(
                    f"{text[:40].decode('utf-8', 'replace')} is not a JSON object", where=f"{self._path}, line {i}"
                )
            records.append((i, record))
        return records


def _flatten(record: dict[str, Any], outer: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Paths and values of a record; like `resolve_path`, not descending into members whose names have dots."""
    for name, value in record.items():
        if isinstance(value, dict) and depth < _MAX_NESTING and "." not in name:
            yield from _flatten(value, f"{outer}{name}.", depth + 1)
        else:
            yield outer + name, value


def _is_number(value: Any) -> bool:
    return type(value) in {int, float}


def _value(value: Any, width: int | None, part: int | None) -> float | str:
    """A value as a number, or as text if it is not a number."""
    if value is None or value is MISSING:
        return float("nan")
    if part is not None and isinstance(value, list):
        if len(value) != width:
            return f"{len(value)} values, not {width}"
        value = value[part]
    if type(value) in {int, float}:
        return float(value)
    if isinstance(value, str):
        return value
    try:
        return orjson.dumps(value).decode()
    except TypeError:  # orjson parses deeper nesting than it writes
        return f"a deeply nested {'array' if isinstance(value, list) else 'object'}"


def _array(values: list[float | str]) -> Column:
    if all(type(value) is float for value in values):
        return np.array(values, np.float64)
    return np.array([None if isinstance(v, float) and np.isnan(v) else str(v) for v in values], dtype=object)
