"""``streamkm demo``: a broker, a consumer and a service on this machine, with real records."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from consumers import logs, terminal
from consumers.demo_view import View, save_picture
from consumers.feed import FIELDS, PARTITIONS, Producer, shuttle_rows
from consumers.options import example
from consumers.signals import stop_on_signals
from streamkm.client import Client
from streamkm.connectors import KafkaWriter
from streamkm.errors import (
    NotFoundError,
    NotReadyError,
    ServiceError,
    StoreUnavailableError,
    StreamkmError,
)
from streamkm.service.auth import issue
from streamkm.stores import open_store

MODEL = TOPIC = "shuttle"
REFRESH_SECONDS = 0.25
"""Seconds between two updates of the view."""
START_SECONDS = 180.0
"""Maximum seconds for each step of the start; the first start compiles kernels."""


class DemoError(StreamkmError):
    """A part of the demo did not start, or exited."""


@click.command(epilog=example("streamkm demo", "streamkm demo --seconds 30 --rate 20000"))
@click.option("--seconds", type=click.FloatRange(min=0), default=0.0, help="Stop after this time; 0: on Ctrl-C.")
@click.option("--rate", type=click.IntRange(1, 1_000_000), default=5000, show_default=True, help="Records per second.")
@click.option("--k", type=click.IntRange(1, 1000), default=7, show_default=True, help="Number of clusters.")
@click.option("--picture", type=click.Path(dir_okay=False), help="Write the final view to this SVG file.")
def demo(seconds: float, rate: int, k: int, picture: str | None) -> None:
    """Cluster sensor readings of the NASA shuttle, streamed into a real Kafka on this machine.

    Starts a local Apache Kafka, `streamkm live` and `streamkm serve`, and shows the clusters. All data is deleted at
    the end.
    """
    from streamkm.broker import LocalBroker

    logs.configure()
    stop = stop_on_signals()
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="streamkm-demo-")))
        terminal.say("starting Apache Kafka ...")
        broker = stack.enter_context(LocalBroker())
        broker.create_topic(TOPIC, PARTITIONS)
        store = f"sqlite:///{folder / 'demo.db'}"
        port = _free_port()
        live = stack.enter_context(
            _process(
                folder, "live", MODEL, "--bootstrap", broker.bootstrap, "--topic", TOPIC, "--fields", ",".join(FIELDS),
                "--k", str(k), "--store", store, "--checkpoint-every", "500ms", "--snapshot-every", "2s",
            )
        )  # fmt: skip
        terminal.say("starting the consumer (the first start compiles kernels, up to a minute) ...")
        _wait(live, "the consumer created no store", lambda: _store_exists(store))
        options = ("--store", store, "--bootstrap", broker.bootstrap)
        serve = stack.enter_context(_process(folder, "serve", "--port", str(port), *options))
        client = stack.enter_context(Client(f"http://127.0.0.1:{port}"))
        _wait(serve, "the service is not ready", lambda: _is_serving(client))
        _wait(live, "the consumer does not start", lambda: _has_committed(client))
        writer = stack.enter_context(contextlib.closing(KafkaWriter(broker.bootstrap)))
        stack.enter_context(Producer(writer, TOPIC, rate))
        terminal.say(f"started in {time.monotonic() - started:.1f} s")
        terminal.say(f"dashboard: {client.url}/ (to control the model, sign in with {_token(store)})", verbatim=True)
        points = np.array([[row[name] for name in FIELDS] for row in itertools.islice(shuttle_rows(), 3)], np.float64)
        view = View(urls=_urls(client.url, points), topic=TOPIC)
        _watch(view, client, (live, serve), points, stop, seconds)
        if picture:
            save_picture(view, picture)
        live.stop()  # it publishes a last snapshot
        view.show_model(client.model(MODEL), view.elapsed)
        view.show_centroids(client.centroids(MODEL))
    terminal.say(
        f"clustered {view.points:,} real records in {view.elapsed:.0f} s, published {view.snapshot} snapshots, "
        f"answered {view.answered['centroids']} centroid and {view.answered['predict']} predict requests over HTTP"
    )
    if not (view.points and view.snapshot and view.answered["predict"]):
        raise DemoError("the stream was not clustered", hint="Run it for longer: streamkm demo --seconds 60")


def _watch(
    view: View,
    client: Client,
    processes: tuple[Process, ...],
    points: NDArray[np.float64],
    stop: threading.Event,
    seconds: float,
) -> None:
    """Update the view until the time is over or a signal arrives."""
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        screen = stack.enter_context(terminal.live()) if terminal.is_terminal() else None
        for tick in itertools.count():
            elapsed = time.monotonic() - started
            for process in processes:
                process.check()
            with contextlib.suppress(NotFoundError, NotReadyError):  # not created yet, or warming up
                view.show_model(client.model(MODEL), elapsed)
                view.show_centroids(client.centroids(MODEL))
                view.answered["predict"] += len(client.predict(MODEL, points).ids) == len(points)
            if not view.snapshot and elapsed > START_SECONDS:
                raise DemoError(f"no snapshot within {START_SECONDS:.0f} s", where=processes[0].tail())
            if screen is not None:
                screen.update(view.picture(terminal.console().width), refresh=True)
            elif tick % 8 == 0:
                terminal.say(view.line())
            if (seconds and elapsed >= seconds) or stop.wait(REFRESH_SECONDS):
                return


class Process:
    """A program of streamkm, with its output in a file."""

    def __init__(self, folder: Path, command: str, arguments: tuple[str, ...]) -> None:
        self.name, self.log = command, folder / f"{command}.log"
        with self.log.open("wb") as out:
            self.popen = subprocess.Popen(  # noqa: S603 - our own program
                [sys.executable, "-m", "consumers", command, *arguments], stdout=out, stderr=subprocess.STDOUT
            )

    def check(self) -> None:
        """Raise an error if the process has exited."""
        if self.popen.poll() is not None:
            raise DemoError(f"streamkm {self.name} exited with status {self.popen.returncode}", where=self.tail())

    def stop(self) -> None:
        """Send SIGTERM, and wait for the exit."""
        if self.popen.poll() is None:
            self.popen.terminate()
            try:
                self.popen.wait(20)
            except subprocess.TimeoutExpired:
                self.popen.kill()
                self.popen.wait()

    def tail(self) -> str:
        """The last lines of the output."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])


