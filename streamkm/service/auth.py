"""Authentication and authorization: how tokens are made and looked up, and which requests each may make."""

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
from streamkm.service.limits import client_network
from streamkm.service.problems import Problem
from streamkm.stores.base import Token
from streamkm.values import Secret

TOKEN_PREFIX = "skm_"  # noqa: S105 - no password
"""Prefix of every token, by which scanners of repositories and logs recognize a leaked one."""
ENVIRONMENT_TOKEN = "STREAMKM_TOKEN"  # noqa: S105 - a name
"""Name under which the token of the environment is logged; no stored token may have it."""
MAX_MODELS = 100
"""Models that one token can be restricted to."""
TOKEN_CACHE_SECONDS = 2.0
"""Seconds for which stored tokens are cached; a revoked one ends after that."""
TOKEN_MISS_SECONDS = 0.25
"""Minimum seconds between two loads, however many unknown tokens arrive, or while the store is unavailable."""
TOKEN_COMMAND = f"(printf '{TOKEN_PREFIX}'; openssl rand -hex 32) >FILE"
"""Shell command that makes a token; a `TOKEN_PREFIX` directly before other characters would be redacted."""
_NAME_PATTERN = re.compile(r"[A-Za-z0-9._@-]{1,64}")
_TOKEN_PATTERN = re.compile(TOKEN_PREFIX + r"[!-~]{32,512}")
_MODEL_PATTERN = re.compile(r"[A-Za-z0-9._-]{1,128}")

PROBE_PATHS = frozenset(("/livez", "/readyz"))
"""Liveness and readiness: without a token, and without a rate limit."""
PAGE_PATHS = frozenset(("/", "/docs"))
ASSETS_PREFIX = "/assets/"
"""Files of the dashboard; they hold no data, so they need no token. The requests of the dashboard do."""
ME_PATH = "/v1/me"
"""Shows the rights of a request; open, so that a client can find out that it needs a token."""
PUBLIC_API_PATHS = (*sorted(PROBE_PATHS), ME_PATH)
"""Paths of the API that need no token."""
SAFE_METHODS = frozenset(("GET", "HEAD", "OPTIONS"))
# Paths are matched as the router matches them: the same text, decoded in the same way, by the same pattern. A path that
# is not of a model belongs to no model, and is closed to a token restricted to models, unless it is in _SHARED_PATHS.
_MODEL_PATH = re.compile(r"/v[12]/models/([^/]+)(?:/.*)?", re.DOTALL)
_READ_ONLY_POST = re.compile(r"/v1/models/[^/]+/predict|/v2/models/[^/]+(?:/versions/[^/]+)?/infer")
_SHARED_PATHS = frozenset(("/v1/models", ME_PATH, "/v2", "/v2/health/live", "/v2/health/ready", "/openapi.json"))


def digest(token: bytes) -> str:
    """SHA-256 of a token, hexadecimal; the store keeps only this.

    A slow hash would protect passwords that people choose; a token of 256 random bits cannot be guessed at any speed,
    and every request computes its hash.
    """
    return hashlib.sha256(token).hexdigest()


