"""The limits in docs/security.md, each at its own number: with clocks that do not wait, and small requests."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import httpx
import pytest
import uvicorn
from uvicorn.server import ServerState

from service_api import NOW, TOKEN, Api, Writer
from streamkm.http.connection import ConnectionLimits, bounded_protocol
from streamkm.service.auth import TOKEN_PREFIX
from streamkm.service.broadcast import Broadcaster
from streamkm.service.limits import RateLimiter
from streamkm.service.problems import Problem
from streamkm.service.snapshot_cache import StoreReader
from streamkm.stores import MemoryStore
from streamkm.testing import ManualClock

PREDICT = "/v1/models/orders/predict"
GET = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n"
JSON, CSV = "application/json", "text/csv"


class SkippingLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next deadline when nothing else is left to do."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        select = self._selector.select  # type: ignore[attr-defined]

        def skip(timeout: float | None = None) -> Any:
            found = select(0)
            if not found and timeout:
                self.now += timeout
            return found

        self._selector.select = skip  # type: ignore[attr-defined]

    def time(self) -> float:
        return self.now


def run(main: Any) -> Any:
    """Run a coroutine that uses no threads, without waiting."""
    with asyncio.Runner(loop_factory=SkippingLoop) as runner:
        return runner.run(main)


class Socket(asyncio.Transport):
    """A connection of which a test decides how much its client reads."""

    def __init__(self) -> None:
        super().__init__()
        self.written, self.unread, self.closed, self.aborted, self.paused = b"", 0, False, False, False

    def get_write_buffer_size(self) -> int:
        return self.unread

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        pass

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


class Server:
    """Connections as the service has them, with its limits or others; the application responds when it is told to."""

    def __init__(self, limits: ConnectionLimits = ConnectionLimits()) -> None:  # noqa: B008 - frozen
        self.respond = asyncio.Event()
        self._protocol = bounded_protocol((), limits)
        self._config = uvicorn.Config(self._app, lifespan="off", interface="asgi3", ws="none", log_config=None)
        self._state = ServerState()

    async def _app(self, _scope: Any, _receive: Any, send: Any) -> None:
        await self.respond.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    def connect(self) -> tuple[Any, Socket]:
        """A new connection, and its socket."""
        transport = Socket()
        connection: Any = self._protocol(self._config, self._state, {})  # type: ignore[call-arg]
        connection.connection_made(transport)
        return connection, transport


async def seconds_until_closed(transport: Socket) -> float:
    """Seconds of the loop until a connection is closed or answered."""
    loop = asyncio.get_running_loop()
    for _ in range(1000):
        await asyncio.sleep(0.25)
        if transport.closed or transport.written:
            return loop.time()
    raise AssertionError("it stays open")


def test_ten_wrong_tokens_per_second_are_answered():
    store, clock = MemoryStore(), ManualClock()
    api = Api(store, token=TOKEN, monotonic=clock.monotonic)
    for kind in ("guess", f"{TOKEN_PREFIX}guess"):
        for _ in range(2):
            statuses = [
                api.get("/v1/models", headers={"Authorization": f"Bearer {kind}{i}"}).status_code for i in range(13)
            ]
            assert statuses == [401] * 10 + [429] * 3
            clock.advance(1.0)


def test_ten_thousand_clients_have_a_bucket():
    limiter = RateLimiter(1.0, 1.0)
    for i in range(10_001):
        assert limiter.take(str(i), 0.0) == 0.0
    assert len(limiter) == 10_000
    assert limiter.take("1", 0.0) > 0.0
    assert limiter.take("0", 0.0) == 0.0, "the oldest was dropped"


@pytest.mark.parametrize(("media_type", "turns"), [(JSON, 4), (CSV, 2)])
def test_four_large_json_bodies_or_two_tables_are_read_at_a_time(media_type, turns):
    async def go():
        store = MemoryStore()
        Writer(store).commit()
        transport = httpx.ASGITransport(Api(store).app)
        end, reading, small = asyncio.Event(), [], []

        async def body(name, size, found):
            found.append(name)
            yield b"x" * size
            await end.wait()

        async with httpx.AsyncClient(transport=transport, base_url="http://test", trust_env=False) as client:

            async def ask(name, size, found):
                headers = {"Content-Type": media_type, "Content-Length": str(size)}
                answer = await client.post(PREDICT, content=body(name, size, found), headers=headers)
                return answer.status_code

            large = [asyncio.create_task(ask(i, (1 << 16) + 1, reading)) for i in range(turns + 2)]
            for _ in range(100):
                await asyncio.sleep(0)
            few = [asyncio.create_task(ask(i, 1 << 16, small)) for i in range(10)]
            for _ in range(100):
                await asyncio.sleep(0)
            first, beside = sorted(reading), sorted(small)
            end.set()
            statuses = await asyncio.gather(*large, *few)
        return first, beside, sorted(reading), set(statuses)

    first, beside, all_read, statuses = asyncio.run(go())
    assert first == list(range(turns))
    assert beside == list(range(10)), "small ones do not wait"
    assert all_read == list(range(turns + 2)), "and the others have their turn"
    assert statuses <= {400, 422}


@pytest.mark.parametrize(("media_type", "most"), [(JSON, 8 << 20), (CSV, 128 << 20)])
def test_a_body_is_refused_by_the_length_that_it_announces(media_type, most):
    store = MemoryStore()
    Writer(store).commit()
    api = Api(store)

    def status(size):
        headers = {"Content-Type": media_type, "Content-Length": str(size)}
        return api.request("POST", PREDICT, content=b"", headers=headers).status_code

    assert status(most + 1) == 413
    assert status(most) in {200, 400}  # it was shorter than it said


@pytest.mark.parametrize(("pauses", "expected"), [([100], 10), ([9] * 10, 30), ([11], 10)])
def test_a_body_has_ten_seconds_for_its_next_part_and_thirty_in_all(pauses, expected):
    async def go():
        store = MemoryStore()
        Writer(store).commit()
        loop = asyncio.get_running_loop()

        async def body():
            for pause in pauses:
                yield b" "
                await asyncio.sleep(pause)

        transport = httpx.ASGITransport(Api(store).app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", trust_env=False) as client:
            answer = await client.post(PREDICT, content=body(), headers={"Content-Type": JSON})
        return answer.status_code, loop.time()

    assert run(go()) == (408, expected)


@pytest.mark.parametrize(
    ("sent", "status", "seconds"),
    [
        ([b""], b"", 30),  # nothing comes
        ([GET], b"HTTP/1.1 408 ", 10),
        ([b"G"] + [b"E"] * 100, b"HTTP/1.1 408 ", 10),  # a byte each second does not put it off
    ],
)
def test_a_request_has_ten_seconds_for_its_head_and_thirty_until_it_begins(sent, status, seconds):
    async def go():
        connection, transport = Server().connect()

        async def send():
            for part in sent:
                connection.data_received(part)
                await asyncio.sleep(1.0)

        sending = asyncio.create_task(send())
        at = await seconds_until_closed(transport)
        sending.cancel()
        connection.connection_lost(None)
        return transport.written[: len(status)], at

    written, at = run(go())
    assert written == status
    assert seconds <= at <= seconds + 0.5


def test_the_rest_of_a_body_after_the_response_has_ten_seconds_and_sixteen_megabytes():
    async def go(part, pause):
        server = Server()
        server.respond.set()
        connection, transport = server.connect()
        connection.data_received(GET + b"Content-Length: 1000000000\r\n\r\n")
        received, began = 0, asyncio.get_running_loop().time()
        while not transport.closed and not transport.paused and received < 100 << 20:
            await asyncio.sleep(pause)
            connection.data_received(part)
            received += len(part)
        connection.connection_lost(None)
        return received, asyncio.get_running_loop().time() - began

    part = bytes(1 << 20)
    assert (16 << 20) <= run(go(part, 0.01))[0] <= (18 << 20)
    assert 10 <= run(go(b"a", 0.5))[1] <= 11


def test_one_megabyte_of_pipelined_requests_is_buffered():
    async def go(size):
        connection, transport = Server().connect()
        connection.data_received(GET + b"\r\n")  # no response yet
        for _ in range(size >> 16):
            connection.data_received(bytes(1 << 16))
        connection.data_received(bytes(size & 0xFFFF))
        connection.connection_lost(None)
        return transport.paused, transport.aborted

    assert run(go(1 << 20)) == (True, False)
    assert run(go((1 << 20) + 1)) == (True, True)


def test_a_client_that_reads_less_than_64_kib_in_30_seconds_is_disconnected():
    async def go(read):
        connection, transport = Server().connect()
        transport.unread = 10 << 20
        connection.pause_writing()
        loop = asyncio.get_running_loop()
        while not transport.closed and loop.time() < 200:
            await asyncio.sleep(1.0)
            transport.unread -= read
        connection.connection_lost(None)
        return loop.time() if transport.aborted else None

    assert 30 <= run(go(2 << 10)) <= 31
    assert run(go(3 << 10)) is None


def test_the_slowest_reader_is_disconnected_beyond_256_mib():
    async def go(unread):
        server = Server()
        connections = [server.connect() for _ in range(2)]
        for connection, transport in connections:
            transport.unread = unread
            connection.pause_writing()
            await asyncio.sleep(1.0)
        for connection, _ in connections:
            connection.connection_lost(None)
        return [transport.aborted for _, transport in connections]

    assert run(go(128 << 20)) == [False, False]
    assert run(go((128 << 20) + 1)) == [True, False], "the one that has not read for longer"


def test_the_801st_connection_takes_the_place_of_the_one_that_is_idle_for_longest():
    async def go():
        server = Server()
        connections = []
        for _ in range(800):
            connections.append(server.connect())
            await asyncio.sleep(0.001)
        before = [transport.aborted for _, transport in connections]
        connections.append(server.connect())
        after = [transport.aborted for _, transport in connections]
        for connection, _ in connections:
            connection.connection_lost(None)
        return any(before), after.index(True), sum(after)

    assert run(go()) == (False, 0, 1)


def test_a_connection_whose_response_is_not_sent_yet_is_not_idle():
    async def go(unread):
        server = Server(ConnectionLimits(connections=2))
        server.respond.set()
        first, second = server.connect(), server.connect()
        for connection, transport in (first, second):
            connection.data_received(GET + b"\r\n")
            await asyncio.sleep(0.1)
            assert transport.written.startswith(b"HTTP/1.1 200")
        first[1].unread = unread
        third = server.connect()
        for connection, _ in (first, second, third):
            connection.connection_lost(None)
        return [transport.aborted for _, transport in (first, second, third)]

    assert run(go(0)) == [True, False, False], "it waits for the next request for longest"
    assert run(go(1)) == [False, True, False], "its client still reads"


def test_when_the_application_responds_on_all_800_connections_a_new_one_gets_503():
    async def go():
        server = Server()
        connections = [server.connect() for _ in range(800)]
        for connection, _ in connections:
            connection.data_received(GET + b"\r\n")
        await asyncio.sleep(0)
        _, transport = server.connect()
        for connection, _ in connections:
            connection.connection_lost(None)
        return transport.written[:13], any(t.aborted for _, t in connections)

    assert run(go()) == (b"HTTP/1.1 503 ", False)


def test_fifty_streams_per_client_and_two_hundred_in_all():
    async def go():
        store = MemoryStore()
        Writer(store).commit()
        with contextlib.closing(
            StoreReader(store, clock=lambda: NOW, freshness=0.1, timeout=10.0, cache_bytes=1 << 20)
        ) as reader:
            streams = Broadcaster(reader, 30.0)
            opened: list[int] = []

            async def status(client):
                try:
                    await streams.reserve("orders", client)
                except Problem as e:
                    return e.status
                return 200

            for client in "abcd":
                opened += [await status(client) for _ in range(51)]
            return opened, await status("e")

    opened, fifth = asyncio.run(go())
    assert opened == ([200] * 50 + [429]) * 4
    assert fifth == 503
