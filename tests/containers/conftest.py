from pathlib import Path
from urllib.parse import quote

import pytest

from grafana import queries

RARE = ("bad: ", "error: ", "alarm: ", "{{kind}}")
"""What a healthy stream may have nothing of: bad records, errors, alarms, events of clusters."""


@pytest.fixture(scope="session")
def dashboard_queries() -> list[tuple[str, str]]:
    """Title and PromQL of all that the dashboard shows of a healthy stream, ready for a URL."""
    found = queries(Path(__file__).parents[2] / "compose" / "grafana" / "dashboards" / "streamkm.json")
    return [(q.title, quote(q.promql.replace("$model", "shuttle"))) for q in found if not q.legend.startswith(RARE)]
