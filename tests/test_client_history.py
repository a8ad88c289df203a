"""The client's questions about what a model was, streams of events, and acting, against a real service."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest

import streamkm
from processes import program
from service_api import FIELDS, NOW, P0, Writer
from streamkm import AsyncClient, Client
from streamkm.client import arrow, requests, transport
from streamkm.errors import NotFoundError, NotReadyError, ServiceError, ServiceUnreachableError
from streamkm.records import BadRecord, RawRecord
from streamkm.state import ModelEvent, Recent
from streamkm.stores import open_store
from test_service_reading import PROFILE, commit_with
from waiting import PATIENCE

TOKEN = "long and random"  # noqa: S105 - made up
BORN, SPLIT = ModelEvent("birth", (), (4,), {"points": 3}), ModelEvent("split", (4,), (4, 7))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """URL of a store with a model that has a past, and a token; of a real service over it."""
    folder = tmp_path_factory.mktemp("client")
    url = f"sqlite:///{folder}/s.db"
    with contextlib.closing(open_store(url)) as store:
        writer = Writer(store)
        learner = streamkm.OnlineKMeans(n_clusters=2, seed=0)
        learner.learn_many(np.random.default_rng(0).normal(size=(1000, 3)))
        writer.commit(events=(BORN,))
        writer.commit(at=NOW + 10, events=(SPLIT, ModelEvent("death", (9,), ())), detail={"k": PROFILE})
        bad = BadRecord(RawRecord(P0, 3, 5, b"k", b"{"), "not-json", "", "no JSON")
        commit_with(writer, state=learner.state(), recent=Recent(np.eye(3) * 9), quarantine=(bad,))
    with program(folder / "log", "serve", "--store", url, "--port", "0", env={"STREAMKM_TOKEN": TOKEN}) as served:
        served.until(lambda: "http://127.0.0.1:" in served.output())
        yield re.search(r"http://127.0.0.1:\d+", served.output())[0], url, writer


@pytest.fixture
def client(place):
    with streamkm.Client(place[0], token=TOKEN) as found:
        yield found


def test_history_lineage_and_diff_are_arrays(client):
    newest, before, first = client.history("orders")
    assert (newest.id, before.id, first.id) == (3, 2, 1)
    assert newest.centroids.shape == (2, 3)
    assert newest.shares.sum() == pytest.approx(1)
    assert [e.id for e in before.events] == ["2.0", "2.1"]
    assert len(client.history("orders", limit=2)) == 2
    lives = {life.id: life for life in client.lineage("orders")}
    assert (lives[4].born, lives[7].born, lives[7].origins, lives[9].ended) == (1, 2, (4,), 2)
    found = client.diff("orders", 1, 3)
    assert (found.a, found.b, {m.id for m in found.shifts}, found.changed) == (1, 3, {4, 7}, 0.0)
    with pytest.raises(NotFoundError):
        client.diff("orders", 1, 99)


def test_pages_of_lineage_are_merged(client, monkeypatch):
    whole = client.lineage("orders")
    monkeypatch.setattr(requests, "PAGE_SIZE", 1)
    assert client.lineage("orders") == whole


def test_sample_quarantine_and_rights_are_parsed(client):
    sample = client.sample("orders")
    assert (sample.fields, sample.points.tolist(), sample.snapshot) == (FIELDS, (np.eye(3) * 9).tolist(), 3)
    assert sample.axes.shape == (2, 3)
    assert client.sample("orders", n=1).points.shape == (1, 3)
    quarantine = client.quarantine("orders")
    assert (quarantine.total, quarantine.reasons) == (1, {"not-json": 1})
    assert (quarantine.records[0].value, quarantine.records[0].offset) == ("{", 3)
    assert not client.quarantine("orders", reason="too-large").records
    assert client.me() == streamkm.client.WhoAmI(client.me().name, "write", None)


def test_many_points_are_sent_as_arrow_with_the_same_result(client, monkeypatch):
    X = np.random.default_rng(0).normal(size=(30_000, 3)) * 10
    media_types = []
    send = client._send
    monkeypatch.setattr(client, "_send", lambda call: media_types.append(call.media_type) or send(call))
    monkeypatch.setattr(requests, "ARROW_BODY_BYTES", 20_000 * 24)
    found = client.predict("orders", X, snapshot=2)
    assert media_types == [requests.JSON, requests.ARROW, requests.ARROW]
    media_types.clear()
    monkeypatch.setattr(arrow, "available", lambda: False)
    plain = client.predict("orders", X, snapshot=2)
    assert set(media_types) == {requests.JSON}
    assert (found.snapshot, plain.snapshot) == (2, 2)
    np.testing.assert_array_equal(found.ids, plain.ids)
    np.testing.assert_array_equal(found.distances, plain.distances)
    np.testing.assert_array_equal(found.scores, plain.scores)


def test_control_changes_the_store(place, client):
    with contextlib.closing(open_store(place[1])) as store:
        client.pause("orders")
        assert store.model("orders").paused
        client.resume("orders")
        assert not store.model("orders").paused
        client.promote("orders", 1, skip=True)
        assert store.control_requests("orders").promotion == (1, True)
        store.request_promotion("orders", None)
        store.create(replace(place[2].spec, name="other"), NOW)
        client.delete("other")
        with pytest.raises(NotFoundError):
            client.delete("other")
    with streamkm.Client(place[0]) as nobody, pytest.raises(ServiceError, match="token"):
        nobody.pause("orders")


def test_jobs_are_started_read_and_cancelled(client):
    job = client.start_job("orders", start="offset:0", k=2)
    assert (job.model, job.options["from"], job.options["k"]) == ("orders", "offset:0", 2)
    assert [j.id for j in client.jobs("orders")] == [job.id]
    with contextlib.suppress(ServiceError):  # it may have ended by itself: there is no broker
        client.cancel_job("orders", job.id)
    assert client.job("orders", job.id).id == job.id
    with pytest.raises(NotFoundError):
        client.job("orders", "nothing")
    assert not isinstance(ServiceError("x"), NotReadyError)


def test_past_events_come_before_new_ones(place, client):
    events = client.follow_events("orders", after="1.0")
    assert [next(events).id for _ in range(2)] == ["2.0", "2.1"]
    drift = ModelEvent("drift", (7,), (7,))
    with contextlib.closing(open_store(place[1])) as store:
        place[2].store = store
        number = place[2].commit(events=(drift,))
    now = next(events)
    assert (now.snapshot, now.index, now.kind, now.before) == (number, 0, "drift", (7,))
    events.close()

    async def first():
        async with streamkm.AsyncClient(place[0], token=TOKEN) as other:
            return await anext(other.follow_events("orders", after="1.0"))

    assert asyncio.run(first()).id == "2.0"


class Breaking(BaseHTTPRequestHandler):
    """Tells an event and breaks off; notes from where it was asked to go on."""

    def do_GET(self):
        server = self.server
        if not self.path.endswith("stream"):
            told = (
                b'{"name": "m", "status": "", "status_reason": "", "n_clusters": 1, "fields": [], '
                b'"points": 0, "bad_records": 0, '
                b'"lag": 0, "snapshot": {"id": 6}}'
            )
            self.send_response(200)
        else:
            server.asked.append(self.headers["Last-Event-ID"])
            status = server.moods.pop(0) if server.moods else 404
            told = b'{"detail": "gone", "code": "not-found", "hint": ""}'
            if status == 200:
                at = len(server.asked) + 6
                told = b'id: %d.0\ndata: {"snapshot": %d, "created_at": "2026-11-01T10:00:00Z", ' % (at, at)
                told += b'"kind": "drift", "before": [], "after": [], "detail": {}}\n\nid: 99.0\ndata: {"sna'
            self.send_response(status)
        self.end_headers()
        self.wfile.write(told)

    def log_message(self, *_):
        pass


@pytest.mark.parametrize("kind", [streamkm.Client, streamkm.AsyncClient])
def test_an_interrupted_stream_resumes_after_the_last_event(monkeypatch, kind):
    monkeypatch.setattr(transport, "RECONNECT_DELAYS", (0.0, 0.0))
    with HTTPServer(("127.0.0.1", 0), Breaking) as server:
        server.moods, server.asked = [200, 503, 200], []
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        seen = []

        def listen():
            with kind(f"http://127.0.0.1:{server.server_port}") as client:
                for event in client.follow_events("m"):
                    seen.append(event.id)  # noqa: PERF401 - what came before the error counts

        async def alisten():
            async with kind(f"http://127.0.0.1:{server.server_port}") as client:
                async for event in client.follow_events("m"):
                    seen.append(event.id)  # noqa: PERF401 - the same

        try:
            with pytest.raises(NotFoundError, match="gone"):
                listen() if kind is streamkm.Client else asyncio.run(alisten())
        finally:
            server.shutdown()
            thread.join()
    assert seen == ["7.0", "9.0"]
    assert server.asked == ["6.999999999", "7.0", "7.0", "9.0"]


def test_a_stream_of_an_unreachable_service_fails(monkeypatch):
    monkeypatch.setattr(transport, "RECONNECT_DELAYS", (0.0,))
    with HTTPServer(("127.0.0.1", 0), Breaking) as server:
        port = server.server_port
    with streamkm.Client(f"http://127.0.0.1:{port}") as client, pytest.raises(ServiceUnreachableError):
        next(client.follow_events("m", after="1.0"))


class Faulty:
    """A service that says what it is told to, and then breaks the connection off; it counts the requests."""

    def __init__(self, answer: bytes) -> None:
        self.answer, self.asked = answer, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                with connection:
                    connection.recv(1 << 16)
                    self.asked += 1
                    connection.sendall(self.answer)

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n: streamkm\n\n"
FAILED = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
HALF = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"


def follow(url):
    with Client(url, token=TOKEN) as client:
        list(client.follow_events("orders", after="1.0"))


async def follow_later(url):
    async with AsyncClient(url, token=TOKEN) as client:
        async for _ in client.follow_events("orders", after="1.0"):
            pass


def ask(url):
    with Client(url, token=TOKEN) as client:
        client.model("orders")


async def ask_later(url):
    async with AsyncClient(url, token=TOKEN) as client:
        await client.model("orders")


@pytest.mark.parametrize(
    ("answer", "asks", "times", "path"),
    [
        (STREAM, (follow, follow_later), 4, "/v1/models/orders/events/stream"),
        (HALF, (ask, ask_later), 3, "/v1/models/orders"),
        (FAILED, (ask, ask_later), 1, "/v1/models/orders"),
    ],
)
@pytest.mark.parametrize("later", [False, True], ids=["now", "asyncio"])
def test_attempts_are_bounded_and_the_error_names_the_url_without_secrets(
    monkeypatch, answer, asks, times, path, later
):
    monkeypatch.setattr(transport, "RECONNECT_DELAYS", (0.0,) * 3)
    monkeypatch.setattr(transport, "RETRY_DELAYS", (0.0, 0.0))
    with contextlib.closing(Faulty(answer)) as service:
        url = f"http://somebody:hunter2@127.0.0.1:{service.port}"
        with pytest.raises((ServiceError, ServiceUnreachableError)) as caught:
            asyncio.run(asks[1](url)) if later else asks[0](url)
        assert service.asked == times
    assert caught.value.where == f"http://127.0.0.1:{service.port}{path}"
    assert "hunter2" not in str(caught.value)
    assert TOKEN not in str(caught.value)


def test_the_timeout_of_an_asynchronous_client_is_for_the_whole_response(monkeypatch):
    monkeypatch.setattr(transport, "RETRY_DELAYS", ())
    stop = threading.Event()

    def drip(listener):
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
            while not stop.wait(0.02):
                connection.sendall(b"a")

    async def go(port):
        async with AsyncClient(f"http://127.0.0.1:{port}", timeout=0.5) as client:
            await client.model("orders")

    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listener:
        thread = threading.Thread(target=drip, args=(listener,))
        thread.start()
        with pytest.raises(ServiceUnreachableError, match=r"not within 0\.5 s"):
            asyncio.run(go(listener.getsockname()[1]))
        stop.set()
        thread.join(PATIENCE)
