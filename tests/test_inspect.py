"""What the terminal shows of a store."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

from consumers.inspect import evaluation_lines, events, inspect, models, snapshots
from service_api import Writer
from store_checks import snapshot_of
from streamkm.state import ModelEvent
from streamkm.stores import open_store

DETAIL = {
    "evaluation": {"silhouette": 0.71, "staleness": 0.0},
    "outliers": 1234,
    "k": {"running": 2, "suggested": 5, "reason": "the gap is largest"},
}


@pytest.fixture
def run(tmp_path):
    """Runs a command on a store with three snapshots, the second of which tells events."""
    url = f"sqlite:///{tmp_path / 's.db'}"
    with contextlib.closing(open_store(url)) as store:
        writer = Writer(store)
        writer.commit(points=100)
        writer.commit(points=50, events=(ModelEvent("split", (4,), (4, 9)), ModelEvent("birth", (), (7,))))
        writer.commit(points=50, detail=DETAIL)

    def run(command, *arguments):
        result = CliRunner().invoke(command, [*arguments, "--store", url], env={"COLUMNS": "160"})
        assert result.exit_code == 0, result.output
        return result.output

    return run


def test_a_model_shows_its_clusters_their_age_and_how_good_they_are(run):
    out = run(inspect, "orders")
    assert "200 points" in out
    assert "silhouette 0.710, 1,234 outliers so far" in out
    assert "suggested number of clusters: 5 (k is 2): the gap is largest" in out
    assert json.loads(run(inspect, "orders", "--json"))["snapshot"]["clusters"][1]["born_at_points"] == 1


def test_where_no_number_is_suggested_it_says_none_and_why():
    k = {"running": 2, "suggested": None, "reason": "no clear number: the gap says 7"}
    (line,) = evaluation_lines(replace(snapshot_of(1), detail={"k": k}))
    assert line == "suggested number of clusters: none (k is 2): no clear number: the gap says 7"


def test_a_snapshot_shows_the_events_before_it(run):
    out = run(inspect, "orders", "--snapshot", "2")
    assert "since the snapshot before: cluster 4 split into 4, 9" in out


def test_events_are_listed_with_their_snapshots(run):
    out = run(events, "orders")
    assert "cluster 4 split into 4, 9" in out
    assert "cluster 7 was born" in out
    answer = json.loads(run(events, "orders", "--json"))
    (found,) = answer["snapshots"]
    assert (found["id"], answer["next"]) == (2, None)
    assert found["events"][1] == {"kind": "birth", "before": [], "after": [7], "detail": {}}


def test_a_quiet_model_has_no_events(tmp_path):
    url = f"sqlite:///{tmp_path / 's.db'}"
    with contextlib.closing(open_store(url)) as store:
        Writer(store).commit()
    result = CliRunner().invoke(events, ["orders", "--store", url])
    assert (result.exit_code, result.output) == (0, "no events yet\n")


def test_lists_show_models_and_snapshots(run):
    assert "orders" in run(models)
    answer = json.loads(run(snapshots, "orders", "--json"))
    assert ([s["id"] for s in answer["snapshots"]], answer["next"]) == ([3, 2, 1], None)
    answer = json.loads(run(snapshots, "orders", "--json", "--limit", "2"))
    assert ([s["id"] for s in answer["snapshots"]], answer["next"]) == ([3, 2], 2)
    assert "interval" in run(snapshots, "orders")
