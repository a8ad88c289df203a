"""Results of the client's methods."""

from __future__ import annotations

import functools
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl


Ints = NDArray[np.int64]
Reals = NDArray[np.float64]
R = TypeVar("R", bound="_Response")


class _Response:
    """A dataclass that is read from a JSON object with members of the same names; other members are ignored."""

    __slots__ = ()

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Self:
        """Read the JSON object of a response, or an entry of it."""
        return _read(cls, content)


def _read(cls: type[R], content: Mapping[str, Any]) -> R:
    return cls(**{name: _convert(hint, content[name]) for name, hint in _hints(cls).items()})


_hints: Callable[[type], dict[str, Any]] = functools.cache(typing.get_type_hints)


def _convert(hint: Any, value: Any) -> Any:
    """Convert a JSON value to an annotated type: an array, a time, a tuple, a response, or the value itself.

    >>> _convert(datetime, "2026-11-01T10:00:00Z").isoformat()
    '2026-11-01T10:00:00+00:00'
    >>> _convert(tuple[int, ...] | None, [1, 2]), _convert(tuple[int, ...] | None, None)
    ((1, 2), None)
    """
    inner = typing.get_args(hint)
    if isinstance(hint, types.UnionType):  # X | None
        return None if value is None else _convert(inner[0], value)
    if hint in (Ints, Reals):
        return np.array(value, np.int64 if hint == Ints else np.float64)
    if hint is datetime:
        return datetime.fromisoformat(value)
    if typing.get_origin(hint) is tuple:
        return tuple(_convert(inner[0], one) for one in value)
    return hint.of(value) if isinstance(hint, type) and issubclass(hint, _Response) else value


class _Table(ABC):
    """A result that can be converted to a table."""

    __slots__ = ()

    @abstractmethod
    def columns(self) -> dict[str, Any]:
        """The columns by name, each (n,)."""

    def to_pandas(self) -> pd.DataFrame:
        """As a pandas table; needs pandas."""
        import pandas as pd  # noqa: PLC0415 - not a dependency

        return pd.DataFrame(self.columns())

    def to_polars(self) -> pl.DataFrame:
        """As a polars table."""
        import polars as pl  # noqa: PLC0415 - slow to import

        return pl.DataFrame(self.columns())


@dataclass(frozen=True, eq=False, slots=True)
class Centroids(_Table):
    """The clusters of one snapshot.

    Attributes
    ----------
    model
        Name of the model.
    snapshot, created_at
        Number of the snapshot, and when it was published.
    inertia
        Mean squared distance of the points since the snapshot before; None if there were none.
    fields
        Names of the d dimensions.
    ids
        (k,) stable ids: a cluster has the same id in every snapshot.
    centroids
        (k, d) in the units of the records.
    weights, shares, spreads
        (k,) decayed number of points, fraction of the total weight, and root mean squared distance of the points to the
        centroid.
    deviations
        (k, d) standard deviation by field, in the units of the records; NaN if unknown.
    differences
        (k, d) centroid minus the mean of all points, in standard deviations within clusters; NaN if unknown. The fields
        with the largest values characterize a cluster.
    """

    model: str
    snapshot: int
    created_at: datetime
    inertia: float | None
    fields: tuple[str, ...]
    ids: Ints
    centroids: Reals
    weights: Reals
    shares: Reals
    spreads: Reals
    deviations: Reals
    differences: Reals

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Self:
        """From the response of ``/centroids``."""
        clusters, fields = content["clusters"], tuple(content["fields"])

        def by_field(name: str) -> Reals:
            return np.array([c[name] for c in clusters], np.float64).reshape(len(clusters), len(fields))

        def by_cluster(name: str) -> Reals:
            return np.array([c[name] for c in clusters], np.float64)

        return cls(
            content["model"],
            content["snapshot"]["id"],
            datetime.fromisoformat(content["snapshot"]["created_at"]),
            content["snapshot"]["inertia"],
            fields,
            np.array([c["id"] for c in clusters], np.int64),
            by_field("values"),
            by_cluster("weight"),
            by_cluster("share"),
            by_cluster("spread"),
            by_field("deviations"),
            by_field("differences"),
        )

    def columns(self) -> dict[str, Any]:
        """One row per cluster: id, weight, share, spread, and a column per field."""
        own = {"id": self.ids, "weight": self.weights, "share": self.shares, "spread": self.spreads}
        return own | {
            (name if name not in own else f"{name}_"): self.centroids[:, j] for j, name in enumerate(self.fields)
        }


