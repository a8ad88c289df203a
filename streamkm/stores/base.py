"""The interface of a store: three Protocols, and the plain data that they take and return.

`ModelStore` serves learning and publishing, `QuarantineStore` bad records, `AdministrationStore` the service. `Store`
is all three.
"""

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
    """The exclusive right to write one model.

    Attributes
    ----------
    epoch
        Increases by one with every acquisition. Commits carry it, so an owner that slept past its lease cannot write.
    expires_at
        Seconds since 1970, by the owner's clock. Others may acquire the lease after that; exactness does not depend on
        it.
    """

    model: str
    owner: str
    epoch: int
    expires_at: float


class Promotion(NamedTuple):
    """A request to make a snapshot the one that answers queries and that learning continues from.

    Attributes
    ----------
    snapshot
        Its number.
    skip
        Leave out the records between the snapshot's position and the model's; otherwise they are learned again.
    """

    snapshot: int
    skip: bool


class ControlRequests(NamedTuple):
    """What users have asked the owner of a model to do.

    Attributes
    ----------
    promotion
        The snapshot to promote; None: none.
    paused
        Stop reading until further notice.
    """

    promotion: Promotion | None
    paused: bool


RecordId = tuple[TopicPartition, int]
"""Partition and offset of a record, which identify it."""


class QuarantinedRecord(NamedTuple):
    """A bad record in quarantine.

    Attributes
    ----------
    commit_seq
        Number of the commit that added it.
    delivered_at
        When its dead letter was acknowledged, in seconds since 1970; None: not known to be delivered.
    """

    bad: BadRecord
    commit_seq: int
    delivered_at: float | None


@dataclass(frozen=True)
class ModelInfo:
    """Summary of a model, without its state.

    Attributes
    ----------
    created_at
        Seconds since 1970.
    progress
        Position, counters, lag and time of the last checkpoint; None before the first.
    last_snapshot
        Number of the newest snapshot in charge; 0: none.
    lease
        The current lease, which may have expired; None when it was released.
    paused
        Whether the owner is asked to stop reading.
    """

    spec: ModelSpec
    created_at: float
    progress: Progress | None
    last_snapshot: int
    lease: Lease | None
    paused: bool = False


