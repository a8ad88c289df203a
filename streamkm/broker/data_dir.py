"""The data directory of a local broker: creation, locking and formatting."""

from __future__ import annotations

import base64
import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from streamkm import private_files
from streamkm.broker.properties import NODE_ID, format_properties
from streamkm.errors import LocalBrokerError

MIN_FREE_BYTES = 64 * 2**20
"""Free space below which a broker is not started: Kafka stops permanently when its disk is full."""

_FULL_HINT = "Free some space, or give another data directory"


@contextlib.contextmanager
def open_data_dir(where: Path, checkpoint: Path) -> Iterator[int]:
    """Prepare the directory for Kafka; a formatted one is kept.

    Parameters
    ----------
    where
        The directory: Kafka's data are in ``kafka/``, its logs in ``logs/``.
    checkpoint
        Initial metadata of a new directory.

    Yields
    ------
    int
        File descriptor that locks the directory as long as any process has it open; to be inherited by the broker.
        (Kafka locks its directory too, but only after it has begun to write.)

    Raises
    ------
    LocalBrokerError
        The directory is not writable, its disk is full, or another broker uses it.
    """
    with contextlib.ExitStack() as stack:
        try:
            private_files.make_folder(where)
            lock = os.open(where / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, private_files.FILE_MODE)
            stack.callback(os.close, lock)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LocalBrokerError(
                "Another broker uses this data directory", where=str(where), hint="Stop it, or give another directory"
            ) from error
        except OSError as error:
            raise _directory_error(where, error) from error
        _prepare_folders(where, checkpoint)
        yield lock


def _prepare_folders(where: Path, checkpoint: Path) -> None:
    try:
        for name in ("kafka", "logs", "tmp"):
            (where / name).mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=where / "kafka"):
            pass  # a directory that exists may still be read-only
        free = shutil.disk_usage(where).free
        if free >= MIN_FREE_BYTES and not (where / "kafka" / "meta.properties").exists():
            _format(where / "kafka", checkpoint)
    except OSError as error:
        raise _directory_error(where, error) from error
    if free < MIN_FREE_BYTES:
        raise LocalBrokerError(
            f"The disk is full: {free / 2**20:.0f} MB free, {MIN_FREE_BYTES / 2**20:.0f} MB needed",
            where=str(where),
            hint=_FULL_HINT,
        )


def _directory_error(where: Path, error: OSError) -> LocalBrokerError:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return LocalBrokerError("The disk is full", where=str(where), hint=_FULL_HINT)
    return LocalBrokerError(
        f"The data directory is not writable ({error.strerror})", where=str(where), hint="Give one that you own"
    )


def _format(log_dir: Path, checkpoint: Path) -> None:
    """Do the same as ``kafka-storage format``; ``meta.properties`` comes last and marks the directory as complete."""
    shutil.copyfile(checkpoint, log_dir / "bootstrap.checkpoint")
    meta = {"version": "1", "cluster.id": _new_id(), "directory.id": _new_id(), "node.id": str(NODE_ID)}
    partial = log_dir / "meta.properties.partial"
    partial.write_text(format_properties(meta), encoding="ascii")
    partial.replace(log_dir / "meta.properties")


def _new_id() -> str:
    """A random id in Kafka's form: 16 bytes in URL-safe base64, not starting with a dash."""
    while True:
        text = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode("ascii").rstrip("=")
        if not text.startswith("-"):
            return text
