"""``--k 2..20``, plots, and the files that remain after an interrupted fit."""

from __future__ import annotations

import json
import re
import signal
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import davies_bouldin_score

import processes
from streamkm import ExactKMeans
from streamkm.connectors.files.source import expand
from streamkm.errors import SettingsError
from streamkm.recompute import plot
from streamkm.recompute.collect import CollectedPoints, TableFiles, collect
from streamkm.recompute.k_range import MAX_K, fit_range
from streamkm.recompute.outputs import write_labels
from streamkm.recompute.pointfile import PointFile
from test_fit import _logs_as_they_are, blobs, fit, frame_of  # noqa: F401  # the first is a fixture
from waiting import PATIENCE
from worlds import WORLDS

SVG = "{http://www.w3.org/2000/svg}"


def collected(X, weights=None):
    names = tuple("abcdefgh"[: X.shape[1]])
    return CollectedPoints(np.ascontiguousarray(X), weights, names, len(X), np.empty(0, np.int64), ())


@pytest.mark.parametrize("k", [2, 5, 9])
def test_the_k_that_the_data_were_made_with_is_suggested_and_fitted_best(k):
    X = blobs(1, k, 3, 6000)
    found = fit_range(collected(X), 2, 12)
    assert found.suggested == k, found.reason
    assert found.sampled_rows == 4000
    assert len(found.fitted.centroids) == k
    assert found.trials[k - 2].cost == pytest.approx(ExactKMeans(k, n_init=20, random_state=0).fit(X).inertia_)


@pytest.mark.parametrize("seed", range(3))
def test_cost_never_rises_with_k_and_each_is_a_fixed_point_of_the_exact_algorithm(seed):
    X = np.random.default_rng(seed).uniform(size=(5000, 2))
    found = fit_range(collected(X), 1, 10, seed=seed)
    costs = [t.cost for t in found.trials]
    assert costs == sorted(costs, reverse=True)
    for t in found.trials:
        again = ExactKMeans(t.k, init=t.centroids).fit(X)
        assert again.inertia_ == pytest.approx(t.cost, rel=1e-12)
        np.testing.assert_allclose(again.cluster_centers_, t.centroids, rtol=1e-9)


def test_silhouette_and_davies_bouldin_are_those_of_all_rows(monkeypatch):
    monkeypatch.setattr("streamkm.recompute.k_range._BLOCK", 1000)
    X = blobs(2, 4, 3, 5000) + 1e6
    found = fit_range(collected(X), 2, 6)
    for t in found.trials:
        distances = np.sort(np.linalg.norm(X[:, np.newaxis] - t.centroids, axis=2), axis=1)
        assert t.silhouette == pytest.approx((1 - distances[:, 0] / distances[:, 1]).mean(), rel=1e-6)
        labels = ExactKMeans(t.k, init=t.centroids).fit(X).labels_
        assert t.davies_bouldin == pytest.approx(davies_bouldin_score(X - X.mean(axis=0), labels), rel=1e-6)


def test_a_weight_of_two_is_two_rows():
    X = blobs(3, 4, 2, 800)
    weighted = fit_range(collected(X, np.full(800, 2.0)), 2, 6)
    repeated = fit_range(collected(np.repeat(X, 2, axis=0)), 2, 6)
    assert weighted.suggested == repeated.suggested == 4
    for one, two in zip(weighted.trials, repeated.trials, strict=True):
        assert one.cost == pytest.approx(two.cost, rel=1e-3)
        assert one.silhouette == pytest.approx(two.silhouette, abs=1e-3)


def test_out_of_core_gives_the_same_trials(tmp_path):
    X = blobs(4, 3, 4, 3000)
    frame_of(X).write_parquet(tmp_path / "p.parquet")
    files = TableFiles(expand([str(tmp_path / "p.parquet")]), ())
    on_disk = collect(files.rows(), files.fields, file=tmp_path / "points")
    assert isinstance(on_disk.points, PointFile)
    assert fit_range(on_disk, 2, 5, memory=1 << 20).to_json() == fit_range(collected(X), 2, 5).to_json()


def test_as_many_clusters_as_distinct_rows_and_more_are_no_error():
    X = np.repeat(np.arange(3.0) ** 2, 20)[:, np.newaxis]
    found = fit_range(collected(X), 2, 5)
    assert found.suggested == 3
    assert [t.cost for t in found.trials][1:] == [0, 0, 0]
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["suggested"] == 3


def test_a_range_has_an_end():
    with pytest.raises(SettingsError, match=f"up to {MAX_K}"):
        fit_range(collected(blobs()), 2, MAX_K + 1)


def test_the_command_shows_each_k_and_writes_the_suggested_one(tmp_path):
    frame_of(blobs(5, 4, 3, 900)).write_csv(tmp_path / "p.csv")
    arguments = [tmp_path / "p.csv", "--k", "2..6", "--out", tmp_path / "c.csv", "--plot", tmp_path / "k.svg"]
    got = fit(*arguments, "--labels", tmp_path / "l.parquet")
    assert [t["k"] for t in got["trials"]] == [2, 3, 4, 5, 6]
    assert got["suggested"] == got["k"] == len(pl.read_csv(tmp_path / "c.csv")) == 4
    assert pl.read_parquet(tmp_path / "l.parquet")["label"].n_unique() == 4
    assert len(ET.parse(tmp_path / "k.svg").getroot().findall(f".//{SVG}polyline")) == 4  # noqa: S314  # our own
    printed = fit(*arguments, as_json=False)
    assert "suggested: k = 4: " in printed
    assert [line.split()[1] for line in printed.splitlines() if "◀" in line] == ["4"]
    assert max(len(line) for line in printed.splitlines() if line[:1] in "┏┃│") <= 80


