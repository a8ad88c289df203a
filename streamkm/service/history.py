"""``GET /v1/models/{m}/history | lineage | diff | k | sample | quarantine``: how clusters came to be, of what."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from fastapi import APIRouter, Query, Response
from pydantic import Field

from streamkm.errors import NotReadyError
from streamkm.service import entries
from streamkm.service import schemas_live as schemas
from streamkm.service.errors import Problem, documented
from streamkm.service.points import MAX_ID
from streamkm.service.queries import ModelName, NoQuery, Page, json_response
from streamkm.service.reader import Reader, dumps
from streamkm.service.schemas_live import Difference
from streamkm.state import Snapshot

_ERRORS = (401, 404, 422, 500, 503)
_WARMING = (401, 404, 409, 422, 500, 503)


class Two(NoQuery):
    """Which snapshots are compared."""

    a: int = Field(ge=1, le=MAX_ID, description="Number of the first snapshot", examples=[41])
    b: int = Field(ge=1, le=MAX_ID, description="Number of the second", examples=[42])


class HowMany(NoQuery):
    """How many points are shown."""

    n: int = Field(default=300, ge=1, le=1000, description="Most points; a model keeps some hundreds")
    snapshot: int | None = Field(default=None, ge=1, le=MAX_ID, description="Whose clusters; the newest if absent")


class WhichRecords(NoQuery):
    """Which records are shown."""

    limit: int = Field(default=100, ge=1, le=1000, description="Most records")
    reason: str | None = Field(default=None, max_length=100, description="Only those of this reason")


def router(reader: Reader) -> APIRouter:
    """The routes.

    Parameters
    ----------
    reader
        Where everything comes from.
    """
    routes = APIRouter(prefix="/v1")
    store = reader.store

    async def page_of(model: str, page: Page, *, eventful: bool) -> tuple[list[Snapshot], int | None]:
        """Snapshots of a page, and where the next one begins."""
        found = await reader.snapshots(model, page.before, page.limit + 1, eventful=eventful)
        shown = found[: page.limit]
        return shown, shown[-1].id if len(found) > len(shown) else None

    @routes.get(
        "/models/{model}/history",
        tags=["clusters"],
        summary="The clusters over time",
        response_model=schemas.History,
        responses=documented(_ERRORS),
    )
    async def history(model: ModelName, page: Annotated[Page, Query()]) -> Response:
        """Ids, shares and centroids of every snapshot that was in charge, newest first, a page at a time."""
        info = await reader.model(model)
        shown, following = await page_of(model, page, eventful=False)
        live = [s for s in shown if entries.in_charge(s)]
        return json_response(await reader.work(lambda: entries.history(info.spec.fields, live, following)))

    @routes.get(
        "/models/{model}/lineage",
        tags=["clusters"],
        summary="Where clusters came from, and what became of them",
        response_model=schemas.Lineage,
        responses=documented(_ERRORS),
    )
    async def lineage(model: ModelName, page: Annotated[Page, Query()]) -> Response:
        """The family tree that births, deaths, splits and merges tell. A page has so many snapshots with events."""
        await reader.model(model)
        shown, following = await page_of(model, page, eventful=True)
        return json_response(
            await reader.encoded(lambda: schemas.Lineage(clusters=entries.lives(reversed(shown)), next=following))
        )

    @routes.get(
        "/models/{model}/diff",
        tags=["snapshots"],
        summary="Two snapshots side by side",
        response_model=schemas.Difference,
        responses=documented(_WARMING),
    )
    async def diff(model: ModelName, two: Annotated[Two, Query()]) -> Response:
        """What moved how far, which part of the points changes cluster, and what each costs on the same points."""
        first, second = await reader.snapshot(model, two.a), await reader.snapshot(model, two.b)
        return json_response(await reader.encoded(lambda: _compare(first.snapshot, second.snapshot)))

    def _compare(a: Snapshot, b: Snapshot) -> Difference:
        # numba comes with these, which takes a second and a hundred megabytes: only who compares needs it.
        from streamkm.models import OnlineKMeans  # noqa: PLC0415
        from streamkm.recompute.compare import compare  # noqa: PLC0415

        if a.fields != b.fields or a.distance != b.distance:
            raise Problem(
                422, "invalid", "the snapshots measure different things", where=f"snapshots {a.id} and {b.id}"
            )
        checkpoint = store.load(a.model)
        if checkpoint is None:
            raise NotReadyError("the model has learned nothing yet", where=a.model)
        coreset = OnlineKMeans.from_state(checkpoint.state).coreset_
        return schemas.Difference(**compare(a, b, coreset.rows_, coreset.weights_).to_json())

    @routes.get(
        "/models/{model}/k",
        tags=["clusters"],
        summary="How many clusters there should be",
        response_model=schemas.ChoiceOfK,
        responses=documented(_WARMING),
    )
    async def choice_of_k(model: ModelName, _: Annotated[NoQuery, Query()]) -> Response:
        """What each k would cost and how well it would tell clusters apart, and which one is suggested."""
        s = (await reader.snapshot(model)).snapshot
        return json_response(await reader.encoded(lambda: entries.choice_of_k(s)))

    @routes.get(
        "/models/{model}/sample",
        tags=["clusters"],
        summary="Some of the last points",
        response_model=schemas.Sample,
        responses=documented(_WARMING),
    )
    async def sample(model: ModelName, which: Annotated[HowMany, Query()]) -> Response:
        """Some of the points that were learned last, their clusters, and two axes to draw them along."""
        s = (await reader.snapshot(model, which.snapshot)).snapshot
        recent = await reader.ask(lambda: store.recent(model))
        kept = np.empty((0, len(s.fields))) if recent is None else recent.points.reshape(-1, len(s.fields))
        points = entries.thinned(kept, which.n)
        return json_response(await reader.work(lambda: entries.sample(s, points, entries.project(s, points, None))))

    @routes.get(
        "/models/{model}/quarantine",
        tags=["operations"],
        summary="Records that could not be learned",
        response_model=schemas.Quarantine,
        responses=documented(_ERRORS),
    )
    async def quarantine(model: ModelName, which: Annotated[WhichRecords, Query()]) -> Response:
        """How many there are by reason, and the newest of them. What is no text in them is replaced."""

        def look() -> bytes:
            reasons = dict(store.reasons(model))
            most = entries.MOST_BYTES  # the database cuts: whole values of many records would fill our memory
            records = store.quarantined(model, limit=which.limit, reason=which.reason, most=most)
            shown = [entries.quarantined(bad) for bad in records]
            return dumps(schemas.Quarantine(total=sum(reasons.values()), reasons=reasons, records=shown))

        return json_response(await reader.ask(look))

    return routes
