"""The service as ``streamkm serve`` has it, on a real socket, in a thread of this process."""

from __future__ import annotations

import contextlib
import socket
import threading

import uvicorn

from consumers.serve import server_config
from service_api import Writer
from streamkm.http.connection import ConnectionLimits
from streamkm.service import create_app
from streamkm.stores import MemoryStore
from waiting import PATIENCE, wait_until


@contextlib.contextmanager
def serving(*, trusted_proxies=(), limits=ConnectionLimits(), **kwargs):  # noqa: B008 - frozen
    """A server as ``streamkm serve`` has it, on a port of its own; gives the application."""
    store = MemoryStore()
    Writer(store).commit()
    app = create_app(store, **kwargs)
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listener:
        app.state.port = listener.getsockname()[1]
        server = uvicorn.Server(server_config(app, trusted_proxies=trusted_proxies, limits=limits))
        app.state.server = server
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        wait_until(lambda: server.started)
        try:
            yield app
        finally:
            app.state.end_streams()
            server.should_exit = True
            thread.join(PATIENCE)
            assert not thread.is_alive()
