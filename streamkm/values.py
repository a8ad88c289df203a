"""Types of settings: how each is read from text, checked, and written."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import hmac
import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from streamkm.redaction import MASK
from streamkm.times import format_duration, parse_duration

Check = Callable[[Any], str | None]
"""Returns what is wrong with a value, or None."""


@dataclass(frozen=True)
class HalfLife:
    """Number of points, or seconds of event time, after which the weight of a point is halved.

    >>> HalfLife.parse("100000"), HalfLife.parse("10m")
    (HalfLife(value=100000.0, unit='points'), HalfLife(value=600.0, unit='seconds'))
    """

    value: float
    unit: str

    @classmethod
    def parse(cls, text: str | float) -> HalfLife:
        """Read a number of points (``100000``) or a duration of event time (``10m``).

        Raises
        ------
        ValueError
            It is neither.
        """
        try:
            return cls(float(text), "points")
        except ValueError:
            return cls(parse_duration(text), "seconds")

    def __str__(self) -> str:
        return format_duration(self.value) if self.unit == "seconds" else f"{self.value:.15g}"


class Seconds(float):
    """A number of seconds that settings read as a duration."""

    def __new__(cls, text: str | float) -> Self:
        """Parse with `streamkm.times.parse_duration`."""
        return super().__new__(cls, parse_duration(text))

    def __str__(self) -> str:
        return format_duration(self)


class ClusterCount(int):
    """A number of clusters; 0 is ``auto``: chosen from the first points.

    >>> ClusterCount("8"), ClusterCount("auto"), str(ClusterCount("auto"))
    (8, 0, 'auto')
    """

    def __new__(cls, text: str | int) -> Self:
        """Parse a number or ``auto``."""
        if text == "auto":
            return super().__new__(cls, 0)
        if isinstance(text, float | bool) or int(text) < 1:
            raise ValueError("neither auto nor a whole number of at least 1")
        return super().__new__(cls, text)

    def __str__(self) -> str:
        return str(int(self)) if self else "auto"


@dataclass(frozen=True)
class KRange:
    """One number of clusters, or all from `low` to `high`; with `auto`, no more than there are points.

    >>> KRange.parse("8"), KRange.parse("2..20")
    (KRange(low=8, high=8), KRange(low=2, high=20))
    >>> KRange.parse("auto").high
    20
    """

    MAX = 20

    low: int
    high: int
    auto: bool = dataclasses.field(default=False, repr=False)

    @classmethod
    def parse(cls, text: str | int) -> KRange:
        """Read a number (``8``), a range (``2..20``) or ``auto``.

        Raises
        ------
        ValueError
            It is none of these.
        """
        if str(text).strip() == "auto":
            return cls(1, cls.MAX, auto=True)
        match = re.fullmatch(r"\s*(\d+)\s*(?:\.\.\s*(\d+)\s*)?", str(text))
        if match is None:
            raise ValueError(f"{text!r} is neither a number such as 8, nor a range such as 2..20, nor auto")
        return cls(int(match[1]), int(match[2] or match[1]))

    def __str__(self) -> str:
        if self.auto:
            return "auto"
        return str(self.low) if self.low == self.high else f"{self.low}..{self.high}"


class Size(int):
    """A number of bytes, written as ``512MB``, ``2GiB`` or a bare number.

    >>> Size("512MB"), Size("1.5 KiB"), Size(7)
    (512000000, 1536, 7)
    """

    MAX = 2.0**60

    def __new__(cls, text: str | int) -> Self:
        """Parse a number and its unit."""
        match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?|\.[0-9]+)\s*([kmgt]?)(i?)b?\s*", str(text), re.IGNORECASE)
        if match is None or (match[3] and not match[2]):
            raise ValueError(f"{text!r} is not a size such as 512MB, 2GB or 2GiB")
        power = " kmgt".index(match[2].lower() or " ")
        size = float(match[1]) * (1024 if match[3] else 1000) ** power
        if size > cls.MAX:
            raise ValueError(f"{text!r} is more than any machine has")
        return super().__new__(cls, round(size))


class Secret(str):
    """Text that is masked in messages, logs and reprs.

    >>> [Secret("abc")]
    ['********']
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(MASK) if self else "''"

    def matches_authorization(self, authorization: bytes) -> bool:
        """Whether an Authorization header has this bearer token (RFC 6750, section 2.1).

        >>> Secret("abc").matches_authorization(b"Bearer abc"), Secret("abc").matches_authorization(b"Bearer ab")
        (True, False)
        """
        scheme, _, token = authorization.partition(b" ")
        # Digests have equal lengths, so the time of the comparison does not depend on the token's length.
        given, own = (hashlib.sha256(text).digest() for text in (token.strip(), self.encode()))
        return scheme.lower() == b"bearer" and hmac.compare_digest(given, own)


