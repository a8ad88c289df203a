"""SIGTERM and SIGINT as a wish to finish what is under way and leave."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType

log = logging.getLogger("streamkm")


def stop_on_signals() -> threading.Event:
    """An event that SIGTERM and SIGINT set."""
    stop = threading.Event()

    def handle(number: int, _: FrameType | None) -> None:
        log.info("%s: finishing what is under way", signal.Signals(number).name)
        stop.set()

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)
    return stop
