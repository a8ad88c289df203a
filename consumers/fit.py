"""``streamkm fit``: exact K-Means over files, or over the rows of a database."""

from __future__ import annotations

import contextlib
import itertools
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from consumers import fit_view, logs, terminal
from consumers.fit_view import ProgressBar
from consumers.options import example, warn_of_argument, with_settings
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
from streamkm.recompute.fitting import FitResult, fit_points
from streamkm.recompute.k_range import METHODS, Trials, fit_range
from streamkm.recompute.pointfile import atomic_write
from streamkm.recompute.report import check_pairs, fit_json, fit_pictures
from streamkm.recompute.scaling import scale_points
from streamkm.redaction import remember_url, secrets_in
from streamkm.settings import FitSettings
from streamkm.values import KRange, parse_names

DEFAULT_K = 8


@dataclass(frozen=True)
class OutputFiles:
    """Files to write; None for none."""

    out: Path | None
    labels: Path | None
    plot: Path | None

    def check(self) -> None:
        """Check, before a long fit, that they can be written.

        Raises
        ------
        SettingsError
            One cannot.
        """
        outputs.check_output("--out", self.out, outputs.CENTROIDS)
        outputs.check_output("--labels", self.labels, outputs.LABELS)
        if self.plot is not None and self.plot.suffix.lower() == ".png":
            raise SettingsError(
                "pictures are SVG files",
                where="--plot",
                hint=f"Write {self.plot.with_suffix('.svg')} and convert it",
            )
        outputs.check_output("--plot", self.plot, outputs.PICTURES)


_file = click.Path(path_type=Path)


@click.command(
    epilog=example(
        "streamkm fit points.parquet --k 8",
        "streamkm fit 'data/year=*/*.csv' --fields lat,lon --k 2..20 --plot ks.svg",
        "streamkm fit s3://bucket/points --k 50 --memory 512MB --out centroids.json --labels labels.parquet",
        "streamkm fit --sql 'select a, b from points' --database sqlite:///points.db --k 5 --json",
        "streamkm fit examples/worked-example.csv --init examples/worked-example-start.csv --trace",
    )
)
@click.argument("paths", nargs=-1)
@click.option("--sql", metavar="QUERY", help="Read the rows of this query instead of files; needs --database.")
@click.option("--out", type=_file, help="Write centroids to this json, csv, parquet or npz file.")
@click.option(
    "--labels",
    type=_file,
    help="Write label and distance of each row, in input order, to this csv, parquet or npy file.",
)
@click.option(
    "--plot",
    type=_file,
    help="Write a picture to this SVG file: points by cluster, in two fields or the first two principal components; "
    "with --trace also each of the first 50 iterations; for a range of k its criteria.",
)
@click.option("--plot-fields", metavar="A,B,...", default="", help="Draw every pair of these fields.")
@click.option("--trace", is_flag=True, help="Show every iteration.")
@click.option(
    "--checkpoint",
    type=_file,
    help="Store the state of the fit in this file until it is done: after a kill, the same command resumes from it.",
)
@with_settings(FitSettings)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def fit(
    paths: tuple[str, ...],
    settings: FitSettings,
    *,
    sql: str | None,
    out: Path | None,
    labels: Path | None,
    plot: Path | None,
    plot_fields: str,
    trace: bool,
    checkpoint: Path | None,
    as_json: bool,
) -> None:
    """Run exact K-Means over the rows of PATHS.

    A path is a csv, tsv or jsonl file (also compressed: .csv.gz), a npy, npz, parquet or Arrow file (.arrow, .feather,
    .ipc), a folder of these, a glob, or a URL such as s3://bucket/folder (with pyarrow). Hive partitions in a path such
    as year=2026/ can be fields too. Files are read in the order of their names, rows in the order of the file; rows and
    clusters are numbered from 0.

    Without --fields all numeric columns are used except identifiers; excluded columns are listed with the reason. A
    column of arrays stands for all its dimensions: --fields emb, or emb[0],emb[1] for some of them. A name with a comma
    is quoted: --fields '"height, m","weight, kg"'.

    --k is a number (8 by default, or that of the centroids in --init), a range such as 2..20, or auto for 1..20. In a
    range every k is fitted, each from the one before and one more row, and the one with the best separation is
    suggested.

    With --scale distances, spreads and cost are in deviations or interquartile ranges, centroids in original units.

    Points beyond --memory are kept in a file in the folder for temporary files (TMPDIR).
    """
    logs.configure()
    for path in paths:
        if "://" in path and secrets_in(path):
            remember_url(path)
            warn_of_argument(
                "PATHS", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the variables of the filesystem"
            )
    files = OutputFiles(out, labels, plot)
    files.check()
    outputs.check_output("--checkpoint", checkpoint, ())
    if bool(paths) == (sql is not None):
        raise SettingsError("give either paths or --sql", where="streamkm fit", hint="Such as streamkm fit points.csv")
    if sql is not None and not settings.database:
        raise SettingsError("--sql needs a database", where="--database", hint="Such as sqlite:///points.db")
    with (
        _exit_on_sigterm(),
        tempfile.TemporaryDirectory(prefix="streamkm-fit-") as folder,
        ProgressBar() as bars,
    ):
        points_file = Path(folder) / "points" if settings.memory is not None else None
        where = ", ".join(paths) if sql is None else "--sql"
        collected, notes = _collected(paths, sql, settings, points_file, bars)
        for line in notes.lines():
            terminal.say(line, err=True)
        k, start = _start(settings, collected)
        if k.auto:
            k = KRange(k.low, max(1, min(k.high, len(collected.points))))
        check_point_count(collected, k.high, where)
        collected, factors = scale_points(collected, settings.scale)
        if not isinstance(start, str):
            start = start * factors
        pairs = tuple(filter(None, parse_names(plot_fields)))
        check_pairs(pairs, collected.fields)
        trials: Trials | None = None
        if k.low < k.high:
            if trace or checkpoint:
                raise SettingsError(
                    "this needs a single k", where="--trace" if trace else "--checkpoint", hint="Give one k"
                )
            trials = _fit_range(collected, k, settings, bars)
            fitted = trials.fitted
        else:
            bars.step("fitting: initialization")
            fitted = _fit(collected, k.low, start, settings, bars, trace=trace, checkpoint=checkpoint)
        fitted = fitted.with_factors(factors)
        result = fit_json(where, collected, fitted, settings, trials) | notes.to_json()
        if settings.scale != "none":
            result["units"] = (1.0 / factors).tolist()
        if not result["converged"]:
            terminal.say(f"not converged after {settings.max_iter} iterations: increase --max-iter", err=True)
        bars.step("writing")
        _write(files, collected, fitted, trials, result, pairs, factors)
        if checkpoint is not None:
            checkpoint.unlink(missing_ok=True)
    if as_json:
        terminal.say_json(result)
    else:
        fit_view.show(result, collected, fitted, trials, all_fields=not settings.fields)


