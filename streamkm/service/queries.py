"""``GET /v1/...``: models, clusters and snapshots."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from streamkm.service import schemas, shape
from streamkm.service.access import grant_of
from streamkm.service.errors import Problem, documented
from streamkm.service.points import MAX_ID
from streamkm.service.reader import Reader, Served
from streamkm.service.status import lease_live, status
from streamkm.service.times import parse_time
from streamkm.state import Snapshot

ModelName = Annotated[
    str, Path(pattern=r"^[A-Za-z0-9._-]+$", max_length=128, description="Name of the model", examples=["orders"])
]
SnapshotNumber = Annotated[int, Path(ge=1, le=MAX_ID, description="Number of the snapshot", examples=[42])]
IfNoneMatch = Annotated[str | None, Header(description="An ETag: the answer is 304 while it still holds")]


class NoQuery(BaseModel):
    """No parameters: one that is misspelt must not be passed over."""

    model_config = ConfigDict(extra="forbid")


class WhichSnapshot(NoQuery):
    """Parameters that choose a snapshot."""

    snapshot: int | None = Field(default=None, ge=1, le=MAX_ID, description="Number of the snapshot", examples=[42])
    at: str | None = Field(
        default=None,
        description="The newest snapshot at this time: ISO 8601 (UTC unless it says otherwise) or seconds since 1970",
        examples=["2026-11-01T10:00:00Z"],
    )


class Page(NoQuery):
    """Parameters that choose a page."""

    before: int | None = Field(
        default=None, ge=1, le=MAX_ID, description="Only numbers below; `next` of the page before"
    )
    limit: int = Field(default=100, ge=1, le=1000, description="Most snapshots on the page")


_NOT_MODIFIED: dict[int | str, dict[str, Any]] = {304: {"description": "The ETag still holds"}}
_ERRORS = (401, 404, 422, 500, 503)


def router(reader: Reader, stale_after: float) -> APIRouter:
    """The routes.

    Parameters
    ----------
    reader
        Where everything comes from.
    stale_after
        Seconds without a commit after which a model with work is stale.
    """
    routes = APIRouter(prefix="/v1")

    @routes.get(
        "/models",
        tags=["models"],
        summary="All models",
        response_model=schemas.ModelList,
        responses=documented((401, 422, 500, 503)),
    )
    async def models(request: Request, _: Annotated[NoQuery, Query()]) -> Response:
        """All models by name that the asker may see, each with its health in one word."""
        grant = grant_of(request)
        now = reader.clock()
        seen = [(info, newest) for info, newest in await reader.models() if grant.sees(info.spec.name)]

        def listed() -> schemas.ModelList:
            shown = [shape.model_summary(info, newest, *status(info, now, stale_after)) for info, newest in seen]
            return schemas.ModelList(models=shown)

        return json_response(await reader.encoded(listed))

    @routes.get(
        "/models/{model}",
        tags=["models"],
        summary="One model",
        response_model=schemas.ModelDetail,
        responses=documented(_ERRORS),
    )
    async def model(model: ModelName, _: Annotated[NoQuery, Query()]) -> Response:
        """A model with its settings, position, counters and owner."""
        info = await reader.model(model)
        newest = await reader.newest(info)
        now = reader.clock()
        word, why = status(info, now, stale_after)
        snapshot = newest.snapshot if newest else None
        live = lease_live(info, now)
        return json_response(
            await reader.encoded(lambda: shape.model_detail(info, snapshot, word, why, lease_live=live))
        )

    @routes.get(
        "/models/{model}/centroids",
        tags=["clusters"],
        summary="The clusters now, or at a moment",
        response_model=schemas.Centroids,
        responses=_NOT_MODIFIED | documented((401, 404, 409, 422, 500, 503)),
    )
    async def centroids(
        model: ModelName, which: Annotated[WhichSnapshot, Query()], if_none_match: IfNoneMatch = None
    ) -> Response:
        """Clusters of the newest snapshot, of a snapshot by number, or of the newest one at a time."""
        return await answer(await choose(model, which), shape.centroids, if_none_match)

    @routes.get(
        "/models/{model}/snapshots",
        tags=["snapshots"],
        summary="What the model published",
        response_model=schemas.SnapshotList,
        responses=documented(_ERRORS),
    )
    async def snapshots(model: ModelName, page: Annotated[Page, Query()]) -> Response:
        """Snapshots without their clusters, newest first, a page at a time."""
        await reader.model(model)  # a model that is not there has no page, not an empty one
        found = await reader.snapshots(model, page.before, page.limit + 1)
        shown = found[: page.limit]
        more = shown[-1].id if len(found) > len(shown) else None
        return json_response(
            await reader.encoded(lambda: schemas.SnapshotList(snapshots=[shape.summary(s) for s in shown], next=more))
        )

    @routes.get(
        "/models/{model}/events",
        tags=["clusters"],
        summary="What happened to clusters",
        response_model=schemas.EventList,
        responses=documented(_ERRORS),
    )
    async def events(model: ModelName, page: Annotated[Page, Query()]) -> Response:
        """Births, deaths, splits, merges and drifts, by the snapshots that tell them, newest first."""
        await reader.model(model)
        found = await reader.snapshots(model, page.before, page.limit + 1, eventful=True)
        shown = found[: page.limit]
        more = shown[-1].id if len(found) > len(shown) else None
        return json_response(
            await reader.encoded(
                lambda: schemas.EventList(snapshots=[shape.snapshot_events(s) for s in shown], next=more)
            )
        )

    @routes.get(
        "/models/{model}/snapshots/{snapshot_id}",
        tags=["snapshots"],
        summary="One snapshot",
        response_model=schemas.SnapshotDetail,
        responses=_NOT_MODIFIED | documented((401, 404, 409, 422, 500, 503)),
    )
    async def snapshot(
        model: ModelName,
        snapshot_id: SnapshotNumber,
        _: Annotated[NoQuery, Query()],
        if_none_match: IfNoneMatch = None,
    ) -> Response:
        """A snapshot with its clusters and where it came from."""
        return await answer(await reader.snapshot(model, snapshot_id), shape.snapshot_detail, if_none_match)

    async def choose(model: str, which: WhichSnapshot) -> Served:
        if which.at is None:
            return await reader.snapshot(model, which.snapshot)
        if which.snapshot is not None:
            raise Problem(422, "invalid", "ask for a snapshot or for a time, not for both", where="query.at")
        try:
            at = parse_time(which.at)
        except ValueError as e:
            raise Problem(422, "invalid", str(e), where="query.at") from e
        return await reader.snapshot(model, at=at)

    async def answer(served: Served, made: Callable[[Snapshot], BaseModel], if_none_match: str | None) -> Response:
        # "no-cache" lets clients keep it and makes them ask whether it still holds, which is cheap.
        headers = {"ETag": served.etag, "Cache-Control": "private, no-cache"}
        if if_none_match is not None and _matches(if_none_match, served.etag):
            return Response(status_code=304, headers=headers)
        body = served.made(made)
        return json_response(await reader.work(lambda: served.body(made)) if body is None else body, headers)

    return routes


def json_response(body: bytes, headers: dict[str, str] | None = None) -> Response:
    """JSON that is encoded already."""
    return Response(body, headers=headers, media_type="application/json")


_MOST_OF_TAGS = 4096
"""Characters of If-None-Match that are looked through; who has more gets the answer again, which is never wrong."""


def _matches(if_none_match: str, etag: str) -> bool:
    if len(if_none_match) > _MOST_OF_TAGS:
        return False
    tags = {t.strip().removeprefix("W/") for t in if_none_match.split(",")}
    return "*" in tags or etag in tags
