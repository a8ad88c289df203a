"""Test for density valleys between clusters: fewer points between two of them than in the sparser of the two.

**The test.** The points of two clusters that are near the line through their centroids are projected on that line. The
core of a cluster is the range of the middle half of its points. If both clusters were parts of one dense group, the
density between the cores would be at least that of the sparser core; a window there with significantly fewer points is
a valley. The test does not depend on units, on tails, or on the relative width or weight of the clusters.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from streamkm.models.weighted_rows import Labels, Reals

MIN_STANDARD_ERRORS = 3.5
"""Standard errors by which the number of points in a window must be below the expected one."""
WINDOW_WIDTHS, WINDOW_POSITIONS = (1.0, 0.5, 0.25), 9
"""Widths of the windows, as shares of the distance between two cores and at most that of the sparser core; and the
number of their positions."""
FENCE_QUANTILE, FENCE_RANGES, MAX_FAR_SHARE = 0.05, 3.0, 0.02
"""A row is far if it lies, in some field, more than FENCE_RANGES times the range between this quantile and its opposite
beyond one of them; if more than MAX_FAR_SHARE of the weight is far, no row is."""
NEAR_LINE_SHARE = 0.75
"""Share of the points of two clusters that counts as near the line through their centroids."""
_MAX_LEVELS, _LEVEL_RESOLUTION = 50, 1e-3
"""A field is discrete if it has at most this many distinct values, at a resolution of this share of its range."""

Flags = NDArray[np.bool_]


def quantiles(values: Reals, weights: Reals, wanted: tuple[float, ...]) -> list[float]:
    """Weighted quantiles of (n,) values: the lowest ones with at least the wanted shares of the weight up to them."""
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order])
    places = np.searchsorted(reached, np.array(wanted) * reached[-1])
    return [float(v) for v in values[order][np.minimum(places, len(values) - 1)]]


def inlier_mask(rows: Reals, weights: Reals) -> Flags:
    """(n,) mask of all rows except a few that are far from the others in some field.

    Parameters
    ----------
    rows, weights
        (n, d) and (n,), n at least 1.
    """
    inside = np.ones(len(rows), np.bool_)
    for column in rows.T:
        low, high = quantiles(column, weights, (FENCE_QUANTILE, 1.0 - FENCE_QUANTILE))
        reach = FENCE_RANGES * (high - low)
        if reach > 0.0:
            inside &= (column >= low - reach) & (column <= high + reach)
    return inside if weights[~inside].sum() <= MAX_FAR_SHARE * weights.sum() else np.ones(len(rows), np.bool_)


def jitter_discrete_fields(rows: Reals, seed: int) -> Reals:
    """Spread discrete fields of rows, (n, d), evenly between neighbouring values: gaps between these are no valleys."""
    spread = rows.copy()
    rng = np.random.default_rng(seed)
    for t, column in enumerate(rows.T):
        low, high = float(column.min()), float(column.max())
        if not high > low:
            continue
        levels = np.unique(np.round((column - low) / ((high - low) * _LEVEL_RESOLUTION)))
        if len(levels) <= _MAX_LEVELS:
            step = float(np.median(np.diff(levels))) * (high - low) * _LEVEL_RESOLUTION
            spread[:, t] += rng.uniform(-0.5 * step, 0.5 * step, len(rows))
    return spread


def all_separated(rows: Reals, weights: Reals, centroids: Reals, labels: Labels) -> bool:
    """Whether there is a valley between every two clusters.

    Parameters
    ----------
    rows, weights
        (n, d) and (n,), positive.
    centroids
        (k, d).
    labels
        (n,): nearest centroid of each row.
    """
    k = len(centroids)
    members = [np.flatnonzero(labels == j) for j in range(k)]
    far = ((centroids[:, np.newaxis] - centroids) ** 2).sum(axis=2)
    pairs = sorted((float(far[a, b]), a, b) for a in range(k) for b in range(a + 1, k))
    return all(_separated(rows, weights, centroids[a], centroids[b], members[a], members[b]) for _, a, b in pairs)


def _separated(
    rows: Reals, weights: Reals, first: Reals, second: Reals, own: NDArray[np.int64], others: NDArray[np.int64]
) -> bool:
    axis = second - first
    length = float(np.linalg.norm(axis))
    if not (length > 0.0 and len(own) and len(others)):
        return False
    places = np.concatenate([own, others])
    offsets = rows[places] - 0.5 * (first + second)
    on_line = offsets @ (axis / length)
    off_line = np.square(offsets).sum(axis=1) - on_line**2
    # Cells get narrower where they meet, which looks like a valley: ignore points far from the line.
    near_line = off_line <= np.quantile(off_line, NEAR_LINE_SHARE)
    left = np.arange(len(places)) < len(own)
    return has_valley(
        on_line[near_line & left],
        weights[places][near_line & left],
        on_line[near_line & ~left],
        weights[places][near_line & ~left],
    )


def has_valley(left: Reals, left_weights: Reals, right: Reals, right_weights: Reals) -> bool:
    """Whether there is a valley between some values and larger ones.

    Parameters
    ----------
    left, left_weights
        (n,) each.
    right, right_weights
        (m,) each.
    """
    if not (len(left) and len(right)):
        return False
    (a_low, a_high), (b_low, b_high) = (
        quantiles(v, w, (0.25, 0.75)) for v, w in ((left, left_weights), (right, right_weights))
    )
    room = b_low - a_high
    if not room > 0.0:
        return False
    # Minimum width of a core of equal values.
    least = 1e-9 * (b_high - a_low)
    cores = [
        (max(high - low, least), 0.5 * float(w.sum()), 0.5 * float(w.sum() ** 2 / np.square(w).sum()))
        for low, high, w in ((a_low, a_high, left_weights), (b_low, b_high, right_weights))
    ]
    if min(count for _, _, count in cores) <= MIN_STANDARD_ERRORS**2:
        return False  # so few points may be close by chance
    width, mass, count = min(cores, key=lambda core: core[1] / core[0])
    values, weights = np.concatenate([left, right]), np.concatenate([left_weights, right_weights])
    for part in WINDOW_WIDTHS:
        window = min(width, part * room)
        starts = np.linspace(a_high, b_low - window, WINDOW_POSITIONS)
        inside = min(float(weights[(values > at) & (values < at + window)].sum()) for at in starts)
        expected, found = window / width * count, inside / mass * count
        if expected - found > MIN_STANDARD_ERRORS * math.sqrt(expected + found):
            return True
    return False


def multimodal_fields(rows: Reals, weights: Reals) -> list[int]:
    """Indices of fields that are multimodal by themselves, whatever the units of the others.

    Parameters
    ----------
    rows, weights
        (n, d) and (n,), positive.
    """
    return [t for t in range(rows.shape[1]) if _is_multimodal(rows[:, t], weights)]


def _is_multimodal(values: Reals, weights: Reals) -> bool:
    """Split at the cut with the lowest sum of squares (2-means in one dimension), and look for a valley there."""
    order = np.argsort(values, kind="stable")
    x, w = values[order], weights[order]
    mass, sums = np.cumsum(w)[:-1], np.cumsum(w * x)[:-1]
    rest, total = w.sum() - mass, float((w * x).sum())
    if not len(mass):
        return False
    rest = np.maximum(rest, 1e-300)  # rounding may leave zero or less
    gain = np.square(sums / mass - (total - sums) / rest) * mass * rest
    cut = int(gain.argmax()) + 1
    return has_valley(x[:cut], w[:cut], x[cut:], w[cut:])
