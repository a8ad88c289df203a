"""What the loop of an engine is doing: written by the loop, read by other threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

LIVE_SECONDS = 60.0
"""A loop that made no step for longer hangs: twice as long as a broker may take to answer."""


class Pulse:
    """The last sign of life, and the troubles of now.

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
        self._troubles: dict[str, str] = {}
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

    def trouble(self, what: str, why: str) -> bool:
        """Something that is needed does not answer; whether that is news."""
        new = what not in self._troubles
        self._troubles[what] = why
        return new

    def well(self, what: str) -> bool:
        """It answers; whether that is news."""
        return self._troubles.pop(what, None) is not None

    def live(self) -> tuple[bool, str]:
        """Whether the loop goes on, and what it is doing."""
        age = self.age()
        return age <= LIVE_SECONDS, f"{self.doing}, for {age:.1f} s"

    def ready(self) -> tuple[bool, str]:
        """Whether it does its work or waits for its turn, with all that it needs; and why not."""
        if self.role not in {"owner", "standby"}:
            return False, f"{self.role}, {self.doing}"
        troubles = dict(self._troubles)  # the loop may change it meanwhile
        if troubles:
            return False, "; ".join(f"{what} away: {why}" for what, why in sorted(troubles.items()))
        live, doing = self.live()
        return live, f"{self.role}, {doing}"
