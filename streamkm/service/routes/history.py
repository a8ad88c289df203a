"""``GET /v1/models/{m}/history | lineage | diff | k | sample | quarantine``."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from fastapi import APIRouter, Query, Response
from pydantic import Field

from streamkm.service import serializers
from streamkm.service.json_points import MAX_ID
from streamkm.service.problems import problem_responses
from streamkm.service.routes.models import ModelName, NoQuery, PageQuery, json_response, page_response
from streamkm.service.schemas import live as schemas
from streamkm.service.snapshot_cache import StoreReader, to_json
from streamkm.state import Snapshot

_ERRORS = (401, 404, 422, 500, 503)
_WARMING = (401, 404, 409, 422, 500, 503)


class DiffQuery(NoQuery):
    """Parameters that select the snapshots to compare."""

    a: int = Field(ge=1, le=MAX_ID, description="Number of the first snapshot", examples=[41])
    b: int = Field(ge=1, le=MAX_ID, description="Number of the second snapshot", examples=[42])


class SampleQuery(NoQuery):
    """Parameters that select a sample of points."""

    n: int = Field(default=300, ge=1, le=1000, description="Maximum number of points; a model keeps some hundreds")
    snapshot: int | None = Field(
        default=None, ge=1, le=MAX_ID, description="Snapshot of the clusters; the newest if absent"
    )


class QuarantineQuery(NoQuery):
    """Parameters that select quarantined records."""

    limit: int = Field(default=100, ge=1, le=1000, description="Maximum number of records")
    reason: str | None = Field(default=None, max_length=100, description="Only records with this reason")


def router(reader: StoreReader) -> APIRouter:
    """The routes.

    Parameters
    ----------
    reader
        Access to the store.
    """
    routes = APIRouter(prefix="/v1")
    store = reader.store

    @routes.get(
        "/models/{model}/history",
        tags=["clusters"],
        summary="The clusters over time",
        response_model=schemas.History,
        responses=problem_responses(_ERRORS),
    )
    async def history(model: ModelName, page: Annotated[PageQuery, Query()]) -> Response:
        """Ids, shares and centroids of every snapshot that was in charge, newest first, a page at a time."""
        info = await reader.model(model)
        found, next_page = await reader.page(model, page.before, page.limit)
        live = [s for s in found if serializers.in_charge(s)]
        content = await reader.run_in_thread(lambda: serializers.history(info.spec.fields, live, next_page))
        return json_response(content)

    @routes.get(
        "/models/{model}/lineage",
        tags=["clusters"],
        summary="Origin and end of clusters",
        response_model=schemas.Lineage,
        responses=problem_responses(_ERRORS),
    )
    async def lineage(model: ModelName, page: Annotated[PageQuery, Query()]) -> Response:
        """Lineage of the clusters from births, deaths, splits and merges. A page is of snapshots with events."""
        return await page_response(reader, model, page, serializers.lineage_page, eventful=True)

    @routes.get(
        "/models/{model}/diff",
        tags=["snapshots"],
        summary="Compare two snapshots",
        response_model=schemas.SnapshotDiff,
        responses=problem_responses(_WARMING),
    )
    async def diff(model: ModelName, query: Annotated[DiffQuery, Query()]) -> Response:
        """Shift of each cluster, fraction of the points that changes cluster, and cost of each on the same points."""
        first, second = await reader.snapshot(model, query.a), await reader.snapshot(model, query.b)
        return json_response(await reader.encode(lambda: _compare(first.snapshot, second.snapshot)))

    def _compare(a: Snapshot, b: Snapshot) -> schemas.SnapshotDiff:
        # It imports numba, which takes a second and a hundred megabytes.
        from streamkm.recompute.compare import compare_on_sample  # noqa: PLC0415

        return schemas.SnapshotDiff(**compare_on_sample(store, a, b).to_json())

    @routes.get(
        "/models/{model}/k",
        tags=["clusters"],
        summary="Criteria for the number of clusters",
        response_model=schemas.KProfile,
        responses=problem_responses(_WARMING),
    )
    async def k_profile(model: ModelName, _: Annotated[NoQuery, Query()]) -> Response:
        """Cost and separation for each k, and the suggested k."""
        s = (await reader.snapshot(model)).snapshot
        return json_response(await reader.encode(lambda: serializers.k_profile(s)))

    @routes.get(
        "/models/{model}/sample",
        tags=["clusters"],
        summary="Some of the last points",
        response_model=schemas.PointSample,
        responses=problem_responses(_WARMING),
    )
    async def sample(model: ModelName, query: Annotated[SampleQuery, Query()]) -> Response:
        """Some of the last points, their clusters, and two axes to draw them along."""
        s = (await reader.snapshot(model, query.snapshot)).snapshot
        recent = await reader.query(lambda: store.recent(model))
        stored = np.empty((0, len(s.fields))) if recent is None else recent.points.reshape(-1, len(s.fields))
        points = serializers.subsample(stored, query.n)
        return json_response(
            await reader.run_in_thread(lambda: serializers.sample(s, points, serializers.project(s, points, None)))
        )

    @routes.get(
        "/models/{model}/quarantine",
        tags=["operations"],
        summary="Bad records",
        response_model=schemas.Quarantine,
        responses=problem_responses(_ERRORS),
    )
    async def quarantine(model: ModelName, query: Annotated[QuarantineQuery, Query()]) -> Response:
        """Number of bad records by reason, and the newest of them. Bytes that are not UTF-8 are replaced."""

        def read() -> bytes:
            reasons = dict(store.quarantine_counts(model))
            most = serializers.MAX_TEXT_BYTES  # truncated by the database: whole values could fill the memory
            records = store.newest_quarantined(model, limit=query.limit, reason=query.reason, max_bytes=most)
            entries = [serializers.quarantined(bad) for bad in records]
            return to_json(schemas.Quarantine(total=sum(reasons.values()), reasons=reasons, records=entries))

        return json_response(await reader.query(read))

    return routes
