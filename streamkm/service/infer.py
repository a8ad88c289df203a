"""``/v2``: the same predictions by the open inference protocol, as KServe, Triton and Seldon speak it.

A version of a model is a snapshot. One tensor goes in, ``points``; ``ids``, ``distances`` and ``scores`` come out.
Source: kserve/open-inference-protocol, ``specification/protocol/inference_rest.md``.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib.metadata import version as version_of
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response

from streamkm import metrics as names
from streamkm.metrics import Metrics
from streamkm.service import schemas
from streamkm.service.bodies import Bodies
from streamkm.service.errors import Problem, documented
from streamkm.service.nearest import assign
from streamkm.service.points import json_object, to_array
from streamkm.service.queries import ModelName, SnapshotNumber
from streamkm.service.reader import Reader, Served, dumps

OUTPUTS = {"ids": "INT64", "distances": "FP64", "scores": "FP64"}
_NUMBERS = ("FP64", "FP32", "FP16", *(f"{sign}INT{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)))
_HINT = 'Send {"inputs": [{"name": "points", "shape": [2, 3], "datatype": "FP64", "data": [[...], [...]]}]}'
_ERRORS = (401, 404, 409, 422, 500, 503)
REQUEST: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "title": "InferRequest",
                "type": "object",
                "required": ["inputs"],
                "properties": {
                    "id": {"type": "string", "description": "Comes back in the answer"},
                    "inputs": {
                        "type": "array",
                        "minItems": 1,
                        "maxItems": 1,
                        "items": {
                            "type": "object",
                            "required": ["name", "shape", "datatype", "data"],
                            "properties": {
                                "name": {"type": "string"},
                                "shape": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2},
                                "datatype": {"enum": list(_NUMBERS)},
                                "data": {"type": "array", "description": "Row by row, nested or flat"},
                            },
                        },
                    },
                    "outputs": {
                        "type": "array",
                        "items": {"type": "object", "properties": {"name": {"enum": list(OUTPUTS)}}},
                    },
                },
            },
            "example": {
                "id": "a7",
                "inputs": [
                    {"name": "points", "shape": [1, 3], "datatype": "FP64", "data": [12.0, 52.5, 13.4]},
                ],
            },
        }
    },
}


@dataclass(frozen=True)
class Asked:
    """A request.

    Attributes
    ----------
    id
        Comes back in the answer.
    rows
        Points as they came, a list for each.
    outputs
        Which tensors are wanted.
    """

    id: str | None
    rows: list[Any]
    outputs: tuple[str, ...]


def router(reader: Reader, metrics: Metrics, bodies: Bodies) -> APIRouter:
    """The routes.

    Parameters
    ----------
    reader
        Where snapshots come from.
    metrics
        What counts the points.
    bodies
        What reads requests.
    """
    routes = APIRouter(prefix="/v2", tags=["open inference protocol"])

    @routes.get("", summary="The server", response_model=schemas.ServerMetadata, responses=documented((401, 500)))
    async def server() -> Response:
        """Name and version."""
        return _json(schemas.ServerMetadata(name="streamkm", version=version_of("streamkm"), extensions=[]))

    @routes.get(
        "/health/live", summary="Is it up?", response_model=schemas.ServerLive, responses=documented((401, 500))
    )
    async def live() -> Response:
        """Answers as long as the process does."""
        return _json(schemas.ServerLive(live=True))

    @routes.get(
        "/health/ready",
        summary="Can it answer?",
        response_model=schemas.ServerReady,
        responses=documented((401, 500, 503)),
    )
    async def ready() -> Response:
        """Answers 200 if the store does."""
        await reader.ping()
        return _json(schemas.ServerReady(ready=True))

    @routes.get(
        "/models/{model}", summary="One model", response_model=schemas.ModelMetadata, responses=documented(_ERRORS)
    )
    async def model(model: ModelName) -> Response:
        """Tensors of a model, and its newest snapshot as its version."""
        return _json(_metadata(await reader.snapshot(model)))

    @routes.get(
        "/models/{model}/versions/{version}",
        summary="One snapshot as a version",
        response_model=schemas.ModelMetadata,
        responses=documented(_ERRORS),
    )
    async def model_version(model: ModelName, version: SnapshotNumber) -> Response:
        """The same for a snapshot."""
        return _json(_metadata(await reader.snapshot(model, version)))

    @routes.get(
        "/models/{model}/ready",
        summary="Can the model answer?",
        response_model=schemas.ModelReady,
        responses=documented(_ERRORS),
    )
    async def model_ready(model: ModelName) -> Response:
        """200 once it has a snapshot, 409 while it warms up."""
        await reader.snapshot(model)
        return _json(schemas.ModelReady(name=model, ready=True))

    @routes.get(
        "/models/{model}/versions/{version}/ready",
        summary="Can the snapshot answer?",
        response_model=schemas.ModelReady,
        responses=documented(_ERRORS),
    )
    async def version_ready(model: ModelName, version: SnapshotNumber) -> Response:
        """200 if it is there."""
        await reader.snapshot(model, version)
        return _json(schemas.ModelReady(name=model, ready=True))

    @routes.post(
        "/models/{model}/infer",
        summary="Clusters of points",
        response_model=schemas.Inference,
        responses=documented((400, 401, 404, 408, 409, 413, 415, 422, 500, 503)),
        openapi_extra={"requestBody": REQUEST},
    )
    async def infer(request: Request, model: ModelName) -> Response:
        """Ids of the nearest clusters, distances and outlier scores, by the newest snapshot."""
        async with bodies.read(request) as body:
            return await answer(model, None, body)

    @routes.post(
        "/models/{model}/versions/{version}/infer",
        summary="Clusters of points by one snapshot",
        response_model=schemas.Inference,
        responses=documented((400, 401, 404, 408, 409, 413, 415, 422, 500, 503)),
        openapi_extra={"requestBody": REQUEST},
    )
    async def infer_version(request: Request, model: ModelName, version: SnapshotNumber) -> Response:
        """The same by the snapshot of this number."""
        async with bodies.read(request) as body:
            return await answer(model, version, body)

    async def answer(model: str, version: int | None, body: bytes) -> Response:
        asked = await reader.compute(functools.partial(parse, body), len(body) // 4)
        served = await reader.snapshot(model, version)
        size = len(asked.rows) * served.snapshot.centroids.size
        content = await reader.compute(functools.partial(infer_json, served, asked), size)
        metrics.add(names.POINTS_PREDICTED, len(asked.rows), model=model)
        return Response(content, media_type="application/json")

    return routes


def parse(body: bytes) -> Asked:
    """What a request asks for.

    Raises
    ------
    Problem
        400: not JSON. 422: JSON of another shape.
    """
    request = json_object(body, _HINT)
    identity, inputs, outputs = (request.get(name) for name in ("id", "inputs", "outputs"))
    if identity is not None and not isinstance(identity, str):
        raise Problem(422, "invalid", "not a string", where="id")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise Problem(422, "invalid", "not a list of one tensor", where="inputs", hint=_HINT)
    return Asked(identity, _rows(inputs[0]), _wanted(outputs))


def _rows(tensor: dict[str, Any]) -> list[Any]:
    shape, kind, data = (tensor.get(name) for name in ("shape", "datatype", "data"))
    if kind not in _NUMBERS:
        raise Problem(422, "invalid", "not a kind of number", where="inputs[0].datatype", hint="Send FP64")
    if not isinstance(shape, list) or len(shape) != 2 or any(type(x) is not int or x < 0 for x in shape):
        raise Problem(422, "invalid", "not [points, fields]", where="inputs[0].shape", hint=_HINT)
    n, d = shape
    if not isinstance(data, list):
        raise Problem(422, "invalid", "not a list", where="inputs[0].data", hint=_HINT)
    nested = bool(data) and isinstance(data[0], list)
    if len(data) != (n if nested else n * d):
        told = f"{len(data)} {'rows' if nested else 'numbers'}, the shape says {n} x {d}"
        raise Problem(422, "wrong-dimension", told, where="inputs[0].data")
    return data if nested else [data[at : at + d] for at in range(0, n * d, d or 1)]


def _wanted(outputs: Any) -> tuple[str, ...]:
    if outputs is None or outputs == []:
        return tuple(OUTPUTS)
    if not isinstance(outputs, list):
        raise Problem(422, "invalid", "not a list", where="outputs")
    wanted = []
    for i, output in enumerate(outputs):
        name = output.get("name") if isinstance(output, dict) else None
        if not isinstance(name, str) or name not in OUTPUTS:
            there = f"There are: {', '.join(OUTPUTS)}"
            raise Problem(422, "unknown-field", "there is no such output", where=f"outputs[{i}]", hint=there)
        wanted.append(name)
    return tuple(dict.fromkeys(wanted))


def infer_json(served: Served, asked: Asked) -> bytes:
    """The answer."""
    s = served.snapshot
    found = assign(s, to_array(asked.rows, s.fields))
    tensors = [
        {"name": name, "datatype": OUTPUTS[name], "shape": [len(asked.rows)], "data": getattr(found, name)}
        for name in asked.outputs
    ]
    told = {"model_name": s.model, "model_version": str(s.id), "outputs": tensors}
    return orjson.dumps(told | ({} if asked.id is None else {"id": asked.id}), option=orjson.OPT_SERIALIZE_NUMPY)


def _metadata(served: Served) -> schemas.ModelMetadata:
    s = served.snapshot
    tensors = [schemas.TensorMetadata(name=name, datatype=kind, shape=[-1]) for name, kind in OUTPUTS.items()]
    points = schemas.TensorMetadata(name="points", datatype="FP64", shape=[-1, len(s.fields)])
    return schemas.ModelMetadata(
        name=s.model, versions=[str(s.id)], platform="streamkm", inputs=[points], outputs=tensors
    )


def _json(answer: Any) -> Response:
    return Response(dumps(answer), media_type="application/json")
