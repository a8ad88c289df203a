"""What each question asks and how its answers are read, whoever sends it: generators of calls, without a socket.

A flow yields a `Call`, is sent the answer as plain JSON, and returns the result. So the blocking client and the one
for asyncio are the same but for how they send.
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
    Difference,
    Event,
    Job,
    KProfile,
    Life,
    Me,
    Model,
    Past,
    Prediction,
    Published,
    Quarantine,
    Sample,
    moment,
)
from streamkm.errors import DataError, NotFoundError, NotReadyError, ServiceError, StreamkmError

BODY_BYTES = 4 << 20
"""About how much one request asks: half of what the service takes."""
ARROW_BYTES = 32 << 20
"""The same of Arrow, which is a quarter."""
ARROW_FROM = 1 << 16
"""Numbers from which on points are sent as Arrow, where pyarrow is installed."""
JSON, ARROW = "application/json", "application/vnd.apache.arrow.stream"
NUMBER_BYTES = 26
"""A double as JSON, with its comma, at most."""
PAGE = 1000

T = TypeVar("T")


@dataclass(frozen=True)
class Call:
    """One request.

    Attributes
    ----------
    path
        Below the address of the service.
    params
        Of the query.
    body
        None: without one.
    method
        GET, or POST with a body, if empty.
    kind
        Media type of the body, and of the answer; one that is not JSON comes as bytes.
    again
        Whether asking twice does no harm.
    """

    path: str
    params: Mapping[str, str | int] = field(default_factory=dict)
    body: bytes | None = None
    method: str = ""
    kind: str = JSON
    again: bool = True


Flow = Generator[Call, Any, T]


def path_of(model: str, *rest: str) -> str:
    """Path of something of a model.

    >>> path_of("a/b", "centroids")
    '/v1/models/a%2Fb/centroids'
    """
    return "/".join(("/v1/models", quoted(model), *rest))


def quoted(part: str) -> str:
    """Text as one part of a path."""
    return quote(part, safe="")


def models() -> Flow[list[Model]]:
    """All models."""
    answer = yield Call("/v1/models")
    return [Model.of(told) for told in answer["models"]]


def model(name: str) -> Flow[Model]:
    """One model."""
    return Model.of((yield Call(path_of(name))))


def centroids(name: str, snapshot: int | None, at: datetime | float | str | None) -> Flow[Centroids]:
    """Clusters of a snapshot."""
    params: dict[str, str | int] = {}
    if snapshot is not None:
        params["snapshot"] = snapshot
    if at is not None:
        params["at"] = at.isoformat() if isinstance(at, datetime) else str(at)
    return Centroids.of((yield Call(path_of(name, "centroids"), params)))


def snapshots(name: str, limit: int) -> Flow[list[Published]]:
    """The newest snapshots."""
    return (yield from pages(name, "snapshots", limit, lambda told: [Published.of(told)]))


def events(name: str, limit: int) -> Flow[list[Event]]:
    """The newest events."""
    return (yield from pages(name, "events", limit, Event.of))


def pages(name: str, what: str, limit: int, read: Callable[[Any], list[T]]) -> Flow[list[T]]:
    """Entries of some pages of snapshots, newest first."""
    found: list[T] = []
    params: dict[str, str | int] = {"limit": min(limit, PAGE)}
    while len(found) < limit:
        answer = yield Call(path_of(name, what), params)
        for told in answer["snapshots"]:
            found += read(told)
        if answer["next"] is None:
            break
        params["before"] = answer["next"]
    return found[:limit]


def predict(name: str, X: Any, snapshot: int | None) -> Flow[Prediction]:
    """Clusters of points, in as many requests as they take; all are answered by one snapshot."""
    fields: tuple[str, ...] = ()
    if hasattr(X, "columns"):  # a table of pandas, polars or Arrow
        fields = (yield from model(name)).fields
        X = _of_table(X, fields)
    points = checked(X)
    if points.size >= ARROW_FROM and arrow.there():
        fields = fields or (yield from model(name)).fields
        if points.shape[1] == len(fields):  # else the service says it best
            return (yield from _predict_arrow(name, points, fields, snapshot))
    rows = max(1, BODY_BYTES // (NUMBER_BYTES * points.shape[1])) if points.size else 1
    parts: list[Any] = []
    for at in range(0, len(points), rows) or (0,):
        body = {"points": points[at : at + rows]} | ({} if snapshot is None else {"snapshot": snapshot})
        try:
            parts.append(
                (yield Call(path_of(name, "predict"), body=orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)))
            )
        except DataError as error:
            if at:
                error.where = f"points from {at} on"
            raise
        snapshot = parts[-1]["snapshot"]["id"]
    columns = {what: np.concatenate([np.array(p[what], kind) for p in parts]) for what, kind in _KINDS.items()}
    return Prediction(name, parts[-1]["snapshot"]["id"], columns["ids"], columns["distances"], columns["scores"])


def _predict_arrow(
    name: str, points: NDArray[np.float64], fields: tuple[str, ...], snapshot: int | None
) -> Flow[Prediction]:
    rows = max(1, ARROW_BYTES // (8 * points.shape[1]))
    parts: list[Prediction] = []
    for at in range(0, len(points), rows):
        params: dict[str, str | int] = {} if snapshot is None else {"snapshot": snapshot}
        body = arrow.encode(points[at : at + rows], fields)
        try:
            found = arrow.decode(name, (yield Call(path_of(name, "predict"), params, body, kind=ARROW)))
        except DataError as error:
            if at:
                error.where = f"points from {at} on"
            raise
        parts.append(found)
        snapshot = found.snapshot
    columns = (np.concatenate([getattr(p, column) for p in parts]) for column in _KINDS)
    return Prediction(name, parts[-1].snapshot, *columns)


_KINDS = {"ids": np.int64, "distances": np.float64, "scores": np.float64}


def checked(X: Any) -> NDArray[np.float64]:
    """Points as an array.

    Raises
    ------
    DataError
        They are no (n, d) array of finite numbers.
    """
    try:
        points = np.ascontiguousarray(X, np.float64)
    except (TypeError, ValueError) as e:
        raise DataError(f"not an array of numbers ({e})", where="X") from e
    if points.ndim != 2:
        raise DataError(f"an array of shape {points.shape}", where="X", hint="Give (n, d): a row for each point")
    if not np.isfinite(points).all():
        i, j = (int(at[0]) for at in np.nonzero(~np.isfinite(points)))
        raise DataError(f"{points[i, j]} is not a finite number", where=f"X[{i}, {j}]")
    return points


def _of_table(X: Any, fields: tuple[str, ...]) -> NDArray[np.float64]:
    names = list(getattr(X, "column_names", X.columns))
    if twice := [name for name in fields if names.count(name) > 1]:
        raise DataError(f"there are several columns {', '.join(twice)}", where="X", hint="Rename all but one of them")
    if lacking := [name for name in fields if name not in names]:
        raise DataError(
            f"there is no column {', '.join(lacking)}", where="X", hint=f"The fields are {', '.join(fields)}"
        )
    return np.column_stack([np.asarray(X[name], np.float64) for name in fields])


def error_of(status: int, content: bytes, where: str) -> StreamkmError:
    """The error that an answer tells (RFC 9457), as one of ours."""
    try:
        told = orjson.loads(content)
        said, code, hint = str(told["detail"]), str(told["code"]), str(told["hint"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return ServiceError(f"the answer has status {status}", where=where, hint="Is a streamkm service there?")
    if status == 404 and code == "not-found":
        return NotFoundError(said, hint=hint)
    if status == 409 and code == "warming-up":
        return NotReadyError(said, hint=hint)
    if status in (400, 413, 422):
        return DataError(said, hint=hint)
    return ServiceError(f"{said} ({status})", where=where, hint=hint)


def history(name: str, limit: int) -> Flow[list[Past]]:
    """The newest snapshots with their clusters."""
    return (yield from pages(name, "history", limit, lambda told: [Past.of(told)]))


def lineage(name: str) -> Flow[list[Life]]:
    """The lives of all clusters: what each page tells of one is put together."""
    found: dict[int, Life] = {}
    params: dict[str, str | int] = {"limit": PAGE}
    while True:
        answer = yield Call(path_of(name, "lineage"), params)
        for life in map(Life.of, answer["clusters"]):
            later = found.get(life.id)
            # Newer pages come first: the end of a life is told there, its beginning here.
            found[life.id] = life if later is None else _joined(life, later)
        if answer["next"] is None:
            return [found[i] for i in sorted(found)]
        params["before"] = answer["next"]


def _joined(earlier: Life, later: Life) -> Life:
    return Life(
        earlier.id,
        earlier.born if earlier.born is not None else later.born,
        later.ended if later.ended is not None else earlier.ended,
        earlier.origins or later.origins,
        later.successors or earlier.successors,
    )


def diff(name: str, a: int, b: int) -> Flow[Difference]:
    """Two snapshots."""
    return Difference.of((yield Call(path_of(name, "diff"), {"a": a, "b": b})))


def k(name: str) -> Flow[KProfile]:
    """How many clusters there should be."""
    return KProfile.of((yield Call(path_of(name, "k"))))


def sample(name: str, n: int) -> Flow[Sample]:
    """Some of the last points."""
    return Sample.of((yield Call(path_of(name, "sample"), {"n": n})))


def quarantine(name: str, limit: int, reason: str | None) -> Flow[Quarantine]:
    """Records that could not be learned."""
    params: dict[str, str | int] = {"limit": limit} | ({} if reason is None else {"reason": reason})
    return Quarantine.of((yield Call(path_of(name, "quarantine"), params)))


def me() -> Flow[Me]:
    """Who one is."""
    return Me.of((yield Call("/v1/me")))


def promote(name: str, snapshot: int, *, skip: bool) -> Flow[None]:
    """Ask for a snapshot to be put in charge."""
    yield Call(path_of(name, "promote"), body=orjson.dumps({"snapshot": snapshot, "skip": skip}))


def pause(name: str, *, paused: bool) -> Flow[bool]:
    """Ask the owner to read nothing, or to read on."""
    answer = yield Call(path_of(name, "pause" if paused else "resume"), method="POST")
    return bool(answer["paused"])


def delete(name: str) -> Flow[None]:
    """Remove a model."""
    yield Call(path_of(name), method="DELETE", again=False)


def jobs(name: str) -> Flow[list[Job]]:
    """The jobs of a model."""
    return [Job.of(told) for told in (yield Call(path_of(name, "jobs")))["jobs"]]


def job(name: str, number: str) -> Flow[Job]:
    """One job."""
    return Job.of((yield Call(path_of(name, "jobs", quoted(number)))))


def start_job(name: str, asked: dict[str, Any]) -> Flow[Job]:
    """Ask for a recomputation."""
    told = {key: value for key, value in asked.items() if value is not None}
    return Job.of((yield Call(path_of(name, "jobs"), body=orjson.dumps(told), again=False)))


def cancel_job(name: str, number: str) -> Flow[Job]:
    """End a job."""
    return Job.of((yield Call(path_of(name, "jobs", quoted(number)), method="DELETE", again=False)))


def read_events() -> Generator[Event | None, str, None]:
    """Events out of the lines of a stream: is sent a line, yields the event that it completes, if it does.

    >>> reader = read_events()
    >>> next(reader)
    >>> told = '{"snapshot": 4, "created_at": "2026-11-01T10:00:00Z", "kind": "birth", "before": [],'
    >>> for line in ("id: 4.1", "event: birth", f'data: {told} "after": [7], "detail": {{}}}}'):
    ...     reader.send(line)
    >>> reader.send("").id
    '4.1'
    """
    fields: dict[str, str] = {}
    event: Event | None = None
    while True:
        line = yield event
        event = None
        if line:
            name, colon, value = line.partition(":")
            if name and colon:
                fields[name] = value.removeprefix(" ")
            continue
        if "data" in fields and "id" in fields:
            told = orjson.loads(fields["data"])
            ids = tuple(told["before"]), tuple(told["after"])
            at = int(told["snapshot"]), moment(told["created_at"])
            event = Event(*at, told["kind"], *ids, told["detail"], int(fields["id"].partition(".")[2]))
        fields = {}
