"""Reads the rows of a database query."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import polars as pl
import sqlalchemy as sa

from streamkm.connectors.files.tables import from_series
from streamkm.errors import SettingsError, SourceError
from streamkm.records import ColumnRecords, TopicPartition
from streamkm.redaction import redact_url, remember_url

FETCH_ROWS = 1 << 15
"""Rows fetched at a time."""


def sql_rows(query: str, database: str) -> Iterator[ColumnRecords]:
    """Run a query and stream its rows.

    The transaction is rolled back. Without ``ORDER BY`` a database may return rows in a different order each time.

    Parameters
    ----------
    query
        A query that returns rows.
    database
        SQLAlchemy URL.

    Yields
    ------
    ColumnRecords
        At least one, so that the columns are known even without rows. Offsets are row numbers from 0.

    Raises
    ------
    SettingsError
        The URL is not valid, or its driver is not installed.
    SourceError
        The query failed, or returns no rows.
    """
    remember_url(database)
    try:
        url = sa.make_url(database)
        engine = sa.create_engine(url, poolclass=sa.NullPool)
    except (sa.exc.ArgumentError, ImportError) as error:
        raise SettingsError(
            f"the URL cannot be used ({type(error).__name__})",
            where="database",
            hint="Give an SQLAlchemy URL, such as sqlite:///points.db, and install its driver",
        ) from error
    where = redact_url(database)
    partition = TopicPartition(where, 0)
    with _sql_errors(where), engine.connect() as connection:
        result = connection.execution_options(stream_results=True, max_row_buffer=FETCH_ROWS).execute(sa.text(query))
        if not result.returns_rows:
            raise SourceError("the query returns no rows", where=where, hint="Begin it with SELECT")
        names = list(result.keys())
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise SourceError(f"the query names {', '.join(twice)} twice", where=where, hint="Rename one with AS")
        start = 0
        while True:
            rows = [tuple(row) for row in result.fetchmany(FETCH_ROWS)]
            if not rows and start:
                return
            frame = pl.DataFrame(rows, schema=names, orient="row", infer_schema_length=None, strict=False)
            columns = {name: from_series(frame[name]) for name in names}
            stop = start + len(rows)
            yield ColumnRecords(
                partition, start, stop, columns, np.arange(start, stop), np.full(len(rows), -1, np.int64)
            )
            if not rows:
                return
            start = stop


@contextlib.contextmanager
def _sql_errors(where: str) -> Iterator[None]:
    """Translate errors of SQLAlchemy and its drivers."""
    try:
        yield
    except sa.exc.SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or error).splitlines()[0]
        raise SourceError(f"the query failed: {reason}", where=where) from error
