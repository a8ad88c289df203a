"""The application: routes over a store."""

from __future__ import annotations

import threading
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
from streamkm.service import problems
from streamkm.service.auth import PROBE_PATHS, PUBLIC_API_PATHS, TokenCache, modifies
from streamkm.service.broadcast import Broadcaster
from streamkm.service.job_runner import JobRunner
from streamkm.service.middleware import (
    AccessMiddleware,
    HeadersMiddleware,
    HeadMiddleware,
    MetricsMiddleware,
    TracingMiddleware,
)
from streamkm.service.request_body import BodyReader
from streamkm.service.routes import control, dashboard, history, inference_v2, models, operations, predict, streams
from streamkm.service.routes import jobs as job_routes
from streamkm.service.schemas import live
from streamkm.service.schemas import models as schemas
from streamkm.service.snapshot_cache import StoreReader
from streamkm.stores.base import Store

MAX_INLINE_BYTES = 16 << 10
"""Responses up to this size are compressed in the event loop, larger ones in a thread."""
_DESCRIPTION = """Clusters of event streams: current and past centroids, lineage, predictions and control.

Every error is a problem+json (RFC 9457) with a `code` for programs, its location (`where`) and a `hint`.
"""


@dataclass(frozen=True, kw_only=True)
class ServiceOptions:
    """Limits of the service.

    Attributes
    ----------
    freshness
        Seconds for which a snapshot is served as the newest before the store is queried again.
    stale_after
        Seconds without a commit after which a consumer with work is stale.
    store_timeout
        Maximum seconds of a store query; after that the response is 503.
    max_body_bytes
        Largest JSON body. A parsed one takes up to 30 times as much memory; four large ones are parsed at a time.
    max_table_bytes
        Largest CSV or Arrow body; two are parsed at a time.
    cache_bytes
        Memory for snapshots and their responses.
    rate_limit
        Requests per second for each token, or network without one, with bursts of twice as many; 0 for no limit.
    """

    freshness: float = 0.1
    stale_after: float = 30.0
    store_timeout: float = 10.0
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
    jobs: JobRunner | None = None,
    options: ServiceOptions = DEFAULTS,
    clock: Callable[[], float] = time.time,
    monotonic: Callable[[], float] = time.monotonic,
) -> FastAPI:
    """Create the HTTP service over a store.

    Parameters
    ----------
    store
        Used from several threads. The caller closes it after the application has shut down.
    metrics
        Counts requests, and is exported by ``/metrics``; a new one if None.
    token
        Token with all rights. If it is set, reading needs a token: this one, or one of the store.
    guarded
        Whether reading needs a token even without `token`. Control always needs one.
    jobs
        Runs recomputation jobs; the service runs none if None.
    local_only
        Accept only requests whose Host is a loopback name (against DNS rebinding).
    options
        Limits.
    clock
        Seconds since 1970.
    monotonic
        Seconds of a monotonic clock, for rate limits and the token cache.

    Raises
    ------
    SettingsError
        The token is empty.
    """
    if token is not None and not token.strip():
        raise SettingsError("the token is empty", where="token", hint="Leave it out, or choose a long random one")
    metrics = metrics if metrics is not None else Metrics()
    reader = StoreReader(
        store, clock=clock, freshness=options.freshness, timeout=options.store_timeout, cache_bytes=options.cache_bytes
    )

    broadcaster = Broadcaster(reader, options.stale_after)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        broadcaster.close()
        if jobs is not None:
            await jobs.close()
        reader.close()

    app = FastAPI(
        title="streamkm",
        summary="Live clusters of event streams",
        description=_DESCRIPTION,
        version=version("streamkm"),
        # The framework's pages load scripts from other hosts; `routes.dashboard` has a local one.
        docs_url=None,
        redoc_url=None,
        openapi_url=None,  # the framework would encode the description for each request
        redirect_slashes=False,
        lifespan=lifespan,
    )
    bodies = BodyReader(options.max_body_bytes, options.max_table_bytes)
    for routes in (
        predict.router(reader, metrics, bodies),  # first: routes are matched in order
        inference_v2.router(reader, metrics, bodies),
        models.router(reader, options.stale_after),
        control.router(reader, bodies, jobs),
        job_routes.router(reader, bodies, jobs),
        history.router(reader),
        streams.router(reader, broadcaster),
        operations.router(reader, metrics, options.stale_after),
        dashboard.router(lambda: app.openapi(), reader.run_in_thread),  # noqa: PLW0108 - `_describe` replaces it
    ):
        app.router.routes.extend(routes.routes)  # `include_router` would make each of them again, at the first request
    app.state.end_streams = broadcaster.close
    app.state.metrics = metrics
    problems.install_handlers(app)
    guarded = guarded or token is not None
    app.add_middleware(
        AccessMiddleware,
        tokens=TokenCache(lambda: reader.query(store.tokens), token, monotonic),
        guarded=guarded,
        local_only=local_only,
        rate=options.rate_limit,
        route_exists=lambda scope: any(route.matches(scope)[0] is Match.FULL for route in app.routes),
        clock=monotonic,
    )
    # Leaves compressed responses and streams unchanged. The fastest level: responses are sent once.
    app.add_middleware(GZipMiddleware, minimum_size=1024, compresslevel=1, thread_minimum_size=MAX_INLINE_BYTES)
    app.add_middleware(HeadersMiddleware)
    app.add_middleware(HeadMiddleware)
    app.add_middleware(MetricsMiddleware, metrics=metrics)  # outside of the access check: refused requests count too
    app.add_middleware(TracingMiddleware)
    _describe(app, needs_token=guarded, local_only=local_only)
    return app


def _describe(app: FastAPI, *, needs_token: bool, local_only: bool) -> None:
    """Complete the OpenAPI description: errors, security, messages of streams, and null in examples."""
    generate, lock = app.openapi, threading.Lock()

    def openapi() -> dict[str, Any]:
        with lock:  # the framework fails with a KeyError when two threads generate it at once
            return describe()

    def describe() -> dict[str, Any]:
        if app.openapi_schema is None:
            description = generate()
            components: dict[str, Any] = description.setdefault("components", {}).setdefault("schemas", {})
            components["Problem"] = problems.ProblemBody.model_json_schema()
            for cls in (live.LiveStatus, live.ClusterEvent):  # messages of streams
                schema = cls.model_json_schema(ref_template="#/components/schemas/{model}")
                components.update(schema.pop("$defs", {}))
                components[cls.__name__] = schema
            # The framework drops every null, also in examples.
            for module in (schemas, live):
                for name in components.keys() & vars(module).keys():
                    components[name] |= {
                        k: v for k, v in vars(module)[name].model_json_schema().items() if k == "examples"
                    }
            description["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
            if needs_token:
                description["security"] = [{"token": []}]
            common = problems.problem_responses((403, 421, 429) if local_only else (403, 429))
            for path, methods in description["paths"].items():
                for method, operation in methods.items():
                    if path in PUBLIC_API_PATHS:
                        operation["security"] = []
                    elif modifies(method.upper(), path):
                        operation["security"] = [{"token": []}]
                    if path not in PROBE_PATHS:
                        operation["responses"] = {str(k): v for k, v in common.items()} | operation["responses"]
            app.openapi_schema = description
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
