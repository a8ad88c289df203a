"""Checks the connection to a broker and reports why it fails: wrong password, certificate, missing TLS, ...

kafka-python retries each broker until its timeout, and then reports the timeout; the broker's response is only in its
log. Before a client is created, this module therefore opens one connection as the client would, and raises a specific
error at once if the broker refuses it.
"""

from __future__ import annotations

import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Self

from kafka.errors import for_code  # type: ignore[import-untyped]
from kafka.net.sasl import get_sasl_mechanism  # type: ignore[import-untyped]

from streamkm.errors import BrokerRefusedError, BrokerUnreachableError, SettingsError

_DEFAULT_PORT = 9092
_POLL_SECONDS = 0.2
"""Time between two calls of `should_stop` during a wait, s."""
_METADATA, _HANDSHAKE, _API_VERSIONS, _AUTHENTICATE = 3, 17, 18, 36
"""API keys of requests."""
_MAX_RESPONSE_BYTES = 1 << 20
_TLS_ALERT = b"\x15\x03"
PASSWORD_MECHANISMS = frozenset({"PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"})
"""SASL mechanisms that need a name and a password, and nothing else."""
_CHECK_PROTOCOL = "Give security.protocol as the broker's listener has it (PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL)"


class _ClosedError(OSError):
    """The broker closed the connection instead of responding."""


def parse_servers(servers: list[str]) -> Iterator[tuple[str, str, int]]:
    """Split bootstrap servers into name, host and port.

    Raises
    ------
    SettingsError
        A port is not a number.
    """
    for server in servers:
        host, _, port = server.rpartition(":") if not server.endswith("]") else (server, "", "")
        try:
            yield server, (host or server).strip("[]"), int(port or _DEFAULT_PORT)
        except ValueError:
            raise SettingsError(f"{port!r} is not a port", where=f"bootstrap {server}", hint="Give host:port") from None


def check_connection(settings: Mapping[str, Any], should_stop: Callable[[], bool] = lambda: False) -> None:
    """Check that one of the bootstrap servers accepts a client, before one is created.

    Parameters
    ----------
    settings
        Settings of a kafka-python client.
    should_stop
        Called during waits; True ends them.

    Raises
    ------
    BrokerRefusedError
        A broker refuses the connection; the message has the reason.
    BrokerUnreachableError
        `should_stop` returned True.
    OSError
        No broker is reachable; the error of the last attempt.
    """
    if settings.get("proxy_url") or settings.get("socks5_proxy"):
        return
    last_error: OSError | None = None
    refused: BrokerRefusedError | None = None
    for server, host, port in parse_servers(settings["bootstrap_servers"]):
        try:
            with _Connection(server, host, port, settings, should_stop) as line:
                line.handshake()
                return
        except BrokerRefusedError as error:
            refused = error
        except OSError as error:
            last_error = error
    raise refused or last_error or OSError("no address was given")


def check_reachable(servers: list[str], timeout: float) -> None:
    """Check that one of the servers accepts TCP connections.

    Raises
    ------
    OSError
        None does; the error of the last attempt.
    """
    last_error: OSError | None = None
    for _, host, port in parse_servers(servers):
        try:
            socket.create_connection((host, port), timeout).close()
        except OSError as error:
            last_error = error
        else:
            return
    raise last_error or OSError("no address was given")


