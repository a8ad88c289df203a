"""``streamkm serve``: the HTTP service over a store."""

from __future__ import annotations

import contextlib
import gc
import ipaddress
import logging
import signal
import socket
import sys
from collections.abc import Sequence
from types import FrameType

import click
import uvicorn
from fastapi import FastAPI

from consumers import logs
from consumers.options import example, verbose, with_settings
from streamkm.http.connection import DEFAULTS, ConnectionLimits, bounded_protocol
from streamkm.http.listening import check_bind, listen, url_of
from streamkm.metrics import HTTP_REQUESTS, Metrics
from streamkm.service import ServiceOptions, create_app
from streamkm.service.job_command import child_environment, replay_command
from streamkm.service.job_runner import JobRunner
from streamkm.service.middleware import REQUEST_HEADERS
from streamkm.settings import ServeSettings
from streamkm.stores import open_store
from streamkm.values import is_loopback

log = logging.getLogger("streamkm.serve")

SHUTDOWN_SECONDS = 5
"""Seconds for pending requests when the service stops."""


@click.command(
    epilog=example(
        "streamkm serve --store sqlite:///streamkm.db --port 8000",
        "STREAMKM_TOKEN=$(openssl rand -hex 32) streamkm serve --host 0.0.0.0",
    )
)
@with_settings(ServeSettings)
@verbose("More log lines, one for each request too")
def serve(settings: ServeSettings, *, verbosity: int) -> None:
    """Serve models, clusters, predictions and control over HTTP.

    By default it listens on loopback, where reading needs no token. On any other address reading needs one too:
    STREAMKM_TOKEN, or one made by streamkm tokens. Control (promote, pause, delete, jobs) always needs one. SIGTERM and
    SIGINT finish pending requests and end the jobs.
    """
    logs.configure(verbosity)
    signal.signal(signal.SIGTERM, _exit)
    signal.signal(signal.SIGINT, _exit)
    with contextlib.closing(open_store(settings.store, create=False)) as store:
        local = is_loopback(settings.host)
        if not local:
            check_bind(settings.host, settings.token, stored=bool(store.tokens()))
        app = create_app(
            store,
            metrics=Metrics(process=True),
            token=settings.token or None,
            local_only=local and not settings.token,
            guarded=not local,
            jobs=JobRunner(store, replay_command(settings), child_environment(settings)),
            options=ServiceOptions(rate_limit=settings.rate_limit),
        )
        run(app, settings, verbosity)


def run(app: FastAPI, settings: ServeSettings, verbosity: int) -> None:
    """Serve an application until a signal arrives."""
    with listen(settings.host, settings.port) as listener:
        config = server_config(app, trusted_proxies=settings.trusted_proxies, verbosity=verbosity)
        log.info("serving on %s", url_of(listener))
        # Excludes the objects of the start from garbage collection: a full collection would delay responses by 50 ms.
        gc.collect()
        gc.freeze()
        _Server(config).run(sockets=[listener])


def server_config(
    app: FastAPI, *, trusted_proxies: Sequence[str] = (), verbosity: int = 0, limits: ConnectionLimits = DEFAULTS
) -> uvicorn.Config:
    """Configuration of the HTTP server.

    Parameters
    ----------
    app
        Made by `create_app`.
    trusted_proxies
        Addresses and networks whose X-Forwarded-For and X-Forwarded-Proto are trusted.
    verbosity
        1: log each request; 2 or more: log everything that the server does.
    limits
        Limits of the connections.
    """
    metrics: Metrics = app.state.metrics

    def on_refused(status: int) -> None:
        metrics.add(HTTP_REQUESTS, method="other", route="none", status=str(status))

    return uvicorn.Config(
        app,
        http=bounded_protocol(REQUEST_HEADERS, limits, on_refused),
        ws="none",
        proxy_headers=bool(trusted_proxies),
        forwarded_allow_ips=[network for proxy in trusted_proxies for network in _with_mapped(proxy)],
        log_config=None,
        log_level="debug" if verbosity > 1 else "info" if verbosity else "warning",
        access_log=verbosity > 0,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        server_header=False,
    )


def _with_mapped(proxy: str) -> list[str]:
    """A network, and its IPv4-mapped form, which an IPv6 socket shows for IPv4 connections."""
    network = ipaddress.ip_network(proxy)
    mapped = f"::ffff:{network.network_address}/{96 + network.prefixlen}"
    return [str(network), mapped] if network.version == 4 else [str(network)]


class _Server(uvicorn.Server):
    """A server that ends its streams before it shuts down: else it would wait for the clients to close them."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.config.app.state.end_streams()  # type: ignore[union-attr]
        await super().shutdown(sockets)


def _exit(number: int, _: FrameType | None) -> None:
    # While the server runs it handles the signals itself, and raises them again at its end.
    log.info("%s: exiting", signal.Signals(number).name)
    sys.exit(0)
