"""``/livez``, ``/readyz`` and ``/metrics`` of a consumer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import orjson
import uvicorn

from consumers.listening import listen
from streamkm.answers import MEDIA_TYPE, completed, problem_body
from streamkm.connections import Bounds, protocol
from streamkm.engine import Pulse
from streamkm.errors import StoreError
from streamkm.metrics import CONTENT_TYPE, Metrics
from streamkm.values import Secret

if TYPE_CHECKING:
    from uvicorn._types import ASGIReceiveCallable, ASGISendCallable, Scope

NO_TOKEN = Secret("")
BOUNDS = Bounds(head_bytes=16 << 10, held_bytes=64 << 10, unread_total=16 << 20, connections=64)
"""What connections are held to: few ask, they ask for little, and the memory is the model's."""
LOOK_SECONDS = 10.0
"""How long /readyz waits for the store and the brokers."""
GRACE_SECONDS = 1
"""How long answers on their way may take when the consumer leaves."""

Verdict = tuple[bool, str]
"""Whether all is well, and why or why not."""


@contextmanager
def probes(
    host: str,
    port: int,
    metrics: Metrics,
    pulse: Pulse,
    reachable: Callable[[], str],
    token: Secret = NO_TOKEN,
    *,
    ping: Callable[[], None] = lambda: None,
    bounds: Bounds = BOUNDS,
    look_seconds: float = LOOK_SECONDS,
) -> Iterator[int]:
    """Answer while the body runs, in a thread of its own; gives the port.

    Parameters
    ----------
    host
        Address to listen on.
    port
        0: any free one.
    metrics
        What ``/metrics`` shows.
    pulse
        What ``/livez`` and ``/readyz`` judge by.
    reachable
        Says why no broker can be reached, or nothing; asked for a standby, which has no connection to look at.
    token
        What ``/metrics`` wants to be sent, if not empty. What starts and stops processes has none.
    ping
        Reads something of the store, or raises its error: an owner that has nothing to commit would not notice.
    bounds
        What connections hold their clients to.
    look_seconds
        How long ``/readyz`` waits for `ping` and `reachable`; then it says that they do not answer.

    Raises
    ------
    SettingsError
        The port is taken, or the address is not ours.
    """

    def ready() -> Verdict:
        well, why = pulse.ready()
        try:
            ping()
        except StoreError as e:
            return False, f"store away: {e.message}"
        if well and pulse.role == "standby" and (away := reachable()):
            return False, f"broker away: {away}"
        return well, why

    look = _Look(ready, look_seconds)
    app = _Probes(metrics, pulse, token, look)
    with listen(host, port, "--metrics-port", "Choose another one") as listener:
        config = uvicorn.Config(
            app,
            http=protocol((b"authorization",), bounds),
            ws="none",
            lifespan="off",
            interface="asgi3",
            proxy_headers=False,
            log_config=None,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
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
            look.end()
            thread.join(GRACE_SECONDS + 4)


class _Look:
    """One look at store and brokers at a time, however many ask: each may wait for what is away.

    Parameters
    ----------
    look
        Gives the verdict; may block.
    seconds
        How long it is waited for.
    """

    def __init__(self, look: Callable[[], Verdict], seconds: float) -> None:
        self._look, self._seconds = look, seconds
        self._under_way: asyncio.Future[Verdict] | None = None

    async def verdict(self) -> Verdict:
        """That of the look that is under way, or of a new one."""
        if self._under_way is None or self._under_way.done():
            self._under_way = asyncio.get_running_loop().create_future()
            # Not one of an executor's, which the end of the process would wait for.
            thread = threading.Thread(
                target=self._answer, args=(self._under_way,), name="streamkm-readiness", daemon=True
            )
            thread.start()
        try:
            return await asyncio.wait_for(asyncio.shield(self._under_way), self._seconds)
        except TimeoutError:
            return False, f"store or broker did not answer within {self._seconds:g} s"

    def _answer(self, future: asyncio.Future[Verdict]) -> None:
        try:
            verdict = self._look()
        except Exception as e:  # noqa: BLE001 - whoever asked is told that it failed, and no more of it
            verdict = False, f"it cannot be told ({type(e).__name__})"
        self._settle(future, verdict)

    def end(self) -> None:
        """Answer who waits, from another thread: the consumer leaves."""
        if self._under_way is not None:
            self._settle(self._under_way, (False, "it leaves"))

    def _settle(self, future: asyncio.Future[Verdict], verdict: Verdict) -> None:
        def settle() -> None:
            if not future.done():
                future.set_result(verdict)

        with suppress(RuntimeError):  # the server has ended meanwhile, and nobody waits
            future.get_loop().call_soon_threadsafe(settle)


class _Probes:
    """The application.

    Parameters
    ----------
    metrics, pulse, token
        As `probes` has them.
    look
        What ``/readyz`` says.
    """

    def __init__(self, metrics: Metrics, pulse: Pulse, token: Secret, look: _Look) -> None:
        self._metrics, self._pulse, self._token, self._look = metrics, pulse, token, look

    async def __call__(self, scope: Scope, _: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Answer one request."""
        assert scope["type"] == "http"  # noqa: S101 - it serves nothing else
        status, headers, body = await self._answer(
            scope["method"], scope["path"], [value for name, value in scope["headers"] if name == b"authorization"]
        )
        headers.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": completed(headers), "trailers": False})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    async def _answer(self, method: str, path: str, given: Sequence[bytes]) -> _Answer:
        if path not in {"/metrics", "/livez", "/readyz"}:
            return _problem(404, "not-found", "there is no such path", hint="There are /metrics, /livez and /readyz")
        if method not in {"GET", "HEAD"}:
            told = f"{method} is not for {path}"
            return _problem(405, "method-not-allowed", told, (b"allow", b"GET, HEAD"), hint="Allowed: GET, HEAD")
        if path == "/metrics":
            if self._token and not (len(given) == 1 and self._token.is_borne_by(given[0])):
                told = "the token is another one" if given else "the metrics need a token"
                hint = "Send it as: Authorization: Bearer TOKEN"
                return _problem(401, "unauthorized", told, (b"www-authenticate", b"Bearer"), hint=hint)
            return 200, [(b"content-type", CONTENT_TYPE.encode())], self._metrics.render()
        well, why = self._pulse.live() if path == "/livez" else await self._look.verdict()
        body = orjson.dumps({"status": "ok" if well else "unavailable", "detail": why})
        return 200 if well else 503, [(b"content-type", b"application/json")], body


_Answer = tuple[int, list[tuple[bytes, bytes]], bytes]


def _problem(status: int, code: str, told: str, *headers: tuple[bytes, bytes], hint: str) -> _Answer:
    body = orjson.dumps(problem_body(status, code, told, hint=hint))
    return status, [(b"content-type", MEDIA_TYPE.encode()), *headers], body
