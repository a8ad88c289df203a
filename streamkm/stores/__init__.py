"""Where models are kept."""

from __future__ import annotations

import sqlalchemy as sa

from streamkm.errors import SettingsError
from streamkm.stores.base import Lease, ModelInfo, Promotion, Store
from streamkm.stores.memory import MemoryStore
from streamkm.stores.sql import SqlStore

__all__ = ["Lease", "MemoryStore", "ModelInfo", "Promotion", "SqlStore", "Store", "open_store"]

_HINT = "Write sqlite:///path.db, or memory:// for a store that is forgotten with the process"


def open_store(url: str, *, busy_timeout: float = 5.0) -> Store:
    """Open a store, and make or migrate its tables if they are missing or older than this streamkm.

    Parameters
    ----------
    url
        ``sqlite:///path.db`` (relative), ``sqlite:////path.db`` (absolute) or ``memory://``. For SQLite, ``?mode=rw``
        refuses to make a file that does not exist and ``?mode=ro`` opens it read-only.
    busy_timeout
        Seconds to wait for another process's write to end before `StoreUnavailableError`.

    Raises
    ------
    SettingsError
        The URL is not one of these.
    StoreUnavailableError
        The store cannot be opened; the message says why.
    SchemaVersionError
        The store was written by a newer streamkm.

    Examples
    --------
    >>> store = open_store("memory://")
    >>> store.models()
    []
    """
    if url == "memory://":
        return MemoryStore()
    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError) as e:
        shown = "this" if "@" in url else repr(url)  # there may be a password in it
        raise SettingsError(f"{shown} is not the URL of a store", hint=_HINT) from e
    if parsed.drivername != "sqlite":
        raise SettingsError(f"no store has the scheme {parsed.drivername}://", hint=_HINT)
    return SqlStore(url, busy_timeout=busy_timeout)
