"""What services keep in a SQL store: tokens, jobs, pauses, deliveries of events, and the last points seen."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, get_args

import numpy as np
import safetensors.numpy
import sqlalchemy as sa

from streamkm.errors import ConflictError
from streamkm.state import Recent
from streamkm.stores import checks, serialization
from streamkm.stores.base import Job, JobState, Token
from streamkm.stores.sql import errors
from streamkm.stores.sql import queries as q
from streamkm.stores.sql import schema as t
from streamkm.stores.sql.database import Engines

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
_TOLD = sa.select(t.told.c.snapshot).where(t.told.c.model_id == _MODEL, t.told.c.target == sa.bindparam("target"))
_RIGHTS = ("read", "write")


class ServiceTables:
    """The part of a `Store` that services fill, and the transactions of all of it.

    Parameters
    ----------
    engines
        The database.
    """

    def __init__(self, engines: Engines) -> None:
        self.engines = engines

    def recent(self, model: str) -> Recent | None:
        with self._reading() as tx:
            row = tx.execute(_RECENT, {"model": q.model_id(tx, model)}).one_or_none()
        return None if row is None else recent_from_row(model, row.ends, row.points)

    def set_paused(self, model: str, paused: bool) -> None:
        with self._writing() as tx:
            if not tx.execute(sa.update(t.models).where(t.models.c.name == model).values(paused=paused)).rowcount:
                raise checks.no_model(model, q.names(tx))

    def tokens(self) -> Sequence[Token]:
        with self._reading() as tx:
            found = tx.execute(sa.select(t.tokens)).all()
        return sorted((_token(row) for row in found), key=lambda token: token.name)

    def add_token(self, token: Token) -> None:
        try:
            with self._writing() as tx:
                tx.execute(sa.insert(t.tokens), {**token._asdict(), "models": json.dumps(token.models)})
        except ConflictError:
            raise checks.token_taken(token.name) from None  # what the database said has the digest in it

    def remove_token(self, name: str) -> None:
        with self._writing() as tx:
            if not tx.execute(sa.delete(t.tokens).where(t.tokens.c.name == name)).rowcount:
                raise checks.no_token(name, tx.execute(sa.select(t.tokens.c.name)).scalars())

    def put_job(self, job: Job) -> None:
        c = t.jobs.c
        row = _job_to_row(job)
        with self._writing() as tx:
            model = q.model_id(tx, job.model, locked=True)
            if not tx.execute(sa.update(t.jobs).where(c.model_id == model, c.id == job.id).values(**row)).rowcount:
                tx.execute(sa.insert(t.jobs), {**row, "model_id": model, "id": job.id})
            # Sorted here: a database would sort ids by the rules of some language.
            ages = sorted(map(tuple, tx.execute(_JOB_AGES, {"model": model})), reverse=True)
            old = [job_id for _, job_id in ages[checks.JOBS_KEPT :]]
            if old:
                tx.execute(sa.delete(t.jobs).where(c.model_id == model, c.id.in_(old)))

    def jobs(self, model: str) -> Sequence[Job]:
        with self._reading() as tx:
            found = tx.execute(_JOBS, {"model": q.model_id(tx, model)}).all()
        return checks.newest_jobs(_job_from_row(model, row) for row in found)

    def job(self, model: str, job_id: str) -> Job:
        with self._reading() as tx:
            row = tx.execute(_JOB, {"model": q.model_id(tx, model), "job": job_id}).one_or_none()
        if row is None:
            raise checks.no_job(model, job_id)
        return _job_from_row(model, row)

    def delivered_until(self, model: str, target: str) -> int:
        with self._reading() as tx:
            return tx.execute(_TOLD, {"model": q.model_id(tx, model), "target": target}).scalar() or 0

    def advance_delivery(self, model: str, target: str, expected: int, snapshot: int) -> bool:
        c = t.told.c
        with self._writing() as tx:
            # The model's row is locked, so nobody else tells between the question and the note.
            model_id = q.model_id(tx, model, locked=True)
            stored = tx.execute(_TOLD, {"model": model_id, "target": target}).scalar()
            if (stored or 0) != expected:
                return False
            if stored is None:
                tx.execute(sa.insert(t.told), {"model_id": model_id, "target": target, "snapshot": snapshot})
            else:
                this = (c.model_id == model_id, c.target == target)
                tx.execute(sa.update(t.told).where(*this).values(snapshot=snapshot))
            return True

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        with errors.translate_errors(self.engines), self.engines.reader.connect() as tx:
            yield tx

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        with errors.translate_errors(self.engines), self.engines.writer.begin() as tx:
            yield tx


def recent_to_row(recent: Recent) -> tuple[str, bytes]:
    """Ends and points of a look as text and bytes."""
    points = np.ascontiguousarray(recent.points, np.float64)
    return serialization.position_to_text(recent.ends), safetensors.numpy.save({"points": points})


def recent_from_row(model: str, ends: str, points: bytes) -> Recent:
    """Undo `recent_to_row`; the points are read-only.

    Raises
    ------
    StoreError
        It is damaged.
    """
    with serialization.damage_as_store_error("what was seen last", f"model {model}"):
        array = safetensors.numpy.load(points)["points"]
        if array.ndim != 2 or array.dtype != np.float64:
            raise ValueError("its array is no table of points")
        array.flags.writeable = False
        return Recent(array, serialization.position_from_text(ends))


def set_recent(tx: sa.Connection, model: int, row: tuple[str, bytes]) -> None:
    """Write a look over the one before; the lease's row must be locked."""
    ends, points = row
    if not tx.execute(_SET_RECENT, {"model": model, "b_ends": ends, "b_points": points}).rowcount:
        tx.execute(sa.insert(t.recent), {"model_id": model, "ends": ends, "points": points})


def _token(row: sa.Row[Any]) -> Token:
    with serialization.damage_as_store_error("a token", f"token {row.name}"):
        models = json.loads(row.models)
        # What cannot be read must not let anybody do more than he may.
        if row.right not in _RIGHTS or not isinstance(models, list) or not all(isinstance(m, str) for m in models):
            raise ValueError("its right or its models are none")
        return Token(row.name, row.digest, row.right, tuple(models), row.created_at)


def _job_to_row(job: Job) -> serialization.Columns:
    return {
        "asked": json.dumps(job.asked, default=serialization.json_default),
        "state": job.state,
        "progress": json.dumps(job.progress, default=serialization.json_default),
        "snapshot": job.snapshot,
        "error": job.error,
        "created_at": job.created_at,
        "updated_at": job.updated_at,
    }


def _job_from_row(model: str, row: sa.Row[Any]) -> Job:
    with serialization.damage_as_store_error("a job", f"model {model}, job {row.id}"):
        asked, progress = json.loads(row.asked), json.loads(row.progress)
        known = row.state in get_args(JobState) and isinstance(asked, dict) and isinstance(progress, dict)
        if not known or not (math.isfinite(row.created_at) and math.isfinite(row.updated_at)):
            raise ValueError("its columns are not those of a job")
        return Job(row.id, model, asked, row.state, progress, row.snapshot, row.error, row.created_at, row.updated_at)
