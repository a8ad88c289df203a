"""What surrounds every route: who may ask, how often, how long it took."""
# MERGED """Headers: those of requests that are read, and those that every answer has, so that no other site can use one."""
# MERGED """Requests as spans: named by route, never by path, which anybody can make up."""

from __future__ import annotations

import functools
import ipaddress
import math
import time
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from streamkm import metrics as names
from streamkm import tracing
from streamkm.errors import StreamkmError
from streamkm.http.responses import completed
from streamkm.metrics import Metrics
from streamkm.service.auth import (
    KEY,
    NOBODY,
    OWNER,
    PREFIX,
    PROBES,
    READER,
    SAFE,
    Grant,
    Tokens,
    bearer,
    judge,
    unauthorized,
)
from streamkm.service.limits import Buckets, network
from streamkm.service.problems import Problem, from_error

WRONG_TOKENS = 10
"""Wrong tokens that an address may send in a second."""
QUERY_BYTES, QUERY_PARAMETERS = 4096, 100
PATH_CHARACTERS = 1000
"""What an address may hold; to take more apart would hold others up."""
TOKEN_BYTES = 1024
"""Longer ones are wrong, and not worth a digest."""
_PREFIX = PREFIX.encode()
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


class Observe:
    """Counts and times requests by route, never by path, which anybody can make up."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 500

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watch)
        finally:
            method = scope["method"] if scope["method"] in _METHODS else "other"
            route = getattr(scope.get("route"), "path", "none")
            self.metrics.add(names.HTTP_REQUESTS, method=method, route=route, status=str(status))
            self.metrics.observe(names.HTTP_SECONDS, time.perf_counter() - started, method=method, route=route)


class Heads:
    """Answers HEAD as GET is answered, without the body; a stream ends where it would begin."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return
        done = False

        async def head(message: Message) -> None:
            nonlocal done
            scope["method"] = "HEAD"  # for those around, who count and log it
            if message["type"] == "http.response.start":
                await send(message)
                done = True
                await send({"type": "http.response.body", "body": b"", "more_body": False})

        async def gone() -> Message:
            return {"type": "http.disconnect"} if done else await receive()

        scope["method"] = "GET"
        try:
            await self.app(scope, gone, head)
        finally:
            scope["method"] = "HEAD"


