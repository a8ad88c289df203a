"""Times, ages and durations as text: the one place that reads and writes them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_MAX_SECONDS = 1e11  # the year 5138: larger numbers are milliseconds or microseconds


def format_time(seconds: float, timespec: str = "auto") -> str:
    """RFC 3339 in UTC, or the bare number where a calendar ends (the years 1 and 9999).

    Microseconds are rounded up, so that ``?at=`` with the text includes what happened at that time.

    Parameters
    ----------
    seconds
        Since 1970.
    timespec
        The last part that is written, as `datetime.datetime.isoformat` names it.

    >>> format_time(0.0), format_time(1793527200.25), parse_time(format_time(1e9 + 1e-7)) >= 1e9 + 1e-7
    ('1970-01-01T00:00:00Z', '2026-11-01T10:00:00.250000Z', True)
    >>> format_time(1793527200.25, "seconds"), format_time(1e18)
    ('2026-11-01T10:00:00Z', '1e+18')
    """
    try:
        micros = round(seconds * 1e6)
        if micros / 1e6 < seconds:
            micros += 1
        moment = _EPOCH + timedelta(microseconds=micros)
    except (ValueError, OverflowError):
        return str(seconds)
    return moment.isoformat(timespec=timespec).replace("+00:00", "Z")


def parse_iso(text: str) -> float:
    """Seconds since 1970 of an ISO 8601 time, which is UTC unless it has an offset.

    >>> parse_iso("2026-11-01T11:00:00+01:00"), parse_iso("2026-11-01")
    (1793527200.0, 1793491200.0)

    Raises
    ------
    ValueError
        It is not one.
    """
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def parse_time(text: str) -> float:
    """Seconds since 1970 of an ISO 8601 time (UTC unless it has an offset) or of a number of seconds.

    A ``+`` that a URL turned into a space is understood.

    >>> parse_time("2026-11-01T10:00:00Z"), parse_time("2026-11-01T11:00:00 01:00"), parse_time("1793527200")
    (1793527200.0, 1793527200.0, 1793527200.0)

    Raises
    ------
    ValueError
        It is neither.
    """
    try:
        seconds = float(text)
    except ValueError:
        head, sign, zone = text.rpartition(" ")
        try:
            seconds = parse_iso(f"{head}+{zone}" if sign and "T" in head else text)
        except ValueError:
            raise ValueError(
                f"{text!r} is neither an ISO 8601 time such as 2026-11-01T10:00:00Z nor seconds since 1970"
            ) from None
    if not abs(seconds) < _MAX_SECONDS:
        raise ValueError(f"{text!r} is not a time in seconds since 1970")
    return seconds


def format_age(seconds: float) -> str:
    """An age for people, in the largest unit of which there are at least two.

    >>> format_age(0.42), format_age(75), format_age(7200), format_age(259200)
    ('0.4 s', '75 s', '2 h', '3 d')
    """
    if seconds < 10:
        return f"{max(0.0, seconds):.1f} s"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def parse_duration(text: str | float) -> float:
    """Seconds of a duration such as ``250ms``, ``10s``, ``5m``, ``1h``, ``7d`` or a bare number of seconds.

    >>> parse_duration("1.5m"), parse_duration("250ms"), parse_duration(3)
    (90.0, 0.25, 3.0)

    Raises
    ------
    ValueError
        It is not one.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?|\.[0-9]+)\s*(ms|s|m|h|d|)\s*", str(text))
    if match is None:
        raise ValueError(f"{text!r} is not a duration such as 250ms, 10s, 5m, 1h or 7d")
    return float(match[1]) * _UNITS.get(match[2], 1.0)


def format_duration(seconds: float) -> str:
    """A duration as `parse_duration` reads it, in the largest unit of which there is a whole number.

    >>> format_duration(3600.0), format_duration(90), format_duration(0.25), format_duration(0)
    ('1h', '90s', '250ms', '0s')
    """
    for unit in ("d", "h", "m", "s", "ms"):
        count = round(seconds / _UNITS[unit], 9)
        if count and count == int(count):
            return f"{int(count)}{unit}"
    return f"{float(seconds):.15g}s"