@dataclass(frozen=True)
class InputNotes:
    """Columns that were excluded, and assumptions about the input."""

    excluded: Sequence[ExcludedColumn]
    notes: Sequence[str]

    def lines(self) -> list[str]:
        """As lines of text."""
        lines = [f"excluded: {describe_excluded(self.excluded)}"] if self.excluded else []
        return [*lines, *self.notes]

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return {"excluded_columns": [asdict(column) for column in self.excluded], "notes": list(self.notes)}


def _collected(
    paths: tuple[str, ...], sql: str | None, settings: FitSettings, file: Path | None, bars: ProgressBar
) -> tuple[CollectedPoints, InputNotes]:
    """Read all rows."""
    options: dict[str, Any] = {
        "weight_field": settings.weight_field,
        "skip_bad": settings.bad_rows == "skip",
        "file": file,
    }
    if sql is None:
        files = TableFiles(expand(paths), settings.fields, settings.weight_field)
        check_memory(files, limited=settings.memory is not None)
        found = collect(files.rows(bars.read), files.fields, float32=files.fits_float32, line_of=files.line, **options)
        return found, InputNotes(files.excluded, files.notes)
    rows = sql_rows(sql, settings.database)
    first = next(rows)
    fields, notes = settings.fields, InputNotes((), ())
    if not fields:
        fields, excluded, assumptions = choose_columns(first, settings.weight_field, "--sql")
        notes = InputNotes(excluded, assumptions)
    return collect(bars.count(itertools.chain([first], rows)), fields, **options), notes


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
    k = settings.k or KRange(len(centroids), len(centroids))
    return k, centroids


def _fit(
    collected: CollectedPoints,
    k: int,
    start: Any,
    settings: FitSettings,
    bars: ProgressBar,
    *,
    trace: bool,
    checkpoint: Path | None,
) -> FitResult:
    return fit_points(
        collected.points,
        n_clusters=k,
        init=start,
        n_init=settings.n_init,
        max_iter=settings.max_iter,
        tol=settings.tol,
        seed=settings.seed,
        weights=collected.weights,
        memory=settings.memory,
        n_threads=settings.threads or None,
        trace=trace,
        on_progress=bars.iteration if bars.shown else None,
        checkpoint=checkpoint,
    )


def _fit_range(collected: CollectedPoints, k: KRange, settings: FitSettings, bars: ProgressBar) -> Trials:
    return fit_range(
        collected,
        k.low,
        k.high,
        init=settings.init,
        n_init=settings.n_init,
        max_iter=settings.max_iter,
        tol=settings.tol,
        seed=settings.seed,
        memory=settings.memory,
        n_threads=settings.threads or None,
        on_trial=lambda at: bars.trial(at - k.low, k.high - k.low + 1, at),
    )


def _write(
    files: OutputFiles,
    collected: CollectedPoints,
    fitted: FitResult,
    trials: Trials | None,
    result: dict[str, Any],
    pairs: tuple[str, ...],
    factors: NDArray[np.float64],
) -> None:
    if files.out is not None:
        outputs.write_centroids(files.out, result)
    if files.labels is not None:
        outputs.write_labels(files.labels, outputs.label_blocks(fitted, collected), collected.n_rows)
    if files.plot is not None:
        for path, picture in fit_pictures(files.plot, collected, fitted, trials, pairs, factors):
            with atomic_write(path, shared=True) as file:
                file.write(picture.encode())


@contextlib.contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """Remove temporary files on SIGTERM too, as on Ctrl-C."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
