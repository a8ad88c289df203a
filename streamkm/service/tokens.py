"""Tokens: how they are made, and what of them is kept."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Sequence
from typing import Literal

from streamkm.errors import SettingsError
from streamkm.stores.base import Token

PREFIX = "skm_"
"""What each begins with, so that scanners of repositories and logs find one that leaked."""
OF_THE_ENVIRONMENT = "STREAMKM_TOKEN"
"""Name of the token that is no store's."""
MOST_MODELS = 100
_NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")
_TEXT = re.compile(PREFIX + r"[!-~]{32,512}")
_MODEL = re.compile(r"[A-Za-z0-9._-]{1,128}")


def digest(token: bytes) -> str:
    """What the store keeps of a token: SHA-256, hexadecimal.

    A fast hash is right here: a slow one makes guessing costly where people choose from few words, but this is 256
    random bits, which nobody guesses at any speed, and each request needs it.
    """
    return hashlib.sha256(token).hexdigest()


def issue(
    name: str, right: Literal["read", "write"], models: Sequence[str], now: float, text: str | None = None
) -> tuple[str, Token]:
    """Make a token.

    Parameters
    ----------
    name
        What people call it.
    right
        ``read``, or ``write``: reading too.
    models
        Names of the models that it is for, there or to come; empty: all.
    now
        Seconds since 1970.
    text
        The token, if somebody else has made it.

    Returns
    -------
    str
        The token, to be shown once.
    Token
        What to keep of it.

    Raises
    ------
    SettingsError
        A name that is none, or a text that is too short.
    """
    if not _NAME.fullmatch(name) or name == OF_THE_ENVIRONMENT:
        raise SettingsError(
            f"{name[:100]!r} is no name for a token",
            where="NAME",
            hint=f"1 to 64 of A-Z a-z 0-9 . _ @ -, and not {OF_THE_ENVIRONMENT}",
        )
    if len(models) > MOST_MODELS:
        raise SettingsError(
            f"{len(models)} models are more than {MOST_MODELS}", where="--model", hint="Leave it out for all models"
        )
    for model in models:
        if not _MODEL.fullmatch(model):
            raise SettingsError(
                f"{model[:100]!r} is no name of a model", where="--model", hint="1 to 128 of A-Z a-z 0-9 . _ -"
            )
    if text is None:
        text = PREFIX + secrets.token_urlsafe(32)
    elif not _TEXT.fullmatch(text):
        raise SettingsError(
            f"this is no token: it wants {PREFIX} and 32 to 512 characters without blanks",
            where=name,
            hint=f"echo {PREFIX}$(openssl rand -hex 32)",
        )
    return text, Token(name, digest(text.encode()), right, tuple(sorted(set(models))), now)
