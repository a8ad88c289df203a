"""Construction of a model from its spec."""

from __future__ import annotations

from typing import Any

from streamkm.models.online import OnlineKMeans
from streamkm.state import ModelSpec


def arguments(spec: ModelSpec) -> dict[str, Any]:
    """Return the constructor arguments of the model that a spec describes."""
    return {"n_clusters": spec.n_clusters or "auto", **{k: v for k, v in spec.learner.items() if k != "kind"}}


def new_learner(spec: ModelSpec) -> OnlineKMeans:
    """Make the model that a spec describes, without any points.

    Raises
    ------
    SettingsError
        The spec is invalid.
    """
    return OnlineKMeans(**arguments(spec))
