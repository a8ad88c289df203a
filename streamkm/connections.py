"""Connections over HTTP: what a client may send before anybody looks at it, and how long it may take.

uvicorn's parser has no bound on the bytes of headers, and its server none on the time that they or a reader may take.
So the head of a request is kept here until it is whole, and only then parsed; the next request of a connection is not
looked at before this one is answered. Whoever sends or reads too slowly is let go. Headers that nobody reads are passed
over, and so is what is left of a body once it has been answered: what is large must not be dear.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import httptools
import orjson
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from streamkm.answers import MEDIA_TYPE, completed, problem_body
from streamkm.redaction import redact

_UPGRADE = re.compile(rb"(?i)upgrade[ \t]*:")
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9._~-]*)(?::[0-9]{0,5})?")
_HOST_BYTES = 300
"""Of the longest name there can be, with a port."""
_END = b"\r\n\r\n"
_PIECE = 1 << 14
"""Bytes of a chunked body that are parsed before others have their turn: there may be a chunk in each six of them."""
_OWN = frozenset((b"host", b"content-length", b"transfer-encoding", b"expect"))
"""Headers that are read here."""

Wait = Literal["nothing", "request", "head", "rest", "end"]
"""What a connection waits for: the app, the first byte of a request, the end of its head, the end of a body that nobody
reads any more, the end of what a refused client still sends."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What one client, and all of them together, may take.

    Attributes
    ----------
    head_bytes
        Bytes of a request line and headers, and of what stands between or behind the chunks of a body (431).
    headers
        Number of headers (431).
    target_bytes
        Bytes of an address with its query (414).
    held_bytes
        Bytes of further requests that come before this one is answered; then the connection is cut.
    head_seconds
        From the first byte of a request to the end of its headers (408).
    idle_seconds
        Between two requests.
    rest_seconds, rest_bytes
        For what is left of a body once it has been answered, and for a refused client to stop sending; more bytes are
        not read.
    unread_seconds, unread_bytes
        Who reads fewer bytes in so many seconds, while more wait to be read, is let go.
    unread_total
        Bytes that wait to be read on all connections; beyond it who has read least for longest is let go.
    connections
        Open ones; beyond it the one that waits longest for a request goes, and if all are at work a new one gets 503.
    """

    head_bytes: int = 64 << 10
    headers: int = 100
    target_bytes: int = 8 << 10
    held_bytes: int = 1 << 20
    head_seconds: float = 10.0
    idle_seconds: float = 30.0
    rest_seconds: float = 10.0
    rest_bytes: int = 16 << 20
    unread_seconds: float = 30.0
    unread_bytes: int = 64 << 10
    unread_total: int = 256 << 20
    connections: int = 800


DEFAULTS = Bounds()


class Refusal(NamedTuple):
    """An answer that is given without the application.

    Attributes
    ----------
    status, code
        HTTP status, and the word for machines.
    message, where, hint
        What was wrong, the place, and what to do.
    """

    status: int
    code: Literal["invalid", "too-large", "too-many", "too-slow"]
    message: str
    where: str = ""
    hint: str = ""

    def body(self) -> bytes:
        """What is sent: an object as every error answer is one."""
        return orjson.dumps(
            problem_body(self.status, self.code, redact(self.message), where=self.where, hint=self.hint)
        )


def protocol(
    read: Collection[bytes], bounds: Bounds = DEFAULTS, refused: Callable[[int], None] = lambda _: None
) -> type[asyncio.Protocol]:
    """A class of connections for `uvicorn.Config`.

    Parameters
    ----------
    read
        Names, in lower case, of the headers that the application reads; it gets no others.
    bounds
        What they hold clients to.
    refused
        Told the status of each request that is refused before the application sees it.
    """
    parts = {"read": _OWN.union(read), "bounds": bounds, "refused": staticmethod(refused)}
    return type("BoundedConnection", (Connection,), parts)


class Connection(HttpToolsProtocol):
    """One client."""

    read: frozenset[bytes]
    bounds: Bounds
    refused: Callable[[int], None]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head = bytearray()
        self._held = bytearray()
        self._in_body = self._whole = False
        self._left: int | None = None  # bytes of the body to come; None: it is chunked
        self._content: list[bytes] = []  # of the body, in what is being parsed
        self._framing = 0  # bytes of a chunked body since the last that was content: sizes, extensions, trailers
        self._deaf = False  # nothing more is taken from this client
        self._passed_over = 0  # bytes that came since
        self._problem: Refusal | None = None
        self._wait: Wait = "nothing"
        self._deadline = 0.0
        self._unread: int | None = None  # bytes to be read at the last look
        self._unread_since = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    # Of asyncio

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for(*self._idle())
        if len(self.connections) > self.bounds.connections:
            waiting = [c for c in self.connections if c is not self and isinstance(c, Connection) and not c.at_work]
            if waiting:
                min(waiting, key=lambda c: c._deadline).transport.abort()  # noqa: SLF001 - one of us
            else:
                self._refuse(Refusal(503, "too-many", "too many connections are open", hint="Ask again in a moment"))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._held.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            self._passed_over += len(data)
            if self._passed_over > self.bounds.rest_bytes:
                self.flow.pause_reading()
        elif self._held:
            self._hold(data)
        else:
            self._take(data)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._unread is None:
            self._unread, self._unread_since = self.transport.get_write_buffer_size(), self.loop.time()
            self._look_at(self._unread_since + self.bounds.unread_seconds)
        self._let_slowest_go()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unread = None
        if self._wait == "request":
            self._wait_for(*self._idle())  # until now it was reading

    # Of the parser

    def on_message_begin(self) -> None:
        if self._whole:  # the piece that ended a chunked body held the beginning of another request
            self._deaf = True
        if not self._deaf:
            super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        if not self._deaf:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        # What stands behind a chunked body is no header: the request was judged by those before it.
        if not self._deaf and not self._in_body and name.lower() in self.read:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._deaf:
            return
        self._problem = self._wrong()
        if self._problem is not None:
            return
        self._in_body, self._framing = True, 0
        self._left = next((int(value) for name, value in self.headers if name == b"content-length"), None)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._framing = 0
        self._content.append(body)

    def on_message_complete(self) -> None:
        if self._deaf or self._problem is not None:
            return  # it is being refused
        self._whole = True
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """The application has answered; what came meanwhile is looked at now."""
        self.server_state.total_requests += 1
        self._wait_for(*(("rest", self.bounds.rest_seconds) if self._in_body else self._idle()))
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self._in_body and (self._left is None or self._left > self.bounds.rest_bytes):
            self._end(self.bounds.rest_seconds)  # where the next request would begin is not looked for
            return
        if self._held and not self._in_body:
            # Not here: the answer is still being sent by whoever called.
            self.loop.call_soon(self._take_held)

    def send_400_response(self, msg: str) -> None:
        self._refuse(_bad(msg))

    # Of this class

    @property
    def at_work(self) -> bool:
        """Whether a request is being answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def _idle(self) -> tuple[Wait, float]:
        return "request", self.bounds.idle_seconds

    @property
    def _in_chunks(self) -> bool:
        return self._in_body and self._left is None

    def _take_held(self) -> None:
        if self._deaf or self.transport.is_closing():
            return
        size = _PIECE if self._in_chunks else len(self._held)
        data = bytes(self._held[:size])
        del self._held[:size]
        if not self._held and not (self._in_body and len(self.cycle.body) > HIGH_WATER_LIMIT):
            self.flow.resume_reading()  # what came meanwhile was held, too, and stopped the reading again
        self._take(data)
        if self._held and self._in_chunks:
            self.loop.call_soon(self._take_held)

    def _hold(self, data: bytes) -> None:
        self._held += data
        if len(self._held) > self.bounds.held_bytes:
            self.transport.abort()
            return
        self.flow.pause_reading()

    def _take(self, data: bytes) -> None:
        while data and not self._deaf and not self.transport.is_closing():
            if self._in_chunks and len(data) > _PIECE:
                self._hold(data)
                self.loop.call_soon(self._take_held)
                return
            if self._in_body:
                data = self._take_body(data)
            elif self.at_work:
                self._hold(data)
                return
            else:
                data = self._take_head(data)

    def _take_head(self, data: bytes) -> bytes:
        """Keep a piece of a head; parse it when it is whole. Returns what is behind it."""
        if not self._head:
            data = data.lstrip(b"\r\n")  # between two requests there may be empty lines
            if not data:
                return b""
        at = max(0, len(self._head) - len(_END) + 1)
        self._head += data
        end = self._head.find(_END, at)
        size = end + len(_END) if end >= 0 else len(self._head)
        if size > self.bounds.head_bytes:
            self._refuse(
                Refusal(431, "too-large", f"more than {self.bounds.head_bytes} bytes", where="headers", hint=_FEWER)
            )
            return b""
        if end < 0:
            line = self._head.find(b"\n")
            if not self._head[:1].isalpha() or (line >= 0 and self._head[line - 1 : line] != b"\r"):
                self._refuse(_bad("not a request of HTTP/1.1"))
            elif self._wait != "head":
                self._wait_for("head", self.bounds.head_seconds)
            return b""
        lines, rest = self._head[:size].split(b"\r\n"), bytes(self._head[size:])
        self._head.clear()
        self._wait, self._whole = "nothing", False
        if len(lines) - 3 > self.bounds.headers:  # without the first line, the empty one, and what is behind it
            told = f"more than {self.bounds.headers} headers"
            self._refuse(Refusal(431, "too-large", told, where="headers", hint=_FEWER))
            return b""
        # There is no other protocol to change to, and one that asks for it may be answered as if it did not.
        self._parse(b"\r\n".join([lines[0], *(line for line in lines[1:] if not _UPGRADE.match(line))]))
        return rest

    def _take_body(self, data: bytes) -> bytes:
        if self._left is None:
            self._framing += len(data)
            self._parse(data)
            rest = b""
        else:
            piece, rest = data[: self._left], data[self._left :]
            self._left -= len(piece)
            if self.at_work:
                self._parse(piece)
            elif not self._left:
                self._pass_over_body()
        if self._in_body and self._framing > self.bounds.head_bytes and not self._deaf:
            # The parser keeps a trailer until it is whole, and copies it with each piece.
            told = f"more than {self.bounds.head_bytes} bytes around the chunks"
            self._refuse(Refusal(431, "too-large", told, where="body", hint="Send no long extensions or trailers"))
        return rest

    def _pass_over_body(self) -> None:
        """A body has ended of which nobody parsed the rest: it was answered before."""
        self.parser = httptools.HttpRequestParser(self)
        self._in_body, self._whole = False, True
        self._wait_for(*self._idle())

    def _parse(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._problem = self._problem or _bad("another protocol is asked for", hint="Send requests of HTTP/1.1")
        except httptools.HttpParserError as e:
            self._problem = _bad(f"not a request of HTTP/1.1 ({e})")
        if self._problem is not None:
            self._refuse(self._problem)
            return
        if self._content:
            content, self._content = b"".join(self._content), []
            if not self._deaf:
                super().on_body(content)
        if self._whole:
            self._in_body = False
            if self._deaf and self.at_work:
                self.cycle.keep_alive = False
            elif self._deaf:
                self.transport.close()
            elif not self.at_work:
                self._wait_for(*self._idle())

    def _wrong(self) -> Refusal | None:
        """What is wrong with a head whose parts are all well-formed."""
        version = self.parser.get_http_version()
        if version not in ("1.0", "1.1"):
            return _bad("another protocol is asked for", hint="Send requests of HTTP/1.1")
        if version == "1.0" and any(name == b"transfer-encoding" for name, _ in self.headers):
            return _bad("HTTP/1.0 has none", "Transfer-Encoding", "Send Content-Length, or a request of HTTP/1.1")
        return self._wrong_host(version) or self._wrong_target()

    def _wrong_host(self, version: str) -> Refusal | None:
        hosts = [value for name, value in self.headers if name == b"host"]
        if len(hosts) > 1 or (not hosts and version == "1.1"):
            return _bad(f"{len(hosts)} of them", "Host", "Send one")
        if hosts and (len(hosts[0]) > _HOST_BYTES or not _HOST.fullmatch(hosts[0])):
            return _bad("not a name or address, with or without a port", "Host", "Send the one of the address")
        return None

    def _wrong_target(self) -> Refusal | None:
        if len(self.url) > self.bounds.target_bytes:
            told = f"more than {self.bounds.target_bytes} bytes"
            return Refusal(414, "too-large", told, where="address", hint="What is long goes into the body")
        if (not self.url.startswith(b"/") and self.url != b"*") or b"#" in self.url:
            return _bad("not a path", "address", "Ask for /PATH: this is no proxy")
        return None

    def _refuse(self, problem: Refusal) -> None:
        """Answer without the application, and take nothing more."""
        if self.at_work:
            if self.cycle.response_started:
                self._deaf = True
                self.transport.abort()  # half of an answer is on its way
                return
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        body = problem.body()
        length = str(len(body)).encode()
        headers = completed(
            [(b"content-length", length), (b"content-type", MEDIA_TYPE.encode()), (b"connection", b"close")]
        )
        lines = b"".join(b"%b: %b\r\n" % header for header in headers)
        self.transport.write(STATUS_LINE[problem.status] + lines + b"\r\n" + body)
        self.refused(problem.status)
        self._end(min(self.bounds.rest_seconds, 2.0))

    def _end(self, seconds: float) -> None:
        """Send nothing more, and take nothing more.

        To close while the client still sends would take the answer away from it.
        """
        self._deaf = True
        self._head.clear()
        self._held.clear()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._wait_for("end", seconds)

    # Time

    def _wait_for(self, what: Wait, seconds: float) -> None:
        self._wait, self._deadline = what, self.loop.time() + seconds
        self._look_at(self._deadline)

    def _look_at(self, time: float) -> None:
        """See to it that somebody looks at that time, or before."""
        if self._timer is None or self._timer_at > time:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = time
            self._timer = self.loop.call_at(time, self._look)

    def _look(self) -> None:
        self._timer = None
        now = self.loop.time()
        if self._unread is not None and now >= self._unread_since + self.bounds.unread_seconds:
            size = self.transport.get_write_buffer_size()
            if size > self._unread - self.bounds.unread_bytes:
                self.transport.abort()
                return
            self._unread, self._unread_since = size, now
        if self._wait != "nothing" and now >= self._deadline and self._unread is None:
            self._late()
        if self._unread is not None:
            self._look_at(self._unread_since + self.bounds.unread_seconds)
        elif self._wait != "nothing":
            self._look_at(max(self._deadline, now))

    def _late(self) -> None:
        waited, self._wait = self._wait, "nothing"
        if waited == "head":
            told = f"did not arrive within {self.bounds.head_seconds:g} s"
            self._refuse(Refusal(408, "too-slow", told, where="headers"))
        elif self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

    def _let_slowest_go(self) -> None:
        """While more waits to be read than memory is for, let those go who have read least for longest."""
        slow = [c for c in self.connections if isinstance(c, Connection) and c._unread is not None]  # noqa: SLF001
        sizes = {c: c.transport.get_write_buffer_size() for c in slow}
        waiting = sum(sizes.values())
        for c in sorted(slow, key=lambda c: c._unread_since):  # noqa: SLF001
            if waiting <= self.bounds.unread_total or c is self:
                return
            waiting -= sizes[c]
            c.transport.abort()


_FEWER = "Send fewer or shorter ones"


def _bad(message: str, where: str = "", hint: str = "") -> Refusal:
    return Refusal(400, "invalid", message, where=where, hint=hint)
