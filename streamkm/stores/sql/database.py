"""What a database gives to `SqlStore`. Each kind of database has a module that makes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import sqlalchemy as sa

Explain = Callable[[BaseException], tuple[str, str] | None]
"""What an error of the driver means, and what to do; None for one that is not among those that happen to a store."""


@dataclass(frozen=True)
class Engines:
    """One pool of connections, seen through each kind of transaction that a store needs.

    Attributes
    ----------
    reader
        Its transactions see one moment.
    writer
        Each statement sees what was committed before it, and a row that a transaction changed is its own until it ends.
    alone
        As `writer`, and one such transaction runs at a time: for migrations.
    glance
        Each statement is a transaction of its own.
    where
        The database in messages: its URL without a password.
    explain
        What the driver's errors mean.
    """

    reader: sa.Engine
    writer: sa.Engine
    alone: sa.Engine
    glance: sa.Engine
    where: str
    explain: Explain

    def close(self) -> None:
        """Give back the connections."""
        self.reader.dispose()
