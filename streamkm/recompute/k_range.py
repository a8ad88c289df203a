"""The exact algorithm for every k of a range, and a suggestion for k.

**Initial centroids for each k.** On a sample of the rows (all of them, up to 4000) these candidates are improved by
Lloyd's algorithm: the exact centroids for k - 1 with one more row, drawn by its squared distance to them, three times;
and one or more starts of the selected method. The candidate with the lowest cost starts the fit on all rows. If that
fit has a higher cost than the one for k - 1, which is possible because of the sample, a second fit starts from the
centroids for k - 1 and the farthest row of the sample, which cannot have a higher cost.

**Criteria.** Cost, simplified silhouette and the Davies-Bouldin index are computed from the exact fit on all rows. The
gap statistic needs the cost of uniform reference data, and the suggestion applies a rule; both come from
`streamkm.models.k_selection.k_profile` on the same sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamkm.errors import SettingsError
from streamkm.kernels.silhouette import simplified_silhouette
from streamkm.models.exact.storage import copy_rows, release
from streamkm.models.k_selection import KProfile, k_profile
from streamkm.models.validation import ONES, frozen
from streamkm.recompute.collect import CollectedPoints
from streamkm.recompute.fitting import FitResult, fit_points

METHODS = ("random", "k-means++", "k-means||")
"""Methods to choose initial centroids from the points."""
SAMPLE = 4000
"""Maximum number of sampled rows."""
MAX_K = 500
"""Maximum k of a range; a cluster has eight rows of the sample then."""
_DRAWS = 3
_SAMPLE_ITERATIONS = 30
_BLOCK = 1 << 16

Reals = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Trial:
    """The fit for one k.

    Attributes
    ----------
    k
        Number of clusters.
    centroids
        (k, d).
    cost
        Weighted sum of squared distances over all rows.
    n_iter
        Number of iterations on all rows.
    silhouette
        Simplified silhouette over all rows, 0 to 1, higher is better; 0 for k = 1.
    davies_bouldin
        Davies-Bouldin index over all rows, lower is better; NaN for k = 1.
    gap, gap_error
        Difference of the logarithms of the costs of uniform reference data and of the points, and its standard error;
        NaN if the sample has fewer distinct rows than k.
    """

    k: int
    centroids: Reals
    cost: float
    n_iter: int
    silhouette: float
    davies_bouldin: float
    gap: float
    gap_error: float


@dataclass(frozen=True, eq=False)
class Trials:
    """All fits of a range.

    Attributes
    ----------
    trials
        By k, ascending.
    suggested
        Suggested k; 1 for a single cluster, even if it was not tried; None if the criteria disagree.
    likeliest
        The suggested k, else the best guess.
    reason
        Explanation of the suggestion, a sentence.
    sampled_rows
        Number of sampled rows behind suggestion and gap.
    fitted
        The fit for the likeliest k, or for the nearest one tried.
    """

    trials: tuple[Trial, ...]
    suggested: int | None
    likeliest: int
    reason: str
    sampled_rows: int
    fitted: FitResult

    def to_json(self) -> dict[str, Any]:
        """As JSON values; numbers that are not finite are None."""
        names = ("k", "cost", "n_iter", "silhouette", "davies_bouldin", "gap", "gap_error")
        rows = [{n: v if math.isfinite(v := getattr(t, n)) else None for n in names} for t in self.trials]
        suggestion = {"suggested": self.suggested, "likeliest": self.likeliest, "reason": self.reason}
        return {"trials": rows, **suggestion, "sampled_rows": self.sampled_rows}


def fit_range(
    collected: CollectedPoints,
    low: int,
    high: int,
    *,
    init: str = "k-means++",
    n_init: int = 1,
    max_iter: int = 300,
    tol: float = 0.0,
    seed: int = 0,
    memory: int | None = None,
    n_threads: int | None = None,
    on_trial: Callable[[int], None] | None = None,
) -> Trials:
    """Fit every k from `low` to `high`.

    Parameters
    ----------
    collected
        The points, at least `high`.
    low, high
        ``1 <= low <= high <= MAX_K``.
    init, n_init
        Method and number of the fresh starts on the sample.
    max_iter, tol, seed, memory, n_threads
        As in `fit_points`.
    on_trial
        Called with each k before it is fitted.

    Raises
    ------
    SettingsError
        `init` is not a method (given centroids have one k only), or `high` is too large.
    """
    if init not in METHODS:
        raise SettingsError(
            f"a range of k cannot start from {init}", where="--init", hint=f"Use one of {', '.join(METHODS)}"
        )
    if high > MAX_K:
        raise SettingsError(f"a range of k goes up to {MAX_K}, not {high}", where="--k", hint="Fit large k one by one")
    search = _Search(collected, init, n_init, seed)
    profile = k_profile(search.rows, search.weights, k_max=high, k_min=1, seed=seed)
    best_k = min(max(profile.likeliest, low), high)
    trials: list[Trial] = []
    best: FitResult | None = None
    for k in range(low, high + 1):
        if on_trial is not None:
            on_trial(k)

        def fit(start: Reals) -> FitResult:
            return fit_points(
                collected.points,
                n_clusters=len(start),
                init=start,
                max_iter=max_iter,
                tol=tol,
                seed=seed,
                weights=collected.weights,
                memory=memory,
                n_threads=n_threads,
            )

        before = trials[-1] if trials else None
        fitted = fit(search.start(k, before.centroids if before else None))
        if before is not None and fitted.inertia > before.cost:
            fitted = min(fitted, fit(search.farthest(before.centroids)), key=lambda found: found.inertia)
        trials.append(_evaluate(collected, fitted, profile))
        if k == best_k:
            best = fitted
    assert best is not None  # noqa: S101 -- best_k is in the range
    return Trials(tuple(trials), profile.suggested, profile.likeliest, profile.reason, len(search.rows), best)


class _Search:
    """Finds initial centroids on a sample of the rows."""

    def __init__(self, collected: CollectedPoints, init: str, n_init: int, seed: int) -> None:
        n = len(collected.array)
        chosen = np.unique(np.linspace(0, n - 1, min(n, SAMPLE)).round().astype(np.int64))
        self.rows = np.ascontiguousarray(copy_rows(collected.array, chosen), np.float64)
        self.weights = None if collected.weights is None else np.asarray(collected.weights[chosen], np.float64)
        if self.weights is not None and not self.weights.any():
            self.weights = None  # rows without weight are still candidates
        self._init, self._n_init, self._seed = init, n_init, seed

    def start(self, k: int, before: Reals | None) -> Reals:
        """Initial centroids, given those for k - 1."""
        fresh: list[Any] = [self._init]
        rng = np.random.default_rng([self._seed, k])
        if before is not None:
            shares = self._squares(before)
            if shares.any():
                drawn = rng.choice(len(self.rows), _DRAWS, p=shares / shares.sum())
                fresh += [np.concatenate([before, self.rows[[i]]]) for i in drawn]
        found = [
            fit_points(
                self.rows,
                n_clusters=k,
                init=init,
                n_init=max(2, self._n_init) if isinstance(init, str) else 1,
                max_iter=_SAMPLE_ITERATIONS,
                seed=self._seed,
                weights=self.weights,
                n_threads=1,
            )
            for init in fresh
        ]
        return min(found, key=lambda fitted: fitted.inertia).centroids

    def farthest(self, before: Reals) -> Reals:
        """The centroids for k - 1 and the row farthest from them, with a cost of at most theirs."""
        return np.concatenate([before, self.rows[[int(self._squares(before).argmax())]]])

    def _squares(self, centroids: Reals) -> Reals:
        """Weighted squared distance of each row to its nearest centroid."""
        squares = np.full(len(self.rows), math.inf)
        for centroid in centroids:
            np.minimum(squares, ((self.rows - centroid) ** 2).sum(axis=1), out=squares)
        return squares if self.weights is None else squares * self.weights


def _evaluate(collected: CollectedPoints, fitted: FitResult, profile: KProfile) -> Trial:
    """Evaluate a fit on all rows."""
    k = len(fitted.centroids)
    mass = float(fitted.sizes.sum())
    gap = error = math.nan
    if k in profile.ks:
        i = profile.ks.index(k)
        with np.errstate(divide="ignore", invalid="ignore"):
            even = profile.gap[i] + np.log(profile.cost[i])
            gap, error = float(even - np.log(fitted.inertia / mass)), float(profile.gap_error[i])
    silhouette, davies_bouldin = _silhouette_and_index(collected, fitted.centroids, mass) if k > 1 else (0.0, math.nan)
    return Trial(k, fitted.centroids, fitted.inertia, fitted.n_iter, silhouette, davies_bouldin, gap, error)


def _silhouette_and_index(collected: CollectedPoints, centroids: Reals, mass: float) -> tuple[float, float]:
    """Simplified silhouette and Davies-Bouldin index, a block of rows at a time."""
    k = len(centroids)
    squared_deviations, part = np.zeros((k, 2)), np.empty((k, 2))
    silhouette = 0.0
    origin = centroids.mean(axis=0)
    for start in range(0, len(collected.array), _BLOCK):
        rows = frozen(np.ascontiguousarray(collected.array[start : start + _BLOCK] - origin, np.float64))
        weights = ONES
        if collected.weights is not None:
            weights = frozen(np.array(collected.weights[start : start + _BLOCK]))
        share = simplified_silhouette(rows, weights, centroids - origin, part)
        silhouette += share * float(part[:, 0].sum())
        squared_deviations += part
        release(collected.array, start, start + len(rows))
    used = squared_deviations[:, 0] > 0.0
    mean = squared_deviations[used, 1] / squared_deviations[used, 0]
    apart = np.linalg.norm(centroids[used, np.newaxis] - centroids[used], axis=2)
    np.fill_diagonal(apart, math.inf)
    ratio = (mean[:, np.newaxis] + mean) / np.where(apart > 0.0, apart, math.inf)
    return silhouette / mass, float(ratio.max(axis=1).mean())
