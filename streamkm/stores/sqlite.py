"""SQLite under SQLAlchemy: connections, their settings and their transactions."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from urllib.parse import quote

import sqlalchemy as sa

from streamkm.errors import SettingsError, StoreUnavailableError

_MODES = ("rwc", "rw", "ro")
_WAL_BYTES = 64 * 2**20


def file_of(url: sa.URL) -> tuple[Path, str]:
    """The file that a URL names, absolute, and the mode to open it in.

    Raises
    ------
    SettingsError
        The URL names no file, or has parameters that are not known.
    """
    example = "Write sqlite:///name.db, or sqlite:////var/lib/name.db for an absolute path"
    if url.database in (None, "", ":memory:"):
        raise SettingsError(
            "an SQLite store needs a file: without one each connection has a database of its own",
            where=str(url),
            hint=f"{example}; for a store that is forgotten with the process write memory://",
        )
    if url.host:
        raise SettingsError("an SQLite store has no host", where=str(url), hint=example)
    unknown = sorted(set(url.query) - {"mode"})
    mode = url.query.get("mode", "rwc")
    if unknown or mode not in _MODES:
        what = f"unknown parameter {unknown[0]!r}" if unknown else f"unknown mode {mode!r}"
        hint = "The one parameter is mode: rwc (the default: made if missing), rw (must exist) or ro (read only)"
        raise SettingsError(what, where=str(url), hint=hint)
    return Path(str(url.database)).absolute(), str(mode)


def make_engine(url: sa.URL, busy_timeout: float) -> sa.Engine:
    """An engine whose connections are durable enough, consistent, and really in transactions.

    The driver's own transactions are switched off, as SQLAlchemy's documentation of SQLite advises ("Using SQLAlchemy
    to emit BEGIN"): they would leave SELECT and CREATE TABLE outside. The execution option ``streamkm_begin`` says how
    a transaction begins. ``read`` (the default): it sees one moment. ``write``: with the write lock in hand, since one
    that first reads and then wants to write fails at once, whatever the timeout, when another process wrote meanwhile.
    ``no``: each statement is a transaction of its own.
    """
    path, mode = file_of(url)
    location = f"file:{quote(str(path))}?mode={mode}"

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(
            location, uri=True, timeout=busy_timeout, check_same_thread=False, isolation_level=None
        )
        try:
            _set_up(connection, mode, str(path), busy_timeout)
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


def _set_up(connection: sqlite3.Connection, mode: str, where: str, busy_timeout: float) -> None:
    connection.execute("PRAGMA foreign_keys = ON")
    # NORMAL syncs at checkpoints of the log and not at each commit: a power failure (never a crash of the process) may
    # take back the last commits, each whole. That keeps every record counted once, because a model's state and its
    # offsets are one transaction and go back together, and the topic still has the records to learn again.
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}")
    if mode != "ro":
        _use_wal(connection, where, busy_timeout)


def _use_wal(connection: sqlite3.Connection, where: str, busy_timeout: float) -> None:
    """Readers and the writer do not wait for each other: write-ahead logging. Kept in the file once set."""
    deadline = time.monotonic() + busy_timeout
    while True:
        try:
            (journal_mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
            break
        except sqlite3.OperationalError as e:
            # SQLite does not wait here for another process that is just switching the same new file.
            if e.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.005)
    if journal_mode != "wal":
        raise StoreUnavailableError(
            f"SQLite cannot keep a write-ahead log here (it uses {journal_mode!r})",
            where=where,
            hint="Put the file on a local disk",
        )
