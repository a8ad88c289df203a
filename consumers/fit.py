"""``streamkm fit``: exact K-Means over files, or over the rows of a database."""

from __future__ import annotations

import contextlib
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from consumers import fit_view, logs, terminal
from consumers.fit_view import ProgressBar
from consumers.options import example, warn_of_argument, with_settings
from streamkm.errors import SettingsError
from streamkm.recompute import outputs
from streamkm.recompute.plot import check_pairs
from streamkm.recompute.pointfile import atomic_write
from streamkm.recompute.report import fit_pictures
from streamkm.recompute.table_fit import TableFit, fit_table, read_table
from streamkm.redaction import remember_url, secrets_in
from streamkm.settings import FitSettings
from streamkm.values import parse_names


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
        table = read_table(paths, sql, settings, points_file, bars.read)
        for line in table.note_lines():
            terminal.say(line, err=True)
        pairs = tuple(filter(None, parse_names(plot_fields)))
        check_pairs(pairs, table.collected.fields)
        bars.step("fitting")
        on_fit = bars.iteration if bars.shown else None
        found = fit_table(table, settings, trace=trace, checkpoint=checkpoint, on_fit=on_fit, on_trial=bars.trial)
        result = found.to_json(table, settings)
        if not result["converged"]:
            terminal.say(f"not converged after {settings.max_iter} iterations: increase --max-iter", err=True)
        bars.step("writing")
        _write(files, found, result, pairs)
        if checkpoint is not None:
            checkpoint.unlink(missing_ok=True)
    if as_json:
        terminal.say_json(result)
    else:
        fit_view.show(result, found, all_fields=not settings.fields)


def _write(files: OutputFiles, found: TableFit, result: dict[str, Any], pairs: tuple[str, ...]) -> None:
    if files.out is not None:
        outputs.write_centroids(files.out, result)
    if files.labels is not None:
        blocks = outputs.label_blocks(found.fitted, found.collected)
        outputs.write_labels(files.labels, blocks, found.collected.n_rows)
    if files.plot is not None:
        for path, picture in fit_pictures(files.plot, *found[:3], pairs, found.factors):
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
