"""Listening sockets."""

from __future__ import annotations

import socket

from streamkm.errors import SettingsError


def listen(
    host: str, port: int, option: str = "--port", hint: str = "Choose another one, or 0 for any"
) -> socket.socket:
    """Open a socket that accepts connections already, so that its URL can be announced.

    Parameters
    ----------
    host
        Address to listen on.
    port
        0 for any free one.
    option
        Option of the port, for the error message.
    hint
        Hint of the error message.

    Raises
    ------
    SettingsError
        The address is not of this machine, or the port is in use.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        # With protocol 0 asyncio would not set TCP_NODELAY, and every response would wait 40 ms for an ACK.
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(1024)
        except OSError:
            listener.close()
            raise
    except OSError as e:
        raise SettingsError(
            f"cannot listen on {host} port {port} ({e.strerror})",
            where=option,
            hint=hint,
        ) from e
    return listener


def url_of(listener: socket.socket) -> str:
    """URL of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
