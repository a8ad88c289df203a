"""Who can reach what a program listens on."""

from __future__ import annotations

from streamkm.errors import SettingsError
from streamkm.values import is_loopback


def check_bind(host: str, token: str, option: str = "--host", *, stored: bool | None = None) -> None:
    """Refuse to show the data to a network without a token.

    Parameters
    ----------
    host
        Address to listen on.
    token
        That of the environment.
    option
        What the address was given by.
    stored
        Whether the store has tokens; None: those of a store are not for this.

    Raises
    ------
    SettingsError
        The address is not loopback and there is no token.
    """
    if token or stored or is_loopback(host):
        return
    other = "" if stored is None else ", make a token with streamkm tokens create NAME"
    raise SettingsError(
        f"{host} can be reached from other machines, and there is no token",
        where=option,
        hint=f"Set STREAMKM_TOKEN to a long random text{other}, or listen on 127.0.0.1",
    )
