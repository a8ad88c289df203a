"""``POST /v1/models/{m}/predict``: the clusters of points."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response

from streamkm import metrics as names
from streamkm.metrics import Metrics
from streamkm.service import schemas
from streamkm.service.errors import Problem, documented
from streamkm.service.nearest import assign
from streamkm.service.points import parse, to_array
from streamkm.service.queries import ModelName
from streamkm.service.reader import Reader, Served

BODY_SECONDS = 30
"""How long a body may take to arrive."""
SMALL_BODY = 1 << 16
"""Bytes that any number of clients may have on their way at a time; of larger bodies only `LARGE_AT_A_TIME`."""
LARGE_AT_A_TIME = 4

_POINT: dict[str, Any] = {
    "oneOf": [
        {"type": "array", "items": {"type": "number"}, "minItems": 1, "description": "In the order of the fields"},
        {"type": "object", "additionalProperties": {"type": "number"}, "description": "By field; all of them"},
    ]
}
REQUEST: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {
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
        }
    },
}


def router(reader: Reader, metrics: Metrics, max_body_bytes: int) -> APIRouter:
    """The route.

    Parameters
    ----------
    reader
        Where snapshots come from.
    metrics
        What counts the points.
    max_body_bytes
        Larger bodies get 413.
    """
    routes = APIRouter(prefix="/v1")
    large = asyncio.Semaphore(LARGE_AT_A_TIME)

    @routes.post(
        "/models/{model}/predict",
        tags=["clusters"],
        summary="Clusters of points",
        response_model=schemas.Prediction,
        responses=documented((400, 401, 404, 408, 409, 413, 415, 422, 500, 503)),
        openapi_extra={"requestBody": REQUEST},
    )
    async def predict(request: Request, model: ModelName) -> Response:
        """Nearest cluster of each point, the distance to it and an outlier score, with the snapshot that answered."""
        _check_media_type(request)
        announced = _announced(request)
        if announced > max_body_bytes:
            raise _too_large(max_body_bytes)
        if 0 <= announced <= SMALL_BODY:
            return await answer(model, await _read(request, SMALL_BODY))
        async with large:
            return await answer(model, await _read(request, max_body_bytes))

    async def answer(model: str, body: bytes) -> Response:
        points, number = await reader.compute(functools.partial(parse, body), len(body) // 4)
        served = await reader.snapshot(model, number)
        size = len(points) * served.snapshot.centroids.size
        content = await reader.compute(functools.partial(predict_json, served, points), size)
        metrics.add(names.POINTS_PREDICTED, len(points), model=model)
        return Response(content, media_type="application/json")

    return routes


def predict_json(served: Served, points: list[Any]) -> bytes:
    """The answer.

    Parameters
    ----------
    served
        The snapshot to ask.
    points
        As they came; see `to_array`.
    """
    s = served.snapshot
    found = assign(s, to_array(points, s.fields))
    return orjson.dumps(
        {
            "model": s.model,
            "snapshot": {"id": s.id, "created_at": served.created_at},
            "ids": found.ids,
            "distances": found.distances,
            "scores": found.scores,
        },
        option=orjson.OPT_SERIALIZE_NUMPY,
    )


async def _read(request: Request, limit: int) -> bytes:
    parts, size = [], 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                parts.append(part)
                size += len(part)
                if size > limit:
                    raise _too_large(limit)
    except TimeoutError as e:
        raise Problem(408, "too-slow", f"did not arrive within {BODY_SECONDS} s", where="body") from e
    return b"".join(parts)


def _announced(request: Request) -> int:
    """Length of the body; -1 if the request does not say."""
    text = request.headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdigit() else -1


def _check_media_type(request: Request) -> None:
    given = request.headers.get("content-type", "application/json")
    kind = given.partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise Problem(
            415,
            "unsupported-media-type",
            f"{given[:100]} is not JSON",
            where="Content-Type",
            hint="Send application/json",
        )
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Problem(
            415,
            "unsupported-media-type",
            "compressed bodies are not read",
            where="Content-Encoding",
            hint="Send it plain",
        )


def _too_large(limit: int) -> Problem:
    return Problem(413, "too-large", f"more than {limit} bytes", where="body", hint="Send fewer points in one request")
