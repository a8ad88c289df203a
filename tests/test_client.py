"""The client against a real service, and against one that fails."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import streamkm
from processes import program, run
from service_api import CENTROIDS, FIELDS, NOW, Writer
from streamkm.client import requests, transport
from streamkm.errors import (
    DataError,
    NotFoundError,
    NotReadyError,
    ServiceError,
    ServiceUnreachableError,
    SettingsError,
)
from streamkm.state import ModelEvent
from streamkm.stores import open_store

TOKEN = "long and random"  # noqa: S105 - made up
X = np.array([[1.0, 0.0, 0.0], [9.0, 9.0, 9.0], [11.0, 10.0, 10.0]])


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """A real service over a store with three snapshots, the second of which tells events."""
    folder = tmp_path_factory.mktemp("client")
    url = f"sqlite:///{folder}/s.db"
    with contextlib.closing(open_store(url)) as store:
        writer = Writer(store)
        writer.commit()
        writer.commit(
            at=NOW + 10, events=(ModelEvent("birth", (), (1,), {"points": 3}), ModelEvent("death", (0,), (), {}))
        )
        writer.commit(at=NOW + 20, centroids=((0.0, 0.0, 0.0), (20.0, 20.0, 20.0)))
    with program(folder / "log", "serve", "--store", url, "--port", "0", env={"STREAMKM_TOKEN": TOKEN}) as served:
        served.until(lambda: "http://127.0.0.1:" in served.output())
        yield re.search(r"http://127.0.0.1:\d+", served.output())[0]


@pytest.fixture
def client(service):
    with streamkm.Client(service, token=TOKEN) as found:
        yield found


def test_models_snapshots_and_events(client):
    (model,) = client.models()
    assert (model.name, model.fields, model.n_clusters, model.snapshot) == ("orders", FIELDS, 2, 3)
    assert client.model("orders").raw["counters"]["records"] == model.points
    assert [s.id for s in client.snapshots("orders")] == [3, 2, 1]
    assert [s.id for s in client.snapshots("orders", limit=2)] == [3, 2]
    assert client.snapshots("orders")[0].created_at == datetime.fromtimestamp(NOW + 20, UTC)
    born, died = client.events("orders")
    assert (born.snapshot, born.kind, born.after, born.detail) == (2, "birth", (1,), {"points": 3})
    assert (died.kind, died.before) == ("death", (0,))
    assert len(client.events("orders", limit=1)) == 1


def test_pages_are_followed(client, monkeypatch):
    monkeypatch.setattr(requests, "PAGE_SIZE", 1)
    assert [s.id for s in client.snapshots("orders")] == [3, 2, 1]


def test_centroids_now_then_and_as_a_table(client):
    now = client.centroids("orders")
    assert (now.snapshot, now.fields, now.ids.tolist()) == (3, FIELDS, [4, 7])
    assert now.centroids.tolist() == [[0, 0, 0], [20, 20, 20]]
    assert now.centroids.dtype == now.weights.dtype == np.float64
    assert now.shares.sum() == pytest.approx(1)
    for moment in (datetime.fromtimestamp(NOW + 11, UTC), NOW + 11, "2027-01-15T08:00:11Z"):
        assert client.centroids("orders", at=moment).snapshot == 2
    assert client.centroids("orders", snapshot=1).centroids.tolist() == [list(c) for c in CENTROIDS]
    assert now.to_pandas().columns.tolist() == ["id", "weight", "share", "spread", *FIELDS]
    assert now.to_polars()["lat"].to_list() == [0.0, 20.0]


@pytest.mark.parametrize(
    "points",
    [
        X,
        X.tolist(),
        X.astype(np.float32),
        pd.DataFrame(X[:, ::-1], columns=FIELDS[::-1]).assign(note="x"),
        pl.DataFrame(dict(zip(FIELDS, X.T, strict=True))),
        pa.table(dict(zip(FIELDS, X.T, strict=True))),
    ],
    ids=["array", "list", "float32", "pandas", "polars", "arrow"],
)
def test_points_of_every_type_are_predicted(client, points):
    found = client.predict("orders", points, snapshot=1)
    assert found.ids.tolist() == [4, 7, 7]
    assert found.distances == pytest.approx([1, 3**0.5, 1])
    assert found.snapshot == 1
    assert found.to_pandas().shape == (3, 3)


def test_many_points_are_sent_in_several_requests_for_one_snapshot(client, monkeypatch):
    monkeypatch.setattr(requests, "JSON_BODY_BYTES", 3 * requests.BYTES_PER_NUMBER * 2)
    asked = []
    send = client._send
    monkeypatch.setattr(client, "_send", lambda call: asked.append(json.loads(call.body)) or send(call))
    assert client.predict("orders", X).ids.tolist() == [4, 4, 7]
    assert [(len(body["points"]), body.get("snapshot")) for body in asked] == [(2, None), (1, 3)]
    assert client.predict("orders", np.empty((0, 3))).ids.shape == (0,)


def test_the_asynchronous_client_has_the_same_results(service, client):
    async def ask():
        async with streamkm.AsyncClient(service, token=TOKEN) as other:
            models, model, now, found, snapshots, events = await asyncio.gather(
                *(other.models(), other.model("orders"), other.centroids("orders"), other.predict("orders", X)),
                *(other.snapshots("orders"), other.events("orders")),
            )
            with pytest.raises(NotFoundError):
                await other.model("none")
            return models, model, now, found, snapshots, events

    models, model, now, found, snapshots, events = asyncio.run(ask())
    assert [m.name for m in models] == [model.name] == ["orders"]
    assert now.centroids.tolist() == client.centroids("orders").centroids.tolist()
    assert found.distances.tolist() == client.predict("orders", X).distances.tolist()
    assert snapshots == client.snapshots("orders")
    assert events == client.events("orders")


def test_errors_have_a_class_and_a_hint(service, client):
    with pytest.raises(NotFoundError, match="none"):
        client.centroids("none")
    with pytest.raises(NotFoundError):
        client.centroids("orders", snapshot=99)
    with pytest.raises(DataError, match=r"wrong-dimension|2 values, the model has 3 fields"):
        client.predict("orders", [[1.0, 2.0]])
    with pytest.raises(DataError, match=r"X\[0, 1\]: nan is not a finite number"):
        client.predict("orders", [[1.0, float("nan"), 2.0]])
    with pytest.raises(DataError, match=r"Give \(n, d\)"):
        client.predict("orders", [1.0])
    with pytest.raises(DataError, match="not an array of numbers"):
        client.predict("orders", [["a"]])
    with pytest.raises(DataError, match="there is no column amount, lat, lon"):
        client.predict("orders", pd.DataFrame({"a": [1.0]}))
    with streamkm.Client(service) as nobody, pytest.raises(ServiceError, match="needs a token"):
        nobody.models()
    with pytest.raises(SettingsError, match="not the URL of a service"):
        streamkm.Client("localhost:8000")


def test_a_refused_part_of_the_points_is_named(client, monkeypatch):
    monkeypatch.setattr(requests, "JSON_BODY_BYTES", 1)
    sent = iter([client._send, lambda _: (_ for _ in ()).throw(DataError("bad"))])
    monkeypatch.setattr(client, "_send", lambda call, sent=sent: next(sent)(call))
    with pytest.raises(DataError, match=r"^points from 1 on: bad"):
        client.predict("orders", X)


class Moody(BaseHTTPRequestHandler):
    """Answers as its server's list says, one after the other."""

    def do_GET(self):
        status, body, headers = self.server.moods.pop(0)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def moody():
    with HTTPServer(("127.0.0.1", 0), Moody) as server:
        server.moods = []
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("kind", [streamkm.Client, streamkm.AsyncClient])
def test_temporary_errors_are_retried(moody, monkeypatch, kind):
    monkeypatch.setattr(transport, "RETRY_DELAYS", (0.0, 0.0))

    def models():
        found = kind(f"http://127.0.0.1:{moody.server_port}")
        if kind is streamkm.Client:
            with found:
                return found.models()

        async def ask():
            async with found:
                return await found.models()

        return asyncio.run(ask())

    moody.moods = [(503, b"", {"Retry-After": "0"}), (502, b"", {}), (200, b'{"models": []}', {})]
    assert models() == []
    moody.moods = [(503, b"{}", {})] * 3
    with pytest.raises(ServiceError, match=r"status 503.*Is a streamkm service there"):
        models()
    moody.moods = [(200, b"<html>", {})]
    with pytest.raises(ServiceError, match="Is a streamkm service there"):
        models()
    told = {"detail": "warming up", "code": "warming-up", "hint": "Wait"}
    moody.moods = [(409, json.dumps(told).encode(), {})]
    with pytest.raises(NotReadyError, match=r"warming up\. Wait"):
        models()
    assert not moody.moods


