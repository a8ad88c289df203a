"""What surrounds every route: who may ask, and how often and how long it took."""

from __future__ import annotations

import ipaddress
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from streamkm import metrics as names
from streamkm.metrics import Metrics
from streamkm.service.errors import Problem
from streamkm.values import Secret

OPEN = ("/livez", "/readyz")
"""Paths that need no token: what starts and stops processes has none."""
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
                message["headers"] = [*message["headers"], (b"x-content-type-options", b"nosniff")]
            await send(message)

        try:
            await self.app(scope, receive, watch)
        finally:
            method = scope["method"] if scope["method"] in _METHODS else "other"
            route = getattr(scope.get("route"), "path", "none")
            self.metrics.add(names.HTTP_REQUESTS, method=method, route=route, status=str(status))
            self.metrics.observe(names.HTTP_SECONDS, time.perf_counter() - started, method=method, route=route)


class RequireLocalHost:
    """Lets in only who asks for this machine by a name of loopback.

    A page of another site whose name is made to point here (DNS rebinding) asks for that name: a browser would let it
    read the answer, as it comes from the page's own site.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan" or scope["path"] in OPEN or _is_local(host := _header(scope, b"host")):
            await self.app(scope, receive, send)
            return
        problem = Problem(
            421,
            "misdirected",
            f"{host.decode('latin-1')[:100]} is not this machine",
            where="Host",
            hint="Ask 127.0.0.1 or localhost, or start the service with a token",
        )
        await problem.response(scope["path"])(scope, receive, send)


def _is_local(host: bytes) -> bool:
    """Whether a Host header, with or without a port, is a name of loopback."""
    name = host[1 : host.find(b"]")] if host.startswith(b"[") else host.partition(b":")[0]
    text = name.decode("latin-1").lower().rstrip(".")
    if text == "localhost" or text.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(text).is_loopback
    except ValueError:
        return False


def _header(scope: Scope, name: bytes) -> bytes:
    return next((value for key, value in scope["headers"] if key == name), b"")


class RequireToken:
    """Lets in only who sends the token, but for `OPEN`."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app = app
        self.token = Secret(token)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan" or scope["path"] in OPEN or self._knows(scope):
            await self.app(scope, receive, send)
            return
        problem = Problem(
            401,
            "unauthorized",
            "this service needs a token",
            hint="Send it as: Authorization: Bearer TOKEN",
            headers={"WWW-Authenticate": "Bearer"},
        )
        await problem.response(scope["path"])(scope, receive, send)

    def _knows(self, scope: Scope) -> bool:
        return self.token.is_borne_by(_header(scope, b"authorization"))
