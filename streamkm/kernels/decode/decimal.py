"""Parser of decimal numbers, correctly rounded to float64 like Python's ``float``.

The method is Lemire's ("Number parsing at a gigabyte per second", 2021, section 5; with Eisel's wider product): the
decimal mantissa times a 128-bit power of ten. Numbers that it cannot decide are refused, never rounded incorrectly:
more than 19 digits, a tie between two floats, a result that is subnormal or infinite.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamkm.kernels._jit import jit

MIN_POWER, MAX_POWER = -326, 308
"""Range of the powers of ten in the table: beyond it, results are zero, subnormal or infinite."""

_BIAS = 1023
"""Exponent bias of float64."""

REFUSED = -1
"""Returned as the next position for input that this module does not decide."""


def _powers() -> NDArray[np.uint64]:
    """Table of the 128 leading bits of 10**e, truncated, as (high, low) for each e in [MIN_POWER, MAX_POWER]."""
    table = np.empty((MAX_POWER - MIN_POWER + 1, 2), np.uint64)
    for i, e in enumerate(range(MIN_POWER, MAX_POWER + 1)):
        bits = (10**e) << 256 if e >= 0 else (1 << 2048) // 10**-e
        bits >>= bits.bit_length() - 128
        table[i] = bits >> 64, bits & (2**64 - 1)
    return table


_POWERS = _powers()
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)
_ONE = np.uint64(1)
_NINE_BITS = np.uint64(0x1FF)
_FRACTION = np.uint64((1 << 52) - 1)
_EXACT = np.uint64(1 << 53)
_TENS = np.array([float(10**e) for e in range(23)])
_SIGN = np.uint64(1 << 63)


@jit()
def multiply(a: np.uint64, b: np.uint64) -> tuple[np.uint64, np.uint64]:
    """Compute the 128-bit product of two 64-bit numbers, as (high, low)."""
    a0, a1 = a & _LOW, a >> _32
    b0, b1 = b & _LOW, b >> _32
    low = a0 * b0
    middle = a1 * b0 + (low >> _32)
    carry = a0 * b1 + (middle & _LOW)
    return a1 * b1 + (middle >> _32) + (carry >> _32), (carry << _32) | (low & _LOW)


@jit()
def leading_zeros(x: np.uint64) -> int:
    """Count the leading zero bits of ``x > 0``."""
    n = 0
    for step in (32, 16, 8, 4, 2, 1):
        if x >> np.uint64(64 - step) == 0:
            n += step
            x <<= np.uint64(step)
    return n


@jit()
def nearest_float64(mantissa: np.uint64, power: int, negative: bool) -> tuple[bool, np.uint64]:
    """Find the float64 nearest to ``mantissa * 10**power``, ``mantissa > 0``.

    Returns
    -------
    tuple
        Whether it could be decided, and the bits of the float64.
    """
    if power < MIN_POWER or power > MAX_POWER:
        return False, np.uint64(0)
    zeros = leading_zeros(mantissa)
    mantissa <<= np.uint64(zeros)
    exponent = ((217706 * power) >> 16) + 64 + _BIAS - zeros
    row = power - MIN_POWER
    high, low = multiply(mantissa, _POWERS[row, 0])
    if high & _NINE_BITS == _NINE_BITS and low + mantissa < mantissa:
        # The truncated 64 bits of the power could carry into the result: include them.
        more, rest = multiply(mantissa, _POWERS[row, 1])
        merged = low + more
        if merged < low:
            high += _ONE
        if high & _NINE_BITS == _NINE_BITS and merged + _ONE == 0 and rest + mantissa < mantissa:
            return False, np.uint64(0)
        low = merged
    top = high >> np.uint64(63)
    fraction = high >> (top + np.uint64(9))
    exponent -= 1 if top == 0 else 0
    if low == 0 and high & _NINE_BITS == 0 and fraction & np.uint64(3) == _ONE:
        return False, np.uint64(0)  # halfway between two floats
    fraction += fraction & _ONE
    fraction >>= _ONE
    if fraction >> np.uint64(53) > 0:
        fraction >>= _ONE
        exponent += 1
    if exponent < 1 or exponent >= 0x7FF:
        return False, np.uint64(0)
    bits = (np.uint64(exponent) << np.uint64(52)) | (fraction & _FRACTION)
    return True, bits | _SIGN if negative else bits


@jit()
def parse_number(  # noqa: PLR0911  # one return per kind of refusal
    data: NDArray[np.uint8], pos: int, end: int
) -> tuple[int, np.uint64]:
    """Parse one JSON number.

    Parameters
    ----------
    data
        (bytes,) uint8.
    pos, end
        Start of the number, and end of the data that may be read.

    Returns
    -------
    tuple
        (next position, bits of the float64); the position is `REFUSED` if it is not a JSON number, or cannot be decided
        here.
    """
    refused = (REFUSED, np.uint64(0))
    negative = data[pos] == 45
    if negative:
        pos += 1
    mantissa = np.uint64(0)
    digits = 0  # significant digits, without leading zeros
    power = 0
    first = pos
    while pos < end:
        digit = data[pos] - np.uint8(48)
        if digit > 9:
            break
        mantissa = mantissa * np.uint64(10) + np.uint64(digit)
        digits += 1 if digits > 0 or digit > 0 else 0
        pos += 1
    if pos == first or (data[first] == 48 and pos > first + 1):
        return refused
    if pos < end and data[pos] == 46:
        pos += 1
        first = pos
        while pos < end:
            digit = data[pos] - np.uint8(48)
            if digit > 9:
                break
            mantissa = mantissa * np.uint64(10) + np.uint64(digit)
            digits += 1 if digits > 0 or digit > 0 else 0
            pos += 1
        if pos == first:
            return refused
        power = first - pos
    # 19 digits always fit into 64 bits.
    if digits > 19:
        return refused
    if pos < end and data[pos] | 32 == 101:
        pos += 1
        minus = False
        if pos < end and (data[pos] == 43 or data[pos] == 45):
            minus = data[pos] == 45
            pos += 1
        first = pos
        value = 0
        while pos < end:
            digit = data[pos] - np.uint8(48)
            if digit > 9:
                break
            value = value * 10 + int(digit)
            pos += 1
        if pos == first or pos > first + 3:
            return refused
        power += -value if minus else value
    if mantissa == 0:
        # "-0" is the integer 0, "-0.0" a float: left to the strict parser.
        return refused if negative else (pos, np.uint64(0))
    decided, bits = nearest_float64(mantissa, power, negative)
    if not decided and mantissa <= _EXACT and power >= -22 and power <= 22:
        # Mantissa and power are exact floats, so there is only one rounding (Clinger 1990).
        value_of = np.float64(mantissa)
        exact = value_of / _TENS[-power] if power < 0 else value_of * _TENS[power]
        return pos, np.float64(-exact if negative else exact).view(np.uint64)
    return (pos, bits) if decided else refused
