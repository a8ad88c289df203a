"""Files and folders that only their owner may read: what is kept of records, models and tokens, whatever the umask."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import IO, Any

FILE, FOLDER = 0o600, 0o700


def make_file(path: Path) -> None:
    """Make an empty file unless something is there; what cannot be made is left to who opens it."""
    with contextlib.suppress(OSError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, FILE))


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, unless they are there; one that is there stays as open as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=FOLDER, exist_ok=True)


def open_file(path: Path, mode: str) -> IO[Any]:
    """Open a file as `open` does; one that is made by it is private."""
    return open(path, mode, opener=lambda name, flags: os.open(name, flags, FILE))
