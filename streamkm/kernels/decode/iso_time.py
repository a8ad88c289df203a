"""Parser of the common forms of ISO 8601 times, with the results of Python's ``datetime.fromisoformat``."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamkm.kernels._jit import jit

UNPARSED = np.nan
"""Returned for text of another form."""

_EXACT_MICROSECONDS = 1 << 53
"""Microseconds from which on float64 is not exact."""

_MONTH_DAYS = np.array([31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31])


@jit()
def two_digits(data: NDArray[np.uint8], pos: int) -> int:
    """Parse the two decimal digits at `pos` of data, (bytes,); -1000 if they are not digits."""
    tens, ones = data[pos] - np.uint8(48), data[pos + 1] - np.uint8(48)
    return 10 * int(tens) + int(ones) if tens <= 9 and ones <= 9 else -1000


@jit()
def days_since_1970(year: int, month: int, day: int) -> int:
    """Count the days from 1970-01-01 to a date of the proleptic Gregorian calendar."""
    # Years that begin in March have their leap day at the end (Hinnant, "chrono-compatible low-level date algorithms").
    if month <= 2:
        year -= 1
        month += 12
    of_year = (153 * (month - 3) + 2) // 5 + day - 1
    return year * 365 + year // 4 - year // 100 + year // 400 + of_year - 719468


@jit()
def parse_time(data: NDArray[np.uint8], begin: int, end: int) -> float:  # noqa: PLR0911  # one return per kind of mismatch
    """Parse ``YYYY-MM-DD[(T| )HH:MM:SS[.f{1,6}][Z|(+|-)HH:MM]]``; UTC if there is no zone.

    Parameters
    ----------
    data
        (bytes,) uint8.
    begin, end
        The text is ``data[begin:end]``.

    Returns
    -------
    float
        Seconds since 1970, or NaN if the text has another form.
    """
    size = end - begin
    if size != 10 and size < 19:
        return UNPARSED
    year = 100 * two_digits(data, begin) + two_digits(data, begin + 2)
    month, day = two_digits(data, begin + 5), two_digits(data, begin + 8)
    if data[begin + 4] != 45 or data[begin + 7] != 45 or year < 1 or month < 1 or month > 12 or day < 1:
        return UNPARSED
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    if day > _MONTH_DAYS[month - 1] + (1 if month == 2 and leap else 0):
        return UNPARSED
    micros = 86_400_000_000 * days_since_1970(year, month, day)
    if size > 10:
        hour, minute, second = two_digits(data, begin + 11), two_digits(data, begin + 14), two_digits(data, begin + 17)
        if (data[begin + 10] != 84 and data[begin + 10] != 32) or data[begin + 13] != 58 or data[begin + 16] != 58:
            return UNPARSED
        if hour < 0 or hour > 23 or minute < 0 or minute > 59 or second < 0 or second > 59:
            return UNPARSED
        micros += 1_000_000 * (3600 * hour + 60 * minute + second)
        pos = begin + 19
        if pos < end and data[pos] == 46:
            pos += 1
            unit = 100_000
            first = pos
            while pos < end and pos < first + 6:
                digit = data[pos] - np.uint8(48)
                if digit > 9:
                    break
                micros += unit * int(digit)
                unit //= 10
                pos += 1
            if pos == first:
                return UNPARSED
        if pos < end and data[pos] == 90:
            pos += 1
        elif end - pos == 6 and (data[pos] == 43 or data[pos] == 45) and data[pos + 3] == 58:
            hour, minute = two_digits(data, pos + 1), two_digits(data, pos + 4)
            if hour < 0 or hour > 23 or minute < 0 or minute > 59:
                return UNPARSED
            shift = 60_000_000 * (60 * hour + minute)
            micros += shift if data[pos] == 45 else -shift
            pos = end
        if pos != end:
            return UNPARSED
    if abs(micros) >= _EXACT_MICROSECONDS:
        return UNPARSED  # the microseconds would not be exact as a float
    return micros / 1e6
