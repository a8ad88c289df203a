"""Predictions for points that arrive as lines of text: JSON or CSV in, the clusters out, in the order of the lines."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import math
import os
import select
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from streamkm import cells
from streamkm.connectors.files import csv_text
from streamkm.connectors.files.csv_text import Dialect
from streamkm.errors import DataError, FileFormatError
from streamkm.field_paths import MISSING, FieldPaths

BATCH_SIZE = 10_000
"""Lines that are predicted at a time."""
RESULT_COLUMNS = ("cluster", "distance", "score")
MAX_DELAY = 0.2
"""Seconds after which a line is predicted, even if the batch is not full."""
READ_BYTES = 1 << 16
MAX_LINE_BYTES = 1 << 24
_END_MARKER = "\x01"
"""A line after the last one: a row of its own, unless a quote is open."""


Predicted = tuple[int, NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]
"""Number of the snapshot; ids, distances and scores of the points, each (n,)."""


class LinePredictor:
    """Predicts all points of an input with one snapshot.

    Parameters
    ----------
    fields
        Fields of the model.
    predict
        Predicts points (n, d) with a snapshot; None: the newest.
    write
        Writes texts.
    snapshot
        Number of the snapshot; that of the first prediction if None.
    """

    def __init__(
        self,
        fields: Sequence[str],
        predict: Callable[[NDArray[np.float64], int | None], Predicted],
        write: Callable[[Iterable[str]], None],
        snapshot: int | None = None,
    ) -> None:
        self._fields, self._predict, self._write, self._snapshot = fields, predict, write, snapshot

    def predict_json(self, source: BinaryIO) -> None:
        """Predict a point per line, an object by field or an array, and write cluster, distance and score as JSON.

        Raises
        ------
        DataError
            A line is not a point; those before it were predicted.
        """

        def predict_rows(points: list[Any]) -> None:
            results = (dict(zip(RESULT_COLUMNS, one, strict=True)) for one in self._results(points))
            self._write(json.dumps(result) + "\n" for result in results)

        batches = Batches(predict_rows)
        with _flushing(batches):
            for number, text in enumerate(lines(source, batches), 1):
                if text.strip():
                    batches.add(parse_point(number, text, self._fields))

    def predict_csv(self, source: BinaryIO) -> None:
        """Predict a point per row, found by the names in the header, and write the rows with three more columns.

        Raises
        ------
        DataError
            A row is not a point; those before it were predicted.
        """
        header = Header(self._fields, self._write)

        def predict_rows(rows: list[Any]) -> None:
            header.write()
            rows = [row for row in rows if row is not None]
            if rows:
                results = self._results([point for _, point in rows])
                header.write_rows([*row, *one] for (row, _), one in zip(rows, results, strict=True))

        batches = Batches(predict_rows)
        coming = lines(source, batches)
        begun = header.read(coming, batches)
        with _flushing(batches):
            for row in csv_rows(header, begun, coming):
                batches.add(row)

    def _results(self, points: Sequence[Sequence[float]]) -> Iterator[tuple[int, float | None, float | None]]:
        """Cluster, distance and score of each point; None where a number overflows a double."""
        self._snapshot, ids, *columns = self._predict(np.array(points, np.float64), self._snapshot)
        plain = ([x if math.isfinite(x) else None for x in column.tolist()] for column in columns)
        return zip(ids.tolist(), *plain, strict=True)


class Batches:
    """Collects rows, and predicts them when a batch is full or its first row has waited for `MAX_DELAY`.

    Parameters
    ----------
    predict_rows
        Predicts rows and writes the results.
    clock
        Seconds of a monotonic clock.
    """

    def __init__(self, predict_rows: Callable[[list[Any]], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._predict_rows, self._clock = predict_rows, clock
        self._rows: list[Any] = []
        self._due_at = float("inf")

    def add(self, row: Any) -> None:
        """Add a row."""
        if not self._rows:
            self._due_at = self._clock() + MAX_DELAY
        self._rows.append(row)
        if len(self._rows) >= BATCH_SIZE or self.remaining() <= 0:
            self.flush()

    def remaining(self) -> float:
        """Seconds until the batch is due; infinite if it is empty."""
        return self._due_at - self._clock()

    def flush(self) -> None:
        """Predict the batch."""
        rows, self._rows, self._due_at = self._rows, [], float("inf")
        if rows:
            self._predict_rows(rows)


def lines(source: BinaryIO, batches: Batches) -> Iterator[str]:
    """Read lines; while none arrives, due batches are predicted.

    Parameters
    ----------
    source
        A file, a pipe or a terminal.
    batches
        Batches of the lines before.

    Raises
    ------
    DataError
        A line is not UTF-8, or too long.
    """
    number, rest = 0, b""
    while chunk := _read(source, batches):
        *whole, rest = (rest + chunk).split(b"\n")
        if len(rest) > MAX_LINE_BYTES:
            raise DataError(f"it is longer than {MAX_LINE_BYTES:,} bytes", where=f"line {number + len(whole) + 1}")
        for number, line in enumerate(whole, number + 1):  # noqa: B020 - continues the numbering
            yield _text(number, line) + "\n"
    if rest:
        yield _text(number + 1, rest)


def _read(source: BinaryIO, batches: Batches) -> bytes:
    try:
        descriptor = source.fileno()
    except OSError:  # in memory
        return source.read(READ_BYTES)
    while (remaining := batches.remaining()) != float("inf"):
        if select.select([descriptor], [], [], max(0.0, remaining))[0]:
            break
        batches.flush()
    return os.read(descriptor, READ_BYTES)


def _text(number: int, line: bytes) -> str:
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as e:
        raise DataError(f"not UTF-8 ({e.reason})", where=f"line {number}", hint="Convert it, such as by iconv") from e


class Header:
    """The header of CSV: written when the row after it has arrived, which may show that the header lacks a name.

    Parameters
    ----------
    fields
        Fields of the model, each of which must be a column.
    write
        Writes text.

    Attributes
    ----------
    dialect
        Dialect of the input; None until it is detected.
    written
        Whether the header was written.
    """

    def __init__(self, fields: Sequence[str], write: Callable[[list[str]], None]) -> None:
        self.dialect: Dialect | None = None
        self.written = False
        self._fields, self._write = fields, write

    def write(self) -> Dialect:
        """Write the header with the added columns, once; returns the dialect."""
        if self.dialect is None or self.dialect.names is None:
            raise self._no_header()
        for name in self._fields:
            self.column_of(name)
        if not self.written:
            names = ["" if name in self.dialect.unnamed else name for name in self.dialect.names]
            self.write_rows([[*names, *RESULT_COLUMNS]])
            self.written = True
        return self.dialect

    def write_rows(self, rows: Iterable[Iterable[object]]) -> None:
        """Write rows in the dialect of the input."""
        text = io.StringIO()
        separator = "," if self.dialect is None else self.dialect.separator
        csv.writer(text, delimiter=separator, lineterminator="\n").writerows(rows)
        self._write([text.getvalue()])

    def _no_header(self) -> DataError:
        return DataError("no header", where="line 1", hint=f"The fields are {', '.join(self._fields)}")

    def column_of(self, name: str) -> int:
        """The column of a field.

        Raises
        ------
        DataError
            No column, or several, have this name.
        """
        names = self.dialect.names or () if self.dialect is not None else ()
        if names.count(name) != 1:
            problem = "there is no column" if name not in names else "there are several columns called"
            raise DataError(f"{problem} {name}", where="line 1", hint="Name the fields in the header, each once")
        return names.index(name)

    def point(self, row: Sequence[str], line: int) -> list[float]:
        """The values of the fields in a row.

        Raises
        ------
        DataError
            The row is too long, or a value is missing or no number.
        """
        width = self.write().width
        if len(row) > width:
            raise DataError(f"it has {len(row)} values, the header {width}", where=f"line {line}")
        found = []
        for name in self._fields:
            column = self.column_of(name)
            text = row[column] if column < len(row) else ""
            value = cells.parse_number(text)
            if value is None or math.isnan(value):
                message = "is missing" if value is not None else cells.non_number_message(name, text)
                raise DataError(message, where=f"line {line}, field {name}")
            found.append(value)
        return _finite(found, f"line {line}")

    def read(self, coming: Iterator[str], batches: Batches) -> list[str]:
        """Read lines until the header is written, and return them.

        Raises
        ------
        DataError
            There is no header, or it lacks a field.
        """
        begun: list[str] = []
        while not self.written:
            line = next(coming, None)
            if self.written:
                return begun if line is None else [*begun, line]
            begun += [] if line is None else [line]
            text = "".join(begun).encode()
            try:
                found = csv_text.detect(text, whole=line is None, where="standard input")
                if found is not None:
                    self.dialect = found
                    self.write()
                elif self.dialect is None:
                    self.dialect = csv_text.detect(text, whole=True, where="standard input")
                    batches.add(None)  # the header is written after a delay, even if no row follows
            except FileFormatError as e:
                if line is None and not b"".join(text.split()):
                    raise self._no_header() from e
                if line is None or not e.message.startswith("it is empty"):
                    raise DataError(e.message, where="line 1", hint=e.hint) from e
        return begun


def csv_rows(header: Header, begun: Sequence[str], coming: Iterator[str]) -> Iterator[tuple[list[str], list[float]]]:
    """Rows of CSV: cells and point.

    Parameters
    ----------
    header
        The header, already read.
    begun, coming
        Lines read for the header, and all further lines.

    Raises
    ------
    DataError
        A row is not a point.
    """
    dialect = header.write()
    before, empty = dialect.first_line - 1, 0
    try:
        for number, row in dialect.rows(itertools.chain(begun[before:], coming, [_END_MARKER])):
            if row and row[-1].endswith(_END_MARKER):
                if row != [_END_MARKER]:
                    raise DataError("it ends inside a quoted value", where=f"line {before + number - 1}")
            elif not row:
                empty = empty or before + number  # ignored at the end
            elif empty:
                raise DataError("an empty line", where=f"line {empty}", hint="Remove it, or give it values")
            else:
                yield row, header.point(row, before + number)
    except csv.Error as e:
        raise DataError(f"not csv ({e})", where=f"after line {before}") from e


@contextlib.contextmanager
def _flushing(batches: Batches) -> Iterator[None]:
    """Predict the rows before the end of the input, or before an invalid line."""
    try:
        yield
    except DataError:
        batches.flush()
        raise
    batches.flush()


def parse_point(number: int, text: str, fields: Sequence[str]) -> list[float]:
    """The point in a line of JSON: an object by field, or an array.

    Raises
    ------
    DataError
        The line is not a point.
    """
    where = f"line {number}"
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise DataError(f"not JSON ({e})", where=where, hint="CSV needs --csv") from e
    if isinstance(parsed, dict):
        values = FieldPaths(fields).values(parsed)
    elif isinstance(parsed, list) and len(parsed) == len(fields):
        values = parsed
    else:
        raise DataError("not a point", where=where, hint=f"Give an object or an array with {', '.join(fields)}")
    for name, value in zip(fields, values, strict=True):
        if value is MISSING:
            raise DataError("is missing", where=f"{where}, field {name}")
        if type(value) not in (int, float):
            raise DataError(f"{json.dumps(value)[:80]} is not a number", where=f"{where}, field {name}")
    try:
        return _finite([float(value) for value in values], where)
    except OverflowError as e:
        raise DataError("a number that is not finite", where=where) from e


def _finite(point: list[float], where: str) -> list[float]:
    if not all(map(math.isfinite, point)):
        raise DataError("a number that is not finite", where=where)
    return point
