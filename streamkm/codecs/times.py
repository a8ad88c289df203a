"""Event times: numbers since the epoch in some unit, or ISO 8601 text."""

from __future__ import annotations

import itertools
import math

import numpy as np
from numpy.typing import NDArray

from streamkm.errors import SettingsError
from streamkm.times import parse_iso

UNITS = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
"""Units per second."""
# (limit, units per second): seconds stay below the first limit until the year 5138; as milliseconds it is 1973.
_AUTO = ((1e11, 1.0), (1e14, 1e3), (1e17, 1e6), (math.inf, 1e9))


_INFINITIES = np.array(
    # In microseconds, in milliseconds, and for a date in days.
    [9223372036825200000.0, -9223372036832400000.0, 9223372036825200.0, -9223372036832400.0, -2147472692.0]
)


def validate_unit(unit: str) -> str:
    """Check a unit of time.

    Raises
    ------
    SettingsError
        The unit is unknown.
    """
    if unit != "auto" and unit not in UNITS:
        raise SettingsError(
            f"{unit!r} is not a unit of time", where="time_unit", hint=f"Known: auto, {', '.join(UNITS)}"
        )
    return unit


def to_seconds(times: NDArray[np.float64], unit: str) -> NDArray[np.float64]:
    """Convert numbers to seconds since the epoch; with the unit "auto" each by its size.

    Parameters
    ----------
    times
        (n,) numbers.
    unit
        "s", "ms", "us", "ns" or "auto".
    """
    if unit != "auto":
        return times / UNITS[unit]
    size = np.abs(times)
    scale = np.ones_like(times)
    for (limit, _), (_, divisor) in itertools.pairwise(_AUTO):
        scale[size >= limit] = divisor
    return times / scale


def is_debezium_infinity(times: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(n,) whether each number is Debezium's encoding of PostgreSQL's ``infinity`` or ``-infinity``, in any unit.

    Debezium's reference, PostgreSQL connector, "Temporal types": the largest and the smallest time, in microseconds.
    """
    return np.isin(times, _INFINITIES)


def parse_iso_or_none(text: str) -> float | None:
    """Seconds since 1970 of ISO 8601 text, which is UTC unless it has an offset; None if it is not a time."""
    try:
        return parse_iso(text)
    except ValueError:
        return None
