"""What ``streamkm fit`` prints: progress, and the result as text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from rich.progress import BarColumn, SpinnerColumn, TaskProgressColumn, TimeElapsedColumn
from rich.table import Table

from consumers import fields, terminal
from streamkm.recompute.fitting import FitProgress
from streamkm.recompute.k_range import Trials
from streamkm.recompute.report import counted, suggestion, trace_lines
from streamkm.recompute.table_fit import TableFit
from streamkm.values import KRange

MAX_CLUSTERS = 100
"""Clusters in the table."""
MAX_DESCRIBED = 20
"""Clusters whose differences are described."""
_PLAIN_WIDTH = 250
"""Characters of a line of output that is not a terminal."""
_FIELD_LIST_CHARS = 60
"""Characters of the list of fields."""


class ProgressBar:
    """Progress on a terminal; nothing elsewhere.

    Attributes
    ----------
    shown
        Whether stderr is a terminal.
    """

    def __init__(self) -> None:
        columns = (SpinnerColumn(), "{task.description}", BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        self.shown = terminal.is_terminal(err=True)
        self._progress = terminal.progress(*columns, shown=self.shown, transient=True)
        self._task = self._progress.add_task("opening", total=None)
        self._total: float | None = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def step(self, text: str) -> None:
        """Show a step without a known length."""
        self._show(text, None, 0.0)

    def read(self, rows: int, share: float | None) -> None:
        """Show the rows read, and their fraction of all."""
        self._show(f"reading: {rows:,} rows", None if share is None else 1.0, share or 0.0)

    def iteration(self, at: FitProgress) -> None:
        """Show an iteration."""
        run = f"start {at.run + 1}, " if at.run else ""
        self.step(f"fitting: {run}iteration {at.iteration}, {at.moved:,} points moved")

    def trial(self, k: int, ks: KRange) -> None:
        """Show the beginning of the fit of one k of a range."""
        self._show(f"fitting: k = {k}", float(ks.high - ks.low + 1), float(k - ks.low))

    def _show(self, text: str, total: float | None, done: float) -> None:
        if total != self._total:  # the length of a task cannot be removed
            self._progress.remove_task(self._task)
            self._task = self._progress.add_task(text, total=total)
            self._total = total
        self._progress.update(self._task, description=text, completed=done)


def show(result: dict[str, Any], found: TableFit, *, all_fields: bool) -> None:
    """Print the result as text."""
    collected, fitted, trials, _ = found
    console = terminal.console(width=None if terminal.is_terminal() else _PLAIN_WIDTH)
    selection = ""
    if all_fields:
        selection = (
            " (all numeric columns that are not identifiers)"
            if result["excluded_columns"]
            else " (all numeric columns)"
        )
    terminal.say(f"fields: {fields.format_field_list(collected.fields, _FIELD_LIST_CHARS)}{selection}")
    if result["rows"]["skipped"]:
        rows, example = result["rows"], result["skipped_examples"][0]
        terminal.say(f"skipped {rows['skipped']:,} of {rows['read']:,} rows, such as {example}")
    if trials is not None:
        console.print(_trials_table(trials))
        terminal.say(f"suggested: {suggestion(trials)}: {trials.reason}")
        terminal.say(f"(suggestion and gap: from {trials.sampled_rows:,} rows; the rest: the exact fit of all rows)")
        if trials.suggested != result["k"]:
            reason = "the nearest one tried" if trials.likeliest != result["k"] else "the best guess"
            terminal.say(f"shown: k = {result['k']}, {reason}")
    for line in trace_lines(fitted.trace, fitted.centroids):
        terminal.say(line)
    differences = np.array([c["differences"] for c in result["clusters"]], np.float64)
    table, omitted = fields.fit_fields(lambda columns: _clusters_table(result, columns), differences, console.width)
    console.print(table)
    if len(result["clusters"]) > MAX_CLUSTERS:
        omitted = f"{MAX_CLUSTERS} of {len(result['clusters'])} clusters" + (f"; {omitted}" if omitted else "")
    if omitted:
        terminal.say(f"({omitted}: --json and --out have all)")
    if differences.shape[0] > 1 and differences.shape[1] > 1:  # with one field the centroids say it
        terminal.say("largest differences from the mean of all rows, in standard deviations within clusters:")
        for c in result["clusters"][:MAX_DESCRIBED]:
            differs = fields.describe_differences(collected.fields, np.array(c["differences"], np.float64))
            terminal.say(f"  cluster {c['id']}: {differs or 'none'}")
        if len(differences) > MAX_DESCRIBED:
            terminal.say(f"  (and {len(differences) - MAX_DESCRIBED} more: --json has all)")
    points = len(collected.points)
    terminal.say(
        f"{points:,} rows, k = {result['k']}: cost {result['cost']:.6g} ({result['cost'] / fitted.sizes.sum():.6g} "
        f"per row) after {counted(result['iterations'], 'iteration')}: {result['stopped']}"
    )


def _trials_table(trials: Trials) -> Table:
    table = Table("k", "cost", "silhouette", "Davies Bouldin", "gap", "iterations", "")  # at most 80 columns wide
    for column in table.columns[:-1]:
        column.justify = "right"
    for t in trials.trials:
        gap = f"{t.gap:.3f} ± {t.gap_error:.3f}" if math.isfinite(t.gap) else "-"
        index = f"{t.davies_bouldin:.4f}" if math.isfinite(t.davies_bouldin) else "-"
        mark = "◀" if t.k == trials.suggested else ""
        table.add_row(str(t.k), f"{t.cost:.6g}", f"{t.silhouette:.4f}", index, gap, str(t.n_iter), mark)
    return table


def _clusters_table(result: dict[str, Any], columns: Sequence[int]) -> Table:
    table = Table("cluster", "size", "share", "spread")
    for column in table.columns:
        column.justify = "right"
    for j in columns:
        fields.add_field(table, result["fields"][j])
    for c in result["clusters"][:MAX_CLUSTERS]:
        values = (f"{c['centroid'][j]:.6g}" for j in columns)
        table.add_row(str(c["id"]), f"{c['size']:,}", f"{c['share']:.1%}", f"{c['spread']:.6g}", *values)
    return table
