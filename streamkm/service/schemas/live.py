"""Schemas of history, lineage, comparison, quarantine and the live streams."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from streamkm.service.schemas import examples
from streamkm.service.schemas.examples import config
from streamkm.service.schemas.models import Event, ModelStatus, SnapshotRef


class HistoricalSnapshot(SnapshotRef):
    """A snapshot in short; lists are in the order of `ids`."""

    model_config = config(examples.HISTORICAL_SNAPSHOT)
    kind: str
    reason: str = Field(description="Why it was published")
    n_points: int = Field(description="Points learned since the model was created")
    inertia: float | None = Field(description="Mean squared distance of the points since the snapshot before")
    ids: list[int]
    shares: list[float | None]
    spreads: list[float | None]
    centroids: list[list[float | None]] = Field(description="In the order of `fields`")
    events: list[Event]


class History(BaseModel):
    """A page of snapshots that were in charge, newest first."""

    model_config = config({"fields": examples.FIELDS, "snapshots": [examples.HISTORICAL_SNAPSHOT], "next": 42})
    fields: list[str]
    snapshots: list[HistoricalSnapshot]
    next: int | None = Field(description="`before` of the next page; null on the last one")


class ClusterShift(BaseModel):
    """A cluster in both snapshots."""

    model_config = config(examples.CLUSTER_SHIFT)
    id: int
    distance: float = Field(description="Distance that the centroid moved")
    spreads: float | None = Field(description="The same, divided by the spread in `a`")
    share_before: float
    share_after: float


class SnapshotDiff(BaseModel):
    """Comparison of snapshot `a` with snapshot `b` on the model's current weighted sample of its points."""

    model_config = config(examples.SNAPSHOT_DIFF)
    a: int
    b: int
    shifts: list[ClusterShift] = Field(description="Clusters in both, the largest shift first")
    removed: list[int] = Field(description="Ids of clusters in `a` only")
    added: list[int] = Field(description="Ids of clusters in `b` only")
    changed: float = Field(description="Fraction of the points whose cluster changes")
    cost_a: float = Field(description="Mean squared distance of the points to the nearest centroid of `a`")
    cost_b: float
    points: float = Field(description="Total weight of the points")


class ClusterLineage(BaseModel):
    """Origin and end of a cluster."""

    model_config = config(examples.CLUSTER_LINEAGE)
    id: int
    born: SnapshotRef | None = Field(description="First snapshot with the cluster; null if not on this page")
    ended: SnapshotRef | None = Field(description="First snapshot without it; null if not on this page")
    origins: list[int] = Field(description="Clusters that it was split off or merged from")
    successors: list[int] = Field(description="Clusters that it was split or merged into")


class Lineage(BaseModel):
    """Lineage from the events of a page, by cluster id."""

    model_config = config({"clusters": [examples.CLUSTER_LINEAGE], "next": None})
    clusters: list[ClusterLineage]
    next: int | None = Field(description="`before` of the next page; null on the last one")


class KProfile(BaseModel):
    """Criteria for each number of clusters; computed about once a minute."""

    model_config = config(examples.K_PROFILE)
    current: int = Field(description="k of the model")
    suggested: int | None = Field(
        description="k that several criteria agree on; null if they do not, or are not computed yet (see `reason`)"
    )
    reason: str
    ks: list[int]
    cost: list[float] = Field(description="Mean squared distance, by `ks`")
    silhouette: list[float] = Field(description="Simplified silhouette, 0 to 1, higher is better")
    gap: list[float] = Field(description="Gap statistic: log cost of uniform data minus log cost, higher is better")
    davies_bouldin: list[float | None] = Field(description="Davies-Bouldin index, lower is better")


class QuarantineEntry(BaseModel):
    """A bad record."""

    model_config = config(examples.QUARANTINED_RECORD)
    topic: str
    partition: int
    offset: int
    timestamp: int = Field(description="Milliseconds since 1970; -1 if it has none")
    reason: str
    field: str = Field(description="Field that was wrong; may be empty")
    message: str
    key: str | None = Field(description="As text, truncated")
    value: str | None = Field(description="As text, truncated to 2,000 characters")
    value_bytes: int = Field(description="Size of the whole value; the quarantine keeps its first 65,536 bytes")


class Quarantine(BaseModel):
    """Counts of the quarantine, and its newest records."""

    model_config = config({"total": 1, "reasons": {"missing-field": 1}, "records": [examples.QUARANTINED_RECORD]})
    total: int
    reasons: dict[str, int] = Field(description="Number of records by reason")
    records: list[QuarantineEntry]


class Projection(BaseModel):
    """A plane to draw points in: coordinates of a point p are ``axes @ (p - mean)``."""

    model_config = config(examples.POINT_SAMPLE["projection"])
    mean: list[float]
    axes: list[list[float]] = Field(description="Two axes, scaled by the factors of the distance")
    explained: list[float] = Field(description="Fraction of the variance along each axis")


class PointSample(BaseModel):
    """Some of the last points, with their clusters."""

    model_config = config(examples.POINT_SAMPLE)
    model: str
    snapshot: SnapshotRef
    fields: list[str]
    points: list[list[float]]
    ids: list[int]
    distances: list[float | None]
    scores: list[float | None]
    projection: Projection


class PartitionStatus(BaseModel):
    """Position and lag of a partition."""

    model_config = config(examples.LIVE_STATUS["partitions"][0])
    topic: str
    partition: int
    offset: int = Field(description="All records below it are learned")
    end: int | None = Field(description="Offset after the newest record when last read; null if unknown")
    lag: int | None
    rate: float | None = Field(description="Records per second; null if unknown")


class LiveStatus(ModelStatus):
    """Status, counters and rates of a model: a message of the stream."""

    model_config = config(examples.LIVE_STATUS)
    time: str = Field(json_schema_extra={"format": "date-time"})
    paused: bool
    rate: float | None = Field(description="Points per second; null if unknown")
    inertia: float | None
    partitions: list[PartitionStatus]


class ClusterEvent(BaseModel):
    """An event in the lineage of clusters: a message of the event stream."""

    model_config = config(examples.CLUSTER_EVENT)
    id: str = Field(description="Id within the model: snapshot and index in it")
    model: str
    snapshot: int
    created_at: str = Field(json_schema_extra={"format": "date-time"})
    kind: Literal["birth", "death", "split", "merge", "drift", "promotion", "outliers"]
    before: list[int]
    after: list[int]
    detail: dict[str, Any]
