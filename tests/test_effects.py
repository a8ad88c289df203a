"""What makes a cluster different: against all of the data, where it is not known, and in a terminal of 80 columns."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from consumers import fields as shown_fields
from consumers import terminal
from consumers.cli import cli
from consumers.demo_view import View
from service_api import SPEC, Api, Writer
from store_checks import snapshot_of
from streamkm import OnlineKMeans
from streamkm.client import Centroids
from streamkm.effect_sizes import LIMIT, differences, most_distinctive
from streamkm.engine import compare_snapshot
from streamkm.engine.promotion import surrogate_points
from streamkm.models.weighted_rows import spreads
from streamkm.recompute.fitting import fit_points
from streamkm.state import ModelState
from streamkm.stores import MemoryStore, open_store

FIELDS = ("tells", "noise", "amount", "rating", "constant")


def world(seed=0, n=30_000):
    """Four clusters that one field tells apart; noise, a long tail, ties, and a column that never changes."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(4, n, p=[0.5, 0.3, 0.15, 0.05])
    columns = (
        np.array([0.0, 40.0, 80.0, 200.0])[labels] + rng.normal(0, 2.0, n),
        rng.normal(5.0, 3.0, n),
        rng.lognormal(0.5, 0.8, n) * np.array([1, 1, 3, 1])[labels],
        np.where(rng.random(n) < 0.8, 5, rng.integers(1, 6, n)) + 0.0,
        np.full(n, 0.1),
    )
    return np.column_stack(columns)


def of_all(points, labels, k):
    """Differences from all points, one cluster and one field at a time."""
    within = np.zeros(points.shape[1])
    for j in range(k):
        within += ((points[labels == j] - points[labels == j].mean(axis=0)) ** 2).sum(axis=0) / len(points)
    return np.array([(points[labels == j].mean(axis=0) - points.mean(axis=0)) / np.sqrt(within) for j in range(k)])


def learned(points, **settings):
    model = OnlineKMeans(4, outliers="keep", **settings)
    for batch in np.array_split(points, 12):
        model.learn_many(batch)
    return model, model.publish()


@pytest.mark.parametrize("scale", ["none", "standard"])
def test_differences_of_a_stream_are_those_of_all_its_points(scale):
    points = world()
    model, p = learned(points, scale=scale, seed=2)
    labels = np.searchsorted(np.sort(p.ids), model.predict_many(points))
    found = differences(p.centroids, p.weights, p.deviations)[np.argsort(p.ids)]
    with np.errstate(invalid="ignore", divide="ignore"):
        whole = of_all(points, labels, 4)
    np.testing.assert_allclose(found[:, :4], whole[:, :4], rtol=0.1, atol=0.1)
    assert (found[:, 4] == 0.0).all(), "a constant field tells nothing"
    if scale == "none":
        assert np.abs(found[:, 1]).max() < 0.2, "noise tells nothing"
        assert most_distinctive(found, 1) == [0]
    np.testing.assert_allclose(((p.deviations * p.factors) ** 2).sum(axis=1), p.spreads**2, rtol=1e-9)


@pytest.mark.parametrize(
    ("centroids", "weights", "deviations", "expected"),
    [
        ([[1.0], [3.0]], [1, 1], [[2.0], [2.0]], [[-0.5], [0.5]]),
        ([[0.0], [10.0]], [9, 1], [[1.0], [1.0]], [[-1.0], [9.0]]),  # not sqrt((1 - s) / s) = 3, whatever the field
        ([[1.0], [3.0]], [1, 3], [[0.0], [2.0]], [[-1.5 / np.sqrt(3)], [0.5 / np.sqrt(3)]]),
        ([[1.0], [3.0]], [1, 1], [[0.0], [0.0]], [[-LIMIT], [LIMIT]]),
        ([[0.1 + 1e-17], [0.1]], [3, 7], [[0.0], [0.0]], [[0.0], [0.0]]),
        ([[0.1 + 2e-17], [0.1 - 2e-17]], [3, 7], [[1e-18], [1e-18]], [[0.0], [0.0]]),
        ([[5.0, 1.0]], [1], [[1.0, 0.0]], [[0.0, 0.0]]),
        ([[1.0], [3.0]], [1, 1], None, [[np.nan], [np.nan]]),
        ([[1.0], [3.0]], [0, 0], [[1.0], [1.0]], [[np.nan], [np.nan]]),
        ([[1.0], [3.0]], [1, 1], [[np.nan], [1.0]], [[np.nan], [np.nan]]),
        ([[1.0], [3.0]], [1, 1], [[np.inf], [1.0]], [[np.nan], [np.nan]]),
    ],
)
def test_differences_where_they_are_easy_to_see_and_where_there_are_none(centroids, weights, deviations, expected):
    known = None if deviations is None else np.array(deviations)
    np.testing.assert_allclose(differences(np.array(centroids), np.array(weights, float), known), expected, rtol=1e-12)


