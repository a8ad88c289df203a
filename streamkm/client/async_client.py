"""The client for asyncio; `Client` documents each method."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any, Self, TypeVar

import httpx

from streamkm.client import requests, transport
from streamkm.client.requests import Call, Flow
from streamkm.client.responses import (
    Centroids,
    ClusterEvent,
    ClusterLineage,
    HistoricalSnapshot,
    Job,
    KProfile,
    Model,
    PointSample,
    Prediction,
    Quarantine,
    SnapshotDiff,
    SnapshotSummary,
    WhoAmI,
)
from streamkm.client.sse import read_events
from streamkm.client.transport import DEFAULT_URL, RETRY_STATUSES, STABLE_SECONDS, BaseClient
from streamkm.errors import StreamkmError

T = TypeVar("T")


class AsyncClient(BaseClient):
    """`Client` for asyncio: the same methods, as coroutines."""

    def __init__(self, url: str = DEFAULT_URL, *, token: str = "", timeout: float = 30.0) -> None:
        super().__init__(url, token, timeout)
        self._http = httpx.AsyncClient(base_url=self.url, headers=self._headers, timeout=timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def models(self) -> list[Model]:
        """All models, by name."""
        return await self._run(requests.models())

    async def model(self, name: str) -> Model:
        """One model: status, fields and counters."""
        return await self._run(requests.model(name))

    async def centroids(
        self, model: str, *, snapshot: int | None = None, at: datetime | float | str | None = None
    ) -> Centroids:
        """The clusters of the newest snapshot, of a snapshot by number, or of the one that was newest at a time."""
        return await self._run(requests.centroids(model, snapshot, at))

    async def predict(self, model: str, X: Any, *, snapshot: int | None = None) -> Prediction:
        """The nearest cluster of each point."""
        return await self._run(requests.predict(model, X, snapshot))

    async def snapshots(self, model: str, *, limit: int = 100) -> list[SnapshotSummary]:
        """The newest snapshots, newest first."""
        return await self._run(requests.snapshots(model, limit))

    async def history(self, model: str, *, limit: int = 100) -> list[HistoricalSnapshot]:
        """The newest snapshots that were in charge, with their clusters, newest first."""
        return await self._run(requests.history(model, limit))

    async def events(self, model: str, *, limit: int = 100) -> list[ClusterEvent]:
        """Births, deaths, splits, merges, drifts and other events of clusters, newest first."""
        return await self._run(requests.events(model, limit))

    def follow_events(self, model: str, *, after: str | None = None) -> AsyncIterator[ClusterEvent]:
        """Events as they happen, without an end; reconnects and resumes after the last event that was received."""
        return self._follow(model, after)

    async def lineage(self, model: str) -> list[ClusterLineage]:
        """Origin, end and successors of each cluster, by id."""
        return await self._run(requests.lineage(model))

    async def diff(self, model: str, a: int, b: int) -> SnapshotDiff:
        """Compare snapshots `a` and `b`: shift of each cluster, changed assignments, cost on the same points."""
        return await self._run(requests.diff(model, a, b))

    async def k(self, model: str) -> KProfile:
        """The suggested number of clusters, and the criteria for each number that was tried."""
        return await self._run(requests.k(model))

    async def sample(self, model: str, *, n: int = 300) -> PointSample:
        """Up to `n` of the last points, with their clusters."""
        return await self._run(requests.sample(model, n))

    async def quarantine(self, model: str, *, limit: int = 100, reason: str | None = None) -> Quarantine:
        """Number of bad records by reason, and the newest of them (of one `reason`, if given)."""
        return await self._run(requests.quarantine(model, limit, reason))

    async def me(self) -> WhoAmI:
        """Name, right and models of the token that this client sends."""
        return await self._run(requests.me())

    async def promote(self, model: str, snapshot: int, *, skip: bool = False) -> None:
        """Ask the consumer to put a snapshot in charge, which it does at its next checkpoint."""
        await self._run(requests.promote(model, snapshot, skip=skip))

    async def pause(self, model: str) -> None:
        """Ask the consumer to stop reading."""
        await self._run(requests.pause(model, paused=True))

    async def resume(self, model: str) -> None:
        """Ask the consumer to read again."""
        await self._run(requests.pause(model, paused=False))

    async def delete(self, model: str) -> None:
        """Delete a model with all its data; refused while a consumer runs it."""
        await self._run(requests.delete(model))

    async def jobs(self, model: str) -> list[Job]:
        """Recomputation jobs, newest first."""
        return await self._run(requests.jobs(model))

    async def job(self, model: str, job: str) -> Job:
        """One recomputation job, by its id."""
        return await self._run(requests.job(model, job))

    async def start_job(
        self,
        model: str,
        *,
        start: str = "beginning",
        stop: str = "now",
        k: int | None = None,
        init: str = "k-means++",
        n_init: int = 1,
        max_iter: int = 300,
    ) -> Job:
        """Run exact K-Means over a range of the topic; the resulting snapshot is not in charge until it is promoted."""
        options = {"from": start, "to": stop, "k": k, "init": init, "n_init": n_init, "max_iter": max_iter}
        return await self._run(requests.start_job(model, options))

    async def cancel_job(self, model: str, job: str) -> Job:
        """Cancel a job that is queued or running."""
        return await self._run(requests.cancel_job(model, job))

    async def _run(self, flow: Flow[T]) -> T:
        try:
            call = next(flow)
            while True:
                try:
                    content = await self._send(call)
                except StreamkmError as error:
                    call = flow.throw(error)
                else:
                    call = flow.send(content)
        except StopIteration as done:
            result: T = done.value
            return result

    async def _send(self, call: Call) -> Any:
        for delay in (*transport.RETRY_DELAYS, None):
            request = self._request(self._http, call)
            try:
                async with asyncio.timeout(self._timeout):
                    response = await self._http.send(request)
            except TimeoutError as error:
                if delay is None or not call.idempotent:
                    late = httpx.ReadTimeout(f"not within {self._timeout:g} s", request=request)
                    raise self._unreachable(late) from error
                await asyncio.sleep(delay)
            except httpx.TransportError as error:
                if delay is None or not call.idempotent:
                    raise self._unreachable(error) from error
                await asyncio.sleep(delay)
            else:
                if delay is None or not call.idempotent or response.status_code not in RETRY_STATUSES:
                    return self._content(response)
                await asyncio.sleep(transport.retry_delay(response, delay))
        raise AssertionError("the last attempt returns or raises")

    async def _follow(self, model: str, after: str | None) -> AsyncIterator[ClusterEvent]:
        if after is None:
            after = transport.latest_event_id(await self.model(model))
        attempt = 0
        while True:
            started = time.monotonic()
            try:
                async with self._http.stream("GET", **self._stream_options(model, after)) as response:
                    if not response.is_success:
                        await response.aread()
                        if response.status_code not in RETRY_STATUSES:
                            self._content(response)
                    else:
                        reader = read_events()
                        next(reader)
                        async for line in response.aiter_lines():
                            event = reader.send(line)
                            if event is not None:
                                attempt = 0
                                after = event.id
                                yield event
            except httpx.TransportError as error:
                if attempt >= len(transport.RECONNECT_DELAYS) and time.monotonic() - started < STABLE_SECONDS:
                    raise self._unreachable(error) from error
            if time.monotonic() - started >= STABLE_SECONDS:
                attempt = 0
            if attempt >= len(transport.RECONNECT_DELAYS):
                raise requests.error_of(503, b"", transport.location(response.request))
            await asyncio.sleep(transport.RECONNECT_DELAYS[attempt])
            attempt += 1
