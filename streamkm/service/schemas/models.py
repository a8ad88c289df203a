"""Schemas of models, snapshots, clusters and predictions. Numbers are never NaN: an unknown value is null."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from streamkm.effect_sizes import LIMIT
from streamkm.service.schemas import examples
from streamkm.service.schemas.examples import config

Status = Literal["warming-up", "running", "paused", "stale", "stopped"]


class PartitionPosition(BaseModel):
    """Position in a partition: all records below it are learned, none at or above it."""

    model_config = config(examples.POSITION[0])
    topic: str
    partition: int
    offset: int


class SnapshotRef(BaseModel):
    """Reference to a snapshot."""

    model_config = config(examples.SNAPSHOT_REF)
    id: int = Field(description="Number of the snapshot within its model, from 1")
    created_at: str = Field(description="Time of publication", json_schema_extra={"format": "date-time"})


class SnapshotSummary(SnapshotRef):
    """A snapshot without its clusters."""

    model_config = config(examples.SNAPSHOT_SUMMARY)
    kind: str = Field(description="live, or replay for a recomputed one")
    reason: str = Field(description="Why it was published: first, interval, points, stop")
    n_clusters: int
    n_points: int = Field(description="Points learned since the model was created")
    inertia: float | None = Field(
        description="Mean squared distance to the nearest centroid of the points since the snapshot before, each "
        "measured before it was learned; null if there were none"
    )
    position: list[PartitionPosition]
    n_events: int = Field(description="Births, deaths, splits, merges and drifts since the snapshot before")


class Event(BaseModel):
    """An event in the lineage of clusters."""

    model_config = config(examples.EVENT)
    kind: Literal["birth", "death", "split", "merge", "drift", "promotion", "outliers"]
    before: list[int] = Field(description="Ids of the clusters before the event; empty for a birth")
    after: list[int] = Field(description="Ids of the clusters after the event; empty for a death")
    detail: dict[str, Any] = Field(description="Figures that the event was decided by")


class SnapshotEvents(SnapshotRef):
    """Events between the snapshot before and this one."""

    model_config = config(examples.SNAPSHOT_EVENTS)
    events: list[Event]


class EventList(BaseModel):
    """A page of snapshots with events, newest first."""

    model_config = config({"snapshots": [examples.SNAPSHOT_EVENTS], "next": 42})
    snapshots: list[SnapshotEvents]
    next: int | None = Field(description="`before` of the next page; null on the last one")


class Cluster(BaseModel):
    """One cluster."""

    model_config = config(examples.CLUSTERS[0])
    id: int = Field(description="Stable: a cluster has the same id in every snapshot")
    centroid: dict[str, float | None] = Field(description="By field, in the units of the records")
    values: list[float | None] = Field(description="The centroid in the order of `fields`")
    weight: float | None = Field(description="Number of its points, decayed if the model has a half-life")
    share: float | None = Field(description="Fraction of the total weight, 0 to 1; null if the total is 0")
    spread: float | None = Field(description="Root mean squared distance of its points to the centroid")
    deviations: list[float | None] = Field(
        description="Standard deviation by field, in the units of the records; null if unknown (older versions)"
    )
    differences: list[float | None] = Field(
        description="By field, the centroid minus the mean of all points, in standard deviations within "
        f"clusters, at most {LIMIT:g}; null if unknown"
    )
    born_at_points: int = Field(description="Points learned by the model when this id first appeared")
    age: int = Field(description="Points learned by the model since then")


class Centroids(BaseModel):
    """The clusters of one snapshot."""

    model_config = config(examples.CENTROIDS)
    model: str
    snapshot: SnapshotSummary
    fields: list[str]
    clusters: list[Cluster]


class SnapshotDetail(SnapshotSummary):
    """A snapshot with its clusters and events."""

    model_config = config(
        {
            **examples.SNAPSHOT_SUMMARY,
            "model": examples.MODEL,
            "fields": examples.FIELDS,
            "clusters": examples.CLUSTERS,
            "events": [examples.EVENT],
            "distance": "euclidean",
            "factors": [1.0, 1.0, 1.0],
            "commit_seq": 311,
            "detail": {"owner": "host-1:77"},
        }
    )
    model: str
    fields: list[str]
    clusters: list[Cluster]
    events: list[Event] = Field(description="Events since the snapshot before")
    distance: Literal["euclidean", "cosine"] = Field(description="Metric between points and centroids")
    factors: list[float | None] = Field(description="By field: factor of the coordinates in distances")
    commit_seq: int = Field(description="Commit that published it; the journal up to it reproduces the snapshot")
    detail: dict[str, Any] = Field(description="Owner, evaluation and other details")


class SnapshotList(BaseModel):
    """A page of snapshots, newest first."""

    model_config = config({"snapshots": [examples.SNAPSHOT_SUMMARY], "next": 42})
    snapshots: list[SnapshotSummary]
    next: int | None = Field(description="`before` of the next page; null on the last one")


class ModelStatus(BaseModel):
    """Status and counters of a model."""

    model_config = config(examples.MODEL_STATUS)

    status: Status
    status_reason: str = Field(description="Reason for the status")
    n_clusters: int = Field(description="Clusters of the newest snapshot; before the first, k, or 0 if not chosen yet")
    points: int = Field(description="Points learned since the model was created")
    bad_records: int = Field(description="Bad records since the model was created")
    lag: int | None = Field(description="Records behind the end of the source at the last commit; null if unknown")
    committed_at: str | None = Field(description="Time of the last commit", json_schema_extra={"format": "date-time"})
    snapshot: SnapshotRef | None = Field(description="The newest snapshot; null while warming up")


class ModelSummary(ModelStatus):
    """A model and how far it is."""

    model_config = config(examples.MODEL_SUMMARY)

    name: str
    fields: list[str] = Field(description="Names of the dimensions, in order")
    created_at: str = Field(json_schema_extra={"format": "date-time"})


class ModelList(BaseModel):
    """All models, by name."""

    model_config = config({"models": [examples.MODEL_SUMMARY]})
    models: list[ModelSummary]


class CountersOut(BaseModel):
    """Counts of records: records = points + bad + tombstones; lost records are not included."""

    model_config = ConfigDict(extra="forbid", title="Counters")
    records: int
    points: int
    bad_records: int
    tombstones: int
    lost_records: int = Field(description="Removed from the topic before they could be read")


class LeaseOut(BaseModel):
    """The consumer that may write the model."""

    model_config = ConfigDict(extra="forbid", title="Lease")
    owner: str
    epoch: int = Field(description="Increases with every change of owner")
    expires_at: str = Field(json_schema_extra={"format": "date-time"})
    live: bool = Field(description="Whether the lease is still valid by the service's clock")


class Warmup(BaseModel):
    """Progress of the warm-up, in points."""

    model_config = ConfigDict(extra="forbid")
    points: int = Field(description="Points learned so far")
    points_needed: int = Field(description="Points from which centroids are made")


class ModelDetail(ModelSummary):
    """A model with its settings, counters, position and owner."""

    model_config = config(
        {
            **examples.MODEL_SUMMARY,
            "source": {"kind": "kafka", "topic": "orders"},
            "learner": {"n_clusters": 2, "seed": 0},
            "codec": {"kind": "json", "fields": ["amount", "lat", "lon"], "time_field": None, "max_bytes": 1048576},
            "counters": {"records": 102222, "points": 102200, "bad_records": 22, "tombstones": 0, "lost_records": 0},
            "position": examples.POSITION,
            "commits": 311,
            "warmup": None,
            "lease": {"owner": "host-1:77", "epoch": 3, "expires_at": "2026-11-01T10:00:10Z", "live": True},
        }
    )
    source: dict[str, Any]
    learner: dict[str, Any]
    codec: dict[str, Any]
    counters: CountersOut
    position: list[PartitionPosition]
    commits: int = Field(description="Number of commits")
    warmup: Warmup | None = Field(description="Set until the model has centroids")
    lease: LeaseOut | None


class Prediction(BaseModel):
    """Cluster and distance of each point, in the order of the points."""

    model_config = config(examples.PREDICTION)
    model: str
    snapshot: SnapshotRef
    ids: list[int] = Field(description="Stable ids of the nearest clusters")
    distances: list[float | None] = Field(description="Distance to that centroid; null if it overflows a double")
    scores: list[float | None] = Field(
        description="Outlier scores: distance divided by the spread of the cluster; about 1 is typical"
    )
    second_ids: list[int | None] | None = Field(
        default=None,
        description="With include=second: ids of the second nearest clusters; null if there is only one",
    )
    second_distances: list[float | None] | None = Field(default=None, description="With include=second")
    clusters: list[int] | None = Field(default=None, description="With include=distances: ids of its columns")
    all_distances: list[list[float | None]] | None = Field(
        default=None, description="With include=distances: distance of each point to each cluster"
    )


class Health(BaseModel):
    """The service is healthy."""

    model_config = config({"status": "ok"})
    status: Literal["ok"]


class ServerMetadata(BaseModel):
    """The server, by the open inference protocol."""

    model_config = config({"name": "streamkm", "version": "0.1.0", "extensions": ["binary_tensor_data"]})
    name: str
    version: str
    extensions: list[str]


class ServerLive(BaseModel):
    """The process is running."""

    model_config = config({"live": True})
    live: bool


class ServerReady(BaseModel):
    """The service can answer requests."""

    model_config = config({"ready": True})
    ready: bool


class ModelReady(BaseModel):
    """The model has a snapshot."""

    model_config = config({"name": examples.MODEL, "ready": True})
    name: str
    ready: bool


class TensorMetadata(BaseModel):
    """An input or output tensor; -1 in its shape is any length."""

    model_config = config(examples.INPUT_TENSOR)
    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """A model, by the open inference protocol: a version is a snapshot."""

    model_config = config(
        {
            "name": examples.MODEL,
            "versions": ["42"],
            "platform": "streamkm",
            "inputs": [examples.INPUT_TENSOR],
            "outputs": [{"name": "ids", "datatype": "INT64", "shape": [-1]}],
        }
    )
    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class Tensor(TensorMetadata):
    """A tensor with its numbers, flattened."""

    model_config = config(examples.OUTPUT_TENSOR)
    data: list[float | None]


class Inference(BaseModel):
    """Cluster, distance and outlier score of each point."""

    model_config = config(examples.INFERENCE)
    model_name: str
    model_version: str = Field(description="Number of the snapshot that predicted")
    id: str | None = Field(default=None, description="Id of the request")
    outputs: list[Tensor]
