"""``streamkm predict``: points from standard input, their clusters to standard output."""

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

AT_ONCE = 10_000
"""Lines that are asked for at a time."""
OWN = ("cluster", "distance", "score")

PATIENCE = 0.2
"""Seconds after which a line is asked for, however few came with it."""
READ_BYTES = 1 << 16
MOST_OF_A_LINE = 1 << 24
_END = "\x01"
"""A line behind the last: a row of its own, unless a quote is open."""

Rows = list[tuple[int, Any]]
"""Line numbers, and what stands there."""


@click.command(
    epilog=example(
        "streamkm predict orders --csv <orders.csv >clustered.csv",
        """echo '{"amount": 12, "lat": 52.5, "lon": 13.4}' | streamkm predict orders""",
    )
)
@click.argument("model")
@with_settings(ClientSettings)
@click.option("--snapshot", type=click.IntRange(min=1), help="Ask this one; the newest one if not given.")
@click.option(
    "--csv", "as_csv", is_flag=True, help="The lines are csv with a header; else each is a JSON object or array."
)
def predict(model: str, settings: ClientSettings, *, snapshot: int | None, as_csv: bool) -> None:
    """Say of each point on standard input which cluster of MODEL it belongs to.

    Each line is a JSON object by field or an array of numbers, and gets a line of JSON: cluster, distance, score. With
    --csv columns are found by their names in the header, and the same three are added to each row. One snapshot answers
    for all. Lines may come one by one: what has come is answered after 0.2 s.
    """
    if sys.stdin is None:
        raise DataError("standard input is closed", hint=f"Send points to it: streamkm predict {model} <points.jsonl")
    with Client(settings.url, token=settings.token) as client:
        fields = client.model(model).fields
        run = _csv if as_csv else _json
        run(client, model, fields, snapshot, sys.stdin.buffer)


