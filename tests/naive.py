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


def sum_blocks(weights, distances, block):
    """(sum of each block, sum of all)."""
    mass = weights * distances[: len(weights)]
    return [mass[i : i + block].sum() for i in range(0, len(mass), block)], mass.sum()


def draw_by_blocks(weights, distances, state):
    return draw(weights, distances[: len(weights)], state)


def largest(values):
    return max((abs(float(v)) for v in values), default=0.0)


def extent(X, origin, factors):
    return largest(((np.asarray(X, float) - origin) * factors).ravel())


def pack_centroids(centroids, origin, scale):
    k, d = centroids.shape
    packed = np.full((math.ceil(k / 6), d, 6), np.inf)
    for j in range(k):
        packed[j // 6, :, j % 6] = (centroids[j] - origin) * scale
    return packed


def assign(X, centroids, factors=1.0):
    """(labels, squared distances); the lowest index wins ties."""
    squared = np.array([[(((x - c) * factors) ** 2).sum() for c in centroids] for x in np.asarray(X, float)])
    squared = squared.reshape(len(X), len(centroids))
    return squared.argmin(axis=1), squared.min(axis=1)


def assign_accumulate(X, row_weights, origin, centroids, factors=1.0):
    """(labels, squared distances, totals)."""
    labels, squared = assign(X, centroids, factors)
    k, d = centroids.shape
    totals = np.zeros((k, d + 2))
    for x, w, j, q in zip(np.asarray(X, float), row_weights, labels, squared, strict=True):
        totals[j, :d] += w * (x - origin)
        totals[j, d] += w
        totals[j, d + 1] += w * q
    return labels, squared, totals


def to_unit_length(rows):
    return np.array([r / math.hypot(*r) if r.any() else r for r in rows])


def learn_batch(X, row_weights, decay, centroids, stats, *, batch_weight=None, spherical=False):
    """(centroids, stats) after the batch, point by point: each update has the rate 1 / w_j of the batch's end."""
    batch_weight = row_weights.sum() if batch_weight is None else batch_weight
    labels, squared = assign(X, centroids)
    X = np.asarray(X, float)
    new, stats = centroids.copy(), stats.copy()
    stats[:, :2] *= decay
    for j in range(len(centroids)):
        mine = labels == j
        weight = row_weights[mine].sum()
        stats[j, 0] += weight
        stats[j, 1] += (row_weights * squared)[mine].sum()
        stats[j, 2] = 0.0 if weight > 0 else stats[j, 2] + batch_weight
        for x, w in zip(X[mine], row_weights[mine], strict=True):
            if w > 0:
                new[j] += w / stats[j, 0] * (x - centroids[j])
    return to_unit_length(new) if spherical else new, stats


def half_power(age):
    return 2.0**-age


def lost_share(age):
    return -math.expm1(-age * math.log(2.0))


def decay_by_position(weights, half_life):
    """Each weight by the weight of all that comes after it; a weight of 3 is three rows of weight 1."""
    rows = [lost_share(w / half_life) / lost_share(1.0 / half_life) for w in weights]
    return np.array([w * 2.0 ** (-sum(weights[i + 1 :]) / half_life) for i, w in enumerate(rows)])


def pieces(advances, most, least):
    """Where pieces end, if each row makes what was before older by its advance."""
    stops, start, passed = [], 0, 0.0
    for i, advance in enumerate(advances[:-1]):
        passed += advance
        if passed > most and i + 1 - start >= least:
            stops.append(i + 1)
            start, passed = i + 1, 0.0
    return [*stops, len(advances)]


def decay_by_time(weights, times, half_life, clock=None):
    """Each weight by how long its time lies before the newest; an unknown time is the newest one before it."""
    known, newest = [], clock
    for time in times:
        if not math.isnan(time):
            newest = time if newest is None else max(newest, time)
        known.append(newest if math.isnan(time) else time)
    ages = [0.0 if time is None else max(0.0, newest - time) for time in known]
    return np.array([w * 2.0 ** (-age / half_life) for w, age in zip(weights, ages, strict=True)])


def weighted_total(values, weights):
    return math.fsum(v * w for v, w in zip(values, weights, strict=True))


def lloyd(rows, row_weights, centroids, max_iter, tol, *, spherical=False):
    """(centroids, labels, their cost)."""
    centroids = centroids.copy()
    previous = math.inf
    for iteration in range(max_iter + 1):
        labels, squared = assign(rows, centroids)
        cost = (row_weights * squared).sum()
        if iteration == max_iter or previous - cost <= tol * cost:
            break
        previous = cost
        for j in range(len(centroids)):
            mine = labels == j
            if row_weights[mine].sum() > 0:
                centroids[j] = np.average(rows[mine], axis=0, weights=row_weights[mine])
        if spherical:
            centroids = to_unit_length(centroids)
    return centroids, labels, cost


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


def _sampled(chances, state):
    """(index of each sample, next state): one at a random place in each unit of the summed chances."""
    picked, reached, unit = [], 0.0, 0
    u, state = uniform(state)
    for i, p in enumerate(chances):
        reached += p
        while reached >= unit + u:
            picked.append(i)
            unit += 1
            u, state = uniform(state)
    return picked, state


def sample_rows(X, row_weights, labels, squared, stats, origin, size, inflation, state):
    """(rows, weights, strata, sums, next state) that the batch adds to an empty buffer."""
    X, k = np.asarray(X, float), len(stats)
    mass, cost = stats[:, 0].sum(), stats[:, 1].sum()
    clusters = (stats[:, 0] > 0).sum()
    far = 0.5 * squared / cost if cost > 0 else np.zeros(len(X))
    p = size * row_weights * (far + 0.4 / (clusters * stats[labels, 0]) + 0.1 / mass)
    picked, state = _sampled(np.where(p < 1, p, 0.0), state)
    counts = np.bincount(picked, minlength=len(X))
    rows, weights, strata = [], [], []
    sums = np.zeros((k, X.shape[1] + 1))
    for i, x in enumerate(X):
        if p[i] >= 1:
            rows.append(x)
            weights.append(row_weights[i] * inflation)
            strata.append(-1)
        else:
            rows += [x] * counts[i]
            weights += [row_weights[i] * inflation / p[i]] * counts[i]
            strata += [labels[i]] * counts[i]
            sums[labels[i]] += row_weights[i] * inflation * np.append(x - origin, 1.0)
    return np.array(rows), np.array(weights), np.array(strata), sums, state


def calibrate(rows, weights, strata, origin, sums):
    """(rows, weights) with the exact mass and mean of each stratum; values that most rows share stay."""
    rows, weights, strata = np.array(rows, float), np.array(weights, float), np.array(strata)
    d = len(origin)
    strata_rows = [np.flatnonzero(strata == j) for j in range(len(sums))]
    ties = [[shared_value(rows[:, t], weights, mine) for t in range(d)] for mine in strata_rows]
    targets = [s[:-1] / s[-1] if s[-1] > 0.0 else np.zeros(d) for s in sums]
    for t in range(d):
        for j, mine in enumerate(strata_rows):
            x, w = rows[mine, t] - origin[t], weights[mine]
            if ties[j][t] is None or not sums[j][-1] > 0.0 or not w.sum() > 0.0:
                continue
            mean = np.average(x, weights=w)
            variance = np.average((x - mean) ** 2, weights=w)
            if variance > 0.0:
                weights[mine] *= np.clip(1.0 + (targets[j][t] - mean) / variance * (x - mean), 0.5, 2.0)
    added = []
    for j, mine in enumerate(strata_rows):
        total = sums[j][-1]
        if total <= 0.0:
            weights[mine] = 0.0
            continue
        if not len(mine):
            added.append((origin + targets[j], total))
            continue
        w = weights[mine]
        for t in range(d):
            mean = np.average(rows[mine, t] - origin[t], weights=w)
            shift = targets[j][t] - mean
            if abs(shift) <= 1e-12 * abs(mean):
                continue
            anchor = origin[t] + mean if ties[j][t] is None else ties[j][t]
            squares = (rows[mine, t] - anchor) ** 2
            if not squares.any():
                squares[np.argmax(w)] = 1.0
            rows[mine, t] += shift * squares / np.average(squares, weights=w)
        weights[mine] *= total / w.sum()
    return np.array([*rows, *(row for row, _ in added)]), np.array([*weights, *(w for _, w in added)])


def shared_value(column, weights, mine):
    """The value that more than half of all weight has, if it is among `mine`, or that more than half of theirs has."""
    for place in (np.arange(len(column)), mine):
        for value in np.unique(column[mine]):
            if weights[place][column[place] == value].sum() > 0.5 * weights[place].sum():
                return value
    return None


def threshold(scores, size):
    """By bisection."""
    low, high = 0.0, 1e300
    for _ in range(4000):
        middle = math.sqrt(low * high) if low > 0 else min(1e-300, high / 2)
        if np.minimum(1.0, scores * middle).sum() < size:
            low = middle
        else:
            high = middle
    return low


def thin(labels, squared, k, size, rows, weights, origin, state, order):
    """(rows, weights, next state), gone through in the order given, cluster by cluster."""
    masses = np.bincount(labels, weights, k)
    cost, clusters = (weights * squared).sum(), (masses > 0).sum()
    far = 0.5 * squared / cost if cost > 0 else np.zeros(len(rows))
    even = [0.4 / (clusters * masses[j]) if masses[j] > 0 else 0.0 for j in labels]
    scores = weights * (far + even + 0.1 / masses.sum())
    p = scores * threshold(scores, size)
    picked, state = _sampled([p[i] if p[i] < 1 else 0.0 for i in order], state)
    kept, kept_weights, strata = [], [], []
    sums = np.zeros((k, rows.shape[1] + 1))
    for place, i in enumerate(order):
        copies = 1 if p[i] >= 1 else picked.count(place)
        kept += [rows[i]] * copies
        kept_weights += [weights[i] / min(1.0, p[i])] * copies
        strata += [-1 if p[i] >= 1 else labels[i]] * copies
        if p[i] < 1:
            sums[labels[i]] += weights[i] * np.append(rows[i] - origin, 1.0)
    return *calibrate(kept, kept_weights, strata, origin, sums), state


def pick_representatives(weights, labels, squared, k, share):
    """(indices, weights)."""
    kept, picked = [], []
    for j in range(k):
        mine = [i for i in range(len(weights)) if labels[i] == j and weights[i] > 0]
        mass, cost = sum(weights[mine]), sum(weights[mine] * squared[mine])
        chances = [
            min(1.0, share * weights[i] * ((squared[i] / cost if cost > 0 else 1 / mass) + 1 / mass) / 2) for i in mine
        ]
        reached = np.floor(np.cumsum([0.5, *chances]))
        own = [(i, weights[i] / p) for i, p, up in zip(mine, chances, np.diff(reached), strict=True) if up > 0]
        kept += [i for i, _ in own]
        picked += [w * mass / sum(w for _, w in own) for _, w in own]
    order = np.argsort(kept)
    return [kept[i] for i in order], [picked[i] for i in order]


def order_by_kd_tree(rows, order):
    """The order, by halving at a median of nine of the widest dimension of nine; a leaf has 32 rows."""
    order = list(order)
    n = len(order)
    if n <= 32:
        return order
    some = rows[order[:: max(1, n // 8)]]
    from_first = some - some[0]
    spreads = (from_first**2).sum(axis=0) - from_first.sum(axis=0) ** 2 / len(some)
    if not spreads.max() > 0:
        return order
    values = rows[:, np.argmax(spreads)]
    nine = [values[order[min(n - 1, q * max(1, n // 9))]] for q in range(9)]
    pivot = sorted(sorted(nine[q : q + 3])[1] for q in (0, 3, 6))[1]
    low = [i for i in order if values[i] < pivot] or [i for i in order if values[i] <= pivot]
    if len(low) == n:
        return order
    lower = set(low)
    return order_by_kd_tree(rows, low) + order_by_kd_tree(rows, [i for i in order if i not in lower])


def lay_columns(rows, origin, scale):
    columns = np.zeros((rows.shape[1], math.ceil(len(rows) / 64) * 64))
    columns[:, : len(rows)] = ((rows - origin) * scale).T
    return columns


def lloyd_on_columns(rows, weights, centroids, max_iter, tol, *, spherical=False):
    """(centroids, their cost)."""
    found, _, cost = lloyd(rows, weights, centroids, max_iter, tol, spherical=spherical)
    return found, cost


def weighted_sum(rows, weights):
    return sum((w * x for w, x in zip(weights, rows, strict=True)), np.zeros(rows.shape[1]))


def differences(rows, origin, factors):
    return np.array([(x - origin) * factors for x in rows])


def evenly_spaced_rows(weights, count):
    reached = np.cumsum(weights)
    middles = (np.arange(count) + 0.5) / count * reached[-1]
    return [next(i for i, r in enumerate(reached) if r >= m) for m in middles]


def squared_distances_to(rows, centroid):
    return ((rows - centroid) ** 2).sum(axis=1)


def nearest_two(rows, centroids):
    """(first, squared distances, second, squared distances)."""
    squared = np.array([[((x - c) ** 2).sum() for c in centroids] for x in rows])
    order = np.argsort(squared, axis=1, kind="stable")
    everyone = np.arange(len(rows))
    if len(centroids) == 1:
        return order[:, 0], squared[:, 0], order[:, 0], np.full(len(rows), np.inf)
    return order[:, 0], squared[everyone, order[:, 0]], order[:, 1], squared[everyone, order[:, 1]]


def local_search(rows, weights, steps, least_gain, centroids, state):
    """(centroids, swaps, next state), trying every swap for every row drawn."""
    centroids, swaps = centroids.copy(), 0
    for _ in range(steps):
        squared = assign(rows, centroids)[1]
        drawn, state = draw(weights, squared, state)
        if drawn < 0:
            break
        costs = []
        for j in range(len(centroids)):
            trial = centroids.copy()
            trial[j] = rows[drawn]
            costs.append((weights * assign(rows, trial)[1]).sum())
        j = int(np.argmin(costs))
        if costs[j] < (weights * squared).sum() * (1 - least_gain):
            centroids[j] = rows[drawn]
            swaps += 1
    return centroids, swaps, state


def squared_distances_from(rows, middle, factors):
    return (((np.asarray(rows, float) - middle) * factors) ** 2).sum(axis=1)


def widest_gap(squares, weights, tail, least):
    """By sorting."""
    away = squares > 0
    squares, weights = squares[away], weights[away]
    order = np.argsort(squares)
    values, beyond = squares[order], np.cumsum(weights[order][::-1])[::-1]
    gaps = [
        (outer / inner, math.sqrt(inner * outer))
        for inner, outer, mass in zip(values[:-1], values[1:], beyond[1:], strict=True)
        if outer >= least * inner and mass <= tail * weights.sum()
    ]
    return max(gaps)[1] if gaps else math.inf


def remove_centroids(rows, weights, centroids, prices, k):
    centroids, prices = list(centroids), list(prices)
    while len(centroids) > k:
        costs = [(weights * assign(rows, np.delete(centroids, j, axis=0))[1]).sum() for j in range(len(centroids))]
        dropped = int(np.argmin(np.add(costs, prices)))
        centroids.pop(dropped)
        prices.pop(dropped)
    return np.array(centroids)


def mask_within(X, middle, factors, limit):
    return squared_distances_from(X, middle, factors) <= limit


class Broken(Exception):  # noqa: N818 -- of a record, by the reason
    """A record that cannot be read."""


def read_varint(data, pos):
    """(value, next position) of one zig-zag varint."""
    for n, byte in enumerate(data[pos : pos + 10]):
        if byte < 0x80:
            raw = sum((b & 0x7F) << (7 * i) for i, b in enumerate(data[pos : pos + n + 1])) % 2**64
            return (raw >> 1) ^ -(raw & 1), pos + n + 1
    raise Broken("truncated" if len(data) < pos + 10 else "varint")


def _part(data, pos, *, null=True):
    """(bytes or None, next position) of a value with its size before it."""
    size, pos = read_varint(data, pos)
    if size > len(data) - pos or (size < 0 and not null):
        raise Broken("length")
    return (bytes(data[pos : pos + size]), pos + size) if size >= 0 else (None, pos)


def _record(data, base_offset, base_timestamp, previous, last):
    """(offset, timestamp, value or None) of the record that is the whole data."""
    timestamp, pos = read_varint(data, 1)
    delta, pos = read_varint(data, pos)
    if not previous < base_offset + delta <= last:
        raise Broken("offset")
    _, pos = _part(data, pos)
    value, pos = _part(data, pos)
    headers, pos = read_varint(data, pos)
    for _ in range(headers):
        _, pos = _part(data, pos, null=False)
        _, pos = _part(data, pos)
    if headers < 0 or pos != len(data):
        raise Broken("length")
    return base_offset + delta, base_timestamp + timestamp, value


def _place(data, pos):
    """(begin, end) of the record whose length is at a position."""
    try:
        length, begin = read_varint(data, pos)
    except Broken as e:
        raise Broken("unfinished" if e.args == ("truncated",) else e.args[0]) from e
    if length < 1:
        raise Broken("length")
    if begin + length > len(data):
        raise Broken("unfinished")
    return begin, begin + length


def parse_records(data, n, base_offset, base_timestamp, previous=-1, last=2**63 - 1):
    """(status, (offset, timestamp, value or None) of each record before the first broken one, its position)."""
    records, pos = [], 0
    try:
        while len(records) < n:
            begin, end = _place(data, pos)
            records.append(_record(data[begin:end], base_offset, base_timestamp, previous, last))
            previous, pos = records[-1][0], end
    except Broken as e:
        return e.args[0], records, pos
    return "ok", records, pos
