"""HTTP connections with limits on the size of requests, and on the time that clients take to send and to read.

uvicorn limits neither the size of headers nor the time that a client takes to send them or to read a response. So the
head of a request is buffered here until it is complete, and parsed then; a pipelined request is parsed after the
response to the one before. Clients that send or read too slowly are disconnected. Headers that the application does
not read are dropped, a body of known length is passed on unparsed, and the rest of a body after the response is
discarded, so that large requests are cheap.
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

from streamkm.http.responses import MEDIA_TYPE, problem_body, with_default_headers
from streamkm.redaction import redact

_UPGRADE = re.compile(rb"(?i)upgrade[ \t]*:")
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9._~-]*)(?::[0-9]{0,5})?")
MAX_HOST_BYTES = 300
"""Longest Host header, in bytes: a name, and a port."""
_HEAD_END = b"\r\n\r\n"
_BARE_LINE_FEED = re.compile(rb"(?<!\r)\n")
_PIECE_BYTES, _SMALL_PIECE_BYTES, _MANY_CHUNKS = 1 << 16, 1 << 14, 500
"""Bytes of a chunked body that are parsed before other connections have a turn: the second while the body has more than
this number of chunks in a piece, as a chunk may take only six bytes."""
_OWN_HEADERS = frozenset((b"host", b"content-length", b"transfer-encoding", b"expect"))
"""Headers that this module and uvicorn read."""

Phase = Literal["responding", "idle", "head", "drain", "closing"]
"""Phase of a connection. All but the first have a deadline: waiting for a request; receiving its head;
receiving the rest of a body after the response; receiving what a refused client still sends."""


@dataclass(frozen=True, kw_only=True)
class ConnectionLimits:
    """Limits of one connection, and of all together.

    Attributes
    ----------
    head_bytes
        Bytes of request line and headers, and of chunk sizes, extensions and trailers (else 431).
    headers
        Number of headers (else 431).
    target_bytes
        Bytes of path and query (else 414).
    pipelined_bytes
        Bytes of further requests received before the response; beyond it the connection is aborted.
    head_seconds
        From the first byte of a request to the end of its headers (else 408).
    idle_seconds
        Between two requests.
    drain_seconds, drain_bytes
        For the rest of a body after the response, and for a refused client to stop sending; further bytes are not read.
    unread_seconds, unread_bytes
        A client that reads fewer than this many bytes in this time, while more are waiting, is disconnected.
    unread_total
        Bytes that wait to be read on all connections; beyond it the slowest readers are disconnected.
    connections
        Open connections; beyond it the longest idle one is closed, if none is idle the one that is nearest to the end
        of its time to send, and if the application is responding on all a new one gets 503.
    """

    head_bytes: int = 64 << 10
    headers: int = 100
    target_bytes: int = 8 << 10
    pipelined_bytes: int = 1 << 20
    head_seconds: float = 10.0
    idle_seconds: float = 30.0
    drain_seconds: float = 10.0
    drain_bytes: int = 16 << 20
    unread_seconds: float = 30.0
    unread_bytes: int = 64 << 10
    unread_total: int = 256 << 20
    connections: int = 800


DEFAULTS = ConnectionLimits()


class Refusal(NamedTuple):
    """A response that is sent without the application.

    Attributes
    ----------
    status, code
        HTTP status, and error code.
    message, where, hint
        What was wrong, its location, and how to correct it.
    """

    status: int
    code: Literal["invalid", "too-large", "too-many", "too-slow"]
    message: str
    where: str = ""
    hint: str = ""

    def body(self) -> bytes:
        """The JSON of the error response."""
        return orjson.dumps(
            problem_body(self.status, self.code, redact(self.message), where=self.where, hint=self.hint)
        )


def bounded_protocol(
    header_names: Collection[bytes],
    limits: ConnectionLimits = DEFAULTS,
    on_refused: Callable[[int], None] = lambda _: None,
) -> type[asyncio.Protocol]:
    """A protocol class for `uvicorn.Config`, with limits.

    Parameters
    ----------
    header_names
        Lower-case names of the headers that the application reads; others are dropped.
    limits
        Limits of the connections.
    on_refused
        Called with the status of each request that is refused before the application sees it.
    """
    attributes = {
        "header_names": _OWN_HEADERS.union(header_names),
        "limits": limits,
        "on_refused": staticmethod(on_refused),
    }
    return type("BoundedConnection", (Connection,), attributes)


class Connection(HttpToolsProtocol):
    """One connection.

    Attributes
    ----------
    header_names, limits, on_refused
        As in `bounded_protocol`; the names with those that the connection itself reads.
    """

    header_names: frozenset[bytes]
    limits: ConnectionLimits
    on_refused: Callable[[int], None]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._content: list[bytes] = []  # content of a chunked body that is parsed, but not yet passed on
        # Called for each chunk. A parser looks it up when it is made.
        self.on_body = self._content.append  # type: ignore[assignment, method-assign]
        super().__init__(*args, **kwargs)
        self._head = bytearray()
        self._pipelined = bytearray()
        self._in_body = self._complete = False
        self._body_left: int | None = None  # bytes of the body to come; None if it is chunked
        self._piece_bytes = _SMALL_PIECE_BYTES
        self._framing = 0  # bytes of a chunked body since its last content: sizes, extensions, trailers
        self._discarding = False  # further bytes of this client are ignored
        self._discarded_bytes = 0
        self._problem: Refusal | None = None
        self._phase: Phase = "responding"
        self._deadline = 0.0
        self._unread: int | None = None  # bytes in the write buffer at the last check
        self._unread_since = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    # Callbacks of asyncio

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._set_phase("idle", self.limits.idle_seconds)
        if len(self.connections) > self.limits.connections:
            others = [c for c in self.connections if c is not self and isinstance(c, Connection) and not c.responding]
            if others:
                min(others, key=lambda c: (not c.idle, c._deadline)).transport.abort()  # noqa: SLF001 - of this class
            else:
                self._refuse(Refusal(503, "too-many", "too many connections are open", hint="Retry in a moment"))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._pipelined.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._discarding:
            self._discarded_bytes += len(data)
            if self._discarded_bytes > self.limits.drain_bytes:
                self.flow.pause_reading()
        elif self._pipelined:
            self._buffer(data)
        else:
            self._consume(data)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._unread is None:
            self._unread, self._unread_since = self.transport.get_write_buffer_size(), self.loop.time()
            self._schedule_check(self._unread_since + self.limits.unread_seconds)
        self._disconnect_slowest()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unread = None
        if self._phase == "idle":
            self._set_phase("idle", self.limits.idle_seconds)  # until now it was reading the response

    # Callbacks of the parser

    def on_message_begin(self) -> None:
        if self._complete:  # the bytes that ended a chunked body had the beginning of another request
            self._discarding = True
        if not self._discarding:
            super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        if not self._discarding:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        # Trailers of a chunked body are ignored: the request was checked by its headers.
        if not self._discarding and not self._in_body and name.lower() in self.header_names:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._discarding:
            return
        self._problem = self._check_head()
        if self._problem is not None:
            return
        self._in_body, self._framing, self._piece_bytes = True, 0, _SMALL_PIECE_BYTES
        self._body_left = next((int(value) for name, value in self.headers if name == b"content-length"), None)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        if self._discarding or self._problem is not None:
            return  # it is refused
        self._complete = True
        self._pass_on_content()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Called when the response is complete: continue with pipelined requests."""
        self.server_state.total_requests += 1
        if self._in_body:
            self._set_phase("drain", self.limits.drain_seconds)
        else:
            self._set_phase("idle", self.limits.idle_seconds)
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self._in_body and (self._body_left is None or self._body_left > self.limits.drain_bytes):
            self._half_close(self.limits.drain_seconds)  # the next request is not searched for
            return
        if self._pipelined and not self._in_body:
            # Not from here: the caller is still sending the response.
            self.loop.call_soon(self._consume_pipelined)

    def send_400_response(self, msg: str) -> None:
        self._refuse(_bad(msg))

    # Requests

    @property
    def responding(self) -> bool:
        """Whether the application is responding to a request."""
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def idle(self) -> bool:
        """Whether nothing of a request has been received, and the response before it is sent."""
        return self._phase == "idle" and not self.transport.get_write_buffer_size()

    @property
    def _in_chunked_body(self) -> bool:
        return self._in_body and self._body_left is None

    def _consume_pipelined(self) -> None:
        if self._discarding or self.transport.is_closing():
            return
        size = self._piece_bytes if self._in_chunked_body else len(self._pipelined)
        with memoryview(self._pipelined) as pipelined:
            data = bytes(pipelined[:size])
        del self._pipelined[:size]
        if not self._pipelined and not (self._in_body and len(self.cycle.body) > HIGH_WATER_LIMIT):
            self.flow.resume_reading()  # data received meanwhile was buffered too, and paused the reading again
        self._consume(data)
        if self._pipelined and self._in_chunked_body:
            self.loop.call_soon(self._consume_pipelined)

    def _buffer(self, data: bytes) -> None:
        self._pipelined += data
        # Of a body no more is read until the application asks for it, and it asks when this is parsed.
        if len(self._pipelined) > self.limits.pipelined_bytes and not self._in_chunked_body:
            self.transport.abort()
            return
        self.flow.pause_reading()

    def _consume(self, data: bytes) -> None:
        while data and not self._discarding and not self.transport.is_closing():
            if self._in_chunked_body and len(data) > self._piece_bytes:
                self._buffer(data)
                self.loop.call_soon(self._consume_pipelined)
                return
            if self._in_body:
                data = self._consume_body(data)
            elif self.responding:
                self._buffer(data)
                return
            else:
                data = self._consume_head(data)

    def _consume_head(self, data: bytes) -> bytes:
        """Buffer a head, and parse it when it is complete. Returns the data after it."""
        if not self._head:
            data = data.lstrip(b"\r\n")  # empty lines between requests are allowed
            if not data:
                return b""
        searched = max(0, len(self._head) - len(_HEAD_END) + 1)
        self._head += data
        end = self._head.find(_HEAD_END, searched)
        size = end + len(_HEAD_END) if end >= 0 else len(self._head)
        if size > self.limits.head_bytes:
            self._refuse(
                Refusal(431, "too-large", f"more than {self.limits.head_bytes} bytes", where="headers", hint=_FEWER)
            )
            return b""
        if end < 0:
            if not self._head[:1].isalpha() or _BARE_LINE_FEED.search(self._head, searched):
                self._refuse(_bad("not an HTTP/1.1 request"))
            elif self._phase != "head":
                self._set_phase("head", self.limits.head_seconds)
            return b""
        lines, rest = self._head[:size].split(b"\r\n"), bytes(self._head[size:])
        self._head.clear()
        self._phase, self._complete = "responding", False
        if len(lines) - 3 > self.limits.headers:  # without the request line, the empty line, and what follows it
            message = f"more than {self.limits.headers} headers"
            self._refuse(Refusal(431, "too-large", message, where="headers", hint=_FEWER))
            return b""
        # No other protocol is available, and a request to upgrade may be answered as if it were none.
        self._parse(b"\r\n".join([lines[0], *(line for line in lines[1:] if not _UPGRADE.match(line))]))
        return rest

    def _consume_body(self, data: bytes) -> bytes:
        if self._body_left is None:
            self._consume_chunks(data)
            return b""
        piece, rest = data[: self._body_left], data[self._body_left :]
        self._body_left -= len(piece)
        self._pass_on(piece)
        if not self._body_left:
            self._complete = True
            super().on_message_complete()
            self.parser = httptools.HttpRequestParser(self)  # the one of this request has not seen its body
            self._end_body()
        return rest

    def _consume_chunks(self, data: bytes) -> None:
        parts = len(self._content)
        self._parse(data)
        parts = len(self._content) - parts
        self._framing = 0 if parts > 0 else self._framing + len(data)
        self._piece_bytes = _SMALL_PIECE_BYTES if parts > _MANY_CHUNKS else _PIECE_BYTES
        if self._discarding or not self._in_body:
            self._content.clear()  # of another request in the same data
        elif self._framing > self.limits.head_bytes:
            # The parser buffers a trailer until it is complete, and copies it each time.
            message = f"more than {self.limits.head_bytes} bytes of chunk extensions or trailers"
            self._refuse(Refusal(431, "too-large", message, where="body", hint="Send shorter ones"))
        elif not self._pipelined:  # else more of the body follows at once: waking the application takes longer
            self._pass_on_content()

    def _pass_on_content(self) -> None:
        if self._content:
            content = b"".join(self._content)
            self._content.clear()
            self._pass_on(content)

    def _pass_on(self, content: bytes) -> None:
        """Pass a part of the body on to the application; as `on_body` of uvicorn, with fewer copies."""
        if not self.responding:
            return
        body = self.cycle.body
        if not body:
            # uvicorn makes bytes of it, which takes no copy if it is bytes.
            self.cycle.body = content  # type: ignore[assignment]
        else:
            if isinstance(body, bytes):
                body = self.cycle.body = bytearray(body)
            body += content
        if len(self.cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        self.cycle.message_event.set()

    def _end_body(self) -> None:
        """Prepare for the next request."""
        self._in_body = False
        if not self.responding:
            self._set_phase("idle", self.limits.idle_seconds)

    def _parse(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._problem = self._problem or _bad("another protocol is requested", hint="Send HTTP/1.1 requests")
        except httptools.HttpParserError as e:
            self._problem = _bad(f"not an HTTP/1.1 request ({e})")
        if self._problem is not None and not self._discarding:
            self._refuse(self._problem)
            return
        if not self._complete:
            return
        if not self._discarding:
            self._end_body()
        elif self.responding:
            self._in_body = False
            self.cycle.keep_alive = False
        else:
            self._in_body = False
            self.transport.close()

    def _check_head(self) -> Refusal | None:
        """The error of a head whose parts are all well-formed; None if it is valid."""
        version = self.parser.get_http_version()
        if version not in ("1.0", "1.1"):
            return _bad("another protocol is requested", hint="Send HTTP/1.1 requests")
        codings = [value for name, value in self.headers if name == b"transfer-encoding"]
        if codings and version == "1.0":
            return _bad("not in HTTP/1.0", "Transfer-Encoding", "Send Content-Length, or an HTTP/1.1 request")
        if any(coding.strip().lower() != b"chunked" for coding in codings):
            return _bad("not chunked alone", "Transfer-Encoding", "Send chunked, or Content-Length")
        return self._check_host(version) or self._check_target()

    def _check_host(self, version: str) -> Refusal | None:
        hosts = [value for name, value in self.headers if name == b"host"]
        if len(hosts) > 1 or (not hosts and version == "1.1"):
            return _bad(f"{len(hosts)} headers", "Host", "Send one")
        if hosts and (len(hosts[0]) > MAX_HOST_BYTES or not _HOST.fullmatch(hosts[0])):
            return _bad("not a name or address, with or without a port", "Host", "Send the one of the address")
        return None

    def _check_target(self) -> Refusal | None:
        if len(self.url) > self.limits.target_bytes:
            message = f"more than {self.limits.target_bytes} bytes"
            return Refusal(414, "too-large", message, where="URL", hint="Send long content in the body")
        if (not self.url.startswith(b"/") and self.url != b"*") or b"#" in self.url:
            return _bad("not a path", "URL", "Request /PATH: this is not a proxy")
        return None

    def _refuse(self, problem: Refusal) -> None:
        """Respond without the application, and ignore further data."""
        if self.responding:
            if self.cycle.response_started:
                self._discarding = True
                self.transport.abort()  # a part of the response is sent already
                return
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        body = problem.body()
        length = str(len(body)).encode()
        headers = with_default_headers(
            [(b"content-length", length), (b"content-type", MEDIA_TYPE.encode()), (b"connection", b"close")]
        )
        lines = b"".join(b"%b: %b\r\n" % header for header in headers)
        self.transport.write(STATUS_LINE[problem.status] + lines + b"\r\n" + body)
        self.on_refused(problem.status)
        self._half_close(min(self.limits.drain_seconds, 2.0))

    def _half_close(self, seconds: float) -> None:
        """Send nothing more, and ignore further data until a deadline.

        Closing while the client still sends would discard the response.
        """
        self._discarding = True
        self._head.clear()
        self._pipelined.clear()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._set_phase("closing", seconds)

    # Deadlines

    def _set_phase(self, phase: Phase, seconds: float) -> None:
        self._phase, self._deadline = phase, self.loop.time() + seconds
        self._schedule_check(self._deadline)

    def _schedule_check(self, time: float) -> None:
        """Run `_check` at that time or before."""
        if self._timer is None or self._timer_at > time:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = time
            self._timer = self.loop.call_at(time, self._check)

    def _check(self) -> None:
        self._timer = None
        now = self.loop.time()
        if self._unread is not None and now >= self._unread_since + self.limits.unread_seconds:
            size = self.transport.get_write_buffer_size()
            if size > self._unread - self.limits.unread_bytes:
                self.transport.abort()
                return
            self._unread, self._unread_since = size, now
        if self._phase != "responding" and now >= self._deadline and self._unread is None:
            self._expire()
        if self._unread is not None:
            self._schedule_check(self._unread_since + self.limits.unread_seconds)
        elif self._phase != "responding":
            self._schedule_check(max(self._deadline, now))

    def _expire(self) -> None:
        phase, self._phase = self._phase, "responding"
        if phase == "head":
            message = f"did not arrive within {self.limits.head_seconds:g} s"
            self._refuse(Refusal(408, "too-slow", message, where="headers"))
        elif self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

    def _disconnect_slowest(self) -> None:
        """Disconnect the slowest readers while more than `unread_total` bytes wait to be read."""
        slow = [c for c in self.connections if isinstance(c, Connection) and c._unread is not None]  # noqa: SLF001
        sizes = {c: c.transport.get_write_buffer_size() for c in slow}
        waiting = sum(sizes.values())
        for c in sorted(slow, key=lambda c: c._unread_since):  # noqa: SLF001
            if waiting <= self.limits.unread_total or c is self:
                return
            waiting -= sizes[c]
            c.transport.abort()


_FEWER = "Send fewer or shorter ones"


def _bad(message: str, where: str = "", hint: str = "") -> Refusal:
    return Refusal(400, "invalid", message, where=where, hint=hint)
