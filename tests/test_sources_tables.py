"""Typed tables and JSON lines: array columns, numbers as text, streams, damaged files."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import zipfile

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from consumers import cli, logs
from streamkm import ExactKMeans, OnlineKMeans
from streamkm.client.requests import points_of_table
from streamkm.connectors import FileSource
from streamkm.connectors.files import frames, tables
from streamkm.connectors.files.panics import suppress_panic_output
from streamkm.connectors.files.source import expand
from streamkm.errors import BadRecordsError, DataError, FileFormatError, SettingsError, StreamkmError
from streamkm.recompute import collect as collecting
from streamkm.recompute.collect import TableFiles, collect

X = [[1.5, 2.0, 3.0], [4.0, 5.0, 6.5], [7.0, 8.0, 9.0], [1.0, 0.5, 0.0]]


@pytest.fixture(params=["pyarrow", "polars"])
def library(request, monkeypatch):
    """Both libraries that read frames."""
    if request.param == "polars":
        monkeypatch.setattr(frames, "find_spec", lambda _: None)
    return request.param


def write_arrow(table, path, *, stream):
    with (
        pa.OSFile(str(path), "wb") as sink,
        (pa.ipc.new_stream if stream else pa.ipc.new_file)(sink, table.schema) as out,
    ):
        out.write_table(table, max_chunksize=2)


def write_lines(table, path):
    rows = "".join(json.dumps(row) + "\n" for row in table.to_pylist())
    path.write_bytes(gzip.compress(rows.encode()) if path.suffix == ".gz" else rows.encode())


WRITERS = {
    "a.parquet": lambda t, p: pq.write_table(t, p, row_group_size=3),
    "a.arrow": lambda t, p: write_arrow(t, p, stream=False),
    "stream.arrow": lambda t, p: write_arrow(t, p, stream=True),
    "a.feather": lambda t, p: write_arrow(t, p, stream=False),
    "a.jsonl": write_lines,
    "a.ndjson": write_lines,
    "a.jsonl.gz": write_lines,
}
LISTS = {
    "list of float": pa.list_(pa.float32()),
    "list of double": pa.list_(pa.float64()),
    "large list": pa.large_list(pa.float32()),
    "list of integers": pa.list_(pa.int16()),
    "fixed size": pa.list_(pa.float32(), 3),
}


def points(path, fields=(), **options):
    files = TableFiles(expand([str(path)]), fields)
    return files, collect(files.rows(), files.fields, float32=files.fits_float32, line_of=files.line, **options)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("kind", LISTS)
@pytest.mark.parametrize(
    ("fields", "names", "columns"),
    [
        ([], ("emb[0]", "emb[1]", "emb[2]"), [0, 1, 2]),
        (["emb"], ("emb[0]", "emb[1]", "emb[2]"), [0, 1, 2]),
        (["emb[2]", "emb.0"], ("emb[2]", "emb.0"), [2, 0]),
        (["x", "emb[1]"], ("x", "emb[1]"), [3, 1]),
    ],
)
def test_a_column_of_arrays_is_read_by_its_dimensions(tmp_path, library, name, kind, fields, names, columns):
    values = np.trunc(X) if kind == "list of integers" else np.array(X)
    arrays = pa.array(values.tolist(), LISTS[kind])
    table = pa.table({"t": ["a", "b", "c", "d"], "emb": arrays, "x": [0.5, 0.25, 2, 4.5]})
    table = table if fields else table.drop_columns(["x"])
    WRITERS[name](table, tmp_path / name)
    files, found = points(tmp_path / name, fields)
    assert files.fields == names
    expected = np.column_stack([values, [0.5, 0.25, 2, 4.5]])[:, columns]
    assert found.array.tolist() == expected.tolist()
    assert [left.column for left in files.excluded] == ([] if fields else ["t"])


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "stream.arrow", "a.jsonl"])
def test_arrays_of_another_length_are_bad_rows(tmp_path, library, name):
    table = pa.table({"emb": pa.array([[1.0, 2.0], [3.0], [4.0, 5.0, 6.0], None, [7.0, 8.0]], pa.list_(pa.float64()))})
    WRITERS[name](table, tmp_path / name)
    with pytest.raises(BadRecordsError, match=r"row 1, column 'emb\[0\]': .*1 values, not 2"):
        points(tmp_path / name)
    _, found = points(tmp_path / name, skip_bad=True)
    assert found.array.tolist() == [[1, 2], [7, 8]]
    assert found.skipped.tolist() == [1, 2, 3]
    with pytest.raises(FileFormatError, match=r"'emb': the column has dimensions 0 to 1. Not emb\[2\]"):
        points(tmp_path / name, ["emb[2]"])


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "stream.arrow"])
def test_nested_columns_are_excluded_or_rejected(tmp_path, library, name):
    table = pa.table({"s": [{"x": 1.0}] * 3, "n": [[[1.0]]] * 3, "b": [b"1"] * 3, "x": [1.5, 0.5, 2.5]})
    WRITERS[name](table, tmp_path / name)
    files, found = points(tmp_path / name)
    assert files.fields == ("x",)
    assert found.n_rows == 3
    assert [left.column for left in files.excluded] == ["s", "n", "b"]
    for field in ("s", "n", "b"):
        with pytest.raises(FileFormatError, match=f"column '{field}': .* is not a number"):
            points(tmp_path / name, [field])


def test_files_with_other_dimensions_are_rejected(tmp_path):
    for i in (2, 3):
        pl.DataFrame({"emb": [[1.0] * i]}).write_parquet(tmp_path / f"{i}.parquet")
    with pytest.raises(FileFormatError, match=r"3\.parquet: the columns are emb\[0\], emb\[1\], emb\[2\]"):
        points(tmp_path)


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "stream.arrow", "a.jsonl"])
def test_text_is_judged_as_in_csv(tmp_path, library, name):
    table = pa.table(
        {
            "id": [3, 1, 2, 5],
            "n": [" 1", "2.5", "NA", "4"],
            "comma": ["1,5", "2,5", None, "3"],
            "flag": [True, False, None, True],
            "x": [0.5, 1.5, 2.5, 3.5],
            "when": [10, 20, 30, 40],
        }
    )
    WRITERS[name](table, tmp_path / name)
    files, found = points(tmp_path / name, skip_bad=True)
    assert files.fields == ("n", "x", "when")
    assert {left.column: left.reason for left in files.excluded} == {
        "id": "named like an identifier",
        "comma": "a decimal comma",
        "flag": "true or false",
    }
    assert found.array.tolist() == [[1, 0.5, 10], [2.5, 1.5, 20], [4, 3.5, 40]]


def test_rows_of_json_are_found_by_path_and_line(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "BLOCK_BYTES", 60)
    path = tmp_path / "a.jsonl"
    path.write_text(
        '\ufeff{"a": {"b": 1, "c.d": 2}, "e": "3"}\n\n{"a": {"b": 4, "c.d": 5}, "e": 6.5}\n'
        + '{"a": {"b": 7}, "e": null}\n' * 3
        + '{"a": {"b": "oops", "c.d": 1}, "e": 1}\n'
    )
    _, found = points(path, ["a.b", "e"], skip_bad=True)
    assert found.array.tolist() == [[1, 3], [4, 6.5]]
    assert found.n_rows == 6
    with pytest.raises(BadRecordsError, match=r"row 5, column 'a\.b': a\.b is not a number: 'oops' \(line 7\)"):
        points(path, ["a.b"])
    source = FileSource(path, fields=["a.b"])
    tp = source.partitions()[0]
    source.seek({tp: 4})  # and back again
    assert source.poll(0, 1)[0].columns["a.b"].tolist() == [7]
    source.seek({tp: 0})
    assert source.poll(0, 1)[0].columns["a.b"].tolist() == [1]
    assert source.line(tp, 1) == 3
    source.close()


def test_objects_in_objects_are_looked_into_as_far_as_there_is_sense(tmp_path):
    deep = '{"a":' * 1000 + "1" + "}" * 1000
    (tmp_path / "a.jsonl").write_text(f'{{"x": 1.5, "deep": {deep}}}\n' * 2)
    files, found = points(tmp_path / "a.jsonl")
    assert (files.fields, found.n_rows) == (("x",), 2)
    assert len(files.excluded) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no rows"),
        (b"\n\n", "no rows"),
        (b'{"a": 1}\n{"a": \n', "line 2: the line is not JSON"),
        (b"[1, 2]\n", r"line 1: \[1, 2\] is not a JSON object"),
        (b'{"a": 1}\n\xff\n', "line 2: the line is not JSON"),
        (b'{"a": ' + b"[" * 2000 + b"]" * 2000 + b"}\n", "line 1: the line is not JSON"),
        (b'{"a": "x"}\n', "no column has numbers to cluster: a"),
    ],
)
def test_lines_that_are_no_json_are_named(tmp_path, content, message):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(StreamkmError, match=message) as refused:
        points(tmp_path / "a.jsonl")
    assert "a.jsonl" in refused.value.where


def test_a_panic_is_our_error_and_leaves_nothing_on_standard_error(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(frames, "find_spec", lambda _: None)
    pl.DataFrame({"a": [1.5]}).write_parquet(tmp_path / "a.parquet")

    def panic(*_, **__):  # like polars, whose hook writes to the file descriptor
        os.write(2, b"thread '<unnamed>' panicked at crates/polars-parquet/src/lib.rs: assertion failed")
        raise pl.exceptions.PanicException("assertion failed")

    monkeypatch.setattr(pl, "scan_parquet", panic)
    with pytest.raises(FileFormatError, match=r"a\.parquet: the file is not parquet.*: assertion failed"):
        points(tmp_path / "a.parquet")
    assert capfd.readouterr().err == ""
    with suppress_panic_output():
        os.write(2, b"what is said without a panic is passed on")
    assert capfd.readouterr().err == "what is said without a panic is passed on"


def test_points_that_do_not_fit_into_memory_are_rejected_by_their_headers(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "a.npz", np.zeros((100_000, 4)))
    monkeypatch.setattr(collecting, "memory_limit", lambda: 1 << 20)
    files = TableFiles(expand([str(tmp_path / "a.npz")]), [])
    with pytest.raises(SettingsError, match=r"100,000 rows of 4 columns need 3 MiB.*1 MiB.*--memory"):
        collecting.check_memory(files, limited=False)
    collecting.check_memory(files, limited=True)


def test_an_archive_with_inconsistent_sizes_is_rejected(tmp_path):
    content = io.BytesIO()
    np.save(content, np.zeros((10, 2)))
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", content.getvalue() + bytes(1 << 20))
    with pytest.raises(FileFormatError, match="1048736 bytes and its header says 160"):
        points(tmp_path / "a.npz")


def test_decompression_that_does_not_fit_on_the_disk_is_rejected(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "a.npz", np.zeros((100_000, 4)))
    total, used, _ = shutil.disk_usage(tmp_path)
    little = type(shutil.disk_usage(tmp_path))(total, used, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: little)
    with pytest.raises(SettingsError, match=r"3 MiB decompressed.*Set TMPDIR"):
        points(tmp_path / "a.npz")


# Initial centroids, scale and k of `fit`


@pytest.fixture
def fit(monkeypatch):
    """Run ``fit`` in this process; returns the result and its messages."""
    monkeypatch.setattr(logs, "configure", lambda **_: None)

    def run(*arguments):
        result = CliRunner().invoke(cli.cli, ["fit", *map(str, arguments), "--json"])
        if isinstance(result.exception, StreamkmError):
            raise result.exception
        assert result.exit_code == 0, result.output + repr(result.exception)
        return json.loads(result.stdout), result.stderr

    return run


@pytest.fixture
def table(tmp_path):
    """Two clusters that differ only in a small field, beside a large noisy one; the points and their file."""
    rng = np.random.default_rng(0)
    points_ = np.column_stack([rng.normal(0, 1000, 400), np.repeat([0.0, 1.0], 200) + rng.normal(0, 0.05, 400)])
    pl.DataFrame(points_, schema=["large", "small"]).write_csv(tmp_path / "p.csv")
    return points_, tmp_path / "p.csv"


@pytest.mark.parametrize("scale", ["standard", "robust"])
@pytest.mark.parametrize("memory", [[], ["--memory", "1MiB"]])
def test_scale_is_the_unit_of_distances_and_centroids_stay_raw(fit, table, tmp_path, scale, memory):
    X, path = table
    got, _ = fit(path, "--k", 2, "--scale", scale, "--labels", tmp_path / "l.npy", *memory)
    unit = X.std(axis=0)
    if scale == "robust":
        low, high = np.sort(X, axis=0)[[99, 299]]
        unit = (high - low) / 1.3489795003921634
    np.testing.assert_allclose(got["units"], unit, rtol=1e-12)
    labels = np.load(tmp_path / "l.npy")
    centroids = np.array([c["centroid"] for c in got["clusters"]])
    for j in (0, 1):
        np.testing.assert_allclose(centroids[j], X[labels["label"] == j].mean(axis=0), rtol=1e-9)
    true = np.linalg.norm((X - centroids[labels["label"]]) / unit, axis=1)
    np.testing.assert_allclose(labels["distance"], true, rtol=1e-9)
    assert got["cost"] == pytest.approx((true**2).sum(), rel=1e-9)
    other = np.linalg.norm((X - centroids[1 - labels["label"]]) / unit, axis=1)
    assert (true <= other).all()
    raw, _ = fit(path, "--k", 2)
    assert "units" not in raw
    assert raw["scale"] == "none"


def test_scale_holds_for_starts_traces_pictures_and_ranges(fit, table, tmp_path):
    X, path = table
    start = [[0.0, 0.0], [0.0, 1.0]]
    (tmp_path / "s.json").write_text(json.dumps(start))
    got, _ = fit(path, "--init", tmp_path / "s.json", "--scale", "standard", "--trace", "--plot", tmp_path / "p.svg")
    np.testing.assert_allclose(got["trace"][0]["centroids"], start, atol=1e-12)
    assert [c["size"] for c in got["clusters"]] == [200, 200]
    np.testing.assert_allclose([c["centroid"][1] for c in got["clusters"]], [0, 1], atol=0.02)
    # Differences are measured within clusters, in whatever unit.
    within = np.sqrt(np.mean([X[:200, 1].var(), X[200:, 1].var()]))
    expected = (X[200:, 1].mean() - X[:, 1].mean()) / within
    assert got["clusters"][1]["differences"][1] == pytest.approx(expected, rel=0.05)
    assert "nan" not in (tmp_path / "p.svg").read_text()
    ranged, _ = fit(path, "--k", "1..3", "--scale", "standard")
    assert [t["k"] for t in ranged["trials"]] == [1, 2, 3]


def test_k_auto_looks_up_to_twenty_or_as_many_as_there_are(fit, tmp_path):
    rng = np.random.default_rng(1)
    X = np.concatenate([rng.normal(c, 0.1, (60, 2)) for c in ([0, 0], [9, 0], [0, 9])])
    pl.DataFrame(X, schema=["a", "b"]).write_csv(tmp_path / "p.csv")
    got, _ = fit(tmp_path / "p.csv", "--k", "auto")
    assert [t["k"] for t in got["trials"]] == list(range(1, 21))
    assert got["k"] == got["suggested"] == 3
    pl.DataFrame(X[[0, 70, 130]], schema=["a", "b"]).write_csv(tmp_path / "few.csv")
    few, _ = fit(tmp_path / "few.csv", "--k", "auto")
    assert [t["k"] for t in few["trials"]] == [1, 2, 3]


def test_a_fit_that_ends_at_the_limit_says_so(fit, table):
    _, path = table
    got, said = fit(path, "--k", 7, "--max-iter", 1)
    assert got["converged"] is False
    assert "not converged after 1 iterations: increase --max-iter" in said
    got, said = fit(path, "--k", 2)
    assert (got["converged"], said) == (True, "")


@pytest.mark.parametrize("kind", ["npz", "json", "csv", "parquet", "jsonl"])
def test_too_many_initial_centroids_are_rejected_before_decompression(fit, table, tmp_path, kind, monkeypatch):
    _, path = table
    frame = pl.DataFrame(np.zeros((5000, 2)), schema=["large", "small"])
    start = tmp_path / f"s.{kind}"
    {
        "npz": lambda: np.savez_compressed(start, centroids=frame.to_numpy()),
        "json": lambda: start.write_text(json.dumps(frame.rows())),
        "csv": lambda: frame.write_csv(start),
        "parquet": lambda: frame.write_parquet(start),
        "jsonl": lambda: frame.write_ndjson(start),
    }[kind]()
    with pytest.raises(SettingsError, match=r"the file has 5,000 centroids, and --k is 2"):
        fit(path, "--k", 2, "--init", start)
    monkeypatch.setattr("streamkm.recompute.outputs.MAX_CENTROIDS", 4000)
    with pytest.raises(StreamkmError, match="more than 4,000"):
        fit(path, "--init", start)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"centroids": np.zeros((2, 3)), "fields": np.array(["large", "small"])}, "3 coordinates and 2 names"),
        ({"centroids": np.zeros((2, 1))}, "1 coordinates and 1 names, the points 2"),
        ({"centroids": np.zeros((2, 2)), "fields": np.array([["a"], ["b"]])}, "2 field names"),
        ({"a": np.zeros(2)}, "none is called centroids"),
    ],
)
def test_arrays_that_are_no_start_are_named(fit, table, tmp_path, arrays, message):
    np.savez(tmp_path / "s.npz", **arrays)
    with pytest.raises(StreamkmError, match=message):
        fit(table[1], "--init", tmp_path / "s.npz")


def test_json_that_is_nested_too_deeply_is_our_error(fit, table, tmp_path, monkeypatch):
    (tmp_path / "s.json").write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(FileFormatError, match=r"the file has no centroids: it is nested too deeply\."):
        fit(table[1], "--init", tmp_path / "s.json")
    (tmp_path / "s.json").write_text(f"[[1{'0' * 5000}, 1], [2, 3]]")
    with pytest.raises(FileFormatError, match=r"value has 5001 digits\."):
        fit(table[1], "--init", tmp_path / "s.json")
    monkeypatch.setattr("streamkm.recompute.outputs.MAX_BYTES", 1000)
    with pytest.raises(SettingsError, match="longer than"):
        fit(table[1], "--init", tmp_path / "s.json")


def test_a_frame_with_duplicate_columns_is_rejected():
    frame = pd.DataFrame([[1.0, 2.0], [3.0, 4.0]], columns=["v", "v"])
    with pytest.raises(DataError, match="several columns called 'v'"):
        OnlineKMeans(2).learn_many(frame)
    with pytest.raises(DataError, match="unique"):
        ExactKMeans(1).fit(frame)
    with pytest.raises(DataError, match="several columns v"):
        points_of_table(frame, ("v",))
