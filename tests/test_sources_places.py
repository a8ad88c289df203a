"""Resolution of paths, folders, globs, partitions and URLs; rows of databases."""

from __future__ import annotations

import builtins
import contextlib
import sqlite3

import numpy as np
import polars as pl
import pytest

from streamkm.codecs import ColumnsCodec
from streamkm.connectors import FileSource
from streamkm.connectors.files import tables
from streamkm.connectors.files.source import expand, numeric_columns
from streamkm.connectors.sql import sql_rows
from streamkm.errors import FileFormatError, MissingFileError, SettingsError, SourceError


def names(paths):
    return [place.name for place in expand([str(path) for path in paths])]


def rows_of(path, fields=None):
    with contextlib.closing(FileSource(path, fields=fields)) as source:
        source.seek(source.beginning())
        got = []
        while found := source.poll(0, 1000):
            got += found
    return {name: [x for g in got for x in g.columns[name].tolist()] for name in got[0].columns}


@pytest.fixture
def folder(tmp_path):
    for name in ("b.csv", "a.csv", "sub/c.csv", "_SUCCESS", ".hidden.csv", "_temporary/d.csv", "notes.txt"):
        file = tmp_path / "data" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x\n1\n")
    return tmp_path / "data"


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_a_folder_is_its_files_of_known_kinds_sorted_without_bookkeeping(folder, prefix):
    url = f"{prefix}{folder}"
    assert names([url]) == [f"{url}/a.csv", f"{url}/b.csv", f"{url}/sub/c.csv"]


GLOBS = [
    ("*.csv", ["a.csv", "b.csv"]),
    ("s*/*.csv", ["sub/c.csv"]),
    ("sub/**/*.csv", ["sub/c.csv"]),
]


@pytest.mark.parametrize(
    ("prefix", "glob", "found"),
    # In a URL brackets are not allowed, and a question mark starts the query.
    [
        ("", "[b-z].csv", ["b.csv"]),
        ("", "?.csv", ["a.csv", "b.csv"]),
        *((prefix, *case) for prefix in ("", "file://") for case in GLOBS),
    ],
)
def test_a_glob_is_the_files_it_matches(folder, prefix, glob, found):
    assert names([f"{prefix}{folder}/{glob}"]) == [f"{prefix}{folder}/{name}" for name in found]


def test_paths_are_read_in_the_order_of_their_names_however_they_are_given(folder):
    assert names([folder / "sub" / "c.csv", folder / "b.csv", folder / "a.csv"]) == names([folder])


def test_a_file_that_is_meant_twice_is_named(folder):
    with pytest.raises(SettingsError, match=r"a\.csv: the file is given twice"):
        expand([str(folder), str(folder / "a.csv")])


@pytest.mark.parametrize("prefix", ["", "file://"])
@pytest.mark.parametrize("path", ["nowhere.csv", "*.parquet", "nowhere/*.csv"])
def test_what_matches_nothing_is_named(folder, prefix, path):
    with pytest.raises(MissingFileError) as refused:
        expand([f"{prefix}{folder}/{path}"])
    assert path.split("/")[0] in refused.value.where


