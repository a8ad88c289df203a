"""SQL statements of models, leases, checkpoints and snapshots, to run inside a given transaction.

Statements are constants where possible: building one takes SQLAlchemy about as long as running it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from streamkm.records import Position, TopicPartition
from streamkm.state import Progress
from streamkm.stores import checks, serialization
from streamkm.stores.base import Lease, ModelInfo
from streamkm.stores.sql import schema as t

_MODEL: sa.BindParameter[Any] = sa.bindparam("model")

# Without the states, which are megabytes per model.
LISTED = sa.select(
    t.models.c.id,
    t.models.c.name,
    t.models.c.spec,
    t.models.c.created_at,
    t.models.c.last_snapshot,
    t.models.c.lost,
    t.models.c.paused,
    *(t.leases.c[name] for name in ("epoch", "owner", "expires_at")),
    *(c for c in t.checkpoints.c if c.name not in ("model_id", "state")),
).select_from(
    t.models.join(t.leases, t.leases.c.model == t.models.c.name).outerjoin(
        t.checkpoints, t.checkpoints.c.model_id == t.models.c.id
    )
)
LISTED_ONE = LISTED.where(t.models.c.name == _MODEL)

_OF_MODEL = (
    sa.select(t.snapshots).join(t.models, t.models.c.id == t.snapshots.c.model_id).where(t.models.c.name == _MODEL)
)
# A recomputed snapshot answers no queries until it is promoted.
_IN_CHARGE = _OF_MODEL.where(t.snapshots.c.kind != checks.RECOMPUTED)
NEWEST = _IN_CHARGE.order_by(t.snapshots.c.id.desc()).limit(1)
NEWEST_NUMBER = NEWEST.with_only_columns(t.snapshots.c.model_id, t.snapshots.c.id)
NUMBERED = _OF_MODEL.where(t.snapshots.c.id == sa.bindparam("number"))
# By the publisher's clock, which may go back between two snapshots.
AS_OF = (
    _IN_CHARGE.where(t.snapshots.c.created_at <= sa.bindparam("at"))
    .order_by(t.snapshots.c.created_at.desc(), t.snapshots.c.id.desc())
    .limit(1)
)

CONTROL_REQUESTS = (
    sa.select(t.promotions.c.snapshot, t.promotions.c.skip, t.models.c.paused)
    .select_from(t.models.outerjoin(t.promotions, t.promotions.c.model_id == t.models.c.id))
    .where(t.models.c.name == _MODEL)
)
CHECKPOINT = (
    sa.select(t.checkpoints, t.models.c.lost)
    .join(t.models, t.models.c.id == t.checkpoints.c.model_id)
    .where(t.checkpoints.c.model_id == _MODEL)
)
JOURNAL_PAGE = (
    sa.select(t.journal.c.commit_seq, t.journal.c.batches)
    .where(
        t.journal.c.model_id == _MODEL,
        t.journal.c.commit_seq > sa.bindparam("after"),
        t.journal.c.commit_seq <= sa.bindparam("last"),
    )
    .order_by(t.journal.c.commit_seq)
    .limit(sa.bindparam("rows"))
)

_MODEL_ID = sa.select(t.models.c.id).where(t.models.c.name == _MODEL)
# FOR NO KEY UPDATE: foreign keys to the row stay possible. Omitted on SQLite, whose writer locks the whole database.
_MODEL_ID_LOCKED = _MODEL_ID.with_for_update(key_share=True)
_COMMIT_SEQ = sa.select(t.checkpoints.c.commit_seq).where(t.checkpoints.c.model_id == _MODEL)
_LOST = (
    sa.update(t.models)
    .where(t.models.c.id == _MODEL, t.models.c.lost != sa.bindparam("b_lost"))
    .values(lost=sa.bindparam("b_lost"))
)
_POSITIONS = sa.select(t.progress)
_POSITION = _POSITIONS.where(t.progress.c.model_id == _MODEL)
_MOVE = (
    sa.update(t.progress)
    .where(
        t.progress.c.model_id == _MODEL,
        t.progress.c.topic == sa.bindparam("b_topic"),
        t.progress.c.partition == sa.bindparam("b_partition"),
    )
    .values(next_offset=sa.bindparam("b_offset"))
)


def names(tx: sa.Connection) -> Sequence[str]:
    """Names of all models."""
    return tx.execute(sa.select(t.models.c.name)).scalars().all()


def model_id(tx: sa.Connection, name: str, *, locked: bool = False) -> int:
    """The model's primary key.

    Parameters
    ----------
    locked
        Lock the row until the end of the transaction, against deletion and numbering of snapshots.

    Raises
    ------
    NotFoundError
        No model has this name.
    """
    found = tx.execute(_MODEL_ID_LOCKED if locked else _MODEL_ID, {"model": name}).scalar()
    if found is None:
        raise checks.no_model(name, names(tx))
    return int(found)


def held(lease: Lease) -> tuple[sa.ColumnElement[bool], ...]:
    """Condition on the row of a lease: its owner still holds it."""
    return t.leases.c.model == lease.model, t.leases.c.epoch == lease.epoch, t.leases.c.owner == lease.owner


def fence(tx: sa.Connection, lease: Lease, **values: float) -> None:
    """Update the lease's row if the lease is still held, which locks the row until the transaction ends.

    Raises
    ------
    LeaseLostError
        The row has another epoch or owner.
    """
    touched = tx.execute(sa.update(t.leases).where(*held(lease)).values(epoch=lease.epoch, **values))
    if touched.rowcount != 1:
        row = tx.execute(
            sa.select(t.leases.c.epoch, t.leases.c.owner)
            .join(t.models, t.models.c.name == t.leases.c.model)
            .where(t.leases.c.model == lease.model)
        ).one_or_none()
        raise checks.lease_lost(lease, *(row if row is not None else (None, None)))


def commit_seq(tx: sa.Connection, model: int) -> int:
    """Number of the model's last commit; 0 before the first."""
    return tx.execute(_COMMIT_SEQ, {"model": model}).scalar() or 0


