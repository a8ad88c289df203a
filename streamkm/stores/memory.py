"""A store in the memory of one process: for tests, and for models that need not outlive it."""

from __future__ import annotations

import json
import threading
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

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
from streamkm.stores import checkpoints, checks, journal, retention, serialization
from streamkm.stores.base import ControlRequests, Job, Lease, ModelInfo, Promotion, QuarantinedRecord, RecordId, Token
from streamkm.stores.sql import quarantine


@dataclass
class _Model:
    """All that belongs to one model. Whatever a caller might still change is held as bytes or text."""

    spec: str
    created_at: float
    state: bytes = b""
    progress: Progress | None = None
    last_snapshot: int = 0
    numbered: int = 0
    states: dict[int, bytes] = field(default_factory=dict)
    promotion: Promotion | None = None
    journal: list[tuple[int, bytes]] = field(default_factory=list)
    bases: list[tuple[Progress, bytes]] = field(default_factory=list)
    snapshots: list[Snapshot] = field(default_factory=list)
    pinned: set[int] = field(default_factory=set)
    quarantine: list[QuarantinedRecord] = field(default_factory=list)
    paused: bool = False
    recent: Recent | None = None
    jobs: dict[str, Job] = field(default_factory=dict)
    told: dict[str, int] = field(default_factory=dict)


@dataclass
class _Seat:
    """The lease of a name; it outlives its model, so that epochs go on counting."""

    epoch: int = 0
    owner: str | None = None
    expires_at: float = 0.0


