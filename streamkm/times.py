"""Moments as text: RFC 3339 in UTC; one that came from here finds the same snapshot again as ``?at=``."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def iso(t: float) -> str:
    """RFC 3339 of seconds since 1970, never earlier than `t`, so that ``?at=`` with it includes what happened at `t`.

    >>> iso(0.0), iso(1793527200.25), parse_time(iso(1e9 + 1e-7)) >= 1e9 + 1e-7
    ('1970-01-01T00:00:00Z', '2026-11-01T10:00:00.250000Z', True)
    """
    micros = round(t * 1e6)
    if micros / 1e6 < t:
        micros += 1
    return (_EPOCH + timedelta(microseconds=micros)).isoformat().replace("+00:00", "Z")


def parse_time(text: str) -> float:
    """Seconds since 1970 of an ISO 8601 time (UTC unless it says otherwise) or a number of seconds.

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
            time = datetime.fromisoformat(f"{head}+{zone}" if sign and "T" in head else text)
        except ValueError:
            raise ValueError(
                f"{text!r} is neither an ISO 8601 time such as 2026-11-01T10:00:00Z nor seconds since 1970"
            ) from None
        seconds = (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
    if not abs(seconds) < 1e11:
        raise ValueError(f"{text!r} is no time in seconds since 1970")
    return seconds
