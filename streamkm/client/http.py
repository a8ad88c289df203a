"""The client over HTTP, by httpx."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from streamkm.client import requests
from streamkm.client.async_methods import AsyncMethods
from streamkm.client.methods import Methods
from streamkm.client.requests import Call, Flow
from streamkm.client.responses import Centroids, Event, Model, Prediction, Published
from streamkm.errors import ServiceUnreachableError, SettingsError, StreamkmError
from streamkm.redaction import redact_url, remember, remember_url

T = TypeVar("T")
URL = "http://127.0.0.1:8000"
PAUSES = (0.3, 0.6, None)
"""Seconds after each attempt; after the last one there is no other."""
LONGEST_PAUSE_SECONDS = 5.0
AGAIN = (502, 503, 504)
"""Statuses of a service that will be well again."""
FOLLOW_PAUSES = (0.3, 0.6, 1.2, 2.4, 5.0, 5.0, 5.0, 5.0)
"""Seconds between attempts to take up a stream that broke off; a service that starts anew takes some."""
SILENCE_SECONDS = 60.0
"""A stream that says nothing for so long is dead: the service says that it is there four times as often."""
STEADY_SECONDS = 10.0
"""A stream that broke off after so long was well, and its attempts are counted anew."""


class _Base:
    """What both clients are."""

    def __init__(self, url: str, token: str, timeout: float) -> None:
        self._timeout = timeout
        remember(token)
        remember_url(url)
        self.url = url.rstrip("/")
        if not self.url.startswith(("http://", "https://")):
            raise SettingsError(f"{redact_url(url)} is no address of a service", where="url", hint=f"Such as {URL}")
        try:
            httpx.URL(self.url)
        except httpx.InvalidURL:  # it quotes what it cannot read
            raise SettingsError("this is no address of a service", where="url", hint=f"Such as {URL}") from None
        if not re.fullmatch(r"[ -~]*", token):
            raise SettingsError("a token has no line breaks and no letters beyond ASCII", where="token")
        self._headers = {"Accept": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})

    def _request(self, http: httpx.Client | httpx.AsyncClient, call: Call) -> httpx.Request:
        method = call.method or ("GET" if call.body is None else "POST")
        headers = {"Accept": call.kind} | ({} if call.body is None else {"Content-Type": call.kind})
        return http.build_request(method, call.path, params=dict(call.params), content=call.body, headers=headers)

    def _listening(self, model: str, after: str | None) -> dict[str, Any]:
        headers = {"Accept": "text/event-stream"} | ({} if after is None else {"Last-Event-ID": after})
        patience = httpx.Timeout(self._timeout, read=SILENCE_SECONDS)
        return {"url": requests.path_of(model, "events", "stream"), "headers": headers, "timeout": patience}

    def _read(self, answer: httpx.Response) -> Any:
        if not answer.is_success:
            raise requests.error_of(answer.status_code, answer.content, _place(answer.request))
        if answer.status_code == 204:
            return None
        if answer.headers.get("content-type", "").startswith(requests.ARROW):
            return answer.content
        try:
            return answer.json()
        except ValueError as e:
            raise requests.error_of(answer.status_code, b"", _place(answer.request)) from e

    def _unreachable(self, error: httpx.HTTPError) -> ServiceUnreachableError:
        return ServiceUnreachableError(
            f"no answer ({error or type(error).__name__})",
            where=_place(error.request),
            hint="Is `streamkm serve` running there?",
        )


class Client(_Base, Methods):
    """Asks a service, and waits for the answer.

    Parameters
    ----------
    url
        Where the service is.
    token
        What it wants to be sent; none on loopback.
    timeout
        Seconds for each step of an answer; of `AsyncClient` for an answer as a whole.

    Raises
    ------
    SettingsError
        `url` is none.

    Examples
    --------
    >>> from streamkm import Client
    >>> with Client("http://127.0.0.1:8000") as client:  # doctest: +SKIP
    ...     now = client.centroids("orders")
    ...     found = client.predict("orders", [[12.0, 52.5, 13.4]])
    ...     now.centroids.shape, found.ids

    Notes
    -----
    Every method raises `NotFoundError` for a model or snapshot that is not there, `NotReadyError` while the model warms
    up, `DataError` for points that it cannot take, `ServiceUnreachableError` when nobody answers (three times) and
    `ServiceError` for what else the service says.
    """

    def __init__(self, url: str = URL, *, token: str = "", timeout: float = 30.0) -> None:
        super().__init__(url, token, timeout)
        self._http = httpx.Client(base_url=self.url, headers=self._headers, timeout=timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def models(self) -> list[Model]:
        """All models by name."""
        return self._run(requests.models())

    def model(self, name: str) -> Model:
        """One model: its status, fields and counters."""
        return self._run(requests.model(name))

    def centroids(
        self, model: str, *, snapshot: int | None = None, at: datetime | float | str | None = None
    ) -> Centroids:
        """The clusters now, of a snapshot by number, or as they were at a moment.

        Parameters
        ----------
        at
            A datetime, ISO 8601, or seconds since 1970.
        """
        return self._run(requests.centroids(model, snapshot, at))

    def predict(self, model: str, X: Any, *, snapshot: int | None = None) -> Prediction:
        """The cluster of each point.

        Parameters
        ----------
        X
            (n, d) numbers in the order of the model's fields, or a table of pandas, polars or Arrow that has them as
            columns. Any number of points: they are sent a few megabytes at a time, and one snapshot answers for all.
        snapshot
            Which one; the newest if None.
        """
        return self._run(requests.predict(model, X, snapshot))

    def snapshots(self, model: str, *, limit: int = 100) -> list[Published]:
        """The newest snapshots, newest first."""
        return self._run(requests.snapshots(model, limit))

    def events(self, model: str, *, limit: int = 100) -> list[Event]:
        """What happened to clusters, newest first."""
        return self._run(requests.events(model, limit))

    def _run(self, flow: Flow[T]) -> T:
        try:
            call = next(flow)
            while True:
                try:
                    answer = self._send(call)
                except StreamkmError as error:
                    call = flow.throw(error)
                else:
                    call = flow.send(answer)
        except StopIteration as done:
            found: T = done.value
            return found

    def _send(self, call: Call) -> Any:
        for pause in PAUSES:
            try:
                answer = self._http.send(self._request(self._http, call))
            except httpx.TransportError as error:
                if pause is None or not call.again:
                    raise self._unreachable(error) from error
                time.sleep(pause)
            else:
                if pause is None or not call.again or answer.status_code not in AGAIN:
                    return self._read(answer)
                time.sleep(_asked(answer, pause))
        raise AssertionError("the last attempt returns or raises")

    def _follow(self, model: str, after: str | None) -> Iterator[Event]:
        if after is None:
            after = _last(self.model(model))
        attempt = 0
        while True:
            began = time.monotonic()
            try:
                with self._http.stream("GET", **self._listening(model, after)) as answer:
                    if not answer.is_success:
                        answer.read()
                        if answer.status_code not in AGAIN:
                            self._read(answer)
                    else:
                        reader = requests.read_events()
                        next(reader)
                        for line in answer.iter_lines():
                            event = reader.send(line)
                            if event is not None:
                                attempt = 0
                                after = event.id
                                yield event
            except httpx.TransportError as error:
                if attempt >= len(FOLLOW_PAUSES) and time.monotonic() - began < STEADY_SECONDS:
                    raise self._unreachable(error) from error
            if time.monotonic() - began >= STEADY_SECONDS:
                attempt = 0
            if attempt >= len(FOLLOW_PAUSES):
                raise requests.error_of(503, b"", _place(answer.request))
            time.sleep(FOLLOW_PAUSES[attempt])
            attempt += 1


class AsyncClient(_Base, AsyncMethods):
    """The same for asyncio: see `Client`."""

    def __init__(self, url: str = URL, *, token: str = "", timeout: float = 30.0) -> None:
        super().__init__(url, token, timeout)
        self._http = httpx.AsyncClient(base_url=self.url, headers=self._headers, timeout=timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close its connections."""
        await self._http.aclose()

    async def models(self) -> list[Model]:
        """All models by name."""
        return await self._run(requests.models())

    async def model(self, name: str) -> Model:
        """One model: its status, fields and counters."""
        return await self._run(requests.model(name))

    async def centroids(
        self, model: str, *, snapshot: int | None = None, at: datetime | float | str | None = None
    ) -> Centroids:
        """The clusters now, of a snapshot by number, or as they were at a moment."""
        return await self._run(requests.centroids(model, snapshot, at))

    async def predict(self, model: str, X: Any, *, snapshot: int | None = None) -> Prediction:
        """The cluster of each point."""
        return await self._run(requests.predict(model, X, snapshot))

    async def snapshots(self, model: str, *, limit: int = 100) -> list[Published]:
        """The newest snapshots, newest first."""
        return await self._run(requests.snapshots(model, limit))

    async def events(self, model: str, *, limit: int = 100) -> list[Event]:
        """What happened to clusters, newest first."""
        return await self._run(requests.events(model, limit))

    async def _run(self, flow: Flow[T]) -> T:
        try:
            call = next(flow)
            while True:
                try:
                    answer = await self._send(call)
                except StreamkmError as error:
                    call = flow.throw(error)
                else:
                    call = flow.send(answer)
        except StopIteration as done:
            found: T = done.value
            return found

    async def _send(self, call: Call) -> Any:
        for pause in PAUSES:
            request = self._request(self._http, call)
            try:
                async with asyncio.timeout(self._timeout):
                    answer = await self._http.send(request)
            except TimeoutError as error:
                if pause is None or not call.again:
                    late = httpx.ReadTimeout(f"not within {self._timeout:g} s", request=request)
                    raise self._unreachable(late) from error
                await asyncio.sleep(pause)
            except httpx.TransportError as error:
                if pause is None or not call.again:
                    raise self._unreachable(error) from error
                await asyncio.sleep(pause)
            else:
                if pause is None or not call.again or answer.status_code not in AGAIN:
                    return self._read(answer)
                await asyncio.sleep(_asked(answer, pause))
        raise AssertionError("the last attempt returns or raises")

    async def _follow(self, model: str, after: str | None) -> AsyncIterator[Event]:
        if after is None:
            after = _last(await self.model(model))
        attempt = 0
        while True:
            began = time.monotonic()
            try:
                async with self._http.stream("GET", **self._listening(model, after)) as answer:
                    if not answer.is_success:
                        await answer.aread()
                        if answer.status_code not in AGAIN:
                            self._read(answer)
                    else:
                        reader = requests.read_events()
                        next(reader)
                        async for line in answer.aiter_lines():
                            event = reader.send(line)
                            if event is not None:
                                attempt = 0
                                after = event.id
                                yield event
            except httpx.TransportError as error:
                if attempt >= len(FOLLOW_PAUSES) and time.monotonic() - began < STEADY_SECONDS:
                    raise self._unreachable(error) from error
            if time.monotonic() - began >= STEADY_SECONDS:
                attempt = 0
            if attempt >= len(FOLLOW_PAUSES):
                raise requests.error_of(503, b"", _place(answer.request))
            await asyncio.sleep(FOLLOW_PAUSES[attempt])
            attempt += 1


def _place(request: httpx.Request) -> str:
    """Where a request went, without what may be secret in it."""
    return str(request.url.copy_with(userinfo=b"", query=None, fragment=None))


def _asked(answer: httpx.Response, pause: float) -> float:
    """Seconds that the service asks to be left alone for, within reason."""
    told = answer.headers.get("retry-after", "")
    return min(float(told), LONGEST_PAUSE_SECONDS) if told.isdigit() else pause


def _last(model: Model) -> str:
    """Id of an event behind all that the newest snapshot tells, so that a stream that breaks off loses none."""
    return f"{model.snapshot or 0}.{10**9 - 1}"
