"""Selection of the number of clusters: a profile over k, from a coreset or a few thousand other weighted rows.

**Computation.** For each k, a weighted k-means starts from the solution for k - 1 and one more row drawn far from it,
from k-means++, and from the solution for k + 1 with two clusters merged; the cheapest result counts. It gives the cost,
the simplified silhouette (Hruschka et al. 2004), the Davies-Bouldin index (1979), and the gap statistic (Tibshirani,
Walther and Hastie 2001, with the box along the principal axes): how far the logarithm of the cost is below the cost of
uniform data in the same box.

Rows far from all others in some field (at most 2 %, `density_valleys.inlier_mask`) are left out first: the squares of
one far row can outweigh all others.

**Suggestion.** A k is suggested only where criteria that have little in common agree, because a wrong suggestion costs
more than none (`docs/decisions/choice.md` has twenty data sets with the suggestion for each):

1. as many clusters as there are distinct rows, if these are few;
2. of the k whose clusters all have density valleys between them (`density_valleys.all_separated`) and whose silhouette
   is at least 0.8 of the best such one: the k of the gap statistic; else the largest, if its silhouette is the best of
   all k;
3. one, if there is no such k, no single field is multimodal, and no gap exceeds that of one cluster by more than 0.1
   and its standard error: clustering gains no more than in uniform data;
4. else none.

The k of the gap statistic is the smallest whose gap is within one standard error of the highest, among those whose
silhouette is at least 0.8 of the best.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from streamkm.errors import DataError, SettingsError
from streamkm.kernels.assign import assign, extent, pack_centroids
from streamkm.kernels.groups import plain
from streamkm.kernels.random import draw
from streamkm.kernels.seed import kmeans_plus_plus
from streamkm.kernels.silhouette import simplified_silhouette
from streamkm.kernels.update import AssignedRows, DistancePlan, lloyd
from streamkm.models import validation
from streamkm.models.centroids import columns_of, packed_like, power_of_two
from streamkm.models.density_valleys import all_separated, inlier_mask, jitter_discrete_fields, multimodal_fields
from streamkm.models.metric import Metric, Scale
from streamkm.models.outliers import GapRule

ITERATIONS, TOLERANCE = 25, 1e-3
"""Lloyd stops after this many iterations, or when one reduces the cost by at most this share."""

REFERENCES, REFERENCE_ROWS = 4, 2000
"""Uniform reference data sets for the gap statistic, and rows of each."""
MIN_SILHOUETTE_RATIO = 0.8
"""Gaps and valleys count only where the silhouette is at least this share of the best one."""
MIN_GAP_DIFFERENCE = 0.1
"""Minimum difference of a gap to that of one cluster."""
NEGLIGIBLE_COST = 1e-12
"""A cost below this share of that of one cluster counts as zero."""

Reals = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class KProfile:
    """Cost and quality of k-means for several k.

    Attributes
    ----------
    ks
        The evaluated k, ascending; fewer than requested if there are fewer distinct rows.
    cost
        (len(ks),): mean squared distance of a row to its centroid.
    silhouette
        (len(ks),): simplified silhouette, 0 to 1, higher is better; 0 for k = 1.
    davies_bouldin
        (len(ks),): lower is better; NaN for k = 1.
    gap, gap_error
        (len(ks),): gap statistic, relative to uniform data, higher is better, and its standard error.
    gap_of_one
        The gap of a single cluster.
    suggested
        The suggested k; 1 if there is only one cluster, whatever k were evaluated; None if the criteria disagree.
    likeliest
        The suggested k, else the best guess.
    reason
        Explanation of the suggestion, a sentence.
    """

    ks: tuple[int, ...]
    cost: Reals
    silhouette: Reals
    davies_bouldin: Reals
    gap: Reals
    gap_error: Reals
    gap_of_one: float
    suggested: int | None
    likeliest: int
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        columns = {n: getattr(self, n).tolist() for n in ("cost", "silhouette", "gap", "gap_error")}
        worst = [None if math.isnan(v) else v for v in self.davies_bouldin.tolist()]
        rest = {"davies_bouldin": worst, "gap_of_one": self.gap_of_one}
        return {
            "ks": [*self.ks],
            **columns,
            **rest,
            "suggested": self.suggested,
            "likeliest": self.likeliest,
            "reason": self.reason,
        }


def k_profile(
    rows: ArrayLike, weights: ArrayLike | None = None, k_max: int = 20, k_min: int = 2, seed: int = 0
) -> KProfile:
    """Compute the profile for every k from `k_min` to `k_max`, and suggest one.

    Parameters
    ----------
    rows
        (n, d), at most some thousands, in units in which distances are comparable.
    weights
        (n,), not negative: a row of weight 3 counts as three equal rows. Ones by default.
    k_max, k_min
        Range of k, inclusive, ``1 <= k_min <= k_max``.
    seed
        Seed of the random choices: equal arguments give equal profiles.

    Raises
    ------
    DataError
        No rows, no weight, wrong shapes, NaN or infinity.
    SettingsError
        k out of range.
    """
    if not 1 <= k_min <= k_max:
        raise SettingsError(f"k_min must be at least 1 and at most k_max, not {k_min} and {k_max}")
    points, _ = validation.points(rows, (), 0)
    validation.finite(points, ())
    row_weights = validation.row_weights(weights, len(points))
    mass = float(row_weights.sum()) if len(row_weights) else float(len(points))
    if not mass > 0.0:
        raise DataError("no row has a positive weight, so k cannot be selected")
    X = np.asarray(points, np.float64)
    if len(row_weights):
        kept = row_weights > 0.0
        X, row_weights = X[kept], validation.frozen(row_weights[kept])
    close = inlier_mask(X, row_weights if len(row_weights) else np.ones(len(X)))
    X, row_weights = X[close], validation.frozen(row_weights[close]) if len(row_weights) else row_weights
    mass = float(row_weights.sum()) if len(row_weights) else float(len(X))
    X = _centred(X, row_weights)
    rng = np.array([seed], np.uint64)
    solver = _Solver(X, row_weights, rng)
    solutions = solver.all(k_max)
    costs = np.array([cost for _, cost in solutions]) / mass
    gaps, errors = _gap_statistics(X, row_weights, costs, mass, rng)
    qualities = [_quality(X, row_weights, centroids) for centroids, _ in solutions]
    silhouettes, davies = np.array([s for s, _ in qualities]), np.array([b for _, b in qualities])
    distinct = costs[-1] <= NEGLIGIBLE_COST * costs[0]
    if distinct:
        suggested: int | None = len(costs)
        likeliest, reason = len(costs), f"the rows take only {len(costs)} distinct values"
    else:
        every = row_weights if len(row_weights) else np.ones(len(X))
        smooth = jitter_discrete_fields(X, seed)
        separated = [
            k > 1 and all_separated(smooth, every, c, solver.nearest(c)[0]) for k, (c, _) in enumerate(solutions, 1)
        ]
        hidden = not any(separated) and bool(multimodal_fields(smooth, every))
        suggested, likeliest, reason = _suggest(silhouettes, gaps, errors, separated, hidden=hidden, k_min=k_min)
    shown = slice(min(k_min, len(costs)) - 1, len(costs))
    return KProfile(
        tuple(range(1, len(costs) + 1))[shown],
        costs[shown], silhouettes[shown], davies[shown], gaps[shown], errors[shown], float(gaps[0]),
        suggested, likeliest, reason,
    )  # fmt: skip


def suggested_k(rows: Reals, weights: Reals, k_max: int, scale: Scale, rule: GapRule | None, seed: int) -> int:
    """Likeliest number of clusters of the first rows of a stream; unweighted if no row has weight.

    Parameters
    ----------
    rows, weights
        (n, d) and (n,).
    k_max
        Maximum number of clusters.
    scale
        How the units of distances are derived from the data.
    rule
        A new rule that detects outliers, which are left out; None to keep all rows.
    seed
        Seed of the random choices.
    """
    if not weights.sum() > 0.0:
        weights = np.ones(len(rows))
    raw = Metric.raw(rows.shape[1])
    if rule is not None:
        inside = rule.refit(rows, weights, raw.rescaled(rows, weights, "none" if scale == "none" else "robust").factors)
        if inside is not None:
            rows, weights = rows[inside], weights[inside]
    return k_profile(rows * raw.rescaled(rows, weights, scale).factors, weights, k_max, seed=seed).likeliest


def _centred(X: Reals, row_weights: Reals) -> Reals:
    """Centre rows so that squares neither overflow nor cancel; all results are invariant to this."""
    weights = row_weights if len(row_weights) else np.ones(len(X))
    X = X - X[0]
    X = X - weights @ X / weights.sum()
    return validation.frozen(np.ascontiguousarray(X))


class _Solver:
    """Weighted k-means on centred rows, for increasing k."""

    def __init__(self, X: Reals, row_weights: Reals, rng: NDArray[np.uint64]) -> None:
        self.X, self.row_weights, self.rng = X, row_weights, rng
        self.origin = np.zeros(X.shape[1])
        ones = np.ones(X.shape[1])
        self.scale = ones * power_of_two(extent(X, self.origin, ones))
        self.columns = columns_of(X, self.origin, self.scale, double=True)

    def lloyd_on_columns(self, centroids: Reals) -> tuple[Reals, float]:
        """Run Lloyd's algorithm from (k, d) centroids; return centroids and cost."""
        k, d = centroids.shape
        n = len(self.X)
        cost = lloyd(
            self.X,
            self.row_weights,
            plain(DistancePlan(self.scale, validation.ONES, packed_like(k, d, double=True))),
            False,  # noqa: FBT003  # numba takes arguments by position
            centroids,
            ITERATIONS,
            TOLERANCE,
            plain(AssignedRows(np.empty(n, np.int32), np.empty(n), np.empty((k, d + 2)), self.origin)),
        )
        return centroids, cost

    def nearest(self, centroids: Reals) -> tuple[NDArray[np.int32], Reals]:
        """Return labels and squared distances to (k, d) centroids."""
        packed = packed_like(*centroids.shape, double=True)
        labels, squared = np.empty(len(self.X), np.int32), np.empty(len(self.X))
        pack_centroids(centroids, self.origin, self.scale, packed)
        assign(self.X, self.origin, self.scale, validation.ONES, packed, centroids, labels, squared)
        return labels, squared

    def one_more(self, centroids: Reals) -> Reals:
        """Add a row to (k, d) centroids, drawn proportionally to squared distance."""
        _, squared = self.nearest(centroids)
        return np.concatenate([centroids, self.X[[draw(self.row_weights, squared, self.rng)]]])

    def plus_plus(self, k: int) -> Reals:
        """Choose k rows by k-means++."""
        centroids = np.empty((k, self.X.shape[1]))
        n_candidates = 2 + int(math.log(k))
        kmeans_plus_plus(self.X, self.row_weights, self.columns, n_candidates, self.rng, centroids)
        return centroids

    def one_less(self, centroids: Reals) -> Reals:
        """Replace the two centroids that cost least to merge (Ward 1963) by their mean."""
        labels, _ = self.nearest(centroids)
        mass = np.bincount(labels, self.row_weights if len(self.row_weights) else None, len(centroids))
        apart = ((centroids[:, np.newaxis] - centroids) ** 2).sum(axis=2)
        pairs = mass[:, np.newaxis] + mass
        price = np.where(pairs > 0.0, mass[:, np.newaxis] * mass / np.where(pairs > 0.0, pairs, 1.0), 0.0) * apart
        np.fill_diagonal(price, math.inf)
        i, j = np.unravel_index(int(price.argmin()), price.shape)
        merged = (mass[i] * centroids[i] + mass[j] * centroids[j]) / pairs[i, j] if pairs[i, j] else centroids[i]
        fewer = np.delete(centroids, j, axis=0)
        fewer[i - (j < i)] = merged
        return fewer

    def all(self, k_max: int) -> list[tuple[Reals, float]]:
        """Return centroids and cost for k = 1, 2, ..., up to k_max or until the cost is zero."""
        best = [self.lloyd_on_columns(np.zeros((1, self.X.shape[1])))]
        while len(best) < k_max and best[-1][1] > NEGLIGIBLE_COST * best[0][1]:
            starts = self.one_more(best[-1][0]), self.plus_plus(len(best) + 1)
            best.append(min(map(self.lloyd_on_columns, starts), key=lambda found: found[1]))
        for k in range(len(best) - 1, 1, -1):
            best[k - 1] = min(best[k - 1], self.lloyd_on_columns(self.one_less(best[k][0])), key=lambda found: found[1])
        return best


