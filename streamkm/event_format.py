"""The JSON of an event in the lineage of clusters: one form for HTTP, topics and webhooks."""

from __future__ import annotations

from typing import Any

from streamkm.state import Snapshot
from streamkm.times import format_time


def event_id(snapshot: int, index: int) -> str:
    """Id of an event within its model: number of the snapshot, and index of the event in it.

    >>> event_id(42, 0)
    '42.0'
    """
    return f"{snapshot}.{index}"


def event_json(s: Snapshot, index: int) -> dict[str, Any]:
    """Event `index` of a snapshot as JSON values."""
    return {
        "id": event_id(s.id, index),
        "model": s.model,
        "snapshot": s.id,
        "created_at": format_time(s.created_at),
        **s.events[index].to_json(),
    }
