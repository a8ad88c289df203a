"""Delivery of events: signed, in order, at least once, after failures and crashes."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from processes import program, run
from service_api import NOW, Writer
from streamkm.delivery import Notifier, NotifyOptions, TopicTarget, WebhookTarget, verify
from streamkm.delivery.events import EVENT_RETENTION_SECONDS, DeliveryFailedError, EventMessage, TargetGoneError
from streamkm.delivery.webhooks import keys, sign
from streamkm.errors import BrokerUnreachableError, NotFoundError, SettingsError, SignatureError
from streamkm.records import DeliveryError, ProducerRecord
from streamkm.state import ModelEvent
from streamkm.stores import open_store
from streamkm.times import format_time
from streamkm.values import Secret
from waiting import PATIENCE, wait_until

KEY = bytes(range(32))
SECRET = Secret("whsec_" + base64.b64encode(KEY).decode())
QUICK = {"poll_interval": 0.01, "initial_backoff": 0.01, "max_backoff": 0.05}
SILENCE = 0
BIRTH = ModelEvent("birth", (), (4,), {"share": 0.25})
MERGE = ModelEvent("merge", (4, 7), (4,), {})


class Hook:
    """An HTTP server with scripted responses, then 204; it keeps all requests."""

    def __init__(self) -> None:
        self.answers: list[int | tuple[int, dict[str, str]]] = []
        self.requests: list[tuple[float, dict[str, str], bytes, int]] = []
        self.silent: list[socket.socket] = []
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:  # the name is given by the base class
                body = self.rfile.read(int(self.headers["content-length"]))
                answer = hook.answers.pop(0) if hook.answers else 204
                status, headers = answer if isinstance(answer, tuple) else (answer, {})
                seen = {name.lower(): value for name, value in self.headers.items()}
                hook.requests.append((time.monotonic(), seen, body, int(status)))
                if status is SILENCE:  # until the client closes the connection
                    hook.silent.append(self.connection)
                    self.connection.recv(1)
                    return
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hooks/secret-path"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()

    def received_ids(self) -> list[str]:
        """Ids of the requests that it accepted."""
        return [headers["webhook-id"] for _, headers, _, status in self.requests if 200 <= status < 300]

    def hang_up(self) -> None:
        """Close the connections without a response."""
        for connection in self.silent:
            connection.shutdown(socket.SHUT_RD)

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def hook() -> Iterator[Hook]:
    with contextlib.closing(Hook()) as found:
        yield found


@pytest.fixture
def world_with_events() -> tuple[Any, Writer]:
    store = open_store("memory://")
    return store, Writer(store)


@contextlib.contextmanager
def notifying(store: Any, *targets: Any, start: Any = "beginning", clock: Callable[[], float] = time.time) -> Any:
    """Run a notifier in a thread."""
    stop = threading.Event()
    notifier = Notifier("orders", store, targets, options=NotifyOptions(start=start, **QUICK), clock=clock)
    thread = threading.Thread(target=notifier.run, args=(stop,))
    thread.start()
    try:
        yield thread
    finally:
        stop.set()
        thread.join(PATIENCE)
        assert not thread.is_alive()


class Inbox:
    """A target in memory; each entry of `fail` is raised once."""

    def __init__(self, name: str = "inbox") -> None:
        self.name = name
        self.got: list[dict[str, Any]] = []
        self.fail: list[Exception] = []
        self.open = True

    def deliver(self, message: EventMessage) -> None:
        if self.fail:
            raise self.fail.pop(0)
        self.got.append(json.loads(message.body))

    def close(self) -> None:
        self.open = False

    def ids(self) -> list[str]:
        return [e["id"] for e in self.got]


def test_the_example_of_the_specification_is_right():
    secret, body = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", b'{"test": 2432232314}'
    id_, at = "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330
    signature = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert sign(*keys(secret), id_, at, body) == signature
    headers = {"Webhook-Id": id_, "Webhook-Timestamp": str(at), "Webhook-Signature": f"v1a,xyz {signature}"}
    assert verify(secret, headers, body, at + 299.0) == id_


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"webhook-id": "other"}, "no signature matches"),
        ({"webhook-timestamp": "1001"}, "no signature matches"),
        ({"webhook-timestamp": "soon"}, "not a number"),
        ({"webhook-timestamp": "699"}, "more than 300 s away"),
        ({"webhook-timestamp": "1301"}, "more than 300 s away"),
        ({"webhook-signature": ""}, "no signature matches"),
        ({"webhook-signature": "v1,\xe4"}, "no signature matches"),
        ({"webhook-signature": None}, "no header webhook-signature"),
    ],
)
def test_a_message_that_the_sender_did_not_sign_is_rejected(change, says):
    headers = {"webhook-id": "m/1/0", "webhook-timestamp": "1000", "webhook-signature": sign(KEY, "m/1/0", 1000, b"{}")}
    assert verify(SECRET, headers, b"{}", 1000.0) == "m/1/0"
    changed = {k: v for k, v in {**headers, **change}.items() if v is not None}
    with pytest.raises(SignatureError, match=says):
        verify(SECRET, changed, b"{}", 1000.0)
    with pytest.raises(SignatureError, match="no signature matches"):
        verify(SECRET, headers, b"{ }", 1000.0)


def test_during_a_rotation_both_secrets_are_valid():
    new = "whsec_" + base64.b64encode(bytes(32)).decode()
    headers = {"webhook-id": "a", "webhook-timestamp": "5", "webhook-signature": sign(KEY, "a", 5, b"")}
    assert verify(f"{new} {SECRET}", headers, b"", 5.0) == "a"
    with pytest.raises(SignatureError):
        verify(new, headers, b"", 5.0)


@pytest.mark.parametrize(
    "secret", ["", "whsec_", "whsec_???", "hunter2", "whsec_" + base64.b64encode(b"short").decode()]
)
def test_an_invalid_secret_is_an_error_that_does_not_show_it(secret):
    with pytest.raises(SettingsError) as e:
        WebhookTarget("https://example.com/", Secret(secret))
    assert e.value.where == "webhook_secret"
    assert not secret or secret.removeprefix("whsec_") not in str(e.value) or secret == "whsec_"  # noqa: S105


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://example.com/x", "read and replay"),
        ("http://127.0.0.1.example.com/x", "read and replay"),
        ("ftp://example.com/", "not an HTTP URL"),
        ("example.com", "not an HTTP URL"),
        ("https://", "not an HTTP URL"),
        ("https://user:hunter2@example.com/", "contains a user or a password"),
    ],
)
def test_unsafe_addresses_are_rejected(url, says):
    with pytest.raises(SettingsError, match=says) as e:
        WebhookTarget(url, SECRET)
    assert "hunter2" not in str(e.value)


@pytest.mark.parametrize(
    "url", ["http://localhost:1/", "http://127.0.0.1/", "http://[::1]:80/x", "https://a.example/b"]
)
def test_addresses_that_are_safe_are_taken(url):
    with contextlib.closing(WebhookTarget(url, SECRET)) as target:
        assert "/x" not in target.name
        assert len(target.name) < 100


def test_a_failing_webhook_gets_all_events_once_it_recovers(world_with_events, hook, caplog):
    store, writer = world_with_events
    caplog.set_level(logging.INFO, "streamkm")
    writer.commit(events=(BIRTH, MERGE))
    writer.commit()
    writer.commit(events=(MERGE,))
    redirect = (302, {"location": hook.url})
    hook.answers = [500, SILENCE, redirect, (503, {"retry-after": "1"}), 204, 429]
    # Long enough for every response, on a busy machine too.
    with notifying(store, WebhookTarget(hook.url, SECRET, timeout=4.0)):
        wait_until(lambda: len(hook.received_ids()) == 3)
        wait_until(lambda: store.delivered_until("orders", WebhookTarget(hook.url, SECRET).name) == 3)
    assert hook.received_ids() == ["orders/1.0", "orders/1.1", "orders/3.0"]
    assert [r[3] for r in hook.requests] == [500, 0, 302, 503, 204, 429, 204, 204]
    for _, headers, body, _ in hook.requests:
        # Independent of the tested code.
        signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
        mac = base64.b64encode(hmac.new(KEY, signed, hashlib.sha256).digest()).decode()
        assert headers["webhook-signature"] == f"v1,{mac}"
        assert abs(int(headers["webhook-timestamp"]) - time.time()) < 60
        assert headers["content-type"] == "application/json"
        assert headers["webhook-id"] == "orders/" + json.loads(body)["id"]
    first = json.loads(hook.requests[0][2])
    assert first == {
        "id": "1.0",
        "model": "orders",
        "snapshot": 1,
        "created_at": format_time(NOW),
        "kind": "birth",
        "before": [],
        "after": [4],
        "detail": {"share": 0.25},
    }
    at = [r[0] for r in hook.requests]
    assert at[4] - at[3] >= 0.05  # Retry-After, limited by the maximum backoff
    assert "secret-path" not in caplog.text
    assert SECRET not in caplog.text


def test_a_target_that_is_gone_gets_no_more_events_and_others_do(world_with_events, hook, caplog):
    store, writer = world_with_events
    writer.commit(events=(BIRTH,))
    hook.answers = [410]
    inbox = Inbox()
    with notifying(store, WebhookTarget(hook.url, SECRET), inbox):
        wait_until(lambda: "no more events are delivered" in caplog.text)
        writer.commit(events=(MERGE,))
        wait_until(lambda: inbox.ids() == ["1.0", "2.0"])
    assert len(hook.requests) == 1


def test_it_ends_when_all_targets_are_gone(world_with_events):
    store, writer = world_with_events
    writer.commit(events=(BIRTH,))
    inbox = Inbox()
    inbox.fail = [TargetGoneError("gone")]
    with notifying(store, inbox) as thread:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert not inbox.open


def test_a_slow_target_delays_no_other(world_with_events, hook):
    store, writer = world_with_events
    hook.answers = [SILENCE]
    inbox, slow = Inbox(), WebhookTarget(hook.url, SECRET, timeout=PATIENCE)
    with notifying(store, slow, inbox):
        for n in range(1, 6):
            writer.commit(events=(BIRTH,))
            wait_until(lambda n=n: len(inbox.got) == n)
        wait_until(lambda: hook.requests)
        assert len(hook.requests) == 1
        assert hook.received_ids() == [], "all that time it has not answered"
        hook.hang_up()


def test_a_delivery_has_one_time_out_however_its_steps_trickle():
    """With a server that sends a byte of its headers now and then, and never ends."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listener:
        stop, sent = threading.Event(), []

        def drip() -> None:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
                while not stop.wait(0.02):
                    connection.sendall(b"a")
                    sent.append(1)

        thread = threading.Thread(target=drip)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        target = WebhookTarget(url, SECRET, timeout=0.5)
        with contextlib.closing(target), pytest.raises(DeliveryFailedError, match=r"no response after 0\.5 s"):
            target.deliver(EventMessage("1", "orders", b"{}"))
        assert len(sent) > 1  # no single read timed out
        stop.set()
        thread.join(PATIENCE)


