"""The calls of each client method and how their responses are parsed, independent of how they are sent.

A flow is a generator: it yields a `Call`, is sent the content of the response (or thrown its error), and returns the
result. The blocking client and the one for asyncio run the same flows.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar
from urllib.parse import quote

import numpy as np
import orjson
from numpy.typing import NDArray

from streamkm.client import arrow
from streamkm.client.responses import (
    Centroids,
    ClusterEvent,
    ClusterLineage,
    HistoricalSnapshot,
    Job,
    KProfile,
    Model,
    PointSample,
    Prediction,
    Quarantine,
    SnapshotDiff,
    SnapshotSummary,
    WhoAmI,
)
from streamkm.errors import DataError, NotFoundError, NotReadyError, ServiceError, StreamkmError

JSON, ARROW = "application/json", "application/vnd.apache.arrow.stream"
JSON_BODY_BYTES = 4 << 20
"""Target size of a JSON request body: half of the service's limit."""
ARROW_BODY_BYTES = 32 << 20
"""Target size of an Arrow request body: a quarter of the service's limit."""
ARROW_MIN_NUMBERS = 1 << 16
"""Points with at least this many numbers are sent as Arrow, if pyarrow is installed."""
BYTES_PER_NUMBER = 26
"""Maximum length of a double in JSON, with its comma."""
PAGE_SIZE = 1000
"""Entries per page: the service's maximum."""

T = TypeVar("T")


@dataclass(frozen=True)
class Call:
    """One HTTP request.

    Attributes
    ----------
    path
        Relative to the base URL of the service.
    params
        Query parameters.
    body
        Request body; None for none.
    method
        HTTP method; if empty, POST with a body and GET without.
    media_type
        Of the body, and accepted for the response; the content of a response that is not JSON is bytes.
    idempotent
        Whether the call may be repeated after a failure.
    """

    path: str
    params: Mapping[str, str | int] = field(default_factory=dict)
    body: bytes | None = None
    method: str = ""
    media_type: str = JSON
    idempotent: bool = True


Flow = Generator[Call, Any, T]


def path_of(model: str, *rest: str) -> str:
    """Path of a resource of a model.

    >>> path_of("a/b", "centroids")
    '/v1/models/a%2Fb/centroids'
    """
    return "/".join(("/v1/models", quoted(model), *rest))


def quoted(part: str) -> str:
    """Percent-encode text as one segment of a path."""
    return quote(part, safe="")


