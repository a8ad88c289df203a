"""Translates errors of SQLAlchemy and of database drivers; the one place that does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from streamkm.errors import StoreError, StoreUnavailableError
from streamkm.stores import checks
from streamkm.stores.sql.database import Engines


@contextmanager
def translate_errors(engines: Engines) -> Iterator[None]:
    """Translate errors of the database that leave the body.

    Raises
    ------
    StoreUnavailableError
        The store cannot be opened, read or written at the moment.
    ConflictError
        A constraint was violated.
    StoreError
        Any other error of the database.
    """
    where = engines.where
    try:
        yield
    except sa.exc.TimeoutError as e:
        hint = "Make fewer concurrent calls; each needs one of the store's connections"
        raise StoreUnavailableError("all connections are busy", where=where, hint=hint) from e
    except sa.exc.IntegrityError as e:
        raise checks.already_stored(where, _message(e.orig)) from e
    except sa.exc.DBAPIError as e:
        raise _translate(e.orig, engines) from e
    except engines.reader.dialect.loaded_dbapi.Error as e:
        raise _translate(e, engines) from e
    except sa.exc.SQLAlchemyError as e:
        raise StoreError(str(e), where=where) from e


def _translate(error: BaseException | None, engines: Engines) -> StoreError:
    known = None if error is None else engines.explain(error)
    if known is None:
        return StoreError(f"the database refused ({_message(error)})", where=engines.where)
    message, hint = known
    return StoreUnavailableError(f"{message} ({_message(error)})", where=engines.where, hint=hint)


def _message(error: BaseException | None) -> str:
    """The database's message in one line, without the excerpt of the statement that PostgreSQL appends."""
    return " ".join(str(error).split("\nLINE ", maxsplit=1)[0].split())
