"""Alembic's environment: runs the migrations on the connection and transaction of `streamkm.stores.sql.migrate`."""

from __future__ import annotations

from alembic import context

from streamkm.stores.sql.migrate import VERSION_TABLE


def run() -> None:
    """Migrate."""
    context.configure(connection=context.config.attributes["connection"], version_table=VERSION_TABLE)
    with context.begin_transaction():
        context.run_migrations()


if __name__ == "env_py":  # the name Alembic loads it by; any other import only looks
    run()
