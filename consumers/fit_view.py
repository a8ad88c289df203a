"""What ``streamkm fit`` shows: bars while it works, then tables, JSON and pictures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from rich.progress import BarColumn, SpinnerColumn, TaskProgressColumn, TimeElapsedColumn
from rich.table import Table

from consumers import fields, terminal
from streamkm.effects import differences
from streamkm.errors import SettingsError
from streamkm.models.exact_lloyd import Iteration
from streamkm.models.exact_storage import pick
from streamkm.recompute import plot
from streamkm.recompute.collect import Collected
from streamkm.recompute.fitting import Fitted
from streamkm.recompute.fitting import Progress as FitProgress
from streamkm.recompute.k_range import Trials
from streamkm.records import ColumnRecords
from streamkm.settings import FitSettings

MOST_PICTURES = 50
_MOST_CLUSTERS, _MOST_TOLD = 100, 20
_WIDE, _FIELDS = 250, 60
"""Characters of a line that goes to no terminal, and of a list of fields."""
_SMALL = 12
"""Centroids of up to so many numbers stand in the trace."""


class Bars:
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

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._progress.stop()

    def say(self, what: str) -> None:
        """Say what is being done, without an end in sight."""
        self._say(what, None, 0.0)

    def read(self, rows: int, share: float) -> None:
        """So many rows were read, which is this share of all."""
        self._say(f"reading: {rows:,} rows", 1.0, share)

    def count(self, rows: Iterable[ColumnRecords]) -> Iterator[ColumnRecords]:
        """Count rows that go by."""
        for records in rows:
            self.say(f"reading: {records.stop:,} rows")
            yield records

    def iteration(self, at: FitProgress) -> None:
        """An iteration of a fit was made."""
        run = f"start {at.run + 1}, " if at.run else ""
        self.say(f"fitting: {run}iteration {at.iteration}, {at.moved:,} points moved")

    def trial(self, done: int, total: int, k: int) -> None:
        """The fit of a k begins, after some others."""
        self._say(f"fitting: k = {k}", float(total), float(done))

    def _say(self, what: str, total: float | None, done: float) -> None:
        if total != self._total:  # a bar with an end cannot become one without, nor the other way round
            self._progress.remove_task(self._task)
            self._task = self._progress.add_task(what, total=total)
            self._total = total
        self._progress.update(self._task, description=what, completed=done)


def as_json(
    where: str, collected: Collected, fitted: Fitted, settings: FitSettings, trials: Trials | None
) -> dict[str, Any]:
    """The result as JSON values."""
    total = float(fitted.sizes.sum())
    whole = collected.weights is None
    within = fitted.deviations()
    found = differences(fitted.centroids, fitted.sizes, within)
    clusters = [
        {
            "id": j,
            "size": int(size) if whole else size,
            "share": size / total,
            "spread": spread,
            "centroid": centroid,
            "deviations": _known(within[j]),
            "differences": _known(found[j]),
        }
        for j, (size, spread, centroid) in enumerate(
            zip(fitted.sizes.tolist(), fitted.spreads.tolist(), fitted.centroids.tolist(), strict=True)
        )
    ]
    result: dict[str, Any] = {
        "source": where,
        "fields": list(collected.fields),
        "weight_field": settings.weight_field or None,
        "rows": {
            "read": collected.n_rows,
            "used": len(collected.points),
            "skipped": len(collected.skipped),
        },
        "skipped_examples": [str(bad) for bad in collected.examples],
        "k": len(clusters),
        "scale": settings.scale,
        "init": settings.init,
        "seed": settings.seed,
        "cost": fitted.inertia,
        "iterations": fitted.n_iter,
        "stopped": _stopped(fitted, settings),
        "converged": fitted.stopped != "max_iter",
        "clusters": clusters,
    }
    if fitted.trace:
        result["trace"] = [
            {
                "centroids": step.centroids.tolist(),
                "sizes": step.sizes.tolist(),
                "cost": step.inertia,
                "moved": step.moved,
            }
            for step in fitted.trace
        ]
    return result | (trials.to_json() if trials is not None else {})


def _known(values: NDArray[np.float64]) -> list[float | None]:
    return [x if math.isfinite(x) else None for x in values.tolist()]


def show(
    result: dict[str, Any], collected: Collected, fitted: Fitted, trials: Trials | None, *, all_fields: bool
) -> None:
    """Print the result for people."""
    console = terminal.console(width=None if terminal.is_terminal() else _WIDE)
    which = ""
    if all_fields:
        which = (
            " (all columns of numbers that are no identifiers)" if result["left_out"] else " (all columns of numbers)"
        )
    terminal.say(f"fields: {fields.listed(collected.fields, _FIELDS)}{which}")
    if result["rows"]["skipped"]:
        rows, example = result["rows"], result["skipped_examples"][0]
        terminal.say(f"skipped {rows['skipped']:,} of {rows['read']:,} rows, such as {example}")
    if trials is not None:
        console.print(_trials_table(trials))
        terminal.say(f"suggested: {_suggestion(trials)}: {trials.reason}")
        terminal.say(f"(suggestion and gap: from {trials.judged:,} rows; the rest: the exact fit of all rows)")
        if trials.suggested != result["k"]:
            how = "the nearest one tried" if trials.likeliest != result["k"] else "the best guess"
            terminal.say(f"shown: k = {result['k']}, {how}")
    for line in trace_lines(fitted.trace, fitted.centroids):
        terminal.say(line)
    found = np.array([c["differences"] for c in result["clusters"]], np.float64)
    table, cut = fields.fitted(lambda places: _clusters_table(result, places), found, console.width)
    console.print(table)
    if len(result["clusters"]) > _MOST_CLUSTERS:
        cut = f"{_MOST_CLUSTERS} of {len(result['clusters'])} clusters" + (f"; {cut}" if cut else "")
    if cut:
        terminal.say(f"({cut}: --json and --out have all of it)")
    if found.shape[0] > 1 and found.shape[1] > 1:  # with one field the centroids say it
        terminal.say("differs most from the mean of all rows, in standard deviations within clusters:")
        for c in result["clusters"][:_MOST_TOLD]:
            differs = fields.told(collected.fields, np.array(c["differences"], np.float64))
            terminal.say(f"  cluster {c['id']}: {differs or 'in nothing much'}")
        if len(found) > _MOST_TOLD:
            terminal.say(f"  (and {len(found) - _MOST_TOLD} more: --json has all)")
    points = len(collected.points)
    terminal.say(
        f"{points:,} rows, k = {result['k']}: cost {result['cost']:.6g} ({result['cost'] / fitted.sizes.sum():.6g} "
        f"per row) after {_count(result['iterations'], 'iteration')}: {result['stopped']}"
    )


def trace_lines(trace: tuple[Iteration, ...], final: plot.Reals) -> Iterator[str]:
    """Tell a trace, a line for each iteration; that of a small fit begins with the whole way of its centroids."""
    if not trace:
        return
    small = final.size <= _SMALL
    after = [step.centroids for step in trace[1:]] + [final]
    if small:
        way = [step.centroids for step in trace]
        yield "centroids: " + " -> ".join(map(_point_list, way if np.array_equal(way[-1], final) else [*way, final]))
    for i, (step, target) in enumerate(zip(trace, after, strict=True), 1):
        farthest = float(np.linalg.norm(target - step.centroids, axis=1).max())
        if small:
            change = f"{_point_list(step.centroids)} -> {_point_list(target)}"
            sizes = ", ".join(f"{size:g}" for size in step.sizes)
        else:
            change = f"farthest move of a centroid {farthest:.6g}"
            sizes = f"{step.sizes.min():g} to {step.sizes.max():g}"
        yield f"iteration {i}: {change}; sizes {sizes}; cost {step.inertia:.6g}; {_count(step.moved, 'point')} moved"


def check_pairs(pairs: tuple[str, ...], names: tuple[str, ...]) -> None:
    """Make sure that there are fields to draw, before a long fit.

    Raises
    ------
    SettingsError
        A field is not one of the points', or is alone.
    """
    strange = [name for name in pairs if name not in names]
    if strange or len(pairs) == 1:
        said = f"{', '.join(strange)} is none of {', '.join(names)}" if strange else "one field is no pair"
        raise SettingsError(said, where="--plot-fields")


def pictures(
    path: Path, collected: Collected, fitted: Fitted, trials: Trials | None, pairs: tuple[str, ...], factors: plot.Reals
) -> Iterator[tuple[Path, str]]:
    """Draw a fit: the curves of a range of k, or points by cluster, and each iteration of its trace.

    Points are those that were fitted, multiplied by `factors` (d,); pictures are in the units before that.
    """
    if trials is not None:
        rows = trials.trials
        curves = [
            ("cost", [t.cost for t in rows]),
            ("simplified silhouette (higher is better)", [t.silhouette for t in rows]),
            ("Davies-Bouldin (lower is better)", [t.davies_bouldin for t in rows]),
            ("gap above even data (higher is better)", [t.gap for t in rows]),
        ]
        yield (
            path,
            plot.picture_of_ks([t.k for t in rows], curves, trials.suggested, f"suggested: {_suggestion(trials)}"),
        )
        return
    array = collected.array
    chosen = plot.sample_rows(len(array))
    points = pick(array, chosen).astype(np.float64) / factors
    after = [step.centroids for step in fitted.trace[1:]] + [fitted.centroids]
    steps = [(step.centroids, target) for step, target in zip(fitted.trace, after, strict=bool(fitted.trace))]
    for i, (centroids, target) in enumerate(steps[:MOST_PICTURES], 1):
        title = f"iteration {i}" + (f": {_point_list(centroids)}" if centroids.size <= _SMALL else "")
        labels = _nearest(points * factors, centroids * factors)
        picture = plot.picture_of_points(
            points, labels, centroids, collected.fields, pairs=pairs, towards=target, title=title
        )
        yield path.with_name(f"{path.stem}-{i}{path.suffix}"), picture
    title = f"{len(array):,} rows, k = {len(fitted.centroids)}, cost {fitted.inertia:.6g}"
    yield (
        path,
        plot.picture_of_points(
            points,
            _nearest(points * factors, fitted.centroids * factors),
            fitted.centroids,
            collected.fields,
            pairs=pairs,
            title=title,
        ),
    )


def _nearest(points: plot.Reals, centroids: plot.Reals) -> NDArray[np.int32]:
    """Label the few points of a picture."""
    labels, nearest = np.zeros(len(points), np.int32), np.full(len(points), math.inf)
    for j, centroid in enumerate(centroids):
        squares = ((points - centroid) ** 2).sum(axis=1)
        labels[squares < nearest] = j
        np.minimum(nearest, squares, out=nearest)
    return labels


def _suggestion(trials: Trials) -> str:
    return "no k" if trials.suggested is None else f"k = {trials.suggested}"


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


def _clusters_table(result: dict[str, Any], places: Sequence[int]) -> Table:
    table = Table("cluster", "size", "share", "spread")
    for column in table.columns:
        column.justify = "right"
    for j in places:
        fields.add_field(table, result["fields"][j])
    for c in result["clusters"][:_MOST_CLUSTERS]:
        values = (f"{c['centroid'][j]:.6g}" for j in places)
        table.add_row(str(c["id"]), f"{c['size']:,}", f"{c['share']:.1%}", f"{c['spread']:.6g}", *values)
    return table


def _point_list(centroids: plot.Reals) -> str:
    """Centroids as in the text-book: (3, 18) in one dimension, (1, 2) (3, 4) in more."""
    if centroids.shape[1] == 1:
        return "(" + ", ".join(f"{v:.6g}" for v in centroids[:, 0]) + ")"
    return " ".join("(" + ", ".join(f"{v:.6g}" for v in row) + ")" for row in centroids)


def _stopped(fitted: Fitted, settings: FitSettings) -> str:
    """Why the fit ended."""
    if fitted.stopped == "tol":
        return f"no centroid moved farther than {settings.tol:g}" if settings.tol else "no centroid moved"
    return "no label changed" if fitted.stopped == "labels" else f"the limit of {settings.max_iter} iterations"


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}" + ("" if n == 1 else "s")