def test_the_fields_that_differ_most_are_chosen_and_unknown_ones_come_last():
    found = np.array([[0.1, -7.0, np.nan, 2.0], [0.2, 1.0, np.nan, -3.0]])
    assert most_distinctive(found, 2) == [1, 3]
    assert most_distinctive(found, 4) == [0, 1, 2, 3]
    assert most_distinctive(np.full((2, 3), np.nan), 2) == [0, 1]
    assert most_distinctive(found, 0) == most_distinctive(np.empty((0, 0)), 3) == []


def test_a_state_keeps_what_was_published_and_an_older_one_has_nothing_to_keep():
    model, p = learned(world(n=4000))
    state = model.state()
    again = OnlineKMeans.from_state(state).published_
    assert again.deviations.tobytes() == p.deviations.tobytes()
    arrays = {name: a for name, a in state.arrays.items() if name != "published_deviations"}
    assert (
        OnlineKMeans.from_state(ModelState(state.kind, state.version, state.params, arrays)).published_.deviations
        is None
    )


def test_an_exact_fit_knows_them_of_all_points_and_of_weighted_ones():
    points = world(n=5000)
    weights = np.random.default_rng(1).integers(0, 3, len(points)).astype(float)
    for given in (None, weights):
        fitted = fit_points(points, n_clusters=4, weights=given)
        labels, distances = fitted.assign(0, len(points))
        found = fitted.deviations()
        w = np.ones(len(points)) if given is None else given
        np.testing.assert_allclose((found**2).sum(axis=1), spreads(labels, distances**2, w, 4) ** 2, rtol=1e-9)
        for j in range(4):
            own = labels == j
            variance = np.average((points[own] - fitted.centroids[j]) ** 2, axis=0, weights=w[own])
            np.testing.assert_allclose(found[j], np.sqrt(variance), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("known", [True, False])
def test_a_model_that_goes_on_from_a_snapshot_knows_them_if_that_does_and_says_nothing_else(known):
    points = world(n=4000)
    _, p = learned(points)
    same = {name: getattr(p, name) for name in ("ids", "centroids", "weights", "spreads", "born", "factors")}
    same |= {"deviations": p.deviations if known else None, "n_points": p.n_seen}
    snapshot = replace(snapshot_of(1), fields=FIELDS, **same)
    rows, weights = surrogate_points(snapshot)
    again = OnlineKMeans.from_snapshot({"n_clusters": 4}, snapshot, rows, weights)
    np.testing.assert_allclose(weights.sum(), p.weights.sum())
    for published in (again.publish(as_is=True), again.publish()):
        assert (published.deviations is not None) == known
        if known:
            np.testing.assert_allclose(published.deviations, p.deviations, rtol=0.15, atol=1e-12)
            np.testing.assert_allclose(published.spreads, p.spreads, rtol=0.15)
    assert OnlineKMeans.from_state(again.state())._clusters._spreads_unknown != known


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda known: known, ""),
        (lambda _: None, ""),  # an older version did not publish them
        (lambda known: known * 1.5, "deviations differ (largest difference "),
        (lambda known: np.nextafter(known, np.inf), "deviations differ (largest difference "),
        (lambda known: np.nextafter(known, -np.inf), "deviations differ (largest difference "),
    ],
)
def test_verify_compares_them_where_they_were_published(change, said):
    model, p = learned(world(n=3000))
    same = {name: getattr(p, name) for name in ("ids", "centroids", "weights", "spreads", "born", "factors", "events")}
    snapshot = replace(snapshot_of(1), fields=FIELDS, n_points=p.n_seen, deviations=change(p.deviations), **same)
    verdict = compare_snapshot(snapshot, model)
    assert bool(verdict) == (said == "")
    assert [d[: len(said)] for d in verdict.differences] == ([said] if said else [])


WIDE = tuple(f"shipping.address.number{i}" for i in range(40))


