"""A store in memory: for tests, and for models that need not outlive the process."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

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
from streamkm.stores import checks, journal, quarantine, retention, serialization
from streamkm.stores.base import ControlRequests, Job, Lease, ModelInfo, Promotion, QuarantinedRecord, RecordId, Token


@dataclass
class _Model:
    """Everything that belongs to one model; what a caller could still modify is stored as bytes or text."""

    spec: str
    created_at: float
    state: bytes = b""
    progress: Progress | None = None
    last_snapshot: int = 0
    numbered: int = 0
    states: dict[int, bytes] = field(default_factory=dict)
    promotion: Promotion | None = None
    journal: list[tuple[int, bytes]] = field(default_factory=list)
    kept_checkpoints: list[tuple[Progress, bytes]] = field(default_factory=list)
    snapshots: list[Snapshot] = field(default_factory=list)
    pinned: set[int] = field(default_factory=set)
    quarantine: list[QuarantinedRecord] = field(default_factory=list)
    paused: bool = False
    recent: Recent | None = None
    jobs: dict[str, Job] = field(default_factory=dict)
    delivered_until: dict[str, int] = field(default_factory=dict)


@dataclass
class _LeaseRow:
    """The lease of a model's name; kept when the model is deleted, so that epochs continue."""

    epoch: int = 0
    owner: str | None = None
    expires_at: float = 0.0


