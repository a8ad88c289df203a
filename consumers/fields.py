"""Which fields of the clusters a terminal has room for, and what makes each cluster different."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from consumers import terminal
from streamkm.effects import LIMIT, telling

Reals = NDArray[np.float64]

NAME = 16
"""Characters of a field's name on one line of a table's head; longer ones take several."""
_TOLD, _LEAST = 3, 0.5
"""Fields that are told of a cluster, and how much it has to differ in them."""
_ENDLESS = 100_000


def add_field(table: Table, name: str) -> None:
    """Add a column of numbers whose head is the whole name of a field."""
    table.add_column(name, justify="right", max_width=None if len(name) <= NAME else NAME)


def listed(names: Sequence[str], width: int) -> str:
    """Names as ``--fields`` takes them, one with a comma in quotes: the first ones that fit into a width, and a count.

    >>> listed(["a", "b,c"], 80), listed([f"sensor_{i}" for i in range(40)], 24)
    ('a, "b,c"', 'sensor_0, sensor_1 and 38 more (--json has all)')
    """
    quoted = [f'"{name}"' if "," in name else name for name in names]
    ends = np.cumsum([len(name) + 2 for name in quoted])
    shown = max(1, int(np.searchsorted(ends, width, side="right")))
    if shown >= len(quoted):
        return ", ".join(quoted)
    return f"{', '.join(quoted[:shown])} and {len(quoted) - shown} more (--json has all)"


def fitted(build: Callable[[Sequence[int]], Table], found: Reals, width: int) -> tuple[Table, str]:
    """The table with as many fields as the width has room for: those that differ most, and at least one.

    Parameters
    ----------
    build
        Makes the table with the fields at some places.
    found
        (k, d): how much clusters differ by field, from `streamkm.effects.differences`.
    width
        Characters of a line.

    Returns
    -------
    table
        It, its fields in their order.
    cut
        What is left out, a sentence; empty when nothing is.
    """
    d = found.shape[1]
    endless = terminal.console(width=_ENDLESS)
    shown = min(d, 1)
    best = build(telling(found, shown))
    while shown < d:
        more = build(telling(found, shown + 1))
        if endless.measure(more).maximum > width:
            break
        best, shown = more, shown + 1
    if shown == d:
        return best, ""
    which = "those in which clusters differ most" if np.isfinite(found).any() else "the first ones"
    return best, f"{shown} of {d} fields, {which}"


def told(names: Sequence[str], found: Reals) -> str:
    """In which fields one cluster differs most from all points, largest first.

    >>> told(["a", "b", "c", "d"], np.array([0.1, -4.0, 2.25, np.nan]))
    'b -4, c +2.25'
    """
    size = np.nan_to_num(np.abs(found), nan=-1.0)
    largest = [j for j in np.argsort(-size, kind="stable")[:_TOLD].tolist() if size[j] >= _LEAST]
    return ", ".join(f"{names[j]} {_signed(float(found[j]))}" for j in largest)


def _signed(x: float) -> str:
    return f"{'more than ' if abs(x) >= LIMIT else ''}{x:+.3g}"