@dataclass(frozen=True, eq=False, slots=True)
class Prediction(_Table, _Response):
    """The clusters of n points.

    Attributes
    ----------
    model, snapshot
        Name of the model, and number of the snapshot that predicted all points.
    ids
        (n,) stable ids of the nearest clusters.
    distances
        (n,) distances to that centroid; NaN where a distance overflows a double.
    scores
        (n,) outlier scores: distance divided by the spread of the cluster; about 1 is typical.
    """

    model: str
    snapshot: int
    ids: Ints
    distances: Reals
    scores: Reals

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Self:
        """From the response of ``/predict``."""
        return _read(cls, {**content, "snapshot": content["snapshot"]["id"]})

    def columns(self) -> dict[str, Any]:
        """One row per point."""
        return {"id": self.ids, "distance": self.distances, "score": self.scores}


@dataclass(frozen=True, slots=True)
class Model(_Response):
    """A model: status, fields and counters.

    Attributes
    ----------
    status, status_reason
        The status, and the reason for it.
    points, bad_records, lag
        Points learned, bad records, and records behind the end of the topic (None if unknown).
    snapshot
        Number of the newest snapshot; None while warming up.
    raw
        The JSON object of the response.
    """

    name: str
    status: str
    status_reason: str
    n_clusters: int
    fields: tuple[str, ...]
    points: int
    bad_records: int
    lag: int | None
    snapshot: int | None
    raw: Mapping[str, Any]

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Self:
        """From a response of ``/models``."""
        newest = content["snapshot"]
        return _read(cls, {**content, "snapshot": newest and newest["id"], "raw": content})


@dataclass(frozen=True, slots=True)
class SnapshotSummary(_Response):
    """A snapshot without its clusters.

    Attributes
    ----------
    inertia
        Mean squared distance of the points since the snapshot before; None if there were none.
    n_events
        Number of events since the snapshot before.
    """

    id: int
    created_at: datetime
    kind: str
    reason: str
    n_clusters: int
    n_points: int
    inertia: float | None
    n_events: int


@dataclass(frozen=True, slots=True)
class ClusterEvent(_Response):
    """An event in the lineage of clusters.

    Attributes
    ----------
    snapshot, created_at
        Snapshot that the event was published with.
    kind
        birth, death, split, merge, drift, promotion or outliers.
    before, after
        Ids of the clusters before the event, and of those after it.
    detail
        Figures that the event was decided by.
    index
        Position among the events of the snapshot, from 0.
    """

    snapshot: int
    created_at: datetime
    kind: str
    before: tuple[int, ...]
    after: tuple[int, ...]
    detail: Mapping[str, Any]
    index: int

    @property
    def id(self) -> str:
        """Unique within the model; `Client.follow_events` can resume after it."""
        return f"{self.snapshot}.{self.index}"

    @classmethod
    def all_of(cls, entry: Mapping[str, Any]) -> list[Self]:
        """All events of an entry of ``/events`` or ``/history``."""
        snapshot = {"snapshot": entry["id"], "created_at": entry["created_at"]}
        return [cls.of({**event, **snapshot, "index": i}) for i, event in enumerate(entry["events"])]


@dataclass(frozen=True, eq=False, slots=True)
class HistoricalSnapshot(_Response):
    """An older snapshot with its clusters.

    Attributes
    ----------
    inertia
        Mean squared distance of the points since the snapshot before; None if there were none.
    ids, shares, spreads
        (k,) as in `Centroids`.
    centroids
        (k, d) in the units of the records.
    events
        Events since the snapshot before.
    """

    id: int
    created_at: datetime
    kind: str
    reason: str
    n_points: int
    inertia: float | None
    ids: Ints
    shares: Reals
    spreads: Reals
    centroids: Reals
    events: tuple[ClusterEvent, ...]

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Self:
        """From an entry of ``/history``."""
        snapshot = {"snapshot": content["id"], "created_at": content["created_at"]}
        events = [{**event, **snapshot, "index": i} for i, event in enumerate(content["events"])]
        return _read(cls, {**content, "events": events})


