"""``streamkm demo``: the main job on this machine, with real records, a real broker and real processes."""

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
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from consumers import logs, terminal
from consumers.demo_view import View, save_picture
from consumers.feed import FIELDS, PARTITIONS, Producer, shuttle_rows
from consumers.options import example
from consumers.signals import stop_on_signals
from streamkm.connectors import KafkaWriter
from streamkm.errors import StoreUnavailableError, StreamkmError
from streamkm.service.auth import issue
from streamkm.stores import open_store

MODEL = TOPIC = "shuttle"
TICK = 0.25
PATIENCE = 180.0
"""Seconds in which the consumer has to publish something; its first start compiles kernels."""


class DemoError(StreamkmError):
    """Something of the demo did not come up, or died."""


@click.command(epilog=example("streamkm demo", "streamkm demo --seconds 30 --rate 20000"))
@click.option("--seconds", type=click.FloatRange(min=0), default=0.0, help="End by itself after so long; 0: never.")
@click.option("--rate", type=click.IntRange(1, 1_000_000), default=5000, show_default=True, help="Records a second.")
@click.option("--k", type=click.IntRange(1, 1000), default=7, show_default=True, help="Number of clusters.")
@click.option("--picture", type=click.Path(dir_okay=False), help="At the end, write the view as an SVG.")
def demo(seconds: float, rate: int, k: int, picture: str | None) -> None:
    """See it work: sensor readings of the NASA shuttle stream into Kafka, a consumer clusters them, a service answers.

    Starts a real local Apache Kafka, `streamkm live` and `streamkm serve`, and shows what they do. Everything is gone
    when it ends.
    """
    from streamkm.broker import LocalBroker

    logs.configure()
    stop = stop_on_signals()
    began = time.monotonic()
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
        terminal.say("starting the consumer (its first start compiles kernels, up to a minute) ...")
        _wait_for_store(store, live)
        where = ("--store", store, "--bootstrap", broker.bootstrap)
        serve = stack.enter_context(_process(folder, "serve", "--port", str(port), *where))
        service = Service(f"http://127.0.0.1:{port}")
        service.wait(serve)
        service.wait_for_owner(live)
        writer = stack.enter_context(contextlib.closing(KafkaWriter(broker.bootstrap)))
        stack.enter_context(Producer(writer, TOPIC, rate))
        terminal.say(f"all up after {time.monotonic() - began:.1f} s")
        terminal.say(f"a page to look at: {service.base}/ (to act, sign in with {_token(store)})", verbatim=True)
        rows = [{name: row[name] for name in FIELDS} for row in itertools.islice(shuttle_rows(), 3)]
        view = View(urls=_urls(service.base, rows), topic=TOPIC)
        _watch(view, service, (live, serve), rows, stop, seconds)
        if picture:
            save_picture(view, picture)
        live.stop()  # publishes once more
        view.model(service.get(f"/v1/models/{MODEL}"), view.elapsed)
        view.centroids(service.get(f"/v1/models/{MODEL}/centroids"))
    terminal.say(
        f"clustered {view.points:,} real records in {view.elapsed:.0f} s, published {view.snapshot} snapshots, "
        f"answered {view.answered['centroids']} centroid and {view.answered['predict']} predict requests over HTTP"
    )
    if not (view.points and view.snapshot and view.answered["predict"]):
        raise DemoError("the stream was not clustered", hint="Run it for longer: streamkm demo --seconds 60")


def _watch(
    view: View,
    service: Service,
    processes: tuple[Process, ...],
    rows: list[dict[str, float]],
    stop: threading.Event,
    seconds: float,
) -> None:
    """Look at the service four times a second until the time is over or somebody says stop."""
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        screen = stack.enter_context(terminal.live()) if terminal.is_terminal() else None
        for tick in itertools.count():
            elapsed = time.monotonic() - began
            for process in processes:
                process.check()
            with contextlib.suppress(urllib.error.HTTPError):  # 404 and 409: not made yet, warming up
                view.model(service.get(f"/v1/models/{MODEL}"), elapsed)
                view.centroids(service.get(f"/v1/models/{MODEL}/centroids"))
                answer = service.post(f"/v1/models/{MODEL}/predict", {"points": rows})
                view.answered["predict"] += len(answer["ids"]) == len(rows)
            if not view.snapshot and elapsed > PATIENCE:
                raise DemoError(f"nothing was published within {PATIENCE:.0f} s", where=processes[0].tail())
            if screen is not None:
                screen.update(view.picture(terminal.console().width), refresh=True)
            elif tick % 8 == 0:
                terminal.say(view.line())
            if (seconds and elapsed >= seconds) or stop.wait(TICK):
                return


