"""Engines for SQLite: connections, their settings and transactions, and the translation of errors."""

from __future__ import annotations

import functools
import os
import sqlite3
import time
from pathlib import Path
from urllib.parse import quote

import sqlalchemy as sa

from streamkm import private_files
from streamkm.errors import SettingsError, StoreUnavailableError
from streamkm.redaction import redact_url, remember_url
from streamkm.stores.sql.database import Engines

_MODES = ("rwc", "rw", "ro")
_WAL_BYTES = 64 * 2**20
_RESTORE = "Restore a backup, or name another file"
_MEANINGS = {
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


def engines(url: str, busy_timeout: float, create: bool = True) -> Engines:
    """The engines of an SQLite file.

    Parameters
    ----------
    url
        ``sqlite:///path.db``, optionally with ``?mode=rw`` (the file must exist) or ``?mode=ro`` (read only).
    busy_timeout
        Seconds to wait for another process's write.
    create
        Create the file if it does not exist, unless the URL forbids it.

    Raises
    ------
    SettingsError
        The URL names no file, or has unknown parameters.
    """
    remember_url(url)
    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError) as e:
        raise SettingsError("this URL of an SQLite store cannot be read", hint="Write sqlite:///path.db") from e
    path, mode = _file_of(parsed)
    engine = _make_engine(path, mode if create or mode == "ro" else "rw", busy_timeout, own=create)
    writer = engine.execution_options(streamkm_begin="write")
    autocommit = engine.execution_options(streamkm_begin="no")
    return Engines(
        engine, writer, writer, autocommit, redact_url(parsed.render_as_string()), functools.partial(_explain, path)
    )


def _file_of(url: sa.URL) -> tuple[Path, str]:
    """The file that a URL names, absolute, and the mode to open it in.

    Raises
    ------
    SettingsError
        The URL names no file, or has unknown parameters.
    """
    example = "Write sqlite:///name.db, or sqlite:////var/lib/name.db for an absolute path"
    if url.database in (None, "", ":memory:"):
        raise SettingsError(
            "an SQLite store needs a file: without one each connection has a database of its own",
            where=url.render_as_string(),
            hint=f"{example}; for a store that ends with the process write memory://",
        )
    if url.host:
        raise SettingsError("an SQLite store has no host", where=url.render_as_string(), hint=example)
    unknown = sorted(set(url.query) - {"mode"})
    mode = url.query.get("mode", "rwc")
    if unknown or mode not in _MODES:
        what = f"unknown parameter {unknown[0]!r}" if unknown else f"unknown mode {mode!r}"
        hint = "The one parameter is mode: rwc (the default: created if missing), rw (must exist) or ro (read only)"
        raise SettingsError(what, where=url.render_as_string(), hint=hint)
    return Path(str(url.database)).absolute(), str(mode)


def _make_engine(path: Path, mode: str, busy_timeout: float, *, own: bool) -> sa.Engine:
    """An engine whose transactions start as the execution option ``streamkm_begin`` says.

    ``read`` (the default): sees one consistent snapshot. ``write``: takes the write lock at the start, because a
    transaction that reads before it writes fails at once, whatever the timeout, if another process wrote in between.
    ``no``: each statement is a transaction of its own. The driver's own transactions are off, as SQLAlchemy's
    documentation of SQLite advises ("Using SQLAlchemy to emit BEGIN"): they exclude SELECT and CREATE TABLE.
    """
    location = f"file:{quote(str(path))}?mode={mode}"

    def connect() -> sqlite3.Connection:
        if mode == "rwc":
            private_files.make_file(path)  # SQLite creates its log and index with the same permissions
        connection = sqlite3.connect(
            location, uri=True, timeout=busy_timeout, check_same_thread=False, isolation_level=None
        )
        try:
            _set_up(connection)
            if own and mode != "ro":  # a reader leaves the journal mode as it is
                _use_wal(connection, str(path), busy_timeout)
        except BaseException:
            connection.close()
            raise
        return connection

    plain = sa.URL.create("sqlite", database=str(path))
    engine = sa.create_engine(plain, creator=connect, poolclass=sa.QueuePool, pool_size=8, max_overflow=32)

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        kind = connection.get_execution_options().get("streamkm_begin", "read")
        if kind != "no":
            connection.exec_driver_sql("BEGIN IMMEDIATE" if kind == "write" else "BEGIN")

    return engine


def _set_up(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA foreign_keys = ON")
    # NORMAL syncs at checkpoints of the log instead of at each commit: a power failure (not a crash of the process) may
    # undo the last commits, each as a whole. Every record still counts once: state and offsets are one transaction, so
    # they are undone together, and the topic still has the records.
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}")


def _use_wal(connection: sqlite3.Connection, where: str, busy_timeout: float) -> None:
    """Turn on write-ahead logging, so that readers and the writer do not block each other. Stored in the file."""
    deadline = time.monotonic() + busy_timeout
    while True:
        try:
            (journal_mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
            break
        except sqlite3.OperationalError as e:
            # SQLite's busy timeout does not apply to another process that switches the same new file.
            if e.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.005)
    if journal_mode != "wal":
        raise StoreUnavailableError(
            f"SQLite cannot keep a write-ahead log here (it uses {journal_mode!r})",
            where=where,
            hint="Put the file on a local disk",
        )


def _explain(path: Path, error: BaseException) -> tuple[str, str] | None:
    # The low byte of SQLite's result code is the error; the rest is detail.
    code = getattr(error, "sqlite_errorcode", -1) & 0xFF
    return _why_cannot_open(path) if code == sqlite3.SQLITE_CANTOPEN else _MEANINGS.get(code)


def _why_cannot_open(path: Path) -> tuple[str, str]:
    """Distinguish the causes of SQLite's "unable to open database file"."""
    parent = path.parent
    if path.is_dir():
        return f"{path} is a directory", "Name a file in it"
    if not parent.exists():
        return f"the directory {parent} does not exist", "Create it, or name another place"
    if not parent.is_dir():
        return f"{parent} is not a directory", "Name a file in a directory"
    if not path.exists() and os.access(parent, os.W_OK):
        return f"{path} does not exist", "Correct --store, or make it: streamkm live does that at its first start"
    return f"{path} cannot be opened", "Give this process the right to write the file and its directory"
