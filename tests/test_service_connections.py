"""What a client may send before anybody looks at it, and how long it may take: over real sockets."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import socket
import threading
import time
from pathlib import Path

import pytest
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from service_api import TOKEN
from service_server import serving
from streamkm import service
from streamkm.http.connection import Connection, ConnectionLimits
from streamkm.metrics import HTTP_REQUESTS
from streamkm.service import middleware
from streamkm.service.middleware import REQUEST_HEADERS, MetricsMiddleware
from streamkm.service.routes.inference_v2 import HEADER_LENGTH
from waiting import PATIENCE, wait_until

PAGE = Path(__file__).parents[1] / "docs/security.md"
GET = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n"
BODY = b'{"points": [[10, 10, 11]]}'
POST = b"POST /v1/models/orders/predict HTTP/1.1\r\nHost: localhost\r\n"
SIZED = POST + b"Content-Length: %d\r\n\r\n" % len(BODY)


@pytest.fixture(scope="module")
def app():
    with serving() as app:
        yield app


@pytest.fixture(scope="module")
def hasty():
    """A service that waits for nobody."""
    with serving(
        limits=ConnectionLimits(head_seconds=0.2, idle_seconds=0.4, drain_seconds=0.2, unread_seconds=0.4)
    ) as app:
        yield app


@contextlib.contextmanager
def connected(app):
    with socket.create_connection(("127.0.0.1", app.state.port), timeout=PATIENCE) as client:
        yield client


def read(client):
    """All that comes until the service closes."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while part := client.recv(1 << 16):
            found += part
    return found


def answer(file):
    """One answer with a known length, as (status, headers, body)."""
    status = int(file.readline().split()[1])
    headers = {}
    while line := file.readline().strip():
        name, _, value = line.decode().partition(": ")
        headers[name] = value
    return status, headers, file.read(int(headers["content-length"]))


def asked(client, request=GET + b"\r\n"):
    """The status of one request on an open connection."""
    client.sendall(request)
    with client.makefile("rb") as file:
        return answer(file)[0]


def told(app, *parts):
    """The whole answer to a connection on which this is sent: status, and the problem or what else is in the body."""
    with connected(app) as client:
        for part in parts:
            client.sendall(part)
        with client.makefile("rb") as file:
            status, headers, body = answer(file)
        if status >= 400:
            assert headers["content-type"] == "application/problem+json"
            assert headers["x-content-type-options"] == "nosniff"
        return status, json.loads(body)


def refused(app, *parts):
    status, problem = told(app, *parts)
    return status, problem["code"], problem["where"]


def counted(app, line):
    """The value of a metric of the service."""
    found = re.search(rf"^{re.escape(line)} (\S+)$", app.state.metrics.render().decode(), re.MULTILINE)
    return float(found[1]) if found else 0.0


CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
LARGE = b"X-A: " + b"a" * 65_536 + b"\r\n"


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (GET + LARGE, (431, "too-large", "headers")),  # refused before it is whole
        (GET + LARGE + b"\r\n", (431, "too-large", "headers")),
        (b"GET /" + b"a" * 70_000, (431, "too-large", "headers")),
        (GET + b"A: b\r\n" * 101 + b"\r\n", (431, "too-large", "headers")),
        (b"GET /v1/models?" + b"a" * 9000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", (414, "too-large", "URL")),
        (GET + b"Host: localhost\r\n\r\n", (400, "invalid", "Host")),
        (GET + b"hOST: example.com\r\n\r\n", (400, "invalid", "Host")),
        (b"GET /v1/models HTTP/1.1\r\n\r\n", (400, "invalid", "Host")),
        (b"GET http://localhost/v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n", (400, "invalid", "URL")),
        (b"GET http://other.example/v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n", (400, "invalid", "URL")),
        (b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n", (400, "invalid", "URL")),
        (b"GET v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n", (400, "invalid", "")),
        (b"GET /v1/models HTTP/3.0\r\nHost: localhost\r\n\r\n", (400, "invalid", "")),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (400, "invalid", "")),
        (b"GET / HTTP/1.1\n", (400, "invalid", "")),
        (GET + b"A: b\n\r\n", (400, "invalid", "")),  # a head without an end
        (GET + b"A: b\nC: d\r\n\r\n", (400, "invalid", "")),
        (CHUNKED + b"1\n{\r\n0\r\n\r\n", (400, "invalid", "")),
        (CHUNKED + b"1\r\n{\n0\r\n\r\n", (400, "invalid", "")),
        (CHUNKED + b"0\r\nA: b\n\r\n", (400, "invalid", "")),
        (b"\x16\x03\x01\x02\x00", (400, "invalid", "")),  # TLS
        (SIZED.replace(b"Content-Length", b"Content-Length: 1\r\nContent-Length"), (400, "invalid", "")),
        (POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", (400, "invalid", "")),
        (POST + b"Content-Length: -1\r\n\r\n", (400, "invalid", "")),
        (POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", (400, "invalid", "")),
        (GET + b"A: b\r\n folded\r\n\r\n", (400, "invalid", "")),
        (GET + b"A : b\r\n\r\n", (400, "invalid", "")),
        (GET.replace(b"HTTP/1.1", b"HTTP/2.0") + b"\r\n", (400, "invalid", "")),
        (GET.replace(b"HTTP/1.1", b"HTTP/0.9") + b"\r\n", (400, "invalid", "")),
        (CHUNKED.replace(b"HTTP/1.1", b"HTTP/1.0"), (400, "invalid", "Transfer-Encoding")),
        (CHUNKED.replace(b"chunked", b"gzip, chunked") + b"0\r\n\r\n", (400, "invalid", "Transfer-Encoding")),
        (CHUNKED.replace(b"chunked", b"gzip"), (400, "invalid", "")),
        (GET.replace(b"localhost", b"localhost:80@other.example") + b"\r\n", (400, "invalid", "Host")),
        (GET.replace(b"localhost", b"[::1].other.example") + b"\r\n", (400, "invalid", "Host")),
        (GET.replace(b"localhost", b"localhost, other.example") + b"\r\n", (400, "invalid", "Host")),
        (GET.replace(b"localhost", b"a" * 301) + b"\r\n", (400, "invalid", "Host")),
        (GET.replace(b"models", b"models#a") + b"\r\n", (400, "invalid", "URL")),
        (CHUNKED + b"0\r\nA: " + b"a" * 81_920, (431, "too-large", "body")),
        (CHUNKED + b"0\r\n" + b"A: b\r\n" * 13_654, (431, "too-large", "body")),
        (CHUNKED + b"1;" + b"a" * 81_920, (431, "too-large", "body")),
    ],
)
def test_too_large_or_invalid_requests_are_refused(app, request_, expected):
    assert refused(app, request_) == expected


def test_the_bound_of_headers_holds_however_they_come_and_does_not_take_what_is_below(app):
    most = GET + b"X-A: " + b"a" * (65_536 - len(GET) - len(b"X-A: \r\n\r\n")) + b"\r\n\r\n"
    assert len(most) == 65_536
    assert told(app, most)[0] == 200
    assert told(app, *(most[i : i + 1000] for i in range(0, len(most), 1000)))[0] == 200
    assert refused(app, most.replace(b"X-A: ", b"X-A: a"))[0] == 431
    assert told(app, GET + b"A: b\r\n" * 99 + b"\r\n")[0] == 200


def test_trailers_of_a_chunked_body_are_not_headers(app):
    trailers = b"Host: other.example\r\nAuthorization: Bearer wrong\r\nContent-Type: text/csv\r\n"
    request = CHUNKED + b"%x\r\n%b\r\n0\r\n%b\r\n" % (len(BODY), BODY, trailers)
    for size in (len(request), len(CHUNKED), 10):
        assert told(app, *(request[at : at + size] for at in range(0, len(request), size)))[0] == 200


def test_requests_in_one_piece_or_byte_by_byte_are_answered_in_order(app):
    chunked = CHUNKED + b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
    requests = [GET + b"\r\n", SIZED + BODY, b"\r\n\r\n" + GET + b"\r\n", SIZED + BODY, GET + b"\r\n", chunked]
    stream = b"".join(requests)
    for size in (len(stream), 1, 7, 100):
        with connected(app) as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for at in range(0, len(stream), size):
                client.sendall(stream[at : at + size])
            with client.makefile("rb") as file:
                kinds = [min(json.loads(answer(file)[2])) for _ in requests]
        assert kinds == ["models", "distances"] * 3


@pytest.mark.parametrize(
    "rest", [GET + b"\r\n", SIZED + BODY, GET + b"Connection: upgrade\r\nUpgrade: h2c\r\n\r\n", b"zzz"]
)
def test_bytes_after_a_chunked_body_in_one_read_are_dropped(app, rest):
    body = CHUNKED + b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
    with connected(app) as client:
        client.sendall(body + rest)
        found = read(client)
    assert found.startswith(b"HTTP/1.1 200 ")
    assert found.count(b"HTTP/1.1 ") == 1
    assert b"connection: close" in found.lower()
    assert min(json.loads(found.partition(b"\r\n\r\n")[2])) == "distances"


def test_a_body_in_many_chunks_is_parsed_in_pieces_and_the_next_request_is_answered(app):
    body = BODY + b" " * 40_000  # sixteen pieces, in chunks of one byte
    stream = CHUNKED + b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    with connected(app) as client, client.makefile("rb") as file:
        for _ in range(2):
            client.sendall(stream)
            assert min(json.loads(answer(file)[2])) == "distances"
        assert asked(client) == 200


@pytest.mark.parametrize("size", [100, 1 << 16, 1 << 20])
def test_a_chunked_body_beyond_the_bound_of_pipelined_requests_is_read(app, size):
    body = BODY + b" " * (3 << 20)
    chunks = (body[at : at + size] for at in range(0, len(body), size))
    stream = CHUNKED + b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    with connected(app) as client:
        client.sendall(stream)
        with client.makefile("rb") as file:
            assert answer(file)[0] == 200


def errors_in(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("rest", [b"1;" + b"a" * 100_000, b"zz\r\n", b"0\r\nA: " + b"a" * 100_000])
def test_a_chunked_body_that_is_refused_is_no_error_in_the_log(app, caplog, rest):
    assert refused(app, CHUNKED + b"1\r\n{\r\n" + rest)[0] in {400, 431}
    wait_until(lambda: not app.state.server.server_state.tasks)
    assert errors_in(caplog) == []


@pytest.mark.parametrize("head", [CHUNKED + b"5\r\n{", SIZED + b"{"])
def test_a_client_that_leaves_in_its_body_is_no_error_in_the_log(app, caplog, head):
    line = f'{HTTP_REQUESTS.name}{{method="POST",route="/v1/models/{{model}}/predict",status="499"}}'
    before, tasks = counted(app, line), app.state.server.server_state.tasks
    with connected(app) as client:
        client.sendall(head)
        wait_until(lambda: tasks)
    wait_until(lambda: counted(app, line) == before + 1)
    wait_until(lambda: not tasks)
    assert errors_in(caplog) == []


@pytest.mark.parametrize("size", [1, 300_000])
def test_a_body_of_known_length_is_not_parsed_after_the_response_either(app, monkeypatch, size):
    parsed = []
    parse = Connection._parse
    monkeypatch.setattr(Connection, "_parse", lambda self, data: (parsed.append(bytes(data)), parse(self, data))[1])
    head = b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % (2 + size)
    with connected(app) as client:
        assert asked(client, head + b"ab") == 404
        client.sendall(b"c" * size)
        assert asked(client) == 200
        assert asked(client, SIZED + BODY) == 200
    assert parsed == [head, GET + b"\r\n", SIZED]


@pytest.mark.parametrize("length", [b"Content-Length: 100000", b"Transfer-Encoding: chunked"])
def test_the_connection_closes_after_the_response_if_too_much_of_a_body_is_left(length):
    with serving(limits=ConnectionLimits(drain_bytes=1000)) as app, connected(app) as client:
        head = b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\n" + length + b"\r\n\r\n"
        client.sendall(head + b"1\r\n")
        assert read(client).startswith(b"HTTP/1.1 404 ")
        (connection,) = app.state.server.server_state.connections
        for _ in range(2):
            client.sendall(b"a" * 1000)
        wait_until(lambda: connection.flow.read_paused)


def test_headers_that_the_service_does_not_read_are_dropped(app, monkeypatch):
    seen = []
    handle = MetricsMiddleware.__call__

    async def handle_seen(self, scope, receive, send):
        seen.append([name for name, _ in scope["headers"]])
        await handle(self, scope, receive, send)

    monkeypatch.setattr(MetricsMiddleware, "__call__", handle_seen)
    assert told(app, GET + b"Cookie: a=b\r\nUser-Agent: c\r\nACCEPT: */*\r\nX-Api-Key: d\r\n\r\n")[0] == 200
    assert seen == [[b"host", b"accept"]]


def test_headers_that_the_service_reads_reach_it(app):
    described = [
        p for methods in app.openapi()["paths"].values() for m in methods.values() for p in m.get("parameters", [])
    ]
    wanted = {p["name"].lower() for p in described if p["in"] == "header"}
    for path in Path(service.__file__).parent.rglob("*.py"):
        text = path.read_text()
        wanted |= set(re.findall(r'headers\.get\("([a-z-]+)"', text))
        wanted |= {name.replace("_", "-") for name in re.findall(r"\b(\w+): Annotated\[str.*?, Header\(", text)}
        wanted |= set(re.findall(r'name == b"([a-z-]+)"', text)) - {"content-security-policy", "cache-control"}
    wanted |= {HEADER_LENGTH.lower(), *(name.decode() for name in middleware._TRACE_HEADERS)}
    assert {"accept", "if-none-match", "accept-encoding", "authorization", "last-event-id"} < wanted
    assert {name.encode() for name in wanted} <= REQUEST_HEADERS


def test_an_upgrade_is_ignored(app):
    more = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
    assert told(app, SIZED.replace(b"\r\n\r\n", b"\r\n" + more + b"\r\n"), BODY)[0] == 200
    more = b"Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: YQ==\r\n"
    assert told(app, GET + more + b"\r\n")[0] == 200


def test_pipelined_requests_are_buffered_up_to_a_limit():
    with serving(limits=ConnectionLimits(pipelined_bytes=1000)) as app:
        with connected(app) as client:
            client.sendall((GET + b"\r\n") * 10)
            with client.makefile("rb") as file:
                assert [answer(file)[0] for _ in range(10)] == [200] * 10
        with connected(app) as client:
            with contextlib.suppress(ConnectionError):
                client.sendall((GET + b"\r\n") * 1000)
            assert read(client).count(b"HTTP/1.1 200") < 1000


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ([], b""),  # nothing is sent
        ([b"\r\n"], b""),
        ([GET], b"HTTP/1.1 408 "),  # headers have no end
        ([GET + b"\r\n", GET], b"HTTP/1.1 200 OK"),  # those of the second request neither
        ([GET + b"\r\n"], b"HTTP/1.1 200 OK"),  # nothing comes after it
        # The answer does not wait for the body, and the rest of it is not waited for long.
        ([GET + b"Content-Length: 100\r\n\r\n"], b"HTTP/1.1 200 OK"),
        ([GET + b"Content-Length: 100\r\n\r\n", b"a"], b"HTTP/1.1 200 OK"),
    ],
)
def test_idle_clients_are_disconnected(hasty, parts, says):
    with connected(hasty) as client:
        for part in parts:
            client.sendall(part)
        assert read(client).startswith(says)  # it closes


