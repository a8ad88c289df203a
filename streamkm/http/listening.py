"""Listening sockets, and the check of the address that a program listens on."""

from __future__ import annotations

import socket

from streamkm.errors import SettingsError
from streamkm.values import is_loopback


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
        raise SettingsError(f"cannot listen on {host} port {port} ({e.strerror})", where=option, hint=hint) from e
    return listener


def url_of(listener: socket.socket) -> str:
    """URL of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def check_bind(host: str, token: str, option: str = "--host", *, stored: bool | None = None) -> None:
    """Refuse to listen on a network without a token.

    Parameters
    ----------
    host
        Address to listen on.
    token
        Token of the environment; empty for none.
    option
        Option of the address, for the error message.
    stored
        Whether the store has tokens; None if the program does not use them.

    Raises
    ------
    SettingsError
        The address is not loopback, and there is no token.
    """
    if token or stored or is_loopback(host):
        return
    other = "" if stored is None else ", make a token with streamkm tokens create NAME"
    raise SettingsError(
        f"{host} can be reached from other machines, and there is no token",
        where=option,
        hint=f"Set STREAMKM_TOKEN to a long random text{other}, or listen on 127.0.0.1",
    )
