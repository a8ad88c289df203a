"""CPU time of the event loop for requests without a token, for each kind of request.

The service runs as in `streamkm serve`, in a thread of this process. Only the CPU time of that thread counts, without
threads of the store and other load. Each kind is sent several times in a row, in interleaved rounds, and the result is
the median of the rounds. One table is of a service that requires a token, which is required unless it listens on
loopback only; the other of a service on loopback, where reading needs no token.

    python benchmarks/loop.py --json FILE
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import uvicorn
from fastapi import FastAPI

from consumers.serve import server_config
from streamkm.codecs import make_codec
from streamkm.connectors import MemorySource
from streamkm.engine import Engine, EngineOptions
from streamkm.metrics import Metrics
from streamkm.records import RawRecord, TopicPartition
from streamkm.service import create_app
from streamkm.state import CodecSpec, ModelSpec
from streamkm.stores import Store, open_store
from streamkm.testing import StopAfter

GOAL = 1.0
"""Milliseconds per request, with a body of up to 1 MiB."""
FIELDS = tuple("abcdefgh")
BODY = 1 << 20


class Client:
    """A connection that is opened again after the service has closed it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.close()

    def close(self) -> None:
        """Forget the connection."""
        self.stream: socket.socket | None = None
        self.kept = b""

    def send(self, request: bytes, responses: int = 1) -> list[int]:
        """Send a request and read responses; returns their statuses, 0 for one that the service did not complete."""
        if self.stream is None:
            self.stream = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        with contextlib.suppress(ConnectionError):
            self.stream.sendall(request)
        statuses = []
        for _ in range(responses):
            try:
                status, closes = self._response(bodiless=request.startswith(b"HEAD"))
            except ConnectionError:
                status, closes = 0, True
            statuses.append(status)
            if closes:
                self.close()
                break
        return statuses

    def _response(self, *, bodiless: bool) -> tuple[int, bool]:
        head = self._until(b"\r\n\r\n").lower()
        status = int(head.split(b" ", 2)[1])
        if b"text/event-stream" in head:
            self._until(b"\n\n")
            return status, True
        if not bodiless and status not in (204, 304):
            if b"transfer-encoding: chunked" in head:
                while size := int(self._until(b"\r\n"), 16):
                    self._exactly(size + 2)
                self._until(b"\r\n")
            elif length := head.partition(b"content-length: ")[2]:
                self._exactly(int(length.partition(b"\r\n")[0]))
        return status, b"connection: close" in head

    def _until(self, end: bytes) -> bytes:
        while end not in self.kept:
            self._more()
        found, _, self.kept = self.kept.partition(end)
        return found

    def _exactly(self, size: int) -> None:
        while len(self.kept) < size:
            self._more()
        self.kept = self.kept[size:]

    def _more(self) -> None:
        data = self.stream.recv(1 << 18)
        if not data:
            raise ConnectionError("closed before the end of a response")
        self.kept += data


def learn_model(store: Store) -> None:
    """Learn a model of 16 clusters and 8 fields, and publish it several times."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(5000, len(FIELDS))) + 10 * rng.integers(0, 16, (5000, 1))
    records = [
        RawRecord(TopicPartition("t", i % 4), i // 4, 1_700_000_000_000 + i, None, row)
        for i, row in enumerate(json.dumps(dict(zip(FIELDS, v, strict=True))).encode() for v in values.tolist())
    ]
    codec = CodecSpec("json", FIELDS, {"max_bytes": 10_000})
    learner = {"kind": "OnlineKMeans", "warmup": 500, "seed": 1}
    engine = Engine(
        ModelSpec("m", FIELDS, 16, {"kind": "memory"}, learner, codec),
        open_source=lambda: MemorySource(records, topic="t", partitions=4),
        codec=make_codec(codec),
        store=store,
        options=EngineOptions(batch=500, checkpoint_every=0.0, snapshot_points=1000, owner="benchmark"),
    )
    engine.run(StopAfter(lambda: _read(store) == len(records)))


def _read(store: Store) -> int:
    progress = store.model("m").progress
    return progress.counters.records if progress is not None else 0


@contextlib.contextmanager
def serving(app: FastAPI) -> Iterator[tuple[int, Callable[[], float]]]:
    """Serve an application; gives the port, and a clock of the CPU seconds of the event loop."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0), backlog=512)) as listener:
        server = uvicorn.Server(server_config(app))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        gc.collect()
        gc.freeze()
        clock = time.pthread_getcpuclockid(thread.ident)
        try:
            yield listener.getsockname()[1], lambda: time.clock_gettime(clock)
        finally:
            app.state.end_streams()
            server.should_exit = True
            thread.join()


