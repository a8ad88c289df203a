"""What Alembic runs: the migrations, on the connection and in the transaction that `streamkm.stores.sql.migrate` gives."""

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
