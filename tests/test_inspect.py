"""What the terminal shows of a store."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

from consumers.inspect import events, inspect, judgement, models, snapshots
from service_api import Writer
from store_checks import snapshot_of
from streamkm.state import Event
from streamkm.stores import open_store

DETAIL = {
    "evaluation": {"silhouette": 0.71, "staleness": 0.0},
    "outliers": 1234,
    "k": {"running": 2, "suggested": 5, "reason": "the gap is largest"},
}


@pytest.fixture
def ask(tmp_path):
    """Runs a command on a store with three snapshots, the second of which tells events."""
    url = f"sqlite:///{tmp_path / 's.db'}"
    with contextlib.closing(open_store(url)) as store:
        writer = Writer(store)
        writer.commit(points=100)
        writer.commit(points=50, events=(Event("split", (4,), (4, 9)), Event("birth", (), (7,))))
        writer.commit(points=50, detail=DETAIL)

    def run(command, *arguments):
        result = CliRunner().invoke(command, [*arguments, "--store", url], env={"COLUMNS": "160"})
        assert result.exit_code == 0, result.output
        return result.output

    return run


def test_a_model_shows_its_clusters_their_age_and_how_good_they_are(ask):
    out = ask(inspect, "orders")
    assert "200 points" in out
    assert "silhouette 0.710, 1,234 outliers so far" in out
    assert "suggested number of clusters: 5 (k is 2): the gap is largest" in out
    assert json.loads(ask(inspect, "orders", "--json"))["snapshot"]["born"] == [0, 1]


def test_where_no_number_is_suggested_it_says_none_and_why():
    k = {"running": 2, "suggested": None, "reason": "no clear number: the gap says 7"}
    (line,) = judgement(replace(snapshot_of(1), detail={"k": k}))
    assert line == "suggested number of clusters: none (k is 2): no clear number: the gap says 7"


def test_a_snapshot_tells_what_happened_before_it(ask):
    out = ask(inspect, "orders", "--snapshot", "2")
    assert "since the snapshot before: cluster 4 split into 4, 9" in out


def test_events_are_listed_with_their_snapshots(ask):
    out = ask(events, "orders")
    assert "cluster 4 split into 4, 9" in out
    assert "cluster 7 was born" in out
    (found,) = json.loads(ask(events, "orders", "--json"))
    assert (found["id"], found["points"]) == (2, 150)
    assert found["events"][1] == {"kind": "birth", "before": [], "after": [7], "detail": {}}


def test_a_quiet_model_has_no_events(tmp_path):
    url = f"sqlite:///{tmp_path / 's.db'}"
    with contextlib.closing(open_store(url)) as store:
        Writer(store).commit()
    result = CliRunner().invoke(events, ["orders", "--store", url])
    assert (result.exit_code, result.output) == (0, "nothing has happened to the clusters yet\n")


def test_lists_show_models_and_snapshots(ask):
    assert "orders" in ask(models)
    assert [s["id"] for s in json.loads(ask(snapshots, "orders", "--json"))] == [3, 2, 1]
    assert "interval" in ask(snapshots, "orders")
