"""SQL statements of retention, to run inside a given transaction."""

from __future__ import annotations

import sqlalchemy as sa

from streamkm.stores import checks
from streamkm.stores.retention import (
    KEEP_ALL_SECONDS,
    MAX_JOURNAL_ENTRIES,
    MAX_SNAPSHOTS,
    CheckpointAge,
    SnapshotAge,
    expired_snapshots,
    journal_start,
)
from streamkm.stores.sql import schema as t


def delete_snapshots(tx: sa.Connection, model: int, now: float) -> int:
    """Delete expired snapshots, at most `MAX_SNAPSHOTS`; never the newest, pinned or recomputed ones.

    Returns
    -------
    int
        Number of rows deleted.
    """
    c = t.snapshots.c
    newest = sa.select(t.models.c.last_snapshot).where(t.models.c.id == model).scalar_subquery()
    deletable = (c.model_id == model, c.pinned.is_(sa.false()), c.kind != checks.RECOMPUTED, c.id != newest)
    old = sa.select(c.id, c.created_at, c.events != "[]").where(*deletable, c.created_at <= now - KEEP_ALL_SECONDS)
    numbers = expired_snapshots((SnapshotAge(*row) for row in tx.execute(old)), now)[:MAX_SNAPSHOTS]
    if not numbers:
        return 0
    return tx.execute(sa.delete(t.snapshots).where(*deletable, c.id.in_(numbers))).rowcount


def delete_journal(tx: sa.Connection, model: int, now: float) -> int:
    """Delete kept checkpoints and journal entries before the start of the journal, at most `MAX_JOURNAL_ENTRIES`.

    Returns
    -------
    int
        Number of rows deleted.
    """
    kept = t.kept_checkpoints.c
    ages = sa.select(kept.commit_seq, kept.committed_at).where(kept.model_id == model)
    start = journal_start((CheckpointAge(*row) for row in tx.execute(ages)), now)
    if not start:
        return 0
    older = (kept.model_id == model, kept.commit_seq < start)
    deleted = tx.execute(sa.delete(t.kept_checkpoints).where(*older)).rowcount
    entry = t.journal.c
    old = (entry.model_id == model, entry.commit_seq <= start)
    oldest = sa.select(entry.commit_seq).where(*old).order_by(entry.commit_seq).limit(MAX_JOURNAL_ENTRIES)
    statement = sa.delete(t.journal).where(*old, entry.commit_seq.in_(oldest.scalar_subquery()))
    return deleted + tx.execute(statement).rowcount
