"""The application: routes over a store."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import Match

from streamkm.errors import SettingsError
from streamkm.metrics import Metrics
from streamkm.service import (
    acts,
    errors,
    health,
    history,
    infer,
    job_routes,
    page,
    predict,
    queries,
    schemas,
    schemas_live,
    stream,
)
from streamkm.service.access import OPEN, PROBES, Tokens
from streamkm.service.access import acts as acts_on
from streamkm.service.bodies import Bodies
from streamkm.service.headers import Headers
from streamkm.service.hub import Hub
from streamkm.service.jobs import Jobs
from streamkm.service.middleware import Guard, Heads, Observe
from streamkm.service.reader import Reader
from streamkm.service.tracing import Trace
from streamkm.stores.base import Store

INLINE_BYTES = 16 << 10
"""Bytes of an answer that are packed at once, in the event loop; more are in a thread."""
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
    max_table_bytes
        The same of CSV and Arrow, two at a time.
    cache_bytes
        Most memory for snapshots and answers made of them.
    rate_limit
        Requests a second for each token, or address without one; twice as many at once; 0: no limit.
    """

    freshness: float = 0.1
    stale_after: float = 30.0
    patience: float = 10.0
    max_body_bytes: int = 8 << 20
    max_table_bytes: int = 128 << 20
    cache_bytes: int = 64 << 20
    rate_limit: float = 5000.0


DEFAULTS = ServiceOptions()


def create_app(
    store: Store,
    *,
    metrics: Metrics | None = None,
    token: str | None = None,
    local_only: bool = False,
    guarded: bool = False,
    jobs: Jobs | None = None,
    options: ServiceOptions = DEFAULTS,
    clock: Callable[[], float] = time.time,
    monotonic: Callable[[], float] = time.monotonic,
) -> FastAPI:
    """Make the HTTP service over a store.

    Parameters
    ----------
    store
        Asked from several threads. It stays the caller's, who closes it after the application has shut down.
    metrics
        What requests are counted in and ``/metrics`` exports; one of its own if None.
    token
        May read and write all, sent as ``Authorization: Bearer``; with one, reading needs it or one of the store.
    guarded
        Reading needs a token, also if the only ones are in the store. Acting always does.
    jobs
        What recomputes on request; None: the service does not.
    local_only
        Answer only who asks for 127.0.0.1, localhost or ::1, and not for a name that was made to point here.
    options
        Limits.
    clock
        Seconds since 1970.
    monotonic
        Seconds of a clock that does not go back, by which requests are limited and tokens looked up anew.

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

    hub = Hub(reader, options.stale_after)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        hub.close()
        if jobs is not None:
            await jobs.close()
        reader.close()

    app = FastAPI(
        title="streamkm",
        summary="Live clusters of event streams",
        description=_ABOUT,
        version=version("streamkm"),
        # The framework's pages load scripts from other hosts; ours is in `page`.
        docs_url=None,
        redoc_url=None,
        openapi_url=None,  # it would encode the description anew for each who asks
        redirect_slashes=False,
        lifespan=lifespan,
    )
    bodies = Bodies(options.max_body_bytes, options.max_table_bytes)
    app.include_router(predict.router(reader, metrics, bodies))  # first: routes are tried in order
    app.include_router(infer.router(reader, metrics, bodies))
    app.include_router(queries.router(reader, options.stale_after))
    app.include_router(acts.router(reader, bodies, jobs))
    app.include_router(job_routes.router(reader, bodies, jobs))
    app.include_router(history.router(reader))
    app.include_router(stream.router(reader, hub))
    app.include_router(health.router(reader, metrics, options.stale_after))
    app.include_router(page.router(lambda: app.openapi(), reader.work))  # noqa: PLW0108  # `_describe` makes another
    app.state.end_streams = hub.close
    app.state.metrics = metrics
    errors.install(app)
    guarded = guarded or token is not None
    app.add_middleware(
        Guard,
        tokens=Tokens(lambda: reader.ask(store.tokens), token, monotonic),
        guarded=guarded,
        local_only=local_only,
        rate=options.rate_limit,
        is_there=lambda scope: any(route.matches(scope)[0] is Match.FULL for route in app.routes),
        clock=monotonic,
    )
    # What is packed already, and what streams, is left as it is. The fastest level: answers are read once.
    app.add_middleware(GZipMiddleware, minimum_size=1024, compresslevel=1, thread_minimum_size=INLINE_BYTES)
    app.add_middleware(Headers)
    app.add_middleware(Heads)
    app.add_middleware(Observe, metrics=metrics)  # outermost but one: refused requests count too
    app.add_middleware(Trace)
    _describe(app, needs_token=guarded, local_only=local_only)
    return app


def _describe(app: FastAPI, *, needs_token: bool, local_only: bool) -> None:
    """Complete the OpenAPI description with what the framework cannot know."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            description = generate()
            described: dict[str, Any] = description.setdefault("components", {}).setdefault("schemas", {})
            described["Problem"] = errors.ProblemBody.model_json_schema()
            for cls in (schemas_live.Now, schemas_live.ClusterEvent):  # messages of streams, which no route returns
                schema = cls.model_json_schema(ref_template="#/components/schemas/{model}")
                described.update(schema.pop("$defs", {}))
                described[cls.__name__] = schema
            # The framework drops every null, those that belong to an example too.
            for module in (schemas, schemas_live):
                for name in described.keys() & vars(module).keys():
                    described[name] |= {
                        k: v for k, v in vars(module)[name].model_json_schema().items() if k == "examples"
                    }
            description["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
            if needs_token:
                description["security"] = [{"token": []}]
            everywhere = errors.documented((403, 421, 429) if local_only else (403, 429))
            for path, methods in description["paths"].items():
                for method, operation in methods.items():
                    if path in OPEN:
                        operation["security"] = []
                    elif acts_on(method.upper(), path):
                        operation["security"] = [{"token": []}]
                    if path not in PROBES:
                        operation["responses"] = {str(k): v for k, v in everywhere.items()} | operation["responses"]
            app.openapi_schema = description
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
