"""``streamkm live``: run the engine until somebody says stop."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from types import FrameType

import click
import prometheus_client

from consumers import logs
from consumers.compose import make_engine, warm_up
from consumers.options import example, takes
from streamkm.metrics import Metrics
from streamkm.models import COMPILING_SECONDS
from streamkm.settings import LiveSettings
from streamkm.stores import open_store

log = logging.getLogger("streamkm.live")


@click.command(
    epilog=example(
        "streamkm live orders --bootstrap localhost:9092 --topic orders --fields amount,lat,lon --k 8",
        "streamkm live orders --topic orders --fields amount,lat,lon --half-life 10m --snapshot-every 5s",
        "streamkm live orders --topic orders --fields amount,lat,lon --k auto --scale standard",
        "streamkm live orders        (a model that exists: goes on where it stands)",
    )
)
@click.argument("model")
@takes(LiveSettings)
@click.option("-v", "--verbose", is_flag=True, help="More log lines.")
def live(model: str, settings: LiveSettings, *, verbose: bool) -> None:
    """Cluster a topic as its records come, into MODEL.

    Resumes exactly where the model stands. Started twice, the second process stands by and takes over when the first
    one dies. SIGTERM and SIGINT finish the mini-batch, commit, publish and leave.
    """
    logs.configure(verbose=verbose)
    stop = stop_on_signals()
    metrics = Metrics()
    with contextlib.closing(open_store(settings.store)) as store:
        engine = make_engine(model, settings, store, metrics)
        # Before the lease is asked for: while a first start compiles, an owner would look dead.
        seconds = warm_up(engine.parts.codec)
        compiled = " (compiled, the next start is quick)" if seconds > COMPILING_SECONDS else ""
        log.info("kernels ready after %.1f s%s", seconds, compiled)
        if settings.metrics_port:
            prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # outside the contract
            prometheus_client.start_http_server(settings.metrics_port, "127.0.0.1", metrics.registry)
        engine.run(stop)


def stop_on_signals() -> threading.Event:
    """An event that SIGTERM and SIGINT set."""
    stop = threading.Event()

    def handle(number: int, _: FrameType | None) -> None:
        log.info("%s: finishing the mini-batch", signal.Signals(number).name)
        stop.set()

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)
    return stop
