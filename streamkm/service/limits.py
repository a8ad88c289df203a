"""Rate limits: token buckets in a table of bounded size."""

from __future__ import annotations

import functools
import ipaddress
from collections import OrderedDict

MAX_CLIENTS = 10_000
"""Buckets that are kept; the one that was not used for the longest time is dropped first."""
UNKNOWN_ADDRESS = "unknown"
"""Bucket of all clients whose proxy sends something other than an IP address."""
_MAX_ADDRESS_CHARS = 100
"""Longest text that is parsed as an address (IPv6 with a zone is shorter): cache keys must be bounded."""


class RateLimiter:
    """One token bucket per client, of `burst` requests, filled at `rate`.

    A call takes about a microsecond, whatever the number of clients. Not thread-safe.

    Parameters
    ----------
    rate
        Requests per second; 0 for no limit.
    burst
        Capacity of a bucket: requests that may arrive at once.
    max_clients
        Number of buckets that are kept.
    """

    def __init__(self, rate: float, burst: float, max_clients: int = MAX_CLIENTS) -> None:
        self.rate = rate
        self.burst = burst
        self.max_clients = max_clients
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, client: str, now: float) -> float:
        """Take one request from the bucket of a client.

        Parameters
        ----------
        client
            Key of the client.
        now
            Seconds of a monotonic clock.

        Returns
        -------
        float
            0 if the request is within the limit, else the seconds until the next one is.
        """
        if not self.rate:
            return 0.0
        level = self._level(client, now)
        wait = 0.0 if level >= 1.0 else (1.0 - level) / self.rate
        self._buckets[client] = (level if wait else level - 1.0, now)
        self._buckets.move_to_end(client)
        if len(self._buckets) > self.max_clients:
            self._buckets.popitem(last=False)
        return wait

    def give_back(self, client: str) -> None:
        """Return a request that was taken from the bucket of a client."""
        if client in self._buckets:
            level, at = self._buckets[client]
            self._buckets[client] = (min(self.burst, level + 1.0), at)

    def retry_after(self, client: str, now: float) -> float:
        """Seconds until the next request of a client is within the limit; takes nothing."""
        if not self.rate or client not in self._buckets:
            return 0.0
        return max(0.0, (1.0 - self._level(client, now)) / self.rate)

    def _level(self, client: str, now: float) -> float:
        found = self._buckets.get(client)
        return self.burst if found is None else min(self.burst, found[0] + (now - found[1]) * self.rate)


def client_network(address: str) -> str:
    """The network that a client's address is limited by: an IPv4 address, or the /64 of an IPv6 address.

    One machine may have a whole /64 of IPv6.

    >>> client_network("192.0.2.7"), client_network("2001:db8::1:2"), client_network("::ffff:192.0.2.7")
    ('192.0.2.7', '2001:db8::', '192.0.2.7')
    >>> client_network("made up")
    'unknown'
    """
    return _network(address) if len(address) <= _MAX_ADDRESS_CHARS else UNKNOWN_ADDRESS


@functools.lru_cache(4096)
def _network(address: str) -> str:
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return UNKNOWN_ADDRESS
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Address(int(parsed) >> 64 << 64))
