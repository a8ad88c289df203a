"""``/livez``, ``/readyz`` and ``/metrics``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import get_args

from fastapi import APIRouter, Response

from streamkm import metrics as names
from streamkm.errors import StoreError
from streamkm.metrics import CONTENT_TYPE, Family, Metrics, family
from streamkm.service import schemas, shape
from streamkm.service.errors import RETRY_SECONDS, Problem, documented
from streamkm.service.reader import Reader
from streamkm.service.status import status
from streamkm.state import Snapshot
from streamkm.stores.base import ModelInfo

_METRICS_EXAMPLE = """# HELP streamkm_model_lag_records Records behind the end of the source at the last commit
# TYPE streamkm_model_lag_records gauge
streamkm_model_lag_records{model="orders"} 120.0
"""


def router(reader: Reader, metrics: Metrics, stale_after: float) -> APIRouter:
    """The routes.

    Parameters
    ----------
    reader
        Whose store must answer.
    metrics
        What is exported.
    stale_after
        Seconds without a commit after which a model with work is stale.
    """
    routes = APIRouter(tags=["operations"])

    @routes.get("/livez", summary="Is the process up?", response_model=schemas.Health, responses=documented((500,)))
    async def livez() -> Response:
        """Answers as long as the process does; asks nothing of the store."""
        return _OK

    @routes.get("/readyz", summary="Can it answer?", response_model=schemas.Health, responses=documented((500, 503)))
    async def readyz() -> Response:
        """Answers 200 if the store does."""
        try:
            await reader.ping()
        except StoreError as e:
            raise Problem(
                503,
                "store-unavailable",
                e.message,
                where=e.where,
                hint=e.hint,
                headers={"Retry-After": str(RETRY_SECONDS)},
            ) from e
        return _OK

    @routes.get(
        "/metrics",
        summary="Prometheus metrics",
        response_class=Response,
        responses={
            200: {
                "description": "Prometheus text format",
                "content": {"text/plain": {"schema": {"type": "string"}, "example": _METRICS_EXAMPLE}},
            },
            **documented((401, 500)),
        },
    )
    async def scrape() -> Response:
        """Counters of this process and every model of the store; ``streamkm_store_up`` is 0 while the store is away."""
        return Response(await reader.once("metrics", rendered), media_type=CONTENT_TYPE)

    async def rendered() -> bytes:
        # In threads, and once for all who ask meanwhile: it takes some milliseconds, and more with each model.
        try:
            return await reader.ask(lambda: render(reader.listed()))
        except StoreError:
            return await reader.work(lambda: render(None))

    def render(models: Sequence[tuple[ModelInfo, Snapshot | None]] | None) -> bytes:
        return metrics.render(store_families(models, reader.clock(), stale_after))

    return routes


_OK = Response(b'{"status":"ok"}', media_type="application/json")


def store_families(
    models: Sequence[tuple[ModelInfo, Snapshot | None]] | None, now: float, stale_after: float
) -> Iterator[Family]:
    """Metrics of the models of a store.

    Parameters
    ----------
    models
        What the store has; None if it did not answer.
    now
        Seconds since 1970.
    stale_after
        See `streamkm.service.status.status`.
    """
    yield family(names.STORE_UP, {(): float(models is not None)})
    if models is None:
        return
    words = get_args(schemas.Status)
    states = {info.spec.name: status(info, now, stale_after)[0] for info, _ in models}
    yield family(names.MODEL_STATUS, {(m, w): float(w == state) for m, state in states.items() for w in words})
    started = {(info.spec.name,): info.progress for info, _ in models if info.progress is not None}
    yield family(names.MODEL_RECORDS, {m: p.counters.records for m, p in started.items()})
    yield family(names.MODEL_POINTS, {m: p.counters.points for m, p in started.items()})
    yield family(names.MODEL_BAD, {m: p.counters.bad for m, p in started.items()})
    yield family(names.MODEL_TOMBSTONES, {m: p.counters.tombstones for m, p in started.items()})
    yield family(names.MODEL_LOST, {m: p.counters.lost for m, p in started.items()})
    yield family(names.MODEL_LAG, {m: p.lag for m, p in started.items() if p.lag >= 0})
    yield family(names.MODEL_COMMIT_AGE, {m: now - p.committed_at for m, p in started.items()})
    yield family(
        names.MODEL_POSITION,
        {(*m, tp.topic, str(tp.partition)): at for m, p in started.items() for tp, at in p.position.items()},
    )
    yield family(names.MODEL_SNAPSHOT_ID, {(info.spec.name,): info.last_snapshot for info, _ in models})
    published = {(info.spec.name,): s for info, s in models if s is not None}
    yield family(names.MODEL_SNAPSHOT_AGE, {m: now - s.created_at for m, s in published.items()})
    yield family(names.MODEL_INERTIA, {m: s.inertia for m, s in published.items()})
    told = {m: s.detail for m, s in published.items() if s.detail.get("evaluation")}
    yield family(names.MODEL_SILHOUETTE, {m: d["evaluation"]["silhouette"] for m, d in told.items()})
    yield family(names.MODEL_STALENESS, {m: d["evaluation"]["staleness"] for m, d in told.items()})
    yield family(names.MODEL_OUTLIERS, {m: d["outliers"] for m, d in told.items()})
    yield family(
        names.MODEL_SUGGESTED_K,
        {m: d["k"]["suggested"] for m, d in told.items() if d["k"] and d["k"]["suggested"] is not None},
    )
    shares = {
        (*m, str(c)): share
        for m, s in published.items()
        for c, share in zip(s.ids.tolist(), shape.shares(s), strict=True)
    }
    yield family(names.MODEL_CLUSTER_SHARE, {labels: share for labels, share in shares.items() if share is not None})