def _quality(X: Reals, row_weights: Reals, centroids: Reals) -> tuple[float, float]:
    """Return the silhouette and the Davies-Bouldin index."""
    k = len(centroids)
    if k < 2:
        return 0.0, math.nan
    scatter = np.empty((k, 2))
    silhouette = simplified_silhouette(X, row_weights, centroids, scatter)
    used = scatter[:, 0] > 0.0
    mean = scatter[used, 1] / scatter[used, 0]
    apart = np.linalg.norm(centroids[used, np.newaxis] - centroids[used], axis=2)
    np.fill_diagonal(apart, math.inf)
    ratio = (mean[:, np.newaxis] + mean) / np.where(apart > 0.0, apart, math.inf)
    return silhouette, float(ratio.max(axis=1).mean())


def _gap_statistics(
    X: Reals, row_weights: Reals, costs: Reals, mass: float, rng: NDArray[np.uint64]
) -> tuple[Reals, Reals]:
    """Return the gap and its standard error for each k; the gap is infinite where the cost is zero."""
    weights = row_weights if len(row_weights) else np.ones(len(X))
    axes = np.linalg.svd((X * weights[:, np.newaxis]).T @ X)[0]
    turned = X @ axes
    low, high = turned.min(axis=0), turned.max(axis=0)
    n = int(min(REFERENCE_ROWS, max(len(costs) + 1, mass)))
    even = np.random.default_rng(int(rng[0]))
    logs = np.full((REFERENCES, len(costs)), math.nan)
    for r in range(REFERENCES):
        box = validation.frozen(np.ascontiguousarray(even.uniform(low, high, (n, len(low)))))
        reference = [cost for _, cost in _Solver(box, validation.ONES, rng).all(len(costs))]
        logs[r, : len(reference)] = np.log(np.maximum(reference, 1e-300)) - math.log(n)
    with np.errstate(divide="ignore"):
        gaps = logs.mean(axis=0) - np.log(costs)
    errors = logs.std(axis=0) * math.sqrt(1.0 + 1.0 / REFERENCES)
    nothing = costs <= NEGLIGIBLE_COST * costs[0]
    return np.where(nothing, math.inf, gaps), np.where(nothing, 0.0, errors)


