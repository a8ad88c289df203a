"""``GET /v1/...``: models, clusters and snapshots."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from streamkm.service import serializers
from streamkm.service.auth import grant_of
from streamkm.service.json_points import MAX_ID
from streamkm.service.problems import Problem, problem_responses
from streamkm.service.schemas import models as schemas
from streamkm.service.snapshot_cache import CachedSnapshot, StoreReader
from streamkm.service.status import lease_live, status
from streamkm.state import Snapshot
from streamkm.times import parse_time

ModelName = Annotated[
    str, Path(pattern=r"^[A-Za-z0-9._-]+$", max_length=128, description="Name of the model", examples=["orders"])
]
SnapshotNumber = Annotated[int, Path(ge=1, le=MAX_ID, description="Number of the snapshot", examples=[42])]
IfNoneMatch = Annotated[str | None, Header(description="An ETag; the response is 304 while it is current")]


class NoQuery(BaseModel):
    """No parameters: an unknown one is an error, not ignored."""

    model_config = ConfigDict(extra="forbid")


class SnapshotQuery(NoQuery):
    """Parameters that select a snapshot."""

    snapshot: int | None = Field(default=None, ge=1, le=MAX_ID, description="Number of the snapshot", examples=[42])
    at: str | None = Field(
        default=None,
        description="The newest snapshot at this time: ISO 8601 (UTC by default) or seconds since 1970",
        examples=["2026-11-01T10:00:00Z"],
    )


class PageQuery(NoQuery):
    """Parameters that select a page."""

    before: int | None = Field(
        default=None, ge=1, le=MAX_ID, description="Only snapshots with a lower number; `next` of the previous page"
    )
    limit: int = Field(default=100, ge=1, le=1000, description="Maximum number of snapshots")


_NOT_MODIFIED: dict[int | str, dict[str, Any]] = {304: {"description": "The ETag is current"}}
_ERRORS = (401, 404, 422, 500, 503)


def router(reader: StoreReader, stale_after: float) -> APIRouter:
    """The routes.

    Parameters
    ----------
    reader
        Access to the store.
    stale_after
        See `streamkm.service.status.status`.
    """
    routes = APIRouter(prefix="/v1")

    @routes.get(
        "/models",
        tags=["models"],
        summary="All models",
        response_model=schemas.ModelList,
        responses=problem_responses((401, 422, 500, 503)),
    )
    async def models(request: Request, _: Annotated[NoQuery, Query()]) -> Response:
        """All models that the token may read, by name, with their status."""
        grant = grant_of(request)
        now = reader.clock()
        readable = [(info, newest) for info, newest in await reader.models() if grant.may_read(info.spec.name)]

        def build() -> schemas.ModelList:
            found = [
                serializers.model_summary(info, newest, *status(info, now, stale_after)) for info, newest in readable
            ]
            return schemas.ModelList(models=found)

        return json_response(await reader.encode(build))

    @routes.get(
        "/models/{model}",
        tags=["models"],
        summary="One model",
        response_model=schemas.ModelDetail,
        responses=problem_responses(_ERRORS),
    )
    async def model(model: ModelName, _: Annotated[NoQuery, Query()]) -> Response:
        """A model with its settings, counters, position and owner."""
        info = await reader.model(model)
        newest = await reader.newest(info)
        now = reader.clock()
        state, reason = status(info, now, stale_after)
        snapshot = newest.snapshot if newest else None
        live = lease_live(info, now)
        return json_response(
            await reader.encode(lambda: serializers.model_detail(info, snapshot, state, reason, lease_live=live))
        )

    @routes.get(
        "/models/{model}/centroids",
        tags=["clusters"],
        summary="The clusters now, or at a time",
        response_model=schemas.Centroids,
        responses=_NOT_MODIFIED | problem_responses((401, 404, 409, 422, 500, 503)),
    )
    async def centroids(
        model: ModelName, query: Annotated[SnapshotQuery, Query()], if_none_match: IfNoneMatch = None
    ) -> Response:
        """Clusters of the newest snapshot, of a snapshot by number, or of the one that was newest at a time."""
        return await respond(await select(model, query), serializers.centroids, if_none_match)

    @routes.get(
        "/models/{model}/snapshots",
        tags=["snapshots"],
        summary="The snapshots of a model",
        response_model=schemas.SnapshotList,
        responses=problem_responses(_ERRORS),
    )
    async def snapshots(model: ModelName, page: Annotated[PageQuery, Query()]) -> Response:
        """Snapshots without their clusters, newest first, a page at a time."""
        return await page_response(reader, model, page, serializers.snapshot_list)

    @routes.get(
        "/models/{model}/events",
        tags=["clusters"],
        summary="Events of clusters",
        response_model=schemas.EventList,
        responses=problem_responses(_ERRORS),
    )
    async def events(model: ModelName, page: Annotated[PageQuery, Query()]) -> Response:
        """Births, deaths, splits, merges and drifts by snapshot, newest first."""
        return await page_response(reader, model, page, serializers.event_list, eventful=True)

    @routes.get(
        "/models/{model}/snapshots/{snapshot_id}",
        tags=["snapshots"],
        summary="One snapshot",
        response_model=schemas.SnapshotDetail,
        responses=_NOT_MODIFIED | problem_responses((401, 404, 409, 422, 500, 503)),
    )
    async def snapshot(
        model: ModelName,
        snapshot_id: SnapshotNumber,
        _: Annotated[NoQuery, Query()],
        if_none_match: IfNoneMatch = None,
    ) -> Response:
        """A snapshot with its clusters, events and details."""
        return await respond(await reader.snapshot(model, snapshot_id), serializers.snapshot_detail, if_none_match)

    async def select(model: str, query: SnapshotQuery) -> CachedSnapshot:
        if query.at is None:
            return await reader.snapshot(model, query.snapshot)
        if query.snapshot is not None:
            raise Problem(422, "invalid", "give a snapshot or a time, not both", where="query.at")
        try:
            at = parse_time(query.at)
        except ValueError as e:
            raise Problem(422, "invalid", str(e), where="query.at") from e
        return await reader.snapshot(model, at=at)

    async def respond(
        cached: CachedSnapshot, serialize: Callable[[Snapshot], BaseModel], if_none_match: str | None
    ) -> Response:
        # With "no-cache" clients cache the response but revalidate it each time, which is cheap.
        headers = {"ETag": cached.etag, "Cache-Control": "private, no-cache"}
        if if_none_match is not None and _matches(if_none_match, cached.etag):
            return Response(status_code=304, headers=headers)
        body = cached.cached_body(serialize)
        if body is None:
            body = await reader.run_in_thread(lambda: cached.body(serialize))
        return json_response(body, headers)

    return routes


async def page_response(
    reader: StoreReader,
    model: str,
    page: PageQuery,
    serialize: Callable[[Sequence[Snapshot], int | None], BaseModel],
    *,
    eventful: bool = False,
) -> Response:
    """A page of the snapshots of a model, all or those with events, newest first.

    Raises
    ------
    NotFoundError
        There is no such model.
    """
    await reader.model(model)  # 404 instead of an empty page
    found, next_page = await reader.page(model, page.before, page.limit, eventful=eventful)
    return json_response(await reader.encode(lambda: serialize(found, next_page)))


def json_response(body: bytes, headers: dict[str, str] | None = None) -> Response:
    """A response with encoded JSON."""
    return Response(body, headers=headers, media_type="application/json")


_MAX_TAGS_CHARS = 4096
"""Longest If-None-Match header that is parsed; with a longer one the full response is sent, which is always right."""


def _matches(if_none_match: str, etag: str) -> bool:
    if len(if_none_match) > _MAX_TAGS_CHARS:
        return False
    tags = {t.strip().removeprefix("W/") for t in if_none_match.split(",")}
    return "*" in tags or etag in tags