@pytest.fixture
def wide(tmp_path):
    """A store with a model of 40 fields whose names begin alike; the 33rd tells its clusters apart, then the 7th."""
    centroids = np.zeros((3, 40))
    centroids[:, 33], centroids[:, 7] = [1e6, -2e6, 3e6], [1.0, 5.0, 2.0]
    url = f"sqlite:///{tmp_path / 's.db'}"
    with contextlib.closing(open_store(url)) as store:
        writer = Writer(store, replace(SPEC, fields=WIDE))
        writer.commit(points=120_000_000, centroids=centroids, deviations=np.ones((3, 40)))
        writer.commit(points=120_000_000, centroids=centroids)
    return url


@pytest.mark.parametrize(
    "command",
    [
        ("inspect", "orders", "--snapshot", "1"),
        ("inspect", "orders"),
        ("models",),
        ("snapshots", "orders"),
        ("fit", "wide.csv", "--k", "3"),
    ],
    ids=" ".join,
)
def test_a_table_fits_into_80_columns_and_cuts_no_value(wide, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    rows = np.zeros((300, 40))
    rows[:, 33], rows[:, 7] = np.repeat([1e6, -2e6, 3e6], 100), np.tile([1.0, 5.0, 2.0], 100)
    rows += np.random.default_rng(0).normal(size=rows.shape)
    np.savetxt("wide.csv", rows, delimiter=",", header=",".join(WIDE), comments="")
    store = () if command[0] == "fit" else ("--store", wide)
    if command[0] == "fit":
        monkeypatch.setattr("consumers.fit_view._PLAIN_WIDTH", 80)
    result = CliRunner().invoke(cli, [*command, *store], env={"COLUMNS": "80"}, catch_exceptions=False)
    table = [line for line in result.output.splitlines() if line and line[0] in "┏┃┡│├└"]
    assert table, result.output
    assert max(map(len, table)) <= 80
    assert not [line for line in table if "…" in line], result.output
    if "--snapshot" in command or command[0] == "fit":
        assert "33" in result.output
        assert "of 40 fields, those in which clusters differ most" in result.output
        assert f"{WIDE[33]} " in result.output
    elif command[0] == "inspect":
        assert "of 40 fields, the first ones" in result.output
        assert "are unknown" in result.output


def test_json_has_differences_and_null_if_unknown(wide):
    def asked(number):
        result = CliRunner().invoke(cli, ["inspect", "orders", "--snapshot", str(number), "--store", wide, "--json"])
        return json.loads(result.output)["snapshot"]["clusters"]

    known, unknown = asked(1), asked(2)
    assert [c["deviations"] for c in known] == np.ones((3, 40)).tolist()
    assert known[0]["differences"][33] == LIMIT
    assert known[1]["differences"][7] == pytest.approx(5.0 - 8.0 / 3.0)
    assert unknown[0]["deviations"] == unknown[0]["differences"] == [None] * 40


def test_the_service_has_differences_and_the_demo_shows_the_fields_that_differ():
    store = MemoryStore()
    writer = Writer(store, replace(SPEC, fields=WIDE))
    centroids = np.zeros((3, 40))
    centroids[:, 33] = [1.0, 2.0, 6.0]
    writer.commit(centroids=centroids, deviations=np.full((3, 40), 2.0))
    answer = Api(store).get("/v1/models/orders/centroids").json()
    assert [c["differences"][33] for c in answer["clusters"]] == [-1.0, -0.5, 1.5]
    assert [c["deviations"][0] for c in answer["clusters"]] == [2.0] * 3
    writer.commit(centroids=centroids)
    unknown = Api(store).get("/v1/models/orders/centroids").json()["clusters"][0]
    assert unknown["differences"] == unknown["deviations"] == [None] * 40
    view = View(("http://localhost",), "t")
    view.show_centroids(Centroids.of(answer))
    console = terminal.console(width=80, file=io.StringIO())
    console.print(view.picture(80))
    shown = console.file.getvalue()
    assert "of 40 fields, those in which clusters differ most" in shown
    assert "…" not in shown
    assert "ber33" in shown


def test_a_name_that_is_wider_than_the_terminal_is_folded():
    table, cut = shown_fields.fit_fields(lambda places: _table(["x" * 200, "y"], places), np.zeros((1, 2)), 40)
    table.add_row("0", "2" * 200)
    console = terminal.console(width=40, file=io.StringIO())
    console.print(table)
    assert console.file.getvalue().count("x") == 200
    assert console.file.getvalue().count("2") == 200
    assert "…" not in console.file.getvalue()
    assert cut == ""


def _table(names, places):
    from rich.table import Table

    table = Table("cluster")
    for j in places:
        shown_fields.add_field(table, names[j])
    table.add_row("0", *("1.5" for _ in places))
    return table
