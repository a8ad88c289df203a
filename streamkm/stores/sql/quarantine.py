"""SQL statements of quarantined records, to run inside a given transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from streamkm.state import QuarantineLimits
from streamkm.stores import serialization
from streamkm.stores.base import QuarantinedRecord, RecordId
from streamkm.stores.quarantine import BATCH_BYTES, MIN_HEADER_BYTES
from streamkm.stores.sql import schema as t

PAGE = 64
"""Records read in one transaction."""
MAX_TRIMMED = 10_000
"""Records that one call of `trim` removes at most: keeps the database locked for a short time only."""

_C = t.quarantine.c
_OF_MODEL = _C.model_id == sa.bindparam("model")
_PAGE = (
    sa.select(t.quarantine)
    .where(_OF_MODEL, _C.id > sa.bindparam("after"), _C.id <= sa.bindparam("last"))
    .order_by(_C.id)
    .limit(PAGE)
)
_UNDELIVERED = (_OF_MODEL, _C.delivered_at.is_(None))
_SIZES = sa.select(_C.id, _C.kept_bytes).where(*_UNDELIVERED).order_by(_C.id).limit(sa.bindparam("rows"))
_UNDELIVERED_UNTIL = sa.select(t.quarantine).where(*_UNDELIVERED, _C.id <= sa.bindparam("last")).order_by(_C.id)
_SAME_RECORD = (
    _OF_MODEL,
    _C.topic == sa.bindparam("b_topic"),
    _C.partition == sa.bindparam("b_partition"),
    _C.record_offset == sa.bindparam("b_offset"),
)
_MARK_DELIVERED = sa.update(t.quarantine).where(*_SAME_RECORD).values(delivered_at=sa.bindparam("b_now"))
_REMOVE = sa.delete(t.quarantine).where(*_SAME_RECORD)
_LAST = sa.select(sa.func.max(_C.id)).where(_OF_MODEL)
_TOTALS = sa.select(sa.func.count().label("rows"), sa.func.coalesce(sa.func.sum(_C.kept_bytes), 0).label("size")).where(
    _OF_MODEL
)
_COUNTS = sa.select(_C.reason, sa.func.count().label("n_records")).where(_OF_MODEL).group_by(_C.reason)
_ONE = sa.select(t.quarantine).where(*_SAME_RECORD)


def newest(
    tx: sa.Connection, model: int, limit: int, reason: str | None, max_bytes: int | None
) -> list[QuarantinedRecord]:
    """The newest records first, optionally of one reason only, with at most `max_bytes` of each key and value."""
    columns: list[sa.ColumnElement[Any]] = list(_C)
    if max_bytes is not None:
        # Truncated by the database: the whole values of many records would fill the memory of this process.
        max_headers = max(MIN_HEADER_BYTES, 4 * max_bytes)
        truncated = {
            "key": sa.func.substr(_C.key, 1, max_bytes, type_=sa.LargeBinary),
            "value": sa.func.substr(_C.value, 1, max_bytes, type_=sa.LargeBinary),
            "headers": sa.case((sa.func.length(_C.headers) <= max_headers, _C.headers), else_="[]"),
            "value_size": sa.case(
                (_C.value_size.is_not(None), _C.value_size),
                (sa.func.length(_C.value) > max_bytes, sa.func.length(_C.value)),
            ),
        }
        columns = [truncated[c.name].label(c.name) if c.name in truncated else c for c in _C]
    query = sa.select(*columns).where(_C.model_id == model)
    if reason is not None:
        query = query.where(_C.reason == reason)
    return [_from_row(row) for row in tx.execute(query.order_by(_C.id.desc()).limit(max(0, limit)))]


def last(tx: sa.Connection, model: int) -> int:
    """Row id of the newest record; 0 when there is none."""
    return tx.execute(_LAST, {"model": model}).scalar() or 0


def page(tx: sa.Connection, model: int, after: int, last: int) -> tuple[list[QuarantinedRecord], int]:
    """At most `PAGE` records in order of arrival, and the row id behind which the next page starts."""
    found = tx.execute(_PAGE, {"model": model, "after": after, "last": last}).all()
    return [_from_row(row) for row in found], found[-1].id if found else last


def undelivered(tx: sa.Connection, model: int, limit: int) -> list[QuarantinedRecord]:
    """The oldest records whose dead letters are not known to be delivered: fewer than `limit` when they are large."""
    total, last = 0, 0
    for row in tx.execute(_SIZES, {"model": model, "rows": max(0, limit)}).all():
        if last and total + row.kept_bytes > BATCH_BYTES:
            break
        total, last = total + row.kept_bytes, row.id
    return [_from_row(row) for row in tx.execute(_UNDELIVERED_UNTIL, {"model": model, "last": last})]


def one(tx: sa.Connection, model: int, record: RecordId) -> QuarantinedRecord | None:
    """One record."""
    row = tx.execute(_ONE, _key(model, record)).one_or_none()
    return None if row is None else _from_row(row)


def counts(tx: sa.Connection, model: int) -> dict[str, int]:
    """Number of records by reason."""
    return {row.reason: row.n_records for row in tx.execute(_COUNTS, {"model": model})}


def mark_delivered(tx: sa.Connection, model: int, records: Sequence[RecordId], now: float) -> None:
    """Record that the dead letters of these records were acknowledged."""
    if records:
        tx.execute(_MARK_DELIVERED, [{**_key(model, record), "b_now": now} for record in records])


def remove(tx: sa.Connection, model: int, records: Sequence[RecordId]) -> None:
    """Remove these records."""
    if records:
        tx.execute(_REMOVE, [_key(model, record) for record in records])


def trim(tx: sa.Connection, model: int, limits: QuarantineLimits) -> int:
    """Remove the oldest records beyond the limits; values of undelivered ones where that is all.

    Returns
    -------
    int
        Number of records removed, at most `MAX_TRIMMED`.
    """
    return _trim(tx, model, limits)[0]


def trim_to_limits(tx: sa.Connection, model: int, limits: QuarantineLimits) -> None:
    """As `trim`, but until the quarantine is within the limits, however many records that takes."""
    while max(_trim(tx, model, limits)) == MAX_TRIMMED:
        pass


def _trim(tx: sa.Connection, model: int, limits: QuarantineLimits) -> tuple[int, int]:
    """Number of records removed, and of records whose values were dropped, each at most `MAX_TRIMMED`."""
    totals = tx.execute(_TOTALS, {"model": model}).one()
    rows, size = totals.rows - limits.rows, int(totals.size) - limits.size
    if rows <= 0 and size <= 0:
        return 0, 0
    removable = _C.model_id == model
    if limits.delivered_only:
        removable &= _C.delivered_at.is_not(None)
    last, removed = 0, 0
    for row in tx.execute(sa.select(_C.id, _C.kept_bytes).where(removable).order_by(_C.id).limit(MAX_TRIMMED)):
        if rows <= 0 and size <= 0:
            break
        last, removed, rows, size = row.id, removed + 1, rows - 1, size - row.kept_bytes
    if removed:
        tx.execute(sa.delete(t.quarantine).where(removable, _C.id <= last))
    if limits.delivered_only and size > 0 and removed < MAX_TRIMMED:
        return removed, _drop_values(tx, model, size)
    return removed, 0


def _drop_values(tx: sa.Connection, model: int, size: int) -> int:
    """Drop the values of the oldest undelivered records until `size` bytes are free; number of records changed."""
    length = sa.func.coalesce(sa.func.length(_C.value), 0)
    undelivered = (_C.model_id == model, _C.delivered_at.is_(None), length > 0)
    last, changed = 0, 0
    for row in tx.execute(
        sa.select(_C.id, length.label("bytes")).where(*undelivered).order_by(_C.id).limit(MAX_TRIMMED)
    ):
        if size <= 0:
            break
        last, changed, size = row.id, changed + 1, size - row.bytes
    tx.execute(
        sa.update(t.quarantine)
        .where(*undelivered, _C.id <= last)
        .values(value=b"", value_size=sa.func.coalesce(_C.value_size, length), kept_bytes=_C.kept_bytes - length)
    )
    return changed


def _key(model: int, record: RecordId) -> dict[str, Any]:
    partition, offset = record
    return {"model": model, "b_topic": partition.topic, "b_partition": partition.partition, "b_offset": offset}


def _from_row(row: sa.Row[Any]) -> QuarantinedRecord:
    return QuarantinedRecord(serialization.bad_record_from_row(row), row.commit_seq, row.delivered_at)
