"""Stores: databases of models, snapshots and quarantined records."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from streamkm.errors import SettingsError
from streamkm.redaction import redact_url
from streamkm.stores.base import ControlRequests, Job, Lease, ModelInfo, Promotion, Store, Token
from streamkm.stores.memory import MemoryStore
from streamkm.stores.sql import sqlite
from streamkm.stores.sql.database import Engines
from streamkm.stores.sql.store import SqlStore

__all__ = [
    "ControlRequests",
    "Job",
    "Lease",
    "MemoryStore",
    "ModelInfo",
    "Promotion",
    "SqlStore",
    "Store",
    "Token",
    "open_store",
]

_HINT = (
    "Write sqlite:///path.db, postgresql://user:password@host/database, "
    "or memory:// for a store that ends with the process"
)


def open_store(url: str, *, busy_timeout: float = 5.0, create: bool = True) -> Store:
    """Open a store, and migrate its tables to the current schema.

    Parameters
    ----------
    url
        ``sqlite:///path.db`` (relative), ``sqlite:////path.db`` (absolute), ``postgresql://user:password@host/name`` or
        ``memory://``. For SQLite, ``?mode=rw`` requires the file to exist and ``?mode=ro`` opens it read-only. For
        PostgreSQL, all parameters of libpq are accepted, such as ``?sslmode=verify-full``; the tables are in the first
        schema of the search path.
    busy_timeout
        Seconds to wait for another process's write before `StoreUnavailableError`.
    create
        Create file and tables if they are missing. Readers pass False, so that a mistyped path does not become an empty
        store.

    Raises
    ------
    SettingsError
        The URL has another form, or PostgreSQL's driver is not installed.
    StoreUnavailableError
        The store cannot be opened, or does not exist and `create` is false; the message says which.
    SchemaVersionError
        The store was written by a newer version of streamkm.

    Examples
    --------
    >>> store = open_store("memory://")
    >>> store.models()
    []
    """
    if url == "memory://":
        return MemoryStore()
    scheme = re.match(r"([a-z][a-z0-9+]*)://", url)
    if scheme is None:
        raise SettingsError(f"{redact_url(url)!r} is not the URL of a store", hint=_HINT)
    if scheme[1] not in _ENGINES:
        raise SettingsError(f"no store has the scheme {scheme[1]}://", hint=_HINT)
    return SqlStore(_ENGINES[scheme[1]](url, busy_timeout, create), create=create)


def _postgres(url: str, busy_timeout: float, create: bool) -> Engines:  # noqa: ARG001 - databases are never created
    try:
        from streamkm.stores.sql import postgres  # noqa: PLC0415
    except ImportError as e:
        hint = "pip install 'streamkm[postgres]'"
        raise SettingsError(f"PostgreSQL's driver is not installed ({e})", hint=hint) from e
    return postgres.engines(url, busy_timeout)


_ENGINES: Mapping[str, Callable[[str, float, bool], Engines]] = {
    "sqlite": sqlite.engines,
    "postgresql": _postgres,
    "postgresql+psycopg": _postgres,
    "postgres": _postgres,
}
