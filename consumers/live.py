"""``streamkm live``: cluster a topic as its records arrive."""

from __future__ import annotations

import contextlib
import functools
import logging
import os

import click

from consumers import logs
from consumers.factories import make_engine, warm_up
from consumers.options import example, verbose, with_settings
from consumers.signals import stop_on_signals
from streamkm.connectors import connection_error
from streamkm.engine import Watchdog
from streamkm.errors import BrokerUnreachableError
from streamkm.http.listening import check_bind
from streamkm.http.probes import probes
from streamkm.metrics import Metrics
from streamkm.models import COMPILING_SECONDS
from streamkm.settings import LiveSettings
from streamkm.stores import open_store

log = logging.getLogger("streamkm.live")

HUNG = 10
"""Exit status if the loop made no progress for two minutes."""


@click.command(
    epilog=example(
        "streamkm live orders --bootstrap localhost:9092 --topic orders --fields amount,lat,lon --k 8",
        "streamkm live orders --topic orders --fields amount,lat,lon --half-life 10m --snapshot-every 5s",
        "streamkm live orders --topic orders --fields amount,lat,lon --k auto --scale standard",
        "streamkm live orders        (resumes an existing model)",
    )
)
@click.argument("model")
@with_settings(LiveSettings)
@verbose()
def live(model: str, settings: LiveSettings, *, verbosity: int) -> None:
    """Cluster the records of a topic into MODEL as they arrive.

    Resumes exactly at the position of the model. A second process for the same model is a standby, and takes over if
    the first one dies. SIGTERM and SIGINT finish the mini-batch, commit, publish a snapshot and exit.
    """
    logs.configure(verbosity)
    check_bind(settings.metrics_host, settings.token, "--metrics-host")
    stop = stop_on_signals()
    metrics = Metrics()
    with contextlib.closing(open_store(settings.store)) as store:
        try:
            engine = make_engine(model, settings, store, metrics, stop.is_set)
        except BrokerUnreachableError:
            if stop.is_set():
                return
            raise
        # Before the lease is acquired: an owner that compiles would seem dead.
        with stop.at_once():
            seconds = warm_up(engine.context.codec)
        compiled = " (compiled, the next start is faster)" if seconds > COMPILING_SECONDS else ""
        log.info("kernels ready after %.1f s%s", seconds, compiled)
        heartbeat = engine.context.heartbeat
        with contextlib.ExitStack() as beside:
            if settings.metrics_port:
                at = settings.metrics_host, settings.metrics_port
                reachable = functools.partial(connection_error, settings.bootstrap)
                beside.enter_context(probes(*at, metrics, heartbeat, reachable, settings.token, ping=store.ping))
            # A hanging process may hold locks, so it is ended without cleanup.
            beside.enter_context(Watchdog(heartbeat, model, metrics, lambda: os._exit(HUNG)))
            engine.run(stop)