def test_a_folder_without_tables_says_what_is_read(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(MissingFileError, match=r"1 others.*\.parquet"):
        expand([str(tmp_path)])


@pytest.mark.parametrize(
    "url", ["nosuch://user:hunter2@host/x.csv", "s3://key:hunter2@bucket/x.csv?scheme=nosuch&endpoint_override=x"]
)
def test_a_url_that_cannot_be_read_is_named_without_its_password(url):
    with pytest.raises((SettingsError, SourceError)) as refused:
        expand([url])
    assert "hunter2" not in str(refused.value)
    assert refused.value.where


def test_without_pyarrow_a_url_says_how_to_get_it(monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name == "pyarrow":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(SettingsError, match="pip install"):
        expand(["s3://bucket/x.csv"])


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_names_in_a_path_are_columns_numbers_if_they_look_so(tmp_path, prefix):
    for year, city in (("2025", "Bonn"), ("2026", "S%20Paulo"), ("__HIVE_DEFAULT_PARTITION__", "x")):
        file = tmp_path / "t" / f"year={year}" / f"city={city}" / "a.parquet"
        file.parent.mkdir(parents=True)
        pl.DataFrame({"a": [1.5, 2.5]}).write_parquet(file)
    got = rows_of(f"{prefix}{tmp_path}/t", ["city", "a", "year"])
    assert list(got) == ["city", "a", "year"]
    assert got["city"] == ["Bonn", "Bonn", "S Paulo", "S Paulo", "x", "x"]
    np.testing.assert_equal(got["year"], [2025, 2025, 2026, 2026, np.nan, np.nan])
    assert rows_of(f"{prefix}{tmp_path}/t", ["year"])["year"][:4] == [2025, 2025, 2026, 2026]


def test_a_column_of_the_file_hides_one_of_the_path(tmp_path):
    file = tmp_path / "a=7" / "x.csv"
    file.parent.mkdir()
    file.write_text("a\n1\n")
    assert rows_of(file) == {"a": [1]}


def test_a_column_that_neither_file_nor_path_has_is_named_with_those_of_both(tmp_path):
    file = tmp_path / "year=2026" / "x.csv"
    file.parent.mkdir()
    file.write_text("a\n1\n")
    with pytest.raises(FileFormatError, match=r"'z'.*Columns: a, year"):
        FileSource(file, fields=["z"])


@pytest.mark.parametrize("kind", ["csv", "npy", "npz", "parquet", "arrow"])
def test_a_file_elsewhere_reads_as_the_same_file_here(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(tables, "BLOCK_ROWS", 4)
    monkeypatch.setattr(tables, "BLOCK_BYTES", 40)
    table = np.arange(40, dtype=np.float32).reshape(20, 2) / 4
    path = tmp_path / f"a.{kind}"
    field = "b" if kind == "csv" else "1"
    frame = pl.DataFrame({"0" if kind != "csv" else "a": table[:, 0], field: table[:, 1]})
    {
        "csv": frame.write_csv,
        "npy": lambda p: np.save(p, table),
        "npz": lambda p: np.savez(p, table),
        "parquet": lambda p: frame.write_parquet(p, row_group_size=7),
        "arrow": lambda p: frame.write_ipc(p, record_batch_size=7),
    }[kind](path)
    assert rows_of(f"file://{path}", [field]) == rows_of(path, [field]) == {field: table[:, 1].tolist()}
    with (
        contextlib.closing(FileSource(f"file://{path}")) as there,
        contextlib.closing(FileSource(path)) as here,
    ):
        assert there.fits_float32() == here.fits_float32() == (kind != "csv")
        assert [f["crc32"] for f in there.identity()["files"]] == [f["crc32"] for f in here.identity()["files"]]


@pytest.mark.parametrize("kind", ["parquet", "arrow", "npy", "npz"])
def test_a_file_elsewhere_that_was_cut_off_is_named(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    path.write_bytes(b"PAR1 or anything")
    with pytest.raises(FileFormatError, match="truncated") as refused:
        FileSource(f"file://{path}")
    assert refused.value.where == f"file://{path}"


def test_numeric_columns_are_those_of_numbers_even_with_a_stray_word(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text("a,name,b,c,empty\n1,x,7,1,\n2,y,oops,x,\n3,z,9,y,\n")
    assert numeric_columns(expand([str(file)])[0]) == ("a", "b")
    pl.DataFrame({"s": ["x"], "i": [1], "f": [1.5], "l": [["1"]], "t": pl.Series([0]).cast(pl.Datetime)}).write_parquet(
        tmp_path / "a.parquet"
    )
    assert numeric_columns(expand([str(tmp_path / "a.parquet")])[0]) == ("i", "f")


def test_npz_is_a_table_and_the_vectors_beside_it(tmp_path):
    path = tmp_path / "a.npz"
    table = np.asfortranarray(np.arange(6, dtype=np.int16).reshape(3, 2))
    np.savez_compressed(path, X=table, y=np.array([7, 8, 9]), other=np.zeros(5))
    assert rows_of(path) == {"0": [0, 2, 4], "1": [1, 3, 5], "y": [7, 8, 9]}
    assert numeric_columns(expand([str(path)])[0]) == ("0", "1")
    np.savez(path, a=np.array([1.5, 2.5]), b=np.array(["x", "y"]))
    assert rows_of(path) == {"a": [1.5, 2.5], "b": ["x", "y"]}
    np.savez(path, np.array([(1, 2.5)], dtype=[("a", "i4"), ("b", "f8")]))
    assert rows_of(path) == {"a": [1], "b": [2.5]}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": np.zeros((2, 2)), "b": np.zeros((2, 2))}, "several tables: a, b"),
        ({"a": np.zeros(2), "b": np.zeros(3)}, r"do not form a table: a \(2,\), b \(3,\)"),
        ({"a": np.zeros((2, 2, 2))}, "do not form a table"),
        ({"a": np.zeros(2, complex)}, "complex128 is not a number"),
        ({}, "do not form a table: nothing"),
    ],
)
def test_an_npz_that_is_no_table_says_what_it_has(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(FileFormatError, match=message):
        FileSource(tmp_path / "a.npz")


def test_npz_never_unpickles(tmp_path):
    np.savez(tmp_path / "a.npz", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(FileFormatError, match="objects"):
        FileSource(tmp_path / "a.npz")


@pytest.fixture
def database(tmp_path):
    path = tmp_path / "points.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("create table t (a real, b integer, c text, d)")
        connection.executemany(
            "insert into t values (?, ?, ?, ?)", [(i / 2, i, f"{i}", i if i % 2 else "x") for i in range(10)]
        )
        connection.execute("insert into t values (null, 1, 'oops', 1)")
        connection.commit()
    return f"sqlite:///{path}"


def test_rows_of_a_database_come_in_blocks_with_numbers_text_and_gaps(database, monkeypatch):
    monkeypatch.setattr("streamkm.connectors.sql.FETCH_ROWS", 4)
    got = list(sql_rows("select a, b, c from t order by rowid", database))
    assert [(r.start, r.stop) for r in got] == [(0, 4), (4, 8), (8, 11)]
    codec = ColumnsCodec(["a", "c"])
    batches = [codec.decode(records) for records in got]
    assert np.concatenate([b.points for b in batches]).tolist() == [[i / 2, i] for i in range(10)]
    assert [(bad.record.offset, bad.field) for b in batches for bad in b.bad] == [(10, "a")]


def test_a_column_of_words_and_numbers_keeps_both(database):
    (got,) = sql_rows("select d from t where rowid < 3 order by rowid", database)
    (batch,) = [ColumnsCodec(["d"]).decode(got)]
    assert batch.points.tolist() == [[1.0]]
    assert [bad.reason for bad in batch.bad] == ["not-a-number"]


def test_a_query_without_rows_still_has_columns(database):
    (got,) = sql_rows("select a, b from t where a > 100", database)
    assert (len(got), list(got.columns)) == (0, ["a", "b"])


def test_what_a_query_does_is_rolled_back(database):
    list(sql_rows("delete from t returning a", database))
    assert sum(len(records) for records in sql_rows("select a from t", database)) == 11


@pytest.mark.parametrize(
    ("query", "url", "error", "message"),
    [
        ("select z from t", None, SourceError, "no such column"),
        ("delete from t", None, SourceError, "returns no rows"),
        ("select a, b as a from t", None, SourceError, "a twice"),
        ("select 1", "nonsense", SettingsError, "SQLAlchemy URL"),
        ("select 1", "nosuch://user:hunter2@host/db", SettingsError, "SQLAlchemy URL"),
        ("select 1", "sqlite:////nowhere/at/all.db", SourceError, "unable to open"),
    ],
)
def test_a_query_that_cannot_be_asked_says_why_without_a_password(database, query, url, error, message):
    with pytest.raises(error, match=message) as refused:
        list(sql_rows(query, url or database))
    assert "hunter2" not in str(refused.value)
