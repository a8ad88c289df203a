"""The blocking client."""

from __future__ import annotations

import time
from collections.abc import Iterator
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


class Client(BaseClient):
    """Client of ``streamkm serve``; every method waits for the response.

    Parameters
    ----------
    url
        Base URL of the service.
    token
        Bearer token; empty for none, which a service on loopback allows for reading.
    timeout
        Seconds for each step of a response (connect, write, read); in `AsyncClient` for a response as a whole.

    Raises
    ------
    SettingsError
        `url` or `token` is not valid.

    Examples
    --------
    >>> from streamkm import Client
    >>> with Client("http://127.0.0.1:8000") as client:  # doctest: +SKIP
    ...     now = client.centroids("orders")
    ...     found = client.predict("orders", [[12.0, 52.5, 13.4]])
    ...     now.centroids.shape, found.ids

    Notes
    -----
    Every method raises `NotFoundError` for a model or snapshot that does not exist, `NotReadyError` while the model
    warms up, `DataError` for invalid points, `ServiceUnreachableError` after three attempts without a response, and
    `ServiceError` for any other error of the service.
    """

    def __init__(self, url: str = DEFAULT_URL, *, token: str = "", timeout: float = 30.0) -> None:
        super().__init__(url, token, timeout)
        self._http = httpx.Client(base_url=self.url, headers=self._headers, timeout=timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def models(self) -> list[Model]:
        """All models, by name."""
        return self._run(requests.models())

    def model(self, name: str) -> Model:
        """One model: status, fields and counters."""
        return self._run(requests.model(name))

    def centroids(
        self, model: str, *, snapshot: int | None = None, at: datetime | float | str | None = None
    ) -> Centroids:
        """The clusters of the newest snapshot, of a snapshot by number, or of the one that was newest at a time.

        Parameters
        ----------
        model
            Name of the model.
        snapshot
            Number of a snapshot.
        at
            A datetime, an RFC 3339 text, or seconds since 1970.
        """
        return self._run(requests.centroids(model, snapshot, at))

    def predict(self, model: str, X: Any, *, snapshot: int | None = None) -> Prediction:
        """The nearest cluster of each point.

        Parameters
        ----------
        model
            Name of the model.
        X
            (n, d) numbers in the order of the model's fields, or a table of pandas, polars or Arrow that has the fields
            as columns. Any number of points: they are sent in requests of a few megabytes, all predicted with one
            snapshot.
        snapshot
            Number of the snapshot to predict with; the newest if None.
        """
        return self._run(requests.predict(model, X, snapshot))

    def snapshots(self, model: str, *, limit: int = 100) -> list[SnapshotSummary]:
        """The newest snapshots, newest first."""
        return self._run(requests.snapshots(model, limit))

    def history(self, model: str, *, limit: int = 100) -> list[HistoricalSnapshot]:
        """The newest snapshots that were in charge, with their clusters, newest first."""
        return self._run(requests.history(model, limit))

    def events(self, model: str, *, limit: int = 100) -> list[ClusterEvent]:
        """Births, deaths, splits, merges, drifts and other events of clusters, newest first."""
        return self._run(requests.events(model, limit))

    def follow_events(self, model: str, *, after: str | None = None) -> Iterator[ClusterEvent]:
        """Events as they happen, without an end; reconnects and resumes after the last event that was received.

        Parameters
        ----------
        model
            Name of the model.
        after
            `ClusterEvent.id` of the last known event; the stream begins with the next one. Only new events if None.
        """
        return self._follow(model, after)

    def lineage(self, model: str) -> list[ClusterLineage]:
        """Origin, end and successors of each cluster, by id."""
        return self._run(requests.lineage(model))

    def diff(self, model: str, a: int, b: int) -> SnapshotDiff:
        """Compare snapshots `a` and `b`: shift of each cluster, changed assignments, cost on the same points."""
        return self._run(requests.diff(model, a, b))

    def k(self, model: str) -> KProfile:
        """The suggested number of clusters, and the criteria for each number that was tried."""
        return self._run(requests.k(model))

    def sample(self, model: str, *, n: int = 300) -> PointSample:
        """Up to `n` of the last points, with their clusters."""
        return self._run(requests.sample(model, n))

    def quarantine(self, model: str, *, limit: int = 100, reason: str | None = None) -> Quarantine:
        """Number of bad records by reason, and the newest of them (of one `reason`, if given)."""
        return self._run(requests.quarantine(model, limit, reason))

    def me(self) -> WhoAmI:
        """Name, right and models of the token that this client sends."""
        return self._run(requests.me())

    def promote(self, model: str, snapshot: int, *, skip: bool = False) -> None:
        """Ask the consumer to put a snapshot in charge, which it does at its next checkpoint.

        Parameters
        ----------
        model
            Name of the model.
        snapshot
            Number of the snapshot.
        skip
            Skip the records between the snapshot and now; else the consumer learns them again.
        """
        self._run(requests.promote(model, snapshot, skip=skip))

    def pause(self, model: str) -> None:
        """Ask the consumer to stop reading."""
        self._run(requests.pause(model, paused=True))

    def resume(self, model: str) -> None:
        """Ask the consumer to read again."""
        self._run(requests.pause(model, paused=False))

    def delete(self, model: str) -> None:
        """Delete a model with all its data; refused while a consumer runs it."""
        self._run(requests.delete(model))

    def jobs(self, model: str) -> list[Job]:
        """Recomputation jobs, newest first."""
        return self._run(requests.jobs(model))

    def job(self, model: str, job: str) -> Job:
        """One recomputation job, by its id."""
        return self._run(requests.job(model, job))

    def start_job(
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
        """Run exact K-Means over a range of the topic; the resulting snapshot is not in charge until it is promoted.

        Parameters
        ----------
        model
            Name of the model.
        start, stop
            Range of the topic, such as ``2026-11-01``, ``2h``, ``offset:N`` or ``snapshot:N``.
        k
            Number of clusters; the model's own if None.
        init, n_init, max_iter
            As for `ExactKMeans`.
        """
        options = {"from": start, "to": stop, "k": k, "init": init, "n_init": n_init, "max_iter": max_iter}
        return self._run(requests.start_job(model, options))

    def cancel_job(self, model: str, job: str) -> Job:
        """Cancel a job that is queued or running."""
        return self._run(requests.cancel_job(model, job))

    def _run(self, flow: Flow[T]) -> T:
        try:
            call = next(flow)
            while True:
                try:
                    content = self._send(call)
                except StreamkmError as error:
                    call = flow.throw(error)
                else:
                    call = flow.send(content)
        except StopIteration as done:
            result: T = done.value
            return result

    def _send(self, call: Call) -> Any:
        for delay in (*transport.RETRY_DELAYS, None):
            try:
                response = self._http.send(self._request(self._http, call))
            except httpx.TransportError as error:
                if delay is None or not call.idempotent:
                    raise self._unreachable(error) from error
                time.sleep(delay)
            else:
                if delay is None or not call.idempotent or response.status_code not in RETRY_STATUSES:
                    return self._content(response)
                time.sleep(transport.retry_delay(response, delay))
        raise AssertionError("the last attempt returns or raises")

    def _follow(self, model: str, after: str | None) -> Iterator[ClusterEvent]:
        if after is None:
            after = transport.latest_event_id(self.model(model))
        attempt = 0
        while True:
            started = time.monotonic()
            try:
                with self._http.stream("GET", **self._stream_options(model, after)) as response:
                    if not response.is_success:
                        response.read()
                        if response.status_code not in RETRY_STATUSES:
                            self._content(response)
                    else:
                        reader = read_events()
                        next(reader)
                        for line in response.iter_lines():
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
            time.sleep(transport.RECONNECT_DELAYS[attempt])
            attempt += 1
