"""A model's health in one word, with why."""

from __future__ import annotations

from typing import Any

from streamkm.service.problems import Problem
from streamkm.service.schemas.models import Status
from streamkm.stores.base import ModelInfo
from streamkm.times import format_age


def lease_live(info: ModelInfo, now: float) -> bool:
    """Whether somebody owns the model now."""
    return info.lease is not None and info.lease.expires_at > now


def status(info: ModelInfo, now: float, stale_after: float) -> tuple[Status, str]:
    """The word, and the reason.

    Parameters
    ----------
    info
        The model as stored.
    now
        Seconds since 1970.
    stale_after
        Seconds without a commit after which an owner that has work is not well. One that had read everything at its
        last commit has none, however long ago that was.
    """
    lease = info.lease
    if not lease_live(info, now):
        gone = (
            f"the lease of {lease.owner} ended {format_age(now - lease.expires_at)} ago" if lease else "nobody runs it"
        )
        return "stopped", gone
    if info.paused:
        return "paused", "somebody asked it to read nothing for now"
    return _at_work(info, now, stale_after)


def _at_work(info: ModelInfo, now: float, stale_after: float) -> tuple[Status, str]:
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
    """The answer to a question about the clusters of a model that has none yet."""
    p = info.progress
    if p is None:
        have, need, how_far = 0, None, "no points yet"
    elif p.warmup is not None:
        have, need = p.warmup
        how_far = f"{have} of {need} points"
    else:
        have = need = p.counters.points
        how_far = "the first snapshot is not published yet"
    more: dict[str, Any] = {"have": have, "need": need}
    if lease_live(info, now):
        hint = "Ask again in a moment"
        headers = {"Retry-After": "1"}
    else:
        hint, headers = f"Nobody runs it: start streamkm live {info.spec.name}", {}
    return Problem(
        409, "warming-up", f"warming up, {how_far}", where=info.spec.name, hint=hint, more=more, headers=headers
    )
