"""What the API answers about how clusters came to be, and what goes on now; the rest is in `schemas`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from streamkm.service.schemas.models import Event, SnapshotRef, Status

_AT = "2026-11-01T10:00:00.250000Z"
_REF = {"id": 42, "created_at": _AT}
_FIELDS = ["amount", "lat", "lon"]
_EVENT = {"kind": "split", "before": [0], "after": [0, 3], "detail": {}}
_ENTRY = {
    **_REF,
    "kind": "live",
    "reason": "interval",
    "n_points": 102200,
    "inertia": 0.83,
    "ids": [0, 3],
    "shares": [0.8, 0.2],
    "spreads": [1.9, 14.2],
    "centroids": [[12.5, 52.52, 13.4], [250.0, 48.14, 11.58]],
    "events": [_EVENT],
}
_MOVED = {"id": 0, "distance": 0.4, "spreads": 0.21, "share_before": 0.81, "share_after": 0.8}
_LIFE = {"id": 3, "born": _REF, "ended": None, "origins": [0], "successors": []}
_RECORD = {
    "topic": "orders",
    "partition": 0,
    "offset": 51200,
    "timestamp": 1793527200250,
    "reason": "missing-field",
    "field": "lat",
    "message": "the field is missing",
    "key": None,
    "value": '{"amount": 12.5}',
    "value_bytes": 16,
}
_SAMPLE: dict[str, Any] = {
    "model": "orders",
    "snapshot": _REF,
    "fields": _FIELDS,
    "points": [[12.0, 52.5, 13.4]],
    "ids": [0],
    "distances": [0.5],
    "scores": [0.26],
    "projection": {"mean": [60.0, 51.6, 13.0], "axes": [[1.0, 0.0, 0.0], [0.0, 0.7, 0.7]], "explained": [0.9, 0.08]},
}
_NOW: dict[str, Any] = {
    "at": _AT,
    "status": "running",
    "why": "committed 0.4 s ago",
    "paused": False,
    "points": 102200,
    "bad": 22,
    "lag": 120,
    "rate": 5000.0,
    "committed_at": _AT,
    "snapshot": _REF,
    "n_clusters": 2,
    "inertia": 0.83,
    "partitions": [{"topic": "orders", "partition": 0, "offset": 51234, "end": 51354, "lag": 120, "rate": 2500.0}],
}
_K = {
    "running": 2,
    "suggested": 3,
    "reason": "of the k whose silhouette is near the best the gap is the highest",
    "ks": [2, 3],
    "cost": [2.1, 0.8],
    "silhouette": [0.6, 0.8],
    "gap": [0.4, 0.9],
    "davies_bouldin": [0.7, 0.4],
}


def _config(example: dict[str, Any]) -> ConfigDict:
    return ConfigDict(extra="forbid", json_schema_extra={"examples": [example]})


class HistoryEntry(SnapshotRef):
    """The clusters at one moment, in little; lists are in the order of `ids`."""

    model_config = _config(_ENTRY)
    kind: str
    reason: str = Field(description="Why it was published then")
    n_points: int = Field(description="Points learned since the model was made")
    inertia: float | None = Field(description="Mean squared distance of the points since the snapshot before")
    ids: list[int]
    shares: list[float | None]
    spreads: list[float | None]
    centroids: list[list[float | None]] = Field(description="In the order of `fields`")
    events: list[Event]


class History(BaseModel):
    """A page of what was in charge, newest first."""

    model_config = _config({"fields": _FIELDS, "snapshots": [_ENTRY], "next": 42})
    fields: list[str]
    snapshots: list[HistoryEntry]
    next: int | None = Field(description="`before` of the next page; null on the last one")


class Moved(BaseModel):
    """A cluster that both snapshots have."""

    model_config = _config(_MOVED)
    id: int
    distance: float = Field(description="How far its centroid moved, in the unit of distances")
    spreads: float | None = Field(description="The same in spreads of the first")
    share_before: float
    share_after: float


class Difference(BaseModel):
    """From snapshot `a` to snapshot `b`, judged on the weighted sample of its stream that the model has now."""

    model_config = _config(
        {
            "a": 41,
            "b": 42,
            "moved": [_MOVED],
            "gone": [],
            "new": [3],
            "changed": 0.02,
            "cost_a": 0.9,
            "cost_b": 0.83,
            "points": 102200.0,
        }
    )
    a: int
    b: int
    moved: list[Moved] = Field(description="Clusters that both have, the one that moved farthest first")
    gone: list[int] = Field(description="Ids that only `a` has")
    new: list[int] = Field(description="Ids that only `b` has")
    changed: float = Field(description="Share of the points whose cluster is another one")
    cost_a: float = Field(description="Mean squared distance of the points to the nearest centroid of `a`")
    cost_b: float
    points: float = Field(description="Weight of the points")


class Life(BaseModel):
    """Where a cluster came from, and what became of it."""

    model_config = _config(_LIFE)
    id: int
    born: SnapshotRef | None = Field(description="The snapshot that had it first; null: not on this page")
    ended: SnapshotRef | None = Field(description="The one that had it no more; null: not on this page")
    origins: list[int] = Field(description="Clusters that it was split off from")
    successors: list[int] = Field(description="Clusters that it became part of")


class Lineage(BaseModel):
    """The family tree that the events of a page tell, by id."""

    model_config = _config({"clusters": [_LIFE], "next": None})
    clusters: list[Life]
    next: int | None = Field(description="`before` of the next page; null on the last one")


class ChoiceOfK(BaseModel):
    """What each k would cost, and how well it would tell clusters apart; looked into about once a minute."""

    model_config = _config(_K)
    running: int
    suggested: int | None = Field(
        description="Only where several criteria agree; null: they do not, or it was not looked into yet (see `reason`)"
    )
    reason: str
    ks: list[int]
    cost: list[float] = Field(description="Mean squared distance, by `ks`")
    silhouette: list[float] = Field(description="Simplified silhouette, 0 to 1, higher is better")
    gap: list[float] = Field(description="By how much the cost is below that of even data, higher is better")
    davies_bouldin: list[float | None] = Field(description="Index of Davies and Bouldin, lower is better")


class QuarantinedRecord(BaseModel):
    """A record that could not be learned."""

    model_config = _config(_RECORD)
    topic: str
    partition: int
    offset: int
    timestamp: int = Field(description="Milliseconds since 1970; -1: none")
    reason: str
    field: str = Field(description="Where it was wrong; may be empty")
    message: str
    key: str | None = Field(description="As text, cut")
    value: str | None = Field(description="As text, cut after 2,000 characters")
    value_bytes: int = Field(description="Of the whole value; the quarantine keeps its first 65,536 bytes")


class Quarantine(BaseModel):
    """The newest records of the quarantine."""

    model_config = _config({"total": 1, "reasons": {"missing-field": 1}, "records": [_RECORD]})
    total: int
    reasons: dict[str, int] = Field(description="How many there are, by reason")
    records: list[QuarantinedRecord]


class Projection(BaseModel):
    """Principal components: coordinates of a point p are ``axes @ (p - mean)``."""

    model_config = _config(_SAMPLE["projection"])
    mean: list[float]
    axes: list[list[float]] = Field(description="Two, in the units of the records, factors included")
    explained: list[float] = Field(description="Share of the variance along each")


class Sample(BaseModel):
    """Some of the points that were learned last, with their clusters."""

    model_config = _config(_SAMPLE)
    model: str
    snapshot: SnapshotRef
    fields: list[str]
    points: list[list[float]]
    ids: list[int]
    distances: list[float | None]
    scores: list[float | None]
    projection: Projection


class PartitionNow(BaseModel):
    """Where a partition stands."""

    model_config = _config(_NOW["partitions"][0])
    topic: str
    partition: int
    offset: int = Field(description="Every record below counts")
    end: int | None = Field(description="One above the newest record, as last seen; null if unknown")
    lag: int | None
    rate: float | None = Field(description="Records a second; null if not known yet")


class Now(BaseModel):
    """What goes on, as a message of the stream tells it."""

    model_config = _config(_NOW)
    at: str = Field(json_schema_extra={"format": "date-time"})
    status: Status
    why: str
    paused: bool
    points: int
    bad: int
    lag: int | None
    rate: float | None = Field(description="Points a second; null if not known yet")
    committed_at: str | None
    snapshot: SnapshotRef | None
    n_clusters: int
    inertia: float | None
    partitions: list[PartitionNow]


class ClusterEvent(BaseModel):
    """One event, as a message of the stream of events tells it."""

    model_config = _config({"snapshot": 42, "created_at": _AT, **_EVENT})
    snapshot: int
    created_at: str
    kind: Literal["birth", "death", "split", "merge", "drift", "promotion", "outliers"]
    before: list[int]
    after: list[int]
    detail: dict[str, Any]
