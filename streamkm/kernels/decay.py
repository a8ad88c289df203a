"""Exponential decay of weights: ``2 ** -age``, with ages in half-lives."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from streamkm.kernels._jit import jit

MAX_AGE = 1080.0
"""Half-lives beyond which the weight is zero: the smallest float64 is ``2 ** -1074``."""


@jit(inline=True)
def _series(x: float) -> float:
    """Compute ``(2 ** x - 1) / x`` for x in [-1/2, 1/2]: the sum of ``ln(2) ** n / n! * x ** (n - 1)`` up to n = 13."""
    s = 25.678435993488206e-12 + x * 1.3691488853904128e-12
    s = 7.054911620801123e-09 + x * (4.4455382718708116e-10 + x * s)
    s = 1.321548679014431e-06 + x * (1.01780860092397e-07 + x * s)
    s = 1.540353039338161e-04 + x * (1.5252733804059841e-05 + x * s)
    s = 9.618129107628477e-03 + x * (1.3333558146428443e-03 + x * s)
    s = 0.24022650695910072 + x * (0.05550410866482158 + x * s)
    return 0.6931471805599453 + x * s


@jit()
def half_power(age: float) -> float:
    """Compute ``2 ** -age`` with identical bits on every processor; 0 beyond `MAX_AGE`.

    C libraries choose an implementation of ``exp2`` by processor, and these differ in the last bit.

    Parameters
    ----------
    age
        In half-lives, not negative.
    """
    if not age < MAX_AGE:
        return 0.0
    whole = math.floor(age + 0.5)
    x = whole - age
    power = 1.0 + x * _series(x)
    return power if whole == 0.0 else math.ldexp(power, -int(whole))


@jit()
def lost_share(age: float) -> float:
    """Compute ``1 - 2 ** -age``, accurate for small ages too.

    Parameters
    ----------
    age
        In half-lives, not negative.
    """
    if age > 0.5:
        return 1.0 - half_power(age)
    return age * _series(-age)


@jit()
def decay_by_position(row_weights: NDArray[np.float64], half_life: float, decayed: NDArray[np.float64]) -> float:
    """Decay each row by the weight of the rows after it.

    A row of weight w counts as w successive rows of weight 1, of which the last has age 0: their decayed weights sum to
    ``(1 - q**w) / (1 - q)``, where q is the decay per unit of weight.

    Parameters
    ----------
    row_weights
        IN (n,), or (0,) for ones.
    half_life
        In points: the weight after which a row's weight is halved.
    decayed
        OUT (n,).

    Returns
    -------
    float
        Weight of all rows before decay.
    """
    weighted = len(row_weights) > 0
    one = lost_share(1.0 / half_life)
    after = 0.0
    for i in range(len(decayed) - 1, -1, -1):
        weight = row_weights[i] if weighted else 1.0
        decayed[i] = half_power(after / half_life)
        if weight != 1.0:
            decayed[i] *= lost_share(weight / half_life) / one
        after += weight
    return after


@jit()
def decay_by_time(
    row_weights: NDArray[np.float64],
    times: NDArray[np.float64],
    clock: float,
    half_life: float,
    decayed: NDArray[np.float64],
) -> float:
    """Decay each row by the difference of its event time to the newest one.

    A row without event time gets the newest time before it.

    Parameters
    ----------
    row_weights
        IN (n,), or (0,) for ones.
    times
        IN (n,): event times in seconds, NaN if unknown.
    clock
        Newest event time before these rows; NaN if unknown.
    half_life
        In seconds.
    decayed
        OUT (n,).

    Returns
    -------
    float
        Newest event time, including these rows; NaN if unknown.
    """
    weighted = len(row_weights) > 0
    newest = clock
    for i in range(len(times)):
        time = times[i]
        if math.isnan(time):
            decayed[i] = newest
        else:
            decayed[i] = time
            if not newest >= time:
                newest = time
    for i in range(len(times)):
        age = newest - decayed[i]
        weight = row_weights[i] if weighted else 1.0
        decayed[i] = weight * half_power(age / half_life) if age > 0.0 else weight
    return newest


@jit()
def pieces(
    row_weights: NDArray[np.float64],
    times: NDArray[np.float64],
    clock: float,
    half_life: float,
    most: float,
    least: int,
    stops: NDArray[np.int64],
) -> int:
    """Cut a batch into pieces of about a given number of half-lives.

    Parameters
    ----------
    row_weights
        IN (n,), or (0,) for ones.
    times
        IN (n,): event times in seconds, NaN if unknown; or (0,) for a half-life in points.
    clock, half_life
        As in `decay_by_time`.
    most
        Half-lives after which a piece ends.
    least
        Minimum number of rows of a piece.
    stops
        OUT (n,): ends of the pieces.

    Returns
    -------
    int
        Number of pieces.
    """
    n = len(stops)
    timed = len(times) > 0
    weighted = len(row_weights) > 0
    count = 0
    start = 0
    passed = 0.0
    newest = clock
    for i in range(n):
        if not timed:
            passed += row_weights[i] if weighted else 1.0
        elif times[i] > newest:
            passed += times[i] - newest
            newest = times[i]
        elif math.isnan(newest):
            newest = times[i]
        if passed > most * half_life and i + 1 - start >= least and i + 1 < n:
            stops[count] = i + 1
            count += 1
            start = i + 1
            passed = 0.0
    stops[count] = n
    return count + 1
