"""Retention rules: which snapshots, checkpoints and journal entries a store keeps, and for how long.

Snapshots become sparser with age, so that time travel stays cheap. The journal starts at the newest kept checkpoint
that is older than the hourly period: a replay from the creation of the model would take ever longer, and would need
records that the topic no longer has.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

HOUR, DAY = 3600.0, 86_400.0
KEEP_ALL_SECONDS = DAY
"""Age up to which every snapshot is kept."""
HOURLY_SECONDS = 8 * DAY
"""Age up to which the last snapshot of each hour and all with events are kept; after that the last of each day.

The journal, too, reaches back at least this far."""
CHECKPOINT_INTERVAL_SECONDS = DAY
"""Time between kept checkpoints."""
MAX_SNAPSHOTS = 500
"""Snapshots deleted in one transaction: keeps the database locked for a short time only."""
MAX_JOURNAL_ENTRIES = 5000
"""Journal entries deleted in one transaction, for the same reason."""


class SnapshotAge(NamedTuple):
    """The properties of a snapshot that retention depends on.

    Attributes
    ----------
    created_at
        Seconds since 1970.
    eventful
        Whether the snapshot has events.
    """

    number: int
    created_at: float
    eventful: bool


class CheckpointAge(NamedTuple):
    """The properties of a kept checkpoint that retention depends on; `committed_at` in seconds since 1970."""

    commit_seq: int
    committed_at: float


def expired_snapshots(snapshots: Iterable[SnapshotAge], now: float) -> list[int]:
    """Numbers of the snapshots that need not be kept, oldest first.

    Hours and days are those of the calendar (UTC), so that the last snapshot of a day is also the last of its hour.
    """
    kept: dict[tuple[float, int], SnapshotAge] = {}
    expired: list[SnapshotAge] = []
    for s in sorted(snapshots, key=lambda s: (s.created_at, s.number)):
        age = now - s.created_at
        if age < KEEP_ALL_SECONDS or (s.eventful and age < HOURLY_SECONDS):
            continue
        size = HOUR if age < HOURLY_SECONDS else DAY
        bucket = (size, int(s.created_at // size))
        if bucket in kept:
            expired.append(kept[bucket])
        kept[bucket] = s
    return [s.number for s in sorted(expired, key=lambda s: s.number)]


def journal_start(checkpoints: Iterable[CheckpointAge], now: float) -> int:
    """Number of the commit behind which the journal may start; 0: it starts with the model."""
    return max((c.commit_seq for c in checkpoints if c.committed_at <= now - HOURLY_SECONDS), default=0)