class MemoryStore:
    """A `Store` in memory. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._models: dict[str, _Model] = {}
        self._leases: dict[str, _LeaseRow] = {}
        self._tokens: dict[str, Token] = {}

    def create(self, spec: ModelSpec, now: float) -> ModelSpec:
        checks.check_name(spec.name)
        with self._lock:
            self._leases.setdefault(spec.name, _LeaseRow())
            model = self._models.setdefault(spec.name, _Model(serialization.spec_to_text(spec), now))
            return serialization.spec_from_text(model.spec)

    def models(self) -> Sequence[ModelInfo]:
        with self._lock:
            return [self.model(name) for name in sorted(self._models)]

    def model(self, name: str) -> ModelInfo:
        with self._lock:
            model, row = self._get(name), self._leases[name]
            lease = None if row.owner is None else Lease(name, row.owner, row.epoch, row.expires_at)
            progress = None if model.progress is None else _copy_progress(model.progress)
            spec, last = serialization.spec_from_text(model.spec), model.last_snapshot
            return ModelInfo(spec, model.created_at, progress, last, lease, model.paused)

    def delete(self, name: str) -> None:
        with self._lock:
            self._get(name)
            del self._models[name]
            self._leases[name].owner = None

    def acquire(self, model: str, owner: str, ttl: float, now: float) -> Lease | None:
        with self._lock:
            self._get(model)
            row = self._leases[model]
            if row.owner not in (None, owner) and row.expires_at > now:
                return None
            row.epoch, row.owner, row.expires_at = row.epoch + 1, owner, now + ttl
            return Lease(model, owner, row.epoch, now + ttl)

    def renew(self, lease: Lease, ttl: float, now: float) -> Lease:
        with self._lock:
            self._fence(lease).expires_at = now + ttl
            return replace(lease, expires_at=now + ttl)

    def release(self, lease: Lease) -> None:
        with self._lock:
            row = self._leases.get(lease.model)
            if row is not None and (row.epoch, row.owner) == (lease.epoch, lease.owner):
                row.owner = None

    def load_checkpoint(self, model: str) -> Checkpoint | None:
        with self._lock:
            stored = self._get(model)
            return None if stored.progress is None else Checkpoint(ModelState.from_bytes(stored.state), stored.progress)

    def commit(self, lease: Lease, commit: Commit) -> int:
        # Everything that can fail comes before the first modification.
        state = commit.state.to_bytes()
        batches = journal.encode(commit.journal_entry)
        progress = _copy_progress(commit.progress)
        recent = None if commit.recent is None else _copy_recent(commit.recent)
        with self._lock:
            self._fence(lease)
            model = self._models[lease.model]
            seq, position = (model.progress.commit_seq, model.progress.position) if model.progress else (0, {})
            checks.check_commit_follows(lease.model, commit, seq, position)
            _check_new(lease.model, model.quarantine, commit.quarantine)
            if commit.snapshot is not None:
                _add_snapshot(model, lease.model, commit.snapshot, progress.commit_seq)
            if model.promotion is not None and model.promotion.snapshot == commit.journal_entry.promoted_snapshot:
                model.promotion = None
            model.state, model.progress = state, progress
            model.recent = recent or model.recent
            model.journal.append((progress.commit_seq, batches))
            model.quarantine.extend(QuarantinedRecord(bad, progress.commit_seq, None) for bad in commit.quarantine)
            if commit.quarantine and commit.quarantine_limits is not None:
                quarantine.trim(model.quarantine, commit.quarantine_limits)
            return 0 if commit.snapshot is None else model.numbered

    def add_snapshot(self, snapshot: Snapshot, state: ModelState) -> int:
        blob = state.to_bytes()
        with self._lock:
            model = self._get(snapshot.model)
            _add_snapshot(model, snapshot.model, snapshot, 0)
            model.states[model.numbered] = blob
            return model.numbered

    def snapshot_state(self, model: str, snapshot_id: int) -> ModelState | None:
        with self._lock:
            blob = self._get(model).states.get(snapshot_id)
        return None if blob is None else ModelState.from_bytes(blob)

    def request_promotion(self, model: str, promotion: Promotion | None) -> None:
        with self._lock:
            stored = self._get(model)
            if promotion is not None:
                self.snapshot(model, promotion.snapshot)
                stored.pinned.add(promotion.snapshot)
            stored.promotion = promotion

    def control_requests(self, model: str) -> ControlRequests:
        with self._lock:
            stored = self._models.get(model)
            return (
                ControlRequests(None, paused=False)
                if stored is None
                else ControlRequests(stored.promotion, stored.paused)
            )

    def journal(
        self, model: str, until_seq: int | None = None, *, after_seq: int = 0
    ) -> Iterator[tuple[int, JournalEntry]]:
        with self._lock:
            entries = [entry for entry in self._get(model).journal if entry[0] > after_seq]
        return ((seq, journal.decode(blob)) for seq, blob in entries if until_seq is None or seq <= until_seq)

    def keep_checkpoint(self, model: str, now: float, *, always: bool = False) -> bool:
        with self._lock:
            stored = self._get(model)
            newest = stored.kept_checkpoints[-1][0].committed_at if stored.kept_checkpoints else stored.created_at
            progress = stored.progress
            known = [kept.commit_seq for kept, _ in stored.kept_checkpoints]
            if progress is None or progress.commit_seq in known:
                return False
            if not always and now - newest < retention.CHECKPOINT_INTERVAL_SECONDS:
                return False
            stored.kept_checkpoints.append((progress, stored.state))
            return True

    def kept_checkpoints(self, model: str) -> Sequence[Progress]:
        with self._lock:
            return [_copy_progress(progress) for progress, _ in self._get(model).kept_checkpoints]

    def kept_checkpoint(self, model: str, commit_seq: int) -> Checkpoint:
        with self._lock:
            for progress, state in self._get(model).kept_checkpoints:
                if progress.commit_seq == commit_seq:
                    return Checkpoint(ModelState.from_bytes(state), _copy_progress(progress))
        raise checks.no_kept_checkpoint(model, commit_seq)

    def snapshot(self, model: str, snapshot_id: int | None = None, *, at: float | None = None) -> Snapshot:
        with self._lock:
            snapshots = self._get(model).snapshots
            in_charge = [s for s in snapshots if s.kind != checks.RECOMPUTED]
            if snapshot_id is not None:
                found = [s for s in snapshots if s.id == snapshot_id]
            elif at is not None:
                earlier = [s for s in in_charge if s.created_at <= at]
                found = sorted(earlier, key=lambda s: (s.created_at, s.id))[-1:]
            else:
                found = in_charge[-1:]
            if not found:
                first, last = (snapshots[0].id, snapshots[-1].id) if snapshots else (0, 0)
                raise checks.no_snapshot(model, snapshot_id, at, first, last)
            return found[0]

    def snapshots(
        self, model: str, *, before: int | None = None, limit: int = 100, eventful: bool = False
    ) -> Sequence[Snapshot]:
        with self._lock:
            newest_first = self._get(model).snapshots[::-1]
        wanted = [s for s in newest_first if (before is None or s.id < before) and (s.events or not eventful)]
        return wanted[: max(0, limit)]

    def apply_retention(self, model: str, now: float) -> int:
        with self._lock:
            stored = self._get(model)
            protected = {*stored.pinned, stored.last_snapshot}
            deletable = [s for s in stored.snapshots if s.id not in protected and s.kind != checks.RECOMPUTED]
            ages = (retention.SnapshotAge(s.id, s.created_at, bool(s.events)) for s in deletable)
            expired = set(retention.expired_snapshots(ages, now)[: retention.MAX_SNAPSHOTS])
            stored.snapshots[:] = [s for s in stored.snapshots if s.id not in expired]
            return len(expired) + _delete_journal(stored, now)

    def recent(self, model: str) -> Recent | None:
        with self._lock:
            recent = self._get(model).recent
            return None if recent is None else replace(recent, ends=dict(recent.ends))

    def set_paused(self, model: str, paused: bool) -> None:
        with self._lock:
            self._get(model).paused = paused

    def newest_quarantined(
        self, model: str, *, limit: int = 100, reason: str | None = None, max_bytes: int | None = None
    ) -> Sequence[BadRecord]:
        with self._lock:
            newest_first = [held.bad for held in reversed(self._get(model).quarantine)]
        found = [bad for bad in newest_first if reason in (None, bad.reason)][: max(0, limit)]
        return found if max_bytes is None else [quarantine.truncate(bad, max_bytes) for bad in found]

    def quarantined_record(self, model: str, record: RecordId) -> QuarantinedRecord:
        with self._lock:
            for held in self._get(model).quarantine:
                if quarantine.record_id(held.bad) == record:
                    return held
        raise checks.not_in_quarantine(model, *record)

    def iter_quarantine(self, model: str) -> Iterator[QuarantinedRecord]:
        with self._lock:
            return iter(list(self._get(model).quarantine))

    def undelivered(self, model: str, *, limit: int = 500) -> Sequence[QuarantinedRecord]:
        with self._lock:
            found = [held for held in self._get(model).quarantine if held.delivered_at is None][: max(0, limit)]
        return quarantine.first_batch(found)

    def quarantine_counts(self, model: str) -> Mapping[str, int]:
        with self._lock:
            return dict(Counter(held.bad.reason for held in self._get(model).quarantine))

    def mark_delivered(self, model: str, records: Sequence[RecordId], now: float) -> None:
        with self._lock:
            stored, delivered = self._get(model).quarantine, set(records)
            for i, held in enumerate(stored):
                if quarantine.record_id(held.bad) in delivered:
                    stored[i] = held._replace(delivered_at=now)

    def remove_quarantined(self, model: str, records: Sequence[RecordId]) -> None:
        with self._lock:
            stored, removed = self._get(model).quarantine, set(records)
            stored[:] = [held for held in stored if quarantine.record_id(held.bad) not in removed]

    def trim_quarantine(self, model: str, limits: QuarantineLimits) -> int:
        with self._lock:
            return quarantine.trim(self._get(model).quarantine, limits)

    def tokens(self) -> Sequence[Token]:
        with self._lock:
            return [self._tokens[name] for name in sorted(self._tokens)]

    def add_token(self, token: Token) -> None:
        with self._lock:
            if any(token.name == other.name or token.digest == other.digest for other in self._tokens.values()):
                raise checks.token_taken(token.name)
            self._tokens[token.name] = token

    def remove_token(self, name: str) -> None:
        with self._lock:
            if self._tokens.pop(name, None) is None:
                raise checks.no_token(name, self._tokens)

    def put_job(self, job: Job) -> None:
        with self._lock:
            jobs = self._get(job.model).jobs
            jobs[job.id] = _copy_job(job)
            for old in checks.newest_jobs(jobs.values())[checks.MAX_JOBS :]:
                del jobs[old.id]

    def jobs(self, model: str) -> Sequence[Job]:
        with self._lock:
            return [_copy_job(job) for job in checks.newest_jobs(self._get(model).jobs.values())]

    def job(self, model: str, job_id: str) -> Job:
        with self._lock:
            found = self._get(model).jobs.get(job_id)
        if found is None:
            raise checks.no_job(model, job_id)
        return _copy_job(found)

    def delivered_until(self, model: str, target: str) -> int:
        with self._lock:
            return self._get(model).delivered_until.get(target, 0)

    def advance_delivery(self, model: str, target: str, expected: int, snapshot: int) -> bool:
        with self._lock:
            delivered_until = self._get(model).delivered_until
            if delivered_until.get(target, 0) != expected:
                return False
            delivered_until[target] = snapshot
            return True

    def ping(self) -> None:
        """Without effect: memory is always available."""

    def close(self) -> None:
        """Without effect: there are no connections."""

    def _get(self, name: str) -> _Model:
        if name not in self._models:
            raise checks.no_model(name, self._models)
        return self._models[name]

    def _fence(self, lease: Lease) -> _LeaseRow:
        row = self._leases.get(lease.model, _LeaseRow())
        if (row.epoch, row.owner) != (lease.epoch, lease.owner):
            raise checks.lease_lost(lease, row.epoch if lease.model in self._models else None, row.owner)
        return row


def _add_snapshot(model: _Model, name: str, snapshot: Snapshot, commit_seq: int) -> None:
    model.numbered += 1
    row = {**serialization.snapshot_to_row(snapshot), "id": model.numbered, "commit_seq": commit_seq}
    model.snapshots.append(serialization.snapshot_from_row(name, row))
    if snapshot.kind != checks.RECOMPUTED:
        model.last_snapshot = model.numbered


def _delete_journal(model: _Model, now: float) -> int:
    ages = (retention.CheckpointAge(p.commit_seq, p.committed_at) for p, _ in model.kept_checkpoints)
    start = retention.journal_start(ages, now)
    before = len(model.kept_checkpoints) + len(model.journal)
    model.kept_checkpoints[:] = [kept for kept in model.kept_checkpoints if kept[0].commit_seq >= start]
    model.journal[:] = [entry for entry in model.journal if entry[0] > start]
    return before - len(model.kept_checkpoints) - len(model.journal)


def _copy_progress(progress: Progress) -> Progress:
    return replace(progress, position=dict(progress.position))


def _copy_recent(recent: Recent) -> Recent:
    points = np.array(recent.points, np.float64)
    points.flags.writeable = False
    return Recent(points, dict(recent.ends))


def _copy_job(job: Job) -> Job:
    options, progress = (
        json.loads(json.dumps(value, default=serialization.json_default)) for value in (job.options, job.progress)
    )
    return replace(job, options=options, progress=progress)


def _check_new(model: str, stored: Sequence[QuarantinedRecord], new: Sequence[BadRecord]) -> None:
    seen = {quarantine.record_id(held.bad) for held in stored} if new else set()
    for bad in new:
        if quarantine.record_id(bad) in seen:
            what = f"the quarantined record {bad.record.partition}@{bad.record.offset}"
            raise checks.already_stored(f"model {model}", what)
        seen.add(quarantine.record_id(bad))
