"""Which snapshots are kept: all that are young, then fewer and fewer, so that time travel stays cheap."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import sqlalchemy as sa

from streamkm.stores import checks
from streamkm.stores.sql import schema as t

HOUR, DAY = 3600.0, 86_400.0
ALL_SECONDS = DAY
"""Every snapshot is kept for so long."""
HOURLY_SECONDS = 8 * DAY
"""Until this age the last one of each hour is kept, and each that tells events; then the last one of each day."""
MOST = 500
"""Snapshots that go in one transaction at most, so that it never holds the database for long."""


class SnapshotAge(NamedTuple):
    """What retention looks at.

    Attributes
    ----------
    eventful
        Whether it tells events.
    """

    number: int
    created_at: float
    eventful: bool


def expired_snapshots(snapshots: Iterable[SnapshotAge], now: float) -> list[int]:
    """Numbers of the snapshots that need not be kept, the oldest first.

    Buckets are those of the calendar (UTC), so that nothing is kept in vain: a day's last one is also the last of its
    hour.
    """
    kept: dict[tuple[float, int], SnapshotAge] = {}
    gone: list[SnapshotAge] = []
    for s in sorted(snapshots, key=lambda s: (s.created_at, s.number)):
        age = now - s.created_at
        if age < ALL_SECONDS or (s.eventful and age < HOURLY_SECONDS):
            continue
        size = HOUR if age < HOURLY_SECONDS else DAY
        bucket = (size, int(s.created_at // size))
        if bucket in kept:
            gone.append(kept[bucket])
        kept[bucket] = s
    return [s.number for s in sorted(gone, key=lambda s: s.number)]


def thin(tx: sa.Connection, model: int, now: float) -> int:
    """Remove what `expired_snapshots` names; never the newest, a recomputed one, or one ever asked to be in charge."""
    c = t.snapshots.c
    newest = sa.select(t.models.c.last_snapshot).where(t.models.c.id == model).scalar_subquery()
    free = (c.model_id == model, c.pinned.is_(sa.false()), c.kind != checks.RECOMPUTED, c.id != newest)
    old = sa.select(c.id, c.created_at, c.events != "[]").where(*free, c.created_at <= now - ALL_SECONDS)
    numbers = expired_snapshots((SnapshotAge(*row) for row in tx.execute(old)), now)[:MOST]
    if not numbers:
        return 0
    return tx.execute(sa.delete(t.snapshots).where(*free, c.id.in_(numbers))).rowcount
