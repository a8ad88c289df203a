"""The one place where errors of SQLAlchemy and of database drivers become streamkm's."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa

from streamkm.errors import StoreError, StoreUnavailableError
from streamkm.stores import rules

_RESTORE = "Restore a backup, or name another file"
_SQLITE = {
    sqlite3.SQLITE_BUSY: ("it was locked by another writer for too long", "Find the process that holds it"),
    sqlite3.SQLITE_LOCKED: ("a table was locked by another writer for too long", "Find the process that holds it"),
    sqlite3.SQLITE_FULL: ("the disk is full", "Free some space; nothing of this write was kept"),
    sqlite3.SQLITE_READONLY: ("it is read-only", "Give this process the right to write the file and its directory"),
    sqlite3.SQLITE_PERM: ("access is denied", "Give this process the right to write the file and its directory"),
    sqlite3.SQLITE_IOERR: ("the disk does not read or write", "Look at the disk, its quota and the system's log"),
    sqlite3.SQLITE_NOTADB: ("this file is not an SQLite database", _RESTORE),
    sqlite3.SQLITE_CORRUPT: ("the database is damaged", _RESTORE),
    sqlite3.SQLITE_NOMEM: ("SQLite ran out of memory", "Give the process more memory"),
}


@contextmanager
def mapped(where: str, path: Path | None = None) -> Iterator[None]:
    """Raise streamkm's errors for the database's.

    Parameters
    ----------
    where
        The store, for the message: its URL without a password.
    path
        The file of an SQLite store, to look at when it cannot be opened.

    Raises
    ------
    StoreUnavailableError
        The store cannot be opened, read or written now.
    ConflictError
        A constraint forbids the write.
    StoreError
        Anything else that the database refused.
    """
    try:
        yield
    except sa.exc.TimeoutError as e:
        hint = "Make fewer calls at once; each waits for one of the store's connections"
        raise StoreUnavailableError("all connections are busy", where=where, hint=hint) from e
    except sa.exc.IntegrityError as e:
        raise rules.twice(where, str(e.orig)) from e
    except sa.exc.DBAPIError as e:
        raise _translated(e.orig, where, path) from e
    except sqlite3.Error as e:
        raise _translated(e, where, path) from e
    except sa.exc.SQLAlchemyError as e:
        raise StoreError(str(e), where=where) from e


def _translated(error: BaseException | None, where: str, path: Path | None) -> StoreError:
    # The low byte of SQLite's result is what happened; the rest tells in which of its functions.
    code = getattr(error, "sqlite_errorcode", -1) & 0xFF
    if code == sqlite3.SQLITE_CANTOPEN and path is not None:
        message, hint = _why_closed(path)
        return StoreUnavailableError(message, where=where, hint=hint)
    if code in _SQLITE:
        message, hint = _SQLITE[code]
        return StoreUnavailableError(f"{message} ({error})", where=where, hint=hint)
    return StoreError(f"the database refused ({error})", where=where)


def _why_closed(path: Path) -> tuple[str, str]:
    """SQLite says "unable to open database file" for all of these."""
    parent = path.parent
    if path.is_dir():
        return f"{path} is a directory", "Name a file in it"
    if not parent.exists():
        return f"the directory {parent} does not exist", "Create it, or name another place"
    if not parent.is_dir():
        return f"{parent} is not a directory", "Name a file in a directory"
    if not path.exists() and os.access(parent, os.W_OK):
        return f"{path} does not exist", "Start a consumer on it first, or correct the path"
    return f"{path} cannot be opened", "Give this process the right to write the file and its directory"
