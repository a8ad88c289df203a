"""What a Grafana dashboard asks Prometheus."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple


class Query(NamedTuple):
    """One line of a panel."""

    title: str
    legend: str
    promql: str


def queries(dashboard: Path) -> list[Query]:
    """All queries of a dashboard."""
    panels = json.loads(dashboard.read_text())["panels"]
    return [Query(p["title"], t["legendFormat"], t["expr"]) for p in panels for t in p["targets"]]
