"""The statements about quarantined records, inside whatever transaction they are given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from streamkm.stores import rows
from streamkm.stores import tables as t
from streamkm.stores.base import Held, Place

PAGE = 256
MOST = 10_000
"""Records that one call of `trim` removes at most, so that it never holds the database for long."""

_C = t.quarantine.c
_OF_MODEL = _C.model_id == sa.bindparam("model")
_PAGE = (
    sa.select(t.quarantine)
    .where(_OF_MODEL, _C.id > sa.bindparam("after"), _C.id <= sa.bindparam("last"))
    .order_by(_C.id)
    .limit(PAGE)
)
_WAITING = (
    sa.select(t.quarantine).where(_OF_MODEL, _C.delivered_at.is_(None)).order_by(_C.id).limit(sa.bindparam("rows"))
)
_THIS = (
    _OF_MODEL,
    _C.topic == sa.bindparam("b_topic"),
    _C.partition == sa.bindparam("b_partition"),
    _C.record_offset == sa.bindparam("b_offset"),
)
_MARK = sa.update(t.quarantine).where(*_THIS).values(delivered_at=sa.bindparam("b_now"))
_FORGET = sa.delete(t.quarantine).where(*_THIS)
_LAST = sa.select(sa.func.max(_C.id)).where(_OF_MODEL)
_COUNT = sa.select(sa.func.count()).where(_OF_MODEL)
_REASONS = sa.select(_C.reason, sa.func.count().label("records")).where(_OF_MODEL).group_by(_C.reason)
_ONE = sa.select(t.quarantine).where(*_THIS)


def newest(tx: sa.Connection, model: int, limit: int, reason: str | None) -> list[Held]:
    """The newest records, perhaps of one reason only."""
    query = sa.select(t.quarantine).where(_C.model_id == model)
    if reason is not None:
        query = query.where(_C.reason == reason)
    return [_held(row) for row in tx.execute(query.order_by(_C.id.desc()).limit(max(0, limit)))]


def last(tx: sa.Connection, model: int) -> int:
    """The row's number of the newest record; 0 when there is none."""
    return tx.execute(_LAST, {"model": model}).scalar() or 0


def page(tx: sa.Connection, model: int, after: int, last: int) -> tuple[list[Held], int]:
    """At most `PAGE` records in the order they came, and after which number the next page begins."""
    found = tx.execute(_PAGE, {"model": model, "after": after, "last": last}).all()
    return [_held(row) for row in found], found[-1].id if found else last


def waiting(tx: sa.Connection, model: int, limit: int) -> list[Held]:
    """The oldest records whose letter is not known to be delivered."""
    return [_held(row) for row in tx.execute(_WAITING, {"model": model, "rows": max(0, limit)})]


def one(tx: sa.Connection, model: int, place: Place) -> Held | None:
    """The record of one place."""
    row = tx.execute(_ONE, _of(model, place)).one_or_none()
    return None if row is None else _held(row)


def reasons(tx: sa.Connection, model: int) -> dict[str, int]:
    """How many records there are of each reason."""
    return {row.reason: row.records for row in tx.execute(_REASONS, {"model": model})}


def mark(tx: sa.Connection, model: int, places: Sequence[Place], now: float) -> None:
    """Note that the letters of these records were delivered."""
    if places:
        tx.execute(_MARK, [{**_of(model, place), "b_now": now} for place in places])


def forget(tx: sa.Connection, model: int, places: Sequence[Place]) -> None:
    """Remove these records."""
    if places:
        tx.execute(_FORGET, [_of(model, place) for place in places])


def trim(tx: sa.Connection, model: int, keep: int, *, delivered_only: bool) -> int:
    """Remove the oldest records beyond `keep`; how many went."""
    surplus = tx.execute(_COUNT, {"model": model}).scalar_one() - keep
    if surplus <= 0:
        return 0
    oldest = sa.select(_C.id).where(_C.model_id == model)
    if delivered_only:
        oldest = oldest.where(_C.delivered_at.is_not(None))
    oldest = oldest.order_by(_C.id).limit(min(surplus, MOST))
    return tx.execute(sa.delete(t.quarantine).where(_C.id.in_(oldest.scalar_subquery()))).rowcount


def _of(model: int, place: Place) -> dict[str, Any]:
    partition, offset = place
    return {"model": model, "b_topic": partition.topic, "b_partition": partition.partition, "b_offset": offset}


def _held(row: sa.Row[Any]) -> Held:
    return Held(rows.bad_record_from_row(row), row.commit_seq, row.delivered_at)