def test_headers_that_trickle_have_one_deadline(hasty):
    def trickle(client):
        with contextlib.suppress(OSError):
            while True:
                client.sendall(b"A")
                time.sleep(0.05)

    with connected(hasty) as client:
        client.sendall(GET)
        thread = threading.Thread(target=trickle, args=(client,), daemon=True)
        thread.start()
        assert read(client).startswith(b"HTTP/1.1 408 ")
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_a_client_that_does_not_read_is_disconnected():
    points = b'{"points": [' + b"[1,2,3]," * 300_000 + b"[1,2,3]]}"
    with serving(limits=ConnectionLimits(unread_seconds=0.3)) as app:
        connections = app.state.server.server_state.connections
        with connected(app) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(points) + points)
            assert client.recv(12) == b"HTTP/1.1 200"
            wait_until(lambda: not connections)


def test_the_slowest_reader_is_disconnected_when_too_much_waits():
    points = b'{"points": [' + b"[1,2,3]," * 300_000 + b"[1,2,3]]}"
    with serving(limits=ConnectionLimits(unread_total=1 << 20)) as app, contextlib.ExitStack() as stack:
        for _ in range(2):
            client = stack.enter_context(connected(app))
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(points) + points)
            assert client.recv(12) == b"HTTP/1.1 200"
        wait_until(lambda: len(app.state.server.server_state.connections) == 1)