def request(line: str, *headers: str, body: bytes = b"", host: str = "localhost") -> bytes:
    """The bytes of a request."""
    lines = [f"{line} HTTP/1.1", f"Host: {host}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def all_requests(app: FastAPI, token: str) -> dict[str, tuple[bytes, int]]:
    """The requests by name, with the number of responses to each."""
    found: dict[str, tuple[bytes, int]] = {}
    for path, methods in {**app.openapi()["paths"], **_PAGES}.items():
        filled = path.format(model="m", snapshot_id=1, version=1, job_id="j")
        query = "?a=1&b=2" if path.endswith("/diff") else ""
        for method in methods:
            # No bodies: without a token they are not read.
            length = ("Content-Length: 0",) if method in ("post", "delete") else ()
            found[f"{method.upper()} {path}"] = request(f"{method.upper()} {filled}{query}", *length), 1
    found |= {f"GET /assets/{name}": (request(f"GET /assets/{name}"), 1) for name in ("app.js", "docs.js", "style.css")}
    compressed = "Accept-Encoding: gzip, deflate, br"
    for path in ("/", "/openapi.json", "/metrics", "/assets/app.js", "/v1/models"):
        found[f"GET {path}, compressed"] = request(f"GET {path}", compressed), 1
    for method in ("HEAD", "OPTIONS", "PUT", "PATCH", "TRACE"):
        for path in ("/", "/v1/models", "/openapi.json", "/nowhere"):
            found[f"{method} {path}"] = request(f"{method} {path}", "Content-Length: 0"), 1
    for path in ("/livez", "/v1/me", "/", "/v1/models", "/v1/models/m/centroids", "/nowhere"):
        for name, headers in _headers(token).items():
            found[f"GET {path}, {name}"] = request(f"GET {path}", *headers), 1
    found |= {
        "path of 990 characters": (request("GET /" + "a" * 989), 1),
        "path of 990 slashes": (request("GET " + "/" * 990), 1),
        "path of 8,000 bytes": (request("GET /" + "a" * 8000), 1),
        "path of 2,600 escapes": (request("GET /" + "%41" * 2600), 1),
        "path of 60 kB": (request("GET /" + "a" * 60_000), 1),
        "query of 4,000 bytes": (request("GET /v1/models?x=" + "a" * 4000), 1),
        "query of 100 parameters": (request("GET /v1/models?" + "&".join(f"x{i}=1" for i in range(100))), 1),
        "query of 100 times one parameter": (request("GET /v1/models/m/k?" + "&".join(["snapshot=1"] * 100)), 1),
        "query of 1,300 escapes": (request("GET /v1/models?x=" + "%41" * 1300), 1),
        "query of 7,000 bytes": (request("GET /v1/models?x=" + "a" * 7000), 1),
        "another Host": (request("GET /v1/models", host="evil.example"), 1),
        "Host of 60 kB": (request("GET /v1/models", host="a" * 60_000), 1),
        "Host of 60 kB with a wrong end": (request("GET /v1/models", host="a" * 60_000 + "!"), 1),
        "no Host": (b"GET / HTTP/1.1\r\n\r\n", 1),
        "another site": (request("GET /v1/models", "Origin: http://evil.example", "Sec-Fetch-Site: cross-site"), 1),
        "HTTP/1.0": (b"GET /livez HTTP/1.0\r\nHost: localhost\r\n\r\n", 1),
        "no HTTP": (b"\x16\x03\x01 hello\r\n\r\n", 1),
        "64 kB of headers without an end": (b"GET / HTTP/1.1\r\nHost: localhost\r\nA: " + b"a" * 66_000, 1),
        "101 headers": (request("GET /livez", *[f"A{i}: 1" for i in range(100)]), 1),
        "100 pipelined requests, each": (100 * request("GET /livez"), 100),
        "100 pipelined requests to no route, each": (100 * request("GET /nowhere"), 100),
    }
    bodies = {"to nowhere": "/nowhere", "to predict": "/v1/models/m/predict", "to pause": "/v1/models/m/pause"}
    for name, path in bodies.items():
        body = b"[" * BODY
        whole = request(f"POST {path}", f"Content-Length: {BODY}", body=body)
        found[f"body of 1 MiB {name}"] = whole, 1
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(c), c) for c in (body[: 1 << 16],) * 16) + b"0\r\n\r\n"
        found[f"body of 1 MiB in chunks of 64 KiB {name}"] = request(f"POST {path}", _CHUNKED, body=chunks), 1
        found[f"body of 9,000 chunks of a byte {name}"] = (
            request(f"POST {path}", _CHUNKED, body=b"1\r\n[\r\n" * 9000 + b"0\r\n\r\n"),
            1,
        )
        found[f"4 bytes {name}"] = request(f"POST {path}", "Content-Length: 4", body=b"[[[["), 1
    for count in (1, 400, 8000):
        points = json.dumps({"points": [[float(i)] * len(FIELDS) for i in range(count)]}).encode()
        length = f"Content-Length: {len(points)}"
        found[f"predict {count} points"] = request("POST /v1/models/m/predict", length, body=points), 1
    return found


