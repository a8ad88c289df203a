"""Exact K-Means over a table, by settings: reads the rows, chooses k and the start, scales the points, and fits."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamkm.connectors.files.source import ExcludedColumn, expand
from streamkm.connectors.sql import sql_rows
from streamkm.errors import SettingsError
from streamkm.recompute import outputs
from streamkm.recompute.collect import (
    CollectedPoints,
    TableFiles,
    check_memory,
    check_point_count,
    choose_columns,
    collect,
    describe_excluded,
)
from streamkm.recompute.fitting import FitProgress, FitResult, fit_points
from streamkm.recompute.k_range import METHODS, Trials, fit_range
from streamkm.recompute.report import fit_json
from streamkm.recompute.scaling import scale_points
from streamkm.records import ColumnRecords
from streamkm.settings import FitSettings
from streamkm.values import KRange

DEFAULT_K = 8
"""Number of clusters if neither --k nor the centroids of --init say it."""


class Table(NamedTuple):
    """The points of a table.

    Attributes
    ----------
    name
        Of the input, for error messages.
    collected
        Its points.
    excluded
        Columns that were not read.
    notes
        Assumptions about the input.
    """

    name: str
    collected: CollectedPoints
    excluded: Sequence[ExcludedColumn]
    notes: Sequence[str]

    def note_lines(self) -> list[str]:
        """Excluded columns and assumptions as lines of text."""
        return [*([f"excluded: {describe_excluded(self.excluded)}"] if self.excluded else []), *self.notes]


class TableFit(NamedTuple):
    """The fit of a table: scaled points, the result in original units, all k of a range, and the factors (d,)."""

    collected: CollectedPoints
    fitted: FitResult
    trials: Trials | None
    factors: NDArray[np.float64]

    def to_json(self, table: Table, settings: FitSettings) -> dict[str, Any]:
        """The result as JSON values."""
        result = fit_json(table.name, self.collected, self.fitted, settings, self.trials)
        result["excluded_columns"] = [asdict(column) for column in table.excluded]
        result["notes"] = list(table.notes)
        return result | ({"units": (1.0 / self.factors).tolist()} if settings.scale != "none" else {})


def read_table(
    paths: Sequence[str],
    sql: str | None,
    settings: FitSettings,
    file: Path | None,
    on_read: Callable[[int, float | None], None],
) -> Table:
    """Read all rows of files, or of a query.

    Parameters
    ----------
    paths
        Files, folders, globs or URLs.
    sql
        Query that is read instead, from `FitSettings.database`.
    settings
        Fields, and what to do with bad rows.
    file
        File for the points; None: memory.
    on_read
        Called with the number of rows read, and the share of the input (None if unknown).

    Raises
    ------
    StreamkmError
        The input cannot be read, or does not fit in memory.
    """
    options: dict[str, Any] = {
        "weight_field": settings.weight_field,
        "skip_bad": settings.bad_rows == "skip",
        "file": file,
    }
    if sql is None:
        files = TableFiles(expand(paths), settings.fields, settings.weight_field)
        check_memory(files, limited=settings.memory is not None)
        found = collect(files.rows(on_read), files.fields, float32=files.fits_float32, line_of=files.line, **options)
        return Table(", ".join(paths), found, files.excluded, files.notes)

    def counted(rows: Iterable[ColumnRecords]) -> Iterator[ColumnRecords]:
        for records in rows:
            on_read(records.stop, None)
            yield records

    rows = sql_rows(sql, settings.database)
    first = next(rows)
    named = settings.fields, (), ()
    fields, excluded, notes = named if settings.fields else choose_columns(first, settings.weight_field, "--sql")
    return Table("--sql", collect(counted(itertools.chain([first], rows)), fields, **options), excluded, notes)


def fit_table(
    table: Table,
    settings: FitSettings,
    *,
    trace: bool = False,
    checkpoint: Path | None = None,
    on_fit: Callable[[FitProgress], None] | None = None,
    on_trial: Callable[[int, KRange], None] | None = None,
) -> TableFit:
    """Fit one k, or every k of a range.

    Parameters
    ----------
    table
        The points.
    settings
        k, start, scale and limits of the fit.
    trace
        Keep every iteration.
    checkpoint
        File in which the state of the fit is stored, and from which a fit that was killed resumes.
    on_fit
        Called after each iteration of a single k.
    on_trial
        Called with each k of a range before it is fitted, and the range.

    Raises
    ------
    SettingsError
        The settings do not fit together, or not the points.
    DataError
        There are fewer points than clusters.
    """
    collected = table.collected
    k, start = _start(settings, collected)
    if k.auto:
        k = KRange(k.low, max(1, min(k.high, len(collected.points))))
    check_point_count(collected, k.high, table.name)
    collected, factors = scale_points(collected, settings.scale)
    options: dict[str, Any] = {
        "n_init": settings.n_init,
        "max_iter": settings.max_iter,
        "tol": settings.tol,
        "seed": settings.seed,
        "memory": settings.memory,
        "n_threads": settings.threads or None,
    }
    if k.low == k.high:
        options |= {"trace": trace, "checkpoint": checkpoint, "on_progress": on_fit, "weights": collected.weights}
        start = start if isinstance(start, str) else start * factors
        fitted = fit_points(collected.points, n_clusters=k.low, init=start, **options)
        return TableFit(collected, fitted.with_factors(factors), None, factors)
    if trace or checkpoint:
        raise SettingsError("this needs a single k", where="--trace" if trace else "--checkpoint", hint="Give one k")
    report = None if on_trial is None else lambda at: on_trial(at, k)
    trials = fit_range(collected, k.low, k.high, init=settings.init, on_trial=report, **options)
    return TableFit(collected, trials.fitted.with_factors(factors), trials, factors)


def _start(settings: FitSettings, collected: CollectedPoints) -> tuple[KRange, Any]:
    """k, and the method or the centroids of the initialization.

    Raises
    ------
    SettingsError
        The centroids do not match the points.
    """
    if settings.init in METHODS:
        return settings.k or KRange(DEFAULT_K, DEFAULT_K), settings.init
    if not Path(settings.init).is_file():
        raise SettingsError(f"{settings.init} is neither a file nor one of {', '.join(METHODS)}", where="--init")
    k_given = settings.k.low if settings.k is not None and settings.k.low == settings.k.high else None
    centroids = outputs.read_centroids(Path(settings.init), collected.fields, k_given)
    return settings.k or KRange(len(centroids), len(centroids)), centroids
