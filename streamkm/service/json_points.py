"""Parses points from JSON bodies, column by column, without a Python loop over all numbers.

Only if the fast check fails are the points searched for the first error, to report its point and field.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from streamkm.field_paths import MISSING, FieldPaths
from streamkm.service.problems import Problem

_NUMBERS = {int, float}
_MEMBERS = ("points", "snapshot")
_TYPE_NAMES = {str: "a string", bool: "a boolean", type(None): "null", list: "an array", dict: "an object"}
MAX_ID = 2**63 - 1
_MAX_FIELDS, _MAX_CHARS = 20, 100
"""Fields and characters that an error message repeats."""


def parse(body: bytes) -> tuple[list[Any], int | None]:
    """Parse a predict request: points, and the number of the snapshot.

    Raises
    ------
    Problem
        400: not JSON. 422: not a valid request, or NaN or infinity, which are not JSON although programs write them.
    """
    request = json_object(body, 'Send {"points": [[1.0, 2.0], ...]}')
    for name in request:
        if name not in _MEMBERS:
            raise Problem(
                422,
                "unknown-field",
                "unknown member",
                where=name[:_MAX_CHARS],
                hint="There are: points, snapshot",
            )
    points, snapshot = request.get("points"), request.get("snapshot")
    if "points" not in request:
        raise Problem(422, "missing-field", "is missing", where="points", hint='Send {"points": [[1.0, 2.0], ...]}')
    if not isinstance(points, list):
        raise Problem(422, "invalid", f"{_type_name(points)}, not an array of points", where="points")
    if snapshot is not None and (type(snapshot) is not int or not 1 <= snapshot <= MAX_ID):
        raise Problem(
            422, "invalid", "not the number of a snapshot", where="snapshot", hint="Leave it out for the newest"
        )
    return points, snapshot


def json_object(body: bytes, hint: str) -> dict[str, Any]:
    """Parse a body that must be a JSON object.

    Parameters
    ----------
    hint
        Hint of the error message.

    Raises
    ------
    Problem
        400: not JSON. 422: NaN or infinity, or not an object.
    """
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError as e:
        raise _not_json(body, e) from e
    if not isinstance(request, dict):
        raise Problem(422, "invalid", f"{_type_name(request)}, not an object", where="body", hint=hint)
    return request


def of_matrix(points: NDArray[Any], fields: Sequence[str]) -> NDArray[np.float64]:
    """Convert a numeric array (n, d) to the points of a model; errors as in `to_array`."""
    array = points.astype(np.float64)
    valid = array.shape[1:] == (len(fields),) and np.isfinite(array).all()
    return array if valid else to_array(array.tolist(), fields)


def to_array(points: Sequence[Any], fields: Sequence[str]) -> NDArray[np.float64]:
    """Convert points to an array.

    Parameters
    ----------
    points
        Arrays of numbers in the order of `fields`, or objects by field name (see `streamkm.field_paths`).
    fields
        Names of the d dimensions.

    Returns
    -------
    points
        (n, d), all finite.

    Raises
    ------
    Problem
        422: the first invalid point and field.
    """
    n, d = len(points), len(fields)
    types = set(map(type, points))
    paths = FieldPaths(fields)
    if paths.nested and dict in types:
        points = [_by_field(p, paths) if isinstance(p, dict) else p for p in points]
    if types == {list} and set(map(len, points)) == {d} and set(map(type, chain.from_iterable(points))) <= _NUMBERS:
        array = np.fromiter(chain.from_iterable(points), np.float64, n * d).reshape(n, d)
    elif types == {dict} and set(map(len, points)) == {d} and _all_numbers(points, fields):
        array = np.empty((n, d))
        for j, f in enumerate(fields):
            array[:, j] = np.fromiter(map(itemgetter(f), points), np.float64, n)
    else:
        problem = next(_errors(points, fields), None)
        if problem is not None:
            raise problem
        # Valid after all: a mix of arrays and objects, or no points.
        rows = [p if isinstance(p, list) else [p[f] for f in fields] for p in points]
        array = np.array(rows, np.float64).reshape(n, d)
    if not np.isfinite(array).all():
        raise next(_errors(points, fields))
    return array


def _all_numbers(points: Sequence[Mapping[str, Any]], fields: Sequence[str]) -> bool:
    try:
        return all(set(map(type, map(itemgetter(f), points))) <= _NUMBERS for f in fields)
    except KeyError:
        return False


def _errors(points: Sequence[Any], fields: Sequence[str]) -> Iterator[Problem]:
    """All errors, in order."""
    d = len(fields)
    listed = ", ".join(fields[:_MAX_FIELDS]) + (", ..." if d > _MAX_FIELDS else "")
    has = f"the model has {d} field{'s' if d != 1 else ''} ({listed})"
    for i, p in enumerate(points):
        where = f"points[{i}]"
        if isinstance(p, list):
            if len(p) != d:
                yield Problem(422, "wrong-dimension", f"{len(p)} value{'s' if len(p) != 1 else ''}, {has}", where=where)
            values = [(f"{where}[{j}]", f" (field {f})", x) for j, (f, x) in enumerate(zip(fields, p, strict=False))]
        elif isinstance(p, dict):
            for f in p:
                if f not in fields:
                    yield Problem(422, "unknown-field", f"unknown field, {has}", where=f"{where}.{f[:_MAX_CHARS]}")
            for f in fields:
                if f not in p:
                    yield Problem(422, "missing-field", f"missing, {has}", where=f"{where}.{f}")
            values = [(f"{where}.{f}", "", p[f]) for f in fields if f in p]
        else:
            yield Problem(
                422,
                "invalid",
                f"{_type_name(p)}, a point is an array or an object of numbers; {has}",
                where=where,
            )
            continue
        for location, field, x in values:
            if type(x) not in _NUMBERS:
                yield Problem(422, "not-a-number", f"{_type_name(x)}, not a number{field}", where=location)
            elif not math.isfinite(x):
                yield Problem(422, "not-finite", f"not a finite number{field}", where=location)


def _by_field(point: Mapping[str, Any], paths: FieldPaths) -> dict[str, Any]:
    """The values of a point by field name, and its unknown members by path."""
    found = {f: x for f, x in zip(paths.fields, paths.values(point), strict=True) if x is not MISSING}
    return found | dict.fromkeys(paths.unknown(point))


def _not_json(body: bytes, error: orjson.JSONDecodeError) -> Problem:
    # Python's own parser accepts NaN, Infinity and 1e999, so it can locate them.
    try:
        where = _not_finite(json.loads(body), "")
        where.encode()  # a lone surrogate in a name cannot be encoded in the response
    except (ValueError, RecursionError):
        where = ""
    if where:
        return Problem(422, "not-finite", "not a finite number, which JSON cannot represent", where=where)
    return Problem(400, "not-json", str(error), where="body")


def _not_finite(value: Any, where: str) -> str:
    """Location of the first NaN or infinity, such as ``points[0].amount``."""
    if isinstance(value, float):
        return where if not math.isfinite(value) else ""
    if isinstance(value, dict):
        inner: Iterator[tuple[str, Any]] = ((f"{where}.{k}" if where else k, v) for k, v in value.items())
    elif isinstance(value, list):
        inner = ((f"{where}[{i}]", v) for i, v in enumerate(value))
    else:
        return ""
    return next(filter(None, (_not_finite(v, at) for at, v in inner)), "")


def _type_name(value: Any) -> str:
    return _TYPE_NAMES.get(type(value), "a number")
