"""Naive twins of the kernels of the exact algorithm: what each means, in the plainest words."""

from fractions import Fraction
from itertools import pairwise

import numpy as np


def exact_nearest(row, centroids):
    """Sum up in the order of the columns; the first of equally near centroids wins."""
    best, winner = float("inf"), 0
    for j, centroid in enumerate(centroids):
        squared = 0.0
        for x, c in zip(row, centroid, strict=True):
            squared += (float(x) - float(c)) * (float(x) - float(c))
        if squared < best:
            best, winner = squared, j
    return winner


def relabel_rows(X, centroids):
    return np.array([exact_nearest(row, centroids) for row in X], np.int32)


rows_pass = blocks_pass = relabel_rows


def two_nearest(x, centroids):
    """Return the winner and by how much it is nearer than the second."""
    distances = [
        sum((Fraction(float(a)) - Fraction(float(b))) ** 2 for a, b in zip(x, c, strict=True)) for c in centroids
    ]
    ranked = sorted(range(len(centroids)), key=lambda j: (distances[j], j))
    second = float(distances[ranked[1]]) ** 0.5 if len(ranked) > 1 else 2e19
    return ranked[0], second - float(distances[ranked[0]]) ** 0.5


def gather(rows, picked):
    return np.array([[rows[i][t] for i in picked] for t in range(len(rows[0]))])


def changed_lanes(found, labels, picked):
    winners = found[1].view(np.int32)
    return sum(1 << p for p, i in enumerate(picked) if not found[0, p] > 0.0 or winners[p] != labels[i])


def below(values, start, limit):
    return sum(1 << q for q in range(32) if values[start + q] < limit)


def lowest_bit(mask):
    return bin(mask)[::-1].index("1")


def to_float32(centroids):
    return [[np.float32(c) for c in row] for row in centroids] + [[np.float32(1e18)] * len(centroids[0])]


def rounding(centroids, extent):
    d = len(centroids[0])
    reach = max(float(np.linalg.norm(c)) for c in centroids)
    return [(d / 2 + 8) / 2**24, 4.1 * reach / 2**24 + 1e-18 * d**0.5, 1e-13 * (8 + d / 8) * (reach + extent) ** 2]


def begin_pass(centroids, extent):
    return rounding(centroids, extent), to_float32(centroids)


def add_row(row, origin, factor, weight):
    """Return what is added, as one integer of 2**-62."""
    added = []
    for value in [*((float(x) - float(o)) * factor for x, o in zip(row, origin, strict=True)), weight]:
        high = round(value * 2.0**31)
        added.append(high * 2**31 + round((value * 2.0**31 - high) * 2.0**31))
    return added


def relocate(row, origin, scale, weight):
    return add_row(row, origin, scale * weight, weight)


def sum_rows(X, origin, scale):
    return [sum(column) for column in zip(*(add_row(x, origin, scale, 1.0) for x in X), strict=True)]


def move_centroids(X, weights, labels, centroids):
    """Exact means, rounded once."""
    moved = [list(map(float, c)) for c in centroids]
    for j in range(len(centroids)):
        members = [
            (Fraction(float(w)), row) for w, row, label in zip(weights, X, labels, strict=True) if label == j and w > 0
        ]
        total = sum(w for w, _ in members)
        if members:
            moved[j] = [float(sum(w * Fraction(float(row[t])) for w, row in members) / total) for t in range(len(X[0]))]
    return np.array(moved)


def add_moves(drift, moved):
    k = len(drift)
    pairs = [drift[j] + max([drift[i] for i in range(k) if i != j], default=0.0) for j in range(k)]
    return [m + p for m, p in zip(moved, [*pairs, max(pairs)], strict=True)]


def to_working(X, origin, unit):
    return ((np.asarray(X, float) - origin) * unit).astype(np.float32)


def split_sample(sample):
    """Return the axis and the cut of the first split."""
    columns = [sorted(column) for column in zip(*sample, strict=True)]
    axis = max(range(len(columns)), key=lambda t: np.var(np.asarray(sample)[:: max(1, len(sample) // 64), t]))
    return axis, columns[axis][len(sample) // 2]


def find_leaves(X, levels, axes, cuts):
    leaves = []
    for row in X:
        node = 1
        for _ in range(levels):
            node = 2 * node + bool(row[axes[node]] >= cuts[node])
        leaves.append(node - 2**levels)
    return leaves


def move_rows(X, leaves):
    """Stable: rows of a part keep their order."""
    return np.asarray(X)[np.argsort(leaves, kind="stable")]


def bound_blocks(rows, offsets):
    parts = [np.asarray(rows[a:b], float) for a, b in pairwise(offsets)]
    return [(p.min(axis=0), p.max(axis=0)) for p in parts]


bound_regions = bound_blocks


def column_ranges(X):
    X = np.asarray(X, float)
    return np.array([X.min(axis=0), X.max(axis=0)])


def assigned_squares(X, labels, centroids):
    return np.array(
        [
            sum((float(a) - float(b)) ** 2 for a, b in zip(x, centroids[j], strict=True))
            for x, j in zip(X, labels, strict=True)
        ]
    )


def all_distances(X, centroids):
    return np.array(
        [[sum((float(a) - float(b)) ** 2 for a, b in zip(x, c, strict=True)) ** 0.5 for c in centroids] for x in X]
    )


def evaluate_candidates(X, weights, nearest, candidates):
    return [
        sum(
            w * min(near, float(((np.asarray(x, float) - c) ** 2).sum()))
            for x, w, near in zip(X, weights, nearest, strict=True)
        )
        for c in candidates
    ]


def draw_by_cost(shares, target):
    for row, share in enumerate(shares):
        if share > 0 and share > target:
            return row
        target -= share
    return max((row for row, share in enumerate(shares) if share > 0), default=-1)


def lloyd(X, start, *, weights=None, max_iter=300, tol=0.0):
    """Return centroids, labels and iterations of the text-book's algorithm."""
    weights = np.ones(len(X)) if weights is None else np.asarray(weights, float)
    centroids, labels, n_iter = np.array(start, float), None, 0
    while n_iter < max_iter:
        n_iter += 1
        before, labels = labels, relabel_rows(X, centroids)
        empty = [
            j
            for j in range(len(centroids))
            if not any(w > 0 for w, label in zip(weights, labels, strict=True) if label == j)
        ]
        given = labels.copy()
        squares = np.where(weights > 0, assigned_squares(X, labels, centroids), 0.0)
        sizes = np.bincount(given[weights > 0], minlength=len(centroids))
        for row in np.argsort(-squares, kind="stable"):
            if empty and squares[row] > 0 and sizes[given[row]] > 1:
                sizes[given[row]] -= 1
                given[row] = empty.pop(0)
        if before is not None and (labels == before).all() and (given == labels).all():
            return centroids, labels, n_iter
        moved = move_centroids(X, weights, given, centroids)
        step = float(np.sqrt(((moved - centroids) ** 2).sum(axis=1)).max())
        centroids, labels = moved, given
        if step <= tol:
            break
    return centroids, relabel_rows(X, centroids), n_iter
