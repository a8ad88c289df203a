"""Naive twins of the kernels: the same names and meanings, written for reading, sharing no code with them."""

import math

import numpy as np


def uniform(state):
    """(number, next state) of splitmix64."""
    mask = 2**64 - 1
    state = (state + 0x9E3779B97F4A7C15) & mask
    z = state
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    z ^= z >> 31
    return (z >> 11) / 2**53, state


def draw(weights, distances, state):
    """(row, next state); row -1 when nothing can be drawn."""
    mass = [w * d for w, d in zip(weights, distances, strict=True)]
    total = sum(mass)
    if total <= 0:
        return -1, state
    u, state = uniform(state)
    reached = 0.0
    possible = [i for i, m in enumerate(mass) if m > 0]
    for i in possible:
        reached += mass[i]
        if reached > u * total:
            return i, state
    return possible[-1], state


def largest(values):
    return max((abs(float(v)) for v in values), default=0.0)


def extent(X, origin):
    return largest((np.asarray(X, float) - origin).ravel())


def pack_centroids(centroids, origin, scale):
    k, d = centroids.shape
    packed = np.full((math.ceil(k / 6), d, 6), np.inf)
    for j in range(k):
        packed[j // 6, :, j % 6] = (centroids[j] - origin) * scale
    return packed


def assign(X, centroids):
    """(labels, squared distances); the lowest index wins ties."""
    squared = np.array([[((x - c) ** 2).sum() for c in centroids] for x in np.asarray(X, float)])
    squared = squared.reshape(len(X), len(centroids))
    return squared.argmin(axis=1), squared.min(axis=1)


def assign_accumulate(X, row_weights, origin, centroids):
    """(labels, squared distances, totals)."""
    labels, squared = assign(X, centroids)
    k, d = centroids.shape
    totals = np.zeros((k, d + 2))
    for x, w, j, q in zip(np.asarray(X, float), row_weights, labels, squared, strict=True):
        totals[j, :d] += w * (x - origin)
        totals[j, d] += w
        totals[j, d + 1] += w * q
    return labels, squared, totals


def learn_batch(X, row_weights, decay, centroids, stats):
    """(centroids, stats) after the batch, point by point: each update has the rate 1 / w_j of the batch's end."""
    labels, squared = assign(X, centroids)
    X = np.asarray(X, float)
    new, stats = centroids.copy(), stats.copy()
    stats[:, :2] *= decay
    for j in range(len(centroids)):
        mine = labels == j
        weight = row_weights[mine].sum()
        stats[j, 0] += weight
        stats[j, 1] += (row_weights * squared)[mine].sum()
        stats[j, 2] = 0.0 if weight > 0 else stats[j, 2] + row_weights.sum()
        for x, w in zip(X[mine], row_weights[mine], strict=True):
            if w > 0:
                new[j] += w / stats[j, 0] * (x - centroids[j])
    return new, stats


def lloyd(rows, row_weights, centroids, max_iter, tol):
    """(centroids, cost of the last assignment)."""
    centroids = centroids.copy()
    previous = cost = math.inf
    for _ in range(max_iter):
        labels, squared = assign(rows, centroids)
        cost = (row_weights * squared).sum()
        for j in range(len(centroids)):
            mine = labels == j
            if row_weights[mine].sum() > 0:
                centroids[j] = np.average(rows[mine], axis=0, weights=row_weights[mine])
        if previous - cost <= tol * cost:
            break
        previous = cost
    return centroids, cost


def mean_square(stats):
    return stats[:, 1].sum() / stats[:, 0].sum() if stats[:, 0].sum() > 0 else 0.0


def starved(stats, share, idle):
    hungry = [j for j, (w, _, i) in enumerate(stats) if w <= share * stats[:, 0].max() and i >= idle]
    return hungry[0] if hungry else -1


def kmeans_plus_plus(rows, row_weights, k, n_candidates, state):
    """(chosen rows, next state)."""
    first, state = draw(row_weights, np.ones(len(rows)), state)
    chosen = [max(0, first)]
    known = ((rows - rows[chosen[0]]) ** 2).sum(axis=1)
    while len(chosen) < k:
        best = None
        for _ in range(n_candidates):
            i, state = draw(row_weights, known, state)
            if i < 0:
                break
            closer = np.minimum(known, ((rows - rows[i]) ** 2).sum(axis=1))
            if best is None or (row_weights * closer).sum() < best[0]:
                best = (row_weights * closer).sum(), i, closer
        if best is None:
            u, state = uniform(state)
            chosen.append(int(u * len(rows)))
        else:
            chosen.append(best[1])
            known = best[2]
    return rows[chosen], state


def read_varint(data, pos):
    """(value, next position) of one zig-zag varint."""
    raw = shift = 0
    while True:
        raw |= (data[pos] & 0x7F) << shift
        shift += 7
        pos += 1
        if data[pos - 1] < 0x80:
            return (raw >> 1) ^ -(raw & 1), pos


def parse_records(data, n, base_offset, base_timestamp):
    """(offset, timestamp, value or None) of each of the n records of a batch that is not broken."""
    records, pos = [], 0
    for _ in range(n):
        length, pos = read_varint(data, pos)
        stop = pos + length
        timestamp, at = read_varint(data, pos + 1)
        offset, at = read_varint(data, at)
        size, at = read_varint(data, at)
        at += max(0, size)
        size, at = read_varint(data, at)
        value = bytes(data[at : at + size]) if size >= 0 else None
        records.append((base_offset + offset, base_timestamp + timestamp, value))
        pos = stop
    return records