class _Connection:
    """A connection to a broker with one request in flight at a time."""

    def __init__(
        self, server: str, host: str, port: int, settings: Mapping[str, Any], should_stop: Callable[[], bool]
    ) -> None:
        self._server, self._host, self._port = server, host, port
        self._settings, self._should_stop = settings, should_stop
        self._protocol = str(settings.get("security_protocol") or "PLAINTEXT").upper()
        self._deadline = time.monotonic() + settings["request_timeout_ms"] / 1000
        self._sock: socket.socket | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._sock is not None:
            self._sock.close()

    def handshake(self) -> None:
        """Connect, start TLS, authenticate and send a first request, as far as the settings require."""
        self._connect()
        if self._protocol.endswith("SSL"):
            self._start_tls()
        try:
            versions = self._api_versions()
            if self._protocol.startswith("SASL"):
                self._authenticate()
            elif versions.get(_METADATA, 0) >= 4:
                # A listener that requires authentication answers ApiVersions, and disconnects at any other request.
                self._request(_METADATA, 4, bytes(5))  # no topics, and none is created
        except _ClosedError:
            raise self._refusal("it closes the connection after a request", self._protocol_hint()) from None
        except ssl.SSLError as error:
            reason = error.reason or str(error)
            hint = "Does it require a client certificate? Give ssl.certificate.location and ssl.key.location"
            raise self._refusal(f"it ends the encrypted connection ({reason})", hint) from error

    def _protocol_hint(self) -> str:
        if self._protocol == "PLAINTEXT":
            return f"It may require encryption (SSL) or a login (SASL). {_CHECK_PROTOCOL}"
        return _CHECK_PROTOCOL

    def _refusal(self, why: str, hint: str) -> BrokerRefusedError:
        return BrokerRefusedError(
            f"the broker refuses the {self._protocol} connection: {why}", where=self._server, hint=hint
        )

    def _until_deadline(self, step: Callable[[], Any]) -> Any:
        """Repeat a step that may time out until it succeeds, the deadline is reached, or `should_stop` returns True."""
        while True:
            if self._should_stop():
                raise BrokerUnreachableError("stopped while waiting for the broker", where=self._server)
            try:
                return step()
            except (TimeoutError, ssl.SSLWantReadError):
                if time.monotonic() > self._deadline:
                    raise TimeoutError(f"{self._server} does not answer") from None

    def _connect(self) -> None:
        found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        last_error: OSError | None = None
        for family, kind, protocol, _, address in found:
            sock = socket.socket(family, kind, protocol)
            sock.settimeout(_POLL_SECONDS)
            try:
                try:
                    sock.connect(address)
                except TimeoutError:  # connecting continues in the background; sending succeeds once it is done
                    self._until_deadline(partial(sock.send, b""))
                self._sock = sock
            except OSError as error:
                sock.close()
                last_error = error
            else:
                return
        raise last_error or OSError(f"{self._host} has no address")

    def _start_tls(self) -> None:
        context = self._settings["ssl_context"]
        assert self._sock is not None  # noqa: S101  # it is connected
        plain, name = self._sock, self._host.rstrip(".")
        self._sock = encrypted = context.wrap_socket(plain, server_hostname=name, do_handshake_on_connect=False)
        try:
            self._until_deadline(encrypted.do_handshake)
        except ssl.SSLCertVerificationError as error:
            if "match" in error.verify_message or "not valid for" in error.verify_message:
                hint = "Give --bootstrap by a name that is in the certificate"
            else:
                hint = "Give the certificate of its issuer as ssl.ca.location, or replace it"
            raise self._refusal(f"its certificate is not trusted: {error.verify_message}", hint) from error
        except (BrokerUnreachableError, TimeoutError):
            raise
        except OSError as error:
            reason = getattr(error, "reason", None) or str(error)
            raise self._refusal(f"the listener does not use TLS ({reason})", _CHECK_PROTOCOL) from error

    def _api_versions(self) -> dict[int, int]:
        """Newest supported version of each request, by API key."""
        answer = self._request(_API_VERSIONS, 0, b"")
        code, count = struct.unpack_from(">hi", answer)
        if code or len(answer) < 6 + 6 * count:
            raise self._refusal("it does not respond like a Kafka broker", _CHECK_PROTOCOL)
        return {key: newest for key, _, newest in struct.iter_unpack(">hhh", answer[6 : 6 + 6 * count])}

    def _authenticate(self) -> None:
        name = str(self._settings["sasl_mechanism"])
        try:
            answer = self._request(_HANDSHAKE, 1, _encode_string(name))
        except _ClosedError:
            raise self._refusal("it closes the connection at the login", _CHECK_PROTOCOL) from None
        (code,) = struct.unpack_from(">h", answer)
        known = _decode_strings(answer[2:])
        if code and known:
            hint = f"Give a supported one as sasl.mechanism: {', '.join(known)}"
            raise self._refusal(f"it does not support the mechanism {name}", hint)
        if code:
            raise self._refusal(f"the listener has no login ({for_code(code).__name__})", _CHECK_PROTOCOL)
        if name not in PASSWORD_MECHANISMS:  # others may ask third parties, which takes time or works only once
            return
        mechanism = get_sasl_mechanism(name)(host=self._host, **self._settings)
        while not mechanism.is_done():
            token = mechanism.auth_bytes()
            answer = self._request(_AUTHENTICATE, 0, struct.pack(">i", len(token)) + token)
            code, size = struct.unpack_from(">hh", answer)
            at = 4 + max(0, size)
            if code:
                reason = answer[4:at].decode("utf-8", "replace") or for_code(code).__name__
                raise self._refusal(
                    f"the login failed ({reason})", "Check sasl.username and sasl.password, and sasl.mechanism"
                )
            try:
                mechanism.receive(answer[at + 4 :])
            except Exception as error:
                raise self._refusal(f"the login failed ({error})", "Is it the right broker?") from error
        if not mechanism.is_authenticated():
            raise self._refusal("the login failed", "Check sasl.username and sasl.password, and sasl.mechanism")

    def _request(self, key: int, version: int, body: bytes) -> bytes:
        """Send a request and return the body of its response."""
        assert self._sock is not None  # noqa: S101  # it is connected
        request = struct.pack(">hhih", key, version, 1, -1) + body
        try:
            self._sock.sendall(struct.pack(">i", len(request)) + request)
            head = self._receive(4)
            if head[:2] == _TLS_ALERT:
                raise self._refusal("the listener uses TLS", "Give security.protocol=SSL, or SASL_SSL")
            (size,) = struct.unpack(">i", head)
            if not 4 <= size <= _MAX_RESPONSE_BYTES:
                raise self._refusal("it does not respond like a Kafka broker", _CHECK_PROTOCOL)
            return self._receive(size)[4:]
        except (ConnectionResetError, BrokenPipeError, ssl.SSLEOFError) as error:
            raise _ClosedError(*error.args) from error

    def _receive(self, size: int) -> bytes:
        assert self._sock is not None  # noqa: S101  # it is connected
        sock, got = self._sock, bytearray()
        while len(got) < size:
            part = self._until_deadline(partial(sock.recv, size - len(got)))
            if not part:
                raise _ClosedError("closed")
            got += part
        return bytes(got)


def _encode_string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack(">h", len(raw)) + raw


def _decode_strings(raw: bytes) -> list[str]:
    """Decode an array of strings."""
    (count,), at, found = struct.unpack_from(">i", raw), 4, []
    for _ in range(count):
        (size,) = struct.unpack_from(">h", raw, at)
        found.append(raw[at + 2 : at + 2 + size].decode("utf-8", "replace"))
        at += 2 + size
    return found
