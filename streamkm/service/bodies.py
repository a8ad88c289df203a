"""Bodies of requests: JSON, of a bounded size, in a bounded time, and not too many large ones at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Request

from streamkm.service.errors import Problem

BODY_SECONDS = 30
"""How long a body may take to arrive."""
SMALL_BODY = 1 << 16
"""Bytes that any number of clients may have on their way at a time; of larger bodies only `LARGE_AT_A_TIME`."""
LARGE_AT_A_TIME = 4


class Bodies:
    """Reads them.

    Parameters
    ----------
    most
        Bytes; larger ones get 413.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._large = asyncio.Semaphore(LARGE_AT_A_TIME)

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """Give the body; until the end of the context it counts as one that is worked on.

        Raises
        ------
        Problem
            408, 413 or 415.
        """
        _check_media_type(request)
        announced = _announced(request)
        if announced > self._most:
            raise _too_large(self._most)
        if 0 <= announced <= SMALL_BODY:
            yield await _read(request, SMALL_BODY)
            return
        async with self._large:
            yield await _read(request, self._most)


async def _read(request: Request, limit: int) -> bytes:
    parts, size = [], 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                parts.append(part)
                size += len(part)
                if size > limit:
                    raise _too_large(limit)
    except TimeoutError as e:
        raise Problem(408, "too-slow", f"did not arrive within {BODY_SECONDS} s", where="body") from e
    return b"".join(parts)


def _announced(request: Request) -> int:
    """Length of the body; -1 if the request does not say."""
    text = request.headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdigit() else -1


def _check_media_type(request: Request) -> None:
    given = request.headers.get("content-type", "application/json")
    kind = given.partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise Problem(
            415,
            "unsupported-media-type",
            f"{given[:100]} is not JSON",
            where="Content-Type",
            hint="Send application/json",
        )
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Problem(
            415,
            "unsupported-media-type",
            "compressed bodies are not read",
            where="Content-Encoding",
            hint="Send it plain",
        )


def _too_large(limit: int) -> Problem:
    return Problem(413, "too-large", f"more than {limit} bytes", where="body", hint="Send fewer points in one request")