def test_where_criteria_disagree_nothing_is_suggested_and_the_best_guess_is_shown(tmp_path):
    rows = WORLDS["five cities, standard units"][1](np.random.default_rng(0), 1500)
    frame_of(rows).write_csv(tmp_path / "p.csv")
    printed = fit(tmp_path / "p.csv", "--k", "2..12", as_json=False)
    assert "suggested: no k: no clear number: " in printed
    guess = re.search(r"shown: k = (\d+), the best guess", printed)[1]
    assert f"rows, k = {guess}: cost" in printed


def test_one_heap_is_suggested_as_one_and_the_nearest_k_is_shown(tmp_path):
    frame_of(np.random.default_rng(0).normal(size=(1000, 3))).write_csv(tmp_path / "p.csv")
    printed = fit(tmp_path / "p.csv", "--k", "3..5", as_json=False)
    assert "suggested: k = 1: one cluster" in printed
    assert "shown: k = 3, the nearest one tried" in printed


# Plots


def drawing(d, k=3, n=50, **more):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, k, n).astype(np.int32)
    names = [f"<{c}>&" for c in "abcdefgh"[:d]]
    return ET.fromstring(  # noqa: S314  # our own
        plot.plot_points(rng.normal(size=(n, d)), labels, rng.normal(size=(k, d)), names, title="a < b", **more)
    )


def texts(root):
    return [t.text for t in root.iter(f"{SVG}text")]


def points_drawn(root):
    return sum(path.get("d").count("h.01") for path in root.iter(f"{SVG}path"))


@pytest.mark.parametrize(
    ("d", "named"), [(1, ["<a>&"]), (2, ["<a>&", "<b>&"]), (5, ["principal component 1", "principal component 2"])]
)
def test_a_picture_has_all_points_all_centroids_and_names_its_axes(d, named):
    root = drawing(d)
    assert points_drawn(root) == 50
    assert [t for t in texts(root) if t in {"0", "1", "2"}][-3:] == ["0", "1", "2"]
    for name in named:
        assert any(t.startswith(name) for t in texts(root)), texts(root)
    assert root.find(f"{SVG}title").text == "a < b"


def test_every_pair_of_fields_asked_for_has_a_panel():
    root = drawing(4, pairs=("<a>&", "<c>&", "<d>&"))
    assert points_drawn(root) == 150
    assert len(root.findall(f"{SVG}g")) == 3
    for wrong in (("<a>&",), ("<a>&", "z")):
        with pytest.raises(SettingsError):
            drawing(4, pairs=wrong)


def test_more_clusters_than_colours_get_another_shape():
    root = drawing(2, k=10, n=400)
    looks = {
        (path.get("stroke"), path.get("stroke-linecap")) for path in root.iter(f"{SVG}path") if "h.01" in path.get("d")
    }
    assert len(looks) == 10


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1.0, 1e30])
def test_any_scale_can_be_drawn(scale):
    X = np.random.default_rng(0).normal(size=(20, 2)) * scale + scale
    root = ET.fromstring(  # noqa: S314  # our own
        plot.plot_points(X, np.zeros(20, np.int32), X[:1], ["a", "b"])
    )
    assert points_drawn(root) == 20
    assert "nan" not in ET.tostring(root, encoding="unicode").lower()


def test_a_large_fit_is_drawn_from_an_even_sample():
    rows = plot.sample_rows(1_000_000)
    assert len(rows) == plot.SAMPLE
    assert (rows[0], rows[-1]) == (0, 999_999)
    assert set(np.diff(rows)) <= {250, 251}
    assert plot.sample_rows(3).tolist() == [0, 1, 2]


def test_a_traced_fit_has_a_picture_of_each_iteration(tmp_path):
    frame_of(blobs(0, 4, 2)).write_csv(tmp_path / "p.csv")
    got = fit(tmp_path / "p.csv", "--k", 5, "--trace", "--plot", tmp_path / "x.svg")
    assert len(list(tmp_path.glob("x-*.svg"))) == len(got["trace"]) == got["iterations"]


# Interrupted fits


@pytest.mark.parametrize("kind", ["csv", "npy", "parquet"])
def test_labels_that_are_broken_off_leave_nothing(tmp_path, kind):
    def blocks():
        yield np.zeros(3, np.int32), np.zeros(3)
        raise KeyboardInterrupt

    path = tmp_path / f"l.{kind}"
    with pytest.raises(KeyboardInterrupt):
        write_labels(path, blocks(), 6)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_fit_that_is_broken_off_leaves_nothing_half_written(tmp_path, number):
    np.lib.format.open_memmap(
        tmp_path / "p.npy", "w+", np.float64, (30_000_000, 2)
    )  # a sparse file: it uses no disk space
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    out = tmp_path / "out"
    out.mkdir()
    arguments = ("fit", str(tmp_path / "p.npy"), "--k", "2", "--memory", "2MB", "--out", str(out / "c.json"))
    with processes.program(tmp_path / "log", *arguments, env={"TMPDIR": str(temporary)}) as running:
        running.until(lambda: any(_sizes(temporary)))
        running.signal(number)
        assert running.popen.wait(PATIENCE) != 0
    assert "Traceback" not in running.output()
    assert list(temporary.iterdir()) == list(out.iterdir()) == []


def _sizes(folder: Path) -> list[int]:
    return [file.stat().st_size for file in folder.rglob("*points*") if file.exists()]


def test_a_checkpoint_is_gone_when_the_fit_is_done(tmp_path):
    frame_of(blobs()).write_csv(tmp_path / "p.csv")
    fit(tmp_path / "p.csv", "--k", 4, "--checkpoint", tmp_path / "c")
    assert [p.name for p in tmp_path.iterdir()] == ["p.csv"]
