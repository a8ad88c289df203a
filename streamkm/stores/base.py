"""The contract of a store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from streamkm.records import BadRecord, TopicPartition
from streamkm.state import (
    Checkpoint,
    Commit,
    JournalEntry,
    Json,
    ModelSpec,
    ModelState,
    Progress,
    QuarantineLimits,
    Recent,
    Snapshot,
)


@dataclass(frozen=True)
class Lease:
    """The right to write one model.

    Attributes
    ----------
    epoch
        Grows by one with every acquisition. A commit carries it, so an owner that slept through its lease cannot write.
    expires_at
        Seconds since 1970, by the owner's clock. Others may take over after that; exactness never depends on it.
    """

    model: str
    owner: str
    epoch: int
    expires_at: float


class Promotion(NamedTuple):
    """A snapshot that somebody wants in charge.

    Attributes
    ----------
    snapshot
        Its number.
    skip
        Leave out the records between it and the position of the model; else they are learned again.
    """

    snapshot: int
    skip: bool


class ControlRequests(NamedTuple):
    """What the owner of a model is asked for.

    Attributes
    ----------
    promotion
        The snapshot that is wanted in charge, if one is.
    paused
        Read nothing for now.
    """

    promotion: Promotion | None
    paused: bool


RecordId = tuple[TopicPartition, int]
"""Partition and offset of a record: what tells it apart from all others."""


class QuarantinedRecord(NamedTuple):
    """A record in quarantine.

    Attributes
    ----------
    commit_seq
        Number of the commit that brought it.
    delivered_at
        When its dead letter was acknowledged, seconds since 1970; None: not that one knows.
    """

    bad: BadRecord
    commit_seq: int
    delivered_at: float | None


@dataclass(frozen=True)
class ModelInfo:
    """A model as a list shows it, without its state.

    Attributes
    ----------
    progress
        Position, counters, lag and age of the last checkpoint; None before the first.
    last_snapshot
        Number of the newest snapshot in charge; 0 when there is none.
    lease
        Who writes it, if anybody does. It may have expired.
    paused
        Whether somebody asked its owner to read nothing for now.
    """

    spec: ModelSpec
    created_at: float
    progress: Progress | None
    last_snapshot: int
    lease: Lease | None
    paused: bool = False


class Token(NamedTuple):
    """Somebody who may ask a service.

    Attributes
    ----------
    name
        What people call it; unique.
    digest
        SHA-256 of the token, hexadecimal: the token itself is nowhere.
    right
        ``read``, or ``write``: reading too, and acting on models.
    models
        Names of the models that it is for; empty: all.
    created_at
        Seconds since 1970.
    """

    name: str
    digest: str
    right: Literal["read", "write"]
    models: tuple[str, ...]
    created_at: float


JobState = Literal["queued", "running", "done", "failed", "cancelled"]


@dataclass(frozen=True)
class Job:
    """A recomputation that a service was asked for.

    Attributes
    ----------
    id
        Letters and digits; unique.
    asked
        What to do: JSON values.
    progress
        How far it is: JSON values.
    snapshot
        Number of the snapshot that came of it; 0: none yet.
    error
        Why it failed.
    created_at, updated_at
        Seconds since 1970. One that runs is updated every few seconds, or nobody works on it any more.
    """

    id: str
    model: str
    asked: Json
    state: JobState
    progress: Json
    snapshot: int
    error: str
    created_at: float
    updated_at: float


@runtime_checkable
class Store(Protocol):
    """Models, their checkpoints, journals, snapshots and quarantined records.

    Safe to use from several threads and processes. Every method is one transaction. `StoreUnavailableError` may come
    out of any of them (unreachable, full, read-only, locked for longer than the store's busy timeout); the transaction
    is then rolled back whole, and the call may be made again. Where the connection to a server was lost in the very
    moment of its end, it may have taken effect whole: a commit that is made again is then a `ConflictError`.
    """

    def create(self, spec: ModelSpec, now: float) -> ModelSpec:
        """Make the model, or return the stored spec of the one that has this name."""
        ...

    def models(self) -> Sequence[ModelInfo]:
        """All models by name."""
        ...

    def model(self, name: str) -> ModelInfo:
        """One model.

        Raises
        ------
        NotFoundError
            No model has this name; the message lists those there are.
        """
        ...

    def delete(self, name: str) -> None:
        """Remove a model with all that belongs to it."""
        ...

    def acquire(self, model: str, owner: str, ttl: float, now: float) -> Lease | None:
        """Become the owner for `ttl` seconds, or None while another owner's lease runs.

        An owner that already holds the lease gets a new epoch, so two processes with one name cannot both write.
        """
        ...

    def renew(self, lease: Lease, ttl: float, now: float) -> Lease:
        """Push the expiry on; same epoch.

        Raises
        ------
        LeaseLostError
            The epoch is no longer the model's.
        """
        ...

    def release(self, lease: Lease) -> None:
        """Let the next owner in at once. Nothing happens when the lease is already lost."""
        ...

    def load_checkpoint(self, model: str) -> Checkpoint | None:
        """The last checkpoint, or None before the first commit."""
        ...

    def commit(self, lease: Lease, commit: Commit) -> int:
        """Write state, position, counters, journal, snapshot and quarantine: all of it or nothing.

        Returns
        -------
        int
            Number of the snapshot, or 0 when the commit carries none.

        Raises
        ------
        LeaseLostError
            The lease's epoch is not the model's any more.
        ConflictError
            The stored position is not `commit.expected`. (A partition may be new in
            `commit.progress.position`: then it is absent from `expected` and from the store.)
        """
        ...

    def journal(
        self, model: str, until_seq: int | None = None, *, after_seq: int = 0
    ) -> Iterator[tuple[int, JournalEntry]]:
        """(commit number, what the model did before it), from the first kept after `after_seq` to `until_seq` included.

        It begins with commit 1, or behind the first base (see `kept_checkpoints`).
        """
        ...

    def keep_checkpoint(self, model: str, now: float, *, always: bool = False) -> bool:
        """Keep the last checkpoint for re-runs to begin at, if the newest kept is older than a day; whether it did.

        Parameters
        ----------
        always
            Keep it however young the newest is: what follows is learned by another arithmetic.
        """
        ...

    def kept_checkpoints(self, model: str) -> Sequence[Progress]:
        """How far the model was at each checkpoint that is kept, the oldest first."""
        ...

    def kept_checkpoint(self, model: str, commit_seq: int) -> Checkpoint:
        """One of them.

        Raises
        ------
        NotFoundError
            No such model, or that checkpoint is not kept.
        """
        ...

    def add_snapshot(self, snapshot: Snapshot, state: ModelState) -> int:
        """Keep a recomputed snapshot, and the state that learning can go on from; it answers nothing until promoted.

        Returns
        -------
        int
            Its number.
        """
        ...

    def snapshot_state(self, model: str, snapshot_id: int) -> ModelState | None:
        """The state that was added with a snapshot, if one was."""
        ...

    def request_promotion(self, model: str, promotion: Promotion | None) -> None:
        """Ask the model's owner to put a snapshot in charge, instead of any that was asked for before; None: no more.

        A snapshot that was ever asked for is kept for good: a re-run of the journal needs it.

        Raises
        ------
        NotFoundError
            No such model or snapshot.
        """
        ...

    def control_requests(self, model: str) -> ControlRequests:
        """All that the owner is asked for, in one question; nothing if there is no such model."""
        ...

    def snapshot(self, model: str, snapshot_id: int | None = None, *, at: float | None = None) -> Snapshot:
        """A snapshot by number, or of those in charge the newest made at or before `at`, or the newest of all.

        Raises
        ------
        NotFoundError
            No such model, or no such snapshot; the message tells which, and which range there is.
        """
        ...

    def snapshots(
        self, model: str, *, before: int | None = None, limit: int = 100, eventful: bool = False
    ) -> Sequence[Snapshot]:
        """Newest first, numbers below `before`; with `eventful` only those that tell events."""
        ...

    def apply_retention(self, model: str, now: float) -> int:
        """Remove what retention no longer keeps, in small pieces; how many rows went.

        That is old snapshots, and the journal and kept checkpoints before the first checkpoint that is kept.
        """
        ...

    def newest_quarantined(
        self, model: str, *, limit: int = 100, reason: str | None = None, most: int | None = None
    ) -> Sequence[BadRecord]:
        """Newest first; with `reason` only those of that reason, with `most` no more bytes of each key and value."""
        ...

    def quarantined_record(self, model: str, place: RecordId) -> QuarantinedRecord:
        """The quarantined record of one place.

        Raises
        ------
        NotFoundError
            It is not in quarantine.
        """
        ...

    def iter_quarantine(self, model: str) -> Iterator[QuarantinedRecord]:
        """All that are in quarantine now, in the order they came; read page by page."""
        ...

    def undelivered(self, model: str, *, limit: int = 500) -> Sequence[QuarantinedRecord]:
        """The oldest whose letters are not known to be delivered, at most; fewer where they are large."""
        ...

    def quarantine_counts(self, model: str) -> Mapping[str, int]:
        """How many are in quarantine, by reason."""
        ...

    def mark_delivered(self, model: str, places: Sequence[RecordId], now: float) -> None:
        """Note that letters were acknowledged. It needs no lease: noting it twice, or of what is gone, does no harm."""
        ...

    def remove_quarantined(self, model: str, places: Sequence[RecordId]) -> None:
        """Take records out of quarantine; no counter changes. Those that are gone already do not matter."""
        ...

    def trim_quarantine(self, model: str, bounds: QuarantineLimits) -> int:
        """Remove the oldest beyond the bounds, some thousand at most; how many went. Commits that add do it too."""
        ...

    def recent(self, model: str) -> Recent | None:
        """What its owner saw last, by the last commit that told; None if none did.

        Raises
        ------
        NotFoundError
            No such model; so do all below that name a model.
        """
        ...

    def set_paused(self, model: str, paused: bool) -> None:
        """Ask the owner, now or later, to read nothing until it is taken back."""
        ...

    def tokens(self) -> Sequence[Token]:
        """All by name."""
        ...

    def add_token(self, token: Token) -> None:
        """Let somebody in.

        Raises
        ------
        ConflictError
            There is one of this name or digest.
        """
        ...

    def remove_token(self, name: str) -> None:
        """Let somebody in no longer.

        Raises
        ------
        NotFoundError
            There is none of this name.
        """
        ...

    def put_job(self, job: Job) -> None:
        """Keep a job as it is now, instead of what was kept of it; of a model's the newest 100 stay."""
        ...

    def jobs(self, model: str) -> Sequence[Job]:
        """Those of a model, the newest first."""
        ...

    def job(self, model: str, job_id: str) -> Job:
        """One of them.

        Raises
        ------
        NotFoundError
            There is none of this id.
        """
        ...

    def delivered_until(self, model: str, target: str) -> int:
        """Number of the last snapshot whose events were delivered to a target; 0: none."""
        ...

    def advance_delivery(self, model: str, target: str, expected: int, snapshot: int) -> bool:
        """Record that events up to a snapshot were delivered, if `delivered_until` is still `expected`.

        So of two that deliver to one target at once only one goes on.
        """
        ...

    def ping(self) -> None:
        """Return if the store can be read: something of every table is, from the disk and not from memory."""
        ...

    def close(self) -> None:
        """Give back connections. Other methods must not be called afterwards."""
        ...
