"""SQL statements of tokens, jobs, event deliveries and recent points, to run inside a given transaction."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import safetensors.numpy
import sqlalchemy as sa

from streamkm.state import Recent
from streamkm.stores import checks, serialization
from streamkm.stores.base import Job, JobState, Token
from streamkm.stores.sql import queries as q
from streamkm.stores.sql import schema as t

_MODEL: sa.BindParameter[Any] = sa.bindparam("model")
_RECENT = sa.select(t.recent).where(t.recent.c.model_id == _MODEL)
_SET_RECENT = (
    sa.update(t.recent)
    .where(t.recent.c.model_id == _MODEL)
    .values(ends=sa.bindparam("b_ends"), points=sa.bindparam("b_points"))
)
_JOBS = sa.select(t.jobs).where(t.jobs.c.model_id == _MODEL)
_JOB = _JOBS.where(t.jobs.c.id == sa.bindparam("job"))
_JOB_AGES = sa.select(t.jobs.c.created_at, t.jobs.c.id).where(t.jobs.c.model_id == _MODEL)
_DELIVERED = sa.select(t.deliveries.c.snapshot).where(
    t.deliveries.c.model_id == _MODEL, t.deliveries.c.target == sa.bindparam("target")
)
_RIGHTS = ("read", "write")


def tokens(tx: sa.Connection) -> list[Token]:
    """All tokens, by name."""
    # Sorted here: a database sorts by the collation of some language.
    return sorted((_token_from_row(row) for row in tx.execute(sa.select(t.tokens))), key=lambda token: token.name)


def add_token(tx: sa.Connection, token: Token) -> None:
    """Insert a token."""
    tx.execute(sa.insert(t.tokens), {**token._asdict(), "models": json.dumps(token.models)})


def remove_token(tx: sa.Connection, name: str) -> None:
    """Delete a token.

    Raises
    ------
    NotFoundError
        There is none with this name.
    """
    if not tx.execute(sa.delete(t.tokens).where(t.tokens.c.name == name)).rowcount:
        raise checks.no_token(name, tx.execute(sa.select(t.tokens.c.name)).scalars())


def put_job(tx: sa.Connection, job: Job) -> None:
    """Insert or replace a job, and delete the oldest beyond `checks.MAX_JOBS`."""
    c = t.jobs.c
    row = _job_to_row(job)
    model = q.model_id(tx, job.model, locked=True)
    if not tx.execute(sa.update(t.jobs).where(c.model_id == model, c.id == job.id).values(**row)).rowcount:
        tx.execute(sa.insert(t.jobs), {**row, "model_id": model, "id": job.id})
    # Sorted here: a database sorts by the collation of some language.
    ages = sorted(map(tuple, tx.execute(_JOB_AGES, {"model": model})), reverse=True)
    old = [job_id for _, job_id in ages[checks.MAX_JOBS :]]
    if old:
        tx.execute(sa.delete(t.jobs).where(c.model_id == model, c.id.in_(old)))


def jobs(tx: sa.Connection, model: str) -> Sequence[Job]:
    """Jobs of a model, newest first."""
    found = tx.execute(_JOBS, {"model": q.model_id(tx, model)})
    return checks.newest_jobs(_job_from_row(model, row) for row in found)


def job(tx: sa.Connection, model: str, job_id: str) -> Job:
    """One job.

    Raises
    ------
    NotFoundError
        There is none with this id.
    """
    row = tx.execute(_JOB, {"model": q.model_id(tx, model), "job": job_id}).one_or_none()
    if row is None:
        raise checks.no_job(model, job_id)
    return _job_from_row(model, row)


def delivered_until(tx: sa.Connection, model: str, target: str) -> int:
    """Number of the last snapshot whose events were delivered to a target; 0: none."""
    return tx.execute(_DELIVERED, {"model": q.model_id(tx, model), "target": target}).scalar() or 0


def advance_delivery(tx: sa.Connection, model: str, target: str, expected: int, snapshot: int) -> bool:
    """Set `delivered_until` to `snapshot` if it is still `expected`; whether it was."""
    c = t.deliveries.c
    # Locks the model's row, so that no other process comes between the comparison and the update.
    model_id = q.model_id(tx, model, locked=True)
    stored = tx.execute(_DELIVERED, {"model": model_id, "target": target}).scalar()
    if (stored or 0) != expected:
        return False
    if stored is None:
        tx.execute(sa.insert(t.deliveries), {"model_id": model_id, "target": target, "snapshot": snapshot})
    else:
        this = (c.model_id == model_id, c.target == target)
        tx.execute(sa.update(t.deliveries).where(*this).values(snapshot=snapshot))
    return True


def recent(tx: sa.Connection, model: str) -> Recent | None:
    """The points that were learned last; read-only.

    Raises
    ------
    StoreError
        The stored row is damaged.
    """
    row = tx.execute(_RECENT, {"model": q.model_id(tx, model)}).one_or_none()
    if row is None:
        return None
    with serialization.damage_as_store_error("the recent points", f"model {model}"):
        array = safetensors.numpy.load(row.points)["points"]
        if array.ndim != 2 or array.dtype != np.float64:
            raise ValueError("its array is not a table of points")
        array.flags.writeable = False
        return Recent(array, serialization.position_from_text(row.ends))


def recent_to_row(recent: Recent) -> tuple[str, bytes]:
    """Ends as text and points as bytes."""
    points = np.ascontiguousarray(recent.points, np.float64)
    return serialization.position_to_text(recent.ends), safetensors.numpy.save({"points": points})


def set_recent(tx: sa.Connection, model: int, row: tuple[str, bytes]) -> None:
    """Replace the recent points; the lease's row must be locked."""
    ends, points = row
    if not tx.execute(_SET_RECENT, {"model": model, "b_ends": ends, "b_points": points}).rowcount:
        tx.execute(sa.insert(t.recent), {"model_id": model, "ends": ends, "points": points})


def _token_from_row(row: sa.Row[Any]) -> Token:
    with serialization.damage_as_store_error("a token", f"token {row.name}"):
        models = json.loads(row.models)
        # A damaged row must not grant more than was meant.
        if row.right not in _RIGHTS or not isinstance(models, list) or not all(isinstance(m, str) for m in models):
            raise ValueError("its right or its models are not valid")
        return Token(row.name, row.digest, row.right, tuple(models), row.created_at)


def _job_to_row(job: Job) -> serialization.Columns:
    return {
        "asked": json.dumps(job.options, default=serialization.json_default),
        "state": job.state,
        "progress": json.dumps(job.progress, default=serialization.json_default),
        "snapshot": job.snapshot,
        "error": job.error,
        "created_at": job.created_at,
        "updated_at": job.updated_at,
    }


def _job_from_row(model: str, row: sa.Row[Any]) -> Job:
    with serialization.damage_as_store_error("a job", f"model {model}, job {row.id}"):
        options, progress = json.loads(row.asked), json.loads(row.progress)
        known = row.state in get_args(JobState) and isinstance(options, dict) and isinstance(progress, dict)
        if not known or not (math.isfinite(row.created_at) and math.isfinite(row.updated_at)):
            raise ValueError("its columns are not those of a job")
        return Job(row.id, model, options, row.state, progress, row.snapshot, row.error, row.created_at, row.updated_at)