class Guard:
    """Lets a request in, or says why not: where it was sent, from which site, with which token, how often, for what.

    One pass over the headers; a token of the store is looked up in memory. A check that fails in itself refuses.

    Parameters
    ----------
    app
        What is guarded.
    tokens
        The tokens there are.
    guarded
        Reading needs a token too.
    local_only
        Let in only who asks for this machine by a name of loopback. A page of another site whose name is made to point
        here (DNS rebinding) asks for that name: a browser would let it read the answer, as of the page's own site.
    rate
        Requests a second for each token, or address without one; twice as many at once; 0: no limit.
    is_there
        Whether a route takes the request of a scope.
    clock
        Seconds of a clock that does not go back.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        tokens: Tokens,
        guarded: bool,
        local_only: bool,
        rate: float,
        is_there: Callable[[Scope], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.app = app
        self.tokens = tokens
        self.local_only = local_only
        self.clock = clock
        self.is_there = is_there
        self._without = NOBODY if guarded else READER
        self._asked = Buckets(rate, 2 * rate)
        self._wrong = Buckets(WRONG_TOKENS, WRONG_TOKENS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})  # there is none here
            return
        try:
            grant = scope[KEY] = await self._admit(scope)
        except Problem as e:
            await e.response(scope["path"])(scope, receive, send)
            return
        except StreamkmError as e:
            await from_error(e).response(scope["path"])(scope, receive, send)
            return
        if not grant.digest:
            await self.app(scope, receive, send)
            return
        # A stream must not outlive the token that it was opened with.
        try:
            await self.app(scope, receive, self._watched(grant, send))
        except _EndedError:
            return
        except BaseExceptionGroup as e:
            if e.split(_EndedError)[1] is not None:
                raise

    async def _admit(self, scope: Scope) -> Grant:
        if len(scope["path"]) > PATH_CHARACTERS:
            told = f"more than {PATH_CHARACTERS} characters"
            raise Problem(414, "too-large", told, where="path", hint="/openapi.json lists what there is")
        query = scope.get("query_string", b"")
        if len(query) > QUERY_BYTES or query.count(b"&") >= QUERY_PARAMETERS:
            raise Problem(
                414,
                "too-large",
                f"more than {QUERY_BYTES} bytes or {QUERY_PARAMETERS} parameters",
                where="query",
                hint="Ask for less at a time",
            )
        if scope["path"] in PROBES:
            return NOBODY
        host = authorization = origin = b""
        site = mode = b""
        for name, value in scope["headers"]:
            if name == b"host":
                host = value
            elif name == b"authorization":
                authorization = value
            elif name == b"origin":
                origin = value
            elif name == b"sec-fetch-site":
                site = value
            elif name == b"sec-fetch-mode":
                mode = value
        if self.local_only and not _is_local(host):
            raise Problem(
                421,
                "misdirected",
                f"{host.decode('latin-1')[:100]} is not this machine",
                where="Host",
                hint="Ask 127.0.0.1 or localhost, or start the service with a token",
            )
        method, path = scope["method"], scope["path"]
        if (site or origin) and _from_elsewhere(method, host, origin, site, mode):
            raise Problem(
                403,
                "cross-site",
                "a page of another site asks",
                where="Sec-Fetch-Site" if site else "Origin",
                hint="Ask from a program, or from the service's own page",
            )
        now = self.clock()
        client = scope.get("client")
        address = network(client[0]) if client else ""
        token = bearer(authorization) if authorization else None
        grant = self._without if token is None else await self._known(token, address, now)
        wait = self._asked.take(address if grant.name is None else f"token {grant.name}", now)
        if wait:
            raise _too_many("too many requests", wait)
        judge(grant, method, path, lambda: self.is_there(scope))
        return grant

    async def _known(self, token: bytes, address: str, now: float) -> Grant:
        """What a token gives.

        Who sent too many wrong ones does not even learn whether the next one is right: the token of the environment was
        chosen by a person, and might be guessed. Those of the store cannot be, so theirs go on to be let in from there.
        """
        if len(token) > TOKEN_BYTES:
            token = b""
        wait = self._wrong.wait(address, now)
        if not wait and self.tokens.is_owner(token):
            return OWNER
        grant = await self.tokens.find(token) if token.startswith(_PREFIX) else None
        if grant is not None:
            return grant
        if wait:
            raise _too_many("too many wrong tokens", wait)
        self._wrong.take(address, now)
        raise unauthorized("this token is not known here")

    def _watched(self, grant: Grant, send: Send) -> Send:
        checked = self.clock()

        async def watch(message: Message) -> None:
            nonlocal checked
            if message.get("more_body") and self.clock() - checked >= 1.0:
                checked = self.clock()
                if not await self._holds(grant):
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
                    raise _EndedError
            await send(message)

        return watch

    async def _holds(self, grant: Grant) -> bool:
        try:
            return await self.tokens.holds(grant)
        except StreamkmError:
            return False  # the store is away: the listener comes back, and gets its 503


class _EndedError(Exception):
    """The token of a stream is gone."""


def _too_many(message: str, wait: float) -> Problem:
    return Problem(
        429,
        "too-many",
        message,
        hint="Ask more slowly, or more points at a time",
        headers={"Retry-After": str(max(1, math.ceil(wait)))},
    )


def _from_elsewhere(method: str, host: bytes, origin: bytes, site: bytes, mode: bytes) -> bool:
    """Whether a page of another site asks, and not for somebody who followed a link.

    Browsers say so by Sec-Fetch-Site, which no page can change; older ones at least name the page's origin.
    """
    if site:
        if site in {b"same-origin", b"none"}:
            return False
        return method not in SAFE or mode != b"navigate"
    return method not in SAFE and origin.partition(b"://")[2].lower() != host.lower()


def _is_local(host: bytes) -> bool:
    """Whether a Host header, with or without a port, is a name of loopback."""
    return len(host) <= _LONGEST_HOST and _is_loopback(host)


_LONGEST_HOST = 300
"""Bytes of the longest name there can be, with a port; what is remembered must be bounded."""


@functools.lru_cache(256)
def _is_loopback(host: bytes) -> bool:
    name = host[1 : host.find(b"]")] if host.startswith(b"[") else host.partition(b":")[0]
    text = name.decode("latin-1").lower().rstrip(".")
    if text == "localhost" or text.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(text).is_loopback
    except ValueError:
        return False


READ = frozenset(
    (
        b"accept",
        b"accept-encoding",
        b"authorization",
        b"content-encoding",
        b"content-length",
        b"content-type",
        b"host",
        b"if-none-match",
        b"inference-header-content-length",
        b"last-event-id",
        b"origin",
        b"sec-fetch-mode",
        b"sec-fetch-site",
        b"traceparent",
        b"tracestate",
        b"x-forwarded-for",
        b"x-forwarded-proto",
    )
)
"""Of a request. Others never reach the application: its framework would copy each header, and take cookies apart."""


class Headers:
    """Gives each answer the headers it has not."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def complete(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = completed(message["headers"])
            await send(message)

        await self.app(scope, receive, complete)


_HEADERS = (b"traceparent", b"tracestate")
_KNOWN_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_SERVER_ERROR = 500


class Trace:
    """Makes a span of each request, where somebody asked for traces.

    Parameters
    ----------
    app
        What answers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or not tracing.enabled():
            await self.app(scope, receive, send)
            return
        headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"] if name in _HEADERS}
        method = scope["method"] if scope["method"] in _KNOWN_METHODS else "_OTHER"
        with tracing.server_span(method, headers, http_request_method=method) as span:

            async def watch(message: Message) -> None:
                if message["type"] == "http.response.start":
                    status = message["status"]
                    span.set_attribute("http.response.status_code", status)
                    if status >= _SERVER_ERROR:
                        span.set_attribute("error.type", str(status))
                await send(message)

            try:
                await self.app(scope, receive, watch)
            finally:
                route = getattr(scope.get("route"), "path", None)
                if route is not None:
                    span.update_name(f"{method} {route}")
                    span.set_attribute("http.route", route)
