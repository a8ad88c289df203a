"""Requests as spans: named by route, never by path, which anybody can make up."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from streamkm import tracing

_HEADERS = (b"traceparent", b"tracestate")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
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
        method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
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
