"""Bodies of requests: of a known kind and a bounded size, in a bounded time, and not too many large ones at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Request

from streamkm.service.problems import Problem

BODY_SECONDS = 30
"""How long a body may take to arrive."""
STALL_SECONDS = 10
"""How long nothing of it may come."""
SMALL_BODY = 1 << 16
"""Bytes that any number of clients may have on their way at a time; of larger bodies only `LARGE_AT_A_TIME`."""
LARGE_AT_A_TIME = 4
TABLES_AT_A_TIME = 2
"""The same of tables, which may be much larger."""
JSON, CSV, ARROW = "application/json", "text/csv", "application/vnd.apache.arrow.stream"
BINARY = "application/octet-stream"
"""JSON with the bytes of tensors behind it."""


class Bodies:
    """Reads them.

    Parameters
    ----------
    most
        Bytes of JSON; larger bodies get 413.
    most_of_a_table
        The same of CSV and Arrow.
    """

    def __init__(self, most: int, most_of_a_table: int) -> None:
        self._most = {JSON: most, BINARY: most, CSV: most_of_a_table, ARROW: most_of_a_table}
        large, tables = asyncio.Semaphore(LARGE_AT_A_TIME), asyncio.Semaphore(TABLES_AT_A_TIME)
        self._large = {JSON: large, BINARY: large, CSV: tables, ARROW: tables}

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """Give the body, which is JSON; until the end of the context it counts as one that is worked on.

        Raises
        ------
        Problem
            408, 413 or 415.
        """
        async with self.read_as(request, (JSON,)) as (_, body):
            yield body

    @asynccontextmanager
    async def read_as(self, request: Request, kinds: tuple[str, ...]) -> AsyncIterator[tuple[str, bytes]]:
        """Give the kind, one of `kinds`, and the body; until the end of the context it is worked on.

        Raises
        ------
        Problem
            408, 413 or 415.
        """
        kind = _kind(request, kinds)
        most = self._most[kind]
        announced = _announced(request)
        if announced > most:
            raise _too_large(most)
        if 0 <= announced <= SMALL_BODY:
            yield kind, await _read(request, SMALL_BODY)
            return
        async with self._large[kind]:
            yield kind, await _read(request, most)


async def _read(request: Request, limit: int) -> bytes:
    parts, size = [], 0
    clock = asyncio.get_running_loop().time
    end = clock() + BODY_SECONDS
    try:
        async with asyncio.timeout(min(BODY_SECONDS, STALL_SECONDS)) as wait:
            async for part in request.stream():
                wait.reschedule(min(end, clock() + STALL_SECONDS))
                parts.append(part)
                size += len(part)
                if size > limit:
                    raise _too_large(limit)
    except TimeoutError as e:
        told = f"did not arrive within {BODY_SECONDS} s, or nothing of it in {STALL_SECONDS} s"
        raise Problem(408, "too-slow", told, where="body") from e
    return b"".join(parts)


def _announced(request: Request) -> int:
    """Length of the body; -1 if the request does not say."""
    text = request.headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdigit() else -1


def _kind(request: Request, kinds: tuple[str, ...]) -> str:
    given = request.headers.get("content-type", JSON)
    kind = given.partition(";")[0].strip().lower()
    if kind.endswith("+json"):
        kind = JSON
    if kind not in kinds:
        raise Problem(
            415,
            "unsupported-media-type",
            f"{given[:100]} is not JSON" if kinds == (JSON,) else f"{given[:100]} is not read here",
            where="Content-Type",
            hint=f"Send {' or '.join(kinds)}",
        )
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Problem(
            415,
            "unsupported-media-type",
            "compressed bodies are not read",
            where="Content-Encoding",
            hint="Send it plain",
        )
    return kind


def _too_large(limit: int) -> Problem:
    return Problem(413, "too-large", f"more than {limit} bytes", where="body", hint="Send fewer points in one request")