class Batches:
    """Rows that wait for an answer: asked for when there are many of them, and when none has come for a moment.

    Parameters
    ----------
    answer
        Asks for rows, each with its line number, and writes what it gets.
    clock
        Seconds that never jump.
    """

    def __init__(self, answer: Callable[[Rows], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._answer, self._clock = answer, clock
        self._rows: Rows = []
        self._due_at = float("inf")

    def add(self, number: int, row: Any) -> None:
        """Take one more."""
        if not self._rows:
            self._due_at = self._clock() + PATIENCE
        self._rows.append((number, row))
        if len(self._rows) >= AT_ONCE or self.left() <= 0:
            self.flush()

    def left(self) -> float:
        """Seconds until what waits is asked for; infinite if nothing does."""
        return self._due_at - self._clock()

    def flush(self) -> None:
        """Ask for what waits."""
        rows, self._rows, self._due_at = self._rows, [], float("inf")
        if rows:
            self._answer(rows)


def lines(source: BinaryIO, batches: Batches) -> Iterator[str]:
    """Lines as they come; while none does, what waits is asked for.

    Parameters
    ----------
    source
        A file, a pipe or a terminal.
    batches
        What was made of the lines before.

    Raises
    ------
    DataError
        A line is not UTF-8, or has no end.
    """
    number, rest = 0, b""
    while chunk := _read(source, batches):
        *whole, rest = (rest + chunk).split(b"\n")
        if len(rest) > MOST_OF_A_LINE:
            raise DataError(f"it is longer than {MOST_OF_A_LINE:,} bytes", where=f"line {number + len(whole) + 1}")
        for number, line in enumerate(whole, number + 1):  # noqa: B020 - goes on from where it was
            yield _text(number, line) + "\n"
    if rest:
        yield _text(number + 1, rest)


def _read(source: BinaryIO, batches: Batches) -> bytes:
    try:
        descriptor = source.fileno()
    except OSError:  # made of memory: all of it is there
        return source.read(READ_BYTES)
    while (left := batches.left()) != float("inf"):
        if select.select([descriptor], [], [], max(0.0, left))[0]:
            break
        batches.flush()
    return os.read(descriptor, READ_BYTES)


def _text(number: int, line: bytes) -> str:
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as e:
        raise DataError(f"not UTF-8 ({e.reason})", where=f"line {number}", hint="Convert it, such as by iconv") from e


def _json(client: Client, model: str, fields: tuple[str, ...], snapshot: int | None, source: BinaryIO) -> None:
    def answer(rows: Rows) -> None:
        nonlocal snapshot
        found = _ask(client, model, rows, snapshot)
        snapshot = found.snapshot
        terminal.write(json.dumps(dict(zip(OWN, one, strict=True))) + "\n" for one in _answers(found))

    batches = Batches(answer)
    with _answered(batches):
        for number, text in enumerate(lines(source, batches), 1):
            if text.strip():
                batches.add(number, _point(number, text, fields))


class Header:
    """The first row of csv: told when the row behind it has come, which may show that it is one name short, or not yet.

    Attributes
    ----------
    dialect
        How the lines have to be read, as far as it is known.
    told
        Whether it was written.
    """

    def __init__(self, fields: tuple[str, ...]) -> None:
        self.dialect: Dialect | None = None
        self.told = False
        self._fields = fields

    def tell(self) -> Dialect:
        """Write it, with the columns that are added."""
        if self.dialect is None or self.dialect.names is None:
            raise DataError("no header", where="line 1", hint=f"The fields are {', '.join(self._fields)}")
        for name in self._fields:
            self.place_of(name)
        if not self.told:
            names = ["" if name in self.dialect.unnamed else name for name in self.dialect.names]
            _write_csv([[*names, *OWN]], self.dialect)
            self.told = True
        return self.dialect

    def place_of(self, name: str) -> int:
        """Which column a field is."""
        names = self.dialect.names or () if self.dialect is not None else ()
        if names.count(name) != 1:
            said = "there is no column" if name not in names else "there are several columns called"
            raise DataError(f"{said} {name}", where="line 1", hint="Name the fields in the header, each once")
        return names.index(name)

    def point(self, row: Sequence[str], line: int) -> list[float]:
        """The values of the fields in a row."""
        width = self.tell().width
        if len(row) > width:
            raise DataError(f"it has {len(row)} values, the header {width}", where=f"line {line}")
        found = []
        for name in self._fields:
            place = self.place_of(name)
            text = row[place] if place < len(row) else ""
            value = cells.parse_number(text)
            if value is None or math.isnan(value):
                said = "is missing" if value is not None else cells.non_number_message(name, text)
                raise DataError(said, where=f"line {line}, field {name}")
            found.append(value)
        return _finite(found, f"line {line}")

    def read(self, coming: Iterator[str], batches: Batches) -> list[str]:
        """Take lines until it is known, and return them."""
        begun: list[str] = []
        while not self.told:
            line = next(coming, None)
            if self.told:
                return begun if line is None else [*begun, line]
            begun += [] if line is None else [line]
            text = "".join(begun).encode()
            try:
                found = csv_text.detect(text, whole=line is None, where="standard input")
                if found is not None:
                    self.dialect = found
                    self.tell()
                elif self.dialect is None:
                    self.dialect = csv_text.detect(text, whole=True, where="standard input")
                    batches.add(0, None)  # told after a moment, if nothing more comes
            except FileFormatError as e:
                if line is None and not b"".join(text.split()):
                    raise DataError(
                        "no header", where="line 1", hint=f"The fields are {', '.join(self._fields)}"
                    ) from e
                if line is None or not e.message.startswith("it is empty"):
                    raise DataError(e.message, where="line 1", hint=e.hint) from e
        return begun


def _csv(client: Client, model: str, fields: tuple[str, ...], snapshot: int | None, source: BinaryIO) -> None:
    header = Header(fields)

    def answer(rows: Rows) -> None:
        nonlocal snapshot
        dialect = header.tell()
        rows = [row for row in rows if row[0]]
        if not rows:
            return
        found = _ask(client, model, [(number, point) for number, (_, point) in rows], snapshot)
        snapshot = found.snapshot
        answered = ([*row, *one] for (_, (row, _)), one in zip(rows, _answers(found), strict=True))
        _write_csv(answered, dialect)

    batches = Batches(answer)
    coming = lines(source, batches)
    begun = header.read(coming, batches)
    with _answered(batches):
        for number, row, point in csv_rows(header, begun, coming):
            batches.add(number, (row, point))


def csv_rows(
    header: Header, begun: Sequence[str], coming: Iterator[str]
) -> Iterator[tuple[int, list[str], list[float]]]:
    """Rows of csv: line number, cells, and the point in them.

    Parameters
    ----------
    header
        What was read of it.
    begun, coming
        Lines that were taken for that, and all others.

    Raises
    ------
    DataError
        A row is no point.
    """
    dialect = header.tell()
    before, empty = dialect.first_line - 1, 0
    try:
        for number, row in dialect.rows(itertools.chain(begun[before:], coming, [_END])):
            if row and row[-1].endswith(_END):
                if row != [_END]:
                    raise DataError("it ends inside a quoted value", where=f"line {before + number - 1}")
            elif not row:
                empty = empty or before + number  # at the end these are nothing
            elif empty:
                raise DataError("an empty line", where=f"line {empty}", hint="Remove it, or give it values")
            else:
                yield before + number, row, header.point(row, before + number)
    except csv.Error as e:
        raise DataError(f"not csv ({e})", where=f"after line {before}") from e


@contextlib.contextmanager
def _answered(batches: Batches) -> Iterator[None]:
    """What came before the end, or before a line that is wrong, is answered."""
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


def _ask(client: Client, model: str, rows: Rows, snapshot: int | None) -> Prediction:
    points = np.array([point for _, point in rows], np.float64)
    return client.predict(model, points, snapshot=snapshot)


def _answers(found: Prediction) -> Iterator[tuple[int, float | None, float | None]]:
    """Cluster, distance and score of each point; what no double holds is null."""
    plain = ([x if np.isfinite(x) else None for x in column.tolist()] for column in (found.distances, found.scores))
    return zip(found.ids.tolist(), *plain, strict=True)


def _point(number: int, text: str, fields: tuple[str, ...]) -> list[float]:
    where = f"line {number}"
    try:
        told = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise DataError(f"not JSON ({e})", where=where, hint="csv wants --csv") from e
    if isinstance(told, dict):
        values = FieldPaths(fields).values(told)
    elif isinstance(told, list) and len(told) == len(fields):
        values = told
    else:
        raise DataError("no point", where=where, hint=f"Give an object or an array with {', '.join(fields)}")
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