class Token(NamedTuple):
    """An access token of the service.

    Attributes
    ----------
    name
        Unique.
    digest
        SHA-256 of the token, hexadecimal; the token itself is not stored.
    right
        ``read``, or ``write``, which includes reading.
    models
        Names of the models that the token is valid for; empty: all.
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
    """A recomputation that a service runs.

    Attributes
    ----------
    id
        Letters and digits; unique.
    options
        The request, as JSON values.
    progress
        As JSON values.
    snapshot
        Number of the resulting snapshot; 0: none yet.
    error
        Why it failed; empty otherwise.
    created_at, updated_at
        Seconds since 1970. A running job is updated every few seconds; one that is not has lost its worker.
    """

    id: str
    model: str
    options: Json
    state: JobState
    progress: Json
    snapshot: int
    error: str
    created_at: float
    updated_at: float


class ModelStore(Protocol):
    """Models, leases, checkpoints, journals, snapshots, and requests to the owners of models."""

    def create(self, spec: ModelSpec, now: float) -> ModelSpec:
        """Create the model, or return the stored spec of the model that already has this name.

        Raises
        ------
        SettingsError
            The name is not valid.
        """

    def models(self) -> Sequence[ModelInfo]:
        """All models, by name."""

    def model(self, name: str) -> ModelInfo:
        """One model.

        Raises
        ------
        NotFoundError
            No model has this name; the message lists the names there are. Every method below that takes the name of a
            model raises it, unless stated otherwise.
        """

    def delete(self, name: str) -> None:
        """Delete a model and everything that belongs to it."""

    def acquire(self, model: str, owner: str, ttl: float, now: float) -> Lease | None:
        """Acquire the lease for `ttl` seconds; None while another owner's lease is valid.

        An owner that already holds the lease gets a new epoch, so two processes with the same name cannot both write.
        """

    def renew(self, lease: Lease, ttl: float, now: float) -> Lease:
        """Extend the lease to `ttl` seconds from `now`; the epoch stays.

        Raises
        ------
        LeaseLostError
            The epoch is no longer the model's.
        """

    def release(self, lease: Lease) -> None:
        """Let the next owner acquire the lease at once; without effect when it is already lost."""

    def load_checkpoint(self, model: str) -> Checkpoint | None:
        """The last checkpoint; None before the first commit."""

    def commit(self, lease: Lease, commit: Commit) -> int:
        """Write state, position, counters, journal entry, snapshot and quarantined records atomically.

        Returns
        -------
        int
            Number of the snapshot, or 0 when the commit carries none.

        Raises
        ------
        LeaseLostError
            The lease's epoch is no longer the model's.
        ConflictError
            The stored position is not `commit.expected`. (A partition that is new in `commit.progress.position` is
            absent from `expected` and from the store.)
        """

    def journal(
        self, model: str, until_seq: int | None = None, *, after_seq: int = 0
    ) -> Iterator[tuple[int, JournalEntry]]:
        """(commit number, journal entry) in order, from the first kept after `after_seq` to `until_seq` inclusive.

        The journal starts with commit 1, or behind the first kept checkpoint once retention has removed its beginning.
        """

    def keep_checkpoint(self, model: str, now: float, *, always: bool = False) -> bool:
        """Keep the last checkpoint as a start for journal replays if the newest kept one is older than a day.

        Parameters
        ----------
        always
            Keep it whatever the age of the newest: what follows is learned with another version of the arithmetic.

        Returns
        -------
        bool
            Whether it was kept.
        """

    def kept_checkpoints(self, model: str) -> Sequence[Progress]:
        """The progress of each kept checkpoint, oldest first."""

    def kept_checkpoint(self, model: str, commit_seq: int) -> Checkpoint:
        """The kept checkpoint of one commit.

        Raises
        ------
        NotFoundError
            That checkpoint is not kept.
        """

    def add_snapshot(self, snapshot: Snapshot, state: ModelState) -> int:
        """Add a recomputed snapshot and a state to continue learning from; it answers no queries until promoted.

        Returns
        -------
        int
            Its number.
        """

    def snapshot_state(self, model: str, snapshot_id: int) -> ModelState | None:
        """The state that was added with a snapshot; None when there is none."""

    def request_promotion(self, model: str, promotion: Promotion | None) -> None:
        """Ask the owner to promote a snapshot, in place of an earlier request; None withdraws the request.

        A snapshot whose promotion was ever requested is kept for good, because replaying the journal needs it. The
        commit with a matching `JournalEntry.promoted_snapshot` fulfils the request.

        Raises
        ------
        NotFoundError
            No such snapshot.
        """

    def set_paused(self, model: str, paused: bool) -> None:
        """Ask the current or next owner to stop reading, or to resume."""

    def control_requests(self, model: str) -> ControlRequests:
        """All pending requests to the owner; none if the model does not exist."""

    def snapshot(self, model: str, snapshot_id: int | None = None, *, at: float | None = None) -> Snapshot:
        """A snapshot by number; or, of those in charge, the newest, or the newest published at or before `at`.

        Raises
        ------
        NotFoundError
            No such snapshot; the message says which numbers exist.
        """

    def snapshots(
        self, model: str, *, before: int | None = None, limit: int = 100, eventful: bool = False
    ) -> Sequence[Snapshot]:
        """Snapshots with numbers below `before`, newest first; with `eventful` only those that have events."""

    def apply_retention(self, model: str, now: float) -> int:
        """Delete old snapshots, and the journal and kept checkpoints that are no longer needed (see `retention`).

        Returns
        -------
        int
            Number of rows deleted, limited per call so that no transaction is long.
        """

    def recent(self, model: str) -> Recent | None:
        """The points that were learned last, from the last commit that had some; None if none had."""


class QuarantineStore(Protocol):
    """Bad records, until they are retried, discarded or removed by retention."""

    def newest_quarantined(
        self, model: str, *, limit: int = 100, reason: str | None = None, max_bytes: int | None = None
    ) -> Sequence[BadRecord]:
        """The newest records first.

        Parameters
        ----------
        reason
            Only records with this reason.
        max_bytes
            Return at most this many bytes of each key and value.
        """

    def quarantined_record(self, model: str, record: RecordId) -> QuarantinedRecord:
        """One record.

        Raises
        ------
        NotFoundError
            It is not in quarantine.
        """

    def iter_quarantine(self, model: str) -> Iterator[QuarantinedRecord]:
        """All records that are in quarantine now, in order of arrival; read page by page."""

    def undelivered(self, model: str, *, limit: int = 500) -> Sequence[QuarantinedRecord]:
        """The oldest records without an acknowledged dead letter; fewer than `limit` when they are large."""

    def quarantine_counts(self, model: str) -> Mapping[str, int]:
        """Number of records in quarantine, by reason."""

    def mark_delivered(self, model: str, records: Sequence[RecordId], now: float) -> None:
        """Record that dead letters were acknowledged. Needs no lease: repeating it does no harm."""

    def remove_quarantined(self, model: str, records: Sequence[RecordId]) -> None:
        """Remove records from quarantine; counters do not change. Records that are already gone are ignored."""

    def trim_quarantine(self, model: str, limits: QuarantineLimits) -> int:
        """Remove the oldest records beyond the limits, as commits that add records do.

        Returns
        -------
        int
            Number of records removed; a store may limit it per call.
        """


class AdministrationStore(Protocol):
    """Access tokens, jobs and event deliveries of the service, and the store's own connections."""

    def tokens(self) -> Sequence[Token]:
        """All tokens, by name."""

    def add_token(self, token: Token) -> None:
        """Add a token.

        Raises
        ------
        ConflictError
            There is one with this name or digest.
        """

    def remove_token(self, name: str) -> None:
        """Revoke a token.

        Raises
        ------
        NotFoundError
            There is none with this name.
        """

    def put_job(self, job: Job) -> None:
        """Insert or replace a job; the newest 100 of a model are kept."""

    def jobs(self, model: str) -> Sequence[Job]:
        """Jobs of a model, newest first."""

    def job(self, model: str, job_id: str) -> Job:
        """One job.

        Raises
        ------
        NotFoundError
            There is none with this id.
        """

    def delivered_until(self, model: str, target: str) -> int:
        """Number of the last snapshot whose events were delivered to a target; 0: none."""

    def advance_delivery(self, model: str, target: str, expected: int, snapshot: int) -> bool:
        """Record that the events up to `snapshot` were delivered, if `delivered_until` is still `expected`.

        Returns
        -------
        bool
            False when another process delivered to the target meanwhile: only one of two concurrent ones goes on.
        """

    def ping(self) -> None:
        """Read a row of every table from disk, not from a cache.

        Raises
        ------
        StoreUnavailableError
            The store cannot be read.
        """

    def close(self) -> None:
        """Close the connections. No other method may be called afterwards."""


@runtime_checkable
class Store(ModelStore, QuarantineStore, AdministrationStore, Protocol):
    """A database of models.

    Safe to use from several threads and processes. Every method is one transaction. Any of them may raise
    `StoreUnavailableError` (unreachable, full, read-only, locked for longer than the busy timeout); the transaction is
    then rolled back, and the call may be repeated. When the connection to a server breaks during the final COMMIT, the
    transaction may have taken effect; repeating a `commit` then raises `ConflictError`.
    """
