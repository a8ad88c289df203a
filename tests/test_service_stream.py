"""Streams of the service, over a real server: what is told, to whom, and for how long."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import json
import logging
import socket
import threading
import time

import httpx
import jsonschema
import numpy as np
import pytest
import uvicorn

from service_api import FIELDS, NOW, P0, SPEC, Writer
from streamkm.errors import StoreUnavailableError
from streamkm.service import auth, broadcast, create_app, middleware
from streamkm.service.auth import issue
from streamkm.service.routes import streams
from streamkm.state import ModelEvent, Recent
from streamkm.stores import MemoryStore
from streamkm.stores.base import Job
from streamkm.testing import ManualClock
from waiting import PATIENCE, wait_until

BIRTH, SPLIT = ModelEvent("birth", (), (4,)), ModelEvent("split", (4,), (4, 7), {"share": 0.5})


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(broadcast, "POLL_SECONDS", 0.02)


@contextlib.contextmanager
def serving(store, **kwargs):
    """A server on a port of its own; gives the URL of the model."""
    app = create_app(store, **kwargs)
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)  # what nobody reads is soon too much
        # It waits for open requests without an end, so a stream that did not end would hold it up for ever.
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=None))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        wait_until(lambda: server.started)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1/models/orders"
        finally:
            app.state.end_streams()
            server.should_exit = True
            thread.join(PATIENCE)
            assert not thread.is_alive(), "open streams must not hold the service up"


@contextlib.contextmanager
def listening(url, **headers):
    """Messages of a stream as (event, id, data), told of all that happens from now on."""
    with (
        httpx.Client(trust_env=False, timeout=PATIENCE) as client,
        client.stream("GET", url, headers=headers) as answer,
    ):
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = answer.iter_lines()
        assert next(lines) == ": streamkm", "the sign that nothing is missed any more"
        yield messages(lines)


def messages(lines):
    fields = {}
    for line in lines:
        if line.startswith(":"):
            continue
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif fields:
            yield fields["event"], fields.get("id"), json.loads(fields["data"])
            fields = {}


def wait_for(stream, kind, condition=bool):
    for event, number, data in stream:
        if event == kind and condition(data):
            return number, data
    raise AssertionError(f"no {kind}")


@pytest.fixture
def store():
    return MemoryStore()


@pytest.fixture
def writer(store):
    return Writer(store)


def seen_points(writer, points, ends=None):
    """A commit that shows points."""
    plain = writer.store.commit
    try:
        writer.store.commit = lambda lease, commit: plain(
            lease, dataclasses.replace(commit, recent=Recent(np.array(points, np.float64), ends or {}))
        )
        return writer.commit()
    finally:
        writer.store.commit = plain


def test_now_has_the_state_of_the_store_and_rates(store, writer):
    clock = ManualClock(NOW)
    writer.commit(points=100, at=clock.now)
    with serving(store, clock=clock.time) as url, listening(f"{url}/stream") as stream:
        _, first = wait_for(stream, "status")
        assert (first["points"], first["rate"], first["status"]) == (100, None, "running")
        for _ in range(3):
            clock.advance(1.0)
            writer.commit(points=1000, at=clock.now)
        _, now = wait_for(stream, "status", lambda d: d["points"] == 3100)
        (partition,) = [p for p in now["partitions"] if p["partition"] == 0]
        assert (now["rate"], partition["rate"]) == (1000.0, 1000.0)
        assert (partition["offset"], partition["end"], partition["lag"]) == (3100, None, None)
        clock.advance(3.0)  # and without commits it falls
        _, later = wait_for(stream, "status", lambda d: d["time"] > now["time"])
        assert later["rate"] == 500.0


def test_new_snapshots_are_sent_once_in_order_and_old_ones_are_not(store, writer):
    writer.commit()
    with serving(store) as url, listening(f"{url}/stream") as stream:
        wait_for(stream, "status")
        writer.commit()
        writer.commit(events=(BIRTH,))
        told = [wait_for(stream, "snapshot") for _ in range(2)]
        assert [number for number, _ in told] == ["2", "3"]
        assert told[1][1]["events"] == [BIRTH.to_json()]
        assert told[0][1] == httpx.get(f"{url}/history", trust_env=False, timeout=PATIENCE).json()["snapshots"][1]


def test_points_are_shown_with_their_clusters_and_axes_that_stand_still(store, writer):
    rng = np.random.default_rng(0)
    points = np.vstack([rng.normal(size=(50, 3)), rng.normal(size=(50, 3)) + 10])
    seen_points(writer, points, {P0: 500})
    with serving(store) as url, listening(f"{url}/stream") as stream:
        _, sample = wait_for(stream, "sample")
        assert sample["points"] == points.tolist()
        nearest = np.where(np.linalg.norm(points, axis=1) < np.linalg.norm(points - 10, axis=1), 4, 7)
        assert sample["ids"] == nearest.tolist()
        axes = sample["projection"]["axes"]
        x = (points - sample["projection"]["mean"]) @ axes[0]
        assert abs(np.corrcoef(x, nearest)[0, 1]) > 0.9, "the first axis tells the two clusters apart"
        seen_points(writer, points[::-1] * 1.01)
        _, again = wait_for(stream, "sample", lambda d: d["points"] != sample["points"])
        assert again["projection"]["axes"] == axes
        asked = httpx.get(f"{url}/sample?n=10", trust_env=False, timeout=PATIENCE).json()
        assert asked["points"][0] == (points[::-1] * 1.01)[0].tolist()


def test_partitions_have_ends_and_lags(store, writer):
    seen_points(writer, [[0.0, 0, 0]], {P0: 130})
    with serving(store) as url, listening(f"{url}/stream") as stream:
        _, now = wait_for(stream, "status")
        (partition,) = [p for p in now["partitions"] if p["partition"] == 0]
        assert (partition["offset"], partition["end"], partition["lag"]) == (100, 130, 30)


def test_jobs_are_sent_when_they_change(store, writer):
    writer.commit()
    job = Job("a1", "orders", {"from": "beginning"}, "running", {"stage": "reading"}, 0, "", time.time(), time.time())
    store.put_job(job)
    with serving(store) as url, listening(f"{url}/stream") as stream:
        wait_for(stream, "status")
        store.put_job(dataclasses.replace(job, state="done", snapshot=9, updated_at=time.time()))
        _, told = wait_for(stream, "job")
        assert (told["id"], told["state"], told["snapshot"]) == ("a1", "done", 9)


def test_no_event_is_lost_between_two_streams(store, writer):
    writer.commit(events=(BIRTH, SPLIT))
    with serving(store) as url:
        with listening(f"{url}/events/stream") as stream:
            writer.commit()
            writer.commit(events=(SPLIT,))
            event, number, data = next(stream)
            assert (event, number, data["snapshot"]) == ("split", "3.0", 3)
        writer.commit(events=(BIRTH,))
        with listening(f"{url}/events/stream", **{"Last-Event-ID": "1.0"}) as stream:
            missed = [next(stream) for _ in range(3)]
            assert [number for _, number, _ in missed] == ["1.1", "3.0", "4.0"]
            writer.commit(events=(BIRTH,))
            assert next(stream)[1] == "5.0"


@pytest.mark.parametrize("path", ["stream", "events/stream"])
def test_an_open_stream_ends_with_its_token_though_no_event_happens(store, writer, monkeypatch, caplog, path):
    longest = streams.HEARTBEAT_SECONDS + auth.TOKEN_CACHE_SECONDS + middleware.GRANT_CHECK_SECONDS
    assert longest < 5.0, "what docs/security.md says"
    monkeypatch.setattr(streams, "HEARTBEAT_SECONDS", 0.1)  # several polls of the store
    writer.commit()
    text, token = issue("reports", "read", (), NOW)
    store.add_token(token)
    clock = ManualClock()
    with (
        serving(store, monotonic=clock.monotonic) as url,
        listening(f"{url}/{path}", Authorization=f"Bearer {text}") as stream,
    ):
        store.remove_token("reports")
        clock.advance(auth.TOKEN_CACHE_SECONDS)
        assert all(event in {"status", "sample"} for event, _, _ in stream)  # and it ends
    gc.collect()
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("number", ["x", "1", "1.2.3", "-1.0", "99999999999999999999.0"])
def test_an_id_that_is_none_is_refused(store, writer, number):
    writer.commit()
    with serving(store) as url:
        answer = httpx.get(f"{url}/events/stream", headers={"Last-Event-ID": number}, trust_env=False, timeout=PATIENCE)
        assert (answer.status_code, answer.json()["where"]) == (422, "Last-Event-ID")


def test_one_task_polls_for_all_and_ends_with_the_last_listener(store, writer):
    writer.commit()
    lookers = set()

    def clock():  # each look is made at some time
        lookers.add(asyncio.current_task())
        return NOW

    with serving(store, clock=clock) as url:
        with contextlib.ExitStack() as stack:
            streams = [stack.enter_context(listening(f"{url}/stream")) for _ in range(20)]
            for stream in streams * 3:
                wait_for(stream, "status")
        (looker,) = lookers
        wait_until(looker.done)


def test_a_stream_that_is_opened_again_soon_starts_no_other_polling(store, writer, monkeypatch):
    monkeypatch.setattr(broadcast, "POLL_SECONDS", PATIENCE)
    writer.commit()
    lookers = []

    def clock():
        lookers.append(asyncio.current_task())
        return NOW

    with serving(store, clock=clock) as url:
        for _ in range(3):
            with listening(f"{url}/stream") as stream:
                assert wait_for(stream, "status")[1]["points"] == 100
    assert len(lookers) == 1


def test_a_store_that_fails_under_a_stream_ends_it_with_a_line_in_the_log(store, writer, caplog):
    writer.commit()

    def away(*_args, **_kwargs):
        raise StoreUnavailableError("away")

    with serving(store) as url:
        store.snapshots = away
        with listening(f"{url}/events/stream", **{"Last-Event-ID": "1.0"}) as stream:
            assert list(stream) == []
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert said == ["orders: a stream ends: away"]


def test_a_model_that_is_deleted_ends_its_streams(store, writer):
    writer.commit()
    with serving(store) as url, listening(f"{url}/stream") as stream:
        wait_for(stream, "status")
        store.delete("orders")
        assert all(event == "status" for event, _, _ in stream)  # and it ends


def test_too_many_listeners_get_503(store, writer, monkeypatch):
    writer.commit()
    monkeypatch.setattr(broadcast, "MAX_LISTENERS", 1)
    with serving(store) as url, listening(f"{url}/stream") as stream:
        wait_for(stream, "status")
        answer = httpx.get(f"{url}/stream", trust_env=False, timeout=PATIENCE)
        assert (answer.status_code, answer.json()["code"]) == (503, "too-many")
        assert answer.headers["retry-after"]


def test_no_client_can_open_all_streams(store, writer, monkeypatch):
    writer.commit()
    monkeypatch.setattr(broadcast, "MAX_LISTENERS_PER_CLIENT", 2)
    tokens = {}
    for name in ("a", "b"):
        text, token = issue(name, "read", (), NOW)
        store.add_token(token)
        tokens[name] = {"Authorization": f"Bearer {text}"}
    with serving(store) as url, contextlib.ExitStack() as stack:

        def listen(name):
            return stack.enter_context(listening(f"{url}/stream", **tokens.get(name, {})))

        def status(name):
            return httpx.head(f"{url}/stream", trust_env=False, timeout=PATIENCE, headers=tokens.get(name)).status_code

        for _ in range(2):
            wait_for(listen("a"), "status")
        assert status("a") == 429
        assert status("b") == status("") == 200
        stack.close()  # those who leave give their places back
        wait_until(lambda: status("a") == 200)


def test_a_slow_listener_is_disconnected_and_delays_no_other(store, writer, monkeypatch):
    monkeypatch.setattr(broadcast, "MAX_QUEUED_MESSAGES", 5)
    long = {"from": "x" * 20_000}
    store.put_job(Job("a1", "orders", long, "running", {}, 0, "", NOW, NOW))
    writer.commit()
    with serving(store, clock=lambda: NOW) as url:
        port = int(url.split(":")[2].split("/")[0])
        with socket.socket() as lazy:
            lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 12)
            lazy.connect(("127.0.0.1", port))
            lazy.sendall(b"GET /v1/models/orders/stream HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            with listening(f"{url}/stream") as stream:
                for i in range(1, 41):
                    store.put_job(Job("a1", "orders", long, "running", {}, 0, "", NOW, NOW + i))
                    wait_for(stream, "job")
            lazy.settimeout(PATIENCE)
            received = 0
            while chunk := lazy.recv(1 << 20):
                received += len(chunk)
            assert received < 40 * 20_000


def test_messages_are_what_the_description_says(store, writer):
    seen_points(writer, [[0.0, 0, 0], [1, 2, 3]])
    with serving(store) as url:
        description = httpx.get(url.partition("/v1")[0] + "/openapi.json", trust_env=False, timeout=PATIENCE).json()

        def check(name, value):
            schema = {"$ref": f"#/components/schemas/{name}", "components": description["components"]}
            jsonschema.validate(value, schema)

        with listening(f"{url}/stream") as stream, listening(f"{url}/events/stream") as events:
            for event, name in (("status", "LiveStatus"), ("sample", "PointSample")):
                check(name, wait_for(stream, event)[1])
            writer.commit(events=(SPLIT,))
            check("HistoricalSnapshot", wait_for(stream, "snapshot")[1])
            check("ClusterEvent", next(events)[2])
            store.put_job(
                Job(
                    "b",
                    "orders",
                    {"from": "2h", "to": "now"},
                    "queued",
                    {"stage": "starting"},
                    0,
                    "",
                    time.time(),
                    time.time(),
                )
            )
            check("JobResponse", wait_for(stream, "job")[1])


def test_fields_of_the_model_are_those_of_the_spec():
    assert SPEC.fields == FIELDS  # what the tests above count on
