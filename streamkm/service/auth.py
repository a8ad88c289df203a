"""Tokens and their rights: how tokens are made and stored, who may do what, and with which models."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from starlette.requests import HTTPConnection

from streamkm.errors import SettingsError
from streamkm.service.limits import network
from streamkm.service.problems import Problem
from streamkm.stores.base import Token
from streamkm.values import Secret

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


PROBES = frozenset(("/livez", "/readyz"))
"""What starts and stops processes asks these, and it has no token. They are not limited in number either."""
PAGES = frozenset(("/", "/docs"))
ASSETS = "/assets/"
"""The page's own files hold no data; what the page asks for does, and needs a token."""
ME = "/v1/me"
"""Anybody may ask who the service takes them for."""
OPEN = (*sorted(PROBES), ME)
"""Paths of the API that need no token."""
FRESH = 2.0
"""Seconds for which the tokens of the store are taken to be those there are: a revoked one ends after that."""
SOON = 0.25
"""Seconds after which an unknown token makes the service look for new ones, however many unknown ones come."""

SAFE = frozenset(("GET", "HEAD", "OPTIONS"))
# A path is judged as the router takes it apart: the same text, after the same decoding, by the same pattern. What does
# not look like a model's path belongs to no model, and is closed to a token for some models unless in _COMMON.
_OF_A_MODEL = re.compile(r"/v[12]/models/([^/]+)(?:/.*)?", re.DOTALL)
_ASKS_BY_POST = re.compile(r"/v1/models/[^/]+/predict|/v2/models/[^/]+(?:/versions/[^/]+)?/infer")
_COMMON = frozenset(("/v1/models", ME, "/v2", "/v2/health/live", "/v2/health/ready", "/openapi.json"))


class Grant(NamedTuple):
    """What somebody may do.

    Attributes
    ----------
    name
        Of the token; None without one.
    right
        ``none``, ``read``, or ``write``: reading too.
    models
        Those it is for; None: all.
    digest
        Of a token of the store; empty for others.
    """

    name: str | None
    right: Literal["none", "read", "write"]
    models: frozenset[str] | None
    digest: str = ""

    def sees(self, model: str) -> bool:
        """Whether a model may be told about."""
        return self.models is None or model in self.models


NOBODY = Grant(None, "none", None)
READER = Grant(None, "read", None)
OWNER = Grant(OF_THE_ENVIRONMENT, "write", None)
KEY = "streamkm.grant"
"""Where a request's scope has its grant."""


def grant_of(request: HTTPConnection) -> Grant:
    """What the asker of a request may do; nothing if no guard let it in."""
    found = request.scope.get(KEY, NOBODY)
    return found if isinstance(found, Grant) else NOBODY


def asker(request: HTTPConnection) -> str:
    """What requests are counted for: the token, or the address without one."""
    grant = grant_of(request)
    if grant.name is not None:
        return f"token {grant.name}"
    return network(request.client.host) if request.client else ""


def is_open(path: str) -> bool:
    """Whether a path needs no token."""
    return path in PROBES or path in PAGES or path == ME or path.startswith(ASSETS)


def acts(method: str, path: str) -> bool:
    """Whether a request changes something: all do but those that are known not to."""
    return method not in SAFE and not (method == "POST" and _ASKS_BY_POST.fullmatch(path))


def judge(grant: Grant, method: str, path: str, is_there: Callable[[], bool] = lambda: True) -> None:
    """Return if a request may be made with a grant.

    Parameters
    ----------
    grant
        What the asker has.
    method, path
        Of the request; the path as the router gets it.
    is_there
        Says whether a route takes it. What none takes does nothing, and gets its 404 or 405 rather than 401.

    Raises
    ------
    Problem
        401 or 403.
    """
    if is_open(path) and method in SAFE:
        return
    if grant.right == "none":
        raise unauthorized("this service needs a token")
    if grant.models is not None and path not in _COMMON:
        model = _OF_A_MODEL.fullmatch(path)
        if model is None or model[1] not in grant.models:
            what = f"model {model[1][:100]}" if model else "all models"
            raise _forbidden(f"the token {grant.name} is not for {what}")
    if grant.right != "write" and acts(method, path) and is_there():
        if grant.name is None:
            raise unauthorized("acting needs a token with the right to write, from this machine too")
        raise _forbidden(f"the token {grant.name} may only read")


class Tokens:
    """The tokens there are: that of the environment, and those of the store, which are looked up anew now and then.

    Unknown tokens are not remembered, so that they cannot fill memory.

    Parameters
    ----------
    load
        What asks the store.
    token
        That of the environment, if there is one.
    clock
        Seconds of a clock that does not go back.
    """

    def __init__(
        self,
        load: Callable[[], Awaitable[Sequence[Token]]],
        token: str | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._load = load
        self._own = None if token is None else bytes.fromhex(digest(Secret(token).encode()))
        self._clock = clock
        self._known: Mapping[str, Grant] = {}
        self._at = -1e9
        self._loading: asyncio.Task[None] | None = None

    def is_owner(self, token: bytes) -> bool:
        """Whether it is the token of the environment. Digests have one length, so the time tells nothing about it."""
        return self._own is not None and hmac.compare_digest(bytes.fromhex(digest(token)), self._own)

    async def find(self, token: bytes) -> Grant | None:
        """What a token of the store gives.

        Raises
        ------
        StoreUnavailableError
            Whether it still holds cannot be told.
        """
        key = digest(token)
        await self._refresh(FRESH)
        if key not in self._known:
            await self._refresh(SOON)
        grant = self._known.get(key)
        return grant if grant is not None and hmac.compare_digest(grant.digest, key) else None

    async def holds(self, grant: Grant) -> bool:
        """Whether what was granted before still is."""
        if not grant.digest:
            return True
        await self._refresh(FRESH)
        return self._known.get(grant.digest) == grant

    async def _refresh(self, age: float) -> None:
        if self._clock() - self._at < age:
            return
        if self._loading is None:
            self._loading = asyncio.create_task(self._reload())
            self._loading.add_done_callback(self._loaded)
        # Who asked first may leave; the others still want the answer.
        await asyncio.shield(self._loading)

    def _loaded(self, task: asyncio.Task[None]) -> None:
        self._loading = None
        if not task.cancelled():
            task.exception()  # marks it as seen, should every waiter have left

    async def _reload(self) -> None:
        asked = self._clock()
        found = await self._load()
        self._known = {
            t.digest: Grant(t.name, "write" if t.right == "write" else "read", frozenset(t.models) or None, t.digest)
            for t in found
        }
        self._at = asked


def bearer(authorization: bytes) -> bytes | None:
    """The token of an Authorization header (RFC 6750, section 2.1); None if it is of another kind.

    >>> bearer(b"Bearer abc"), bearer(b"bearer  abc "), bearer(b"Basic abc"), bearer(b"")
    (b'abc', b'abc', None, None)
    """
    scheme, _, token = authorization.partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else None


def unauthorized(message: str) -> Problem:
    """The answer to who has no token, or a wrong one."""
    return Problem(
        401,
        "unauthorized",
        message,
        hint="Send it as: Authorization: Bearer TOKEN. streamkm tokens create NAME makes one",
        headers={"WWW-Authenticate": "Bearer"},
    )


def _forbidden(message: str) -> Problem:
    return Problem(403, "forbidden", message, hint="Ask whoever runs the service for a token that may")


def me_json(grant: Grant) -> dict[str, Any]:
    """A grant as the API tells it."""
    return {
        "name": grant.name,
        "right": grant.right,
        "models": None if grant.models is None else sorted(grant.models),
    }