_CHUNKED = "Transfer-Encoding: chunked"
_PAGES = {
    "/": ("get",),
    "/docs": ("get",),
    "/openapi.json": ("get",),
    "/assets/nothing": ("get",),
    "/nowhere": ("get",),
}


def _headers(token: str) -> dict[str, tuple[str, ...]]:
    """Many or long headers, by name."""
    long = "a" * 60_000
    return {
        "a wrong token": (f"Authorization: Bearer {token}",),
        "a token of 60 kB": (f"Authorization: Bearer {long}",),
        "99 headers": tuple(f"A{i}: 1" for i in range(98)),
        "99 headers, 60 kB": tuple(f"A{i}: {'a' * 600}" for i in range(98)),
        "99 headers of names of 600 bytes": tuple(f"{'A' * 600}{i}: 1" for i in range(98)),
        "99 times Accept, 60 kB": ("Accept: " + "a/b," * 150,) * 98,
        "99 times If-None-Match, 60 kB": ("If-None-Match: " + '"a",' * 150,) * 98,
        "one header of 60 kB": (f"A: {long}",),
        "a name of 60 kB": (f"{long}: a",),
        "60 kB of cookies": ("Cookie: " + "; ".join(f"c{i}=1" for i in range(8000))[:60_000],),
        "99 cookies, 60 kB": ("Cookie: " + "c=1; " * 120,) * 98,
        "an Accept of 60 kB": ("Accept: " + "a/b," * 15_000,),
        "an Accept-Encoding of 60 kB": ("Accept-Encoding: " + "a," * 30_000,),
        "an If-None-Match of 60 kB": ("If-None-Match: " + '"a",' * 15_000,),
        "an Origin of 60 kB": (f"Origin: {long}",),
        "X-Forwarded-For of 60 kB": ("X-Forwarded-For: " + "1.2.3.4," * 7500,),
        "Upgrade, 98 times": ("Upgrade: " + "h2c," * 150, *("Upgrade: " + "a," * 300,) * 97),
    }


def measure(
    port: int, clock: Callable[[], float], requests: dict[str, tuple[bytes, int]], times: int, rounds: int
) -> dict:
    """Milliseconds of the loop for each request, as median and maximum of the rounds, and the response statuses."""
    spent: dict[str, list[float]] = {name: [] for name in requests}
    statuses: dict[str, list[int]] = {}
    for _ in range(rounds + 1):  # the first one warms up
        for name, (content, responses) in requests.items():
            client = Client(port)
            began = clock()
            received = [client.send(content, responses) for _ in range(max(1, times // responses))]
            time.sleep(0.005)  # includes the work after the last response
            spent[name].append(1000 * (clock() - began) / sum(map(len, received)))
            statuses[name] = sorted({status for some in received for status in some})
    return {
        name: {"ms": statistics.median(of[1:]), "worst": max(of[1:]), "status": statuses[name]}
        for name, of in spent.items()
    }


def main() -> None:
    """Print and write the cost of each request; exit with status 1 if one is above the goal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20, help="requests of a kind in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="only requests whose name contains this text")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    a = parser.parse_args()
    figures: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(open_store(f"sqlite:///{folder}/s.db")) as store:
        learn_model(store)
        for kind, settings in (("with a token", {"token": "right"}), ("on loopback", {"local_only": True})):
            app = create_app(store, metrics=Metrics(process=True), **settings)
            selected = {name: r for name, r in all_requests(app, "wrong").items() if a.only in name}
            with serving(app) as (port, clock):
                figures[kind] = measure(port, clock, selected, a.times, a.rounds)
            print(f"\n{kind}: milliseconds of the loop, median and worst round of {a.rounds}")
            for name, of in sorted(figures[kind].items(), key=lambda item: -item[1]["ms"]):
                print(f"{of['ms']:8.3f} {of['worst']:8.3f}  {name} {of['status']}", flush=True)
    if a.json:
        a.json.write_text(json.dumps({"goal": GOAL, "figures": figures}, indent=2))
    over = [f"{kind}: {name}" for kind, of in figures.items() for name, one in of.items() if one["ms"] > GOAL]
    raise SystemExit(f"over {GOAL} ms: {', '.join(over)}" if over else 0)


if __name__ == "__main__":
    main()
