"""Who can reach what a program listens on."""

from __future__ import annotations

import contextlib
import ipaddress

from streamkm.errors import SettingsError


def check_exposure(host: str, token: str, option: str = "--host") -> None:
    """Refuse to show the data to a network without a token.

    Raises
    ------
    SettingsError
        The address is not loopback and there is no token.
    """
    if token or host == "localhost":
        return
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).is_loopback:
            return
    raise SettingsError(
        f"{host} can be reached from other machines, and there is no token",
        where=option,
        hint="Set STREAMKM_TOKEN to a long random text, or listen on 127.0.0.1",
    )
