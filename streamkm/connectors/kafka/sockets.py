"""Patches of kafka-python's sockets: larger reads, and no leak of refused connections.

Its input thread reads 4 KB at a time, and has to reacquire the interpreter's lock after each (measured on a fetch of 2
MB: a fifth of all CPU time, and up to half of the wall time beside a busy main thread). A socket whose connection fails
is left to the garbage collector, so a consumer that waits for its broker holds more and more of them. Both patches use
private parts of kafka-python, as `record_batches` does, and apply to the same versions only.
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
"""Versions of kafka-python whose private parts are known."""

_READ_BYTES = 1 << 20
_MAX_READ_BYTES = 8 << 20
"""Bytes read from one connection before the others get their turn."""


def use_large_reads(client: Any) -> None:
    """Make new connections of a client read large pieces; encrypted connections are not changed."""
    manager = client._manager  # noqa: SLF001
    build = manager._build_transport  # noqa: SLF001

    async def build_wide(*args: Any, **kwargs: Any) -> Any:
        transport = await build(*args, **kwargs)
        if type(transport) is KafkaTCPTransport:
            transport._sock_recv = functools.partial(read_available, transport)  # noqa: SLF001
        return transport

    manager._build_transport = build_wide  # noqa: SLF001


def read_available(transport: Any) -> tuple[bytes, Exception | None]:
    """Read what a socket has, and the error that ended it; replaces ``KafkaTCPTransport._sock_recv``."""
    parts: list[bytes] = []
    size = 0
    error: Exception | None = None
    while size < _MAX_READ_BYTES:
        try:
            data = transport._sock.recv(_READ_BYTES)  # noqa: SLF001
        except (BlockingIOError, InterruptedError):
            break
        except Exception as failed:  # noqa: BLE001  # any error closes the transport
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
    """Connect like ``KafkaNetSocket.connect``, and close the socket if that fails."""
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
