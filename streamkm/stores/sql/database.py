"""The engines through which `SqlStore` uses a database; the module of each kind of database creates them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import sqlalchemy as sa

Explain = Callable[[BaseException], tuple[str, str] | None]
"""Message and hint for an error of the driver; None for errors that are not due to the database's environment."""


@dataclass(frozen=True)
class Engines:
    """One connection pool, with an engine for each kind of transaction that a store needs.

    Attributes
    ----------
    reader
        Transactions see one consistent snapshot of the database.
    writer
        Each statement sees what was committed before it; rows that a transaction changed are locked until it ends.
    exclusive
        As `writer`, with one transaction at a time: for migrations.
    autocommit
        Each statement is a transaction of its own.
    where
        The database in messages: its URL without the password.
    explain
        Translates errors of the driver.
    """

    reader: sa.Engine
    writer: sa.Engine
    exclusive: sa.Engine
    autocommit: sa.Engine
    where: str
    explain: Explain

    def close(self) -> None:
        """Close all connections."""
        self.reader.dispose()
