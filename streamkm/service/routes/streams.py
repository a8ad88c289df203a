"""``GET /v1/models/{m}/stream`` and ``/events/stream``: server-sent events (WHATWG HTML, section 9.2)."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from streamkm.service import serializers
from streamkm.service.auth import asker
from streamkm.service.broadcast import Hub, Listener, Message
from streamkm.service.json_points import MAX_ID
from streamkm.service.problems import Problem, documented
from streamkm.service.routes.models import ModelName, NoQuery
from streamkm.service.snapshot_cache import Reader
from streamkm.state import Snapshot
from streamkm.times import format_time

SILENCE = 15.0
"""Seconds after which a comment says that the stream is still there: proxies cut what is silent."""
PAGE, MOST_PAGES = 100, 10
"""Snapshots with events that are looked through for those after ``Last-Event-ID``."""
_ERRORS = (401, 404, 422, 500, 503)
_KIND = "text/event-stream"
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


def _streamed(example: str) -> dict[int | str, dict[str, Any]]:
    return {
        200: {
            "description": "Server-sent events, without an end",
            "content": {_KIND: {"schema": {"type": "string"}, "example": example}},
        }
    }


def router(reader: Reader, hub: Hub) -> APIRouter:
    """The routes.

    Parameters
    ----------
    reader
        Where events of the past come from.
    hub
        Where those of now come from.
    """
    routes = APIRouter(prefix="/v1", tags=["streams"])

    @routes.get(
        "/models/{model}/stream",
        summary="What goes on, as it happens",
        response_class=Response,
        responses=_streamed('event: now\ndata: {"status": "running", "points": 102200}\n\n') | documented(_ERRORS),
    )
    async def stream(request: Request, model: ModelName, _: Annotated[NoQuery, Query()]) -> Response:
        """Messages `now` (once a second), `sample`, `snapshot` and `job`; schemas Now, Sample, HistoryEntry and JobOut.

        A reader that does not keep up is let go; what it missed is in `/history`.
        """
        return await _answer(hub, request, model, lambda listener: _told(listener, lambda m: [m.encoded()]))

    @routes.get(
        "/models/{model}/events/stream",
        summary="Events of clusters, as they happen",
        response_class=Response,
        responses=_streamed('id: 42.0\nevent: split\ndata: {"snapshot": 42, "kind": "split"}\n\n')
        | documented(_ERRORS),
    )
    async def events(
        request: Request,
        model: ModelName,
        _: Annotated[NoQuery, Query()],
        last_event_id: Annotated[
            str | None, Header(description="Id of the last event that was read: those after it come first")
        ] = None,
    ) -> Response:
        """Births, deaths, splits, merges, drifts, promotions and bursts of outliers: messages of schema ClusterEvent.

        The id of a message is its snapshot and its place in it. With `Last-Event-ID` nothing is missed that is still
        kept.
        """
        after = _after(last_event_id)

        async def all_of(listener: Listener) -> AsyncIterator[bytes]:
            # The listener is there already, so nothing falls between what is asked for and what comes.
            done = after
            for s in await _missed(reader, model, after) if after is not None else []:
                for place, data in _events(s):
                    if place > (after or (0, -1)):
                        yield data
                        done = place

            def new(m: Message) -> list[bytes]:
                found = [] if m.snapshot is None else _events(m.snapshot)
                return [data for place, data in found if done is None or place > done]

            async for data in _told(listener, new):
                yield data

        return await _answer(hub, request, model, all_of)

    return routes


class _Held(StreamingResponse):
    """One that gives back its place when it is over, also if nobody was there any more to read its first byte."""

    def __init__(self, body: AsyncIterator[bytes], give_back: Callable[[], None]) -> None:
        super().__init__(body, media_type=_KIND, headers=_HEADERS)
        self._give_back = give_back

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._give_back()


async def _answer(hub: Hub, request: Request, model: str, told: Callable[[Listener], AsyncIterator[bytes]]) -> Response:
    give_back = await hub.admit(model, asker(request))  # here, where it can still be an error

    async def body() -> AsyncIterator[bytes]:
        async with hub.listen(model) as listener:
            yield b": streamkm\n\n"
            async for data in told(listener):
                yield data

    return _Held(body(), give_back)


async def _told(listener: Listener, made: Callable[[Message], list[bytes]]) -> AsyncIterator[bytes]:
    while True:
        try:
            async with asyncio.timeout(SILENCE):
                message = await listener.get()
        except TimeoutError:
            yield b": still here\n\n"
            continue
        if message is None:
            return
        for data in made(message):
            yield data


def _after(text: str | None) -> tuple[int, int] | None:
    if text is None or not text.strip():
        return None
    found = re.fullmatch(r"([0-9]{1,19})\.([0-9]{1,9})", text.strip())
    if found is None or int(found[1]) > MAX_ID:
        raise Problem(422, "invalid", "not the id of an event, such as 42.0", where="Last-Event-ID")
    return int(found[1]), int(found[2])


async def _missed(reader: Reader, model: str, after: tuple[int, int] | None) -> list[Snapshot]:
    """Snapshots with events from that of `after` on, the oldest first."""
    found: list[Snapshot] = []
    before: int | None = None
    for _ in range(MOST_PAGES):
        page = await reader.snapshots(model, before, PAGE, eventful=True)
        found += page
        if len(page) < PAGE or (after is not None and page[-1].id <= after[0]):
            break
        before = page[-1].id
    return [s for s in reversed(found) if (after is None or s.id >= after[0]) and serializers.in_charge(s)]


def _events(s: Snapshot) -> list[tuple[tuple[int, int], bytes]]:
    return [
        (
            (s.id, i),
            b"id: %d.%d\nevent: %b\ndata: %b\n\n"
            % (
                s.id,
                i,
                e.kind.encode(),
                orjson.dumps({"snapshot": s.id, "created_at": format_time(s.created_at), **e.to_json()}),
            ),
        )
        for i, e in enumerate(s.events)
    ]
