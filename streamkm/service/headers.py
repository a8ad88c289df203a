"""Headers that every answer has, so that no page of another site can make anything of one."""

from __future__ import annotations

from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = b"default-src 'none'; frame-ancestors 'none'"
"""Of answers of the API, which load nothing. The page has its own."""
_ALWAYS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
)
_POLICY = (b"content-security-policy", POLICY)
_NO_STORE = (b"cache-control", b"no-store")


def completed(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The headers of an answer, with those that every answer has."""
    has_policy = has_cache = False
    result = list(headers)
    for name, _ in result:
        if name == b"content-security-policy":
            has_policy = True
        elif name == b"cache-control":
            has_cache = True
    result += _ALWAYS
    if not has_policy:
        result.append(_POLICY)
    if not has_cache:
        result.append(_NO_STORE)
    return result


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
