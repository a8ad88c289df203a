"""Streaming K-Means on Apache Kafka: one pass as good as batch, every record counted once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamkm.models import OnlineKMeans

__all__ = ["OnlineKMeans"]


def __getattr__(name: str) -> Any:
    """Import what is asked for: numba takes a second, which programs that only read a store need not wait for."""
    if name == "OnlineKMeans":
        from streamkm.models import OnlineKMeans  # noqa: PLC0415

        return OnlineKMeans
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
