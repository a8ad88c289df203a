"""A Python client of ``streamkm serve``: arrays in, arrays out; blocking and asyncio."""

from streamkm.client.answers import Centroids, Event, Model, Prediction, Published
from streamkm.client.http import AsyncClient, Client
from streamkm.client.told import Difference, Job, KProfile, Life, Me, Moved, Past, Quarantine, Refused, Sample

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
