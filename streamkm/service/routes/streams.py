"""``GET /v1/models/{m}/stream`` and ``/events/stream``: server-sent events (WHATWG HTML, section 9.2)."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Header, Query, Request, Response
from starlette.types import Receive, Scope, Send

from streamkm.errors import StreamkmError
from streamkm.event_format import event_id, event_json
from streamkm.service import serializers
from streamkm.service.auth import client_key
from streamkm.service.broadcast import Broadcaster, Listener, StreamMessage, end
from streamkm.service.json_points import MAX_ID
from streamkm.service.problems import Problem, problem_responses
from streamkm.service.routes.models import ModelName, NoQuery
from streamkm.service.snapshot_cache import StoreReader
from streamkm.state import Snapshot

log = logging.getLogger("streamkm.service")

HEARTBEAT_SECONDS = 1.0
"""Seconds after which a silent stream gets a comment.

Proxies close silent connections. The token of a stream is checked when something is sent, so this also bounds how long
a silent stream outlives its token.
"""
PAGE_SIZE, MAX_PAGES = 100, 10
"""Snapshots with events that are searched for those after ``Last-Event-ID``."""
_ERRORS = (401, 404, 422, 500, 503)
_MEDIA_TYPE = "text/event-stream"
Parts = AsyncGenerator[bytes, None]
"""Server-sent events."""
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


def _stream_response(example: str) -> dict[int | str, dict[str, Any]]:
    return {
        200: {
            "description": "Server-sent events, without an end",
            "content": {_MEDIA_TYPE: {"schema": {"type": "string"}, "example": example}},
        }
    }


def router(reader: StoreReader, broadcaster: Broadcaster) -> APIRouter:
    """The routes.

    Parameters
    ----------
    reader
        Access to the store, for past events.
    broadcaster
        Source of new messages.
    """
    routes = APIRouter(prefix="/v1", tags=["streams"])

    @routes.get(
        "/models/{model}/stream",
        summary="Live status of a model",
        response_class=Response,
        responses=_stream_response('event: status\ndata: {"status": "running", "points": 102200}\n\n')
        | problem_responses(_ERRORS),
    )
    async def stream(request: Request, model: ModelName, _: Annotated[NoQuery, Query()]) -> Response:
        """Messages: `now` (LiveStatus, every second), `sample` (PointSample), `snapshot` (HistoricalSnapshot), `job`.

        A client that falls behind is disconnected; what it missed is in `/history`.
        """
        return await _respond(broadcaster, request, model, lambda listener: _encoded(listener, lambda m: [m.encoded()]))

    @routes.get(
        "/models/{model}/events/stream",
        summary="Events of clusters, as they happen",
        response_class=Response,
        responses=_stream_response('id: 42.0\nevent: split\ndata: {"snapshot": 42, "kind": "split"}\n\n')
        | problem_responses(_ERRORS),
    )
    async def events(
        request: Request,
        model: ModelName,
        _: Annotated[NoQuery, Query()],
        last_event_id: Annotated[
            str | None, Header(description="Id of the last event received; the stream begins with the events after it")
        ] = None,
    ) -> Response:
        """Births, deaths, splits, merges, drifts, promotions and bursts of outliers: messages of schema ClusterEvent.

        The id of a message is the snapshot and the index of the event in it. With `Last-Event-ID` no event is lost that
        the store still has.
        """
        after = _parse_event_id(last_event_id)

        async def encode(listener: Listener) -> Parts:
            # The listener exists already, so no event is lost between the past ones and the new ones.
            sent = after
            for s in await _past_snapshots(reader, model, after) if after is not None else []:
                for place, data in _events(s):
                    if place > (after or (0, -1)):
                        yield data
                        sent = place

            def new(m: StreamMessage) -> list[bytes]:
                found = [] if m.snapshot is None else _events(m.snapshot)
                return [data for place, data in found if sent is None or place > sent]

            async with aclosing(_encoded(listener, new)) as parts:
                async for data in parts:
                    yield data

        return await _respond(broadcaster, request, model, encode)

    return routes


class _StreamResponse(Response):
    """Messages of a model until the client leaves, its token is revoked, or the broadcaster ends the stream.

    The framework's response would run two tasks in a group for it, and would leave generators to the garbage collector.

    Parameters
    ----------
    broadcaster, model
        Source of the messages.
    encode
        Server-sent events of the messages to a listener.
    release
        Releases the reservation of the stream.
    """

    media_type = _MEDIA_TYPE

    def __init__(
        self, broadcaster: Broadcaster, model: str, encode: Callable[[Listener], Parts], release: Callable[[], None]
    ) -> None:
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self._broadcaster, self._model, self._encode, self._release = broadcaster, model, encode, release

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async with self._broadcaster.listen(self._model) as listener:
                watcher = asyncio.create_task(_end_when_disconnected(listener, receive))
                try:
                    await self._send_messages(listener, send)
                finally:
                    watcher.cancel()
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._release()

    async def _send_messages(self, listener: Listener, send: Send) -> None:
        await send({"type": "http.response.body", "body": b": streamkm\n\n", "more_body": True})
        async with aclosing(self._encode(listener)) as parts:
            try:
                async for data in parts:
                    await send({"type": "http.response.body", "body": data, "more_body": True})
            except StreamkmError as e:
                log.warning("%s: a stream ends: %s", self._model, e)  # its client connects again, and sees the error


async def _end_when_disconnected(listener: Listener, receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    end(listener)


async def _respond(
    broadcaster: Broadcaster, request: Request, model: str, encode: Callable[[Listener], Parts]
) -> Response:
    # Before the response starts, so that it can be an error.
    release = await broadcaster.reserve(model, client_key(request))
    return _StreamResponse(broadcaster, model, encode, release)


async def _encoded(listener: Listener, encode: Callable[[StreamMessage], list[bytes]]) -> Parts:
    loop = asyncio.get_running_loop()
    silent_until = loop.time() + HEARTBEAT_SECONDS
    while True:
        try:
            async with asyncio.timeout_at(silent_until):
                message = await listener.get()
        except TimeoutError:
            data = [b": heartbeat\n\n"]
        else:
            if message is None:
                return
            data = encode(message)
        for part in data:
            yield part
        if data:  # a message may be nothing on this stream, and must not put the comment off
            silent_until = loop.time() + HEARTBEAT_SECONDS


def _parse_event_id(text: str | None) -> tuple[int, int] | None:
    if text is None or not text.strip():
        return None
    found = re.fullmatch(r"([0-9]{1,19})\.([0-9]{1,9})", text.strip())
    if found is None or int(found[1]) > MAX_ID:
        raise Problem(422, "invalid", "not the id of an event, such as 42.0", where="Last-Event-ID")
    return int(found[1]), int(found[2])


async def _past_snapshots(reader: StoreReader, model: str, after: tuple[int, int] | None) -> list[Snapshot]:
    """Snapshots with events from the one of `after` on, oldest first."""
    found: list[Snapshot] = []
    before: int | None = None
    for _ in range(MAX_PAGES):
        page = await reader.snapshots(model, before, PAGE_SIZE, eventful=True)
        found += page
        if len(page) < PAGE_SIZE or (after is not None and page[-1].id <= after[0]):
            break
        before = page[-1].id
    return [s for s in reversed(found) if (after is None or s.id >= after[0]) and serializers.in_charge(s)]


def _events(s: Snapshot) -> list[tuple[tuple[int, int], bytes]]:
    """The events of a snapshot: snapshot and index, and the server-sent event."""
    return [
        (
            (s.id, i),
            b"id: %b\nevent: %b\ndata: %b\n\n"
            % (event_id(s.id, i).encode(), event.kind.encode(), orjson.dumps(event_json(s, i))),
        )
        for i, event in enumerate(s.events)
    ]