@pytest.mark.parametrize("kind", [streamkm.Client, streamkm.AsyncClient])
def test_an_unreachable_service_is_an_error(monkeypatch, kind):
    monkeypatch.setattr(transport, "RETRY_DELAYS", (0.0,))
    with HTTPServer(("127.0.0.1", 0), Moody) as server:
        port = server.server_port
    found = kind(f"http://127.0.0.1:{port}")
    with pytest.raises(ServiceUnreachableError, match="Is `streamkm serve` running there"):
        found.models() if kind is streamkm.Client else asyncio.run(found.models())


def command(service, text, *arguments):
    env = {"STREAMKM_URL": service, "STREAMKM_TOKEN": TOKEN}
    return run("predict", "orders", *arguments, env=env, text=text)


def test_the_command_writes_json_lines(service):
    done = command(service, '{"amount": 1, "lat": 0, "lon": 0, "note": "x"}\n\n[19, 20, 20]\n')
    assert done.returncode == 0, done.stderr
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        {"cluster": 4, "distance": 1.0, "score": 2.0},
        {"cluster": 7, "distance": 1.0, "score": 2.0},
    ]


def test_the_command_adds_columns_to_csv(service):
    done = command(service, "lon,note,amount,lat\n0,a,1,0\n10,b,11,10\n", "--csv", "--snapshot", "1")
    assert done.returncode == 0, done.stderr
    header, *rows = (line.split(",") for line in done.stdout.splitlines())
    assert header == ["lon", "note", "amount", "lat", "cluster", "distance", "score"]
    assert [(row[1], row[4], float(row[5])) for row in rows] == [("a", "4", 1.0), ("b", "7", 1.0)]


@pytest.mark.parametrize(
    ("text", "arguments", "says"),
    [
        ("{\n", (), "line 1: not JSON"),
        ('[1, 2, 3]\n{"amount": 1, "lat": 2}\n', (), "line 2, field lon: is missing"),
        ('{"amount": "1", "lat": 2, "lon": 3}\n', (), 'line 1, field amount: "1" is not a number'),
        ("[1, 2, NaN]\n", (), "line 1: a number that is not finite"),
        ("[1, 2]\n", (), "line 1: not a point"),
        ("a,b\n1,2\n", ("--csv",), "line 1: there is no column amount"),
        ("amount,lat,lon\n1,2,3\n1,x,3\n", ("--csv",), "line 3, field lat: lat is not a number: 'x'"),
        ("", ("--csv",), "line 1: no header"),
    ],
)
def test_the_command_names_the_invalid_line(service, text, arguments, says):
    done = command(service, text, *arguments)
    assert (done.returncode, says in done.stderr) == (6, True), done.stderr
