"""``streamkm serve``: the HTTP service over a store, until somebody says stop."""

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
from consumers.exposure import check_exposure, is_loopback
from consumers.listening import listen, url_of
from consumers.options import example, takes, verbose
from consumers.recompute import child_environment, replay_command
from streamkm.connections import DEFAULTS, Bounds, protocol
from streamkm.metrics import HTTP_REQUESTS, Metrics
from streamkm.service import ServiceOptions, create_app
from streamkm.service.headers import READ
from streamkm.service.jobs import Jobs
from streamkm.settings import ServeSettings
from streamkm.stores import open_store

log = logging.getLogger("streamkm.serve")

GRACE_SECONDS = 5
"""How long requests on their way may take when the service stops."""


@click.command(
    epilog=example(
        "streamkm serve --store sqlite:///streamkm.db --port 8000",
        "STREAMKM_TOKEN=$(openssl rand -hex 32) streamkm serve --host 0.0.0.0",
    )
)
@takes(ServeSettings)
@verbose("More log lines, one for each request too")
def serve(settings: ServeSettings, *, verbosity: int) -> None:
    """Answer queries about the clusters over HTTP.

    It listens on loopback, where reading needs no token; on any other address it does, be it STREAMKM_TOKEN or one of
    streamkm tokens. Acting (promote, pause, delete, jobs) always needs one. SIGTERM and SIGINT finish the requests on
    their way, end the jobs and leave.
    """
    logs.configure(verbosity)
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, _leave)
    with contextlib.closing(open_store(settings.store, create=False)) as store:
        local = is_loopback(settings.host)
        if not local:
            check_exposure(settings.host, settings.token, stored=bool(store.tokens()))
        app = create_app(
            store,
            metrics=Metrics(process=True),
            token=settings.token or None,
            local_only=local and not settings.token,
            guarded=not local,
            jobs=Jobs(store, replay_command(settings), child_environment(settings)),
            options=ServiceOptions(rate_limit=settings.rate_limit),
        )
        run(app, settings, verbosity)


def run(app: FastAPI, settings: ServeSettings, verbosity: int) -> None:
    """Serve an application until a signal comes."""
    with listen(settings.host, settings.port) as listener:
        config = server_config(app, trusted_proxies=settings.trusted_proxies, verbosity=verbosity)
        log.info("serving on %s", url_of(listener))
        # What is there now stays: a collection that looks through all of it holds answers up for 50 ms.
        gc.collect()
        gc.freeze()
        _Server(config).run(sockets=[listener])


def server_config(
    app: FastAPI, *, trusted_proxies: Sequence[str] = (), verbosity: int = 0, bounds: Bounds = DEFAULTS
) -> uvicorn.Config:
    """How the application is served.

    Parameters
    ----------
    app
        Made by `create_app`.
    trusted_proxies
        Addresses and networks whose X-Forwarded-For and X-Forwarded-Proto are believed; of nobody else's.
    verbosity
        1: log each request; more: all that the server does.
    bounds
        What connections hold their clients to.
    """
    metrics: Metrics = app.state.metrics

    def refused(status: int) -> None:
        metrics.add(HTTP_REQUESTS, method="other", route="none", status=str(status))

    return uvicorn.Config(
        app,
        http=protocol(READ, bounds, refused),
        ws="none",
        proxy_headers=bool(trusted_proxies),
        forwarded_allow_ips=[written for proxy in trusted_proxies for written in _as_seen(proxy)],
        log_config=None,
        log_level="debug" if verbosity > 1 else "info" if verbosity else "warning",
        access_log=verbosity > 0,
        timeout_graceful_shutdown=GRACE_SECONDS,
        server_header=False,
    )


def _as_seen(proxy: str) -> list[str]:
    """A network as a socket of IPv6 sees it too, which takes connections of IPv4 as well."""
    network = ipaddress.ip_network(proxy)
    mapped = f"::ffff:{network.network_address}/{96 + network.prefixlen}"
    return [str(network), mapped] if network.version == 4 else [str(network)]


class _Server(uvicorn.Server):
    """One that ends its streams first: it would wait for their readers to leave."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.config.app.state.end_streams()  # type: ignore[union-attr]
        await super().shutdown(sockets)


def _leave(number: int, _: FrameType | None) -> None:
    # While the server runs it takes the signals itself, and raises them again when it is done.
    log.info("%s: leaving", signal.Signals(number).name)
    sys.exit(0)
