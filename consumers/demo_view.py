"""The view of ``streamkm demo``: a live table on a terminal, lines elsewhere."""

from __future__ import annotations

import io
import re
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from consumers import fields, terminal
from streamkm.client import Centroids, Model
from streamkm.palette import COLOURS

BLOCKS = "▁▂▃▄▅▆▇█"
HISTORY = 40
"""Values of a sparkline."""
WIDTH = 118
"""Characters of a line of the picture in the README."""
FRAME = 4
"""Characters of the frame of a panel."""


def sparkline(values: list[float]) -> str:
    """Values as a line of blocks, scaled to the largest one.

    >>> sparkline([0, 1, 2, 4])
    '▁▃▅█'
    """
    top = max(values, default=0.0)
    return "".join(BLOCKS[min(7, round(7 * v / top))] if top > 0 else BLOCKS[0] for v in values)


@dataclass
class View:
    """State of the view, updated with responses of the service.

    Attributes
    ----------
    answered
        Number of responses by kind.
    """

    urls: tuple[str, ...]
    topic: str
    elapsed: float = 0.0
    points: int = 0
    lag: int | None = None
    bad: int = 0
    status: str = "starting"
    snapshot: int = 0
    centroids: Centroids | None = None
    rates: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY))
    inertias: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY))
    shares: dict[int, deque[float]] = field(default_factory=lambda: defaultdict(lambda: deque(maxlen=HISTORY)))
    answered: dict[str, int] = field(default_factory=lambda: {"centroids": 0, "predict": 0})
    _last: tuple[float, int] = (0.0, 0)

    def show_model(self, model: Model, elapsed: float) -> None:
        """Update status, counters and rate."""
        self.elapsed, self.status = elapsed, model.status
        self.points, self.lag, self.bad = model.points, model.lag, model.bad_records
        then, before = self._last
        if elapsed - then >= 1.0:
            self.rates.append((self.points - before) / (elapsed - then))
            self._last = (elapsed, self.points)

    def show_centroids(self, centroids: Centroids) -> None:
        """Update the clusters."""
        self.answered["centroids"] += 1
        if centroids.snapshot == self.snapshot:
            return
        self.snapshot, self.centroids = centroids.snapshot, centroids
        if centroids.inertia is not None:
            self.inertias.append(centroids.inertia)
        for cluster, share in zip(centroids.ids.tolist(), np.nan_to_num(centroids.shares).tolist(), strict=True):
            self.shares[cluster].append(share)

    def _order(self) -> list[int]:
        """Indices of the clusters, largest first."""
        if self.centroids is None:
            return []
        order: list[int] = np.argsort(-np.nan_to_num(self.centroids.shares), kind="stable").tolist()
        return order

    def line(self) -> str:
        """The view as one line."""
        rate = self.rates[-1] if self.rates else 0.0
        inertia = f"{self.inertias[-1]:.1f}" if self.inertias else "-"
        lag = "?" if self.lag is None else f"{self.lag:,}"
        shares = "-"
        if self.centroids is not None:
            c = self.centroids
            shares = " ".join(f"{c.ids[i]}:{np.nan_to_num(c.shares[i]):.0%}" for i in self._order())
        return (
            f"{self.elapsed:5.1f} s  {self.status:<10} {self.points:>9,} points  {rate:>7,.0f}/s  lag {lag:>6}  "
            f"snapshot {self.snapshot:>3}  inertia {inertia:>8}  shares {shares}"
        )

    def picture(self, width: int = WIDTH) -> RenderableType:
        """The view as a panel of `width` characters per line."""
        head = Table.grid(padding=(0, 3))
        lag = "?" if self.lag is None else f"{self.lag:,}"
        head.add_row(
            Text.assemble(_bold(f"{self.points:,}"), " points"),
            Text.assemble(_bold(f"{self.rates[-1] if self.rates else 0:,.0f}"), " points/s"),
            Text.assemble("lag ", _bold(lag)), Text.assemble("bad ", _bold(f"{self.bad:,}")),
            Text.assemble("snapshot ", _bold(str(self.snapshot))), Text.assemble(_bold(self.status)),
        )  # fmt: skip
        trends = Table.grid(padding=(0, 2))
        trends.add_row("points/s", Text(sparkline(list(self.rates)), style="#009E73"))
        inertia = f"{self.inertias[-1]:,.1f}" if self.inertias else "-"
        trends.add_row("inertia/point", Text(sparkline(list(self.inertias)), style="#E69F00"), inertia)
        urls = Text("\n".join(self.urls), style="dim")
        title = Text(f"streamkm demo: NASA shuttle sensors, topic {self.topic}, {self.elapsed:.0f} s")
        found = np.empty((0, 0)) if self.centroids is None else self.centroids.differences
        table, omitted = fields.fit_fields(self._table, found, width - FRAME)
        below = [Text(omitted, style="dim")] if omitted else []
        return Panel(Group(head, "", trends, "", table, *below, "", urls), title=title, border_style="#56B4E9")

    def _table(self, columns: Sequence[int]) -> Table:
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("cluster", justify="right")
        table.add_column("share", justify="right")
        table.add_column("")
        table.add_column("trend")
        table.add_column("spread", justify="right")
        if self.centroids is None:
            table.add_row("", "", "", "warming up")
            return table
        c = self.centroids
        for j in columns:
            fields.add_field(table, c.fields[j])
        for i in self._order():
            cluster, share = int(c.ids[i]), float(np.nan_to_num(c.shares[i]))
            colour = COLOURS[cluster % len(COLOURS)]
            table.add_row(
                Text(f"● {cluster}", style=colour), f"{share:.1%}",
                Text("━" * max(1, round(24 * share)), style=colour),
                Text(sparkline(list(self.shares[cluster])[-16:]), style=colour),
                f"{np.nan_to_num(c.spreads[i]):.1f}",
                *("-" if np.isnan(c.centroids[i, j]) else f"{c.centroids[i, j]:.1f}" for j in columns),
            )  # fmt: skip
        return table


def _bold(text: str) -> tuple[str, str]:
    return text, "bold"


def save_picture(view: View, path: str) -> None:
    """Write the view to an SVG file."""
    console = terminal.console(record=True, width=WIDTH, force_terminal=True, file=io.StringIO())
    console.print(view.picture())
    svg = console.export_svg(title="streamkm demo")
    # rich references web fonts; the picture must not load anything.
    Path(path).write_text(re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL))
