"""How often somebody may ask: token buckets in a table of a bounded size."""

from __future__ import annotations

import functools
import ipaddress
from collections import OrderedDict

MOST = 10_000
"""Askers that are remembered at a time; who did not ask for the longest time is forgotten first."""


class Buckets:
    """One token bucket for each asker: it holds `burst` requests, and fills up at `rate`.

    A question takes a microsecond, whatever the number of askers. Not for several threads.

    Parameters
    ----------
    rate
        Requests a second; 0: no limit.
    burst
        Requests that may come at once.
    most
        Askers that are remembered.
    """

    def __init__(self, rate: float, burst: float, most: int = MOST) -> None:
        self.rate = rate
        self.burst = burst
        self.most = most
        self._found: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._found)

    def take(self, who: str, now: float) -> float:
        """Take one request out of somebody's bucket.

        Parameters
        ----------
        who
            Name of the asker.
        now
            Seconds of a clock that does not go back.

        Returns
        -------
        float
            0: it may be answered; else the seconds until the next one may.
        """
        if not self.rate:
            return 0.0
        level = self._level(who, now)
        wait = 0.0 if level >= 1.0 else (1.0 - level) / self.rate
        self._found[who] = (level if wait else level - 1.0, now)
        self._found.move_to_end(who)
        if len(self._found) > self.most:
            self._found.popitem(last=False)
        return wait

    def wait(self, who: str, now: float) -> float:
        """The seconds until somebody's next request may be answered; it takes nothing."""
        if not self.rate or who not in self._found:
            return 0.0
        return max(0.0, (1.0 - self._level(who, now)) / self.rate)

    def _level(self, who: str, now: float) -> float:
        found = self._found.get(who)
        return self.burst if found is None else min(self.burst, found[0] + (now - found[1]) * self.rate)


UNKNOWN = "unknown"
"""What counts as the address of all who come from behind a proxy that says something else than an address."""


def network(address: str) -> str:
    """What an address counts as: itself, or of IPv6 its /64, all of which one machine may have.

    >>> network("192.0.2.7"), network("2001:db8::1:2"), network("::ffff:192.0.2.7"), network("made up")
    ('192.0.2.7', '2001:db8::', '192.0.2.7', 'unknown')
    """
    return _network(address) if len(address) <= _LONGEST else UNKNOWN


_LONGEST = 100
"""Characters of an address of IPv6 with its zone; what is remembered must be bounded."""


@functools.lru_cache(4096)
def _network(address: str) -> str:
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return UNKNOWN
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Address(int(parsed) >> 64 << 64))
