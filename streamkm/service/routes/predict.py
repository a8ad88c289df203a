"""``POST /v1/models/{m}/predict``: the clusters of points, as JSON, CSV or Arrow."""

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
from streamkm.service.problems import Problem, problem_responses
from streamkm.service.request_body import ARROW, CSV, JSON, BodyReader
from streamkm.service.routes.models import ModelName
from streamkm.service.schemas import models as schemas
from streamkm.service.snapshot_cache import CachedSnapshot, StoreReader

MEDIA_TYPES = (JSON, CSV, ARROW)
INCLUDES = ("distances", "second")
MAX_DISTANCES = 1 << 24
"""Distances to all clusters in one response: 128 MB of doubles."""
MAX_ACCEPT_CHARS = 1000
SNAPSHOT_HEADER = "Streamkm-Snapshot"
"""Header with the number of the snapshot: CSV cannot hold it."""

_POINT: dict[str, Any] = {
    "oneOf": [
        {"type": "array", "items": {"type": "number"}, "minItems": 1, "description": "In the order of the fields"},
        {"type": "object", "additionalProperties": {"type": "number"}, "description": "By field name, with all fields"},
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
                        "description": "Number of the snapshot to predict with; the newest if absent",
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
                "description": "UTF-8. The first line has the column names, and columns that are not fields are "
                "ignored; or there is no header, and the columns are the fields in their order",
            },
            "example": "lon,amount,lat\n13.4,12.0,52.5\n11.6,250.0,48.1\n",
        },
        ARROW: {
            "schema": {
                "type": "string",
                "format": "binary",
                "description": "Arrow IPC stream without compression: a numeric column per field",
            },
        },
    },
}
PARAMETERS: list[dict[str, Any]] = [
    {
        "name": "snapshot",
        "in": "query",
        "required": False,
        "description": "Number of the snapshot to predict with; the newest if absent",
        "schema": {"type": "integer", "minimum": 1, "maximum": MAX_ID},
    },
    {
        "name": "include",
        "in": "query",
        "required": False,
        "description": "Additional results: `distances` to all clusters, the `second` nearest cluster",
        "schema": {"type": "array", "items": {"enum": list(INCLUDES)}},
        "explode": False,
        "style": "form",
    },
]
_TABLES: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {
            CSV: {
                "schema": {"type": "string", "description": "With a header; a number that overflows a double is empty"},
                "example": "id,distance,score\n0,1.25,0.66\n3,3.5,0.25\n",
            },
            ARROW: {
                "schema": {
                    "type": "string",
                    "format": "binary",
                    "description": "Columns id, distance and score; second_id and second_distance; distances, a list "
                    "for each point. The metadata of the schema have model, snapshot and clusters",
                },
            },
        },
        "headers": {
            SNAPSHOT_HEADER: {"description": "Number of the snapshot that predicted", "schema": {"type": "integer"}}
        },
    }
}


class PredictOptions(NamedTuple):
    """Query parameters of a request.

    Attributes
    ----------
    snapshot
        Number of the snapshot; None for the newest.
    second, every
        Whether the second nearest cluster, and the distances to all clusters, are included.
    """

    snapshot: int | None = None
    second: bool = False
    every: bool = False


def router(reader: StoreReader, metrics: Metrics, bodies: BodyReader) -> APIRouter:
    """The route.

    Parameters
    ----------
    reader
        Access to the store.
    metrics
        Counts the predicted points.
    bodies
        Reads request bodies.
    """
    routes = APIRouter(prefix="/v1")

    @routes.post(
        "/models/{model}/predict",
        tags=["clusters"],
        summary="Predict the clusters of points",
        response_model=schemas.Prediction,
        responses=_TABLES | problem_responses((400, 401, 404, 406, 408, 409, 413, 415, 422, 500, 503)),
        openapi_extra={"requestBody": REQUEST, "parameters": PARAMETERS},
    )
    async def predict(request: Request, model: ModelName) -> Response:
        """Nearest cluster of each point, distance to its centroid and outlier score.

        Points are sent as JSON, CSV or an Arrow stream; the Accept header chooses the format of the response.
        """
        # Parsed without the framework, which would take longer than the prediction of a few points.
        options = parse_options(request.scope["query_string"])
        accepted = negotiate(request.headers.get("accept", ""))
        async with bodies.read_as(request, MEDIA_TYPES) as (media_type, parts):
            if media_type == JSON:
                return await predict_json(model, parts, options, accepted)
            return await predict_table(model, media_type, parts, options, accepted)

    async def predict_json(model: str, parts: list[bytes], options: PredictOptions, accepted: str) -> Response:
        cached = await reader.snapshot(model, options.snapshot)

        def work() -> tuple[bytes, int] | int:
            """Content and number of points, or the number of another snapshot."""
            # The points are released in this function too: of many that takes a millisecond.
            points, number = parse(b"".join(parts))
            if number is not None and options.snapshot is not None:
                raise Problem(422, "invalid", "the snapshot is in the body and in the query", where="query.snapshot")
            if number is not None and number != cached.snapshot.id:
                return number
            found = assigned(cached, to_array(points, cached.snapshot.fields), options)
            return encode(cached, found, accepted), len(points)

        size = sum(map(len, parts))
        result = await reader.predict(work, size, cached)
        while isinstance(result, int):
            cached = await reader.snapshot(model, result)
            result = await reader.predict(work, size, cached)
        content, count = result
        return respond(cached, content, count, accepted)

    async def predict_table(
        model: str, media_type: str, parts: list[bytes], options: PredictOptions, accepted: str
    ) -> Response:
        cached = await reader.snapshot(model, options.snapshot)
        read = tables.read_arrow if media_type == ARROW else tables.read_csv

        def work() -> tuple[bytes, int]:
            points = read(b"".join(parts), cached.snapshot.fields)
            return encode(cached, assigned(cached, points, options), accepted), len(points)

        return respond(cached, *await reader.run_in_thread(work), accepted)

    def respond(cached: CachedSnapshot, content: bytes, count: int, media_type: str) -> Response:
        metrics.add(names.POINTS_PREDICTED, count, model=cached.snapshot.model)
        return Response(content, headers={SNAPSHOT_HEADER: str(cached.snapshot.id)}, media_type=media_type)

    return routes


