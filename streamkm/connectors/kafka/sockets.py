"""The sockets of kafka-python: larger reads, and no leak of those that are refused.

Its input thread reads 4 KB at a time, and has to win the interpreter's lock back after each (measured on a fetch of
2 MB: a fifth of all CPU time, and up to half of the wall time beside a busy main thread). And a socket whose connection
fails is left to the garbage collector, so that a consumer that waits for its broker holds more and more of them. Both
are private matters like those of `record_batches`, and touched in the same versions only.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import kafka  # type: ignore[import-untyped]
from kafka.errors import KafkaConnectionError  # type: ignore[import-untyped]
from kafka.net.inet import KafkaNetSocket  # type: ignore[import-untyped]
from kafka.net.transport import KafkaTCPTransport  # type: ignore[import-untyped]

SUPPORTED_VERSIONS = frozenset({"3.0.12"})
"""Versions of kafka-python whose private parts are known here."""

_READ_BYTES = 1 << 20
_MAX_READ_BYTES = 8 << 20
"""After so much the other connections of the thread get their turn."""


def use_large_reads(client: Any) -> None:
    """Make the client's future connections read in large pieces; encrypted ones stay as they are."""
    manager = client._manager  # noqa: SLF001
    build = manager._build_transport  # noqa: SLF001

    async def build_wide(*args: Any, **kwargs: Any) -> Any:
        transport = await build(*args, **kwargs)
        if type(transport) is KafkaTCPTransport:
            transport._sock_recv = functools.partial(read_available, transport)  # noqa: SLF001
        return transport

    manager._build_transport = build_wide  # noqa: SLF001


def read_available(transport: Any) -> tuple[bytes, Exception | None]:
    """What the socket has, and the error that ended it; in place of ``KafkaTCPTransport._sock_recv``."""
    parts: list[bytes] = []
    size = 0
    error: Exception | None = None
    while size < _MAX_READ_BYTES:
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


async def connect(
    self: Any, net: Any, addrinfo: Any, socket_options: Sequence[Any] = (), timeout_at: float | None = None
) -> Any:
    """Connect as ``KafkaNetSocket.connect`` does, and close the socket when that fails."""
    family, kind, protocol, _, address = addrinfo
    sock = self.socket(family, kind, protocol)
    try:
        sock.setblocking(False)  # noqa: FBT003
        for option in socket_options:
            sock.setsockopt(*option)
        return await self.sock_connect(net, sock, address, timeout_at=timeout_at)
    except Exception:
        sock.close()
        raise


if kafka.__version__ in SUPPORTED_VERSIONS:
    KafkaNetSocket.connect = connect
