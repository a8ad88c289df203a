"""Construction of learners: from a spec, from a state, or from the clusters of a snapshot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import NDArray

from streamkm.errors import SettingsError, StateError
from streamkm.models.learner import Learner
from streamkm.models.online import OnlineKMeans
from streamkm.state import ModelSpec, ModelState, Snapshot

LEARNERS: dict[str, type[Learner]] = {"OnlineKMeans": OnlineKMeans}
"""Classes of learners by the ``kind`` of a spec or a state."""


def arguments(spec: ModelSpec) -> Mapping[str, Any]:
    """Return the constructor arguments of the model that a spec describes."""
    return {"n_clusters": spec.n_clusters or "auto", **{k: v for k, v in spec.learner.items() if k != "kind"}}


def new_learner(spec: ModelSpec) -> Learner:
    """Make the model that a spec describes, without any points.

    Raises
    ------
    SettingsError
        The spec is invalid, or its kind is unknown.
    """
    make: Callable[..., Learner] = _class_of(spec)
    return make(**arguments(spec))


def restore_learner(state: ModelState) -> Learner:
    """Restore a model from its state; it continues bit for bit like the original.

    Raises
    ------
    StateError
        The state is damaged, or of an unknown kind or version.
    """
    if state.kind not in LEARNERS:
        raise StateError(f"the state is of an unknown kind of model, {state.kind}", hint="Upgrade streamkm")
    return LEARNERS[state.kind].from_state(state)


def learner_from_snapshot(
    spec: ModelSpec,
    snapshot: Snapshot,
    rows: NDArray[Any],
    weights: NDArray[Any],
    clock: float | None = None,
) -> Learner:
    """Make a model that continues from the clusters of a snapshot, as if it had learned them.

    Parameters
    ----------
    spec
        The model.
    snapshot
        Its clusters.
    rows, weights
        (m, d) and (m,): a coreset of their points; the centroids and their weights if there is none.
    clock
        The newest event time among the points, seconds since 1970.

    Raises
    ------
    SettingsError
        The spec is invalid, or its kind is unknown.
    """
    return _class_of(spec).from_snapshot(arguments(spec), snapshot, rows, weights, clock)


def _class_of(spec: ModelSpec) -> type[Learner]:
    kind = spec.learner.get("kind", "OnlineKMeans")
    if kind not in LEARNERS:
        raise SettingsError(
            f"there is no kind of model {kind!r}", where="learner.kind", hint=f"Known: {', '.join(LEARNERS)}"
        )
    return LEARNERS[kind]
