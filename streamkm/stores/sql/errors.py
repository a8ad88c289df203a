"""The one place where errors of SQLAlchemy and of database drivers become streamkm's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from streamkm.errors import StoreError, StoreUnavailableError
from streamkm.stores import checks
from streamkm.stores.sql.database import Engines


@contextmanager
def translate_errors(engines: Engines) -> Iterator[None]:
    """Raise streamkm's errors for the database's.

    Raises
    ------
    StoreUnavailableError
        The store cannot be opened, read or written now.
    ConflictError
        A constraint forbids the write.
    StoreError
        Anything else that the database refused.
    """
    where = engines.where
    try:
        yield
    except sa.exc.TimeoutError as e:
        hint = "Make fewer calls at once; each waits for one of the store's connections"
        raise StoreUnavailableError("all connections are busy", where=where, hint=hint) from e
    except sa.exc.IntegrityError as e:
        raise checks.already_stored(where, _said(e.orig)) from e
    except sa.exc.DBAPIError as e:
        raise _translated(e.orig, engines) from e
    except engines.reader.dialect.loaded_dbapi.Error as e:
        raise _translated(e, engines) from e
    except sa.exc.SQLAlchemyError as e:
        raise StoreError(str(e), where=where) from e


def _translated(error: BaseException | None, engines: Engines) -> StoreError:
    known = None if error is None else engines.explain(error)
    if known is None:
        return StoreError(f"the database refused ({_said(error)})", where=engines.where)
    message, hint = known
    return StoreUnavailableError(f"{message} ({_said(error)})", where=engines.where, hint=hint)


def _said(error: BaseException | None) -> str:
    """What the database said, in one line: PostgreSQL draws the statement below it, and marks a place in it."""
    return " ".join(str(error).split("\nLINE ", maxsplit=1)[0].split())