def issue(
    name: str, right: Literal["read", "write"], models: Sequence[str], now: float, text: str | None = None
) -> tuple[str, Token]:
    """Make a token.

    Parameters
    ----------
    name
        Name for people and logs.
    right
        ``read``, or ``write``, which includes reading.
    models
        Names of the models that it is restricted to, which need not exist yet; empty for all.
    now
        Seconds since 1970.
    text
        The token itself, if it was made elsewhere; else a random one is made.

    Returns
    -------
    str
        The token, to be shown once.
    Token
        The entry for the store.

    Raises
    ------
    SettingsError
        A name or `text` is not valid.
    """
    if not _NAME_PATTERN.fullmatch(name) or name == ENVIRONMENT_TOKEN:
        raise SettingsError(
            f"{name[:100]!r} is not a name for a token",
            where="NAME",
            hint=f"1 to 64 of A-Z a-z 0-9 . _ @ -, and not {ENVIRONMENT_TOKEN}",
        )
    if len(models) > MAX_MODELS:
        raise SettingsError(
            f"{len(models)} models are more than {MAX_MODELS}", where="--model", hint="Leave it out for all models"
        )
    for model in models:
        if not _MODEL_PATTERN.fullmatch(model):
            raise SettingsError(
                f"{model[:100]!r} is not a name of a model", where="--model", hint="1 to 128 of A-Z a-z 0-9 . _ -"
            )
    if text is None:
        text = TOKEN_PREFIX + secrets.token_urlsafe(32)
    elif not _TOKEN_PATTERN.fullmatch(text):
        raise SettingsError(
            f"this is not a token: {TOKEN_PREFIX} and 32 to 512 characters without blanks",
            where=name,
            hint=TOKEN_COMMAND,
        )
    return text, Token(name, digest(text.encode()), right, tuple(sorted(set(models))), now)


class Grant(NamedTuple):
    """The rights of a request.

    Attributes
    ----------
    name
        Of the token; None without one.
    right
        ``none``, ``read``, or ``write``, which includes reading.
    models
        Models that it is restricted to; None for all.
    digest
        Digest of a stored token; empty for other grants.
    """

    name: str | None
    right: Literal["none", "read", "write"]
    models: frozenset[str] | None
    digest: str = ""

    def may_read(self, model: str) -> bool:
        """Whether the grant includes a model."""
        return self.models is None or model in self.models


ANONYMOUS = Grant(None, "none", None)
ANONYMOUS_READER = Grant(None, "read", None)
ENVIRONMENT_GRANT = Grant(ENVIRONMENT_TOKEN, "write", None)
GRANT_KEY = "streamkm.grant"
"""Key of the grant in an ASGI scope."""


def grant_of(request: HTTPConnection) -> Grant:
    """The grant of a request; `ANONYMOUS` if no access check has run."""
    found = request.scope.get(GRANT_KEY, ANONYMOUS)
    return found if isinstance(found, Grant) else ANONYMOUS


def client_key(request: HTTPConnection) -> str:
    """Key that a client is counted by: its token, or its network without one."""
    grant = grant_of(request)
    if grant.name is not None:
        return f"token {grant.name}"
    return client_network(request.client.host) if request.client else ""


def is_public(path: str) -> bool:
    """Whether a path needs no token."""
    return path in PROBE_PATHS or path in PAGE_PATHS or path == ME_PATH or path.startswith(ASSETS_PREFIX)


def modifies(method: str, path: str) -> bool:
    """Whether a request changes something: every one does that is not known to be read-only."""
    return method not in SAFE_METHODS and not (method == "POST" and _READ_ONLY_POST.fullmatch(path))


def authorize(grant: Grant, method: str, path: str, route_exists: Callable[[], bool] = lambda: True) -> None:
    """Check that a grant includes a request.

    Parameters
    ----------
    grant
        Rights of the request.
    method, path
        Of the request; the path as the router sees it.
    route_exists
        Whether a route matches. A request that matches none changes nothing, and gets 404 or 405 instead of 401.

    Raises
    ------
    Problem
        401 or 403.
    """
    if is_public(path) and method in SAFE_METHODS:
        return
    if grant.right == "none":
        raise unauthorized("this service needs a token")
    if grant.models is not None and path not in _SHARED_PATHS:
        model = _MODEL_PATH.fullmatch(path)
        if model is None or model[1] not in grant.models:
            resource = f"model {model[1][:100]}" if model else "all models"
            raise _forbidden(f"the token {grant.name} is not for {resource}")
    if grant.right != "write" and modifies(method, path) and route_exists():
        if grant.name is None:
            raise unauthorized("this needs a token with the right to write, from this machine too")
        raise _forbidden(f"the token {grant.name} may only read")


