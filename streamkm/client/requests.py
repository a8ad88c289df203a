"""The calls of each client method and how their responses are parsed, independent of how they are sent.

A flow is a generator: it yields a `Call`, is sent the content of the response (or thrown its error), and returns the
result. Both clients have each flow as a method of the same name, with the same arguments and documentation.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
    """All models, by name."""
    content = yield Call("/v1/models")
    return [Model.of(entry) for entry in content["models"]]


def model(name: str) -> Flow[Model]:
    """One model: status, fields and counters."""
    return Model.of((yield Call(path_of(name))))


def centroids(model: str, *, snapshot: int | None = None, at: datetime | float | str | None = None) -> Flow[Centroids]:
    """The clusters of the newest snapshot, of a snapshot by number, or of the one that was newest at a time.

    Parameters
    ----------
    model
        Name of the model.
    snapshot
        Number of a snapshot.
    at
        A datetime, an RFC 3339 text, or seconds since 1970.
    """
    params: dict[str, str | int] = {}
    if snapshot is not None:
        params["snapshot"] = snapshot
    if at is not None:
        params["at"] = at.isoformat() if isinstance(at, datetime) else str(at)
    return Centroids.of((yield Call(path_of(model, "centroids"), params)))


def snapshots(model: str, *, limit: int = 100) -> Flow[list[SnapshotSummary]]:
    """The newest snapshots, newest first."""
    return (yield from pages(model, "snapshots", limit, lambda entry: [SnapshotSummary.of(entry)]))


def history(model: str, *, limit: int = 100) -> Flow[list[HistoricalSnapshot]]:
    """The newest snapshots that were in charge, with their clusters, newest first."""
    return (yield from pages(model, "history", limit, lambda entry: [HistoricalSnapshot.of(entry)]))


def events(model: str, *, limit: int = 100) -> Flow[list[ClusterEvent]]:
    """Births, deaths, splits, merges, drifts and other events of clusters, newest first."""
    return (yield from pages(model, "events", limit, ClusterEvent.all_of))


def pages(model: str, resource: str, limit: int, parse: Callable[[Any], list[T]]) -> Flow[list[T]]:
    """Follow the pages of a list of snapshots, newest first, until there are `limit` results."""
    found: list[T] = []
    params: dict[str, str | int] = {"limit": min(limit, PAGE_SIZE)}
    while len(found) < limit:
        content = yield Call(path_of(model, resource), params)
        for entry in content["snapshots"]:
            found += parse(entry)
        if content["next"] is None:
            break
        params["before"] = content["next"]
    return found[:limit]


def lineage(model: str) -> Flow[list[ClusterLineage]]:
    """Origin, end and successors of each cluster, by id."""
    found: dict[int, ClusterLineage] = {}
    params: dict[str, str | int] = {"limit": PAGE_SIZE}
    while True:
        content = yield Call(path_of(model, "lineage"), params)
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


def diff(model: str, a: int, b: int) -> Flow[SnapshotDiff]:
    """Compare snapshots `a` and `b`: shift of each cluster, changed assignments, cost on the same points."""
    return SnapshotDiff.of((yield Call(path_of(model, "diff"), {"a": a, "b": b})))


def k(model: str) -> Flow[KProfile]:
    """The suggested number of clusters, and the criteria for each number that was tried."""
    return KProfile.of((yield Call(path_of(model, "k"))))


def sample(model: str, *, n: int = 300) -> Flow[PointSample]:
    """Up to `n` of the last points, with their clusters."""
    return PointSample.of((yield Call(path_of(model, "sample"), {"n": n})))


def quarantine(model: str, *, limit: int = 100, reason: str | None = None) -> Flow[Quarantine]:
    """Number of bad records by reason, and the newest of them (of one `reason`, if given)."""
    params: dict[str, str | int] = {"limit": limit} | ({} if reason is None else {"reason": reason})
    return Quarantine.of((yield Call(path_of(model, "quarantine"), params)))


def me() -> Flow[WhoAmI]:
    """Name, right and models of the token that this client sends."""
    return WhoAmI.of((yield Call("/v1/me")))


# Prediction


def predict(model: str, X: Any, *, snapshot: int | None = None) -> Flow[Prediction]:
    """The nearest cluster of each point.

    Parameters
    ----------
    model
        Name of the model.
    X
        (n, d) numbers in the order of the model's fields, or a table of pandas, polars or Arrow that has the fields as
        columns. Any number of points: they are sent in requests of a few megabytes, all predicted with one snapshot.
    snapshot
        Number of the snapshot to predict with; the newest if None.
    """
    fields: tuple[str, ...] = ()
    if hasattr(X, "columns"):  # a table of pandas, polars or Arrow
        fields = yield from _fields(model)
        X = points_of_table(X, fields)
    points = validated(X)
    if points.size >= ARROW_MIN_NUMBERS and arrow.available():
        fields = fields or (yield from _fields(model))
        if points.shape[1] == len(fields):  # else the service's error message is the best one
            return (yield from _predict_arrow(model, points, fields, snapshot))
    rows = max(1, JSON_BODY_BYTES // (BYTES_PER_NUMBER * points.shape[1])) if points.size else 1
    parts: list[Prediction] = []
    for start in range(0, len(points), rows) or (0,):
        body = {"points": points[start : start + rows]} | ({} if snapshot is None else {"snapshot": snapshot})
        call = Call(path_of(model, "predict"), body=orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY))
        with _located(start):
            parts.append(Prediction.of((yield call)))
        snapshot = parts[-1].snapshot
    return _joined(parts)


def _fields(name: str) -> Flow[tuple[str, ...]]:
    return (yield from model(name)).fields


def _predict_arrow(
    model: str, points: NDArray[np.float64], fields: tuple[str, ...], snapshot: int | None
) -> Flow[Prediction]:
    rows = max(1, ARROW_BODY_BYTES // (8 * points.shape[1]))
    parts: list[Prediction] = []
    for start in range(0, len(points), rows):
        params: dict[str, str | int] = {} if snapshot is None else {"snapshot": snapshot}
        body = arrow.encode(points[start : start + rows], fields)
        call = Call(path_of(model, "predict"), params, body, media_type=ARROW)
        with _located(start):
            parts.append(arrow.decode(model, (yield call)))
        snapshot = parts[-1].snapshot
    return _joined(parts)


@contextmanager
def _located(start: int) -> Iterator[None]:
    """Say in errors of points that the request began with point `start`."""
    try:
        yield
    except DataError as error:
        if start:
            error.where = f"points from {start} on"
        raise


def _joined(parts: Sequence[Prediction]) -> Prediction:
    columns = (np.concatenate([getattr(p, name) for p in parts]) for name in ("ids", "distances", "scores"))
    return Prediction(parts[-1].model, parts[-1].snapshot, *columns)


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


def promote(model: str, snapshot: int, *, skip: bool = False) -> Flow[None]:
    """Ask the consumer to put a snapshot in charge, which it does at its next checkpoint.

    Parameters
    ----------
    model
        Name of the model.
    snapshot
        Number of the snapshot.
    skip
        Skip the records between the snapshot and now; else the consumer learns them again.
    """
    yield Call(path_of(model, "promote"), body=orjson.dumps({"snapshot": snapshot, "skip": skip}))


def pause(model: str) -> Flow[None]:
    """Ask the consumer to stop reading."""
    yield Call(path_of(model, "pause"), method="POST")


def resume(model: str) -> Flow[None]:
    """Ask the consumer to read again."""
    yield Call(path_of(model, "resume"), method="POST")


def delete(model: str) -> Flow[None]:
    """Delete a model with all its data; refused while a consumer runs it."""
    yield Call(path_of(model), method="DELETE", idempotent=False)


# Jobs


def jobs(model: str) -> Flow[list[Job]]:
    """Recomputation jobs, newest first."""
    return [Job.of(entry) for entry in (yield Call(path_of(model, "jobs")))["jobs"]]


def job(model: str, job: str) -> Flow[Job]:
    """One recomputation job, by its id."""
    return Job.of((yield Call(path_of(model, "jobs", quoted(job)))))


def start_job(
    model: str,
    *,
    start: str = "beginning",
    stop: str = "now",
    k: int | None = None,
    init: str = "k-means++",
    n_init: int = 1,
    max_iter: int = 300,
) -> Flow[Job]:
    """Run exact K-Means over a range of the topic; the resulting snapshot is not in charge until it is promoted.

    Parameters
    ----------
    model
        Name of the model.
    start, stop
        Range of the topic, such as ``2026-11-01``, ``2h``, ``offset:N`` or ``snapshot:N``.
    k
        Number of clusters; the model's own if None.
    init, n_init, max_iter
        As for `ExactKMeans`.
    """
    options = {"from": start, "to": stop, "init": init, "n_init": n_init, "max_iter": max_iter}
    body = orjson.dumps(options | ({} if k is None else {"k": k}))
    return Job.of((yield Call(path_of(model, "jobs"), body=body, idempotent=False)))


def cancel_job(model: str, job: str) -> Flow[Job]:
    """Cancel a job that is queued or running."""
    return Job.of((yield Call(path_of(model, "jobs", quoted(job)), method="DELETE", idempotent=False)))
