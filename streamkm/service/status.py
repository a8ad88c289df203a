"""The status of a model, with its reason."""

from __future__ import annotations

from typing import Any

from streamkm.service.problems import Problem
from streamkm.service.schemas.models import Status
from streamkm.stores.base import ModelInfo
from streamkm.times import format_age


def lease_live(info: ModelInfo, now: float) -> bool:
    """Whether a consumer holds the lease of the model now."""
    return info.lease is not None and info.lease.expires_at > now


def status(info: ModelInfo, now: float, stale_after: float) -> tuple[Status, str]:
    """The status of a model, and its reason.

    Parameters
    ----------
    info
        The model as stored.
    now
        Seconds since 1970.
    stale_after
        Seconds without a commit after which a consumer with work is stale. A consumer that had read everything at its
        last commit has no work, however long ago that was.
    """
    lease = info.lease
    if not lease_live(info, now):
        reason = (
            f"the lease of {lease.owner} expired {format_age(now - lease.expires_at)} ago"
            if lease
            else "no consumer runs"
        )
        return "stopped", reason
    if info.paused:
        return "paused", "paused on request"
    return _running_status(info, now, stale_after)


def _running_status(info: ModelInfo, now: float, stale_after: float) -> tuple[Status, str]:
    p = info.progress
    if p is None:
        return "warming-up", "nothing is committed yet"
    age = now - p.committed_at
    if age > stale_after and p.lag != 0:
        behind = f"{p.lag} records behind" if p.lag > 0 else "lag unknown"
        return "stale", f"the last commit was {format_age(age)} ago, {behind}"
    if p.warmup is not None:
        return "warming-up", f"{p.warmup[0]} of {p.warmup[1]} points"
    if info.last_snapshot == 0:
        return "warming-up", "the first snapshot is not published yet"
    return "running", f"committed {format_age(age)} ago" + (", nothing left to read" if p.lag == 0 else "")


def not_ready(info: ModelInfo, now: float) -> Problem:
    """The 409 response of a model without a snapshot."""
    p = info.progress
    if p is None:
        points, needed, progress = 0, None, "no points yet"
    elif p.warmup is not None:
        points, needed = p.warmup
        progress = f"{points} of {needed} points"
    else:
        points = needed = p.counters.points
        progress = "the first snapshot is not published yet"
    members: dict[str, Any] = {"points": points, "points_needed": needed}
    if lease_live(info, now):
        hint = "Retry in a moment"
        headers = {"Retry-After": "1"}
    else:
        hint, headers = f"No consumer runs: start streamkm live {info.spec.name}", {}
    return Problem(
        409, "warming-up", f"warming up, {progress}", where=info.spec.name, hint=hint, members=members, headers=headers
    )
