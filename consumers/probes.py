"""``/livez``, ``/readyz`` and ``/metrics`` of a consumer."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from streamkm.engine import Pulse
from streamkm.errors import SettingsError, StoreError
from streamkm.metrics import CONTENT_TYPE, Metrics
from streamkm.values import Secret

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment


NO_TOKEN = Secret("")


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    timeout = 10  # seconds of silence, after which a connection is closed

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class names it so
        """Say nothing: probes come every few seconds."""


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
) -> Iterator[int]:
    """Answer while the body runs, in a thread of its own; gives the port.

    Parameters
    ----------
    host
        Address to listen on.
    port
        0: any free one.
    reachable
        Says why no broker can be reached, or nothing; asked for a standby, which has no connection to look at.
    token
        What ``/metrics`` wants to be sent, if not empty. What starts and stops processes has none.
    ping
        Reads something of the store, or raises its error: an owner that has nothing to commit would not notice.

    Raises
    ------
    SettingsError
        The port is taken, or the address is not ours.
    """

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/metrics":
            if token and not token.is_borne_by(environ.get("HTTP_AUTHORIZATION", "").encode("latin-1")):
                start_response("401 Unauthorized", [("WWW-Authenticate", "Bearer")])
                return []
            start_response("200 OK", [("Content-Type", CONTENT_TYPE)])
            return [metrics.render()]
        if path == "/livez":
            well, why = pulse.live()
        elif path == "/readyz":
            well, why = pulse.ready()
            try:
                ping()
            except StoreError as e:
                well, why = False, f"store away: {e.message}"
            if well and pulse.role == "standby" and (away := reachable()):
                well, why = False, f"broker away: {away}"
        else:
            start_response("404 Not Found", [("Content-Type", "application/json")])
            return [b'{"status":"not-found"}']
        words = {"status": "ok" if well else "unavailable", "detail": why}
        status = "200 OK" if well else "503 Service Unavailable"
        start_response(status, [("Content-Type", "application/json"), ("Cache-Control", "no-store")])
        return [json.dumps(words).encode()]

    try:
        server = make_server(host, port, app, _Server, _Quiet)
    except OSError as e:
        raise SettingsError(
            f"{host} port {port} cannot be had ({e.strerror})", where="--metrics-port", hint="Give another one"
        ) from e
    threading.Thread(target=server.serve_forever, name="streamkm-probes", daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
