"""Heartbeat of the engine's loop, and the watchdog thread that reports and finally ends a loop that hangs."""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Self

from streamkm.metrics import ALARMS, Metrics

LIVE_SECONDS = 60.0
"""A loop that made no step for longer hangs: twice as long as a broker may take to answer."""


class Heartbeat:
    """The last sign of life, and the down of now.

    Parameters
    ----------
    clock
        Seconds that never jump.

    Attributes
    ----------
    doing
        What the loop began at the last beat.
    role
        ``starting``, ``standby``, ``owner`` or ``stopped``.
    beats
        Signs of life so far.
    thread
        Identifier of the loop's thread; None before its first beat.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._at = clock()
        self._down: dict[str, str] = {}
        self.doing, self.role, self.beats = "starting", "starting", 0
        self.thread: int | None = None

    def beat(self, doing: str, role: str | None = None) -> None:
        """The loop goes on."""
        self.thread = threading.get_ident()
        self.doing, self._at = doing, self._clock()
        self.beats += 1
        if role is not None:
            self.role = role

    def age(self) -> float:
        """Seconds since the last beat."""
        return self._clock() - self._at

    def mark_down(self, what: str, why: str) -> bool:
        """Something that is needed does not answer; whether that is news."""
        new = what not in self._down
        self._down[what] = why
        return new

    def mark_up(self, what: str) -> bool:
        """It answers; whether that is news."""
        return self._down.pop(what, None) is not None

    def live(self) -> tuple[bool, str]:
        """Whether the loop goes on, and what it is doing."""
        age = self.age()
        return age <= LIVE_SECONDS, f"{self.doing}, for {age:.1f} s"

    def ready(self) -> tuple[bool, str]:
        """Whether it does its work or waits for its turn, with all that it needs; and why not."""
        if self.role not in {"owner", "standby"}:
            return False, f"{self.role}, {self.doing}"
        down = dict(self._down)  # the loop may change it meanwhile
        if down:
            return False, "; ".join(f"{what} away: {why}" for what, why in sorted(down.items()))
        live, doing = self.live()
        return live, f"{self.role}, {doing}"


log = logging.getLogger("streamkm.engine")

TICK_SECONDS = 1.0
KILL_SECONDS = 2 * LIVE_SECONDS
"""After so much silence the process ends: the next one goes on where the last commit stands."""


class Watchdog:
    """Watches a heartbeat until it is closed.

    Time counts only while this thread runs: a process that was stopped, or a machine that slept, is not taken for one
    that hangs.

    Parameters
    ----------
    heartbeat
        Of the engine.
    model
        Its name.
    on_hang
        Called when the loop was silent for `KILL_SECONDS`. Nothing that the loop holds can be given back, so this ends
        the process at once.
    """

    def __init__(self, heartbeat: Heartbeat, model: str, metrics: Metrics, on_hang: Callable[[], None]) -> None:
        self.heartbeat, self.model, self.metrics, self.on_hang = heartbeat, model, metrics, on_hang
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
        if self.heartbeat.beats != self._beats:
            if self._told:
                log.warning("%s: the loop goes on", self.model)
            self._silent, self._beats, self._told = 0.0, self.heartbeat.beats, False
            return
        self._silent += seconds
        if self._silent > LIVE_SECONDS and not self._told:
            self._told = True
            self.metrics.add(ALARMS, model=self.model, alarm="hung")
            log.error(
                "%s: no step for %.0f s while %s%s", self.model, self._silent, self.heartbeat.doing, self._where()
            )
        if self._silent > KILL_SECONDS:
            log.critical("%s: no step for %.0f s, leaving: the next owner goes on", self.model, self._silent)
            self.on_hang()

    def _where(self) -> str:
        frame = sys._current_frames().get(self.heartbeat.thread or 0)  # noqa: SLF001  # there is no public way
        return "" if frame is None else "\n" + "".join(traceback.format_stack(frame))
