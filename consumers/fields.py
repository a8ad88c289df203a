"""The columns of fields that fit a terminal, and the fields in which a cluster differs most."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from consumers import terminal
from streamkm.effect_sizes import LIMIT, most_distinctive

Reals = NDArray[np.float64]

MAX_NAME_CHARS = 16
"""Characters of a field's name on one line of the head of a table; longer names are wrapped."""
_MAX_DESCRIBED_FIELDS = 3
_MIN_DIFFERENCE = 0.5
"""Smallest difference that is described, in standard deviations."""
_UNLIMITED = 100_000
"""Width of a console that truncates nothing."""


def add_field(table: Table, name: str) -> None:
    """Add a column of numbers whose head is the whole name of a field."""
    table.add_column(name, justify="right", max_width=None if len(name) <= MAX_NAME_CHARS else MAX_NAME_CHARS)


def format_field_list(names: Sequence[str], max_chars: int) -> str:
    """Names in the form of ``--fields`` (a name with a comma is quoted), as many as fit, and the number of the others.

    >>> format_field_list(["a", "b,c"], 80), format_field_list([f"sensor_{i}" for i in range(40)], 24)
    ('a, "b,c"', 'sensor_0, sensor_1 and 38 more (--json has all)')
    """
    quoted = [f'"{name}"' if "," in name else name for name in names]
    ends = np.cumsum([len(name) + 2 for name in quoted])
    shown = max(1, int(np.searchsorted(ends, max_chars, side="right")))
    if shown >= len(quoted):
        return ", ".join(quoted)
    return f"{', '.join(quoted[:shown])} and {len(quoted) - shown} more (--json has all)"


def fit_fields(build: Callable[[Sequence[int]], Table], found: Reals, width: int) -> tuple[Table, str]:
    """The table with as many fields as fit: those in which clusters differ most, and at least one.

    Parameters
    ----------
    build
        Makes the table with the fields of some indices.
    found
        (k, d) differences of clusters by field, from `streamkm.effect_sizes.differences`.
    width
        Characters of a line.

    Returns
    -------
    table
        The table, its fields in their order.
    omitted
        Which fields are shown, if not all; else empty.
    """
    d = found.shape[1]
    unlimited = terminal.console(width=_UNLIMITED)
    shown = min(d, 1)
    best = build(most_distinctive(found, shown))
    while shown < d:
        wider = build(most_distinctive(found, shown + 1))
        if unlimited.measure(wider).maximum > width:
            break
        best, shown = wider, shown + 1
    if shown == d:
        return best, ""
    selection = "those in which clusters differ most" if np.isfinite(found).any() else "the first ones"
    return best, f"{shown} of {d} fields, {selection}"


def describe_differences(names: Sequence[str], found: Reals) -> str:
    """The fields in which a cluster differs most from all points, largest difference first.

    Parameters
    ----------
    names
        Names of the d fields.
    found
        (d,) differences of the cluster.

    Examples
    --------
    >>> describe_differences(["a", "b", "c", "d"], np.array([0.1, -4.0, 2.25, np.nan]))
    'b -4, c +2.25'
    """
    size = np.nan_to_num(np.abs(found), nan=-1.0)
    largest = [
        j for j in np.argsort(-size, kind="stable")[:_MAX_DESCRIBED_FIELDS].tolist() if size[j] >= _MIN_DIFFERENCE
    ]
    return ", ".join(f"{names[j]} {_signed(float(found[j]))}" for j in largest)


def _signed(x: float) -> str:
    return f"{'more than ' if abs(x) >= LIMIT else ''}{x:+.3g}"
