"""Middleware around every route: access checks, rate limits, metrics, HEAD, default headers and tracing."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from streamkm import metrics as names
from streamkm import tracing
from streamkm.errors import StreamkmError
from streamkm.http.connection import MAX_HOST_BYTES
from streamkm.http.responses import with_default_headers
from streamkm.metrics import Metrics
from streamkm.service.auth import (
    ANONYMOUS,
    ANONYMOUS_READER,
    ENVIRONMENT_GRANT,
    GRANT_KEY,
    PROBE_PATHS,
    SAFE_METHODS,
    TOKEN_PREFIX,
    Grant,
    TokenCache,
    authorize,
    bearer_token,
    unauthorized,
)
from streamkm.service.limits import RateLimiter, client_network
from streamkm.service.problems import Problem, from_error
from streamkm.values import is_loopback

MAX_WRONG_TOKENS = 10
"""Wrong tokens per second and network; further ones get 429."""
MAX_QUERY_BYTES, MAX_QUERY_PARAMETERS = 4096, 100
MAX_PATH_CHARS = 1000
"""Limits of a URL: parsing a longer one would delay other requests."""
MAX_TOKEN_BYTES = 1024
"""Longer tokens are wrong, and are not hashed."""
GRANT_CHECK_SECONDS = 1.0
"""Minimum seconds between two checks that the token of an open stream is still valid."""
_TOKEN_PREFIX = TOKEN_PREFIX.encode()
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_TRACE_HEADERS = (b"traceparent", b"tracestate")
_SERVER_ERROR = 500


class MetricsMiddleware:
    """Counts and times requests by route, not by path: clients can make up any number of paths."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 500

        async def send_observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_observed)
        finally:
            method = scope["method"] if scope["method"] in _METHODS else "other"
            route = getattr(scope.get("route"), "path", "none")
            self.metrics.add(names.HTTP_REQUESTS, method=method, route=route, status=str(status))
            self.metrics.observe(names.HTTP_SECONDS, time.perf_counter() - started, method=method, route=route)


class HeadMiddleware:
    """Answers HEAD like GET without the body; a stream ends before its first byte."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return
        done = False

        async def send_head(message: Message) -> None:
            nonlocal done
            scope["method"] = "HEAD"  # the outer middleware counts and logs it
            if message["type"] == "http.response.start":
                await send(message)
                done = True
                await send({"type": "http.response.body", "body": b"", "more_body": False})

        async def receive_until_done() -> Message:
            return {"type": "http.disconnect"} if done else await receive()

        scope["method"] = "GET"
        try:
            await self.app(scope, receive_until_done, send_head)
        finally:
            scope["method"] = "HEAD"


class AccessMiddleware:
    """Admits a request or refuses it, by Host header, origin, token, rate limit and rights.

    Reads the headers once, and looks tokens up in memory. A check that fails with an error refuses the request.

    Parameters
    ----------
    app
        The application.
    tokens
        The valid tokens.
    guarded
        Whether reading needs a token too.
    local_only
        Admit only requests whose Host is a loopback name. Against DNS rebinding: a page of another site whose name
        resolves to this machine sends that name, and the browser would let it read the response.
    rate
        Requests per second for each token, or network without one, with bursts of twice as many; 0 for no limit.
    route_exists
        Whether a route matches the scope of a request.
    clock
        Seconds of a monotonic clock.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        tokens: TokenCache,
        guarded: bool,
        local_only: bool,
        rate: float,
        route_exists: Callable[[Scope], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.app = app
        self.tokens = tokens
        self.local_only = local_only
        self.clock = clock
        self.route_exists = route_exists
        self._anonymous = ANONYMOUS if guarded else ANONYMOUS_READER
        self._requests = RateLimiter(rate, 2 * rate)
        self._wrong_tokens = RateLimiter(MAX_WRONG_TOKENS, MAX_WRONG_TOKENS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})  # the service has no WebSockets
            return
        try:
            grant = scope[GRANT_KEY] = await self._admit(scope)
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
            await self.app(scope, receive, self._send_while_valid(grant, send))
        except _RevokedError:
            return
        except BaseExceptionGroup as e:
            if e.split(_RevokedError)[1] is not None:
                raise

    async def _admit(self, scope: Scope) -> Grant:
        if len(scope["path"]) > MAX_PATH_CHARS:
            message = f"more than {MAX_PATH_CHARS} characters"
            raise Problem(414, "too-large", message, where="path", hint="/openapi.json lists all paths")
        query = scope.get("query_string", b"")
        if len(query) > MAX_QUERY_BYTES or query.count(b"&") >= MAX_QUERY_PARAMETERS:
            raise Problem(
                414,
                "too-large",
                f"more than {MAX_QUERY_BYTES} bytes or {MAX_QUERY_PARAMETERS} parameters",
                where="query",
                hint="Request less at a time",
            )
        if scope["path"] in PROBE_PATHS:
            return ANONYMOUS
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
                hint="Use 127.0.0.1 or localhost, or start the service with a token",
            )
        method, path = scope["method"], scope["path"]
        if (site or origin) and _is_cross_site(method, host, origin, site, mode):
            raise Problem(
                403,
                "cross-site",
                "a page of another site sent this request",
                where="Sec-Fetch-Site" if site else "Origin",
                hint="Send it from a program, or from the service's own page",
            )
        now = self.clock()
        client = scope.get("client")
        network = client_network(client[0]) if client else ""
        token = bearer_token(authorization) if authorization else None
        grant = self._anonymous if token is None else await self._authenticate(token, network, now)
        wait = self._requests.take(network if grant.name is None else f"token {grant.name}", now)
        if wait:
            raise _too_many("too many requests", wait)
        authorize(grant, method, path, lambda: self.route_exists(scope))
        return grant

    async def _authenticate(self, token: bytes, network: str, now: float) -> Grant:
        """The grant of a token.

        After too many wrong tokens, a network cannot learn whether the next guess of the environment's token is right:
        a person chose that one, and it might be guessed. Stored tokens cannot be guessed, so they are still admitted.
        A token counts as wrong until it is found.

        Raises
        ------
        Problem
            401: an unknown token. 429: too many wrong tokens.
        """
        if len(token) > MAX_TOKEN_BYTES:
            token = b""
        wait = self._wrong_tokens.retry_after(network, now)
        if not wait and self.tokens.is_environment_token(token):
            return ENVIRONMENT_GRANT
        stored = token.startswith(_TOKEN_PREFIX)
        known = stored and self.tokens.knows(token)
        if not known:
            # Before the store is waited for: else guesses that are sent in parallel, or while the store is unavailable,
            # would be compared with the environment's token before any of them is counted.
            self._wrong_tokens.take(network, now)
        grant = await self.tokens.find(token) if stored else None
        if grant is not None:
            if not known and not wait:
                self._wrong_tokens.give_back(network)
            return grant
        if wait:
            raise _too_many("too many wrong tokens", wait)
        raise unauthorized("this token is unknown")

    def _send_while_valid(self, grant: Grant, send: Send) -> Send:
        """Wrap `send` to end a stream when its token is no longer valid."""
        checked = self.clock()

        async def send_checked(message: Message) -> None:
            nonlocal checked
            if message.get("more_body") and self.clock() - checked >= GRANT_CHECK_SECONDS:
                checked = self.clock()
                if not await self._is_valid(grant):
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
                    raise _RevokedError
            await send(message)

        return send_checked

    async def _is_valid(self, grant: Grant) -> bool:
        try:
            return await self.tokens.is_valid(grant)
        except StreamkmError:
            return False  # the store is unavailable: the client reconnects, and gets a 503


