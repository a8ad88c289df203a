"""``/v2``: predictions by the open inference protocol of KServe, Triton and Seldon.

A version of a model is a snapshot. The input is one tensor, ``points``; the outputs are ``ids``, ``distances`` and
``scores``. Sources: kserve/open-inference-protocol, ``specification/protocol/inference_rest.md``, and the extension for
binary tensors in triton-inference-server/server, ``docs/protocol/extension_binary_data.md``, which its client always
uses.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib.metadata import version as version_of
from typing import Any

import numpy as np
import orjson
from fastapi import APIRouter, Depends, Request, Response
from numpy.typing import NDArray
from pydantic import BaseModel

from streamkm import metrics as names
from streamkm.assignment import assign
from streamkm.metrics import Metrics
from streamkm.service.json_points import json_object, of_matrix, to_array
from streamkm.service.problems import Problem, problem_responses
from streamkm.service.request_body import BINARY, JSON, BodyReader
from streamkm.service.routes.models import ModelName, SnapshotNumber
from streamkm.service.schemas import models as schemas
from streamkm.service.snapshot_cache import CachedSnapshot, StoreReader, to_json

OUTPUTS = {"ids": "INT64", "distances": "FP64", "scores": "FP64"}
_NUMBERS = {f"FP{bits}": f"<f{bits // 8}" for bits in (64, 32, 16)} | {
    f"{sign}INT{bits}": f"<{kind}{bits // 8}" for sign, kind in (("", "i"), ("U", "u")) for bits in (8, 16, 32, 64)
}
"""Datatypes of the protocol -> numpy dtypes, little-endian."""
HEADER_LENGTH = "Inference-Header-Content-Length"
"""Header with the length of the JSON in bytes; the bytes of the binary tensors follow it."""
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
                    "id": {"type": "string", "description": "Returned in the response"},
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
                                    "description": f"`{_SIZE}` instead of data: the numbers follow the JSON, row by "
                                    f"row and little-endian, and the header {HEADER_LENGTH} has the length of the JSON",
                                },
                            },
                        },
                    },
                    "outputs": {
                        "type": "array",
                        "items": {"type": "object", "properties": {"name": {"enum": list(OUTPUTS)}}},
                        "description": "With the parameter `binary_data` the numbers follow the JSON",
                    },
                    "parameters": {
                        "type": "object",
                        "properties": {"binary_data_output": {"type": "boolean"}},
                        "description": "`binary_data_output`: the default of `binary_data` for all outputs",
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
                "description": f"The same JSON, {HEADER_LENGTH} bytes long, followed by the numbers of the tensor",
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
                    "description": f"The same JSON, {HEADER_LENGTH} bytes long, followed by the numbers of the tensors",
                }
            }
        }
    }
}


@dataclass(frozen=True)
class InferenceQuery:
    """A parsed request.

    Attributes
    ----------
    id
        Returned in the response.
    rows
        Points, a list for each or an array (n, d).
    outputs
        Requested tensors -> whether as bytes.
    """

    id: str | None
    rows: list[Any] | NDArray[Any]
    outputs: dict[str, bool]


def router(reader: StoreReader, metrics: Metrics, bodies: BodyReader) -> APIRouter:
    """The routes.

    Parameters
    ----------
    reader
        Access to the store.
    metrics
        Counts the predicted points.
    bodies
        Reads request bodies.
    """
    routes = APIRouter(prefix="/v2", tags=["open inference protocol"])
    metadata = schemas.ServerMetadata(  # built once: the version is read from disk
        name="streamkm", version=version_of("streamkm"), extensions=["binary_tensor_data"]
    )

    @routes.get(
        "", summary="The server", response_model=schemas.ServerMetadata, responses=problem_responses((401, 500))
    )
    async def server() -> Response:
        """Name, version and extensions of the server."""
        return _json(metadata)

    @routes.get(
        "/health/live",
        summary="Is the server live?",
        response_model=schemas.ServerLive,
        responses=problem_responses((401, 500)),
    )
    async def live() -> Response:
        """Succeeds as long as the process runs."""
        return _json(schemas.ServerLive(live=True))

    @routes.get(
        "/health/ready",
        summary="Is the server ready?",
        response_model=schemas.ServerReady,
        responses=problem_responses((401, 500, 503)),
    )
    async def ready() -> Response:
        """Succeeds if the store is available."""
        await reader.ping()
        return _json(schemas.ServerReady(ready=True))

    _add_model_routes(routes, "/models/{model}", _newest, reader, metrics, bodies)
    _add_model_routes(routes, "/models/{model}/versions/{version}", _numbered, reader, metrics, bodies)
    return routes


async def _newest() -> int | None:
    return None


async def _numbered(version: SnapshotNumber) -> int | None:
    return version


def _add_model_routes(
    routes: APIRouter,
    path: str,
    version_of_path: Callable[..., Awaitable[int | None]],
    reader: StoreReader,
    metrics: Metrics,
    bodies: BodyReader,
) -> None:
    """Add the routes of a model: of its newest snapshot, or of the snapshot whose number is in the path."""

    @routes.get(
        path, summary="Metadata of a model", response_model=schemas.ModelMetadata, responses=problem_responses(_ERRORS)
    )
    async def metadata(
        model: ModelName,
        version: int | None = Depends(version_of_path),  # noqa: FAST002 - differs by path
    ) -> Response:
        """Input and output tensors, and the snapshot as version."""
        return _json(_metadata(await reader.snapshot(model, version)))

    @routes.get(
        f"{path}/ready",
        summary="Is the model ready?",
        response_model=schemas.ModelReady,
        responses=problem_responses(_ERRORS),
    )
    async def model_ready(
        model: ModelName,
        version: int | None = Depends(version_of_path),  # noqa: FAST002 - differs by path
    ) -> Response:
        """200 if there is a snapshot, 409 while the model warms up."""
        await reader.snapshot(model, version)
        return _json(schemas.ModelReady(name=model, ready=True))

    @routes.post(
        f"{path}/infer",
        summary="Predict the clusters of points",
        response_model=schemas.Inference,
        responses=_BINARY | problem_responses((400, 401, 404, 408, 409, 413, 415, 422, 500, 503)),
        openapi_extra={"requestBody": REQUEST},
    )
    async def infer(
        request: Request,
        model: ModelName,
        version: int | None = Depends(version_of_path),  # noqa: FAST002 - differs by path
    ) -> Response:
        """Ids of the nearest clusters, distances and outlier scores."""
        async with bodies.read_as(request, (JSON, BINARY)) as (_, parts):
            size = sum(map(len, parts))
            json_bytes = _json_length(request.headers.get(HEADER_LENGTH), size)
            cached = await reader.snapshot(model, version)

            def work() -> tuple[bytes, int | None, int]:
                query = parse(b"".join(parts), json_bytes)  # released in this function too
                content, tensors = infer_parts(cached, query)
                length = len(content) if any(query.outputs.values()) else None
                return content + tensors, length, len(query.rows)

            content, length, count = await reader.predict(work, size, cached)
            metrics.add(names.POINTS_PREDICTED, count, model=model)
            if length is None:
                return Response(content, media_type=JSON)
            return Response(content, headers={HEADER_LENGTH: str(length)}, media_type=BINARY)


def _json_length(text: str | None, size: int) -> int:
    if text is None:
        return size
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(size)) and int(text) <= size):
        raise Problem(400, "invalid", f"not a number of bytes up to the {size} of the body", where=HEADER_LENGTH)
    return int(text)


def parse(body: bytes, json_bytes: int | None = None) -> InferenceQuery:
    """Parse a request.

    Parameters
    ----------
    body
        JSON, followed by the bytes of a tensor.
    json_bytes
        Length of the JSON; the whole body if None.

    Raises
    ------
    Problem
        400: not JSON. 422: not a valid request.
    """
    json_bytes = len(body) if json_bytes is None else json_bytes
    request = json_object(body[:json_bytes], _HINT)
    identity, inputs, outputs = (request.get(name) for name in ("id", "inputs", "outputs"))
    if identity is not None and not isinstance(identity, str):
        raise Problem(422, "invalid", "not a string", where="id")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise Problem(422, "invalid", "not a list of one tensor", where="inputs", hint=_HINT)
    binary = _parameters(request).get("binary_data_output") is True
    return InferenceQuery(identity, _rows(inputs[0], body[json_bytes:]), _outputs(outputs, binary))


def _parameters(element: dict[str, Any]) -> dict[str, Any]:
    found = element.get("parameters")
    return found if isinstance(found, dict) else {}


def _rows(tensor: dict[str, Any], tail: bytes) -> list[Any] | NDArray[Any]:
    shape, datatype, data = (tensor.get(name) for name in ("shape", "datatype", "data"))
    parameters = _parameters(tensor)
    if "shared_memory_region" in parameters:
        raise Problem(422, "invalid", "shared memory is not supported", where="inputs[0].parameters", hint=_HINT)
    if not isinstance(datatype, str) or datatype not in _NUMBERS:
        raise Problem(422, "invalid", "not a supported datatype", where="inputs[0].datatype", hint="Send FP64")
    if not isinstance(shape, list) or len(shape) != 2 or any(type(x) is not int or x < 0 for x in shape):
        raise Problem(422, "invalid", "not [points, fields]", where="inputs[0].shape", hint=_HINT)
    n, d = shape
    if _SIZE in parameters or tail:
        dtype = np.dtype(_NUMBERS[datatype])
        if parameters.get(_SIZE) != len(tail) or len(tail) != n * d * dtype.itemsize:
            message = f"{len(tail)} bytes after the JSON, {_SIZE} is {parameters.get(_SIZE)}, {n} x {d} {datatype} need"
            message = f"{message} {n * d * dtype.itemsize}"
            raise Problem(422, "wrong-dimension", message[:300], where="inputs[0]", hint=f"Is {HEADER_LENGTH} right?")
        return np.frombuffer(tail, dtype).reshape(n, d)
    if not isinstance(data, list):
        raise Problem(422, "invalid", "not a list", where="inputs[0].data", hint=_HINT)
    nested = bool(data) and isinstance(data[0], list)
    if len(data) != (n if nested else n * d):
        message = f"{len(data)} {'rows' if nested else 'numbers'}, the shape is {n} x {d}"
        raise Problem(422, "wrong-dimension", message, where="inputs[0].data")
    return data if nested else [data[start : start + d] for start in range(0, n * d, d or 1)]


def _outputs(outputs: Any, binary: bool) -> dict[str, bool]:
    if outputs is None or outputs == []:
        return dict.fromkeys(OUTPUTS, binary)
    if not isinstance(outputs, list):
        raise Problem(422, "invalid", "not a list", where="outputs")
    requested: dict[str, bool] = {}
    for i, output in enumerate(outputs):
        name = output.get("name") if isinstance(output, dict) else None
        if not isinstance(name, str) or name not in OUTPUTS:
            hint = f"There are: {', '.join(OUTPUTS)}"
            raise Problem(422, "unknown-field", "unknown output", where=f"outputs[{i}]", hint=hint)
        parameters = _parameters(output)
        if parameters.get("classification") or "shared_memory_region" in parameters:
            raise Problem(
                422, "invalid", "classification and shared memory are not supported", where=f"outputs[{i}].parameters"
            )
        requested.setdefault(name, parameters.get("binary_data", binary) is True)
    return requested


def infer_parts(cached: CachedSnapshot, query: InferenceQuery) -> tuple[bytes, bytes]:
    """The response: its JSON, and the bytes of the binary tensors."""
    s = cached.snapshot
    points = of_matrix(query.rows, s.fields) if isinstance(query.rows, np.ndarray) else to_array(query.rows, s.fields)
    found = assign(s, points)
    tensors: list[dict[str, Any]] = []
    binaries = []
    for name, binary in query.outputs.items():
        values = getattr(found, name)
        tensor = {"name": name, "datatype": OUTPUTS[name], "shape": [len(query.rows)]}
        if binary:
            binaries.append(values.astype(_NUMBERS[OUTPUTS[name]], copy=False).tobytes())
            tensors.append(tensor | {"parameters": {_SIZE: len(binaries[-1])}})
        else:
            tensors.append(tensor | {"data": values})
    content = {"model_name": s.model, "model_version": str(s.id), "outputs": tensors}
    content |= {} if query.id is None else {"id": query.id}
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY), b"".join(binaries)


def _metadata(cached: CachedSnapshot) -> schemas.ModelMetadata:
    s = cached.snapshot
    tensors = [schemas.TensorMetadata(name=name, datatype=datatype, shape=[-1]) for name, datatype in OUTPUTS.items()]
    points = schemas.TensorMetadata(name="points", datatype="FP64", shape=[-1, len(s.fields)])
    return schemas.ModelMetadata(
        name=s.model, versions=[str(s.id)], platform="streamkm", inputs=[points], outputs=tensors
    )


def _json(content: BaseModel) -> Response:
    return Response(to_json(content), media_type="application/json")
