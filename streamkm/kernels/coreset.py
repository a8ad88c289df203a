"""A coreset of weighted rows: sampling, calibration and thinning.

Importance sampling for k-means with the sensitivities of Feldman and Langberg (2011), computed from the centroids that
the rows are assigned to, as in Schwiegelshohn and Sheikh-Omar (2022). The sums over each stratum (the rows of one
cluster) are recorded exactly, and the sample is calibrated to them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamkm.kernels._jit import jit
from streamkm.kernels.assign import Real
from streamkm.kernels.kd_order import order_by_kd_tree
from streamkm.kernels.random import uniform
from streamkm.kernels.search import COLUMN_BLOCK, lay_columns
from streamkm.kernels.update import AssignedRows

DISTANCE_SHARE, CLUSTER_SHARE = 0.5, 0.4
"""Shares of the sample that are drawn by distance, and evenly by cluster; the rest is drawn by weight."""

UNSAMPLED, CALIBRATED = -1, -2
"""Strata of rows that represent only themselves, and of rows that are calibrated."""

MEAN_TOLERANCE = 1e-12
"""Means are equal up to this share of their distance from the origin."""

MAX_WEIGHT_FACTOR = 2.0
"""Maximum factor by which calibrating a column increases or reduces the weight of a row."""


class SampleBuffer(NamedTuple):
    """Sampled rows, and the sums that they are calibrated to.

    Attributes
    ----------
    rows
        (capacity, d) float64, in the unit of the stream.
    weights
        (capacity,) float64: number of rows of the stream that each row represents, inflated.
    strata
        (capacity,) int32: cluster of each row, `UNSAMPLED` or `CALIBRATED`.
    sums
        (k, d + 1) float64: inflated sums of ``weight * (row - origin)``, and of weights, of each stratum, over all rows
        that do not represent themselves.
    """

    rows: NDArray[np.float64]
    weights: NDArray[np.float64]
    strata: NDArray[np.int32]
    sums: NDArray[np.float64]


class WeightedRows(NamedTuple):
    """Weighted rows with their clusters; read-only.

    Attributes
    ----------
    rows
        (n, d) float64.
    weights
        (n,) float64.
    labels
        (n,) int32: each row's cluster.
    squared
        (n,) float64: squared distance to its centroid.
    """

    rows: NDArray[np.float64]
    weights: NDArray[np.float64]
    labels: NDArray[np.int32]
    squared: NDArray[np.float64]


@jit(allocates=True)
def sample_rows(
    X: Real,
    row_weights: NDArray[np.float64],
    assignment: AssignedRows,
    stats: NDArray[np.float64],
    origin: NDArray[np.float64],
    size: float,
    inflation: float,
    filled: int,
    buffer: SampleBuffer,
    rng: NDArray[np.uint64],
) -> int:
    """Sample rows of a batch into the buffer, and add the whole batch to the sums of its strata.

    A row is sampled with probability ``p = size * w * (DISTANCE_SHARE * d2 / cost + CLUSTER_SHARE / (clusters * W) +
    rest / mass)`` and represents ``w / p``; a row with p of at least one represents itself. Sampling is stratified and
    jittered along the sum of p, one row per unit, so that the number of rows hardly varies and alternating streams are
    not aliased.

    Parameters
    ----------
    X
        IN (n, d): the batch.
    row_weights
        IN (n,), or (0,) for ones.
    assignment
        IN: of the batch, from `learn_batch`.
    stats
        IN (k, 3): as in `learn_batch`, the batch included.
    origin
        IN (d,): origin of the buffer's sums.
    size
        Number of rows to which the whole stream is to be sampled.
    inflation
        Factor on the weights of new rows, instead of a decay of old ones (forward decay).
    filled
        Number of rows in the buffer.
    buffer
        INOUT, with room for ``size + 2`` rows.
    rng
        INOUT (1,) uint64.

    Returns
    -------
    int
        Number of rows in the buffer.
    """
    labels, distances, totals, batch_origin = assignment
    rows, weights, strata, sums = buffer
    n, d = X.shape
    k = len(stats)
    weighted = len(row_weights) > 0
    cost = 0.0
    mass = 0.0
    clusters = 0
    for j in range(k):
        mass += stats[j, 0]
        cost += stats[j, 1]
        clusters += stats[j, 0] > 0.0
    by_distance = _per_unit(size * DISTANCE_SHARE, cost)
    by_cluster = np.empty(k)
    for j in range(k):
        by_cluster[j] = size * (
            _per_unit(CLUSTER_SHARE, clusters * stats[j, 0]) + _per_unit(1.0 - DISTANCE_SHARE - CLUSTER_SHARE, mass)
        )
    mixed = np.zeros(k, np.bool_)  # clusters with rows that represent themselves
    end = n  # from here on there is no room for them
    reached = 0.0
    unit = 0.0
    target = uniform(rng)
    for i in range(n):
        w = row_weights[i] if weighted else 1.0
        j = labels[i]
        p = w * (by_distance * distances[i] + by_cluster[j])
        if p < 1.0:
            reached += p
            while reached >= target and p > 0.0 and filled < len(weights):
                for t in range(d):
                    rows[filled, t] = X[i, t]
                weights[filled] = w * inflation / p
                strata[filled] = j
                filled += 1
                unit += 1.0
                target = unit + uniform(rng)
        elif filled < len(weights):
            for t in range(d):
                rows[filled, t] = X[i, t]
            weights[filled] = w * inflation
            strata[filled] = UNSAMPLED
            filled += 1
            mixed[j] = True
        else:
            end = min(end, i)
    # Sums of clusters with rows that represent themselves are computed without these rows, not by subtracting them: the
    # rounding errors of heavy rows would exceed light ones. Few batches have such rows.
    mix = False
    for j in range(k):
        gained = totals[j, d]
        if mixed[j]:
            mix = True
        elif gained > 0.0:
            sums[j, d] += gained * inflation
            for t in range(d):
                sums[j, t] += (totals[j, t] + gained * (batch_origin[t] - origin[t])) * inflation
    if mix:
        for i in range(n):
            j = labels[i]
            if mixed[j]:
                w = row_weights[i] if weighted else 1.0
                if w * (by_distance * distances[i] + by_cluster[j]) < 1.0 or i >= end:
                    sums[j, d] += w * inflation
                    for t in range(d):
                        sums[j, t] += w * inflation * (X[i, t] - origin[t])
    return filled


@jit(inline=True)
def _per_unit(share: float, whole: float) -> float:
    """Divide a share by a whole; 0 if the whole is zero, infinite, or so small that the quotient overflows."""
    each = share / whole if whole > 0.0 else 0.0
    return each if each < np.inf else 0.0


@jit(allocates=True)
def calibrate(
    first: int,
    filled: int,
    rows: NDArray[np.float64],
    weights: NDArray[np.float64],
    strata: NDArray[np.int32],
    origin: NDArray[np.float64],
    sums: NDArray[np.float64],
) -> int:
    """Calibrate each stratum to its exact mass and mean, without moving values that many rows share.

    In each dimension, a stratum has an anchor: the value of more than half of all rows, if the stratum has it too; else
    the value of more than half of the stratum; else the mean of the stratum. If the anchor is such a shared value,
    weights are adjusted first (`_adjust_weights`). The remaining difference of the means is removed by shifting rows in
    proportion to their squared distance from the anchor: rows at the anchor stay, and far rows, which cause most of the
    sampling error, move most. If all sampled rows of a stratum are at the anchor, its heaviest row is moved.

    Parameters
    ----------
    first, filled
        Rows of [first, filled) are calibrated.
    rows, weights, strata
        INOUT (capacity, d), (capacity,), (capacity,): the buffer, with room for k more rows: a stratum without sampled
        rows gets its mean as a row. Afterwards all strata are `CALIBRATED`.
    origin
        IN (d,): origin of `sums`.
    sums
        INOUT (k, d + 1): as in `SampleBuffer`; zero afterwards.

    Returns
    -------
    int
        Number of rows in the buffer.
    """
    k, d = sums.shape[0], sums.shape[1] - 1
    anchors = np.zeros((k, d))
    shared = _shared_values(first, filled, rows, weights, strata, anchors)
    for t in range(d):
        if shared[:, t].any():
            _adjust_weights(first, filled, rows[:, t], weights, strata, origin[t], sums[:, t], sums[:, d], shared[:, t])
    sampled = np.zeros((k, d + 1))
    for i in range(first, filled):
        j = strata[i]
        if j >= 0:
            sampled[j, d] += weights[i]
            for t in range(d):
                sampled[j, t] += weights[i] * (rows[i, t] - origin[t])
    factors = np.zeros(k)
    shifts = np.zeros((k, d))
    end = filled
    left = 0.0
    for j in range(k):
        if not sums[j, d] > 0.0:
            continue
        if sampled[j, d] > 0.0:
            factors[j] = sums[j, d] / sampled[j, d]
            for t in range(d):
                mean = sampled[j, t] / sampled[j, d]
                shifts[j, t] = sums[j, t] / sums[j, d] - mean
                if not shared[j, t]:
                    anchors[j, t] = origin[t] + mean
                if abs(shifts[j, t]) <= MEAN_TOLERANCE * abs(mean):
                    shifts[j, t] = 0.0
        elif end < len(weights):
            for t in range(d):
                rows[end, t] = origin[t] + sums[j, t] / sums[j, d]
            weights[end] = sums[j, d]
            end += 1
        else:
            left += sums[j, d]
    _shift_rows(first, filled, rows, weights, strata, sampled[:, d], anchors, shifts)
    for i in range(first, filled):
        if strata[i] >= 0:
            weights[i] *= factors[strata[i]]
    for i in range(first, end):
        strata[i] = CALIBRATED
    if end > first:  # without room for a row, the mean of a stratum is lost, but not its mass
        weights[end - 1] += left
    sums.fill(0.0)
    return end


@jit(allocates=True)
def _shared_values(
    first: int,
    filled: int,
    rows: NDArray[np.float64],
    weights: NDArray[np.float64],
    strata: NDArray[np.int32],
    anchors: NDArray[np.float64],
) -> NDArray[np.bool_]:
    """Find the shared values that `calibrate` keeps: written to OUT (k, d) anchors; returns a (k, d) mask of them."""
    k, d = anchors.shape
    candidates = np.zeros((k + 1, d))  # by stratum; the last row is for all rows
    counters = np.zeros((k + 1, d))
    for i in range(filled):
        for t in range(d):
            _vote(rows[i, t], weights[i], candidates, counters, k, t)
            if i >= first and strata[i] >= 0:
                _vote(rows[i, t], weights[i], candidates, counters, strata[i], t)
    held = np.zeros((k + 1, d))  # weight of the candidates
    held_of_all = np.zeros((k, d))  # weight in a stratum of the candidate of all rows
    masses = np.zeros(k + 1)
    for i in range(filled):
        j = strata[i] if i >= first else CALIBRATED
        masses[k] += weights[i]
        if j >= 0:
            masses[j] += weights[i]
        for t in range(d):
            if rows[i, t] == candidates[k, t]:
                held[k, t] += weights[i]
                if j >= 0:
                    held_of_all[j, t] += weights[i]
            if j >= 0 and rows[i, t] == candidates[j, t]:
                held[j, t] += weights[i]
    shared = np.zeros((k, d), np.bool_)
    for j in range(k):
        for t in range(d):
            if held[k, t] > masses[k] / 2.0 and held_of_all[j, t] > 0.0:
                shared[j, t] = True
                anchors[j, t] = candidates[k, t]
            elif held[j, t] > masses[j] / 2.0:
                shared[j, t] = True
                anchors[j, t] = candidates[j, t]
    return shared


@jit(inline=True)
def _vote(
    value: float, weight: float, candidates: NDArray[np.float64], counters: NDArray[np.float64], j: int, t: int
) -> None:
    """Weighted majority vote (Boyer and Moore 1991): a value with more than half of the weight stays the candidate."""
    if value == candidates[j, t]:
        counters[j, t] += weight
    elif weight > counters[j, t]:
        candidates[j, t] = value
        counters[j, t] = weight - counters[j, t]
    else:
        counters[j, t] -= weight


@jit(allocates=True)
def _adjust_weights(
    first: int,
    filled: int,
    column: NDArray[np.float64],
    weights: NDArray[np.float64],
    strata: NDArray[np.int32],
    origin: float,
    sums: NDArray[np.float64],
    masses: NDArray[np.float64],
    shared: NDArray[np.bool_],
) -> None:
    """Adjust weights so that the means of a column approach the exact ones, by factors up to `MAX_WEIGHT_FACTOR`.

    The factor of a row is linear in its value, as in the regression estimator of survey sampling (Deville and Särndal
    1992). For flags this is exact: the ones get their exact mass.
    """
    k = len(masses)
    sampled = np.zeros(k)
    means = np.zeros(k)
    squares = np.zeros(k)
    for i in range(first, filled):
        j = strata[i]
        if j >= 0 and shared[j]:
            sampled[j] += weights[i]
            means[j] += weights[i] * (column[i] - origin)
    for j in range(k):
        means[j] = _per_unit(means[j], sampled[j])
    for i in range(first, filled):
        j = strata[i]
        if j >= 0 and shared[j]:
            squares[j] += weights[i] * (column[i] - origin - means[j]) ** 2
    slopes = np.zeros(k)
    for j in range(k):
        if shared[j] and masses[j] > 0.0 and sampled[j] > 0.0:
            slopes[j] = _per_unit((sums[j] / masses[j] - means[j]) * sampled[j], squares[j])
    for i in range(first, filled):
        j = strata[i]
        if j >= 0 and slopes[j] != 0.0:
            factor = 1.0 + slopes[j] * (column[i] - origin - means[j])
            weights[i] *= min(max(factor, 1.0 / MAX_WEIGHT_FACTOR), MAX_WEIGHT_FACTOR)


@jit(allocates=True)
def _shift_rows(
    first: int,
    filled: int,
    rows: NDArray[np.float64],
    weights: NDArray[np.float64],
    strata: NDArray[np.int32],
    masses: NDArray[np.float64],
    anchors: NDArray[np.float64],
    shifts: NDArray[np.float64],
) -> None:
    """Shift rows as in `calibrate`, so that the means of strata with (k,) masses change by (k, d) shifts."""
    k, d = shifts.shape
    heaviest = np.full(k, -1)
    reach = np.zeros((k, d))
    squares = np.zeros((k, d))
    for i in range(first, filled):
        j = strata[i]
        if j >= 0:
            if heaviest[j] < 0 or weights[i] > weights[heaviest[j]]:
                heaviest[j] = i
            for t in range(d):
                reach[j, t] = max(reach[j, t], abs(rows[i, t] - anchors[j, t]))
    for i in range(first, filled):
        j = strata[i]
        if j >= 0:
            for t in range(d):
                squares[j, t] += weights[i] * _per_unit(rows[i, t] - anchors[j, t], reach[j, t]) ** 2
    for i in range(first, filled):
        j = strata[i]
        if j >= 0:
            for t in range(d):
                if squares[j, t] > 0.0:
                    part = _per_unit(rows[i, t] - anchors[j, t], reach[j, t]) ** 2 / squares[j, t]
                else:
                    part = 1.0 / weights[i] if i == heaviest[j] else 0.0
                rows[i, t] += shifts[j, t] * masses[j] * part


@jit(fast=True)
def threshold(scores: NDArray[np.float64], size: float) -> float:
    """Find the factor that makes the sum of ``min(1, factor * score)`` equal to `size`.

    Parameters
    ----------
    scores
        IN (n,), not negative.
    size
        Less than the number of positive scores.

    Returns
    -------
    float
        The factor; 0 if all scores are zero.
    """
    total = scores.sum()
    factor = size / total if total > 0.0 else 0.0
    for _ in range(64):
        certain = 0
        rest = 0.0
        for i in range(len(scores)):
            sure = scores[i] * factor >= 1.0
            certain += sure
            rest += 0.0 if sure else scores[i]
        if rest <= 0.0 or certain >= size:
            break
        better = (size - certain) / rest
        if better <= factor * (1.0 + 1e-9):
            break
        factor = better
    return factor


@jit(allocates=True)
def thin(
    weighted: WeightedRows,
    factors: NDArray[np.float64],
    k: int,
    size: float,
    origin: NDArray[np.float64],
    rng: NDArray[np.uint64],
    kept: NDArray[np.float64],
    kept_weights: NDArray[np.float64],
) -> int:
    """Sample fewer of weighted rows, and calibrate each cluster to its mass and mean.

    Within a cluster, rows are visited in the order of a k-d tree, so that the sample covers each neighbourhood.

    Parameters
    ----------
    weighted
        IN: the rows.
    factors
        IN (d,): scale factors of the dimensions, or (0,) to visit rows in the given order, which is faster.
    k
        Number of clusters.
    size
        Target number of rows, less than n; up to k + 1 more may be kept.
    origin
        IN (d,): a point among the rows.
    rng
        INOUT (1,) uint64.
    kept, kept_weights
        OUT (capacity, d) and (capacity,): the sample, with room for ``size + 2 k + 8`` rows.

    Returns
    -------
    int
        Number of rows in the sample.
    """
    rows, weights, labels, distances = weighted
    filled, d = rows.shape
    masses = np.zeros(k)
    starts = np.zeros(k + 1, np.int64)
    cost = 0.0
    for i in range(filled):
        masses[labels[i]] += weights[i]
        starts[labels[i] + 1] += 1
        cost += weights[i] * distances[i]
    mass = masses.sum()
    clusters = 0
    for j in range(k):
        starts[j + 1] += starts[j]
        clusters += masses[j] > 0.0
    by_distance = _per_unit(DISTANCE_SHARE, cost)
    by_cluster = np.zeros(k)
    for j in range(k):
        by_cluster[j] = _per_unit(CLUSTER_SHARE, clusters * masses[j]) + _per_unit(
            1.0 - DISTANCE_SHARE - CLUSTER_SHARE, mass
        )
    order = np.empty(filled, np.int64)
    scores = np.zeros(filled)
    for i in range(filled):
        j = labels[i]
        order[starts[j]] = i
        starts[j] += 1
        if masses[j] > 0.0:
            scores[i] = weights[i] * (by_distance * distances[i] + by_cluster[j])
    if len(factors) > 0:
        columns = np.empty((d, (filled + COLUMN_BLOCK - 1) // COLUMN_BLOCK * COLUMN_BLOCK))
        lay_columns(rows, origin, factors, columns)
        for j in range(k):
            order_by_kd_tree(columns, order[(starts[j - 1] if j > 0 else 0) : starts[j]])
    factor = threshold(scores, size)
    capacity = len(kept_weights)
    strata = np.empty(capacity, np.int32)
    sums = np.zeros((k, d + 1))
    first = n = int(0.0)  # 0 has a literal type, for which numba would compile `calibrate` two more times
    reached = 0.0
    unit = 0.0
    target = uniform(rng)
    for r in range(filled):
        i = int(order[r])
        p = scores[i] * factor
        j = labels[i]
        if p < 1.0 or n == capacity:
            sums[j, d] += weights[i]
            for t in range(d):
                sums[j, t] += weights[i] * (rows[i, t] - origin[t])
            reached += p
            while reached >= target and p > 0.0 and n < capacity:
                for t in range(d):
                    kept[n, t] = rows[i, t]
                kept_weights[n] = weights[i] / p
                strata[n] = j
                n += 1
                unit += 1.0
                target = unit + uniform(rng)
        else:
            for t in range(d):
                kept[n, t] = rows[i, t]
            kept_weights[n] = weights[i]
            strata[n] = UNSAMPLED
            n += 1
    return calibrate(first, n, kept, kept_weights, strata, origin, sums)
