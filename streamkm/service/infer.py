"""``/v2``: the same predictions by the open inference protocol, as KServe, Triton and Seldon speak it.

A version of a model is a snapshot. One tensor goes in, ``points``; ``ids``, ``distances`` and ``scores`` come out.
Source: kserve/open-inference-protocol, ``specification/protocol/inference_rest.md``, and its extension for binary
tensors in triton-inference-server/server, ``docs/protocol/extension_binary_data.md``, which its client always speaks.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib.metadata import version as version_of
from typing import Any

import numpy as np
import orjson
from fastapi import APIRouter, Request, Response
from numpy.typing import NDArray

from streamkm import metrics as names
from streamkm.metrics import Metrics
from streamkm.service import schemas
from streamkm.service.bodies import BINARY, JSON, Bodies
from streamkm.service.errors import Problem, documented
from streamkm.service.nearest import assign
from streamkm.service.points import json_object, of_matrix, to_array
from streamkm.service.queries import ModelName, SnapshotNumber
from streamkm.service.reader import Reader, Served, dumps

OUTPUTS = {"ids": "INT64", "distances": "FP64", "scores": "FP64"}
_NUMBERS = {f"FP{bits}": f"<f{bits // 8}" for bits in (64, 32, 16)} | {
    f"{sign}INT{bits}": f"<{kind}{bits // 8}" for sign, kind in (("", "i"), ("U", "u")) for bits in (8, 16, 32, 64)
}
"""Kinds of numbers, and what numpy calls their bytes."""
HEAD_LENGTH = "Inference-Header-Content-Length"
"""How many bytes of a body are JSON; behind them stand those of the binary tensors."""
_SIZE = "binary_data_size"
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
                            "required": ["name", "shape", "datatype"],
                            "properties": {
                                "name": {"type": "string"},
                                "shape": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2},
                                "datatype": {"enum": list(_NUMBERS)},
                                "data": {"type": "array", "description": "Row by row, nested or flat"},
                                "parameters": {
                                    "type": "object",
                                    "properties": {_SIZE: {"type": "integer", "minimum": 0}},
                                    "description": f"`{_SIZE}` instead of data: the numbers stand behind the JSON, "
                                    f"row by row and little-endian, and the header {HEAD_LENGTH} says where",
                                },
                            },
                        },
                    },
                    "outputs": {
                        "type": "array",
                        "items": {"type": "object", "properties": {"name": {"enum": list(OUTPUTS)}}},
                        "description": "With the parameter `binary_data` the numbers stand behind the JSON",
                    },
                    "parameters": {
                        "type": "object",
                        "properties": {"binary_data_output": {"type": "boolean"}},
                        "description": "`binary_data_output`: those of all outputs do that do not say otherwise",
                    },
                },
            },
            "example": {
                "id": "a7",
                "inputs": [
                    {"name": "points", "shape": [1, 3], "datatype": "FP64", "data": [12.0, 52.5, 13.4]},
                ],
            },
        },
        BINARY: {
            "schema": {
                "type": "string",
                "format": "binary",
                "description": f"The same JSON, {HEAD_LENGTH} bytes of it, and behind it the numbers of the tensor",
            },
        },
    },
}
_BINARY: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {
            BINARY: {
                "schema": {
                    "type": "string",
                    "format": "binary",
                    "description": f"The same JSON, {HEAD_LENGTH} bytes of it, and behind it those of the tensors",
                }
            }
        }
    }
}


@dataclass(frozen=True)
class Asked:
    """A request.

    Attributes
    ----------
    id
        Comes back in the answer.
    rows
        Points as they came, a list for each or (n, d).
    outputs
        Which tensors are wanted, and whether as bytes.
    """

    id: str | None
    rows: list[Any] | NDArray[Any]
    outputs: dict[str, bool]


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
    metadata = schemas.ServerMetadata(  # once: the version is read from the disk
        name="streamkm", version=version_of("streamkm"), extensions=["binary_tensor_data"]
    )

    @routes.get("", summary="The server", response_model=schemas.ServerMetadata, responses=documented((401, 500)))
    async def server() -> Response:
        """Name and version."""
        return _json(metadata)

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
        responses=_BINARY | documented((400, 401, 404, 408, 409, 413, 415, 422, 500, 503)),
        openapi_extra={"requestBody": REQUEST},
    )
    async def infer(request: Request, model: ModelName) -> Response:
        """Ids of the nearest clusters, distances and outlier scores, by the newest snapshot."""
        return await answer(request, model, None)

    @routes.post(
        "/models/{model}/versions/{version}/infer",
        summary="Clusters of points by one snapshot",
        response_model=schemas.Inference,
        responses=_BINARY | documented((400, 401, 404, 408, 409, 413, 415, 422, 500, 503)),
        openapi_extra={"requestBody": REQUEST},
    )
    async def infer_version(request: Request, model: ModelName, version: SnapshotNumber) -> Response:
        """The same by the snapshot of this number."""
        return await answer(request, model, version)

    async def answer(request: Request, model: str, version: int | None) -> Response:
        async with bodies.read_as(request, (JSON, BINARY)) as (_, body):
            head = _head_length(request.headers.get(HEAD_LENGTH), len(body))
            asked = await reader.compute(functools.partial(parse, body, head), len(body) // 4)
            served = await reader.snapshot(model, version)
            size = len(asked.rows) * served.snapshot.centroids.size
            told, tensors = await reader.compute(functools.partial(infer_parts, served, asked), size)
            metrics.add(names.POINTS_PREDICTED, len(asked.rows), model=model)
            if not any(asked.outputs.values()):
                return Response(told, media_type=JSON)
            return Response(told + tensors, headers={HEAD_LENGTH: str(len(told))}, media_type=BINARY)

    return routes


def _head_length(text: str | None, size: int) -> int:
    if text is None:
        return size
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(size)) and int(text) <= size):
        raise Problem(400, "invalid", f"not a number of bytes up to the {size} of the body", where=HEAD_LENGTH)
    return int(text)


def parse(body: bytes, head: int | None = None) -> Asked:
    """What a request asks for.

    Parameters
    ----------
    body
        JSON, and behind it the bytes of a tensor.
    head
        Bytes of the JSON; None: all.

    Raises
    ------
    Problem
        400: not JSON. 422: JSON of another shape.
    """
    head = len(body) if head is None else head
    request = json_object(body[:head], _HINT)
    identity, inputs, outputs = (request.get(name) for name in ("id", "inputs", "outputs"))
    if identity is not None and not isinstance(identity, str):
        raise Problem(422, "invalid", "not a string", where="id")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise Problem(422, "invalid", "not a list of one tensor", where="inputs", hint=_HINT)
    every = _parameters(request).get("binary_data_output") is True
    return Asked(identity, _rows(inputs[0], body[head:]), _wanted(outputs, every))


def _parameters(of: dict[str, Any]) -> dict[str, Any]:
    found = of.get("parameters")
    return found if isinstance(found, dict) else {}


def _rows(tensor: dict[str, Any], behind: bytes) -> list[Any] | NDArray[Any]:
    shape, kind, data = (tensor.get(name) for name in ("shape", "datatype", "data"))
    parameters = _parameters(tensor)
    if "shared_memory_region" in parameters:
        raise Problem(422, "invalid", "shared memory is not read", where="inputs[0].parameters", hint=_HINT)
    if not isinstance(kind, str) or kind not in _NUMBERS:
        raise Problem(422, "invalid", "not a kind of number", where="inputs[0].datatype", hint="Send FP64")
    if not isinstance(shape, list) or len(shape) != 2 or any(type(x) is not int or x < 0 for x in shape):
        raise Problem(422, "invalid", "not [points, fields]", where="inputs[0].shape", hint=_HINT)
    n, d = shape
    if _SIZE in parameters or behind:
        dtype = np.dtype(_NUMBERS[kind])
        if parameters.get(_SIZE) != len(behind) or len(behind) != n * d * dtype.itemsize:
            told = f"{len(behind)} bytes behind the JSON, {_SIZE} says {parameters.get(_SIZE)}, {n} x {d} {kind} have"
            told = f"{told} {n * d * dtype.itemsize}"
            raise Problem(422, "wrong-dimension", told[:300], where="inputs[0]", hint=f"Is {HEAD_LENGTH} right?")
        return np.frombuffer(behind, dtype).reshape(n, d)
    if not isinstance(data, list):
        raise Problem(422, "invalid", "not a list", where="inputs[0].data", hint=_HINT)
    nested = bool(data) and isinstance(data[0], list)
    if len(data) != (n if nested else n * d):
        told = f"{len(data)} {'rows' if nested else 'numbers'}, the shape says {n} x {d}"
        raise Problem(422, "wrong-dimension", told, where="inputs[0].data")
    return data if nested else [data[at : at + d] for at in range(0, n * d, d or 1)]


def _wanted(outputs: Any, every: bool) -> dict[str, bool]:
    if outputs is None or outputs == []:
        return dict.fromkeys(OUTPUTS, every)
    if not isinstance(outputs, list):
        raise Problem(422, "invalid", "not a list", where="outputs")
    wanted: dict[str, bool] = {}
    for i, output in enumerate(outputs):
        name = output.get("name") if isinstance(output, dict) else None
        if not isinstance(name, str) or name not in OUTPUTS:
            there = f"There are: {', '.join(OUTPUTS)}"
            raise Problem(422, "unknown-field", "there is no such output", where=f"outputs[{i}]", hint=there)
        parameters = _parameters(output)
        if parameters.get("classification") or "shared_memory_region" in parameters:
            raise Problem(
                422, "invalid", "neither classes nor shared memory are told", where=f"outputs[{i}].parameters"
            )
        wanted.setdefault(name, parameters.get("binary_data", every) is True)
    return wanted


def infer_parts(served: Served, asked: Asked) -> tuple[bytes, bytes]:
    """The answer: its JSON, and the bytes of the tensors that are wanted as such."""
    s = served.snapshot
    points = of_matrix(asked.rows, s.fields) if isinstance(asked.rows, np.ndarray) else to_array(asked.rows, s.fields)
    found = assign(s, points)
    tensors: list[dict[str, Any]] = []
    behind = []
    for name, binary in asked.outputs.items():
        values = getattr(found, name)
        tensor = {"name": name, "datatype": OUTPUTS[name], "shape": [len(asked.rows)]}
        if binary:
            behind.append(values.astype(_NUMBERS[OUTPUTS[name]], copy=False).tobytes())
            tensors.append(tensor | {"parameters": {_SIZE: len(behind[-1])}})
        else:
            tensors.append(tensor | {"data": values})
    told = {"model_name": s.model, "model_version": str(s.id), "outputs": tensors}
    told |= {} if asked.id is None else {"id": asked.id}
    return orjson.dumps(told, option=orjson.OPT_SERIALIZE_NUMPY), b"".join(behind)


def _metadata(served: Served) -> schemas.ModelMetadata:
    s = served.snapshot
    tensors = [schemas.TensorMetadata(name=name, datatype=kind, shape=[-1]) for name, kind in OUTPUTS.items()]
    points = schemas.TensorMetadata(name="points", datatype="FP64", shape=[-1, len(s.fields)])
    return schemas.ModelMetadata(
        name=s.model, versions=[str(s.id)], platform="streamkm", inputs=[points], outputs=tensors
    )


def _json(answer: Any) -> Response:
    return Response(dumps(answer), media_type="application/json")
