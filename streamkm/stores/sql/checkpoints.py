"""SQL statements of kept checkpoints, at which journal replays can start; to run inside a given transaction."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from streamkm.state import Checkpoint, ModelState, Progress
from streamkm.stores import serialization
from streamkm.stores.retention import CHECKPOINT_INTERVAL_SECONDS
from streamkm.stores.sql import queries as q
from streamkm.stores.sql import schema as t

_MODEL: sa.BindParameter[Any] = sa.bindparam("model")
_C = t.kept_checkpoints.c
_NEWEST = (
    sa.select(t.models.c.id, sa.func.coalesce(sa.func.max(_C.committed_at), t.models.c.created_at).label("at"))
    .select_from(t.models.outerjoin(t.kept_checkpoints, _C.model_id == t.models.c.id))
    .where(t.models.c.name == _MODEL)
    .group_by(t.models.c.id, t.models.c.created_at)
)
_ALL = sa.select(*(c for c in _C if c.name != "state")).where(_C.model_id == _MODEL).order_by(_C.commit_seq)
_ONE = sa.select(t.kept_checkpoints).where(_C.model_id == _MODEL, _C.commit_seq == sa.bindparam("seq"))


def is_due(tx: sa.Connection, model: str, now: float) -> bool:
    """Whether the newest kept checkpoint, or the creation of a model without one, is a day old."""
    newest = tx.execute(_NEWEST, {"model": model}).one_or_none()
    return newest is not None and now - newest.at >= CHECKPOINT_INTERVAL_SECONDS


def keep(tx: sa.Connection, model: int) -> bool:
    """Keep the last checkpoint; the lease's row must be locked. False when it is kept already, or there is none."""
    row = tx.execute(q.CHECKPOINT, {"model": model}).one_or_none()
    if row is None or tx.execute(_ONE, {"model": model, "seq": row.commit_seq}).one_or_none() is not None:
        return False
    values = {c.name: getattr(row, c.name) for c in _C if c.name != "position"}
    position = serialization.position_to_text(q.position(tx, model))
    tx.execute(sa.insert(t.kept_checkpoints), {**values, "position": position})
    return True


def all_progress(tx: sa.Connection, model: int) -> list[Progress]:
    """The progress of each kept checkpoint, oldest first."""
    return [_progress(row) for row in tx.execute(_ALL, {"model": model})]


def one(tx: sa.Connection, model: int, seq: int) -> Checkpoint | None:
    """The kept checkpoint of one commit."""
    row = tx.execute(_ONE, {"model": model, "seq": seq}).one_or_none()
    return None if row is None else Checkpoint(ModelState.from_bytes(row.state), _progress(row))


def _progress(row: sa.Row[Any]) -> Progress:
    return serialization.progress_from_row(row, serialization.position_from_text(row.position))
