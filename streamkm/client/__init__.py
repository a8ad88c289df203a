"""A Python client of ``streamkm serve``, blocking and for asyncio; points, centroids and predictions are arrays."""

from streamkm.client.async_client import AsyncClient
from streamkm.client.client import Client
from streamkm.client.responses import (
    Centroids,
    ClusterEvent,
    ClusterLineage,
    ClusterShift,
    HistoricalSnapshot,
    Job,
    KProfile,
    Model,
    PointSample,
    Prediction,
    Quarantine,
    QuarantineEntry,
    SnapshotDiff,
    SnapshotSummary,
    WhoAmI,
)

__all__ = [
    "AsyncClient",
    "Centroids",
    "Client",
    "ClusterEvent",
    "ClusterLineage",
    "ClusterShift",
    "HistoricalSnapshot",
    "Job",
    "KProfile",
    "Model",
    "PointSample",
    "Prediction",
    "Quarantine",
    "QuarantineEntry",
    "SnapshotDiff",
    "SnapshotSummary",
    "WhoAmI",
]
