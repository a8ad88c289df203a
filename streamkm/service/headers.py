"""Headers: those of requests that are read, and those that every answer has, so that no other site can use one."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from streamkm.answers import completed

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
