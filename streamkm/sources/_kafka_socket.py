"""Larger reads from the broker's socket.

kafka-python's input thread reads 4 KB at a time, and has to win the interpreter's lock back after each (measured on a
fetch of 2 MB: a fifth of all CPU time, and up to half of the wall time beside a busy main thread). Private like
`_kafka_batches`, and used with the same versions only.
"""

from __future__ import annotations

import functools
from typing import Any

from kafka.errors import KafkaConnectionError  # type: ignore[import-untyped]
from kafka.net.transport import KafkaTCPTransport  # type: ignore[import-untyped]

_READ_BYTES = 1 << 20
_ROUND_BYTES = 8 << 20
"""After so much the other connections of the thread get their turn."""


def widen(client: Any) -> None:
    """Make the client's future connections read in large pieces; encrypted ones stay as they are."""
    manager = client._manager  # noqa: SLF001
    build = manager._build_transport  # noqa: SLF001

    async def build_wide(*args: Any, **kwargs: Any) -> Any:
        transport = await build(*args, **kwargs)
        if type(transport) is KafkaTCPTransport:
            transport._sock_recv = functools.partial(receive, transport)  # noqa: SLF001
        return transport

    manager._build_transport = build_wide  # noqa: SLF001


def receive(transport: Any) -> tuple[bytes, Exception | None]:
    """What the socket has, and the error that ended it; in place of ``KafkaTCPTransport._sock_recv``."""
    parts: list[bytes] = []
    size = 0
    error: Exception | None = None
    while size < _ROUND_BYTES:
        try:
            data = transport._sock.recv(_READ_BYTES)  # noqa: SLF001
        except (BlockingIOError, InterruptedError):
            break
        except Exception as failed:  # noqa: BLE001  # the transport is closed for it, whatever it is
            error = KafkaConnectionError(failed)
            break
        if not data:
            error = KafkaConnectionError("socket disconnected")
            break
        parts.append(data)
        size += len(data)
    return parts[0] if len(parts) == 1 else b"".join(parts), error
