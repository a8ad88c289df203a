"""The results of a fit as JSON, as lines of text, and as pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamkm.assignment import nearest
from streamkm.effect_sizes import differences
from streamkm.models.exact.lloyd import Iteration
from streamkm.models.exact.storage import copy_rows
from streamkm.recompute import plot
from streamkm.recompute.collect import CollectedPoints
from streamkm.recompute.fitting import FitResult
from streamkm.recompute.k_range import Trials
from streamkm.settings import FitSettings

MAX_PICTURES = 50
"""Iterations of a trace that are drawn."""
_MAX_LISTED_NUMBERS = 12
"""Numbers of centroids up to which a trace lists them."""


def fit_json(
    source: str, collected: CollectedPoints, fitted: FitResult, settings: FitSettings, trials: Trials | None
) -> dict[str, Any]:
    """The result of a fit as JSON.

    Parameters
    ----------
    source
        Paths or query that the points were read from.
    collected
        The points.
    fitted
        The fit.
    settings
        Its settings.
    trials
        The fits of a range of k; None for a single k.
    """
    total = float(fitted.sizes.sum())
    unweighted = collected.weights is None
    within = fitted.deviations()
    found = differences(fitted.centroids, fitted.sizes, within)
    clusters = [
        {
            "id": j,
            "size": int(size) if unweighted else size,
            "share": size / total,
            "spread": spread,
            "centroid": centroid,
            "deviations": _finite(within[j]),
            "differences": _finite(found[j]),
        }
        for j, (size, spread, centroid) in enumerate(
            zip(fitted.sizes.tolist(), fitted.spreads.tolist(), fitted.centroids.tolist(), strict=True)
        )
    ]
    result: dict[str, Any] = {
        "source": source,
        "fields": list(collected.fields),
        "weight_field": settings.weight_field or None,
        "rows": {
            "read": collected.n_rows,
            "used": len(collected.points),
            "skipped": len(collected.skipped),
        },
        "skipped_examples": [str(bad) for bad in collected.examples],
        "k": len(clusters),
        "scale": settings.scale,
        "init": settings.init,
        "seed": settings.seed,
        "cost": fitted.inertia,
        "iterations": fitted.n_iter,
        "stopped": stop_reason(fitted, settings),
        "converged": fitted.stopped != "max_iter",
        "clusters": clusters,
    }
    if fitted.trace:
        result["trace"] = [
            {
                "centroids": step.centroids.tolist(),
                "sizes": step.sizes.tolist(),
                "cost": step.inertia,
                "moved": step.moved,
            }
            for step in fitted.trace
        ]
    return result | (trials.to_json() if trials is not None else {})


def _finite(values: NDArray[np.float64]) -> list[float | None]:
    return [x if math.isfinite(x) else None for x in values.tolist()]


def stop_reason(fitted: FitResult, settings: FitSettings) -> str:
    """Why the fit stopped."""
    if fitted.stopped == "tol":
        return f"no centroid moved farther than {settings.tol:g}" if settings.tol else "no centroid moved"
    return "no label changed" if fitted.stopped == "labels" else f"the limit of {settings.max_iter} iterations"


def suggestion(trials: Trials) -> str:
    """The suggested number of clusters."""
    return "no k" if trials.suggested is None else f"k = {trials.suggested}"


def counted(n: int, unit: str) -> str:
    """A number with its unit, such as ``2 points``."""
    return f"{n:,} {unit}" + ("" if n == 1 else "s")


def trace_lines(trace: tuple[Iteration, ...], final: plot.Reals) -> Iterator[str]:
    """One line per iteration; for a small fit, a line with the centroids of all iterations comes first.

    Parameters
    ----------
    trace
        The iterations.
    final
        (k, d) the final centroids.
    """
    if not trace:
        return
    small = final.size <= _MAX_LISTED_NUMBERS
    targets = [step.centroids for step in trace[1:]] + [final]
    if small:
        path = [step.centroids for step in trace]
        path = path if np.array_equal(path[-1], final) else [*path, final]
        yield "centroids: " + " -> ".join(map(_point_list, path))
    for i, (step, target) in enumerate(zip(trace, targets, strict=True), 1):
        if small:
            change = f"{_point_list(step.centroids)} -> {_point_list(target)}"
            sizes = ", ".join(f"{size:g}" for size in step.sizes)
        else:
            largest = float(np.linalg.norm(target - step.centroids, axis=1).max())
            change = f"largest shift of a centroid {largest:.6g}"
            sizes = f"{step.sizes.min():g} to {step.sizes.max():g}"
        yield f"iteration {i}: {change}; sizes {sizes}; cost {step.inertia:.6g}; {counted(step.moved, 'point')} moved"


def _point_list(centroids: plot.Reals) -> str:
    """Centroids in textbook notation: (3, 18) in one dimension, (1, 2) (3, 4) in more."""
    if centroids.shape[1] == 1:
        return "(" + ", ".join(f"{v:.6g}" for v in centroids[:, 0]) + ")"
    return " ".join("(" + ", ".join(f"{v:.6g}" for v in row) + ")" for row in centroids)


def fit_pictures(
    path: Path,
    collected: CollectedPoints,
    fitted: FitResult,
    trials: Trials | None,
    pairs: tuple[str, ...],
    factors: plot.Reals,
) -> Iterator[tuple[Path, str]]:
    """Draw a fit: the criteria of a range of k, or the points by cluster and each iteration of the trace.

    Parameters
    ----------
    path
        File of the picture; those of iterations get a number in their names.
    collected
        The points, multiplied by `factors`.
    fitted
        The fit, in original units.
    trials
        The fits of a range of k; None for a single k.
    pairs
        Fields to draw in pairs; empty for the default view.
    factors
        (d,) factors of the points; pictures are in original units.

    Yields
    ------
    File and SVG of each picture.
    """
    if trials is not None:
        rows = trials.trials
        curves = [
            ("cost", [t.cost for t in rows]),
            ("simplified silhouette (higher is better)", [t.silhouette for t in rows]),
            ("Davies-Bouldin (lower is better)", [t.davies_bouldin for t in rows]),
            ("gap statistic (higher is better)", [t.gap for t in rows]),
        ]
        title = f"suggested: {suggestion(trials)}"
        yield path, plot.plot_k_range([t.k for t in rows], curves, trials.suggested, title)
        return
    array, fields = collected.array, collected.fields
    scaled = copy_rows(array, plot.sample_rows(len(array))).astype(np.float64)
    points = scaled / factors

    def labels(centroids: plot.Reals) -> NDArray[np.int32]:
        return nearest(centroids * factors, scaled)[0].astype(np.int32)

    targets = [step.centroids for step in fitted.trace[1:]] + [fitted.centroids]
    steps = [(step.centroids, target) for step, target in zip(fitted.trace, targets, strict=bool(fitted.trace))]
    for i, (centroids, target) in enumerate(steps[:MAX_PICTURES], 1):
        title = f"iteration {i}" + (f": {_point_list(centroids)}" if centroids.size <= _MAX_LISTED_NUMBERS else "")
        picture = plot.plot_points(
            points, labels(centroids), centroids, fields, pairs=pairs, next_centroids=target, title=title
        )
        yield path.with_name(f"{path.stem}-{i}{path.suffix}"), picture
    title = f"{len(array):,} rows, k = {len(fitted.centroids)}, cost {fitted.inertia:.6g}"
    yield path, plot.plot_points(points, labels(fitted.centroids), fitted.centroids, fields, pairs=pairs, title=title)