@contextlib.contextmanager
def _process(folder: Path, command: str, *arguments: str) -> Iterator[Process]:
    process = Process(folder, command, arguments)
    try:
        yield process
    finally:
        process.stop()


def _wait(process: Process, failure: str, condition: Callable[[], bool]) -> None:
    """Wait until a condition holds.

    Raises
    ------
    DemoError
        The process exits first, or the condition does not hold in time.
    """
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        process.check()
        if time.monotonic() > deadline:
            raise DemoError(failure, where=process.tail())
        time.sleep(0.1)


def _store_exists(store: str) -> bool:
    try:
        open_store(store, create=False).close()
    except StoreUnavailableError:
        return False
    return True


def _is_serving(client: Client) -> bool:
    try:
        client.models()
    except ServiceError:
        return False
    return True


def _has_committed(client: Client) -> bool:
    """Whether the consumer owns the model, and has committed its start position."""
    try:
        return bool(client.model(MODEL).raw["commits"])
    except NotFoundError:
        return False


def _token(store: str) -> str:
    """A token with the right to control the models of the demo."""
    text, token = issue("demo", "write", (), time.time())
    with contextlib.closing(open_store(store, create=False)) as opened:
        opened.add_token(token)
    return text


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


def _urls(base: str, points: NDArray[np.float64]) -> tuple[str, ...]:
    point = json.dumps(points[0].tolist())
    return (
        f"{base}/     dashboard",
        f"{base}/openapi.json",
        f"curl {base}/v1/models/{MODEL}/centroids",
        f"curl {base}/v1/models/{MODEL}/predict --json '{{\"points\": [{point}]}}'",
    )
