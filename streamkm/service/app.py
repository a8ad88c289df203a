"""The application: routes over a store."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI

from streamkm.errors import SettingsError
from streamkm.metrics import Metrics
from streamkm.service import errors, health, infer, page, predict, queries, schemas
from streamkm.service.bodies import Bodies
from streamkm.service.middleware import OPEN, Observe, RequireLocalHost, RequireToken
from streamkm.service.reader import Reader
from streamkm.stores.base import Store

_ABOUT = """What the clusters of your streams are now, what they were, and which one a point belongs to.

Every error is a problem+json (RFC 9457) with a `code` for programs, `where` it is and a `hint` what to do.
"""


@dataclass(frozen=True, kw_only=True)
class ServiceOptions:
    """Limits of the service.

    Attributes
    ----------
    freshness
        Seconds for which the newest snapshot is taken to be the newest, before the store is asked again.
    stale_after
        Seconds without a commit after which a running model with work to do is called stale.
    patience
        Seconds that the store may take for one answer before the client gets 503.
    max_body_bytes
        Largest body of a request. A parsed one takes up to 30 times as much memory, four large ones at a time.
    cache_bytes
        Most memory for snapshots and answers made of them.
    """

    freshness: float = 0.1
    stale_after: float = 30.0
    patience: float = 10.0
    max_body_bytes: int = 8 << 20
    cache_bytes: int = 64 << 20


DEFAULTS = ServiceOptions()


def create_app(
    store: Store,
    *,
    metrics: Metrics | None = None,
    token: str | None = None,
    local_only: bool = False,
    options: ServiceOptions = DEFAULTS,
    clock: Callable[[], float] = time.time,
) -> FastAPI:
    """Make the HTTP service over a store.

    Parameters
    ----------
    store
        Read only; asked from several threads. It stays the caller's, who closes it after the application has shut down.
    metrics
        What requests are counted in and ``/metrics`` exports; one of its own if None.
    token
        What clients must send as ``Authorization: Bearer``; None for nothing.
    local_only
        Answer only who asks for 127.0.0.1, localhost or ::1, and not for a name that was made to point here.
    options
        Limits.
    clock
        Seconds since 1970.

    Raises
    ------
    SettingsError
        The token is empty.
    """
    if token is not None and not token.strip():
        raise SettingsError("the token is empty", where="token", hint="Leave it out, or choose a long random one")
    metrics = metrics if metrics is not None else Metrics()
    reader = Reader(
        store, clock=clock, freshness=options.freshness, patience=options.patience, cache_bytes=options.cache_bytes
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        reader.close()

    app = FastAPI(
        title="streamkm",
        summary="Live clusters of event streams",
        description=_ABOUT,
        version=version("streamkm"),
        # The framework's pages load scripts from other hosts.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    bodies = Bodies(options.max_body_bytes)
    app.include_router(predict.router(reader, metrics, bodies))  # first: routes are tried in order
    app.include_router(infer.router(reader, metrics, bodies))
    app.include_router(queries.router(reader, options.stale_after))
    app.include_router(health.router(reader, metrics, options.stale_after))
    app.include_router(page.router())
    errors.install(app)
    if token is not None:
        app.add_middleware(RequireToken, token=token)
    if local_only:
        app.add_middleware(RequireLocalHost)
    app.add_middleware(Observe, metrics=metrics)  # outermost: refused requests count too
    _describe(app, needs_token=token is not None, local_only=local_only)
    return app


def _describe(app: FastAPI, *, needs_token: bool, local_only: bool) -> None:
    """Complete the OpenAPI description with what the framework cannot know."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            description = generate()
            described = description.setdefault("components", {}).setdefault("schemas", {})
            described["Problem"] = errors.ProblemBody.model_json_schema()
            # The framework drops every null, those that belong to an example too.
            described["ModelDetail"]["examples"] = schemas.ModelDetail.model_json_schema()["examples"]
            if needs_token:
                description["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
                description["security"] = [{"token": []}]
                for path in OPEN:
                    description["paths"][path]["get"]["security"] = []
            if local_only:
                for path, methods in description["paths"].items():
                    if path not in OPEN:
                        for method in methods.values():
                            method["responses"] |= {str(k): v for k, v in errors.documented((421,)).items()}
            app.openapi_schema = description
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
