"""Reads request bodies: checks the media type, and bounds size, time and the number of large bodies in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Request

from streamkm.service.problems import Problem

BODY_SECONDS = 30
"""Seconds within which a body must arrive."""
STALL_SECONDS = 10
"""Longest time in seconds between two parts of a body."""
SMALL_BODY_BYTES = 1 << 16
"""Bodies up to this size are read without a limit on their number."""
MAX_LARGE_BODIES = 4
"""Larger JSON bodies that are in memory at a time."""
MAX_TABLE_BODIES = 2
"""CSV and Arrow bodies beyond `SMALL_BODY_BYTES` that are in memory at a time; they may be much larger than JSON."""
JSON, CSV, ARROW = "application/json", "text/csv", "application/vnd.apache.arrow.stream"
BINARY = "application/octet-stream"
"""JSON followed by the bytes of tensors."""


class BodyReader:
    """Reads bodies within limits that all requests share.

    Parameters
    ----------
    max_bytes
        Largest JSON body; larger ones get 413.
    max_table_bytes
        Largest CSV or Arrow body.
    """

    def __init__(self, max_bytes: int, max_table_bytes: int) -> None:
        self._limits = {JSON: max_bytes, BINARY: max_bytes, CSV: max_table_bytes, ARROW: max_table_bytes}
        large, tables = asyncio.Semaphore(MAX_LARGE_BODIES), asyncio.Semaphore(MAX_TABLE_BODIES)
        self._large = {JSON: large, BINARY: large, CSV: tables, ARROW: tables}

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """Read a JSON body; it counts as in memory until the context ends.

        Raises
        ------
        Problem
            408, 413 or 415.
        """
        async with self.read_as(request, (JSON,)) as (_, parts):
            yield b"".join(parts)

    @asynccontextmanager
    async def read_as(self, request: Request, accepted: tuple[str, ...]) -> AsyncIterator[tuple[str, list[bytes]]]:
        """Read a body of one of the accepted media types; it counts as in memory until the context ends.

        Yields
        ------
        Media type, and the parts of the body, to be joined in a thread if they are long.

        Raises
        ------
        Problem
            408, 413 or 415.
        """
        media_type = _media_type(request, accepted)
        limit = self._limits[media_type]
        length = _content_length(request)
        if length > limit:
            raise _too_large(limit)
        if 0 <= length <= SMALL_BODY_BYTES:
            yield media_type, await _read(request, SMALL_BODY_BYTES)
            return
        async with self._large[media_type]:
            yield media_type, await _read(request, limit)


async def _read(request: Request, limit: int) -> list[bytes]:
    parts: list[bytes] = []
    size = 0
    clock = asyncio.get_running_loop().time
    end = clock() + BODY_SECONDS
    try:
        async with asyncio.timeout(min(BODY_SECONDS, STALL_SECONDS)) as timeout:
            async for part in request.stream():
                timeout.reschedule(min(end, clock() + STALL_SECONDS))
                parts.append(part)
                size += len(part)
                if size > limit:
                    raise _too_large(limit)
    except TimeoutError as e:
        message = f"did not arrive within {BODY_SECONDS} s, or nothing of it in {STALL_SECONDS} s"
        raise Problem(408, "too-slow", message, where="body") from e
    return parts


def _content_length(request: Request) -> int:
    """Content-Length of the request, -1 if it has none."""
    text = request.headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdigit() else -1


def _media_type(request: Request, accepted: tuple[str, ...]) -> str:
    header = request.headers.get("content-type", JSON)
    media_type = header.partition(";")[0].strip().lower()
    if media_type.endswith("+json"):
        media_type = JSON
    if media_type not in accepted:
        raise Problem(
            415,
            "unsupported-media-type",
            f"{header[:100]} is not JSON" if accepted == (JSON,) else f"{header[:100]} is not accepted here",
            where="Content-Type",
            hint=f"Send {' or '.join(accepted)}",
        )
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Problem(
            415,
            "unsupported-media-type",
            "compressed bodies are not accepted",
            where="Content-Encoding",
            hint="Send it without compression",
        )
    return media_type


def _too_large(limit: int) -> Problem:
    return Problem(413, "too-large", f"more than {limit} bytes", where="body", hint="Send fewer points in one request")