def test_a_new_target_starts_now_or_at_the_beginning(world_with_events):
    store, writer = world_with_events
    writer.commit(events=(BIRTH,))
    now, beginning = Inbox("now"), Inbox("beginning")
    with notifying(store, now, start="now"), notifying(store, beginning):
        wait_until(lambda: store.delivered_until("orders", "now") == 1)
        writer.commit(events=(MERGE,))
        wait_until(lambda: now.got and len(beginning.got) == 2)
    assert now.ids() == ["2.0"]
    assert beginning.ids() == ["1.0", "2.0"]
    again = Inbox("now")
    writer.commit(events=(BIRTH,))
    with notifying(store, again, start="now"):  # no longer new
        wait_until(lambda: again.ids() == ["3.0"])


def test_a_target_of_a_model_without_snapshots_misses_none(world_with_events):
    store, writer = world_with_events
    inbox = Inbox()
    looks, plain = [], store.snapshots
    store.snapshots = lambda *arguments, **named: looks.append(1) or plain(*arguments, **named)
    with notifying(store, inbox, start="now"):
        wait_until(lambda: looks)
        writer.commit(events=(BIRTH,))
        wait_until(lambda: inbox.ids() == ["1.0"])


def test_events_of_one_snapshot_are_not_repeated_because_the_last_one_failed(world_with_events):
    store, writer = world_with_events
    writer.commit(events=(BIRTH, MERGE))
    inbox = Inbox()
    deliver = inbox.deliver
    failures = iter([None, DeliveryFailedError("no"), DeliveryFailedError("no")])

    def second_fails(message: EventMessage) -> None:
        error = next(failures, None)
        if error is not None:
            raise error
        deliver(message)

    inbox.deliver = second_fails  # type: ignore[method-assign]
    with notifying(store, inbox):
        wait_until(lambda: store.delivered_until("orders", "inbox") == 1)
    assert inbox.ids() == ["1.0", "1.1"]