def error_of(status: int, content: bytes, where: str) -> StreamkmError:
    """Convert an error response (RFC 9457) to an exception.

    Parameters
    ----------
    status
        HTTP status.
    content
        Body of the response.
    where
        URL of the request.

    Returns
    -------
    `NotFoundError`, `NotReadyError`, `DataError` or `ServiceError`.
    """
    try:
        problem = orjson.loads(content)
        detail, code, hint = str(problem["detail"]), str(problem["code"]), str(problem["hint"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return ServiceError(f"the response has status {status}", where=where, hint="Is a streamkm service there?")
    if status == 404 and code == "not-found":
        return NotFoundError(detail, hint=hint)
    if status == 409 and code == "warming-up":
        return NotReadyError(detail, hint=hint)
    if status in (400, 413, 422):
        return DataError(detail, hint=hint)
    return ServiceError(f"{detail} ({status})", where=where, hint=hint)


# Models and snapshots


def models() -> Flow[list[Model]]:
    """All models."""
    content = yield Call("/v1/models")
    return [Model.of(entry) for entry in content["models"]]


def model(name: str) -> Flow[Model]:
    """One model."""
    return Model.of((yield Call(path_of(name))))


def centroids(name: str, snapshot: int | None, at: datetime | float | str | None) -> Flow[Centroids]:
    """The clusters of a snapshot."""
    params: dict[str, str | int] = {}
    if snapshot is not None:
        params["snapshot"] = snapshot
    if at is not None:
        params["at"] = at.isoformat() if isinstance(at, datetime) else str(at)
    return Centroids.of((yield Call(path_of(name, "centroids"), params)))


def snapshots(name: str, limit: int) -> Flow[list[SnapshotSummary]]:
    """The newest snapshots."""
    return (yield from pages(name, "snapshots", limit, lambda entry: [SnapshotSummary.of(entry)]))


def history(name: str, limit: int) -> Flow[list[HistoricalSnapshot]]:
    """The newest snapshots that were in charge, with their clusters."""
    return (yield from pages(name, "history", limit, lambda entry: [HistoricalSnapshot.of(entry)]))


def events(name: str, limit: int) -> Flow[list[ClusterEvent]]:
    """The newest events."""
    return (yield from pages(name, "events", limit, ClusterEvent.all_of))


def pages(name: str, resource: str, limit: int, parse: Callable[[Any], list[T]]) -> Flow[list[T]]:
    """Follow the pages of a list of snapshots, newest first, until there are `limit` results."""
    found: list[T] = []
    params: dict[str, str | int] = {"limit": min(limit, PAGE_SIZE)}
    while len(found) < limit:
        content = yield Call(path_of(name, resource), params)
        for entry in content["snapshots"]:
            found += parse(entry)
        if content["next"] is None:
            break
        params["before"] = content["next"]
    return found[:limit]


def lineage(name: str) -> Flow[list[ClusterLineage]]:
    """The lineage of all clusters, merged from all pages."""
    found: dict[int, ClusterLineage] = {}
    params: dict[str, str | int] = {"limit": PAGE_SIZE}
    while True:
        content = yield Call(path_of(name, "lineage"), params)
        for entry in map(ClusterLineage.of, content["clusters"]):
            later = found.get(entry.id)
            # Newer pages come first: they have the end of a cluster, this one may have its beginning.
            found[entry.id] = entry if later is None else _merged(entry, later)
        if content["next"] is None:
            return [found[i] for i in sorted(found)]
        params["before"] = content["next"]


def _merged(earlier: ClusterLineage, later: ClusterLineage) -> ClusterLineage:
    return ClusterLineage(
        earlier.id,
        earlier.born if earlier.born is not None else later.born,
        later.ended if later.ended is not None else earlier.ended,
        earlier.origins or later.origins,
        later.successors or earlier.successors,
    )


def diff(name: str, a: int, b: int) -> Flow[SnapshotDiff]:
    """Compare two snapshots."""
    return SnapshotDiff.of((yield Call(path_of(name, "diff"), {"a": a, "b": b})))


def k(name: str) -> Flow[KProfile]:
    """Criteria for the number of clusters."""
    return KProfile.of((yield Call(path_of(name, "k"))))


def sample(name: str, n: int) -> Flow[PointSample]:
    """Some of the last points."""
    return PointSample.of((yield Call(path_of(name, "sample"), {"n": n})))


def quarantine(name: str, limit: int, reason: str | None) -> Flow[Quarantine]:
    """Bad records."""
    params: dict[str, str | int] = {"limit": limit} | ({} if reason is None else {"reason": reason})
    return Quarantine.of((yield Call(path_of(name, "quarantine"), params)))


def me() -> Flow[WhoAmI]:
    """The rights of the token."""
    return WhoAmI.of((yield Call("/v1/me")))


# Prediction


def predict(name: str, X: Any, snapshot: int | None) -> Flow[Prediction]:
    """Predict points in as many requests as they take, all with one snapshot."""
    fields: tuple[str, ...] = ()
    if hasattr(X, "columns"):  # a table of pandas, polars or Arrow
        fields = (yield from model(name)).fields
        X = points_of_table(X, fields)
    points = validated(X)
    if points.size >= ARROW_MIN_NUMBERS and arrow.available():
        fields = fields or (yield from model(name)).fields
        if points.shape[1] == len(fields):  # else the service's error message is the best one
            return (yield from _predict_arrow(name, points, fields, snapshot))
    rows = max(1, JSON_BODY_BYTES // (BYTES_PER_NUMBER * points.shape[1])) if points.size else 1
    parts: list[Any] = []
    for start in range(0, len(points), rows) or (0,):
        body = {"points": points[start : start + rows]} | ({} if snapshot is None else {"snapshot": snapshot})
        try:
            parts.append(
                (yield Call(path_of(name, "predict"), body=orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)))
            )
        except DataError as error:
            if start:
                error.where = f"points from {start} on"
            raise
        snapshot = parts[-1]["snapshot"]["id"]
    columns = {key: np.concatenate([np.array(p[key], dtype) for p in parts]) for key, dtype in _DTYPES.items()}
    return Prediction(name, parts[-1]["snapshot"]["id"], columns["ids"], columns["distances"], columns["scores"])


def _predict_arrow(
    name: str, points: NDArray[np.float64], fields: tuple[str, ...], snapshot: int | None
) -> Flow[Prediction]:
    rows = max(1, ARROW_BODY_BYTES // (8 * points.shape[1]))
    parts: list[Prediction] = []
    for start in range(0, len(points), rows):
        params: dict[str, str | int] = {} if snapshot is None else {"snapshot": snapshot}
        body = arrow.encode(points[start : start + rows], fields)
        try:
            found = arrow.decode(name, (yield Call(path_of(name, "predict"), params, body, media_type=ARROW)))
        except DataError as error:
            if start:
                error.where = f"points from {start} on"
            raise
        parts.append(found)
        snapshot = found.snapshot
    columns = (np.concatenate([getattr(p, column) for p in parts]) for column in _DTYPES)
    return Prediction(name, parts[-1].snapshot, *columns)


_DTYPES = {"ids": np.int64, "distances": np.float64, "scores": np.float64}


def validated(X: Any) -> NDArray[np.float64]:
    """Points as a contiguous array (n, d).

    Raises
    ------
    DataError
        `X` is not an (n, d) array of finite numbers.
    """
    try:
        points = np.ascontiguousarray(X, np.float64)
    except (TypeError, ValueError) as e:
        raise DataError(f"not an array of numbers ({e})", where="X") from e
    if points.ndim != 2:
        raise DataError(f"an array of shape {points.shape}", where="X", hint="Give (n, d): a row for each point")
    if not np.isfinite(points).all():
        i, j = (int(indices[0]) for indices in np.nonzero(~np.isfinite(points)))
        raise DataError(f"{points[i, j]} is not a finite number", where=f"X[{i}, {j}]")
    return points


def points_of_table(X: Any, fields: tuple[str, ...]) -> NDArray[np.float64]:
    """The columns of a table of pandas, polars or Arrow that hold the fields, as (n, d).

    Raises
    ------
    DataError
        A field has no column, or several.
    """
    names = list(getattr(X, "column_names", X.columns))
    if duplicates := [name for name in fields if names.count(name) > 1]:
        raise DataError(
            f"there are several columns {', '.join(duplicates)}", where="X", hint="Rename all but one of them"
        )
    if missing := [name for name in fields if name not in names]:
        raise DataError(
            f"there is no column {', '.join(missing)}", where="X", hint=f"The fields are {', '.join(fields)}"
        )
    return np.column_stack([np.asarray(X[name], np.float64) for name in fields])


# Control


def promote(name: str, snapshot: int, *, skip: bool) -> Flow[None]:
    """Ask for a snapshot to be put in charge."""
    yield Call(path_of(name, "promote"), body=orjson.dumps({"snapshot": snapshot, "skip": skip}))


def pause(name: str, *, paused: bool) -> Flow[bool]:
    """Ask the consumer to stop reading, or to read again."""
    content = yield Call(path_of(name, "pause" if paused else "resume"), method="POST")
    return bool(content["paused"])


def delete(name: str) -> Flow[None]:
    """Delete a model."""
    yield Call(path_of(name), method="DELETE", idempotent=False)


# Jobs


def jobs(name: str) -> Flow[list[Job]]:
    """The jobs of a model."""
    return [Job.of(entry) for entry in (yield Call(path_of(name, "jobs")))["jobs"]]


def job(name: str, job_id: str) -> Flow[Job]:
    """One job."""
    return Job.of((yield Call(path_of(name, "jobs", quoted(job_id)))))


def start_job(name: str, options: dict[str, Any]) -> Flow[Job]:
    """Start a recomputation; options that are None are not sent."""
    body = {key: value for key, value in options.items() if value is not None}
    return Job.of((yield Call(path_of(name, "jobs"), body=orjson.dumps(body), idempotent=False)))


def cancel_job(name: str, job_id: str) -> Flow[Job]:
    """Cancel a job."""
    return Job.of((yield Call(path_of(name, "jobs", quoted(job_id)), method="DELETE", idempotent=False)))
