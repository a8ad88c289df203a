"""What ``streamkm demo`` shows: a live table on a terminal, lines elsewhere."""

from __future__ import annotations

import io
import re
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from consumers import fields, terminal
from streamkm.palette import COLOURS

BLOCKS = "▁▂▃▄▅▆▇█"
HISTORY = 40
WIDTH, FRAME = 118, 4
"""Characters of a line of the picture in the README, and those of a panel's frame."""


def sparkline(values: list[float]) -> str:
    """Values as a line of blocks, the largest one full.

    >>> sparkline([0, 1, 2, 4])
    '▁▃▅█'
    """
    top = max(values, default=0.0)
    return "".join(BLOCKS[min(7, round(7 * v / top))] if top > 0 else BLOCKS[0] for v in values)


@dataclass
class View:
    """What was seen so far, fed with answers of the service.

    Attributes
    ----------
    answered
        Requests that the service answered, by kind.
    """

    urls: tuple[str, ...]
    topic: str
    elapsed: float = 0.0
    points: int = 0
    lag: int | None = None
    bad: int = 0
    status: str = "starting"
    snapshot: int = 0
    fields: tuple[str, ...] = ()
    clusters: list[dict[str, Any]] = field(default_factory=list)
    rates: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY))
    inertias: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY))
    shares: dict[int, deque[float]] = field(default_factory=lambda: defaultdict(lambda: deque(maxlen=HISTORY)))
    answered: dict[str, int] = field(default_factory=lambda: {"centroids": 0, "predict": 0})
    _last: tuple[float, int] = (0.0, 0)

    def model(self, answer: dict[str, Any], elapsed: float) -> None:
        """Take in an answer of ``/v1/models/{m}``."""
        self.elapsed, self.status = elapsed, answer["status"]
        self.points, self.lag, self.bad = answer["points"], answer["lag"], answer["bad"]
        then, before = self._last
        if elapsed - then >= 1.0:
            self.rates.append((self.points - before) / (elapsed - then))
            self._last = (elapsed, self.points)

    def centroids(self, answer: dict[str, Any]) -> None:
        """Take in an answer of ``/v1/models/{m}/centroids``."""
        self.answered["centroids"] += 1
        if answer["snapshot"]["id"] == self.snapshot:
            return
        self.snapshot, self.fields = answer["snapshot"]["id"], tuple(answer["fields"])
        self.clusters = sorted(answer["clusters"], key=lambda c: -(c["share"] or 0.0))
        if answer["snapshot"]["inertia"] is not None:
            self.inertias.append(answer["snapshot"]["inertia"])
        for c in self.clusters:
            self.shares[c["id"]].append(c["share"] or 0.0)

    def line(self) -> str:
        """The moment as one line."""
        rate = self.rates[-1] if self.rates else 0.0
        inertia = f"{self.inertias[-1]:.1f}" if self.inertias else "-"
        shares = " ".join(f"{c['id']}:{c['share'] or 0:.0%}" for c in self.clusters)
        lag = "?" if self.lag is None else f"{self.lag:,}"
        return (
            f"{self.elapsed:5.1f} s  {self.status:<10} {self.points:>9,} points  {rate:>7,.0f}/s  lag {lag:>6}  "
            f"snapshot {self.snapshot:>3}  inertia {inertia:>8}  shares {shares or '-'}"
        )

    def picture(self, width: int = WIDTH) -> RenderableType:
        """The moment as a panel, of so many characters a line."""
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
        found = np.array([c["differences"] for c in self.clusters], np.float64).reshape(-1, len(self.fields))
        table, cut = fields.fit_fields(self._table, found, width - FRAME)
        below = [Text(cut, style="dim")] if cut else []
        return Panel(Group(head, "", trends, "", table, *below, "", urls), title=title, border_style="#56B4E9")

    def _table(self, places: Sequence[int]) -> Table:
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("cluster", justify="right")
        table.add_column("share", justify="right")
        table.add_column("")
        table.add_column("trend")
        table.add_column("spread", justify="right")
        for j in places:
            fields.add_field(table, self.fields[j])
        for c in self.clusters:
            colour, share = COLOURS[c["id"] % len(COLOURS)], c["share"] or 0.0
            table.add_row(
                Text(f"● {c['id']}", style=colour), f"{share:.1%}", Text("━" * max(1, round(24 * share)), style=colour),
                Text(sparkline(list(self.shares[c["id"]])[-16:]), style=colour), f"{c['spread'] or 0:.1f}",
                *("-" if c["values"][j] is None else f"{c['values'][j]:.1f}" for j in places),
            )  # fmt: skip
        if not self.clusters:
            table.add_row("", "", "", "warming up")
        return table


def _bold(text: str) -> tuple[str, str]:
    return text, "bold"


def save_picture(view: View, path: str) -> None:
    """Write the view as an SVG: the picture in the README."""
    console = terminal.console(record=True, width=WIDTH, force_terminal=True, file=io.StringIO())
    console.print(view.picture())
    svg = console.export_svg(title="streamkm demo")
    # rich names web fonts; the picture has to stand alone.
    Path(path).write_text(re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL))