class Process:
    """One of our own programs, its output in a file."""

    def __init__(self, folder: Path, command: str, arguments: tuple[str, ...]) -> None:
        self.name, self.log = command, folder / f"{command}.log"
        with self.log.open("wb") as out:
            self.popen = subprocess.Popen(  # noqa: S603 - our own program
                [sys.executable, "-m", "consumers", command, *arguments], stdout=out, stderr=subprocess.STDOUT
            )

    def check(self) -> None:
        """Raise if it died."""
        if self.popen.poll() is not None:
            raise DemoError(f"streamkm {self.name} left with status {self.popen.returncode}", where=self.tail())

    def stop(self) -> None:
        """SIGTERM, then wait."""
        if self.popen.poll() is None:
            self.popen.terminate()
            try:
                self.popen.wait(20)
            except subprocess.TimeoutExpired:
                self.popen.kill()
                self.popen.wait()

    def tail(self) -> str:
        """The last lines of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])


@contextlib.contextmanager
def _process(folder: Path, command: str, *arguments: str) -> Iterator[Process]:
    process = Process(folder, command, arguments)
    try:
        yield process
    finally:
        process.stop()


class Service:
    """The few requests that the demo makes."""

    def __init__(self, base: str) -> None:
        self.base = base

    def get(self, path: str) -> Any:
        """GET, as JSON."""
        with urllib.request.urlopen(self.base + path, timeout=10) as answer:  # noqa: S310 - our own loopback address
            return json.load(answer)

    def post(self, path: str, body: Any) -> Any:
        """POST, JSON both ways."""
        request = urllib.request.Request(  # noqa: S310 - our own loopback address
            self.base + path, json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - our own loopback address
            return json.load(answer)

    def wait(self, process: Process) -> None:
        """Until it is ready."""
        deadline = time.monotonic() + PATIENCE
        while True:
            process.check()
            try:
                self.get("/readyz")
            except (urllib.error.URLError, ConnectionError):
                if time.monotonic() > deadline:
                    raise DemoError("the service is not ready", where=process.tail()) from None
                time.sleep(0.1)
            else:
                return

    def wait_for_owner(self, process: Process) -> None:
        """Until the consumer owns its model and has committed where it starts."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            process.check()
            with contextlib.suppress(urllib.error.HTTPError):  # 404: not made yet
                if self.get(f"/v1/models/{MODEL}")["commits"]:
                    return
            time.sleep(0.1)
        raise DemoError("the consumer does not start", where=process.tail())


def _wait_for_store(store: str, live: Process) -> None:
    """The service reads the consumer's store, so the consumer comes first."""
    deadline = time.monotonic() + PATIENCE
    while True:
        live.check()
        try:
            open_store(store, create=False).close()
        except StoreUnavailableError:
            if time.monotonic() > deadline:
                raise DemoError("the consumer made no store", where=live.tail()) from None
            time.sleep(0.05)
        else:
            return


def _token(store: str) -> str:
    """One that may act on the demo's models, which are gone with it."""
    text, token = issue("demo", "write", (), time.time())
    with contextlib.closing(open_store(store, create=False)) as opened:
        opened.add_token(token)
    return text


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


def _urls(base: str, rows: list[dict[str, float]]) -> tuple[str, ...]:
    point = json.dumps(list(rows[0].values()))
    return (
        f"{base}/     the page, for a browser",
        f"{base}/openapi.json",
        f"curl {base}/v1/models/{MODEL}/centroids",
        f"curl {base}/v1/models/{MODEL}/predict --json '{{\"points\": [{point}]}}'",
    )
