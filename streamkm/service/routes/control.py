"""Control of a model: promote, pause, resume and delete; and ``/v1/me``. Rights are checked in `auth.authorize`."""

from __future__ import annotations

import logging
import uuid
from typing import Annotated, Any, TypeVar

import orjson
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ValidationError

from streamkm.service.auth import grant_json, grant_of
from streamkm.service.job_runner import JobRunner
from streamkm.service.problems import Problem, problem_response, problem_responses
from streamkm.service.request_body import BodyReader
from streamkm.service.routes.models import ModelName, NoQuery
from streamkm.service.schemas import control as schemas
from streamkm.service.snapshot_cache import StoreReader
from streamkm.stores.base import Promotion

log = logging.getLogger("streamkm.service")

B = TypeVar("B", bound=BaseModel)

DELETE_LEASE_SECONDS = 30.0
"""Lease duration in seconds that keeps consumers out while a model is deleted."""
ERRORS = (401, 403, 404, 422, 429, 500, 503)
BODY_ERRORS = (400, 401, 403, 404, 408, 413, 415, 422, 429, 500, 503)


def router(reader: StoreReader, bodies: BodyReader, jobs: JobRunner | None) -> APIRouter:
    """The routes.

    Parameters
    ----------
    reader
        Access to the store.
    bodies
        Reads request bodies.
    jobs
        Runs the jobs, which end with their model; None if the service runs none.
    """
    routes = APIRouter(prefix="/v1")
    store = reader.store

    @routes.get(
        "/me",
        tags=["access"],
        summary="Rights of the token",
        response_model=schemas.WhoAmI,
        responses=problem_responses((401, 403, 422, 429, 500, 503)),
    )
    async def me(request: Request, _: Annotated[NoQuery, Query()]) -> Response:
        """Rights of the token that was sent, or of a request without one. Needs no token."""
        return json_content(grant_json(grant_of(request)))

    @routes.post(
        "/models/{model}/promote",
        tags=["control"],
        summary="Put a snapshot in charge",
        status_code=202,
        response_model=schemas.PromoteResponse,
        responses=problem_responses(BODY_ERRORS),
        openapi_extra=request_body_schema(schemas.PromoteRequest),
    )
    async def promote(request: Request, model: ModelName, _: Annotated[NoQuery, Query()]) -> Response:
        """Ask the consumer to continue from a snapshot: a recomputed one, or an older one to roll back to.

        The consumer does it at its next checkpoint, in one commit. A later request replaces a pending one.
        """
        async with bodies.read(request) as body:
            promotion = parse_body(schemas.PromoteRequest, body)
        await reader.query(lambda: store.request_promotion(model, Promotion(promotion.snapshot, promotion.skip)))
        log_action(request, "promote", model, snapshot=promotion.snapshot, skip=promotion.skip)
        return json_content({"snapshot": promotion.snapshot, "skip": promotion.skip, "state": "requested"}, 202)

    @routes.post(
        "/models/{model}/pause",
        tags=["control"],
        summary="Pause the consumer",
        response_model=schemas.PauseState,
        responses=problem_responses(ERRORS),
    )
    async def pause(request: Request, model: ModelName, _: Annotated[NoQuery, Query()]) -> Response:
        """The consumer stops reading and keeps its lease; one that starts later does so too. Queries continue."""
        await reader.query(lambda: store.set_paused(model, paused=True))
        log_action(request, "pause", model)
        return json_content({"paused": True})

    @routes.post(
        "/models/{model}/resume",
        tags=["control"],
        summary="Resume the consumer",
        response_model=schemas.PauseState,
        responses=problem_responses(ERRORS),
        openapi_extra={"responses": {"200": {"content": {"application/json": {"example": {"paused": False}}}}}},
    )
    async def resume(request: Request, model: ModelName, _: Annotated[NoQuery, Query()]) -> Response:
        """The consumer continues reading where it stopped."""
        await reader.query(lambda: store.set_paused(model, paused=False))
        log_action(request, "resume", model)
        return json_content({"paused": False})

    @routes.delete(
        "/models/{model}",
        tags=["control"],
        summary="Delete a model",
        status_code=204,
        responses=problem_responses(ERRORS)
        | problem_response(409, "in-use", "orders: host-1:77 runs it", "orders", "Stop its streamkm live first"),
    )
    async def delete(request: Request, model: ModelName, _: Annotated[NoQuery, Query()]) -> Response:
        """Delete a model with its snapshots, journal and quarantine; refused while a consumer runs it."""
        owner = f"delete-{uuid.uuid4().hex[:12]}"

        def remove() -> str:
            # With the lease held, no consumer can start between the check and the deletion.
            if store.acquire(model, owner, DELETE_LEASE_SECONDS, reader.clock()) is None:
                lease = store.model(model).lease
                return lease.owner if lease else "a consumer"
            store.delete(model)
            return ""

        holder = await reader.query(remove)
        if holder:
            raise Problem(409, "in-use", f"{holder} runs it", where=model, hint="Stop its streamkm live first")
        if jobs is not None:
            await jobs.drop(model)
        log_action(request, "delete", model)
        return Response(status_code=204)

    return routes


def log_action(request: Request, action: str, model: str, **details: Any) -> None:
    """Log an action with the name of its token."""
    log.info("%s %s", action, model, extra={"model": model, "by": grant_of(request).name, **details})


def json_content(content: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON response."""
    return Response(orjson.dumps(content), status, headers, "application/json")


def request_body_schema(schema: type[BaseModel]) -> dict[str, Any]:
    """The OpenAPI description of a body that is read by `BodyReader` instead of the framework."""
    description = schema.model_json_schema()
    example = description.pop("examples")[0]
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": description, "example": example}}}
    }


def parse_body(schema: type[B], body: bytes) -> B:
    """Parse a JSON body.

    Raises
    ------
    Problem
        400: not JSON. 422: not valid for the schema.
    """
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError as e:
        raise Problem(400, "not-json", str(e), where="body") from e
    try:
        return schema.model_validate(content)
    except ValidationError as e:
        first = e.errors(include_url=False, include_input=False)[0]
        where = ".".join(("body", *map(str, first["loc"])))[:200]
        if first["type"] == "extra_forbidden":
            raise Problem(422, "unknown-field", "unknown field", where=where) from e
        if first["type"] == "missing":
            raise Problem(422, "missing-field", "is missing", where=where) from e
        message = str(first["msg"]).removeprefix("Value error, ")
        raise Problem(422, "invalid", message[:1].lower() + message[1:], where=where) from e
