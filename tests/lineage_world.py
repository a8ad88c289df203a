"""A scripted world of blobs with known events, and a plain weighted k-means that follows it without streamkm."""

import numpy as np


def norms(X):
    return np.einsum("ij,ij->i", X, X)


def squares(X, C):
    return norms(X)[:, np.newaxis] - 2.0 * X @ C.T + norms(C)


def lloyd(X, w, C, steps=60):
    weighted = [w * x for x in X.T]
    for _ in range(steps):
        labels = (norms(C) - 2.0 * X @ C.T).argmin(axis=1)
        mass = np.bincount(labels, w, len(C))
        sums = np.array([np.bincount(labels, wx, len(C)) for wx in weighted]).T
        new = np.where(mass[:, np.newaxis] > 0, sums / np.maximum(mass, 1e-300)[:, np.newaxis], C)
        if np.abs(new - C).max() <= 1e-9:
            break
        C = new
    return C, float((w * squares(X, C).min(axis=1)).sum())


def plus_plus(X, w, k, rng):
    C = [X[rng.choice(len(X), p=w / w.sum())]]
    while len(C) < k:
        p = w * np.maximum(squares(X, np.array(C)).min(axis=1), 0.0)
        C.append(X[rng.choice(len(X), p=p / p.sum())])
    return np.array(C)


def solve(X, w, k, start, rng, margin=0.01, tries=3):
    """The best of a warm start and some cold ones, which must be better by the margin."""
    best, cost = lloyd(X, w, start) if start is not None and len(start) == k else (None, np.inf)
    for _ in range(tries):
        C, c = lloyd(X, w, plus_plus(X, w, k, rng))
        if c < cost * (1.0 - margin):
            best, cost = C, c
    return best


class World:
    """Blobs that each point is drawn from, and the memory that a decaying model has of it.

    The memory is what a coreset is: some thousands of weighted rows, drawn anew for each publication.
    """

    def __init__(self, seed, k, half_life=None, rows=2500, margin=0.01):
        self.rng = np.random.default_rng(seed)
        self.k, self.half_life, self.n_rows, self.margin = k, half_life, rows, margin
        self.X, self.w = np.empty((0, 2)), np.empty(0)
        self.centroids = None

    def run(self, n, centers, sd=1.0, shares=None):
        """Let n points come; centers may be a function of the progress 0..1. Returns what `publish` takes."""
        decay = 1.0 if self.half_life is None else 2.0 ** (-n / self.half_life)
        progress = np.linspace(0.0, 1.0, n)
        place = centers if callable(centers) else lambda _: np.asarray(centers, float)
        parts = np.array_split(progress, 8)
        new = [
            place(part.mean())[self.rng.choice(len(place(0.0)), len(part), p=shares)]
            + self.rng.normal(0, sd, (len(part), 2))
            for part in parts
        ]
        ages = np.arange(n)[::-1]
        weights = np.ones(n) if self.half_life is None else 2.0 ** (-ages / self.half_life)
        self.X, self.w = np.concatenate([self.X, *new]), np.concatenate([self.w * decay, weights])
        alive = self.w > 1e-3
        self.X, self.w = self.X[alive], self.w[alive]
        pick = self.rng.choice(len(self.X), min(self.n_rows, len(self.X)), replace=False, p=self.w / self.w.sum())
        rows, weights = self.X[pick], np.full(len(pick), self.w.sum() / len(pick))
        self.centroids = solve(rows, weights, self.k, self.centroids, self.rng, self.margin)
        shuffled = self.rng.permutation(self.k)  # a re-solve may return any order
        return (self.centroids[shuffled], rows, weights, float(self.w.sum())), {"decay": decay}


def hexagon(seed, radius=25.0, jitter=2.0):
    """Six far blobs A..F; A and B are a close pair, but not close enough to overlap."""
    rng = np.random.default_rng(seed)
    angles = np.arange(6) * np.pi / 3
    centers = radius * np.stack([np.cos(angles), np.sin(angles)], axis=1) + rng.uniform(-jitter, jitter, (6, 2))
    centers[1] = centers[0] + 10.0 * (centers[1] - centers[0]) / np.linalg.norm(centers[1] - centers[0])
    return centers
