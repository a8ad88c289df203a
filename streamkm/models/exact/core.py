"""The core of the exact algorithm: a frame, additive sums, and the step that moves centroids.

An iteration over points that are divided in any way (threads, chunks, files, machines) is

1. `choose_frame`, once: the `Frame` in which all parts compare and sum their points;
2. each part labels its rows and adds them to its own `Sums` (`streamkm.models.exact.assign`);
3. `move_centroids` takes the sums of all parts.

`streamkm.models.exact.lloyd` drives it for points in memory, with a part per thread, and out of core, with windows of
rows one after the other: `ExactKMeans` and `streamkm.recompute.fitting.fit_points`.

**The result does not depend on the division.** Labels are those of a plain float64 loop, so they depend on the row and
the centroids only. In a given frame, a row adds to its cluster the integers

    h = round(v * LIMB),  l = round((v * LIMB - h) * LIMB),  v = (raw - origin) * scale * w,  w = weight / weight_unit

for each dimension, and the same with ``v = w`` (`streamkm.kernels.exact.sums.add_row`), which depend on the row and the
frame only. Removing a row subtracts these integers, because rounding is symmetric. As |v| <= 1, both are at
most 2**31 in absolute value: the sums of up to 2**32 rows fit into 64 bits, and adding such integers is associative and
commutative. So the `Sums` of a set of labelled rows are the same integers for every division into parts, every order of
rows within a part and of merging the parts, and whatever was added and removed before. `move_centroids` is a function
of the sums over all parts, the frame and the centroids before; so its bits are the same too, and with them, step by
step, all labels and centroids. The frame itself follows from the smallest and largest value of each column and from an
exact sum of all rows in a first frame, which do not depend on the division either.

`Sums` are merged by stacking their parts along the first axis; `Sums.total` reduces them to one part.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from streamkm.kernels.exact.distances import sum_rows
from streamkm.kernels.exact.layout import column_ranges
from streamkm.kernels.exact.sums import Frame, Real, Sums, move_centroids
from streamkm.models.exact.storage import Storage, release
from streamkm.models.exact.threads import ThreadTeam

__all__ = ["Frame", "Sums", "choose_frame", "move_centroids", "power_of_two"]

_MAX_UNCENTERED_RATIO = 30.0
"""Float32 points of at most this multiple of half their range are compared in raw coordinates, without a copy."""

_ORIGIN_STEPS = 2.0**16
"""Origins are rounded to this fraction of the largest coordinate."""


def choose_frame(raw: Real, weights: NDArray[np.float64] | None, team: ThreadTeam, storage: Storage) -> Frame:
    """Choose the frame of points, by two passes over them at most.

    Parameters
    ----------
    raw
        (n, d) float32 or float64, finite, read-only.
    weights
        (n,) not negative, or None for ones.
    team
        Threads to use.
    storage
        Divides the rows into chunks that may be in memory.

    Returns
    -------
    Frame
        The same for any order and division of the rows.
    """
    n, d = raw.shape
    low, high = np.full(d, np.inf), np.full(d, -np.inf)
    lows, highs = np.full((team.n_threads, d), np.inf), np.full((team.n_threads, d), -np.inf)
    for a, b in storage.chunks(n, d * raw.itemsize):
        team.divide(a, b, lambda part, i, j: column_ranges(raw[i:j], lows[part], highs[part]), 0.3 * (b - a) * d)
        low, high = np.minimum(low, lows.min(axis=0)), np.maximum(high, highs.max(axis=0))
        release(raw, a, b)
    middle, reach = low / 2 + high / 2, high / 2 - low / 2
    size = float(np.maximum(-low, high).max())
    as_given = raw.dtype == np.float32 and 1e-12 < size < 1e12 and size <= _MAX_UNCENTERED_RATIO * float(reach.max())
    origin = np.zeros(d)
    if not as_given:
        sums = Sums.zeros(team.n_threads, 1, d)
        scale = power_of_two(float(reach.max()))
        for a, b in storage.chunks(n, d * raw.itemsize):
            team.divide(a, b, lambda part, i, j: sum_rows(raw[i:j], middle, scale, sums.limbs[part]), 3.0 * (b - a) * d)
            release(raw, a, b)
        mean = middle + sums.values[0, :d] / n / scale
        # Rounded, so that subtracting it rounds as little as possible.
        origin = np.round(mean * scale * _ORIGIN_STEPS) / _ORIGIN_STEPS / scale
    reach = np.maximum(high - origin, origin - low)
    scale = power_of_two(float(reach.max()))
    unit = 1.0 if as_given else scale
    extent = float(np.sqrt(((reach * unit) ** 2).sum()))
    return Frame(origin, scale, unit, extent, _weight_unit(weights, storage))


def _weight_unit(weights: NDArray[np.float64] | None, storage: Storage) -> float:
    """Choose the unit of weights: the weight that all rows have, or a power of two larger than all."""
    if weights is None or not len(weights):
        return 1.0
    lowest, largest = math.inf, 0.0
    for a, b in storage.chunks(len(weights), 16):
        lowest, largest = min(lowest, float(weights[a:b].min())), max(largest, float(weights[a:b].max()))
        release(weights, a, b)
    return largest if lowest == largest > 0.0 else math.ldexp(1.0, math.frexp(largest)[1])


def power_of_two(largest: float) -> float:
    """Power of two that scales a number to between 0.5 and 1."""
    return math.ldexp(1.0, max(-1000, min(1000, -math.frexp(largest)[1]))) if largest > 0 else 1.0
