"""Maintenance of a store's database on request: backup, vacuum and integrity check."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from streamkm import private_files
from streamkm.errors import SettingsError, StoreError
from streamkm.stores.base import Store
from streamkm.stores.sql import errors
from streamkm.stores.sql.database import Engines
from streamkm.stores.sql.store import SqlStore


def backup(store: Store, file: Path, *, overwrite: bool = False) -> int:
    """Copy an SQLite store to a file while other processes use it; the copy is one consistent snapshot.

    The file appears under its name only when it is complete.

    Returns
    -------
    int
        Size of the copy in bytes.

    Raises
    ------
    SettingsError
        The store is not an SQLite file, or `file` exists, or its directory does not.
    StoreUnavailableError
        The store cannot be read, or the copy cannot be written.
    StoreError
        The copy is damaged.
    """
    engines = _sqlite(store, f"pg_dump --table='streamkm_*' --file={file}")
    if not file.absolute().parent.is_dir():
        raise SettingsError("there is no such directory", where=str(file.absolute().parent), hint="Create it")
    if file.exists() and not overwrite:
        raise SettingsError("this file exists", where=str(file), hint="Name another file, or give --force")
    part = file.with_name(file.name + ".part")
    with errors.translate_errors(engines):
        try:
            private_files.make_file(part)
            with contextlib.closing(sqlite3.connect(part)) as copy, _raw(engines) as original:
                # All pages in one step: with a write-ahead log that blocks no writer, whereas in several steps each
                # concurrent write would restart the copy.
                original.backup(copy)
                damaged = [row[0] for row in copy.execute("PRAGMA quick_check")]
                copy.execute("PRAGMA journal_mode = DELETE")  # one file, without a log beside it
            if damaged != ["ok"]:
                raise StoreError(f"the copy is damaged: {damaged[0]}", where=str(file), hint="Run streamkm store check")
            with part.open("rb+") as written:
                os.fsync(written.fileno())
            part.replace(file)
        finally:
            part.unlink(missing_ok=True)
    return file.stat().st_size


def vacuum(store: Store) -> tuple[int, int]:
    """Return the space of deleted rows to the file system; writers wait meanwhile.

    Returns
    -------
    before, after
        Size of the database in bytes.

    Raises
    ------
    SettingsError
        The store is not an SQLite file.
    StoreUnavailableError
        Another process writes for too long, or there is no space for a second copy.
    """
    engines = _sqlite(store, "vacuumdb --table='streamkm_*'")
    with errors.translate_errors(engines), _raw(engines) as connection:
        before = _size(connection)
        connection.execute("VACUUM")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return before, _size(connection)


def find_damage(store: Store, *, quick: bool = False) -> list[str]:
    """Damage that SQLite's integrity check finds in its file; empty for other stores (PostgreSQL has checksums).

    Parameters
    ----------
    quick
        Do not compare indexes with their tables: several times faster.

    Raises
    ------
    StoreUnavailableError
        The store cannot be read.
    """
    if not isinstance(store, SqlStore) or store.engines.reader.dialect.name != "sqlite":
        return []
    with errors.translate_errors(store.engines), _raw(store.engines) as connection:
        try:
            check = "quick_check" if quick else "integrity_check"
            found = [str(row[0]) for row in connection.execute(f"PRAGMA {check}") if row[0] != "ok"]
            orphans = [] if found else connection.execute("PRAGMA foreign_key_check").fetchall()
        except sqlite3.DatabaseError as e:
            if e.sqlite_errorcode & 0xFF != sqlite3.SQLITE_CORRUPT:
                raise
            return [str(e)]  # so damaged that the check itself fails
    return found + [f"{table}: row {row} refers to a {parent} that is gone" for table, row, parent, _ in orphans]


def _size(connection: sqlite3.Connection) -> int:
    (pages,), (size,) = (connection.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "page_size"))
    return int(pages) * int(size)


@contextlib.contextmanager
def _raw(engines: Engines) -> Iterator[sqlite3.Connection]:
    with engines.autocommit.connect() as connection:
        yield cast("sqlite3.Connection", connection.connection.dbapi_connection)


def _sqlite(store: Store, instead: str) -> Engines:
    """The engines of an SQLite store.

    Raises
    ------
    SettingsError
        The store is of another kind; the hint names its own tool.
    """
    if not isinstance(store, SqlStore):
        raise SettingsError("a store in memory ends with its process", hint="Name a store with --store")
    if store.engines.reader.dialect.name != "sqlite":
        raise SettingsError(
            "PostgreSQL has its own tools for this", where=store.engines.where, hint=f"Run {instead} DATABASE"
        )
    return store.engines