def test_many_snapshots_come_in_order(world_with_events):
    store, writer = world_with_events
    for i in range(250):
        writer.commit(events=(BIRTH,) if i % 2 else ())
    inbox = Inbox()
    with notifying(store, inbox):
        wait_until(lambda: len(inbox.got) == 125)
    assert inbox.ids() == [f"{i}.0" for i in range(2, 251, 2)]


def test_what_retention_removed_is_counted_in_the_log(world_with_events, caplog):
    store, writer = world_with_events
    for _ in range(10):
        writer.commit(events=(BIRTH,))

    class Thinned:
        """A store without snapshots 3 to 6, which deletes 9 while it is read."""

        def __getattr__(self, name: str) -> Any:
            return getattr(store, name)

        def snapshots(self, model: str, **how: Any) -> Any:
            return [s for s in store.snapshots(model, **how) if s.id not in range(3, 7)]

        def snapshot(self, model: str, snapshot_id: int | None = None, *, at: float | None = None) -> Any:
            if snapshot_id == 9:
                raise NotFoundError("gone")
            return store.snapshot(model, snapshot_id, at=at)

    assert store.advance_delivery("orders", "inbox", 0, 2)
    inbox = Inbox()
    with notifying(Thinned(), inbox, clock=lambda: NOW + EVENT_RETENTION_SECONDS + 1):
        wait_until(lambda: store.delivered_until("orders", "inbox") == 10)
    assert inbox.ids() == ["7.0", "8.0", "10.0"]
    assert "retention deleted 4 snapshots before their events were delivered to inbox" in caplog.text
    assert "retention deleted snapshot 9 before its events were delivered to inbox" in caplog.text


