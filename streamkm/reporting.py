"""Log lines of long-running programs: progress, bad records, outages and the end.

The rate is limited, however fast the stream is: repetitions are counted instead of logged.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from streamkm.records import BadRecord
from streamkm.times import format_age

PROGRESS_SECONDS = 30.0
"""Time between progress lines while records arrive."""
QUIET_SECONDS = 600.0
"""Time between progress lines while none arrive."""
COUNT_SECONDS = 60.0
"""Time between lines with the number of repetitions."""


class ProgressReporter:
    """Writes the log lines of one run.

    Parameters
    ----------
    log
        Destination.
    name
        What runs: the start of each line.
    clock
        Monotonic seconds.
    consequence
        What happens to a bad record, for its log line.
    records
        Records so far, including earlier runs.
    unit
        Plural name of the records.
    """

    def __init__(
        self,
        log: logging.Logger,
        name: str,
        clock: Callable[[], float],
        *,
        consequence: str = "",
        records: int = 0,
        unit: str = "records",
    ) -> None:
        self._unit = unit
        self._log, self._name, self._clock, self._consequence = log, name, clock, consequence
        self._started_at = self._logged_at = clock()
        self._initial, self._logged = records, records
        self._counted_at = float("-inf")
        self._new: dict[str, tuple[int, BadRecord]] = {}
        self._known: set[str] = set()
        self._all_bad = 0
        self._down: dict[str, float] = {}

    def bad_records(self, records: Iterable[BadRecord]) -> None:
        """Log the first bad record of each reason, and count the others."""
        for bad in records:
            self._all_bad += 1
            if bad.reason in self._known:
                count, example = self._new.get(bad.reason, (0, bad))
                self._new[bad.reason] = count + 1, example
                continue
            if not self._known:
                self._counted_at = self._clock()
            self._known.add(bad.reason)
            self._log.warning("%s: bad record (%s) at %s; %s", self._name, bad.reason, bad, self._consequence)

    def update(self, records: int, details: Callable[[], str]) -> None:
        """Log progress and the number of bad records, if due.

        Parameters
        ----------
        records
            Records so far.
        details
            Returns the rest of the line.
        """
        now = self._clock()
        if self._new and now - self._counted_at >= COUNT_SECONDS:
            self._count(now)
        if now - self._logged_at >= (PROGRESS_SECONDS if records != self._logged else QUIET_SECONDS):
            rate = (records - self._logged) / (now - self._logged_at)
            self._logged_at, self._logged = now, records
            extra = {"done": records, "per_second": round(rate, 1)}
            text = f"{records:,} {self._unit}, {rate:,.0f}/s"
            self._log.info("%s: %s, %s", self._name, text, details(), extra=extra)

    def finish(self, records: int, details: str) -> None:
        """Log the end of the run."""
        now = self._clock()
        if self._new:
            self._count(now)
        here, seconds = records - self._initial, now - self._started_at
        text = f"{here:,} {self._unit}" + (f", {self._all_bad:,} of them bad" if self._all_bad else "")
        self._log.info("%s: stopped after %s, %s; %s", self._name, format_age(seconds), text, details)

    def mark_down(self, what: str, error: object) -> None:
        """Log that a service is unavailable: at once, and then once a minute until `mark_up`."""
        now = self._clock()
        if now - self._down.get(what, float("-inf")) >= COUNT_SECONDS:
            self._down[what] = now
            self._log.warning("%s: the %s is unavailable, trying again: %s", self._name, what, error)

    def mark_up(self, what: str) -> None:
        """Note that a service is available again."""
        self._down.pop(what, None)

    def _count(self, now: float) -> None:
        total = sum(count for count, _ in self._new.values())
        counts = (f"{count:,} {why}, such as {example}" for why, (count, example) in sorted(self._new.items()))
        since = format_age(now - self._counted_at)
        self._log.warning(
            "%s: %s more bad records in %s: %s",
            self._name,
            f"{total:,}",
            since,
            "; ".join(counts),
            extra={"bad": total},
        )
        self._new.clear()
        self._counted_at = now