class MemoryStore:
    """A `Store` that is forgotten with its process. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._models: dict[str, _Model] = {}
        self._seats: dict[str, _Seat] = {}
        self._tokens: dict[str, Token] = {}

    def create(self, spec: ModelSpec, now: float) -> ModelSpec:
        checks.check_name(spec.name)
        with self._lock:
            self._seats.setdefault(spec.name, _Seat())
            model = self._models.setdefault(spec.name, _Model(serialization.spec_to_text(spec), now))
            return serialization.spec_from_text(model.spec)

    def models(self) -> Sequence[ModelInfo]:
        with self._lock:
            return [self.model(name) for name in sorted(self._models)]

    def model(self, name: str) -> ModelInfo:
        with self._lock:
            model, seat = self._get(name), self._seats[name]
            lease = None if seat.owner is None else Lease(name, seat.owner, seat.epoch, seat.expires_at)
            progress = None if model.progress is None else _copied(model.progress)
            spec, last = serialization.spec_from_text(model.spec), model.last_snapshot
            return ModelInfo(spec, model.created_at, progress, last, lease, model.paused)

    def delete(self, name: str) -> None:
        with self._lock:
            self._get(name)
            del self._models[name]
            self._seats[name].owner = None

    def acquire(self, model: str, owner: str, ttl: float, now: float) -> Lease | None:
        with self._lock:
            self._get(model)
            seat = self._seats[model]
            if seat.owner not in (None, owner) and seat.expires_at > now:
                return None
            seat.epoch, seat.owner, seat.expires_at = seat.epoch + 1, owner, now + ttl
            return Lease(model, owner, seat.epoch, now + ttl)

    def renew(self, lease: Lease, ttl: float, now: float) -> Lease:
        with self._lock:
            self._fence(lease).expires_at = now + ttl
            return replace(lease, expires_at=now + ttl)

    def release(self, lease: Lease) -> None:
        with self._lock:
            seat = self._seats.get(lease.model)
            if seat is not None and (seat.epoch, seat.owner) == (lease.epoch, lease.owner):
                seat.owner = None

    def load_checkpoint(self, model: str) -> Checkpoint | None:
        with self._lock:
            stored = self._get(model)
            return None if stored.progress is None else Checkpoint(ModelState.from_bytes(stored.state), stored.progress)

    def commit(self, lease: Lease, commit: Commit) -> int:
        # Everything that can fail comes before the first change.
        state = commit.state.to_bytes()
        batches = journal.encode(commit.journal_entry)
        progress = _copied(commit.progress)
        seen = None if commit.recent is None else _own(commit.recent)
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
            model.recent = seen or model.recent
            model.journal.append((progress.commit_seq, batches))
            model.quarantine.extend(QuarantinedRecord(bad, progress.commit_seq, None) for bad in commit.quarantine)
            if commit.quarantine and commit.bounds is not None:
                _trim(model.quarantine, commit.bounds)
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
            newest = stored.bases[-1][0].committed_at if stored.bases else stored.created_at
            progress = stored.progress
            known = [kept.commit_seq for kept, _ in stored.bases]
            if progress is None or progress.commit_seq in known:
                return False
            if not always and now - newest < checkpoints.EVERY_SECONDS:
                return False
            stored.bases.append((progress, stored.state))
            return True

    def kept_checkpoints(self, model: str) -> Sequence[Progress]:
        with self._lock:
            return [_copied(progress) for progress, _ in self._get(model).bases]

    def kept_checkpoint(self, model: str, commit_seq: int) -> Checkpoint:
        with self._lock:
            for progress, state in self._get(model).bases:
                if progress.commit_seq == commit_seq:
                    return Checkpoint(ModelState.from_bytes(state), _copied(progress))
        raise checks.no_kept_checkpoint(model, commit_seq)

    def snapshot(self, model: str, snapshot_id: int | None = None, *, at: float | None = None) -> Snapshot:
        with self._lock:
            there = self._get(model).snapshots
            in_charge = [s for s in there if s.kind != checks.RECOMPUTED]
            if snapshot_id is not None:
                found = [s for s in there if s.id == snapshot_id]
            elif at is not None:
                earlier = [s for s in in_charge if s.created_at <= at]
                found = sorted(earlier, key=lambda s: (s.created_at, s.id))[-1:]
            else:
                found = in_charge[-1:]
            if not found:
                first, last = (there[0].id, there[-1].id) if there else (0, 0)
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
            safe = {*stored.pinned, stored.last_snapshot}
            free = [s for s in stored.snapshots if s.id not in safe and s.kind != checks.RECOMPUTED]
            gone = set(
                retention.expired_snapshots(
                    (retention.SnapshotAge(s.id, s.created_at, bool(s.events)) for s in free), now
                )
            )
            gone = set(sorted(gone)[: retention.MOST])
            stored.snapshots[:] = [s for s in stored.snapshots if s.id not in gone]
            return len(gone) + _thin_journal(stored, now)

    def newest_quarantined(
        self, model: str, *, limit: int = 100, reason: str | None = None, most: int | None = None
    ) -> Sequence[BadRecord]:
        with self._lock:
            newest_first = [held.bad for held in reversed(self._get(model).quarantine)]
        found = [bad for bad in newest_first if reason in (None, bad.reason)][: max(0, limit)]
        return found if most is None else [_cut(bad, most) for bad in found]

    def quarantined_record(self, model: str, place: RecordId) -> QuarantinedRecord:
        with self._lock:
            for held in self._get(model).quarantine:
                if _place(held.bad) == place:
                    return held
        raise checks.not_in_quarantine(model, *place)

    def iter_quarantine(self, model: str) -> Iterator[QuarantinedRecord]:
        with self._lock:
            return iter(list(self._get(model).quarantine))

    def undelivered(self, model: str, *, limit: int = 500) -> Sequence[QuarantinedRecord]:
        with self._lock:
            found = [held for held in self._get(model).quarantine if held.delivered_at is None][: max(0, limit)]
        sizes = accumulate(serialization.kept_bytes(held.bad) for held in found)
        return found[: max(1, bisect_right(list(sizes), quarantine.AT_ONCE_BYTES))]

    def quarantine_counts(self, model: str) -> Mapping[str, int]:
        with self._lock:
            return dict(Counter(held.bad.reason for held in self._get(model).quarantine))

    def mark_delivered(self, model: str, places: Sequence[RecordId], now: float) -> None:
        with self._lock:
            there, wanted = self._get(model).quarantine, set(places)
            there[:] = [held._replace(delivered_at=now) if _place(held.bad) in wanted else held for held in there]

    def remove_quarantined(self, model: str, places: Sequence[RecordId]) -> None:
        with self._lock:
            there, gone = self._get(model).quarantine, set(places)
            there[:] = [held for held in there if _place(held.bad) not in gone]

    def trim_quarantine(self, model: str, bounds: QuarantineLimits) -> int:
        with self._lock:
            return _trim(self._get(model).quarantine, bounds)

    def recent(self, model: str) -> Recent | None:
        with self._lock:
            seen = self._get(model).recent
            return None if seen is None else replace(seen, ends=dict(seen.ends))

    def set_paused(self, model: str, paused: bool) -> None:
        with self._lock:
            self._get(model).paused = paused

    def tokens(self) -> Sequence[Token]:
        with self._lock:
            return [self._tokens[name] for name in sorted(self._tokens)]

    def add_token(self, token: Token) -> None:
        with self._lock:
            if any(token.name == there.name or token.digest == there.digest for there in self._tokens.values()):
                raise checks.token_taken(token.name)
            self._tokens[token.name] = token

    def remove_token(self, name: str) -> None:
        with self._lock:
            if self._tokens.pop(name, None) is None:
                raise checks.no_token(name, self._tokens)

    def put_job(self, job: Job) -> None:
        with self._lock:
            jobs = self._get(job.model).jobs
            jobs[job.id] = _own_job(job)
            for old in checks.newest_jobs(jobs.values())[checks.JOBS_KEPT :]:
                del jobs[old.id]

    def jobs(self, model: str) -> Sequence[Job]:
        with self._lock:
            return [_own_job(job) for job in checks.newest_jobs(self._get(model).jobs.values())]

    def job(self, model: str, job_id: str) -> Job:
        with self._lock:
            found = self._get(model).jobs.get(job_id)
        if found is None:
            raise checks.no_job(model, job_id)
        return _own_job(found)

    def delivered_until(self, model: str, target: str) -> int:
        with self._lock:
            return self._get(model).told.get(target, 0)

    def advance_delivery(self, model: str, target: str, expected: int, snapshot: int) -> bool:
        with self._lock:
            told = self._get(model).told
            if told.get(target, 0) != expected:
                return False
            told[target] = snapshot
            return True

    def ping(self) -> None:
        """Return: memory is always there."""

    def close(self) -> None:
        """There is nothing to give back."""

    def _get(self, name: str) -> _Model:
        if name not in self._models:
            raise checks.no_model(name, self._models)
        return self._models[name]

    def _fence(self, lease: Lease) -> _Seat:
        seat = self._seats.get(lease.model, _Seat())
        if (seat.epoch, seat.owner) != (lease.epoch, lease.owner):
            raise checks.lease_lost(lease, seat.epoch if lease.model in self._models else None, seat.owner)
        return seat


def _add_snapshot(model: _Model, name: str, snapshot: Snapshot, commit_seq: int) -> None:
    model.numbered += 1
    row = {**serialization.snapshot_to_row(snapshot), "id": model.numbered, "commit_seq": commit_seq}
    model.snapshots.append(serialization.snapshot_from_row(name, row))
    if snapshot.kind != checks.RECOMPUTED:
        model.last_snapshot = model.numbered


def _thin_journal(model: _Model, now: float) -> int:
    first = checkpoints.journal_start(
        (checkpoints.CheckpointAge(p.commit_seq, p.committed_at) for p, _ in model.bases), now
    )
    before = len(model.bases) + len(model.journal)
    model.bases[:] = [base for base in model.bases if base[0].commit_seq >= first]
    model.journal[:] = [entry for entry in model.journal if entry[0] > first]
    return before - len(model.bases) - len(model.journal)


def _copied(progress: Progress) -> Progress:
    return replace(progress, position=dict(progress.position))


def _own(recent: Recent) -> Recent:
    points = np.array(recent.points, np.float64)
    points.flags.writeable = False
    return Recent(points, dict(recent.ends))


def _own_job(job: Job) -> Job:
    asked, progress = (
        json.loads(json.dumps(value, default=serialization.json_default)) for value in (job.asked, job.progress)
    )
    return replace(job, asked=asked, progress=progress)


def _check_new(model: str, there: Sequence[QuarantinedRecord], new: Sequence[BadRecord]) -> None:
    seen = {_place(held.bad) for held in there} if new else set()
    for bad in new:
        if _place(bad) in seen:
            raise checks.already_stored(
                f"model {model}", f"the quarantined record {bad.record.partition}@{bad.record.offset}"
            )
        seen.add(_place(bad))


def _place(bad: BadRecord) -> RecordId:
    return bad.record.partition, bad.record.offset


def _cut(bad: BadRecord, most: int) -> BadRecord:
    """What a list shows of a quarantined record."""
    record = bad.record
    long = record.value is not None and len(record.value) > most
    fit = len(json.dumps([(n, (v or b"").hex()) for n, v in record.headers])) <= max(quarantine.LEAST_HEADERS, 4 * most)
    part = record._replace(
        key=record.key and record.key[:most],
        value=record.value and record.value[:most],
        headers=record.headers if fit else (),
        size=record.size if record.size is not None or not long else len(record.value or b""),
    )
    return replace(bad, record=part)


def _trim(there: list[QuarantinedRecord], bounds: QuarantineLimits) -> int:
    """Take the oldest records beyond the bounds out of a list; how many went."""
    rows_over, over = len(there) - bounds.rows, sum(serialization.kept_bytes(held.bad) for held in there) - bounds.size
    gone: set[int] = set()
    for i, held in enumerate(there):
        if (rows_over <= 0 and over <= 0) or len(gone) >= quarantine.MOST:
            break
        if held.delivered_at is not None or not bounds.delivered_only:
            gone.add(i)
            rows_over, over = rows_over - 1, over - serialization.kept_bytes(held.bad)
    there[:] = [held for i, held in enumerate(there) if i not in gone]
    for i, held in enumerate(there):
        record = held.bad.record
        if over <= 0 or not bounds.delivered_only:
            break
        if held.delivered_at is None and record.value:
            size = len(record.value) if record.size is None else record.size
            there[i] = held._replace(bad=replace(held.bad, record=record._replace(value=b"", size=size)))
            over -= len(record.value)
    return len(gone)
