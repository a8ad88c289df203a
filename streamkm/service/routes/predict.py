"""``POST /v1/models/{m}/predict``: the clusters of points, as JSON or as tables."""

from __future__ import annotations

from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import numpy as np
import orjson
from fastapi import APIRouter, Request, Response
from numpy.typing import NDArray

from streamkm import metrics as names
from streamkm.assignment import Assignment, assign
from streamkm.metrics import Metrics
from streamkm.service import tables
from streamkm.service.json_points import MAX_ID, parse, to_array
from streamkm.service.problems import Problem, documented
from streamkm.service.request_body import ARROW, CSV, JSON, Bodies
from streamkm.service.routes.models import ModelName
from streamkm.service.schemas import models as schemas
from streamkm.service.snapshot_cache import Reader, Served

KINDS = (JSON, CSV, ARROW)
INCLUDES = ("distances", "second")
MOST_DISTANCES = 1 << 24
"""Distances to all clusters that one answer tells: 128 MB."""
MOST_OF_ACCEPT = 1000
SNAPSHOT_HEADER = "Streamkm-Snapshot"
"""Which snapshot answered: a table has no place for it."""

_POINT: dict[str, Any] = {
    "oneOf": [
        {"type": "array", "items": {"type": "number"}, "minItems": 1, "description": "In the order of the fields"},
        {"type": "object", "additionalProperties": {"type": "number"}, "description": "By field; all of them"},
    ]
}
REQUEST: dict[str, Any] = {
    "required": True,
    "content": {
        JSON: {
            "schema": {
                "title": "PredictRequest",
                "type": "object",
                "additionalProperties": False,
                "required": ["points"],
                "properties": {
                    "points": {"type": "array", "items": _POINT},
                    "snapshot": {
                        "type": ["integer", "null"],
                        "minimum": 1,
                        "description": "Ask this snapshot; the newest if absent",
                    },
                },
            },
            "examples": {
                "arrays": {"value": {"points": [[12.0, 52.5, 13.4], [250.0, 48.1, 11.6]]}},
                "objects": {"value": {"points": [{"amount": 12.0, "lat": 52.5, "lon": 13.4}], "snapshot": 42}},
            },
        },
        CSV: {
            "schema": {
                "type": "string",
                "description": "UTF-8. The first line names the columns, of which those that are no fields are passed "
                "over; or there is no such line, and all fields come in their order",
            },
            "example": "lon,amount,lat\n13.4,12.0,52.5\n11.6,250.0,48.1\n",
        },
        ARROW: {
            "schema": {
                "type": "string",
                "format": "binary",
                "description": "The streaming format of Arrow IPC, not compressed: a column of numbers for each field",
            },
        },
    },
}
PARAMETERS: list[dict[str, Any]] = [
    {
        "name": "snapshot",
        "in": "query",
        "required": False,
        "description": "Ask this snapshot; the newest if absent",
        "schema": {"type": "integer", "minimum": 1, "maximum": MAX_ID},
    },
    {
        "name": "include",
        "in": "query",
        "required": False,
        "description": "What to tell besides: `distances` to all clusters, the `second` nearest cluster",
        "schema": {"type": "array", "items": {"enum": list(INCLUDES)}},
        "explode": False,
        "style": "form",
    },
]
_TABLES: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {
            CSV: {
                "schema": {"type": "string", "description": "With a header; what no double holds is empty"},
                "example": "id,distance,score\n0,1.25,0.66\n3,3.5,0.25\n",
            },
            ARROW: {
                "schema": {
                    "type": "string",
                    "format": "binary",
                    "description": "Columns id, distance and score; second_id and second_distance; distances, a list "
                    "for each point. The schema's metadata tell model, snapshot and clusters",
                },
            },
        },
        "headers": {
            SNAPSHOT_HEADER: {"description": "Number of the snapshot that answered", "schema": {"type": "integer"}}
        },
    }
}


class Asked(NamedTuple):
    """What the address of a request asks for.

    Attributes
    ----------
    snapshot
        Number of the snapshot; None: the newest.
    second, every
        What to tell besides.
    """

    snapshot: int | None = None
    second: bool = False
    every: bool = False


