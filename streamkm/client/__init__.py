"""A Python client of ``streamkm serve``: arrays in, arrays out; blocking and asyncio."""

from streamkm.client.answers import Centroids, Event, Model, Prediction, Published
from streamkm.client.http import AsyncClient, Client

__all__ = ["AsyncClient", "Centroids", "Client", "Event", "Model", "Prediction", "Published"]