@dataclass(frozen=True, slots=True)
class ClusterLineage(_Response):
    """Origin and end of a cluster, as far as the stored events go back.

    Attributes
    ----------
    born, ended
        Numbers of the snapshots in which it first appeared and in which it ended; None if unknown or not ended.
    origins, successors
        Ids of the clusters that it came from by a split or merge, and of those that it became.
    """

    id: int
    born: int | None
    ended: int | None
    origins: tuple[int, ...]
    successors: tuple[int, ...]

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Self:
        """From an entry of ``/lineage``."""
        return _read(cls, {**content, **{name: content[name] and content[name]["id"] for name in ("born", "ended")}})


@dataclass(frozen=True, slots=True)
class ClusterShift(_Response):
    """A cluster that two snapshots have in common.

    Attributes
    ----------
    id
        Of the cluster.
    distance, spreads
        Distance that the centroid moved; the same divided by the spread (None if that is 0).
    share_before, share_after
        Fraction of the total weight in each of the two snapshots.
    """

    id: int
    distance: float
    spreads: float | None
    share_before: float
    share_after: float


@dataclass(frozen=True, slots=True)
class SnapshotDiff(_Response):
    """Comparison of snapshot `a` with snapshot `b` on the model's weighted sample of its points.

    Attributes
    ----------
    shifts
        Clusters in both, the largest shift first.
    removed, added
        Ids of clusters in `a` only, and in `b` only.
    changed
        Fraction of the points whose cluster changes.
    cost_a, cost_b
        Mean squared distance of the points to the nearest centroid.
    points
        Total weight of the points.
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


@dataclass(frozen=True, eq=False, slots=True)
class KProfile(_Response):
    """Criteria for the number of clusters.

    Attributes
    ----------
    current, suggested
        k of the model, and the k that several criteria agree on; None if they do not, or none was computed yet.
    reason
        Why that k is suggested, or none.
    ks
        (m,) values of k that were tried.
    cost, silhouette, gap, davies_bouldin
        (m,) mean squared distance, and criteria of separation; NaN where undefined.
    """

    current: int
    suggested: int | None
    reason: str
    ks: Ints
    cost: Reals
    silhouette: Reals
    gap: Reals
    davies_bouldin: Reals


@dataclass(frozen=True, eq=False, slots=True)
class PointSample(_Response):
    """Some of the last points with their clusters.

    Attributes
    ----------
    points
        (n, d) in the units of the records.
    ids, distances, scores
        (n,) as in `Prediction`.
    mean, axes
        (d,) and (2, d): ``axes @ (point - mean)`` projects a point on the plane of the first two principal components.
    explained
        (2,) fraction of the variance along each axis.
    """

    snapshot: int
    fields: tuple[str, ...]
    points: Reals
    ids: Ints
    distances: Reals
    scores: Reals
    mean: Reals
    axes: Reals
    explained: Reals

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Self:
        """From the response of ``/sample``."""
        found = _read(cls, {**content, **content["projection"], "snapshot": content["snapshot"]["id"]})
        return replace(found, points=found.points.reshape(-1, len(found.fields)))


@dataclass(frozen=True, slots=True)
class QuarantineEntry(_Response):
    """A bad record; key and value as text, truncated if long."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    reason: str
    field: str
    message: str
    key: str | None
    value: str | None
    value_bytes: int | None


@dataclass(frozen=True, slots=True)
class Quarantine(_Response):
    """Number of bad records in quarantine, by reason, and the newest of them."""

    total: int
    reasons: Mapping[str, int]
    records: tuple[QuarantineEntry, ...]


@dataclass(frozen=True, slots=True)
class Job(_Response):
    """A recomputation job.

    Attributes
    ----------
    state
        queued, running, done, failed or cancelled.
    options, progress
        Options of the job, and its progress.
    snapshot
        Number of the resulting snapshot; None until it is done.
    error
        Message of the error if it failed.
    """

    id: str
    model: str
    state: str
    options: Mapping[str, Any]
    progress: Mapping[str, Any]
    snapshot: int | None
    error: str
    created_at: datetime
    updated_at: datetime

    @property
    def ended(self) -> bool:
        """Whether the job is done, failed or cancelled."""
        return self.state not in {"queued", "running"}


@dataclass(frozen=True, slots=True)
class WhoAmI(_Response):
    """Rights of a token.

    Attributes
    ----------
    name
        Of the token; None without one.
    right
        none, read or write.
    models
        Models that it is restricted to; None for all.
    """

    name: str | None
    right: str
    models: tuple[str, ...] | None