def router(reader: Reader, metrics: Metrics, bodies: Bodies) -> APIRouter:
    """The route.

    Parameters
    ----------
    reader
        Where snapshots come from.
    metrics
        What counts the points.
    bodies
        What reads requests.
    """
    routes = APIRouter(prefix="/v1")

    @routes.post(
        "/models/{model}/predict",
        tags=["clusters"],
        summary="Clusters of points",
        response_model=schemas.Prediction,
        responses=_TABLES | documented((400, 401, 404, 406, 408, 409, 413, 415, 422, 500, 503)),
        openapi_extra={"requestBody": REQUEST, "parameters": PARAMETERS},
    )
    async def predict(request: Request, model: ModelName) -> Response:
        """Nearest cluster of each point, the distance to it and an outlier score, with the snapshot that answered.

        Points come as JSON, CSV or an Arrow stream, and the answer is of the kind that Accept asks for.
        """
        # By hand: the framework would take longer for it than a few points do.
        asked = read_query(request.scope["query_string"])
        wanted = negotiate(request.headers.get("accept", ""))
        async with bodies.read_as(request, KINDS) as (kind, body):
            if kind == JSON:
                return await of_json(model, body, asked, wanted)
            return await of_table(model, kind, body, asked, wanted)

    async def of_json(model: str, body: bytes, asked: Asked, wanted: str) -> Response:
        points, number = await reader.compute(lambda: parse(body), len(body) // 4)
        if number is not None and asked.snapshot is not None:
            raise Problem(422, "invalid", "ask for a snapshot in the body or in the address", where="query.snapshot")
        served = await reader.snapshot(model, asked.snapshot if number is None else number)

        def work() -> bytes:
            return answer(served, assigned(served, to_array(points, served.snapshot.fields), asked), wanted)

        size = len(points) * served.snapshot.centroids.size
        content = await (reader.compute(work, size) if wanted == JSON else reader.work(work))
        return respond(served, content, wanted, len(points))

    async def of_table(model: str, kind: str, body: bytes, asked: Asked, wanted: str) -> Response:
        served = await reader.snapshot(model, asked.snapshot)
        read = tables.read_arrow if kind == ARROW else tables.read_csv

        def work() -> tuple[bytes, int]:
            points = read(body, served.snapshot.fields)
            return answer(served, assigned(served, points, asked), wanted), len(points)

        content, count = await reader.work(work)
        return respond(served, content, wanted, count)

    def respond(served: Served, content: bytes, wanted: str, count: int) -> Response:
        metrics.add(names.POINTS_PREDICTED, count, model=served.snapshot.model)
        return Response(content, headers={SNAPSHOT_HEADER: str(served.snapshot.id)}, media_type=wanted)

    return routes


def read_query(query: bytes) -> Asked:
    """What an address asks for.

    Raises
    ------
    Problem
        422: not what it may say.
    """
    if not query:
        return Asked()
    number: int | None = None
    include: set[str] = set()
    for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if name == "snapshot":
            if not (value.isascii() and value.isdigit() and len(value) <= 19 and 1 <= int(value) <= MAX_ID):
                raise Problem(
                    422,
                    "invalid",
                    "not the number of a snapshot",
                    where="query.snapshot",
                    hint="Leave it out for the newest",
                )
            number = int(value)
        elif name == "include":
            include |= set(filter(None, value.split(",")))
        else:
            where = f"query.{name[:100]}".encode("utf-8", "replace").decode()
            raise Problem(422, "unknown-field", "there is no such parameter", where=where)
    if unknown := sorted(include - set(INCLUDES)):
        there = f"There are: {', '.join(INCLUDES)}"
        raise Problem(422, "invalid", f"{unknown[0][:100]!a} is not told", where="query.include", hint=there)
    return Asked(number, "second" in include, "distances" in include)


def negotiate(accept: str) -> str:
    """The kind of answer that an Accept header asks for (RFC 9110, section 12.5.1); JSON if it does not care.

    >>> negotiate(""), negotiate("text/csv;q=0.5, text/*;q=0.1"), negotiate("text/html, */*;q=0.8")
    ('application/json', 'text/csv', 'application/json')

    Raises
    ------
    Problem
        406: none that there is.
    """
    if accept in {"", "*/*", JSON}:
        return JSON
    asked: dict[str, float] = {}
    if len(accept) > MOST_OF_ACCEPT:
        raise Problem(406, "not-acceptable", f"more than {MOST_OF_ACCEPT} characters", where="Accept")
    for part in accept.split(","):
        kind, *parameters = (piece.strip().lower() for piece in part.split(";"))
        weight = next((p[2:] for p in parameters if p.startswith("q=")), "1")
        try:
            asked[kind] = float(weight)
        except ValueError:
            asked[kind] = 0.0

    def weight_of(kind: str) -> float:
        return next((asked[k] for k in (kind, f"{kind.partition('/')[0]}/*", "*/*") if k in asked), 0.0)

    best = max(KINDS, key=weight_of)
    if not weight_of(best) > 0.0:
        raise Problem(
            406,
            "not-acceptable",
            f"{accept[:100]} is not what this can answer with",
            where="Accept",
            hint=f"Accept {' or '.join(KINDS)}",
        )
    return best


def assigned(served: Served, points: NDArray[np.float64], asked: Asked) -> Assignment:
    """What a snapshot says about points (n, d).

    Raises
    ------
    Problem
        413: more distances than one answer tells. 422: see `assign`.
    """
    if asked.every and len(points) * len(served.snapshot.ids) > MOST_DISTANCES:
        raise Problem(
            413,
            "too-large",
            f"more than {MOST_DISTANCES} distances to tell",
            where="query.include",
            hint="Send fewer points in one request",
        )
    return assign(served.snapshot, points, second=asked.second, every=asked.every)


def answer(served: Served, found: Assignment, wanted: str) -> bytes:
    """The answer of one of `KINDS`."""
    s = served.snapshot
    if wanted == JSON:
        return _json(served, found)
    columns: dict[str, Any] = {"id": found.ids, "distance": found.distances, "score": found.scores}
    if found.second_ids is not None:
        columns |= {"second_id": found.second_ids, "second_distance": found.second_distances}
    if wanted == CSV:
        if found.every is not None:
            columns |= {f"distance_{i}": found.every[:, j] for j, i in enumerate(s.ids.tolist())}
        return tables.write_csv(columns)
    if found.every is not None:
        columns["distances"] = found.every
    about = {"model": s.model, "snapshot": str(s.id), "created_at": served.created_at}
    return tables.write_arrow(columns, about | {"clusters": ",".join(map(str, s.ids.tolist()))})


def _json(served: Served, found: Assignment) -> bytes:
    s = served.snapshot
    told: dict[str, Any] = {
        "model": s.model,
        "snapshot": {"id": s.id, "created_at": served.created_at},
        "ids": found.ids,
        "distances": found.distances,
        "scores": found.scores,
    }
    if found.second_ids is not None:
        told["second_ids"] = [i if i >= 0 else None for i in found.second_ids.tolist()]
        told["second_distances"] = found.second_distances
    if found.every is not None:
        told |= {"clusters": s.ids, "all_distances": found.every}
    return orjson.dumps(told, option=orjson.OPT_SERIALIZE_NUMPY)