class TokenCache:
    """Looks tokens up: the one of the environment, and those of the store, which are reloaded from time to time.

    Unknown tokens are not cached, so that they cannot fill memory.

    Parameters
    ----------
    load
        Loads the tokens of the store.
    token
        Token of the environment; None for none.
    clock
        Seconds of a monotonic clock.
    """

    def __init__(
        self,
        load: Callable[[], Awaitable[Sequence[Token]]],
        token: str | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._load = load
        self._environment_digest = None if token is None else bytes.fromhex(digest(Secret(token).encode()))
        self._clock = clock
        self._grants: Mapping[str, Grant] = {}
        self._started_at = self._loaded_at = -1e9
        self._loading: asyncio.Task[None] | None = None

    def is_environment_token(self, token: bytes) -> bool:
        """Whether it is the token of the environment; compared in constant time."""
        if self._environment_digest is None:
            return False
        return hmac.compare_digest(bytes.fromhex(digest(token)), self._environment_digest)

    def knows(self, token: bytes) -> bool:
        """Whether a stored token was there at the last load, which may be long ago."""
        return digest(token) in self._grants

    async def find(self, token: bytes) -> Grant | None:
        """The grant of a stored token; None if it is unknown.

        Raises
        ------
        StoreUnavailableError
            The tokens cannot be loaded.
        """
        key = digest(token)
        await self._refresh(TOKEN_CACHE_SECONDS)
        if key not in self._grants:
            await self._refresh(TOKEN_MISS_SECONDS)
        grant = self._grants.get(key)
        return grant if grant is not None and hmac.compare_digest(grant.digest, key) else None

    async def is_valid(self, grant: Grant) -> bool:
        """Whether the token of a grant still exists with the same rights."""
        if not grant.digest:
            return True
        await self._refresh(TOKEN_CACHE_SECONDS)
        return self._grants.get(grant.digest) == grant

    async def _refresh(self, max_age: float) -> None:
        now = self._clock()
        if now - self._loaded_at < max_age:
            return
        # A load that failed is a result too: else each request would load again while the store is unavailable.
        if self._loading is None or (self._loading.done() and now - self._started_at >= TOKEN_MISS_SECONDS):
            self._started_at = now
            self._loading = asyncio.create_task(self._reload(now))
            self._loading.add_done_callback(self._finished)
        # The request that started the load may be cancelled; the others still wait for it.
        await asyncio.shield(self._loading)

    def _finished(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            self._loading = None
        else:
            task.exception()  # marks it as retrieved, in case every waiting request was cancelled

    async def _reload(self, started: float) -> None:
        found = await self._load()
        self._grants = {
            t.digest: Grant(t.name, "write" if t.right == "write" else "read", frozenset(t.models) or None, t.digest)
            for t in found
        }
        self._loaded_at = started


def bearer_token(authorization: bytes) -> bytes | None:
    """The token of an Authorization header (RFC 6750, section 2.1); None if it has another scheme.

    >>> bearer_token(b"Bearer abc"), bearer_token(b"bearer  abc "), bearer_token(b"Basic abc"), bearer_token(b"")
    (b'abc', b'abc', None, None)
    """
    scheme, _, token = authorization.partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else None


def unauthorized(message: str) -> Problem:
    """The 401 response to a request without a valid token."""
    return Problem(
        401,
        "unauthorized",
        message,
        hint="Send it as: Authorization: Bearer TOKEN. streamkm tokens create NAME makes one",
        headers={"WWW-Authenticate": "Bearer"},
    )


def _forbidden(message: str) -> Problem:
    return Problem(403, "forbidden", message, hint="Ask the operator of the service for a token with this right")


def grant_json(grant: Grant) -> dict[str, Any]:
    """A grant as JSON, as in ``/v1/me``."""
    return {
        "name": grant.name,
        "right": grant.right,
        "models": None if grant.models is None else sorted(grant.models),
    }
