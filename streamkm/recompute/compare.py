"""Compares two snapshots of a model, and their cost on the same points."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamkm.errors import DataError, NotReadyError
from streamkm.models import OnlineKMeans
from streamkm.models.centroids import normalized
from streamkm.models.weighted_rows import nearest
from streamkm.state import Snapshot
from streamkm.stores.base import ModelStore


@dataclass(frozen=True)
class ClusterShift:
    """A cluster that both snapshots have.

    Attributes
    ----------
    id
        Cluster id.
    distance
        Distance between its centroids, in scaled units.
    spreads
        The same in spreads of the first; None if that is 0.
    share_before, share_after
        Share of the points.
    """

    id: int
    distance: float
    spreads: float | None
    share_before: float
    share_after: float


@dataclass(frozen=True)
class SnapshotDifference:
    """Difference from snapshot `a` to snapshot `b`.

    Attributes
    ----------
    a, b
        Numbers of the snapshots.
    shifts
        Clusters of both, by decreasing distance.
    removed, added
        Ids of clusters that only `a`, and only `b` has.
    changed
        Share of the points whose cluster id differs.
    cost_a, cost_b
        Mean squared distance of the points to the nearest centroid.
    points
        Total weight of the points used for the comparison.
    """

    a: int
    b: int
    shifts: tuple[ClusterShift, ...]
    removed: tuple[int, ...]
    added: tuple[int, ...]
    changed: float
    cost_a: float
    cost_b: float
    points: float

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def compare(a: Snapshot, b: Snapshot, rows: NDArray[np.float64], weights: NDArray[np.float64]) -> SnapshotDifference:
    """Compare two snapshots on weighted rows.

    Parameters
    ----------
    a, b
        Snapshots of one model.
    rows
        (m, d) points in original units; distances are in the scaled units of `a`.
    weights
        (m,) weights.

    Raises
    ------
    DataError
        The snapshots have different fields or distances.
    """
    if a.fields != b.fields or a.distance != b.distance:
        raise DataError("the snapshots have different fields or distances", where=f"snapshots {a.id} and {b.id}")
    scaled = rows * a.factors
    own_a, squared_a = nearest(scaled, a.centroids * a.factors)
    own_b, squared_b = nearest(scaled, b.centroids * a.factors)
    share = normalized(weights)
    share_a, share_b = (np.bincount(own, share, len(s.ids)) for own, s in ((own_a, a), (own_b, b)))
    place = {i: j for j, i in enumerate(b.ids.tolist())}
    shifts = []
    for i, one in enumerate(a.ids.tolist()):
        if one in place:
            j = place[one]
            far = float(np.linalg.norm((b.centroids[j] - a.centroids[i]) * a.factors))
            spreads = far / float(a.spreads[i]) if a.spreads[i] > 0.0 else None
            shifts.append(ClusterShift(one, far, spreads, float(share_a[i]), float(share_b[j])))
    return SnapshotDifference(
        a.id,
        b.id,
        tuple(sorted(shifts, key=lambda m: -m.distance)),
        tuple(sorted(set(a.ids.tolist()) - set(place))),
        tuple(sorted(set(place) - set(a.ids.tolist()))),
        float(share @ (a.ids[own_a] != b.ids[own_b])),
        float(share @ squared_a),
        float(share @ squared_b),
        float(weights.sum()),
    )


def compare_on_sample(store: ModelStore, a: Snapshot, b: Snapshot) -> SnapshotDifference:
    """Compare snapshots of a model on the weighted sample that the model has now.

    Raises
    ------
    DataError
        The snapshots have different fields or distances.
    NotReadyError
        The model has no sample yet.
    """
    checkpoint = store.load_checkpoint(a.model)
    if checkpoint is None:
        raise NotReadyError("the model has learned nothing yet", where=a.model)
    coreset = OnlineKMeans.from_state(checkpoint.state).coreset_
    return compare(a, b, coreset.rows_, coreset.weights_)
