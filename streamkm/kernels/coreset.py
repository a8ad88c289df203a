"""A sample of weighted rows that stands for a stream: admission, calibration, thinning.

Importance sampling for k-means with the sensitivities of Feldman and Langberg (2011), judged by the centroids that the
rows are assigned to anyway, as in Schwiegelshohn and Sheikh-Omar (2022). Sums over a stratum, the rows of one cluster,
are known exactly, and the sample is brought back to them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamkm.kernels._jit import jit
from streamkm.kernels.assign import Real
from streamkm.kernels.neighbours import put_near_together
from streamkm.kernels.random import uniform
from streamkm.kernels.search import BLOCK, lay_columns

FAR, EVEN = 0.5, 0.4
"""Shares of the sample that go to rows by their distance and to clusters evenly; the rest goes to rows by weight."""

CERTAIN, SETTLED = -1, -2
"""Strata of rows that stand for themselves only, and of rows that were calibrated."""

ROUNDING = 1e-12
"""Means that differ by less than this share of their distance from the origin are the same."""

MOST_REWEIGHED = 2.0
"""Calibrating a column multiplies the weight of a row by so much at most, or divides it."""


@jit(allocates=True)
def admit(
    X: Real,
    row_weights: NDArray[np.float64],
    labels: NDArray[np.int32],
    distances: NDArray[np.float64],
    totals: NDArray[np.float64],
    stats: NDArray[np.float64],
    batch_origin: NDArray[np.float64],
    origin: NDArray[np.float64],
    size: float,
    inflation: float,
    filled: int,
    rows: NDArray[np.float64],
    weights: NDArray[np.float64],
    strata: NDArray[np.int32],
    sums: NDArray[np.float64],
    rng: NDArray[np.uint64],
) -> int:
    """Sample rows of a batch into the buffer, and add all of the batch to the sums of its strata.

    A row is taken with probability ``p = size * w * (FAR d2 / cost + EVEN / (clusters * W) + rest / mass)``, and stands
    for ``w / p``; with p of at least one it stands for itself. Samples are stratified and jittered along the sum of p:
    one row in each unit of it, so that their number hardly varies, and a stream that takes turns is not aliased.

    Parameters
    ----------
    X, labels, distances
        IN: the batch, each row's cluster, and its squared distance.
    row_weights
        IN (n,), or (0,) for ones.
    totals
        IN (k, d + 2): as in `learn_batch`.
    stats
        IN (k, 3): as in `learn_batch`, the batch included.
    batch_origin, origin
        IN (d,) each: what `totals` and `sums` are relative to.
    size
        Number of rows that all of the stream is to be sampled to.
    inflation
        Factor on weights: new rows gain, instead of old ones decaying (forward decay).
    filled
        Number of rows in the buffer.
    rows, weights, strata
        INOUT (capacity, d), (capacity,), (capacity,): the buffer, with room for ``size + 2`` rows.
    sums
        INOUT (k, d + 1): of each stratum, the inflated sums of ``weight * (row - origin)``, and of weights, over all
        rows that do not stand for themselves.
    rng
        INOUT (1,) uint64.

    Returns
    -------
    int
        Number of rows in the buffer.
    """
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
    by_distance = _over(size * FAR, cost)
    by_cluster = np.empty(k)
    for j in range(k):
        by_cluster[j] = size * (_over(EVEN, clusters * stats[j, 0]) + _over(1.0 - FAR - EVEN, mass))
    mixed = np.zeros(k, np.bool_)  # clusters of which some rows stand for themselves
    end = n  # from here on there is no room for those
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
            strata[filled] = CERTAIN
            filled += 1
            mixed[j] = True
        else:
            end = min(end, i)
    # What stands for itself is not taken away from the sums again: heavy rows would leave their rounding there, and
    # light ones would be lost in it. Few batches have such rows.
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
def _over(share: float, whole: float) -> float:
    """The share of a whole that each unit of it gets; 0 of a whole that is zero, infinite, or next to zero."""
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
    """Give each stratum its exact mass and mean, and leave values that many rows share where they are.

    In each dimension a stratum has an anchor: the value that more than half of all rows have, if the stratum has it
    too; else the one that more than half of the stratum have; else its mean. Where that is a shared value, weights are
    brought towards the mean first (`_reweigh`). What is missing then is made up for by moving rows, all in one
    direction, in proportion to their squared distance from the anchor: those at the anchor stay, and far ones, which
    make the mean uncertain, move most. Where all of a stratum's sample is at the anchor, its heaviest row moves.

    Parameters
    ----------
    first, filled
        Rows of [first, filled) are calibrated.
    rows, weights, strata
        INOUT (capacity, d), (capacity,), (capacity,): the buffer, with room for k more rows: a stratum of which nothing
        was sampled gets one, its mean. Afterwards all strata are `SETTLED`.
    origin
        IN (d,): what `sums` is relative to.
    sums
        INOUT (k, d + 1): as in `admit`; afterwards zero.

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
            _reweigh(first, filled, rows[:, t], weights, strata, origin[t], sums[:, t], sums[:, d], shared[:, t])
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
                if abs(shifts[j, t]) <= ROUNDING * abs(mean):
                    shifts[j, t] = 0.0
        elif end < len(weights):
            for t in range(d):
                rows[end, t] = origin[t] + sums[j, t] / sums[j, d]
            weights[end] = sums[j, d]
            end += 1
        else:
            left += sums[j, d]
    _move(first, filled, rows, weights, strata, sampled[:, d], anchors, shifts)
    for i in range(first, filled):
        if strata[i] >= 0:
            weights[i] *= factors[strata[i]]
    for i in range(first, end):
        strata[i] = SETTLED
    if end > first:  # without room for a row its mean is lost, its mass is not
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
    """Put OUT (k, d) anchors where a value is shared, as `calibrate` says; returns (k, d), where that is."""
    k, d = anchors.shape
    common = np.zeros((k + 1, d))  # candidates of each stratum, and of all rows
    lead = np.zeros((k + 1, d))
    for i in range(filled):
        for t in range(d):
            _vote(rows[i, t], weights[i], common, lead, k, t)
            if i >= first and strata[i] >= 0:
                _vote(rows[i, t], weights[i], common, lead, strata[i], t)
    held = np.zeros((k + 1, d))
    of_all = np.zeros((k, d))  # what a stratum holds of the value that is common to all
    masses = np.zeros(k + 1)
    for i in range(filled):
        j = strata[i] if i >= first else SETTLED
        masses[k] += weights[i]
        if j >= 0:
            masses[j] += weights[i]
        for t in range(d):
            if rows[i, t] == common[k, t]:
                held[k, t] += weights[i]
                if j >= 0:
                    of_all[j, t] += weights[i]
            if j >= 0 and rows[i, t] == common[j, t]:
                held[j, t] += weights[i]
    shared = np.zeros((k, d), np.bool_)
    for j in range(k):
        for t in range(d):
            if held[k, t] > masses[k] / 2.0 and of_all[j, t] > 0.0:
                shared[j, t] = True
                anchors[j, t] = common[k, t]
            elif held[j, t] > masses[j] / 2.0:
                shared[j, t] = True
                anchors[j, t] = common[j, t]
    return shared


