"""Checks that every store makes, and the errors it raises: the same texts in all implementations."""

from __future__ import annotations

import re
from collections.abc import Iterable

from streamkm.errors import ConflictError, LeaseLostError, NotFoundError, SettingsError
from streamkm.records import Position, TopicPartition
from streamkm.state import Commit
from streamkm.stores.base import Job, Lease
from streamkm.times import format_time

RECOMPUTED = "replay"
"""Kind of recomputed snapshots, which answer no queries until they are promoted."""

MAX_JOBS = 100
"""Jobs kept per model."""

_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")
_MAX_LISTED = 20


def check_name(name: str) -> None:
    """Reject names that do not fit into a URL or a file name.

    Raises
    ------
    SettingsError
        The name is empty or too long, or has other characters.
    """
    if not _NAME.fullmatch(name):
        raise SettingsError(f"{name!r} is not a valid name of a model", hint="Use 1 to 128 letters, digits, -, _ and .")


def check_commit_follows(model: str, commit: Commit, stored_seq: int, stored: Position) -> None:
    """Reject a commit that does not follow the stored one.

    Raises
    ------
    ConflictError
        The stored position is not the expected one, the commit's number is not the next, or the commit moves a
        partition back or drops it.
    """
    hint = "Drop this state, load the stored checkpoint and go on from there"
    if dict(stored) != dict(commit.expected):
        either = sorted({**stored, **commit.expected})
        partitions = [p for p in either if stored.get(p) != commit.expected.get(p)]
        shown = ", ".join(f"{p}: {stored.get(p)} instead of {commit.expected.get(p)}" for p in partitions[:_MAX_LISTED])
        raise ConflictError(f"the stored position is not the expected one ({shown})", where=f"model {model}", hint=hint)
    if commit.progress.commit_seq != stored_seq + 1:
        raise ConflictError(
            f"commit {commit.progress.commit_seq} cannot follow commit {stored_seq}", where=f"model {model}", hint=hint
        )
    after = commit.progress.position
    back = [p for p, offset in sorted(stored.items()) if after.get(p, -1) < offset]
    if back:
        shown = ", ".join(f"{p}: from {stored[p]} to {after.get(p)}" for p in back[:_MAX_LISTED])
        raise ConflictError(f"the commit would go back ({shown})", where=f"model {model}", hint=hint)


def already_stored(where: str, cause: str) -> ConflictError:
    """The error for a row that the store already has."""
    return ConflictError(f"the store already holds this ({cause})", where=where, hint="Each record is written once")


def lease_lost(lease: Lease, epoch: int | None, owner: str | None) -> LeaseLostError:
    """The error for a lost lease; `epoch` and `owner` are the stored ones, None if there are none."""
    if epoch is None:
        now = "no such model exists"
    elif owner is None:
        now = f"it is at epoch {epoch} and has no owner"
    else:
        now = f"{owner} owns it with epoch {epoch}"
    return LeaseLostError(
        f"{lease.owner} no longer owns this model (its epoch was {lease.epoch}): {now}",
        where=f"model {lease.model}",
        hint="Drop the state and wait for a turn",
    )


def no_model(name: str, names: Iterable[str]) -> NotFoundError:
    """The error for a model that does not exist; `names` are the existing ones."""
    return NotFoundError(f"no model is named {name!r}", hint=_listed(names) or "The store has no models yet")


def no_snapshot(model: str, snapshot_id: int | None, at: float | None, first: int, last: int) -> NotFoundError:
    """The error for a snapshot that does not exist; `first` and `last` are the existing numbers, 0 without any."""
    there = f"There are {first} to {last}" if last else "It has none yet"
    if snapshot_id is not None and first < snapshot_id < last:
        there = f"Old snapshots are deleted by retention: streamkm snapshots lists those kept of {first} to {last}"
    if snapshot_id is not None:
        what = f"no snapshot {snapshot_id}"
    elif at is not None:
        what = f"no snapshot made at or before {format_time(at)}"
    else:
        what = "no snapshot"
    return NotFoundError(what, where=f"model {model}", hint=there)


def no_kept_checkpoint(model: str, commit_seq: int) -> NotFoundError:
    """The error for a checkpoint that is not kept."""
    return NotFoundError(
        f"the checkpoint of commit {commit_seq} is not kept",
        where=f"model {model}",
        hint="One checkpoint a day is kept, for some days",
    )


def not_in_quarantine(model: str, partition: TopicPartition, offset: int) -> NotFoundError:
    """The error for a record that is not in quarantine."""
    return NotFoundError(
        f"{partition}@{offset} is not in quarantine",
        where=f"model {model}",
        hint=f"streamkm quarantine list {model} lists those that are; old records and retried ones are removed",
    )


def token_taken(name: str) -> ConflictError:
    """The error for a token whose name or value exists already."""
    return ConflictError(
        f"there is a token named {name!r} already, or the same token under another name",
        hint="streamkm tokens list shows them; remove the old one first, or choose another name",
    )


def no_token(name: str, names: Iterable[str]) -> NotFoundError:
    """The error for a token that does not exist; `names` are the existing ones."""
    return NotFoundError(f"no token is named {name!r}", hint=_listed(names) or "There are none")


def no_job(model: str, job_id: str) -> NotFoundError:
    """The error for a job that does not exist."""
    return NotFoundError(
        f"there is no job {job_id!r}",
        where=f"model {model}",
        hint=f"The newest {MAX_JOBS} jobs of a model are kept, until the model is deleted",
    )


def newest_jobs(jobs: Iterable[Job]) -> list[Job]:
    """Jobs, newest first, in the same order in every store."""
    return sorted(jobs, key=lambda job: (job.created_at, job.id), reverse=True)


def _listed(names: Iterable[str]) -> str:
    known = sorted(names)
    more = f" and {len(known) - _MAX_LISTED} more" if len(known) > _MAX_LISTED else ""
    return f"There are: {', '.join(known[:_MAX_LISTED])}{more}" if known else ""
