"""Who else uses the name of a consumer group."""

from __future__ import annotations

from typing import Any

_IDLE = frozenset({"", "Empty", "Dead", "Unknown"})


def used_by_others(admin: Any, group: str) -> str:
    """Who uses a group that nobody of us is a member of, as a sentence; empty if nobody does, or nobody may tell.

    Parameters
    ----------
    admin
        kafka-python's admin client.
    """
    for found in admin.list_groups():
        if found.get("group_id") != group:
            continue
        kind, state = str(found.get("group_type") or "").lower(), str(found.get("group_state") or "")
        if kind == "share" or found.get("protocol_type") == "share":
            return f"a share group has the name {group}, and those keep no positions for others"
        if state not in _IDLE:
            return f"the consumer group {group} has living members (it is {state})"
    return ""
