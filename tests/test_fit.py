"""``streamkm fit``: output, files, and errors for invalid input."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import sqlite3
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

import processes
from consumers import cli, logs
from streamkm import ExactKMeans
from streamkm.connectors.files import tables
from streamkm.errors import (
    BadRecordsError,
    DataError,
    FileFormatError,
    MissingFileError,
    SettingsError,
    StreamkmError,
)

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs" / "worked-example.md"


@pytest.fixture(autouse=True)
def _logs_as_they_are(monkeypatch):
    monkeypatch.setattr(logs, "configure", lambda **_: None)


def fit(*arguments, as_json=True):
    """Run the command in this process; errors are raised."""
    result = CliRunner().invoke(cli.cli, ["fit", *map(str, arguments), *(["--json"] if as_json else [])])
    if isinstance(result.exception, StreamkmError):
        raise result.exception
    assert result.exit_code == 0, result.output + repr(result.exception)
    return json.loads(result.stdout) if as_json else result.stdout


def blobs(seed=0, k=4, d=3, n=600):
    rng = np.random.default_rng(seed)
    centers = rng.uniform(-50, 50, (k, d))
    return centers[rng.integers(0, k, n)] + rng.normal(size=(n, d))


def frame_of(X):
    return pl.DataFrame({name: X[:, i] for i, name in enumerate("abcdefgh"[: X.shape[1]])})


WRITERS = {
    "csv": lambda f, p: f.write_csv(p),
    "tsv": lambda f, p: f.write_csv(p, separator="\t"),
    "parquet": lambda f, p: f.write_parquet(p, row_group_size=100),
    "arrow": lambda f, p: f.write_ipc(p),
    "feather": lambda f, p: f.write_ipc(p, compression="lz4"),
    "npz": lambda f, p: np.savez(p, **{name: f[name].to_numpy() for name in f.columns}),
    "npy": lambda f, p: np.save(p, f.to_numpy()),
}


@pytest.fixture
def table(tmp_path):
    X = blobs()
    frame_of(X).write_parquet(tmp_path / "points.parquet")
    return X, tmp_path / "points.parquet"


# The worked example


def test_the_worked_example_of_the_docs_is_what_the_command_prints_and_draws(tmp_path):
    text = DOCS.read_text()
    command, printed = re.search(r"```sh\n(.*?)\n```\n\n```text\n(.*?)```", text, re.DOTALL).groups()
    arguments = shlex.split(command)
    assert arguments[0] == "streamkm"
    arguments = [str(tmp_path / "worked-example.svg") if a == "docs/worked-example.svg" else a for a in arguments[1:]]
    arguments = [str(ROOT / a) if a.startswith("examples/") else a for a in arguments]
    done = processes.run(*arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout == printed
    assert "(4, 10) -> (3, 18) -> (4.75, 19.6) -> (7, 25)\n" in done.stdout
    pictures = sorted(p.name for p in tmp_path.glob("*.svg"))
    assert pictures == sorted(p.name for p in (ROOT / "docs").glob("worked-example*.svg"))
    for name in pictures:
        assert (tmp_path / name).read_text() == (ROOT / "docs" / name).read_text(), f"{name}: run: {command}"
        assert name == "worked-example.svg" or f"({name})" in text


def test_the_trace_of_the_worked_example_is_the_true_one_number_by_number():
    example = ROOT / "examples" / "worked-example.csv"
    got = fit(example, "--init", ROOT / "examples" / "worked-example-start.csv", "--trace")
    assert [step["centroids"] for step in got["trace"]] == [[[4], [10]], [[3], [18]], [[4.75], [19.6]], [[7], [25]]]
    assert [step["sizes"] for step in got["trace"]] == [[3, 6], [4, 5], [6, 3], [6, 3]]
    assert [step["moved"] for step in got["trace"]] == [9, 1, 2, 0]
    assert [step["cost"] for step in got["trace"]] == pytest.approx([735, 333, 267.855, 150])
    assert (got["cost"], got["stopped"]) == (150, "no label changed")


# Input


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("memory", [None, "2MB"])
def test_every_kind_of_file_gives_what_the_estimator_gives(tmp_path, kind, memory, monkeypatch):
    monkeypatch.setattr(tables, "BLOCK_ROWS", 64)
    monkeypatch.setattr(tables, "BLOCK_BYTES", 4000)
    X = blobs()
    path = tmp_path / f"points.{kind}"
    WRITERS[kind](frame_of(X), path)
    got = fit(
        path, "--k", 4, "--seed", 3, "--labels", tmp_path / "labels.npy", *(["--memory", memory] if memory else [])
    )
    expected = ExactKMeans(4, random_state=3).fit(X)
    assert np.array([c["centroid"] for c in got["clusters"]]).tolist() == expected.cluster_centers_.tolist()
    assert got["cost"] == expected.inertia_
    assert got["fields"] == (["0", "1", "2"] if kind == "npy" else ["a", "b", "c"])
    written = np.load(tmp_path / "labels.npy")
    assert written["label"].tolist() == expected.labels_.tolist()
    np.testing.assert_allclose(
        written["distance"], np.linalg.norm(X - expected.cluster_centers_[expected.labels_], axis=1), rtol=1e-12
    )


def test_folders_are_read_in_the_order_of_names_and_rows(tmp_path):
    X = blobs()
    for i, part in enumerate(np.array_split(X, 3)):
        folder = tmp_path / "data" / f"year={2024 + i}"
        folder.mkdir(parents=True)
        frame_of(part).write_csv(folder / "x.csv")
    got = fit(tmp_path / "data", "--k", 4, "--labels", tmp_path / "labels.csv")
    expected = ExactKMeans(4, random_state=0).fit(X)
    assert got["fields"] == ["a", "b", "c"]
    assert pl.read_csv(tmp_path / "labels.csv")["label"].to_list() == expected.labels_.tolist()
    with_year = fit(tmp_path / "data", "--k", 2, "--fields", "year,a")
    assert with_year["fields"] == ["year", "a"]
    assert 2024 <= with_year["clusters"][0]["centroid"][0] <= 2026
    glob = fit(tmp_path / "data" / "year=202[45]" / "*.csv", "--k", 4)
    assert glob["rows"] == {"read": 400, "used": 400, "skipped": 0}


def test_rows_of_a_query_are_read_and_its_columns_of_numbers_taken(tmp_path):
    X = blobs(d=2)
    with contextlib.closing(sqlite3.connect(tmp_path / "p.db")) as connection:
        connection.execute("create table t (a real, b real, name text, w real)")
        connection.executemany("insert into t values (?, ?, 'x', 2)", X.tolist())
        connection.commit()
    query = ("--sql", "select a, b, name, w from t order by rowid", "--database", f"sqlite:///{tmp_path / 'p.db'}")
    got = fit(*query, "--k", 4, "--weight-field", "w")
    assert got["fields"] == ["a", "b"]
    assert got["cost"] == pytest.approx(2 * ExactKMeans(4, random_state=0).fit(X).inertia_)
    assert sum(c["size"] for c in got["clusters"]) == 1200


def test_a_weight_of_three_is_three_rows(tmp_path):
    X = np.round(blobs(n=60))
    weights = np.random.default_rng(0).integers(0, 4, 60)
    frame_of(X).with_columns(w=pl.Series(weights)).write_csv(tmp_path / "w.csv")
    frame_of(np.repeat(X, weights, axis=0)).write_csv(tmp_path / "r.csv")
    weighted, repeated = (
        fit(tmp_path / "w.csv", "--k", 4, "--weight-field", "w"), fit(tmp_path / "r.csv", "--k", 4)
    )  # fmt: skip
    assert weighted["fields"] == ["a", "b", "c"]
    assert weighted["cost"] == pytest.approx(repeated["cost"], rel=1e-12)
    assert [c["size"] for c in weighted["clusters"]] == [c["size"] for c in repeated["clusters"]]


# Initial centroids


@pytest.mark.parametrize("init", ["random", "k-means++", "k-means||"])
def test_a_method_and_restarts_are_those_of_the_estimator(table, init):
    X, path = table
    got = fit(path, "--k", 4, "--init", init, "--n-init", 3, "--seed", 5)
    expected = ExactKMeans(4, init=init, n_init=3, random_state=5).fit(X)
    assert [c["centroid"] for c in got["clusters"]] == expected.cluster_centers_.tolist()


@pytest.mark.parametrize("kind", ["json", "csv", "parquet", "npz"])
def test_centroids_that_were_written_are_a_start_and_stay_where_they_are(table, tmp_path, kind):
    _, path = table
    out = tmp_path / f"centroids.{kind}"
    first = fit(path, "--k", 4, "--out", out)
    again = fit(path, "--init", out, "--fields", "a,b,c")
    assert again["k"] == 4
    assert [c["centroid"] for c in again["clusters"]] == [c["centroid"] for c in first["clusters"]]
    assert again["iterations"] <= 2
    turned = fit(path, "--init", out, "--fields", "c,a,b")
    assert [c["centroid"][1:] for c in turned["clusters"]] == [c["centroid"][:2] for c in first["clusters"]]
    assert {p.name for p in tmp_path.iterdir()} == {"points.parquet", out.name}


def test_a_bare_list_of_lists_is_a_start(table, tmp_path):
    X, path = table
    (tmp_path / "s.json").write_text(json.dumps(X[:4].tolist()))
    got = fit(path, "--init", tmp_path / "s.json")
    assert got["cost"] == ExactKMeans(4, init=X[:4]).fit(X).inertia_


def test_limits_stop_a_fit_and_are_named(table):
    _, path = table
    assert fit(path, "--k", 7, "--max-iter", 1)["stopped"] == "the limit of 1 iterations"
    assert fit(path, "--k", 7, "--tol", 1e9)["stopped"] == "no centroid moved farther than 1e+09"


# Invalid input


@pytest.mark.parametrize(
    ("content", "arguments", "error", "message"),
    [
        ("a,b\n", [], DataError, r"p\.csv: there are no rows"),
        ("a,b\n1,2\n3,4\n", ["--k", 3], DataError, r"p\.csv: there are 2 rows, fewer than the 3 clusters"),
        ("a,b\n1,2\n3,4\n", ["--k", 0], SettingsError, "k: 0 is not between 1 and 100000"),
        ("a,b\n1,2\n3,4\n", ["--k", "5..2"], SettingsError, "from low to high"),
        ("a,b\n1,2\n3,4\n", ["--k", "many"], SettingsError, "neither a number such as 8"),
        ("a,b\n1,2\n3,inf\n", [], BadRecordsError, r"p\.csv, row 1, column 'b': b is infinite"),
        ("a,b\n1,2\n3,-1e200\n", [], BadRecordsError, r"p\.csv, row 1, column 'b': b is -1e\+200, beyond the maximum"),
        ("a,b\n1,2\nnan,4\n", [], BadRecordsError, r"p\.csv, row 1, column 'a': a is missing"),
        ("a,b\n1,2\n,4\n", [], BadRecordsError, r"p\.csv, row 1, column 'a': a is missing"),
        ("a,b\n1,2\n3,4\n5,oops\n", [], BadRecordsError, r"p\.csv, row 2, column 'b': b is not a number: 'oops'"),
        ("a,b\n1,2\n3,-4\n", ["--weight-field", "b"], BadRecordsError, r"row 1, column 'b': .*negative: -4"),
        ("a,b\n1,0\n3,0\n", ["--weight-field", "b", "--k", 1], DataError, "all weights are zero"),
        ("a,b\n1,2\n", ["--fields", "a,z"], FileFormatError, r"p\.csv, column 'z': the column does not exist.*a, b"),
        ("a,b\n1,2\n", ["--weight-field", "z"], FileFormatError, r"p\.csv, column 'z': the column does not exist"),
        ("a,b\nx,y\n", [], FileFormatError, r"p\.csv: no column has numbers"),
        ("a,b\n1,2\n3", [], FileFormatError, r"p\.csv, row 1: the last row is truncated"),
        ("a,b\n1,2\n3,4,5\n", [], BadRecordsError, r"p\.csv, row 1: the row has 3 values, the header has 2 \(line 3\)"),
        ("a,b\n1,2\n3,4,5\n", ["--fields", "a"], BadRecordsError, r"row 1: the row has 3 values.* 2 \(line 3\)"),
        ("", [], FileFormatError, r"p\.csv: it is empty"),
        ("a,b\n1,2\n", ["--init", "nowhere.csv"], SettingsError, "nowhere.csv is neither a file nor one of random"),
        ("a,b\n1,2\n", ["--plot-fields", "a,z"], SettingsError, "z is none of a, b"),
        ("a,b\n1,2\n", ["--plot", "x.png"], SettingsError, r"x\.svg and convert"),
        ("a,b\n1,2\n", ["--out", "x.xlsx"], SettingsError, r"x\.xlsx is not a supported kind .*\.json"),
        ("a,b\n1,2\n", ["--labels", "nowhere/x.csv"], SettingsError, "nowhere/x.csv cannot be written"),
        ("a,b\n1,2\n", ["--memory", "lots"], SettingsError, "not a size such as 512MB"),
        ("a,b\n1,2\n", ["--sql", "select 1"], SettingsError, "either paths or --sql"),
        ("a,b\n1,2\n3,4\n", ["--k", "1..2", "--trace"], SettingsError, "--trace: .*one k"),
        ("a,b\n1,2\n3,4\n", ["--k", "1..2", "--init", "START"], SettingsError, "a range of k cannot start from"),
    ],
)
def test_wrong_input_is_named_with_its_place(tmp_path, content, arguments, error, message):
    path = tmp_path / "p.csv"
    path.write_text(content)
    (tmp_path / "start.csv").write_text("a,b\n1,2\n")
    arguments = [tmp_path / "start.csv" if a == "START" else a for a in arguments]
    if "--k" not in arguments:
        arguments += ["--k", 1]
    with pytest.raises(error, match=f"(?s){message}"):
        fit(path, *arguments)


@pytest.mark.parametrize("kind", ["npy", "npz", "parquet", "arrow"])
def test_a_file_that_ends_in_the_middle_is_named(tmp_path, kind):
    path = tmp_path / f"p.{kind}"
    WRITERS[kind](frame_of(blobs()), path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(FileFormatError, match=rf"p\.{kind}: .*truncated"):
        fit(path, "--k", 2)


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("s.json", "[[1, 2, 3]]", SettingsError, "the centroids have 3 coordinates, the points 2: a, b"),
        ("s.json", '{"fields": ["a", "z"], "centroids": [[1, 2]]}', SettingsError, "have a, z, and not b"),
        ("s.json", "[[1, 2], [3]]", FileFormatError, "has no centroids"),
        ("s.json", "[1, 2]", FileFormatError, r"numbers of shape \(2,\)"),
        ("s.json", "[[1, NaN]]", FileFormatError, "not finite"),
        ("s.json", "{", FileFormatError, "has no centroids"),
        ("s.npz", "nothing", FileFormatError, "not an npz archive"),
        ("s.csv", "a,b\n1,x\n2,3\n", BadRecordsError, r"s\.csv, row 0, column 'b'"),
        ("s.csv", "a\n1\n", FileFormatError, r"s\.csv, column 'b'"),
        ("s.csv", "a,b\n1,2\n3,4\n", SettingsError, r"s\.csv: the file has 2 centroids, and --k is 1"),
    ],
)
def test_a_start_of_the_wrong_shape_is_named(tmp_path, name, content, error, message):
    (tmp_path / "p.csv").write_text("a,b\n1,2\n3,4\n")
    (tmp_path / name).write_text(content)
    with pytest.raises(error, match=message) as refused:
        fit(tmp_path / "p.csv", "--k", 1, "--init", tmp_path / name)
    assert name in str(refused.value)


def test_rows_that_are_skipped_are_counted_shown_and_keep_their_place_in_the_labels(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "BLOCK_BYTES", 12)
    (tmp_path / "a.csv").write_text("x,w\n1,1\noops,1\n2,1\n,1\n")
    (tmp_path / "b.csv").write_text("x,w\n9,-1\n9,1\n10,1\ninf,1\n")
    paths = (tmp_path / "a.csv", tmp_path / "b.csv")
    arguments = ("--k", 2, "--fields", "x", "--weight-field", "w", "--bad-rows", "skip")
    got = fit(*paths, *arguments, "--labels", tmp_path / "l.csv")
    assert got["rows"] == {"read": 8, "used": 4, "skipped": 4}
    assert [re.search(r"(\w)\.csv-0@(\d)", text).groups() for text in got["skipped_examples"]] == [
        ("a", "1"), ("a", "3"), ("b", "0"), ("b", "3"),
    ]  # fmt: skip
    labels = pl.read_csv(tmp_path / "l.csv")
    low, high = labels["label"][0], labels["label"][5]
    assert low != high
    assert labels["label"].to_list() == [low, -1, low, -1, -1, high, high, -1]
    assert labels["distance"].to_list() == [0.5, None, 0.5, None, None, 0.5, 0.5, None]
    assert "skipped 4 of 8 rows, such as" in fit(*paths, *arguments, as_json=False)
    with pytest.raises(
        DataError, match=r"there are 4 rows \(4 others were skipped, 2 of them for column .x.: .*\), fewer"
    ):
        fit(*paths, "--k", 5, *arguments[2:])


def test_errors_have_their_exit_statuses_and_nothing_is_written(tmp_path):
    (tmp_path / "p.csv").write_text("a\n1\noops\n3\n4\n")
    out = tmp_path / "c.json"
    for path, status, said in (("p.csv", 6, "row 1, column 'a'"), ("nowhere.csv", 3, "nowhere.csv")):
        done = processes.run("fit", str(tmp_path / path), "--k", "1", "--out", str(out))
        assert (done.returncode, done.stdout) == (status, "")
        assert said in done.stderr
        assert "Traceback" not in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["p.csv"]
    with pytest.raises(MissingFileError):
        fit(tmp_path / "nowhere.csv")
