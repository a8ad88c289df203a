"""Rows of a database, read as a stream."""

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
"""Rows fetched at once."""


def sql_rows(query: str, database: str) -> Iterator[ColumnRecords]:
    """Ask a database, and give its rows as they come.

    Whatever the query does is rolled back. Without ``ORDER BY`` a database may give rows in another order each time.

    Parameters
    ----------
    query
        A query that gives rows.
    database
        SQLAlchemy URL.

    Yields
    ------
    ColumnRecords
        At least one, so that columns are known without rows too. Numbers of rows count from 0.

    Raises
    ------
    SettingsError
        The URL is none, or its driver is not installed.
    SourceError
        The database does not answer, or not with rows.
    """
    remember_url(database)
    try:
        url = sa.make_url(database)
        engine = sa.create_engine(url, poolclass=sa.NullPool)
    except (sa.exc.ArgumentError, ImportError) as error:
        raise SettingsError(
            f"it cannot be used ({type(error).__name__})",
            where="database",
            hint="Give an SQLAlchemy URL, such as sqlite:///points.db, and install its driver",
        ) from error
    where = redact_url(database)
    partition = TopicPartition(where, 0)
    with _sql_errors(where), engine.connect() as connection:
        result = connection.execution_options(stream_results=True, max_row_buffer=FETCH_ROWS).execute(sa.text(query))
        if not result.returns_rows:
            raise SourceError("the query gives no rows", where=where, hint="Begin it with SELECT")
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
    """Map what SQLAlchemy and its drivers raise."""
    try:
        yield
    except sa.exc.SQLAlchemyError as error:
        said = str(getattr(error, "orig", None) or error).splitlines()[0]
        raise SourceError(f"the query failed: {said}", where=where) from error
