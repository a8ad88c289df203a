"""Migrate a database to the current schema, with Alembic."""

from __future__ import annotations

import threading
from pathlib import Path

import sqlalchemy as sa

from streamkm.errors import SchemaVersionError, StoreUnavailableError
from streamkm.stores.sql.database import Engines

HEAD = "0007"
"""The newest revision in ``migrations/versions``; opening a store that has it does not import Alembic."""

SCRIPTS = Path(__file__).parent / "migrations"
VERSION_TABLE = "streamkm_version"

_version = sa.table(VERSION_TABLE, sa.column("version_num", sa.String))
_one_at_a_time = threading.Lock()  # Alembic keeps its context in module globals


def revision(connection: sa.Connection) -> str | None:
    """The revision of a database; None when it has no tables of streamkm."""
    if not sa.inspect(connection).has_table(VERSION_TABLE):
        return None
    return connection.execute(sa.select(_version.c.version_num)).scalar_one_or_none()


def check(connection: sa.Connection, where: str) -> None:
    """Check that the database has the current schema.

    Raises
    ------
    SchemaVersionError
        It has another one.
    """
    stored = connection.execute(sa.select(_version.c.version_num)).scalar_one_or_none()
    if stored != HEAD:
        raise _unknown(stored, where)


def upgrade(engines: Engines, scripts: Path = SCRIPTS, head: str = HEAD, *, create: bool = True) -> None:
    """Apply the missing migrations in one transaction, together with the new revision number.

    When two processes open a new store at the same time, one waits for the other and then finds nothing to do.

    Parameters
    ----------
    create
        Create the tables if there are none.

    Raises
    ------
    SchemaVersionError
        The database has an unknown revision. Nothing was changed.
    StoreUnavailableError
        There are no tables, and `create` is false.
    """
    with engines.reader.connect() as connection:
        stored = revision(connection)
    if stored == head:
        return
    if stored is None and not create:
        raise StoreUnavailableError(
            "there is no store of streamkm in this database",
            where=engines.where,
            hint="Correct --store, or create a store: streamkm live does so at its first start",
        )

    # Importing Alembic takes half a second, and only new and older stores need it.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415
    from alembic.script import ScriptDirectory  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(scripts).replace("%", "%%"))
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    with _one_at_a_time, engines.exclusive.begin() as connection:
        stored = revision(connection)
        if stored is not None and stored not in known:
            raise _unknown(stored, engines.where)
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _unknown(stored: str | None, where: str) -> SchemaVersionError:
    return SchemaVersionError(
        f"the store has schema {stored}, this version of streamkm knows up to {HEAD}",
        where=where,
        hint="Upgrade streamkm, or name another store",
    )
