"""What the tests of the service share: an application in this process, and a model to ask about."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np

from streamkm.records import BadRecord, TopicPartition
from streamkm.service import create_app
from streamkm.state import (
    CodecSpec,
    Commit,
    Counters,
    Distance,
    JournalEntry,
    ModelEvent,
    ModelSpec,
    ModelState,
    Progress,
    Recent,
    Snapshot,
)
from streamkm.stores import Lease, Store

NOW = 1_800_000_000.0
TOKEN = "s3cret"  # noqa: S105 - made up
FIELDS = ("amount", "lat", "lon")
CENTROIDS = ((0.0, 0.0, 0.0), (10.0, 10.0, 10.0))
SPEC = ModelSpec(
    name="orders",
    fields=FIELDS,
    n_clusters=2,
    source={"kind": "kafka", "topic": "orders"},
    learner={"n_clusters": 2},
    codec=CodecSpec("json", FIELDS),
)
P0, P1 = TopicPartition("orders", 0), TopicPartition("orders", 1)


class Api:
    """The application over a store, asked without a server."""

    def __init__(self, store: Store, *, now: float = NOW, **kwargs: Any) -> None:
        self.app = create_app(store, clock=lambda: now, **kwargs)

    def request(self, method: str, url: str, **kwargs: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test", trust_env=False) as client:
                return await client.request(method, url, **kwargs)

        return asyncio.run(send())

    def get(self, url: str, **kwargs: Any) -> httpx.Response:
        return self.request("GET", url, **kwargs)

    def predict(self, points: Any, model: str = "orders", **more: Any) -> httpx.Response:
        return self.request("POST", f"/v1/models/{model}/predict", json={"points": points, **more})


class Writer:
    """A consumer as the store sees it."""

    def __init__(
        self, store: Store, spec: ModelSpec = SPEC, *, created_at: float = NOW - 3600, now: float = NOW
    ) -> None:
        self.store, self.spec = store, spec
        store.create(spec, created_at)
        lease = store.acquire(spec.name, "host:1", 10.0, now)
        assert lease is not None
        self.lease: Lease = lease
        self.position: dict[TopicPartition, int] = {}
        self.counters, self.seq = Counters(), 0

    def commit(
        self,
        *,
        points: int = 100,
        bad: int = 0,
        at: float = NOW,
        lag: int = 0,
        warmup: tuple[int, int] | None = None,
        centroids: Sequence[Sequence[float]] | None = CENTROIDS,
        weights: Sequence[float] | None = None,
        inertia: float = 1.5,
        detail: dict[str, Any] | None = None,
        factors: Sequence[float] | None = None,
        distance: Distance = "euclidean",
        events: tuple[ModelEvent, ...] = (),
        deviations: Any = None,
        recent: Any = None,
        quarantine: tuple[BadRecord, ...] = (),
    ) -> int:
        """Commit, with a snapshot unless there are no centroids. Returns the number of the snapshot."""
        expected = dict(self.position)
        self.position = {P0: expected.get(P0, 0) + points + bad, P1: expected.get(P1, 7)}
        self.counters = self.counters.plus(points=points, bad=bad)
        self.seq += 1
        snapshot = None
        if centroids is not None:
            c = np.array(centroids, np.float64)
            k = len(c)
            snapshot = Snapshot(
                model=self.spec.name,
                created_at=at,
                kind="live",
                reason="interval",
                fields=self.spec.fields,
                ids=np.arange(k, dtype=np.int64) * 3 + 4,
                centroids=c,
                weights=np.array(weights if weights is not None else [1.0] * k),
                spreads=np.full(k, 0.5),
                born=np.arange(k),
                factors=np.ones(c.shape[1]) if factors is None else np.array(factors),
                distance=distance,
                inertia=inertia,
                n_points=self.counters.points,
                position=dict(self.position),
                detail=detail or {},
                events=events,
                deviations=None if deviations is None else np.array(deviations, np.float64),
            )
        return self.store.commit(
            self.lease,
            Commit(
                state=ModelState("OnlineKMeans", 1, {}, {"centers": np.zeros((2, 3))}),
                expected=expected,
                progress=Progress(dict(self.position), self.counters, self.seq, at, lag, warmup),
                journal_entry=JournalEntry(()),
                snapshot=snapshot,
                quarantine=quarantine,
                recent=None if recent is None else Recent(np.array(recent, np.float64)),
            ),
        )
