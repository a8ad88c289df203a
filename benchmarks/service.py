"""The service under load beside a consumer that reads a backlog at full rate: latencies, and what they cost it.

Requests leave at fixed times, whether or not the ones before were answered, and count from the time at which they were
to leave: a service that stands still for a second has a second's worth of slow answers. Windows with and without load
take turns, and what the load costs the consumer is the ratio of neighbouring windows.

    python benchmarks/service.py --records 12000000 --seconds 6
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import numpy as np
from throughput import FIELDS, TOPIC, D, fill

K, CONNECTIONS = 16, 16
GOALS = {"predict": 20.0, "centroids": 5.0}
"""Milliseconds, 99th percentile."""


class Load:
    """Sends one request again and again over some connections, at a rate, and times the answers."""

    def __init__(self, port: int, request: bytes, per_second: float):
        self.port, self.request, self.per_second = port, request, per_second
        self.seconds: list[float] = []
        self.failed = 0

    async def run(self, duration: float) -> None:
        free: asyncio.Queue = asyncio.Queue()
        for _ in range(CONNECTIONS):
            free.put_nowait(await asyncio.open_connection("127.0.0.1", self.port))
        tasks, began = [], time.perf_counter()
        for i in range(int(duration * self.per_second)):
            due = began + i / self.per_second
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.append(asyncio.create_task(self._one(free, due)))
        await asyncio.gather(*tasks)
        while not free.empty():
            free.get_nowait()[1].close()

    async def _one(self, free: asyncio.Queue, due: float) -> None:
        reader, writer = await free.get()
        try:
            writer.write(self.request)
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(re.search(rb"(?i)content-length: (\d+)", head)[1]))
            self.failed += not head.startswith(b"HTTP/1.1 200")
            self.seconds.append(time.perf_counter() - due)
        finally:
            free.put_nowait((reader, writer))

    def told(self) -> dict:
        ms = np.sort(self.seconds) * 1000
        return {
            "requests": len(ms),
            "failed": self.failed,
            **{f"p{q}": float(np.percentile(ms, q)) for q in (50, 99)},
            "worst": float(ms[-1]),
        }


def cpu(process: subprocess.Popen) -> float:
    """Seconds of processor time that a process has used."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Listeners:
    """What 20 open pages are to the service: streams that are read and thrown away."""

    def __init__(self, port: int, count: int):
        self.port, self.count, self.received = port, count, 0

    async def run(self, duration: float) -> None:
        await asyncio.gather(*(self._one(duration) for _ in range(self.count)))

    async def _one(self, duration: float) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(b"GET /v1/models/bench/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(duration):
                while chunk := await reader.read(1 << 16):
                    self.received += len(chunk)
        writer.close()

    def told(self) -> dict:
        return {"listeners": self.count, "bytes": self.received}


def request(method: str, path: str, body: bytes = b"", kind: str = "application/json") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n"
    if body:
        head += f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body


def points_learned(port: int) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return sum(float(v) for v in re.findall(r"^streamkm_points_learned_total\{[^}]*\} (\S+)", text, re.MULTILINE))


def window(port: int, duration: float, load=None) -> float:
    """Points a second of the consumer while the load runs."""
    before, began = points_learned(port), time.perf_counter()
    if load is None:
        time.sleep(duration)
    else:
        asyncio.run(load.run(duration))
    return (points_learned(port) - before) / (time.perf_counter() - began)


def arrow(port: int, n: int) -> dict:
    """Seconds for n points in one request, the answer's reading and the request's making apart."""
    import pyarrow as pa

    rows = np.random.default_rng(1).normal(size=(n, D)) * 10
    batch = pa.record_batch([pa.array(rows[:, j]) for j in range(D)], names=list(FIELDS))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    kind = "application/vnd.apache.arrow.stream"
    asked = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/models/bench/predict",
        sink.getvalue().to_pybytes(),
        {"Content-Type": kind, "Accept": kind},
    )
    began = time.perf_counter()
    with urllib.request.urlopen(asked, timeout=60) as answer:
        body = answer.read()
    seconds = time.perf_counter() - began
    assert pa.ipc.open_stream(body).read_all().num_rows == n
    return {"points": n, "seconds": seconds}


