"""``streamkm predict``: predict points from standard input."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import math
import os
import select
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, BinaryIO

import click
import numpy as np

from consumers import terminal
from consumers.options import example, with_settings
from streamkm import cells
from streamkm.client import Client, Prediction
from streamkm.connectors.files import csv_text
from streamkm.connectors.files.csv_text import Dialect
from streamkm.errors import DataError, FileFormatError
from streamkm.field_paths import MISSING, FieldPaths
from streamkm.settings import ClientSettings

BATCH_SIZE = 10_000
"""Lines that are predicted at a time."""
RESULT_COLUMNS = ("cluster", "distance", "score")
MAX_DELAY = 0.2
"""Seconds after which a line is predicted, even if the batch is not full."""
READ_BYTES = 1 << 16
MAX_LINE_BYTES = 1 << 24
_END_MARKER = "\x01"
"""A line after the last one: a row of its own, unless a quote is open."""

Rows = list[tuple[int, Any]]
"""Line numbers, and parsed lines."""


@click.command(
    epilog=example(
        "streamkm predict orders --csv <orders.csv >clustered.csv",
        """echo '{"amount": 12, "lat": 52.5, "lon": 13.4}' | streamkm predict orders""",
    )
)
@click.argument("model")
@with_settings(ClientSettings)
@click.option("--snapshot", type=click.IntRange(min=1), help="Number of the snapshot; the newest by default.")
@click.option(
    "--csv", "as_csv", is_flag=True, help="The input is CSV with a header; else each line is a JSON object or array."
)
def predict(model: str, settings: ClientSettings, *, snapshot: int | None, as_csv: bool) -> None:
    """Predict the cluster of MODEL of each point on standard input.

    Each line is a JSON object by field, or an array of numbers, and gets a line of JSON: cluster, distance, score. With
    --csv, columns are found by the names in the header, and the same three are added to each row. All points are
    predicted with one snapshot. Lines may arrive slowly: they are predicted after at most 0.2 s.
    """
    if sys.stdin is None:
        raise DataError("standard input is closed", hint=f"Send points to it: streamkm predict {model} <points.jsonl")
    with Client(settings.url, token=settings.token) as client:
        fields = client.model(model).fields
        predict_lines = _predict_csv if as_csv else _predict_json
        predict_lines(client, model, fields, snapshot, sys.stdin.buffer)


class Batches:
    """Collects rows, and predicts them when a batch is full or its first row has waited for `MAX_DELAY`.

    Parameters
    ----------
    answer
        Predicts rows, each with its line number, and writes the results.
    clock
        Seconds of a monotonic clock.
    """

    def __init__(self, answer: Callable[[Rows], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._answer, self._clock = answer, clock
        self._rows: Rows = []
        self._due_at = float("inf")

    def add(self, number: int, row: Any) -> None:
        """Add a row."""
        if not self._rows:
            self._due_at = self._clock() + MAX_DELAY
        self._rows.append((number, row))
        if len(self._rows) >= BATCH_SIZE or self.remaining() <= 0:
            self.flush()

    def remaining(self) -> float:
        """Seconds until the batch is due; infinite if it is empty."""
        return self._due_at - self._clock()

    def flush(self) -> None:
        """Predict the batch."""
        rows, self._rows, self._due_at = self._rows, [], float("inf")
        if rows:
            self._answer(rows)


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


def _predict_json(client: Client, model: str, fields: tuple[str, ...], snapshot: int | None, source: BinaryIO) -> None:
    def answer(rows: Rows) -> None:
        nonlocal snapshot
        found = _predict(client, model, rows, snapshot)
        snapshot = found.snapshot
        terminal.write(json.dumps(dict(zip(RESULT_COLUMNS, one, strict=True))) + "\n" for one in _results(found))

    batches = Batches(answer)
    with _flushing(batches):
        for number, text in enumerate(lines(source, batches), 1):
            if text.strip():
                batches.add(number, _point(number, text, fields))


class Header:
    """The header of CSV: written when the row after it has arrived, which may show that the header lacks a name.

    Attributes
    ----------
    dialect
        Dialect of the input; None until it is detected.
    written
        Whether the header was written.
    """

    def __init__(self, fields: tuple[str, ...]) -> None:
        self.dialect: Dialect | None = None
        self.written = False
        self._fields = fields

    def write(self) -> Dialect:
        """Write the header with the added columns, once; returns the dialect."""
        if self.dialect is None or self.dialect.names is None:
            raise DataError("no header", where="line 1", hint=f"The fields are {', '.join(self._fields)}")
        for name in self._fields:
            self.column_of(name)
        if not self.written:
            names = ["" if name in self.dialect.unnamed else name for name in self.dialect.names]
            _write_csv([[*names, *RESULT_COLUMNS]], self.dialect)
            self.written = True
        return self.dialect

    def column_of(self, name: str) -> int:
        """The column of a field."""
        names = self.dialect.names or () if self.dialect is not None else ()
        if names.count(name) != 1:
            problem = "there is no column" if name not in names else "there are several columns called"
            raise DataError(f"{problem} {name}", where="line 1", hint="Name the fields in the header, each once")
        return names.index(name)

    def point(self, row: Sequence[str], line: int) -> list[float]:
        """The values of the fields in a row."""
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
        """Read lines until the header is written, and return them."""
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
                    batches.add(0, None)  # the header is written after a delay, even if no row follows
            except FileFormatError as e:
                if line is None and not b"".join(text.split()):
                    raise DataError(
                        "no header", where="line 1", hint=f"The fields are {', '.join(self._fields)}"
                    ) from e
                if line is None or not e.message.startswith("it is empty"):
                    raise DataError(e.message, where="line 1", hint=e.hint) from e
        return begun


def _predict_csv(client: Client, model: str, fields: tuple[str, ...], snapshot: int | None, source: BinaryIO) -> None:
    header = Header(fields)

    def answer(rows: Rows) -> None:
        nonlocal snapshot
        dialect = header.write()
        rows = [row for row in rows if row[0]]
        if not rows:
            return
        found = _predict(client, model, [(number, point) for number, (_, point) in rows], snapshot)
        snapshot = found.snapshot
        answered = ([*row, *one] for (_, (row, _)), one in zip(rows, _results(found), strict=True))
        _write_csv(answered, dialect)

    batches = Batches(answer)
    coming = lines(source, batches)
    begun = header.read(coming, batches)
    with _flushing(batches):
        for number, row, point in csv_rows(header, begun, coming):
            batches.add(number, (row, point))


def csv_rows(
    header: Header, begun: Sequence[str], coming: Iterator[str]
) -> Iterator[tuple[int, list[str], list[float]]]:
    """Rows of CSV: line number, cells and point.

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
                yield before + number, row, header.point(row, before + number)
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


def _write_csv(rows: Iterable[Iterable[object]], dialect: Dialect) -> None:
    text = io.StringIO()
    csv.writer(text, delimiter=dialect.separator, lineterminator="\n").writerows(rows)
    terminal.write([text.getvalue()])


def _predict(client: Client, model: str, rows: Rows, snapshot: int | None) -> Prediction:
    points = np.array([point for _, point in rows], np.float64)
    return client.predict(model, points, snapshot=snapshot)


def _results(found: Prediction) -> Iterator[tuple[int, float | None, float | None]]:
    """Cluster, distance and score of each point; None where a number overflows a double."""
    plain = ([x if np.isfinite(x) else None for x in column.tolist()] for column in (found.distances, found.scores))
    return zip(found.ids.tolist(), *plain, strict=True)


def _point(number: int, text: str, fields: tuple[str, ...]) -> list[float]:
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
