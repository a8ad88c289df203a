"""Twenty worlds whose number of clusters is known, heavy tails, ties and noise among them."""

from __future__ import annotations

import numpy as np

CITIES = np.array([[52.5, 13.4], [48.1, 11.6], [53.6, 10.0], [50.9, 7.0], [50.1, 8.7]])


def blobs(rng, k, d, n, apart=10.0, shares=None):
    """Normal clusters of deviation 1 that are so far apart at least."""
    centers = []
    while len(centers) < k:
        c = rng.uniform(-1.0, 1.0, d) * apart * k ** (1 / d)
        if all(np.linalg.norm(c - other) >= apart for other in centers):
            centers.append(c)
    labels = rng.choice(k, n, p=shares)
    return np.array(centers)[labels], rng.normal(size=(n, d))


def cities(rng, n, unit):
    """Five cities, and an amount with a long tail that tells none of them, in some unit."""
    return np.column_stack(
        [rng.lognormal(3.0, 1.2, n) / unit, CITIES[rng.integers(0, 5, n)] + rng.normal(0, 0.1, (n, 2))]
    )


def _standard(rows):
    return (rows - rows.mean(axis=0)) / rows.std(axis=0)


def _t(rng, df, shape):
    return rng.standard_t(df, shape)


def _few_fields(rng, n):
    centers, noise = blobs(rng, 6, 2, n)
    return np.concatenate([centers + noise, rng.normal(size=(n, 38))], axis=1)


def _ratings(rng, n):
    fans = rng.random(n) < 0.5
    high = np.minimum(5, 1 + rng.binomial(4, 0.93, (n, 5)))
    return np.where(fans[:, None], high, 6 - high).astype(float)


def _counts(rng, n):
    rates = np.array([2.0, 40.0, 150.0])[rng.integers(0, 3, n)]
    return rng.poisson(rates[:, None], (n, 2)).astype(float)


def _widths(rng, n):
    j = rng.integers(0, 3, n)
    return np.array([[0, 0], [15, 0], [0, 25.0]])[j] + rng.normal(size=(n, 2)) * np.array([0.3, 1.0, 3.0])[j][:, None]


def _spiked(rng, n):
    rows = sum(blobs(rng, 3, 2, n))
    rows[: n // 100] = rng.normal(0, 400.0, (n // 100, 2))
    return rows


def _skewed(rng, n):
    centers, _ = blobs(rng, 4, 2, n, apart=12.0)
    return centers + rng.lognormal(0.0, 0.6, (n, 2))


def _strips(rng, n):
    return np.column_stack([rng.uniform(0, 30, n), np.where(rng.random(n) < 0.5, 0.0, 30.0) + rng.normal(size=n)])


WORLDS = {
    "two blobs": (2, lambda rng, n: sum(blobs(rng, 2, 2, n))),
    "five blobs, 8 fields": (5, lambda rng, n: sum(blobs(rng, 5, 8, n))),
    "nine blobs, 6 fields": (9, lambda rng, n: sum(blobs(rng, 9, 6, n))),
    "four that overlap": (4, lambda rng, n: sum(blobs(rng, 4, 2, n, apart=4.5))),
    "five of unequal shares": (5, lambda rng, n: sum(blobs(rng, 5, 2, n, shares=[0.5, 0.25, 0.15, 0.06, 0.04]))),
    "three widths": (3, _widths),
    "two strips": (2, _strips),
    "six in 2 of 40 fields": (6, _few_fields),
    "counts of three rates": (3, _counts),
    "ratings of two camps": (2, _ratings),
    "four with tails (t of 3)": (4, lambda rng, n: blobs(rng, 4, 2, n)[0] + _t(rng, 3, (n, 2))),
    "four log-normal ones": (4, _skewed),
    "three, 1 % spikes": (3, _spiked),
    "five cities, large amount": (5, lambda rng, n: cities(rng, n, 1)),
    "five cities, small amount": (5, lambda rng, n: cities(rng, n, 100)),
    "five cities, standard units": (5, lambda rng, n: _standard(cities(rng, n, 1))),
    "one normal cluster": (1, lambda rng, n: rng.normal(size=(n, 3)) * [100.0, 1.0, 0.1]),
    "one even box": (1, lambda rng, n: rng.uniform(size=(n, 2))),
    "one log-normal cluster": (1, lambda rng, n: rng.lognormal(0, 1, (n, 2))),
    "one cluster with tails (t of 2)": (1, lambda rng, n: _t(rng, 2, (n, 3))),
}
