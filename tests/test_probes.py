"""What a consumer answers over HTTP, and what it holds its clients to: over real sockets."""

from __future__ import annotations

import contextlib
import http.client
import json
import select
import socket
import threading
import time

import pytest

from streamkm.engine import Heartbeat
from streamkm.errors import StoreUnavailableError
from streamkm.http.connection import ConnectionLimits
from streamkm.http.probes import probes
from streamkm.metrics import Metrics
from streamkm.values import Secret
from waiting import PATIENCE, wait_until

LIVE = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n"
TOKEN = "long and random"  # noqa: S105


def with_head_of(size):
    """A request with a head of this many bytes."""
    return LIVE + b"X-A: " + b"a" * (size - len(LIVE) - len(b"X-A: \r\n\r\n")) + b"\r\n\r\n"


@contextlib.contextmanager
def probed(reachable=str, token="", **kwargs):
    """A consumer at work; gives the port."""
    heartbeat = Heartbeat()
    heartbeat.beat("polling", "owner")
    with probes("127.0.0.1", 0, Metrics(), heartbeat, reachable, Secret(token), **kwargs) as port:
        yield port


@pytest.fixture(scope="module")
def port():
    with probed(token=TOKEN) as port:
        yield port


@contextlib.contextmanager
def connected(port):
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
        yield client


def read(client):
    """All that comes until the consumer closes."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while part := client.recv(1 << 16):
            found += part
    return found


def is_closed(client):
    """Whether the consumer has let this client go."""
    readable, _, _ = select.select([client], [], [], 0)
    if not readable:
        return False
    with contextlib.suppress(ConnectionResetError):
        return not client.recv(1, socket.MSG_PEEK)
    return True


def asked(client):
    """The status of one request on an open connection."""
    client.sendall(LIVE + b"\r\n")
    return int(client.recv(12).split()[1])


def request(port, method, path, headers=None):
    """Status, headers and body of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.request(method, path, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()


@pytest.mark.parametrize(
    ("method", "path", "authorization", "expected"),
    [
        ("GET", "/livez", None, 200),
        ("HEAD", "/livez", None, 200),
        ("GET", "/readyz", None, 200),
        ("GET", "/metrics", f"Bearer {TOKEN}", 200),
        ("HEAD", "/metrics", f"bearer {TOKEN}", 200),
        ("GET", "/metrics", None, 401),
        ("GET", "/metrics", "Bearer short", 401),
        ("GET", "/metrics", TOKEN, 401),
        ("POST", "/livez", None, 405),
        ("DELETE", "/readyz", None, 405),
        ("OPTIONS", "/metrics", f"Bearer {TOKEN}", 405),
        ("GET", "/", None, 404),
        ("POST", "/metrics/", None, 404),
    ],
)
def test_each_request_is_answered_in_the_shape_of_the_service(port, method, path, authorization, expected):
    status, headers, body = request(port, method, path, {"Authorization": authorization} if authorization else None)
    assert status == expected
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert "Server" not in headers
    if method == "HEAD":
        assert not body
    elif status >= 400:
        problem = json.loads(body)
        assert headers["Content-Type"] == "application/problem+json"
        assert (problem["status"], bool(problem["detail"]), bool(problem["hint"])) == (status, True, True)
        assert headers["Allow"] == ("GET, HEAD" if status == 405 else None)
        assert headers["WWW-Authenticate"] == ("Bearer" if status == 401 else None)
    elif path == "/metrics":
        assert b"# TYPE streamkm_" in body
    else:
        assert json.loads(body)["status"] == "ok"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (LIVE + b"X-A: " + b"a" * 65_536, 431),  # it never ends
        (with_head_of(16_500), 431),
        (LIVE + b"A: b\r\n" * 101 + b"\r\n", 431),
        (LIVE + b"Host: other.example\r\n\r\n", 400),
        (b"GET http://localhost/livez HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /livez\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00", 400),  # TLS
    ],
)
def test_too_large_or_invalid_requests_are_refused(port, request_, status):
    with connected(port) as client:
        client.sendall(request_)
        assert read(client).startswith(b"HTTP/1.1 %d " % status)


def test_a_head_below_the_limit_is_read(port):
    with connected(port) as client:
        client.sendall(with_head_of(16_300))
        assert client.recv(12) == b"HTTP/1.1 200"


def test_slow_requests_have_one_deadline_and_idle_clients_are_disconnected():
    def trickle(client):
        with contextlib.suppress(OSError):
            while True:
                client.sendall(b"A")
                time.sleep(0.05)

    with probed(limits=ConnectionLimits(head_seconds=0.2, idle_seconds=0.4, drain_seconds=0.2)) as port:
        with connected(port) as client:
            client.sendall(LIVE)
            thread = threading.Thread(target=trickle, args=(client,), daemon=True)
            thread.start()
            assert read(client).startswith(b"HTTP/1.1 408 ")
        thread.join(PATIENCE)
        assert not thread.is_alive()
        for sent, says in ((b"", b""), (LIVE + b"\r\n", b"HTTP/1.1 200 OK")):
            with connected(port) as client:
                client.sendall(sent)
                assert read(client).startswith(says)  # it closes


def test_connections_are_bounded_take_no_threads_and_keep_no_probe_out():
    with probed() as port, contextlib.ExitStack() as stack:
        before = threading.active_count()
        held = [stack.enter_context(connected(port)) for _ in range(64)]
        assert asked(held[-1]) == 200, "all are accepted now"
        assert not any(map(is_closed, held))
        held += [stack.enter_context(connected(port)) for _ in range(10)]
        assert request(port, "GET", "/livez")[0] == 200
        assert threading.active_count() == before
        wait_until(lambda: sum(map(is_closed, held)) == 11)
        assert asked(held[-1]) == 200


def test_a_store_that_does_not_answer_is_asked_once_and_said_and_holds_up_no_livez():
    asked, answers = [], threading.Event()

    def ping():
        asked.append(threading.current_thread())
        assert answers.wait(PATIENCE)
        raise StoreUnavailableError("locked")

    with probed(ping=ping, check_seconds=0.2) as port:
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(connected(port)) for _ in range(10)]
            for client in clients:
                client.sendall(LIVE.replace(b"livez", b"readyz") + b"Connection: close\r\n\r\n")
            assert request(port, "GET", "/livez")[0] == 200
            said = [read(client) for client in clients]
        assert {answer[:13] for answer in said} == {b"HTTP/1.1 503 "}
        assert all(b"store or broker did not respond within 0.2 s" in answer for answer in said)
        assert len(asked) == 1
        answers.set()
        asked[0].join(PATIENCE)
        wait_until(lambda: b"store unavailable: locked" in request(port, "GET", "/readyz")[2])


def test_a_consumer_leaves_while_its_store_hangs():
    def serving():
        return [thread.ident for thread in threading.enumerate() if thread.name == "streamkm-probes"]

    answers, before = threading.Event(), serving()
    with probed(ping=lambda: answers.wait(PATIENCE), check_seconds=PATIENCE) as port, connected(port) as client:
        client.sendall(LIVE.replace(b"livez", b"readyz") + b"\r\n")
        assert len(serving()) == len(before) + 1
        wait_until(lambda: any(thread.name == "streamkm-readiness" for thread in threading.enumerate()))
    assert serving() == before
    answers.set()
