"""``streamkm predict``: points from standard input, their clusters to standard output."""

from __future__ import annotations

import csv
import itertools
import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

import click
import numpy as np

from consumers.options import example, takes
from streamkm.client import Client, Prediction
from streamkm.errors import DataError
from streamkm.settings import ClientSettings

AT_ONCE = 10_000
"""Lines that are asked for at a time."""
OWN = ("cluster", "distance", "score")

Lines = Iterable[tuple[int, Any]]


@click.command(
    epilog=example(
        "streamkm predict orders --csv <orders.csv >clustered.csv",
        """echo '{"amount": 12, "lat": 52.5, "lon": 13.4}' | streamkm predict orders""",
    )
)
@click.argument("model")
@takes(ClientSettings)
@click.option("--snapshot", type=click.IntRange(min=1), help="Ask this one; the newest one if not given.")
@click.option(
    "--csv", "as_csv", is_flag=True, help="The lines are csv with a header; else each is a JSON object or array."
)
def predict(model: str, settings: ClientSettings, *, snapshot: int | None, as_csv: bool) -> None:
    """Say of each point on standard input which cluster of MODEL it belongs to.

    Each line is a JSON object by field or an array of numbers, and gets a line of JSON: cluster, distance, score. With
    --csv columns are found by their names in the header, and the same three are added to each row. One snapshot answers
    for all.
    """
    with Client(settings.url, token=settings.token) as client:
        fields = client.model(model).fields
        run = _csv if as_csv else _json
        run(client, model, fields, snapshot, sys.stdin, sys.stdout)


def _json(
    client: Client, model: str, fields: tuple[str, ...], snapshot: int | None, source: TextIO, target: TextIO
) -> None:
    for lines in _batches((i, text) for i, text in enumerate(source, 1) if text.strip()):
        rows = [_point(number, text, fields) for number, text in lines]
        found = _ask(client, model, rows, snapshot, lines)
        snapshot = found.snapshot
        target.writelines(json.dumps(dict(zip(OWN, answer, strict=True))) + "\n" for answer in _answers(found))


def _csv(
    client: Client, model: str, fields: tuple[str, ...], snapshot: int | None, source: TextIO, target: TextIO
) -> None:
    reader, writer = csv.reader(source), csv.writer(target, lineterminator="\n")
    header = next(reader, None)
    if header is None:
        raise DataError("no header", where="line 1", hint=f"The fields are {', '.join(fields)}")
    if lacking := [name for name in fields if name not in header]:
        raise DataError(
            f"there is no column {', '.join(lacking)}", where="line 1", hint="Name the fields in the header"
        )
    places = [header.index(name) for name in fields]
    writer.writerow([*header, *OWN])
    for lines in _batches((reader.line_num, row) for row in reader if row):
        rows = [_cells(number, row, places) for number, row in lines]
        found = _ask(client, model, rows, snapshot, lines)
        snapshot = found.snapshot
        writer.writerows([*row, *answer] for (_, row), answer in zip(lines, _answers(found), strict=True))


def _batches(lines: Lines) -> Iterator[list[tuple[int, Any]]]:
    it = iter(lines)
    while batch := list(itertools.islice(it, AT_ONCE)):
        yield batch


def _ask(
    client: Client, model: str, rows: list[list[float]], snapshot: int | None, lines: list[tuple[int, Any]]
) -> Prediction:
    points = np.array(rows, np.float64)
    if not (finite := np.isfinite(points).all(axis=1)).all():
        raise DataError("a number that is not finite", where=f"line {lines[int(np.argmin(finite))][0]}")
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
        values = [_reach(told, name, where) for name in fields]
    elif isinstance(told, list) and len(told) == len(fields):
        values = told
    else:
        raise DataError("no point", where=where, hint=f"Give an object or an array with {', '.join(fields)}")
    for name, value in zip(fields, values, strict=True):
        if type(value) not in (int, float):
            raise DataError(f"{json.dumps(value)[:80]} is not a number", where=f"{where}, field {name}")
    try:
        return [float(value) for value in values]
    except OverflowError as e:
        raise DataError("a number that is not finite", where=where) from e


def _reach(told: dict[str, Any], name: str, where: str) -> Any:
    """The value of a field; a dotted name reaches into nested objects."""
    value: Any = told
    if name in told:
        return told[name]
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            raise DataError("is missing", where=f"{where}, field {name}")
        value = value[part]
    return value


def _cells(number: int, row: list[str], places: list[int]) -> list[float]:
    try:
        return [float(row[place]) for place in places]
    except (ValueError, IndexError) as e:
        raise DataError(f"no number in a column that is a field ({e})", where=f"line {number}") from e