def test_the_longest_idle_connection_makes_room_for_a_new_one():
    with serving(limits=ConnectionLimits(connections=3)) as app, contextlib.ExitStack() as stack:
        idle = [stack.enter_context(connected(app)) for _ in range(3)]
        for client in (*idle, idle[0], idle[2]):  # now the second waits longest for a request
            assert asked(client) == 200
        assert told(app, GET + b"\r\n")[0] == 200
        assert read(idle[1]) == b""
        assert asked(idle[0]) == 200


def test_a_connection_that_sends_a_request_is_kept_while_another_is_idle():
    with serving(limits=ConnectionLimits(connections=2)) as app, connected(app) as idle, connected(app) as busy:
        busy.sendall(GET)  # its deadline is before that of the idle one
        connections = app.state.server.server_state.connections
        wait_until(lambda: sorted(c.idle for c in list(connections)) == [False, True])
        assert told(app, GET + b"\r\n")[0] == 200
        assert read(idle) == b""
        assert asked(busy, b"\r\n") == 200


def test_when_no_connection_is_idle_a_new_one_gets_503():
    stream = b"GET /v1/models/orders/stream HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with serving(limits=ConnectionLimits(connections=2)) as app, contextlib.ExitStack() as stack:
        for _ in range(2):
            client = stack.enter_context(connected(app))
            client.sendall(stream)
            assert client.recv(1 << 16).startswith(b"HTTP/1.1 200")
        assert refused(app, GET + b"\r\n") == (503, "too-many", "")


