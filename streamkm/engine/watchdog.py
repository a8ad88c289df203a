"""A thread that looks whether the loop of an engine goes on, says so when it does not, and ends what hangs for good."""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Self

from streamkm.engine.pulse import LIVE_SECONDS, Pulse
from streamkm.metrics import ALARMS, Metrics

log = logging.getLogger("streamkm.engine")

TICK_SECONDS = 1.0
KILL_SECONDS = 2 * LIVE_SECONDS
"""After so much silence the process ends: the next one goes on where the last commit stands."""


class Watchdog:
    """Watches a pulse until it is closed.

    Time counts only while this thread runs: a process that was stopped, or a machine that slept, is not taken for one
    that hangs.

    Parameters
    ----------
    pulse
        Of the engine.
    model
        Its name.
    on_hang
        Called when the loop was silent for `KILL_SECONDS`. Nothing that the loop holds can be given back, so this ends
        the process at once.
    """

    def __init__(self, pulse: Pulse, model: str, metrics: Metrics, on_hang: Callable[[], None]) -> None:
        self.pulse, self.model, self.metrics, self.on_hang = pulse, model, metrics, on_hang
        self._silent, self._beats, self._told = 0.0, -1, False
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="streamkm-watchdog", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()

    def _run(self) -> None:
        last = time.monotonic()
        while not self._closed.wait(TICK_SECONDS):
            now = time.monotonic()
            self.tick(min(now - last, 2 * TICK_SECONDS))
            last = now

    def tick(self, seconds: float) -> None:
        """Look once, so many seconds after the look before."""
        if self.pulse.beats != self._beats:
            if self._told:
                log.warning("%s: the loop goes on", self.model)
            self._silent, self._beats, self._told = 0.0, self.pulse.beats, False
            return
        self._silent += seconds
        if self._silent > LIVE_SECONDS and not self._told:
            self._told = True
            self.metrics.add(ALARMS, model=self.model, alarm="hung")
            log.error("%s: no step for %.0f s while %s%s", self.model, self._silent, self.pulse.doing, self._where())
        if self._silent > KILL_SECONDS:
            log.critical("%s: no step for %.0f s, leaving: the next owner goes on", self.model, self._silent)
            self.on_hang()

    def _where(self) -> str:
        frame = sys._current_frames().get(self.pulse.thread or 0)  # noqa: SLF001  # there is no public way
        return "" if frame is None else "\n" + "".join(traceback.format_stack(frame))