def at_least(low: float) -> Check:
    """A check that the value is at least `low`."""
    return lambda v: None if v >= low else f"{v} is less than {low:g}"


def between(low: float, high: float) -> Check:
    """A check that the value is in [low, high]."""
    return lambda v: None if low <= v <= high else f"{v} is not between {low:g} and {high:g}"


def one_of(*choices: str) -> Check:
    """A check that the value is one of `choices`."""
    return lambda v: None if v in choices else f"{v!r} is none of {', '.join(choices)}"


def k_range(k: KRange) -> str | None:
    """Check that a range is ascending and within 1 to 100000."""
    if not 1 <= k.low <= k.high <= 100_000:
        return f"{k} is not between 1 and 100000" + (", from low to high" if k.low > k.high else "")
    return None


def positive_half_life(h: HalfLife) -> str | None:
    """Check that a half-life is positive and finite."""
    return None if 0 < h.value < float("inf") else f"{h} is not more than 0"


def parse_names(text: str) -> tuple[str, ...]:
    """Split names at commas; a name that contains one is quoted as in csv.

    >>> parse_names('a, b.c,"height, m"'), parse_names("")
    (('a', 'b.c', 'height, m'), ())
    """
    if '"' in text:
        return tuple(name.strip() for row in csv.reader([text], skipinitialspace=True) for name in row)
    parts = text.split(",")
    return tuple(part.strip() for part in parts if len(parts) > 1 or part.strip())


def quote_name(name: str) -> str:
    """Quote a name for `parse_names`, if it contains a comma."""
    return '"' + name.replace('"', '""') + '"' if "," in name else name


def field_names(names: tuple[str, ...]) -> str | None:
    """Check that names are not empty and unique."""
    if any(not n for n in names):
        return "a field name is empty"
    twice = sorted({n for n in names if names.count(n) > 1})
    return f"{', '.join(twice)} is named twice" if twice else None


CLIENT_ALIASES = {
    "max_poll_interval": "max_poll_interval_ms",
    "sasl_username": "sasl_plain_username",
    "sasl_password": "sasl_plain_password",
    "sasl_mechanisms": "sasl_mechanism",
    "ssl_ca_location": "ssl_cafile",
    "ssl_certificate_location": "ssl_certfile",
    "ssl_key_location": "ssl_keyfile",
    "ssl_key_password": "ssl_password",
    "ssl_crl_location": "ssl_crlfile",
    "fetch_message_max_bytes": "max_partition_fetch_bytes",
    "fetch_wait_max_ms": "fetch_max_wait_ms",
    "receive_buffer": "receive_buffer_bytes",
}
"""Property names of the Java client and of librdkafka, with their equivalents in kafka-python."""


def is_client_property(name: str) -> bool:
    """Whether a Kafka client has a property with this name, with dots, hyphens or underscores."""
    import kafka  # type: ignore[import-untyped]  # noqa: PLC0415  # slow to import, and rarely needed

    key = name.replace(".", "_").replace("-", "_")
    return CLIENT_ALIASES.get(key, key) in kafka.KafkaConsumer.DEFAULT_CONFIG or key == "sasl_jaas_config"


def is_loopback(host: str) -> bool:
    """Whether a host is this machine: ``localhost``, or a loopback address. Other names are not resolved.

    >>> [is_loopback(host) for host in ("localhost", "LOCALHOST.", "127.0.0.2", "::1", "10.0.0.1", "example.com")]
    [True, True, True, True, False, False]
    """
    name = host.lower().rstrip(".")
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def ip_networks(texts: tuple[str, ...]) -> str | None:
    """Check that each text is an address, or a network such as 10.0.0.0/8."""
    for text in texts:
        try:
            ipaddress.ip_network(text)
        except ValueError as e:
            return f"{e}: use addresses or networks, such as 10.0.0.0/8"
    return None


def name_value_pairs(pairs: tuple[str, ...]) -> str | None:
    """Check that each text has the form NAME=VALUE."""
    # A property may contain a password, so the message identifies it by number.
    wrong = [str(i) for i, p in enumerate(pairs, 1) if "=" not in p or p.startswith("=")]
    return f"property number {', '.join(wrong)} is not NAME=VALUE" if wrong else None