def position(tx: sa.Connection, model: int) -> Position:
    """The position of a model."""
    return _grouped(tx.execute(_POSITION, {"model": model})).get(model, {})


def positions(tx: sa.Connection) -> dict[int, dict[TopicPartition, int]]:
    """The positions of all models, by primary key."""
    return _grouped(tx.execute(_POSITIONS))


def _grouped(found: sa.CursorResult[Any]) -> dict[int, dict[TopicPartition, int]]:
    grouped: dict[int, dict[TopicPartition, int]] = {}
    for row in found:
        grouped.setdefault(row.model_id, {})[TopicPartition(row.topic, row.partition)] = row.next_offset
    return grouped


def set_position(tx: sa.Connection, model: int, stored: Position, new: Position) -> None:
    """Replace the stored position by a new one that has at least the same partitions."""
    added = {p: offset for p, offset in new.items() if p not in stored}
    moved = [(p, offset) for p, offset in new.items() if p in stored and offset != stored[p]]
    if added:
        tx.execute(sa.insert(t.progress), serialization.position_to_rows(added, model))
    if moved:
        tx.execute(
            _MOVE,
            [{"model": model, "b_topic": p.topic, "b_partition": p.partition, "b_offset": o} for p, o in moved],
        )


def set_checkpoint(tx: sa.Connection, model: int, progress: Progress, state: bytes) -> None:
    """Insert the model's first checkpoint, or replace that of the previous commit.

    Raises
    ------
    ConflictError
        The stored checkpoint is that of another commit.
    """
    row = {**serialization.progress_to_row(progress), "state": state}
    c = t.checkpoints.c
    if progress.counters.lost:
        tx.execute(_LOST, {"model": model, "b_lost": progress.counters.lost})
    if progress.commit_seq == 1:
        tx.execute(sa.insert(t.checkpoints), {**row, "model_id": model})
        return
    follows = sa.and_(c.model_id == model, c.commit_seq == progress.commit_seq - 1)
    if tx.execute(sa.update(t.checkpoints).where(follows).values(**row)).rowcount != 1:
        raise checks.already_stored(f"model {model}", f"commit {progress.commit_seq}")


def add_snapshot(tx: sa.Connection, row: serialization.Columns) -> int:
    """Assign a number to a snapshot and insert it; unless it is recomputed, it becomes the one in charge."""
    # A counter, not the newest number plus 1: numbers of deleted snapshots are never reused.
    of_model = t.models.c.id == row["model_id"]
    following = t.models.c.numbered + 1
    in_charge = {} if row["kind"] == checks.RECOMPUTED else {"last_snapshot": following}
    tx.execute(sa.update(t.models).where(of_model).values(numbered=following, **in_charge))
    number = int(tx.execute(sa.select(t.models.c.numbered).where(of_model)).scalar_one())
    tx.execute(sa.insert(t.snapshots), {**row, "id": number})
    return number


def pin(tx: sa.Connection, model: int, number: int) -> bool:
    """Exempt a snapshot from retention; False when the model has none with this number."""
    this = (t.snapshots.c.model_id == model, t.snapshots.c.id == number)
    return tx.execute(sa.update(t.snapshots).where(*this).values(pinned=True)).rowcount > 0


def numbers(tx: sa.Connection, model: int) -> tuple[int, int]:
    """The lowest and the highest number of the model's snapshots; both 0 when there are none."""
    c = t.snapshots.c
    first, last = tx.execute(sa.select(sa.func.min(c.id), sa.func.max(c.id)).where(c.model_id == model)).one()
    return first or 0, last or 0


def info(row: sa.Row[Any], position: Position) -> ModelInfo:
    """A model from its row of `LISTED` and its position."""
    progress = None if row.commit_seq is None else serialization.progress_from_row(row, position)
    lease = serialization.lease_from_row(row.name, row)
    spec = serialization.spec_from_text(row.spec)
    return ModelInfo(spec, row.created_at, progress, row.last_snapshot, lease, row.paused)
