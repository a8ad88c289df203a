"""The store in a SQL database, through SQLAlchemy Core: the same statements for SQLite and PostgreSQL.

Required of a dialect: transactions are atomic; a row that one transaction updated or locked cannot be updated by
another before the first has ended; each statement of a writing transaction sees what was committed before it (SQLite's
write lock and PostgreSQL's READ COMMITTED); a reading transaction sees one consistent snapshot of the database
(SQLite's write-ahead log, PostgreSQL's REPEATABLE READ).

With row locks, two rules prevent lost updates and deadlocks: values that a decision depends on are read after locking a
row that every writer of them locks too; and rows are locked in one order: lease, model, everything else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import sqlalchemy as sa

from streamkm.errors import ConflictError
from streamkm.records import BadRecord
from streamkm.state import (
    Checkpoint,
    Commit,
    JournalEntry,
    ModelSpec,
    ModelState,
    Progress,
    QuarantineLimits,
    Recent,
    Snapshot,
)
from streamkm.stores import checks, journal, serialization
from streamkm.stores.base import (
    ControlRequests,
    Job,
    Lease,
    ModelInfo,
    Promotion,
    QuarantinedRecord,
    RecordId,
    Token,
)
from streamkm.stores.sql import admin, checkpoints, errors, migrate, quarantine, retention
from streamkm.stores.sql import queries as q
from streamkm.stores.sql import schema as t
from streamkm.stores.sql.database import Engines

_JOURNAL_PAGE = 256
_NEWEST = [
    sa.select(*(c for c in table.c if table is t.snapshots or not isinstance(c.type, sa.LargeBinary)))
    .order_by(*(c.desc() for c in table.primary_key))
    .limit(1)
    for table in t.metadata.sorted_tables
]
"""Reads one row of each table through its primary key; blobs only of the newest snapshot, which queries need most."""


class SqlStore:
    """A `Store` in a SQL database, which is migrated to the current schema when it is opened.

    Parameters
    ----------
    engines
        The database. They are closed with the store, and when it cannot be opened.
    create
        Create the tables if there are none.

    Raises
    ------
    StoreUnavailableError
        The database cannot be opened, or has no tables of a store and `create` is false.
    SchemaVersionError
        A newer version of streamkm wrote it.
    """

    def __init__(self, engines: Engines, *, create: bool = True) -> None:
        self.engines = engines
        self._newest: dict[str, tuple[int, Snapshot]] = {}
        try:
            with errors.translate_errors(engines):
                migrate.upgrade(engines, create=create)
        except BaseException:
            self.close()
            raise

    def create(self, spec: ModelSpec, now: float) -> ModelSpec:
        checks.check_name(spec.name)
        try:
            return self._create(spec, now)
        except ConflictError:  # another process created it after the first look
            return self._create(spec, now)

    def _create(self, spec: ModelSpec, now: float) -> ModelSpec:
        with self._writing() as tx:
            known = tx.execute(sa.select(t.models.c.spec).where(t.models.c.name == spec.name)).scalar()
            if known is not None:
                return serialization.spec_from_text(known)
            text = serialization.spec_to_text(spec)
            tx.execute(
                sa.insert(t.models),
                {"name": spec.name, "created_at": now, "last_snapshot": 0, "numbered": 0, "lost": 0, "spec": text},
            )
            if tx.execute(sa.select(t.leases.c.epoch).where(t.leases.c.model == spec.name)).scalar() is None:
                tx.execute(sa.insert(t.leases), {"model": spec.name, "epoch": 0, "owner": None, "expires_at": 0.0})
            return serialization.spec_from_text(text)

    def models(self) -> Sequence[ModelInfo]:
        with self._reading() as tx:
            positions = q.positions(tx)
            listed = tx.execute(q.LISTED).all()
        # Sorted here: a database sorts by the collation of some language.
        return [q.info(row, positions.get(row.id, {})) for row in sorted(listed, key=lambda row: row.name)]

    def model(self, name: str) -> ModelInfo:
        with self._reading() as tx:
            row = tx.execute(q.LISTED_ONE, {"model": name}).one_or_none()
            if row is None:
                raise checks.no_model(name, q.names(tx))
            return q.info(row, q.position(tx, row.id))

    def delete(self, name: str) -> None:
        with self._writing() as tx:
            # Ends a valid lease: its owner's next commit finds no owner.
            tx.execute(sa.update(t.leases).where(t.leases.c.model == name).values(owner=None, expires_at=0.0))
            if tx.execute(sa.delete(t.models).where(t.models.c.name == name)).rowcount == 0:
                raise checks.no_model(name, q.names(tx))

    def acquire(self, model: str, owner: str, ttl: float, now: float) -> Lease | None:
        with self._writing() as tx:
            q.model_id(tx, model)
            free = sa.or_(t.leases.c.owner.is_(None), t.leases.c.owner == owner, t.leases.c.expires_at <= now)
            taken = tx.execute(
                sa.update(t.leases)
                .where(t.leases.c.model == model, free)
                .values(epoch=t.leases.c.epoch + 1, owner=owner, expires_at=now + ttl)
            )
            if taken.rowcount == 0:
                return None
            q.model_id(tx, model)  # again: a delete of the model may have held the row's lock until now
            epoch = tx.execute(sa.select(t.leases.c.epoch).where(t.leases.c.model == model)).scalar_one()
            return Lease(model, owner, epoch, now + ttl)

    def renew(self, lease: Lease, ttl: float, now: float) -> Lease:
        with self._writing() as tx:
            q.fence(tx, lease, expires_at=now + ttl)
            return Lease(lease.model, lease.owner, lease.epoch, now + ttl)

    def release(self, lease: Lease) -> None:
        with self._writing() as tx:
            tx.execute(sa.update(t.leases).where(*q.held(lease)).values(owner=None, expires_at=0.0))

    def load_checkpoint(self, model: str) -> Checkpoint | None:
        with self._reading() as tx:
            model_id = q.model_id(tx, model)
            row = tx.execute(q.CHECKPOINT, {"model": model_id}).one_or_none()
            if row is None:
                return None
            progress = serialization.progress_from_row(row, q.position(tx, model_id))
        return Checkpoint(ModelState.from_bytes(row.state), progress)

    def commit(self, lease: Lease, commit: Commit) -> int:
        """One transaction, in this order; when a step fails, none takes effect.

        1. Fence: update the lease's row if it still has this lease's epoch and owner. This locks out every other writer
           of the model until the end of the transaction.
        2. Compare the stored position and commit number with those that the commit expects.
        3. Set the checkpoint (if it still has the number compared), the position and the recent points.
        4. Insert journal entry, quarantined records and snapshot; delete the fulfilled request for a promotion, and
           quarantined records beyond the limits.
        """
        # Serialised before the transaction, which holds locks.
        state = commit.state.to_bytes()
        batches = journal.encode(commit.journal_entry)
        snapshot = serialization.snapshot_to_row(commit.snapshot) if commit.snapshot is not None else None
        bad = [serialization.bad_record_to_row(b) for b in commit.quarantine]
        recent = admin.recent_to_row(commit.recent) if commit.recent is not None else None
        with self._writing() as tx:
            # Step 1.
            q.fence(tx, lease)
            # Step 2.
            model_id = q.model_id(tx, lease.model)
            stored = q.position(tx, model_id)
            checks.check_commit_follows(lease.model, commit, q.commit_seq(tx, model_id), stored)
            # Step 3.
            q.set_checkpoint(tx, model_id, commit.progress, state)
            q.set_position(tx, model_id, stored, commit.progress.position)
            if recent is not None:
                admin.set_recent(tx, model_id, recent)
            # Step 4.
            numbers = {"model_id": model_id, "commit_seq": commit.progress.commit_seq}
            tx.execute(sa.insert(t.journal), {**numbers, "batches": batches})
            if bad:
                tx.execute(sa.insert(t.quarantine), [{**numbers, **b} for b in bad])
                if commit.quarantine_limits is not None:
                    quarantine.trim_to_limits(tx, model_id, commit.quarantine_limits)
            number = 0 if snapshot is None else q.add_snapshot(tx, {**numbers, **snapshot})
            if commit.journal_entry.promoted_snapshot:
                wanted = t.promotions.c
                answered = (wanted.model_id == model_id, wanted.snapshot == commit.journal_entry.promoted_snapshot)
                tx.execute(sa.delete(t.promotions).where(*answered))
            return number

    def add_snapshot(self, snapshot: Snapshot, state: ModelState) -> int:
        row, blob = serialization.snapshot_to_row(snapshot), state.to_bytes()
        with self._writing() as tx:
            model_id = q.model_id(tx, snapshot.model, locked=True)
            number = q.add_snapshot(tx, {**row, "model_id": model_id, "commit_seq": 0})
            tx.execute(sa.insert(t.states), {"model_id": model_id, "snapshot": number, "state": blob})
            return number

    def snapshot_state(self, model: str, snapshot_id: int) -> ModelState | None:
        c = t.states.c
        with self._reading() as tx:
            of_snapshot = (c.model_id == q.model_id(tx, model), c.snapshot == snapshot_id)
            blob = tx.execute(sa.select(c.state).where(*of_snapshot)).scalar()
        return None if blob is None else ModelState.from_bytes(blob)

    def request_promotion(self, model: str, promotion: Promotion | None) -> None:
        with self._writing() as tx:
            model_id = q.model_id(tx, model, locked=True)
            if promotion is not None and not q.pin(tx, model_id, promotion.snapshot):
                raise checks.no_snapshot(model, promotion.snapshot, None, *q.numbers(tx, model_id))
            tx.execute(sa.delete(t.promotions).where(t.promotions.c.model_id == model_id))
            if promotion is not None:
                tx.execute(sa.insert(t.promotions), {"model_id": model_id, **promotion._asdict()})

    def control_requests(self, model: str) -> ControlRequests:
        with self._reading() as tx:
            row = tx.execute(q.CONTROL_REQUESTS, {"model": model}).one_or_none()
        if row is None:
            return ControlRequests(None, paused=False)
        return ControlRequests(None if row.snapshot is None else Promotion(row.snapshot, row.skip), row.paused)

    def journal(
        self, model: str, until_seq: int | None = None, *, after_seq: int = 0
    ) -> Iterator[tuple[int, JournalEntry]]:
        # Queried now: a missing model is an error of this call, and a concurrent writer cannot make this endless.
        of_model = t.journal.c.model_id
        with self._reading() as tx:
            model_id = q.model_id(tx, model)
            last = tx.execute(sa.select(sa.func.max(t.journal.c.commit_seq)).where(of_model == model_id)).scalar() or 0
        return self._journal_pages(model_id, after_seq, last if until_seq is None else min(last, until_seq))

    def _journal_pages(self, model_id: int, after: int, last: int) -> Iterator[tuple[int, JournalEntry]]:
        # Entries never change, so each page is a transaction of its own: one that stayed open for a whole replay would
        # keep SQLite from resetting its write-ahead log, and PostgreSQL from removing old row versions.
        page = _JOURNAL_PAGE
        while True:
            with self._reading() as tx:
                found = tx.execute(
                    q.JOURNAL_PAGE, {"model": model_id, "after": after, "last": last, "rows": page}
                ).all()
            for row in found:
                yield row.commit_seq, journal.decode(row.batches)
            if len(found) < page:
                return
            after = found[-1].commit_seq

    def keep_checkpoint(self, model: str, now: float, *, always: bool = False) -> bool:
        with self._reading() as tx:
            if not always and not checkpoints.is_due(tx, model, now):
                return False
        with self._writing() as tx:
            # Every commit locks this row first, so checkpoint and position are those of one commit.
            tx.execute(sa.select(t.leases.c.epoch).where(t.leases.c.model == model).with_for_update())
            return (always or checkpoints.is_due(tx, model, now)) and checkpoints.keep(tx, q.model_id(tx, model))

    def kept_checkpoints(self, model: str) -> Sequence[Progress]:
        with self._reading() as tx:
            return checkpoints.all_progress(tx, q.model_id(tx, model))

    def kept_checkpoint(self, model: str, commit_seq: int) -> Checkpoint:
        with self._reading() as tx:
            found = checkpoints.one(tx, q.model_id(tx, model), commit_seq)
        if found is None:
            raise checks.no_kept_checkpoint(model, commit_seq)
        return found

    def snapshot(self, model: str, snapshot_id: int | None = None, *, at: float | None = None) -> Snapshot:
        if snapshot_id is None and at is None:
            return self._newest_snapshot(model)
        with self._reading() as tx:
            if snapshot_id is not None:
                found = tx.execute(q.NUMBERED, {"model": model, "number": snapshot_id})
            else:
                found = tx.execute(q.AS_OF, {"model": model, "at": at})
            row = found.mappings().one_or_none()
            if row is None:
                raise checks.no_snapshot(model, snapshot_id, at, *q.numbers(tx, q.model_id(tx, model)))
        return serialization.snapshot_from_row(model, row)

    def _newest_snapshot(self, model: str) -> Snapshot:
        # Snapshots never change, so the one decoded last is returned until there is a newer one. Comparing the number
        # takes a single statement on an index, outside a transaction.
        with errors.translate_errors(self.engines), self.engines.autocommit.connect() as tx:
            newest = tx.execute(q.NEWEST_NUMBER, {"model": model}).one_or_none()
        known = self._newest.get(model)
        if known is not None and newest is not None and (known[0], known[1].id) == tuple(newest):
            return known[1]
        with self._reading() as tx:
            row = tx.execute(q.NEWEST, {"model": model}).mappings().one_or_none()
            if row is None:
                raise checks.no_snapshot(model, None, None, *q.numbers(tx, q.model_id(tx, model)))
        found = serialization.snapshot_from_row(model, row)
        self._newest[model] = row["model_id"], found
        return found

    def snapshots(
        self, model: str, *, before: int | None = None, limit: int = 100, eventful: bool = False
    ) -> Sequence[Snapshot]:
        with self._reading() as tx:
            query = sa.select(t.snapshots).where(t.snapshots.c.model_id == q.model_id(tx, model))
            if before is not None:
                query = query.where(t.snapshots.c.id < before)
            if eventful:
                query = query.where(t.snapshots.c.events != "[]")
            found = tx.execute(query.order_by(t.snapshots.c.id.desc()).limit(max(0, limit))).mappings().all()
        return [serialization.snapshot_from_row(model, row) for row in found]

    def apply_retention(self, model: str, now: float) -> int:
        with self._writing() as tx:
            model_id = q.model_id(tx, model, locked=True)
            return retention.delete_snapshots(tx, model_id, now) + retention.delete_journal(tx, model_id, now)

    def recent(self, model: str) -> Recent | None:
        with self._reading() as tx:
            return admin.recent(tx, model)

    def set_paused(self, model: str, paused: bool) -> None:
        with self._writing() as tx:
            if not tx.execute(sa.update(t.models).where(t.models.c.name == model).values(paused=paused)).rowcount:
                raise checks.no_model(model, q.names(tx))

    def newest_quarantined(
        self, model: str, *, limit: int = 100, reason: str | None = None, max_bytes: int | None = None
    ) -> Sequence[BadRecord]:
        with self._reading() as tx:
            return [held.bad for held in quarantine.newest(tx, q.model_id(tx, model), limit, reason, max_bytes)]

    def quarantined_record(self, model: str, record: RecordId) -> QuarantinedRecord:
        with self._reading() as tx:
            found = quarantine.one(tx, q.model_id(tx, model), record)
        if found is None:
            raise checks.not_in_quarantine(model, *record)
        return found

    def iter_quarantine(self, model: str) -> Iterator[QuarantinedRecord]:
        with self._reading() as tx:
            model_id = q.model_id(tx, model)
            last = quarantine.last(tx, model_id)
        return self._quarantine_pages(model_id, last)

    def _quarantine_pages(self, model_id: int, last: int) -> Iterator[QuarantinedRecord]:
        after = 0
        while after < last:
            with self._reading() as tx:
                found, after = quarantine.page(tx, model_id, after, last)
            yield from found

    def undelivered(self, model: str, *, limit: int = 500) -> Sequence[QuarantinedRecord]:
        with self._reading() as tx:
            return quarantine.undelivered(tx, q.model_id(tx, model), limit)

    def quarantine_counts(self, model: str) -> Mapping[str, int]:
        with self._reading() as tx:
            return quarantine.counts(tx, q.model_id(tx, model))

    def mark_delivered(self, model: str, records: Sequence[RecordId], now: float) -> None:
        with self._writing() as tx:
            quarantine.mark_delivered(tx, q.model_id(tx, model, locked=True), records, now)

    def remove_quarantined(self, model: str, records: Sequence[RecordId]) -> None:
        with self._writing() as tx:
            quarantine.remove(tx, q.model_id(tx, model, locked=True), records)

    def trim_quarantine(self, model: str, limits: QuarantineLimits) -> int:
        with self._writing() as tx:
            return quarantine.trim(tx, q.model_id(tx, model, locked=True), limits)

    def tokens(self) -> Sequence[Token]:
        with self._reading() as tx:
            return admin.tokens(tx)

    def add_token(self, token: Token) -> None:
        try:
            with self._writing() as tx:
                admin.add_token(tx, token)
        except ConflictError:
            raise checks.token_taken(token.name) from None  # the database's message contains the digest

    def remove_token(self, name: str) -> None:
        with self._writing() as tx:
            admin.remove_token(tx, name)

    def put_job(self, job: Job) -> None:
        with self._writing() as tx:
            admin.put_job(tx, job)

    def jobs(self, model: str) -> Sequence[Job]:
        with self._reading() as tx:
            return admin.jobs(tx, model)

    def job(self, model: str, job_id: str) -> Job:
        with self._reading() as tx:
            return admin.job(tx, model, job_id)

    def delivered_until(self, model: str, target: str) -> int:
        with self._reading() as tx:
            return admin.delivered_until(tx, model, target)

    def advance_delivery(self, model: str, target: str, expected: int, snapshot: int) -> bool:
        with self._writing() as tx:
            return admin.advance_delivery(tx, model, target, expected, snapshot)

    def ping(self) -> None:
        sqlite = self.engines.reader.dialect.name == "sqlite"
        with self._reading() as tx:
            if sqlite:
                tx.exec_driver_sql("PRAGMA shrink_memory")  # cached pages say nothing about the file
            migrate.check(tx, self.engines.where)
            for newest in _NEWEST:
                tx.execute(newest).first()
            if sqlite:
                for table in t.metadata.sorted_tables:  # an index alone can answer that a table is empty
                    tx.exec_driver_sql(f"SELECT 1 FROM {table.name} NOT INDEXED LIMIT 1").first()  # noqa: S608 - ours

    def close(self) -> None:
        self.engines.close()

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        with errors.translate_errors(self.engines), self.engines.reader.connect() as tx:
            yield tx

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        with errors.translate_errors(self.engines), self.engines.writer.begin() as tx:
            yield tx