class Mailbox:
    """A writer that is unavailable once, rejects once, then accepts everything."""

    def __init__(self) -> None:
        self.opened, self.topics, self.sent = 0, set[str](), list[ProducerRecord]()
        self.refuse = 1

    def open(self) -> Mailbox:
        self.opened += 1
        if self.opened == 1:
            raise BrokerUnreachableError("away")
        return self

    def create_topic(self, topic: str, partitions: int = 1) -> None:  # noqa: ARG002
        self.topics.add(topic)

    def write(self, records: Any) -> list[DeliveryError | None]:
        if self.refuse:
            self.refuse -= 1
            return [DeliveryError("NotEnoughReplicas", permanent=False)]
        self.sent += records
        return [None] * len(records)

    def close(self) -> None:
        pass


def test_a_topic_gets_each_event_with_its_id(world_with_events):
    store, writer = world_with_events
    writer.commit(events=(BIRTH, MERGE))
    mailbox = Mailbox()
    with notifying(store, TopicTarget("events", mailbox.open)):
        wait_until(lambda: store.delivered_until("orders", "topic:events") == 1)
    assert mailbox.topics == {"events"}
    assert [(r.topic, r.key, dict(r.headers)) for r in mailbox.sent] == [
        ("events", b"orders", {"id": b"orders/1.0"}),
        ("events", b"orders", {"id": b"orders/1.1"}),
    ]
    assert json.loads(mailbox.sent[1].value or b"")["kind"] == "merge"


@pytest.fixture
def url(tmp_path: Path) -> str:
    found = f"sqlite:///{tmp_path}/s.db"
    with contextlib.closing(open_store(found)) as store:
        writer = Writer(store)
        for _ in range(3):
            writer.commit(events=(BIRTH, MERGE))
    return found


