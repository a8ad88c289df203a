"""``/livez``, ``/readyz`` and ``/metrics`` of a consumer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import orjson
import uvicorn

from streamkm.engine import Heartbeat
from streamkm.errors import StoreError
from streamkm.http.connection import ConnectionLimits, bounded_protocol
from streamkm.http.listening import listen
from streamkm.http.responses import MEDIA_TYPE, problem_body, with_default_headers
from streamkm.metrics import CONTENT_TYPE, Metrics
from streamkm.values import Secret

if TYPE_CHECKING:
    from uvicorn._types import ASGIReceiveCallable, ASGISendCallable, Scope

NO_TOKEN = Secret("")
LIMITS = ConnectionLimits(head_bytes=16 << 10, pipelined_bytes=64 << 10, unread_total=16 << 20, connections=64)
"""Limits of the connections: there are few small requests, and the memory is the model's."""
CHECK_SECONDS = 10.0
"""Seconds that /readyz waits for the store and the brokers."""
SHUTDOWN_SECONDS = 1
"""Seconds for pending responses when the consumer stops."""

Verdict = tuple[bool, str]
"""Whether the consumer is live or ready, and the reason."""


@contextmanager
def probes(
    host: str,
    port: int,
    metrics: Metrics,
    heartbeat: Heartbeat,
    unreachable_reason: Callable[[], str],
    token: Secret = NO_TOKEN,
    *,
    ping: Callable[[], None] = lambda: None,
    limits: ConnectionLimits = LIMITS,
    check_seconds: float = CHECK_SECONDS,
) -> Iterator[int]:
    """Serve the probes in a thread while the context is open.

    Parameters
    ----------
    host
        Address to listen on.
    port
        0 for any free one.
    metrics
        Content of ``/metrics``.
    heartbeat
        Health of the consumer, for ``/livez`` and ``/readyz``.
    unreachable_reason
        Why no broker can be reached; empty if one can. Called for a standby, which has no connection to check.
    token
        Token that ``/metrics`` needs, if not empty. The other two need none.
    ping
        Reads from the store, or raises its error: an owner with nothing to commit would not notice that it is gone.
    limits
        Limits of the connections.
    check_seconds
        Seconds that ``/readyz`` waits for `ping` and `unreachable_reason`.

    Yields
    ------
    The port.

    Raises
    ------
    SettingsError
        The port is in use, or the address is not of this machine.
    """

    def check_readiness() -> Verdict:
        ready, reason = heartbeat.ready()
        try:
            ping()
        except StoreError as e:
            return False, f"store unavailable: {e.message}"
        if ready and heartbeat.role == "standby" and (unreachable := unreachable_reason()):
            return False, f"broker unavailable: {unreachable}"
        return ready, reason

    readiness = _Readiness(check_readiness, check_seconds)
    app = _Probes(metrics, heartbeat, token, readiness)
    with listen(host, port, "--metrics-port", "Choose another one") as listener:
        config = uvicorn.Config(
            app,
            http=bounded_protocol((b"authorization",), limits),
            ws="none",
            lifespan="off",
            interface="asgi3",
            proxy_headers=False,
            log_config=None,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=SHUTDOWN_SECONDS,
            server_header=False,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(
            target=server.run, kwargs={"sockets": [listener]}, name="streamkm-probes", daemon=True
        )
        bound: int = listener.getsockname()[1]
        thread.start()
        try:
            yield bound
        finally:
            server.should_exit = True
            readiness.end()
            thread.join(SHUTDOWN_SECONDS + 4)


class _Readiness:
    """Runs the readiness check once at a time, however many requests wait for it: each run may block.

    Parameters
    ----------
    check
        Returns the verdict; may block.
    seconds
        Seconds to wait for it.
    """

    def __init__(self, check: Callable[[], Verdict], seconds: float) -> None:
        self._check, self._seconds = check, seconds
        self._running: asyncio.Future[Verdict] | None = None

    async def verdict(self) -> Verdict:
        """The verdict of the running check, or of a new one."""
        if self._running is None or self._running.done():
            self._running = asyncio.get_running_loop().create_future()
            # Not in an executor: the end of the process would wait for its threads.
            thread = threading.Thread(target=self._run, args=(self._running,), name="streamkm-readiness", daemon=True)
            thread.start()
        try:
            return await asyncio.wait_for(asyncio.shield(self._running), self._seconds)
        except TimeoutError:
            return False, f"store or broker did not respond within {self._seconds:g} s"

    def _run(self, future: asyncio.Future[Verdict]) -> None:
        try:
            verdict = self._check()
        except Exception as e:  # noqa: BLE001 - the response says that the check failed, without details
            verdict = False, f"the check failed ({type(e).__name__})"
        self._set_result(future, verdict)

    def end(self) -> None:
        """Release waiting requests, from another thread: the consumer stops."""
        if self._running is not None:
            self._set_result(self._running, (False, "stopping"))

    def _set_result(self, future: asyncio.Future[Verdict], verdict: Verdict) -> None:
        def set_result() -> None:
            if not future.done():
                future.set_result(verdict)

        with suppress(RuntimeError):  # the event loop has ended already
            future.get_loop().call_soon_threadsafe(set_result)


class _Probes:
    """The ASGI application.

    Parameters
    ----------
    metrics, heartbeat, token
        As in `probes`.
    readiness
        Verdict of ``/readyz``.
    """

    def __init__(self, metrics: Metrics, heartbeat: Heartbeat, token: Secret, readiness: _Readiness) -> None:
        self._metrics, self._heartbeat, self._token, self._readiness = metrics, heartbeat, token, readiness

    async def __call__(self, scope: Scope, _: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Handle one request."""
        assert scope["type"] == "http"  # noqa: S101 - lifespan and WebSockets are off
        status, headers, body = await self._respond(
            scope["method"], scope["path"], [value for name, value in scope["headers"] if name == b"authorization"]
        )
        headers.append((b"content-length", str(len(body)).encode()))
        headers = with_default_headers(headers)
        await send({"type": "http.response.start", "status": status, "headers": headers, "trailers": False})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    async def _respond(self, method: str, path: str, authorization: Sequence[bytes]) -> _Response:
        if path not in {"/metrics", "/livez", "/readyz"}:
            return _problem(404, "not-found", "no such path", hint="There are /metrics, /livez and /readyz")
        if method not in {"GET", "HEAD"}:
            message = f"{method} is not allowed for {path}"
            return _problem(405, "method-not-allowed", message, (b"allow", b"GET, HEAD"), hint="Allowed: GET, HEAD")
        if path == "/metrics":
            if self._token and not (len(authorization) == 1 and self._token.matches_authorization(authorization[0])):
                message = "this token is unknown" if authorization else "the metrics need a token"
                hint = "Send it as: Authorization: Bearer TOKEN"
                return _problem(401, "unauthorized", message, (b"www-authenticate", b"Bearer"), hint=hint)
            return 200, [(b"content-type", CONTENT_TYPE.encode())], self._metrics.render()
        healthy, reason = self._heartbeat.live() if path == "/livez" else await self._readiness.verdict()
        body = orjson.dumps({"status": "ok" if healthy else "unavailable", "detail": reason})
        return 200 if healthy else 503, [(b"content-type", b"application/json")], body


_Response = tuple[int, list[tuple[bytes, bytes]], bytes]
"""Status, headers and body."""


def _problem(status: int, code: str, message: str, *headers: tuple[bytes, bytes], hint: str) -> _Response:
    body = orjson.dumps(problem_body(status, code, message, hint=hint))
    return status, [(b"content-type", MEDIA_TYPE.encode()), *headers], body
