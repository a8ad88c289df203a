"""Heartbeat of the engine's loop, and the watchdog thread that reports and finally ends a hanging loop."""

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
"""A loop without a heartbeat for longer hangs: twice the longest time that a broker takes to answer."""


class Heartbeat:
    """Time and activity of the loop's last step, and the services that are unavailable.

    Parameters
    ----------
    clock
        Monotonic seconds.

    Attributes
    ----------
    activity
        What the loop started at the last beat.
    role
        ``starting``, ``standby``, ``owner`` or ``stopped``.
    beats
        Number of beats so far.
    thread
        Identifier of the loop's thread; None before the first beat.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._at = clock()
        self._down: dict[str, str] = {}
        self.activity, self.role, self.beats = "starting", "starting", 0
        self.thread: int | None = None

    def beat(self, activity: str, role: str | None = None) -> None:
        """Record that the loop made a step.

        Parameters
        ----------
        activity
            What it does next.
        role
            New role; None: unchanged.
        """
        self.thread = threading.get_ident()
        self.activity, self._at = activity, self._clock()
        self.beats += 1
        if role is not None:
            self.role = role

    def age(self) -> float:
        """Seconds since the last beat."""
        return self._clock() - self._at

    def mark_down(self, what: str, why: str) -> bool:
        """Note that ``broker``, ``store`` or ``codec`` is unavailable; whether it was available before."""
        new = what not in self._down
        self._down[what] = why
        return new

    def mark_up(self, what: str) -> bool:
        """Note that it is available; whether it was unavailable before."""
        return self._down.pop(what, None) is not None

    def live(self) -> tuple[bool, str]:
        """Whether the loop makes steps, and its activity."""
        age = self.age()
        return age <= LIVE_SECONDS, f"{self.activity}, for {age:.1f} s"

    def ready(self) -> tuple[bool, str]:
        """Whether the loop is owner or standby with broker, store and codec available, and the details."""
        if self.role not in {"owner", "standby"}:
            return False, f"{self.role}, {self.activity}"
        down = dict(self._down)  # the loop's thread may change it
        if down:
            return False, "; ".join(f"{what} unavailable: {why}" for what, why in sorted(down.items()))
        live, activity = self.live()
        return live, f"{self.role}, {activity}"


log = logging.getLogger("streamkm.engine")

TICK_SECONDS = 1.0
"""Time between checks of the heartbeat."""
KILL_SECONDS = 2 * LIVE_SECONDS
"""Time without a heartbeat after which the process ends; the next one continues from the last commit."""


class Watchdog:
    """Watches a heartbeat in a thread, as a context manager.

    Time counts only while this thread runs, so a stopped process or a suspended machine does not count as hanging.

    Parameters
    ----------
    heartbeat
        Of the engine.
    model
        Name of the model, for the log.
    on_hang
        Called after `KILL_SECONDS` without a beat. Resources of a hanging loop cannot be released, so it should end the
        process at once.
    """

    def __init__(self, heartbeat: Heartbeat, model: str, metrics: Metrics, on_hang: Callable[[], None]) -> None:
        self.heartbeat, self.model, self.metrics, self.on_hang = heartbeat, model, metrics, on_hang
        self._silent, self._beats, self._alarmed = 0.0, -1, False
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
        """Check once, `seconds` after the previous check."""
        if self.heartbeat.beats != self._beats:
            if self._alarmed:
                log.warning("%s: the loop runs again", self.model)
            self._silent, self._beats, self._alarmed = 0.0, self.heartbeat.beats, False
            return
        self._silent += seconds
        if self._silent > LIVE_SECONDS and not self._alarmed:
            self._alarmed = True
            self.metrics.add(ALARMS, model=self.model, alarm="hung")
            log.error(
                "%s: no step for %.0f s while %s%s", self.model, self._silent, self.heartbeat.activity, self._where()
            )
        if self._silent > KILL_SECONDS:
            log.critical(
                "%s: no step for %.0f s, ending the process: the next owner continues", self.model, self._silent
            )
            self.on_hang()

    def _where(self) -> str:
        frame = sys._current_frames().get(self.heartbeat.thread or 0)  # noqa: SLF001  # there is no public API
        return "" if frame is None else "\n" + "".join(traceback.format_stack(frame))
