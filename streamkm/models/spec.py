"""From the spec of a model to the model."""

from __future__ import annotations

from typing import Any

from streamkm.models.online import OnlineKMeans
from streamkm.state import ModelSpec


def arguments(spec: ModelSpec) -> dict[str, Any]:
    """Arguments of the model that a spec describes."""
    return {"n_clusters": spec.n_clusters or "auto", **{k: v for k, v in spec.learner.items() if k != "kind"}}


def new_learner(spec: ModelSpec) -> OnlineKMeans:
    """The model that a spec describes, before its first point.

    Raises
    ------
    SettingsError
        It describes none.
    """
    return OnlineKMeans(**arguments(spec))
