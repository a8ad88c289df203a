"""What a program that runs for long says of itself in its log: progress, bad records, and how it ended.

Each at a pace that people can read, however fast the stream is: what is said is counted, never repeated.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from streamkm.records import BadRecord
from streamkm.times import format_age

PROGRESS_SECONDS = 30.0
"""Between two lines of progress,"""
QUIET_SECONDS = 600.0
"""and while nothing comes."""
COUNT_SECONDS = 60.0
"""Between two lines that count what was said once."""


class ProgressReporter:
    """The log lines of one run.

    Parameters
    ----------
    log
        Where they go.
    name
        What runs: the first word of each line.
    clock
        Seconds that never jump.
    fate
        What becomes of a bad record.
    records
        Records so far, of earlier runs too.
    unit
        What they are called.
    """

    def __init__(
        self,
        log: logging.Logger,
        name: str,
        clock: Callable[[], float],
        *,
        fate: str = "",
        records: int = 0,
        unit: str = "records",
    ) -> None:
        self._unit = unit
        self._log, self._name, self._clock, self._fate = log, name, clock, fate
        self._began_at = self._told_at = clock()
        self._began, self._told = records, records
        self._counted_at = float("-inf")
        self._new: dict[str, tuple[int, BadRecord]] = {}
        self._known: set[str] = set()
        self._all_bad = 0
        self._away: dict[str, float] = {}

    def bad(self, records: Iterable[BadRecord]) -> None:
        """Some records were bad: the first of each reason is told at once, the others are counted."""
        for bad in records:
            self._all_bad += 1
            if bad.reason in self._known:
                count, example = self._new.get(bad.reason, (0, bad))
                self._new[bad.reason] = count + 1, example
                continue
            if not self._known:
                self._counted_at = self._clock()
            self._known.add(bad.reason)
            self._log.warning("%s: bad record (%s) at %s; %s", self._name, bad.reason, bad, self._fate)

    def look(self, records: int, more: Callable[[], str]) -> None:
        """Say how far it is, and count what was bad, if it is time.

        Parameters
        ----------
        records
            Records so far.
        more
            Gives what else is to be said.
        """
        now = self._clock()
        if self._new and now - self._counted_at >= COUNT_SECONDS:
            self._count(now)
        if now - self._told_at >= (PROGRESS_SECONDS if records != self._told else QUIET_SECONDS):
            rate = (records - self._told) / (now - self._told_at)
            self._told_at, self._told = now, records
            extra = {"done": records, "per_second": round(rate, 1)}
            told = f"{records:,} {self._unit}, {rate:,.0f}/s"
            self._log.info("%s: %s, %s", self._name, told, more(), extra=extra)

    def end(self, records: int, more: str) -> None:
        """Say how it ended; call it however it did."""
        now = self._clock()
        if self._new:
            self._count(now)
        here, seconds = records - self._began, now - self._began_at
        told = f"{here:,} {self._unit} meanwhile" + (f", {self._all_bad:,} of them bad" if self._all_bad else "")
        self._log.info("%s: left after %s, %s; %s", self._name, format_age(seconds), told, more)

    def mark_down(self, what: str, error: object) -> None:
        """Something does not answer, again and again: told at once and then once a minute, until it is `back`."""
        now = self._clock()
        if now - self._away.get(what, float("-inf")) >= COUNT_SECONDS:
            self._away[what] = now
            self._log.warning("%s: the %s is away, trying again: %s", self._name, what, error)

    def mark_up(self, what: str) -> None:
        """It answers."""
        self._away.pop(what, None)

    def _count(self, now: float) -> None:
        total = sum(count for count, _ in self._new.values())
        told = (f"{count:,} {why}, such as {example}" for why, (count, example) in sorted(self._new.items()))
        since = format_age(now - self._counted_at)
        self._log.warning(
            "%s: %s more bad records in %s: %s", self._name, f"{total:,}", since, "; ".join(told), extra={"bad": total}
        )
        self._new.clear()
        self._counted_at = now
