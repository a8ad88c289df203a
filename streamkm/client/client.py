"""The blocking client."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import httpx

from streamkm.client import requests, transport
from streamkm.client.requests import Call, Flow
from streamkm.client.responses import ClusterEvent
from streamkm.client.sse import read_events
from streamkm.client.transport import DEFAULT_URL, RETRY_STATUSES, BaseClient
from streamkm.errors import StreamkmError

P = ParamSpec("P")
T = TypeVar("T")


def _blocking(flow: Callable[P, Flow[T]]) -> Callable[Concatenate[Client, P], T]:
    """Make a method that runs a flow."""

    def method(client: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return client._run(flow(*args, **kwargs))  # noqa: SLF001 - it is a method

    transport.document(method, flow)
    return method


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

    models = _blocking(requests.models)
    model = _blocking(requests.model)
    centroids = _blocking(requests.centroids)
    predict = _blocking(requests.predict)
    snapshots = _blocking(requests.snapshots)
    history = _blocking(requests.history)
    events = _blocking(requests.events)
    lineage = _blocking(requests.lineage)
    diff = _blocking(requests.diff)
    k = _blocking(requests.k)
    sample = _blocking(requests.sample)
    quarantine = _blocking(requests.quarantine)
    me = _blocking(requests.me)
    promote = _blocking(requests.promote)
    pause = _blocking(requests.pause)
    resume = _blocking(requests.resume)
    delete = _blocking(requests.delete)
    jobs = _blocking(requests.jobs)
    job = _blocking(requests.job)
    start_job = _blocking(requests.start_job)
    cancel_job = _blocking(requests.cancel_job)

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
        for delay in transport.retry_delays(call):
            try:
                response = self._http.send(self._request(self._http, call))
            except httpx.TransportError as error:
                if delay is None:
                    raise self._unreachable(error) from error
                time.sleep(delay)
            else:
                if delay is None or response.status_code not in RETRY_STATUSES:
                    return self._content(response)
                time.sleep(transport.requested_delay(response, delay))
        raise AssertionError("the last attempt returns or raises")

    def _follow(self, model: str, after: str | None) -> Iterator[ClusterEvent]:
        if after is None:
            after = transport.latest_event_id(self.model(model))
        reconnects = transport.Reconnects()
        while True:
            reconnects.opening()
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
                                reconnects.received()
                                after = event.id
                                yield event
            except httpx.TransportError as error:
                failure: StreamkmError = self._unreachable(error)
            else:
                failure = requests.error_of(503, b"", transport.location(response.request))
            time.sleep(reconnects.delay(failure))
