"""Streaming K-Means on Apache Kafka: as good as batch in one pass, every record exactly once."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamkm.client import AsyncClient, Client
    from streamkm.models import Coreset, OnlineKMeans, k_profile
    from streamkm.models.exact.estimator import ExactKMeans

__all__ = ["AsyncClient", "Client", "Coreset", "ExactKMeans", "OnlineKMeans", "k_profile"]
_HOMES = {
    "AsyncClient": "streamkm.client",
    "Client": "streamkm.client",
    "ExactKMeans": "streamkm.models.exact.estimator",
}


def __getattr__(name: str) -> Any:
    """Import on demand: numba takes a second, which programs that only read a store should not spend."""
    if name in __all__:
        # Streams do not need scikit-learn, which takes another second; clients need no kernels.
        return getattr(import_module(_HOMES.get(name, "streamkm.models")), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