class _RevokedError(Exception):
    """The token of an open stream is no longer valid."""


def _too_many(message: str, wait: float) -> Problem:
    return Problem(
        429,
        "too-many",
        message,
        hint="Send fewer requests, or more points in each",
        headers={"Retry-After": str(max(1, math.ceil(wait)))},
    )


def _is_cross_site(method: str, host: bytes, origin: bytes, site: bytes, mode: bytes) -> bool:
    """Whether a page of another site sent the request, and not a person who followed a link.

    Browsers set Sec-Fetch-Site, which pages cannot change; older browsers send the origin of the page.
    """
    if site:
        if site in {b"same-origin", b"none"}:
            return False
        return method not in SAFE_METHODS or mode != b"navigate"
    return method not in SAFE_METHODS and origin.partition(b"://")[2].lower() != host.lower()


def _is_local(host: bytes) -> bool:
    """Whether a Host header, with or without a port, is a loopback name."""
    return len(host) <= MAX_HOST_BYTES and _names_loopback(host)  # keys of its cache must be bounded


@functools.lru_cache(256)
def _names_loopback(host: bytes) -> bool:
    name = host[1 : host.find(b"]")] if host.startswith(b"[") else host.partition(b":")[0]
    text = name.decode("latin-1").lower().rstrip(".")
    return text.endswith(".localhost") or is_loopback(text)


REQUEST_HEADERS = frozenset(
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
"""Request headers that the service reads. The framework would copy all headers, and parse cookies."""


class HeadersMiddleware:
    """Adds the default headers to each response that does not set them."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_defaults(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = with_default_headers(message["headers"])
            await send(message)

        await self.app(scope, receive, send_with_defaults)


class TracingMiddleware:
    """Makes an OpenTelemetry span of each request, if tracing is enabled.

    Parameters
    ----------
    app
        The application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or not tracing.enabled():
            await self.app(scope, receive, send)
            return
        headers = {n.decode(): value.decode("latin-1") for n, value in scope["headers"] if n in _TRACE_HEADERS}
        method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
        with tracing.server_span(method, headers, http_request_method=method) as span:

            async def send_traced(message: Message) -> None:
                if message["type"] == "http.response.start":
                    status = message["status"]
                    span.set_attribute("http.response.status_code", status)
                    if status >= _SERVER_ERROR:
                        span.set_attribute("error.type", str(status))
                await send(message)

            try:
                await self.app(scope, receive, send_traced)
            finally:
                route = getattr(scope.get("route"), "path", None)
                if route is not None:
                    span.update_name(f"{method} {route}")
                    span.set_attribute("http.route", route)
