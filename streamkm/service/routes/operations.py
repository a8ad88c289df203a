"""``/livez``, ``/readyz`` and ``/metrics``."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import get_args

from fastapi import APIRouter, Response

from streamkm import metrics as names
from streamkm.errors import StoreError
from streamkm.metrics import CONTENT_TYPE, Family, Metrics, family
from streamkm.service import serializers
from streamkm.service.problems import RETRY_SECONDS, Problem, problem_responses
from streamkm.service.schemas import models as schemas
from streamkm.service.snapshot_cache import StoreReader
from streamkm.service.status import status
from streamkm.state import Snapshot
from streamkm.stores.base import ModelInfo

log = logging.getLogger("streamkm.service")

_METRICS_EXAMPLE = """# HELP streamkm_model_lag_records Records behind the end of the source at the last commit
# TYPE streamkm_model_lag_records gauge
streamkm_model_lag_records{model="orders"} 120.0
"""


def router(reader: StoreReader, metrics: Metrics, stale_after: float) -> APIRouter:
    """The routes.

    Parameters
    ----------
    reader
        Access to the store.
    metrics
        Metrics of this process.
    stale_after
        See `streamkm.service.status.status`.
    """
    routes = APIRouter(tags=["operations"])

    @routes.get("/livez", summary="Liveness", response_model=schemas.Health, responses=problem_responses((500,)))
    async def livez() -> Response:
        """Succeeds as long as the process runs; does not use the store."""
        return _OK

    @routes.get("/readyz", summary="Readiness", response_model=schemas.Health, responses=problem_responses((500, 503)))
    async def readyz() -> Response:
        """Succeeds if the store is available."""
        try:
            await reader.ping()
        except StoreError as e:
            # Anybody may ask, from any page: what the store is, and what is wrong with it, is only for the log.
            log.warning("not ready: %s", e)
            raise Problem(
                503,
                "store-unavailable",
                "the store is unavailable; see the log of the service",
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
            **problem_responses((401, 500)),
        },
    )
    async def scrape() -> Response:
        """Metrics of this process and of every model; ``streamkm_store_up`` is 0 if the store is unavailable."""
        return Response(await reader.once("metrics", export), media_type=CONTENT_TYPE)

    async def export() -> bytes:
        # In a thread, and once for concurrent requests: it takes some milliseconds, and more with each model.
        try:
            return await reader.query(lambda: render(reader.read_models()))
        except StoreError:
            return await reader.run_in_thread(lambda: render(None))

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
        Models with their newest snapshots; None if the store is unavailable.
    now
        Seconds since 1970.
    stale_after
        See `streamkm.service.status.status`.
    """
    yield family(names.STORE_UP, {(): float(models is not None)})
    if models is None:
        return
    statuses = get_args(schemas.Status)
    states = {info.spec.name: status(info, now, stale_after)[0] for info, _ in models}
    yield family(names.MODEL_STATUS, {(m, w): float(w == state) for m, state in states.items() for w in statuses})
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
    evaluated = {m: s.detail for m, s in published.items() if s.detail.get("evaluation")}
    yield family(names.MODEL_SILHOUETTE, {m: d["evaluation"]["silhouette"] for m, d in evaluated.items()})
    yield family(names.MODEL_STALENESS, {m: d["evaluation"]["staleness"] for m, d in evaluated.items()})
    yield family(names.MODEL_OUTLIERS, {m: d["outliers"] for m, d in evaluated.items()})
    yield family(
        names.MODEL_SUGGESTED_K,
        {m: d["k"]["suggested"] for m, d in evaluated.items() if d["k"] and d["k"]["suggested"] is not None},
    )
    shares = {
        (*m, str(c)): share
        for m, s in published.items()
        for c, share in zip(s.ids.tolist(), serializers.shares(s), strict=True)
    }
    yield family(names.MODEL_CLUSTER_SHARE, {labels: share for labels, share in shares.items() if share is not None})
