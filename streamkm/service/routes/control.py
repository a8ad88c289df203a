"""Acting on a model: promote, pause, resume, delete; and who one is. What may be done is judged in `access`."""

from __future__ import annotations

import logging
import uuid
from typing import Annotated, Any, TypeVar

import orjson
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ValidationError

from streamkm.service.auth import grant_of, me_json
from streamkm.service.job_runner import Jobs
from streamkm.service.problems import Problem, described, documented
from streamkm.service.request_body import Bodies
from streamkm.service.routes.models import ModelName, NoQuery
from streamkm.service.schemas import control as schemas
from streamkm.service.snapshot_cache import Reader
from streamkm.stores.base import Promotion

log = logging.getLogger("streamkm.service")

B = TypeVar("B", bound=BaseModel)

DELETING = 30.0
"""Seconds for which a model that is being deleted lets no other owner in."""
ERRORS = (401, 403, 404, 422, 429, 500, 503)
BODY_ERRORS = (400, 401, 403, 404, 408, 413, 415, 422, 429, 500, 503)


def router(reader: Reader, bodies: Bodies, jobs: Jobs | None) -> APIRouter:
    """The routes.

    Parameters
    ----------
    reader
        Whose store is acted on.
    bodies
        What reads requests.
    jobs
        Whose jobs end with their model.
    """
    routes = APIRouter(prefix="/v1")
    store = reader.store

    @routes.get(
        "/me",
        tags=["access"],
        summary="Who am I here?",
        response_model=schemas.Me,
        responses=documented((401, 403, 422, 429, 500, 503)),
    )
    async def me(request: Request, _: Annotated[NoQuery, Query()]) -> Response:
        """What the token that was sent may do, or what may be done without one. Needs none."""
        return answer_json(me_json(grant_of(request)))

    @routes.post(
        "/models/{model}/promote",
        tags=["acting"],
        summary="Put a snapshot in charge",
        status_code=202,
        response_model=schemas.Promoted,
        responses=documented(BODY_ERRORS),
        openapi_extra=body_of(schemas.Promote),
    )
    async def promote(request: Request, model: ModelName, _: Annotated[NoQuery, Query()]) -> Response:
        """Ask the owner of the model to go on from a snapshot: a recomputed one, or an older one to roll back to.

        The owner does it at its next checkpoint, in one commit. A later request replaces one that is still open.
        """
        async with bodies.read(request) as body:
            asked = parsed(schemas.Promote, body)
        await reader.ask(lambda: store.request_promotion(model, Promotion(asked.snapshot, asked.skip)))
        told(request, "promote", model, snapshot=asked.snapshot, skip=asked.skip)
        return answer_json({"snapshot": asked.snapshot, "skip": asked.skip, "state": "asked"}, 202)

    @routes.post(
        "/models/{model}/pause",
        tags=["acting"],
        summary="Let the consumer read nothing for now",
        response_model=schemas.Paused,
        responses=documented(ERRORS),
    )
    async def pause(request: Request, model: ModelName, _: Annotated[NoQuery, Query()]) -> Response:
        """The owner of the model, now or later, stops reading and keeps its lease. Queries go on; nothing is lost."""
        await reader.ask(lambda: store.set_paused(model, paused=True))
        told(request, "pause", model)
        return answer_json({"paused": True})

    @routes.post(
        "/models/{model}/resume",
        tags=["acting"],
        summary="Let the consumer read on",
        response_model=schemas.Paused,
        responses=documented(ERRORS),
        openapi_extra={"responses": {"200": {"content": {"application/json": {"example": {"paused": False}}}}}},
    )
    async def resume(request: Request, model: ModelName, _: Annotated[NoQuery, Query()]) -> Response:
        """The owner of the model reads on where it stopped."""
        await reader.ask(lambda: store.set_paused(model, paused=False))
        told(request, "resume", model)
        return answer_json({"paused": False})

    @routes.delete(
        "/models/{model}",
        tags=["acting"],
        summary="Remove a model",
        status_code=204,
        responses=documented(ERRORS)
        | described(409, "in-use", "orders: host-1:77 runs it", "orders", "Stop its streamkm live first"),
    )
    async def delete(request: Request, model: ModelName, _: Annotated[NoQuery, Query()]) -> Response:
        """Remove a model with its snapshots, journal and quarantine, for good; not while a consumer runs it."""
        owner = f"delete-{uuid.uuid4().hex[:12]}"

        def remove() -> str:
            # Who holds the lease is alone with the model: no consumer can start between the look and the removal.
            if store.acquire(model, owner, DELETING, reader.clock()) is None:
                lease = store.model(model).lease
                return lease.owner if lease else "somebody"
            store.delete(model)
            return ""

        holder = await reader.ask(remove)
        if holder:
            raise Problem(409, "in-use", f"{holder} runs it", where=model, hint="Stop its streamkm live first")
        if jobs is not None:
            await jobs.drop(model)
        told(request, "delete", model)
        return Response(status_code=204)

    return routes


def told(request: Request, act: str, model: str, **more: Any) -> None:
    """Log who did what, by the name of the token."""
    log.info("%s %s", act, model, extra={"model": model, "by": grant_of(request).name, **more})


def answer_json(content: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """An answer of plain values."""
    return Response(orjson.dumps(content), status, headers, "application/json")


def body_of(schema: type[BaseModel]) -> dict[str, Any]:
    """OpenAPI's description of a body, which is read by `Bodies` and not by the framework."""
    described_ = schema.model_json_schema()
    example = described_.pop("examples")[0]
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": described_, "example": example}}}
    }


def parsed(schema: type[B], body: bytes) -> B:
    """A body as what it should be.

    Raises
    ------
    Problem
        400 or 422, with the place.
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
            raise Problem(422, "unknown-field", "there is no such field", where=where) from e
        if first["type"] == "missing":
            raise Problem(422, "missing-field", "is missing", where=where) from e
        message = str(first["msg"]).removeprefix("Value error, ")
        raise Problem(422, "invalid", message[:1].lower() + message[1:], where=where) from e
