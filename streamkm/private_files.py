"""Files and folders that only their owner can read, whatever the umask: for records, models and tokens."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import IO, Any

FILE_MODE, FOLDER_MODE = 0o600, 0o700


def make_file(path: Path) -> None:
    """Create an empty file unless the path exists; errors are left to the subsequent opening."""
    with contextlib.suppress(OSError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, FILE_MODE))


def make_folder(path: Path) -> None:
    """Create a folder and its parents; the permissions of an existing folder stay as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=FOLDER_MODE, exist_ok=True)


def open_file(path: Path, mode: str) -> IO[Any]:
    """Open a file like `open`; a new file is private."""
    return open(path, mode, opener=lambda name, flags: os.open(name, flags, FILE_MODE))
