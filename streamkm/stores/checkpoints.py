"""Checkpoints that are kept, for a re-run to begin at; and what of the journal they make superfluous.

A re-run from the model's making takes ever longer, and needs records that retention takes from the topic. So one
checkpoint a day stays, and the journal begins at the last of those that are older than snapshots are kept by the hour.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import sqlalchemy as sa

from streamkm.state import Checkpoint, ModelState, Progress
from streamkm.stores import serialization
from streamkm.stores.retention import DAY, HOURLY_SECONDS
from streamkm.stores.sql import queries as q
from streamkm.stores.sql import schema as t

EVERY_SECONDS = DAY
KEPT_SECONDS = HOURLY_SECONDS
"""The journal reaches back at least so far."""
MOST = 5000
"""Journal entries that go in one transaction at most."""

_MODEL: sa.BindParameter[Any] = sa.bindparam("model")
_C = t.bases.c
_NEWEST = (
    sa.select(t.models.c.id, sa.func.coalesce(sa.func.max(_C.committed_at), t.models.c.created_at).label("at"))
    .select_from(t.models.outerjoin(t.bases, _C.model_id == t.models.c.id))
    .where(t.models.c.name == _MODEL)
    .group_by(t.models.c.id, t.models.c.created_at)
)
_LISTED = sa.select(*(c for c in _C if c.name != "state")).where(_C.model_id == _MODEL).order_by(_C.commit_seq)
_ONE = sa.select(t.bases).where(_C.model_id == _MODEL, _C.commit_seq == sa.bindparam("seq"))


class CheckpointAge(NamedTuple):
    """What retention looks at."""

    commit_seq: int
    committed_at: float


def journal_start(bases: Iterable[CheckpointAge], now: float) -> int:
    """Number of the commit where the journal may begin; 0: at the beginning."""
    return max((b.commit_seq for b in bases if b.committed_at <= now - KEPT_SECONDS), default=0)


def due(tx: sa.Connection, model: str, now: float) -> bool:
    """Whether the newest base, or a model without one, is old enough for another."""
    newest = tx.execute(_NEWEST, {"model": model}).one_or_none()
    return newest is not None and now - newest.at >= EVERY_SECONDS


def keep(tx: sa.Connection, model: int) -> bool:
    """Keep the last checkpoint; the lease's row must be locked. False when it is kept already, or there is none."""
    row = tx.execute(q.CHECKPOINT, {"model": model}).one_or_none()
    if row is None or tx.execute(_ONE, {"model": model, "seq": row.commit_seq}).one_or_none() is not None:
        return False
    values = {c.name: getattr(row, c.name) for c in t.bases.c if c.name != "position"}
    tx.execute(sa.insert(t.bases), {**values, "position": serialization.position_to_text(q.position(tx, model))})
    return True


def listed(tx: sa.Connection, model: int) -> list[Progress]:
    """How far each was, the oldest first."""
    return [_progress(row) for row in tx.execute(_LISTED, {"model": model})]


def one(tx: sa.Connection, model: int, seq: int) -> Checkpoint | None:
    """The base of one commit."""
    row = tx.execute(_ONE, {"model": model, "seq": seq}).one_or_none()
    return None if row is None else Checkpoint(ModelState.from_bytes(row.state), _progress(row))


def thin(tx: sa.Connection, model: int, now: float) -> int:
    """Remove the bases and journal entries before the first that is kept, some thousand at most; how many went."""
    ages = sa.select(_C.commit_seq, _C.committed_at).where(_C.model_id == model)
    first = journal_start((CheckpointAge(*row) for row in tx.execute(ages)), now)
    if not first:
        return 0
    gone = tx.execute(sa.delete(t.bases).where(_C.model_id == model, _C.commit_seq < first)).rowcount
    entry = t.journal.c
    old = (entry.model_id == model, entry.commit_seq <= first)
    oldest = sa.select(entry.commit_seq).where(*old).order_by(entry.commit_seq).limit(MOST)
    return gone + tx.execute(sa.delete(t.journal).where(*old, entry.commit_seq.in_(oldest.scalar_subquery()))).rowcount


def _progress(row: sa.Row[Any]) -> Progress:
    return serialization.progress_from_row(row, serialization.position_from_text(row.position))
