"""A Python client of ``streamkm serve``: arrays in, arrays out; blocking and asyncio."""

from streamkm.client.http import AsyncClient, Client
from streamkm.client.responses import (
    Centroids,
    Difference,
    Event,
    Job,
    KProfile,
    Life,
    Me,
    Model,
    Moved,
    Past,
    Prediction,
    Published,
    Quarantine,
    Refused,
    Sample,
)

__all__ = [
    "AsyncClient",
    "Centroids",
    "Client",
    "Difference",
    "Event",
    "Job",
    "KProfile",
    "Life",
    "Me",
    "Model",
    "Moved",
    "Past",
    "Prediction",
    "Published",
    "Quarantine",
    "Refused",
    "Sample",
]