def parse_options(query: bytes) -> PredictOptions:
    """Parse the query string.

    Raises
    ------
    Problem
        422: an invalid or unknown parameter.
    """
    if not query:
        return PredictOptions()
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
            raise Problem(422, "unknown-field", "unknown parameter", where=where)
    if unknown := sorted(include - set(INCLUDES)):
        hint = f"There are: {', '.join(INCLUDES)}"
        raise Problem(422, "invalid", f"{unknown[0][:100]!a} cannot be included", where="query.include", hint=hint)
    return PredictOptions(number, "second" in include, "distances" in include)


def negotiate(accept: str) -> str:
    """The media type of the response by the Accept header (RFC 9110, section 12.5.1); JSON by default.

    >>> negotiate(""), negotiate("text/csv;q=0.5, text/*;q=0.1"), negotiate("text/html, */*;q=0.8")
    ('application/json', 'text/csv', 'application/json')

    Raises
    ------
    Problem
        406: no media type is acceptable.
    """
    if accept in {"", "*/*", JSON}:
        return JSON
    weights: dict[str, float] = {}
    if len(accept) > MAX_ACCEPT_CHARS:
        raise Problem(406, "not-acceptable", f"more than {MAX_ACCEPT_CHARS} characters", where="Accept")
    for part in accept.split(","):
        media_range, *parameters = (piece.strip().lower() for piece in part.split(";"))
        weight = next((p[2:] for p in parameters if p.startswith("q=")), "1")
        try:
            weights[media_range] = float(weight)
        except ValueError:
            weights[media_range] = 0.0

    def weight_of(media_type: str) -> float:
        ranges = (media_type, f"{media_type.partition('/')[0]}/*", "*/*")
        return next((weights[r] for r in ranges if r in weights), 0.0)

    best = max(MEDIA_TYPES, key=weight_of)
    if not weight_of(best) > 0.0:
        raise Problem(
            406,
            "not-acceptable",
            f"{accept[:100]} is not available",
            where="Accept",
            hint=f"Accept {' or '.join(MEDIA_TYPES)}",
        )
    return best


def assigned(cached: CachedSnapshot, points: NDArray[np.float64], options: PredictOptions) -> Assignment:
    """Assign points (n, d) to the clusters of a snapshot.

    Raises
    ------
    Problem
        413: more than `MAX_DISTANCES` distances.
    """
    if options.every and len(points) * len(cached.snapshot.ids) > MAX_DISTANCES:
        raise Problem(
            413,
            "too-large",
            f"more than {MAX_DISTANCES} distances",
            where="query.include",
            hint="Send fewer points in one request",
        )
    return assign(cached.snapshot, points, second=options.second, all_distances=options.every)


def encode(cached: CachedSnapshot, found: Assignment, media_type: str) -> bytes:
    """Encode a response in one of `MEDIA_TYPES`."""
    s = cached.snapshot
    if media_type == JSON:
        return _json(cached, found)
    columns: dict[str, Any] = {"id": found.ids, "distance": found.distances, "score": found.scores}
    if found.second_ids is not None:
        columns |= {"second_id": found.second_ids, "second_distance": found.second_distances}
    if media_type == CSV:
        if found.all_distances is not None:
            columns |= {f"distance_{i}": found.all_distances[:, j] for j, i in enumerate(s.ids.tolist())}
        return tables.write_csv(columns)
    if found.all_distances is not None:
        columns["distances"] = found.all_distances
    metadata = {"model": s.model, "snapshot": str(s.id), "created_at": cached.created_at}
    return tables.write_arrow(columns, metadata | {"clusters": ",".join(map(str, s.ids.tolist()))})


def _json(cached: CachedSnapshot, found: Assignment) -> bytes:
    s = cached.snapshot
    content: dict[str, Any] = {
        "model": s.model,
        "snapshot": {"id": s.id, "created_at": cached.created_at},
        "ids": found.ids,
        "distances": found.distances,
        "scores": found.scores,
    }
    if found.second_ids is not None:
        content["second_ids"] = [i if i >= 0 else None for i in found.second_ids.tolist()]
        content["second_distances"] = found.second_distances
    if found.all_distances is not None:
        content |= {"clusters": s.ids, "all_distances": found.all_distances}
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