@contextlib.contextmanager
def program(*arguments: str, log: Path, nice: int = 0):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("wb") as out:
        command = ["nice", "-n", str(nice), sys.executable, "-m", "consumers", *arguments]
        process = subprocess.Popen(command, stdout=out, stderr=out, env=env)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


def until(condition, process, log: Path, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(log.read_text())
        time.sleep(0.1)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=12_000_000)
    parser.add_argument("--seconds", type=float, default=6.0, help="length of a window")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--listeners", type=int, default=20)
    parser.add_argument("--only", choices=("predict", "centroids", "pages"), help="this load alone")
    parser.add_argument("--nice", type=int, default=0, help="of the consumer: 5, where answers come first")
    parser.add_argument("--bootstrap", help="a broker that has the topic already; else one is started and filled")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    a = parser.parse_args()
    from streamkm.broker import LocalBroker
    from streamkm.broker.properties import free_ports

    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if not a.bootstrap:
            a.bootstrap = stack.enter_context(LocalBroker()).bootstrap
            print(f"producing {a.records:,} JSON points, d = {D}", flush=True)
            fill(a.bootstrap, a.records)
        metrics, port = free_ports(2)
        store = f"sqlite:///{folder}/s.db"
        live = ["live", "bench", "--bootstrap", a.bootstrap, "--topic", TOPIC, "--fields", ",".join(FIELDS)]
        live += ["--k", str(K), "--store", store, "--metrics-port", str(metrics), "--snapshot-every", "5s"]
        consumer = stack.enter_context(program(*live, log=folder / "live.log", nice=a.nice))
        until((folder / "s.db").exists, consumer, folder / "live.log")
        serve = ["serve", "--store", store, "--port", str(port)]
        service = stack.enter_context(program(*serve, log=folder / "serve.log"))
        base = f"http://127.0.0.1:{port}/v1/models/bench"
        until(lambda: answers(f"{base}/centroids"), service, folder / "serve.log")
        points = (np.random.default_rng(2).normal(size=(10, D)) * 10).round(3).tolist()
        predict = request("POST", "/v1/models/bench/predict", json.dumps({"points": points}).encode())
        # Clients are other machines: that ours has to wait for a core is none of the service's slowness.
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, -10)
        loads = {
            "predict": lambda: Load(port, predict, 500),
            "centroids": lambda: Load(port, request("GET", "/v1/models/bench/centroids"), 1000),
            "pages": lambda: Listeners(port, a.listeners),
        }
        loads = {name: make for name, make in loads.items() if not a.only or name == a.only}
        result = {name: {"rounds": []} for name in loads}
        for _ in range(a.rounds):
            for name, make in loads.items():
                alone = window(metrics, a.seconds)
                load, used, began = make(), cpu(service), time.perf_counter()
                beside = window(metrics, a.seconds, load)
                cores = (cpu(service) - used) / (time.perf_counter() - began)
                again = window(metrics, a.seconds)
                ratio = beside / ((alone + again) / 2) if min(alone, again) > 0 else float("nan")
                told = load.told() | {"alone": alone, "beside": beside, "ratio": ratio, "cores": cores}
                result[name]["rounds"].append(told)
                print(name, {k: round(v, 4) for k, v in told.items()}, flush=True)
        if not a.only:
            result["arrow"] = {"rounds": [arrow(port, 1_000_000) for _ in range(3)]}
            print("arrow", result["arrow"]["rounds"])
        left = points_learned(metrics)
        print(f"the consumer had learned {left:,.0f} of {a.records:,}: with none left, figures are of an idle one")
    for name in GOALS.keys() & result.keys():
        p99 = [r["p99"] for r in result[name]["rounds"]]
        print(f"{name}: p99 {statistics.median(p99):.1f} ms, worst round {max(p99):.1f} (goal {GOALS[name]:g})")
    if "pages" in result:
        ratios = [r["ratio"] for r in result["pages"]["rounds"]]
        print(f"{a.listeners} pages: the consumer keeps {statistics.median(ratios):.1%} of its rate (goal 97 %)")
    if a.json:
        a.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
