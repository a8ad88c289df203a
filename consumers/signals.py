"""SIGTERM and SIGINT as requests to stop."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

log = logging.getLogger("streamkm")


class StopSignal(threading.Event):
    """An event that SIGTERM and SIGINT set."""

    def __init__(self) -> None:
        super().__init__()
        self._at_once = False

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """While the context is open, signals end the program at once with status 0: there is nothing to finish."""
        self._at_once = True
        try:
            if self.is_set():
                sys.exit(0)
            yield
        finally:
            self._at_once = False

    def handle(self, number: int, _: FrameType | None) -> None:
        """Handle a signal."""
        self.set()
        name = signal.Signals(number).name
        if self._at_once:
            log.info("%s: exiting", name)
            sys.exit(0)
        log.info("%s: stopping", name)


def stop_on_signals() -> StopSignal:
    """An event that SIGTERM and SIGINT set from now on."""
    stop = StopSignal()
    signal.signal(signal.SIGTERM, stop.handle)
    signal.signal(signal.SIGINT, stop.handle)
    return stop
