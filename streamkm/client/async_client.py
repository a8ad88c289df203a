"""The client for asyncio; `Client` documents each method."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
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


def _awaited(flow: Callable[P, Flow[T]]) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]:
    """Make a coroutine method that runs a flow."""

    async def method(client: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await client._run(flow(*args, **kwargs))  # noqa: SLF001 - it is a method

    transport.document(method, flow)
    return method


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

    models = _awaited(requests.models)
    model = _awaited(requests.model)
    centroids = _awaited(requests.centroids)
    predict = _awaited(requests.predict)
    snapshots = _awaited(requests.snapshots)
    history = _awaited(requests.history)
    events = _awaited(requests.events)
    lineage = _awaited(requests.lineage)
    diff = _awaited(requests.diff)
    k = _awaited(requests.k)
    sample = _awaited(requests.sample)
    quarantine = _awaited(requests.quarantine)
    me = _awaited(requests.me)
    promote = _awaited(requests.promote)
    pause = _awaited(requests.pause)
    resume = _awaited(requests.resume)
    delete = _awaited(requests.delete)
    jobs = _awaited(requests.jobs)
    job = _awaited(requests.job)
    start_job = _awaited(requests.start_job)
    cancel_job = _awaited(requests.cancel_job)

    def follow_events(self, model: str, *, after: str | None = None) -> AsyncIterator[ClusterEvent]:
        """Events as they happen, without an end; reconnects and resumes after the last event that was received."""
        return self._follow(model, after)

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
        for delay in transport.retry_delays(call):
            request = self._request(self._http, call)
            try:
                async with asyncio.timeout(self._timeout):
                    response = await self._http.send(request)
            except (TimeoutError, httpx.TransportError) as error:
                if delay is None:
                    late = httpx.ReadTimeout(f"not within {self._timeout:g} s", request=request)
                    raise self._unreachable(late if isinstance(error, TimeoutError) else error) from error
                await asyncio.sleep(delay)
            else:
                if delay is None or response.status_code not in RETRY_STATUSES:
                    return self._content(response)
                await asyncio.sleep(transport.requested_delay(response, delay))
        raise AssertionError("the last attempt returns or raises")

    async def _follow(self, model: str, after: str | None) -> AsyncIterator[ClusterEvent]:
        if after is None:
            after = transport.latest_event_id(await self.model(model))
        reconnects = transport.Reconnects()
        while True:
            reconnects.opening()
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
                                reconnects.received()
                                after = event.id
                                yield event
            except httpx.TransportError as error:
                failure: StreamkmError = self._unreachable(error)
            else:
                failure = requests.error_of(503, b"", transport.location(response.request))
            await asyncio.sleep(reconnects.delay(failure))