@jit(inline=True)
def _vote(value: float, weight: float, common: NDArray[np.float64], lead: NDArray[np.float64], j: int, t: int) -> None:
    """Majority vote of Boyer and Moore (1991): a value that more than half of the weight has is left in `common`."""
    if value == common[j, t]:
        lead[j, t] += weight
    elif weight > lead[j, t]:
        common[j, t] = value
        lead[j, t] = weight - lead[j, t]
    else:
        lead[j, t] -= weight


@jit(allocates=True)
def _reweigh(
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
    """Bring weights of strata towards the mean of a column, by factors from 1 / `MOST_REWEIGHED` to `MOST_REWEIGHED`.

    The factor of a row is linear in its value: the regression estimator of surveys (Deville and Särndal 1992). Of flags
    it is exact: the ones get the mass that they have.
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
        means[j] = _over(means[j], sampled[j])
    for i in range(first, filled):
        j = strata[i]
        if j >= 0 and shared[j]:
            squares[j] += weights[i] * (column[i] - origin - means[j]) ** 2
    slopes = np.zeros(k)
    for j in range(k):
        if shared[j] and masses[j] > 0.0 and sampled[j] > 0.0:
            slopes[j] = _over((sums[j] / masses[j] - means[j]) * sampled[j], squares[j])
    for i in range(first, filled):
        j = strata[i]
        if j >= 0 and slopes[j] != 0.0:
            factor = 1.0 + slopes[j] * (column[i] - origin - means[j])
            weights[i] *= min(max(factor, 1.0 / MOST_REWEIGHED), MOST_REWEIGHED)


@jit(allocates=True)
def _move(
    first: int,
    filled: int,
    rows: NDArray[np.float64],
    weights: NDArray[np.float64],
    strata: NDArray[np.int32],
    masses: NDArray[np.float64],
    anchors: NDArray[np.float64],
    shifts: NDArray[np.float64],
) -> None:
    """Move rows so that the means of strata of these (k,) masses move by (k, d) shifts, as `calibrate` says."""
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
                squares[j, t] += weights[i] * _over(rows[i, t] - anchors[j, t], reach[j, t]) ** 2
    for i in range(first, filled):
        j = strata[i]
        if j >= 0:
            for t in range(d):
                if squares[j, t] > 0.0:
                    part = _over(rows[i, t] - anchors[j, t], reach[j, t]) ** 2 / squares[j, t]
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
        The factor; 0 when all scores are zero.
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
    rows: NDArray[np.float64],
    weights: NDArray[np.float64],
    labels: NDArray[np.int32],
    distances: NDArray[np.float64],
    factors: NDArray[np.float64],
    k: int,
    size: float,
    origin: NDArray[np.float64],
    rng: NDArray[np.uint64],
    kept: NDArray[np.float64],
    kept_weights: NDArray[np.float64],
) -> int:
    """Sample weighted rows to fewer, cluster by cluster, and calibrate each cluster to its mass and mean.

    Within a cluster rows are gone through from neighbour to neighbour, so that the sample has some of each place.

    Parameters
    ----------
    rows, weights
        IN (n, d) and (n,), read-only.
    labels, distances
        IN (n,): each row's cluster, and its squared distance.
    factors
        IN (d,): units of the dimensions, or (0,) to go through rows as they come, which is quicker.
    k
        Number of clusters.
    size
        Number of rows wanted, less than n; up to k + 1 more may be kept.
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
    by_distance = _over(FAR, cost)
    by_cluster = np.zeros(k)
    for j in range(k):
        by_cluster[j] = _over(EVEN, clusters * masses[j]) + _over(1.0 - FAR - EVEN, mass)
    order = np.empty(filled, np.int64)
    scores = np.zeros(filled)
    for i in range(filled):
        j = labels[i]
        order[starts[j]] = i
        starts[j] += 1
        if masses[j] > 0.0:
            scores[i] = weights[i] * (by_distance * distances[i] + by_cluster[j])
    if len(factors) > 0:
        columns = np.empty((d, (filled + BLOCK - 1) // BLOCK * BLOCK))
        lay_columns(rows, origin, factors, columns)
        for j in range(k):
            put_near_together(columns, order[(starts[j - 1] if j > 0 else 0) : starts[j]])
    factor = threshold(scores, size)
    capacity = len(kept_weights)
    strata = np.empty(capacity, np.int32)
    sums = np.zeros((k, d + 1))
    n = 0
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
            strata[n] = CERTAIN
            n += 1
    return calibrate(0, n, kept, kept_weights, strata, origin, sums)
