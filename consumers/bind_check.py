"""Check of the address that a program listens on."""

from __future__ import annotations

from streamkm.errors import SettingsError
from streamkm.values import is_loopback


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