def _suggest(
    silhouettes: Reals, gaps: Reals, errors: Reals, separated: list[bool], *, hidden: bool, k_min: int
) -> tuple[int | None, int, str]:
    """Apply the rule of the module's docstring, if there are more than a few distinct rows; index 0 is k = 1.

    Parameters
    ----------
    separated
        (len(ks),): whether all clusters have valleys between them, for each k.
    hidden
        Whether this is so for no k, but a single field is multimodal.

    Returns
    -------
    tuple
        The suggested k or None; the likeliest k; the reason.
    """
    tried = range(max(2, k_min), len(gaps) + 1)
    if not tried:
        return 1, 1, "only one cluster was tried"
    by_silhouette = max(tried, key=lambda k: silhouettes[k - 1])
    best = silhouettes[by_silhouette - 1]
    good = [k for k in tried if silhouettes[k - 1] >= MIN_SILHOUETTE_RATIO * best]
    top = max(good, key=lambda k: gaps[k - 1])
    by_gap = next(k for k in good if gaps[k - 1] >= gaps[top - 1] - errors[top - 1])
    comparison = f"the silhouette is best for {by_silhouette} ({best:.2f}), the gap statistic for {by_gap}"
    separated_ks = [k for k in tried if separated[k - 1]]
    if separated_ks:
        clearest = max(silhouettes[k - 1] for k in separated_ks)
        clear = [k for k in separated_ks if silhouettes[k - 1] >= MIN_SILHOUETTE_RATIO * clearest]
        k = by_gap if by_gap in clear else max(clear)
        own = silhouettes[k - 1]
        if k in (by_gap, by_silhouette):
            also = "the gap statistic is best" if by_gap == k else "the silhouette is best"
            return k, k, f"there are valleys between all {k}, and {also}; silhouette {own:.2f}"
        return None, k, f"no clear number: there are valleys between {k} (silhouette {own:.2f}), but {comparison}"
    if hidden:
        units = "a single field falls into groups that other fields hide: they may show in other units (--scale)"
        return None, by_silhouette, f"no clear number: no k has valleys between all its clusters, but {units}"
    if not (gaps[1:] - errors[1:] > gaps[0] + MIN_GAP_DIFFERENCE).any():
        return (
            1,
            1,
            "one cluster: no valley between any clusters, and no k lowers the cost more than in uniform data",
        )
    return None, by_silhouette, f"no clear number: no k has valleys between all its clusters, but {comparison}"
