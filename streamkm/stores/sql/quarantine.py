"""The statements about quarantined records, inside whatever transaction they are given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from streamkm.state import QuarantineLimits
from streamkm.stores import serialization
from streamkm.stores.base import QuarantinedRecord, RecordId
from streamkm.stores.sql import schema as t

PAGE = 64
AT_ONCE_BYTES = 8 << 20
"""Bytes of the records that `waiting` gives at once, and one record more."""
LEAST_HEADERS = 4096
"""Bytes of headers that a list has in any case."""
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
_WAITS = (_OF_MODEL, _C.delivered_at.is_(None))
_SIZES = sa.select(_C.id, _C.kept_bytes).where(*_WAITS).order_by(_C.id).limit(sa.bindparam("rows"))
_WAITING = sa.select(t.quarantine).where(*_WAITS, _C.id <= sa.bindparam("last")).order_by(_C.id)
_THIS = (
    _OF_MODEL,
    _C.topic == sa.bindparam("b_topic"),
    _C.partition == sa.bindparam("b_partition"),
    _C.record_offset == sa.bindparam("b_offset"),
)
_MARK = sa.update(t.quarantine).where(*_THIS).values(delivered_at=sa.bindparam("b_now"))
_FORGET = sa.delete(t.quarantine).where(*_THIS)
_LAST = sa.select(sa.func.max(_C.id)).where(_OF_MODEL)
_TAKEN = sa.select(sa.func.count().label("rows"), sa.func.coalesce(sa.func.sum(_C.kept_bytes), 0).label("size")).where(
    _OF_MODEL
)
_REASONS = sa.select(_C.reason, sa.func.count().label("records")).where(_OF_MODEL).group_by(_C.reason)
_ONE = sa.select(t.quarantine).where(*_THIS)


def newest(tx: sa.Connection, model: int, limit: int, reason: str | None, most: int | None) -> list[QuarantinedRecord]:
    """The newest records, perhaps of one reason only, and of each key and value no more than `most` bytes."""
    columns: list[sa.ColumnElement[Any]] = list(_C)
    if most is not None:
        # The database cuts: whole values of many records would fill our memory.
        headers_most = max(LEAST_HEADERS, 4 * most)
        cut = {
            "key": sa.func.substr(_C.key, 1, most, type_=sa.LargeBinary),
            "value": sa.func.substr(_C.value, 1, most, type_=sa.LargeBinary),
            "headers": sa.case((sa.func.length(_C.headers) <= headers_most, _C.headers), else_="[]"),
            "value_size": sa.case(
                (_C.value_size.is_not(None), _C.value_size), (sa.func.length(_C.value) > most, sa.func.length(_C.value))
            ),
        }
        columns = [cut[c.name].label(c.name) if c.name in cut else c for c in _C]
    query = sa.select(*columns).where(_C.model_id == model)
    if reason is not None:
        query = query.where(_C.reason == reason)
    return [_held(row) for row in tx.execute(query.order_by(_C.id.desc()).limit(max(0, limit)))]


def last(tx: sa.Connection, model: int) -> int:
    """The row's number of the newest record; 0 when there is none."""
    return tx.execute(_LAST, {"model": model}).scalar() or 0


def page(tx: sa.Connection, model: int, after: int, last: int) -> tuple[list[QuarantinedRecord], int]:
    """At most `PAGE` records in the order they came, and after which number the next page begins."""
    found = tx.execute(_PAGE, {"model": model, "after": after, "last": last}).all()
    return [_held(row) for row in found], found[-1].id if found else last


def waiting(tx: sa.Connection, model: int, limit: int) -> list[QuarantinedRecord]:
    """The oldest records whose letter is not known to be delivered: fewer where they are large."""
    taken, last = 0, 0
    for row in tx.execute(_SIZES, {"model": model, "rows": max(0, limit)}).all():
        if last and taken + row.kept_bytes > AT_ONCE_BYTES:
            break
        taken, last = taken + row.kept_bytes, row.id
    return [_held(row) for row in tx.execute(_WAITING, {"model": model, "last": last})]


def one(tx: sa.Connection, model: int, place: RecordId) -> QuarantinedRecord | None:
    """The record of one place."""
    row = tx.execute(_ONE, _of(model, place)).one_or_none()
    return None if row is None else _held(row)


def reasons(tx: sa.Connection, model: int) -> dict[str, int]:
    """How many records there are of each reason."""
    return {row.reason: row.records for row in tx.execute(_REASONS, {"model": model})}


def mark(tx: sa.Connection, model: int, places: Sequence[RecordId], now: float) -> None:
    """Note that the letters of these records were delivered."""
    if places:
        tx.execute(_MARK, [{**_of(model, place), "b_now": now} for place in places])


def forget(tx: sa.Connection, model: int, places: Sequence[RecordId]) -> None:
    """Remove these records."""
    if places:
        tx.execute(_FORGET, [_of(model, place) for place in places])


def trim(tx: sa.Connection, model: int, bounds: QuarantineLimits) -> int:
    """Remove the oldest records beyond the bounds; how many went."""
    taken = tx.execute(_TAKEN, {"model": model}).one()
    rows, size = taken.rows - bounds.rows, int(taken.size) - bounds.size
    if rows <= 0 and size <= 0:
        return 0
    may_go = _C.model_id == model
    if bounds.delivered_only:
        may_go &= _C.delivered_at.is_not(None)
    last, gone = 0, 0
    for row in tx.execute(sa.select(_C.id, _C.kept_bytes).where(may_go).order_by(_C.id).limit(MOST)):
        if rows <= 0 and size <= 0:
            break
        last, gone, rows, size = row.id, gone + 1, rows - 1, size - row.kept_bytes
    if gone:
        tx.execute(sa.delete(t.quarantine).where(may_go, _C.id <= last))
    if bounds.delivered_only and size > 0:
        _empty(tx, model, size)
    return gone


def _empty(tx: sa.Connection, model: int, size: int) -> None:
    """Let the oldest records that wait for their letters lose their values, until so many bytes are free."""
    length = sa.func.coalesce(sa.func.length(_C.value), 0)
    waits = (_C.model_id == model, _C.delivered_at.is_(None), length > 0)
    last = 0
    for row in tx.execute(sa.select(_C.id, length.label("bytes")).where(*waits).order_by(_C.id).limit(MOST)):
        if size <= 0:
            break
        last, size = row.id, size - row.bytes
    tx.execute(
        sa.update(t.quarantine)
        .where(*waits, _C.id <= last)
        .values(value=b"", value_size=sa.func.coalesce(_C.value_size, length), kept_bytes=_C.kept_bytes - length)
    )


def _of(model: int, place: RecordId) -> dict[str, Any]:
    partition, offset = place
    return {"model": model, "b_topic": partition.topic, "b_partition": partition.partition, "b_offset": offset}


def _held(row: sa.Row[Any]) -> QuarantinedRecord:
    return QuarantinedRecord(serialization.bad_record_from_row(row), row.commit_seq, row.delivered_at)
