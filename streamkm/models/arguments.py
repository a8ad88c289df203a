"""Constructor arguments of `OnlineKMeans`: their types and their validation."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from streamkm.errors import SettingsError
from streamkm.models import validation
from streamkm.models.coreset import Coreset
from streamkm.models.decay import Unit
from streamkm.models.metric import Scale
from streamkm.models.schedule import OnDrift
from streamkm.state import Distance

K_MAX = 20
"""Largest k that ``n_clusters="auto"`` selects."""

Outliers = Literal["gap", "keep"]

ARGUMENTS = (
    "n_clusters",
    "half_life",
    "half_life_unit",
    "scale",
    "distance",
    "on_drift",
    "outliers",
    "coreset_size",
    "warmup",
    "seed",
)
"""Names of the constructor arguments, all of which are part of the state."""


def check(
    n_clusters: int | Literal["auto"],
    half_life: float | None,
    half_life_unit: Unit,
    scale: Scale,
    distance: Distance,
    on_drift: OnDrift,
    outliers: Outliers,
    coreset_size: int | None,
    warmup: int | None,
    seed: int,
) -> int:
    """Validate the constructor arguments, and return the maximum number of clusters.

    Raises
    ------
    SettingsError
        A value is out of its range, or two values cannot be combined.
    """
    if half_life is not None and not (half_life > 0 and math.isfinite(half_life)):
        raise SettingsError(f"half_life must be positive, not {half_life!r}", hint="Use None for no decay")
    validation.choice("half_life_unit", half_life_unit, Unit)
    validation.choice("scale", scale, Scale)
    validation.choice("distance", distance, Distance)
    validation.choice("on_drift", on_drift, OnDrift)
    validation.choice("outliers", outliers, Outliers)
    if distance == "cosine" and scale != "none":
        raise SettingsError(f"scale={scale!r} cannot be combined with distance='cosine', which has no units")
    most = K_MAX if n_clusters == "auto" else n_clusters
    Coreset(most, seed=seed)  # checks both
    if coreset_size is not None and (not isinstance(coreset_size, int | np.integer) or coreset_size < 16 * most):
        raise SettingsError(f"coreset_size must be at least 16 n_clusters = {16 * most}, not {coreset_size!r}")
    if warmup is not None and (not isinstance(warmup, int | np.integer) or warmup < most):
        raise SettingsError(f"warmup must be at least n_clusters = {most}, not {warmup!r}")
    return most