def test_requests_that_are_refused_at_once_count_too(app):
    line = f'{HTTP_REQUESTS.name}{{method="other",route="none",status="414"}}'
    before = counted(app, line)
    assert refused(app, b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")[0] == 414
    assert counted(app, line) == before + 1


WRONG = b"Authorization: Bearer wrong\r\n"


def statuses(app, forwarded, count=15):
    found = []
    for i in range(count):
        head = GET + WRONG + forwarded(i) + b"\r\n"
        found.append(told(app, head)[0])
    return found


def test_x_forwarded_for_is_trusted_only_from_proxies_and_bypasses_no_limit():
    def made_up(i):
        return b"X-Forwarded-For: 10.1.2.%d\r\n" % i

    with serving(token=TOKEN) as app:
        assert 429 in statuses(app, made_up)
    with serving(token=TOKEN, trusted_proxies=("10.0.0.0/8",)) as app:  # this client is none of them
        assert 429 in statuses(app, made_up)
    with serving(token=TOKEN, trusted_proxies=("127.0.0.0/8",)) as app:
        assert set(statuses(app, made_up)) == {401}
        # The last one is what the proxy saw; those before it are what its client said.
        assert 429 in statuses(app, lambda i: b"X-Forwarded-For: 10.9.9.%d, 192.0.2.1\r\n" % i)
        # What is no address counts as one client_key, and no long text is kept.
        assert 429 in statuses(app, lambda i: b"X-Forwarded-For: " + b"%d" % i * 5000 + b"\r\n")


def attributes_set_in(*functions):
    return {name for function in functions for name in function.__code__.co_names}


def test_uvicorn_has_the_parts_that_the_limits_are_made_of():
    """They are no part of its interface: if this fails after an upgrade, change `streamkm.http.connection` first."""
    hooks = {name for name in vars(Connection) if name.startswith(("on_", "send_", "pause_", "resume_"))}
    assert len(hooks) == 9
    assert {name for name in hooks if not hasattr(HttpToolsProtocol, name)} == set()
    assert hasattr(HttpToolsProtocol, "on_body"), "for which each connection has a method of its own"
    state = {"connections", "cycle", "flow", "headers", "loop", "parser", "server_state", "transport", "url"}
    assert state - attributes_set_in(HttpToolsProtocol.__init__, HttpToolsProtocol.on_message_begin) == set()
    cycle = {"body", "disconnected", "keep_alive", "message_event", "response_complete", "response_started"}
    assert cycle - attributes_set_in(RequestResponseCycle.__init__) == set()
    assert {"pause_reading", "resume_reading"} <= set(vars(FlowControl))
    assert {"total_requests", "connections"} <= attributes_set_in(ServerState.__init__)
    # Each request goes through these, and in this way; what they do not call is not bounded.
    assert "_start_asgi_task" in attributes_set_in(HttpToolsProtocol.on_headers_complete)
    assert "on_response_complete" in attributes_set_in(HttpToolsProtocol.on_headers_complete)
    assert STATUS_LINE[431].startswith(b"HTTP/1.1 431 ")


def test_the_limits_are_those_in_docs_security():
    b = ConnectionLimits()
    for told in (
        f"{b.head_bytes >> 10} KiB and {b.headers} headers until the head of a request is complete",
        f"{b.target_bytes >> 10} KiB of URL (414)",
        f"{b.head_seconds:g} s from the first byte",
        f"{b.idle_seconds:g} s between two requests",
        f"{b.drain_seconds:g} s for the rest of a body",
        f"and no more than {b.drain_bytes >> 20} MiB of it",
        f"{b.pipelined_bytes >> 20} MiB of others is buffered",
        f"less than {b.unread_bytes >> 10} KiB in {b.unread_seconds:g} s is disconnected",
        f"more than {b.unread_total >> 20} MiB wait",
        f"| {b.connections}; beyond that the longest idle one",
    ):
        assert told in PAGE.read_text(), told