def test_killed_between_delivery_and_progress_it_repeats_the_same_ids_and_loses_none(url, hook, tmp_path):
    command = ["notify", "orders", "--webhook", hook.url, "--store", url, "--from", "beginning"]
    env = {"STREAMKM_WEBHOOK_SECRET": str(SECRET)}
    with program(tmp_path / "log", *command, env=env, script=Path(__file__).with_name("killed_notify.py")) as p:
        assert p.popen.wait(PATIENCE) == -9, p.output()
    once = [f"orders/{n}.{i}" for n in (1, 2) for i in (0, 1)]
    assert hook.received_ids() == once
    with program(tmp_path / "log", *command, env=env) as p:
        p.until(lambda: hook.received_ids()[-1:] == ["orders/3.1"])
        assert p.leave() == 0
    assert hook.received_ids() == [*once, "orders/2.0", "orders/2.1", "orders/3.0", "orders/3.1"]
    bodies = {h["webhook-id"]: set[bytes]() for _, h, _, _ in hook.requests}
    for _, headers, body, _ in hook.requests:
        bodies[headers["webhook-id"]].add(body)
    assert all(len(one) == 1 for one in bodies.values())  # repeated deliveries have the same body
    assert SECRET not in (tmp_path / "log").read_text()
    assert "secret-path" not in (tmp_path / "log").read_text()


def test_invalid_targets_are_reported_before_the_start(url):
    for arguments, says in (
        ((), "there is no target"),
        (("--webhook", "https://example.com/"), "there is no secret"),
        (("--to", "orders"), "the topic of the records"),
    ):
        done = run("notify", "orders", "--store", url, *arguments, env={"STREAMKM_WEBHOOK_SECRET": ""})
        assert done.returncode == 2, done.stderr
        assert says in done.stderr
    done = run("notify", "nobody", "--to", "events", "--store", url)
    assert done.returncode == 3


@pytest.mark.kafka
def test_events_reach_a_real_topic(url, bootstrap, topic, tmp_path):
    import kafka

    out = f"{topic()}.events"
    command = ["notify", "orders", "--to", out, "--store", url, "--bootstrap", bootstrap, "--from", "beginning"]
    with program(tmp_path / "log", *command) as p:
        with contextlib.closing(open_store(url)) as store:
            p.until(lambda: store.delivered_until("orders", f"topic:{out}") == 3)
        assert p.leave() == 0
    with contextlib.closing(kafka.KafkaConsumer(bootstrap_servers=bootstrap)) as consumer:
        tp = kafka.TopicPartition(out, 0)
        consumer.assign([tp])
        consumer.seek_to_beginning(tp)
        got: list[Any] = []
        wait_until(lambda: got.extend(consumer.poll(500).get(tp, ())) or len(got) == 6)
    assert [r.headers for r in got] == [[("id", f"orders/{n}.{i}".encode())] for n in (1, 2, 3) for i in (0, 1)]
    assert {r.key for r in got} == {b"orders"}
    with contextlib.closing(kafka.KafkaAdminClient(bootstrap_servers=bootstrap)) as admin:
        admin.delete_topics([out])


def test_the_receiver_in_the_docs_accepts_only_signed_messages(monkeypatch, capsys):
    docs = (Path(__file__).parents[1] / "docs" / "outputs.md").read_text()
    (code,) = (part for part in re.findall(r"```python\n(.*?)```", docs, re.DOTALL) if "verify" in part)
    names: dict[str, Any] = {}
    exec(compile(code, "docs/outputs.md", "exec"), names)  # noqa: S102  # it is ours
    monkeypatch.setenv("STREAMKM_WEBHOOK_SECRET", SECRET)
    body = b'{"kind": "birth"}'

    def post(key: bytes) -> int:
        now = int(time.time())
        headers = {
            "webhook-id": "m/1/0",
            "webhook-timestamp": str(now),
            "webhook-signature": sign(key, "m/1/0", now, body),
        }

        async def send() -> int:
            transport = httpx.ASGITransport(names["app"])
            async with httpx.AsyncClient(transport=transport, base_url="http://test", trust_env=False) as client:
                return (await client.post("/hooks/clusters", content=body, headers=headers)).status_code

        return asyncio.run(send())

    assert [post(KEY), post(KEY), post(bytes(32))] == [204, 204, 401]
    assert capsys.readouterr().out == "birth\n"
