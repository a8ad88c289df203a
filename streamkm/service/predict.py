"""``POST /v1/models/{m}/predict``: the clusters of points."""

from __future__ import annotations

import functools
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response

from streamkm import metrics as names
from streamkm.metrics import Metrics
from streamkm.service import schemas
from streamkm.service.bodies import Bodies
from streamkm.service.errors import documented
from streamkm.service.nearest import assign
from streamkm.service.points import parse, to_array
from streamkm.service.queries import ModelName
from streamkm.service.reader import Reader, Served

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
        responses=documented((400, 401, 404, 408, 409, 413, 415, 422, 500, 503)),
        openapi_extra={"requestBody": REQUEST},
    )
    async def predict(request: Request, model: ModelName) -> Response:
        """Nearest cluster of each point, the distance to it and an outlier score, with the snapshot that answered."""
        async with bodies.read(request) as body:
            return await answer(model, body)

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
