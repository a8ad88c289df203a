"""Scaling of points: each column is divided by its standard deviation or its interquartile range."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from streamkm.models.exact.storage import copy_rows, release
from streamkm.models.metric import Scale, quartile_ranges
from streamkm.recompute.collect import CollectedPoints
from streamkm.recompute.pointfile import PointFile

ROWS = 1 << 18
"""Maximum number of rows, evenly selected, from which quartiles are computed."""
_BLOCK = 1 << 16

Reals = NDArray[np.float64]


def scale_points(collected: CollectedPoints, scale: str, file: Path | None = None) -> tuple[CollectedPoints, Reals]:
    """Scale the columns of points to a common unit.

    Parameters
    ----------
    collected
        The points; points in memory are changed in place.
    scale
        ``none``, ``standard`` (standard deviation) or ``robust`` (see `quartile_ranges`).
    file
        Path of the scaled points if they are in a file, which is removed; None for a name beside it.

    Returns
    -------
    tuple
        The points, and (d,) the factors they were multiplied by.
    """
    d = len(collected.fields)
    if scale == "none" or not len(collected.array):
        return collected, np.ones(d)
    spreads = _deviations(collected)
    if cast("Scale", scale) == "robust":
        n = len(collected.array)
        chosen = np.unique(np.linspace(0, n - 1, min(n, ROWS)).round().astype(np.int64))
        weights = np.ones(len(chosen)) if collected.weights is None else np.asarray(collected.weights[chosen])
        rows = np.ascontiguousarray(copy_rows(collected.array, chosen), np.float64)
        if weights.any():
            ranges = quartile_ranges(rows, weights)
            spreads = np.where(np.isfinite(ranges) & (ranges > 0.0), ranges, spreads)
    factors = 1.0 / spreads
    points = collected.points
    if isinstance(points, PointFile):
        new = PointFile.create(file or points.path.with_name(f"{points.path.name}-scaled"), points.fields, points.dtype)
        try:
            for start in range(0, len(points), _BLOCK):
                shares = None if points.weights is None else points.weights[start : start + _BLOCK]
                new.append(points.points[start : start + _BLOCK] * factors, shares)
                release(points.points, start, start + _BLOCK)
            new.finish()
        except BaseException:
            new.close()
            raise
        points.path.unlink(missing_ok=True)
        return dataclasses.replace(collected, points=new, weights=new.weights), factors
    for start in range(0, len(points), _BLOCK):
        part = points[start : start + _BLOCK]
        np.multiply(part, factors, out=part, casting="same_kind")
    return collected, factors


def _deviations(collected: CollectedPoints) -> Reals:
    """(d,) weighted standard deviations of all points; 1 for constant columns."""
    array, weights = collected.array, collected.weights
    mass, low, high = 0.0, np.full(array.shape[1], np.inf), np.full(array.shape[1], -np.inf)
    for start in range(0, len(array), _BLOCK):
        part = np.asarray(array[start : start + _BLOCK], np.float64)
        np.minimum(low, part.min(axis=0), out=low)
        np.maximum(high, part.max(axis=0), out=high)
    # Centred and divided by the half range, squares do not overflow and sums lose no digits.
    centre = low / 2 + high / 2
    reach = np.maximum(high - centre, centre - low)
    reach[reach == 0.0] = 1.0
    first, second = np.zeros(array.shape[1]), np.zeros(array.shape[1])
    for start in range(0, len(array), _BLOCK):
        part = (np.asarray(array[start : start + _BLOCK], np.float64) - centre) / reach
        shares = np.ones(len(part)) if weights is None else np.asarray(weights[start : start + _BLOCK])
        mass += float(shares.sum())
        first += shares @ part
        second += shares @ part**2
        release(array, start, start + _BLOCK)
    if not mass > 0.0:
        return np.ones(array.shape[1])
    mean = first / mass
    spreads: Reals = reach * np.sqrt(np.maximum(0.0, second / mass - mean**2))
    spreads[spreads <= 1e-12 * np.abs(centre + reach * mean)] = 1.0
    spreads[spreads == 0.0] = 1.0
    return spreads
