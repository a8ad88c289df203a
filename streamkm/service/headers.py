"""Headers that every answer has, so that no page of another site can make anything of one."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from streamkm.answers import completed


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
