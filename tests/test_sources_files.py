"""Files as sources: their records, and the errors for damaged files."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamkm.cells import MISSING
from streamkm.codecs import ColumnsCodec
from streamkm.connectors import FileSource
from streamkm.connectors.files import tables
from streamkm.errors import FileFormatError, MissingFileError, PositionLostError, SettingsError, StreamkmError
from streamkm.records import TopicPartition


def read(path, fields=None, max_records=1000):
    """All rows, by column."""
    source = FileSource(path, fields=fields)
    try:
        source.seek(source.beginning())
        got = []
        while source.position() != source.end():
            got += source.poll(0, max_records)
        return {name: [x for g in got for x in g.columns[name].tolist()] for name in got[0].columns} if got else {}
    finally:
        source.close()


def written(tmp_path: Path, content: str | bytes, name: str = "a.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_numbers_are_numbers_and_text_stays_text(tmp_path):
    path = written(tmp_path, "a,b,c\n1,2.5,x\n,3,\n-1e3,4,7\n")
    source = FileSource(path)
    source.seek(source.beginning())
    (records,) = source.poll(0, 10)
    source.close()
    assert records.columns["a"].dtype == records.columns["b"].dtype == np.float64
    np.testing.assert_equal(records.columns["a"], [1, np.nan, -1000])
    assert records.columns["c"].tolist() == ["x", None, "7"]


@pytest.mark.parametrize(
    "content",
    [
        "a,b\n1,2\n3,4\n",
        "a,b\r\n1,2\r\n3,4\r\n",
        "a,b\n1,2\n3,4",
        "a,b\n1,2\n3,4\n\n\r\n",
        "\ufeffa,b\n1,2\n3,4\n",
        "a\tb\n1\t2\n3\t4\n",
        "a;b\n1;2\n3;4\n",
        '"a","b"\n"1","2"\n3,"4"\n',
    ],
)
def test_dialects_of_csv_are_read_alike(tmp_path, content):
    assert read(written(tmp_path, content)) == {"a": [1, 3], "b": [2, 4]}


def test_newlines_in_quotes_are_no_rows_and_empty_lines_inside_are(tmp_path):
    path = written(tmp_path, 'a,b\n1,"x\ny\n"\n\n2,"say ""hi"""\n')
    got = read(path)
    assert got["b"] == ["x\ny\n", None, 'say "hi"']
    np.testing.assert_equal(got["a"], [1, np.nan, 2])


cells = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=6) | st.from_regex(
    r"-?[0-9]{1,9}\.[0-9]{1,9}", fullmatch=True
)


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(st.tuples(cells, cells), max_size=30),
    block=st.integers(16, 200),
    max_records=st.integers(1, 40),
    data=st.data(),
)
def test_csv_is_the_same_in_blocks_of_any_size_from_any_row(tmp_path_factory, rows, block, max_records, data):
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    pl.DataFrame(rows, schema={"a": pl.String, "b": pl.String}, orient="row").write_csv(path, quote_style="always")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "BLOCK_BYTES", block)
        with contextlib.closing(FileSource(path)) as source:
            tp = source.partitions()[0]
            assert source.end() == {tp: len(rows)}
            start = data.draw(st.integers(0, len(rows)))
            source.seek({tp: start})
            got = []
            while source.position()[tp] < len(rows):
                (records,) = source.poll(0, max_records)
                got += zip(*(c.tolist() for c in records.columns.values()), strict=True)
    assert [tuple(map(as_text, row)) for row in got] == [tuple(map(as_text, row)) for row in rows[start:]]


def as_text(cell):
    """A cell in a comparable form: a number, or its text; None if it is empty."""
    try:
        number = float(cell)
    except (TypeError, ValueError):
        return "" if cell is None or cell.strip().lower() in MISSING else cell
    return "" if math.isnan(number) else number


@settings(deadline=None)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=50))
def test_numbers_in_csv_are_read_as_python_reads_them(tmp_path_factory, numbers):
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    path.write_text("a\n" + "".join(f"{n!r}\n" for n in numbers))
    assert np.array(read(path)["a"]).tobytes() == np.array(numbers).tobytes()


def test_which_rows_are_bad_does_not_depend_on_where_a_file_was_cut(tmp_path, monkeypatch):
    path = written(tmp_path, "a\n" + "1.5\n" * 50 + "oops\n" + "2.5\n" * 50 + "inf\n\n3\n")
    expected = None
    for block in (10, 57, 1 << 20):
        monkeypatch.setattr(tables, "BLOCK_BYTES", block)
        source = FileSource(path)
        source.seek(source.beginning())
        batches = []
        while source.position() != source.end():
            batches += [ColumnsCodec(["a"]).decode(r) for r in source.poll(0, 1000)]
        source.close()
        found = (
            np.concatenate([b.points for b in batches]).tolist(),
            [(bad.record.offset, bad.reason) for b in batches for bad in b.bad],
        )
        expected = expected or found
        assert found == expected
    assert expected[1] == [(50, "not-a-number"), (101, "not-finite"), (102, "not-finite")]


def test_parquet_kinds_become_numbers_seconds_or_text(tmp_path):
    path = tmp_path / "a.parquet"
    pl.DataFrame(
        {
            "i": [1, None, 3],
            "f": [0.5, 1.5, None],
            "s": ["1", "x", None],
            "b": [True, False, None],
            "d": pl.Series(["1.5", "2.5", "3.5"]).cast(pl.Decimal(10, 2)),
            "t": pl.Series([0, 1_500, 2_000]).cast(pl.Datetime("ms")),
            "y": pl.Series([0, 1, 2]).cast(pl.Date),
        }
    ).write_parquet(path)
    got = read(path)
    np.testing.assert_equal(got["i"], [1, np.nan, 3])
    np.testing.assert_equal(got["f"], [0.5, 1.5, np.nan])
    assert got["s"] == ["1", "x", None]
    assert got["b"] == ["true", "false", None]
    assert got["d"] == [1.5, 2.5, 3.5]
    assert got["t"] == [0, 1.5, 2]
    assert got["y"] == [0, 86400, 172800]


def test_npy_arrays_have_columns_by_number_or_by_their_names(tmp_path):
    np.save(tmp_path / "two.npy", np.asfortranarray(np.arange(6).reshape(3, 2)))
    np.save(tmp_path / "one.npy", np.float32([1, 2]))
    np.save(tmp_path / "named.npy", np.array([(1, 2.5, "t")], dtype=[("a", "i4"), ("b", "f8"), ("c", "U2")]))
    assert read(tmp_path / "two.npy") == {"0": [0, 2, 4], "1": [1, 3, 5]}
    assert read(tmp_path / "two.npy", fields=["1"]) == {"1": [1, 3, 5]}
    assert read(tmp_path / "one.npy") == {"0": [1, 2]}
    assert read(tmp_path / "named.npy") == {"a": [1], "b": [2.5], "c": ["t"]}


def test_rows_come_from_blocks_so_that_memory_stays_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "BLOCK_ROWS", 10)
    np.save(tmp_path / "a.npy", np.arange(25.0))
    pl.DataFrame({"0": np.arange(25.0)}).write_parquet(tmp_path / "a.parquet")
    for name in ("a.npy", "a.parquet"):
        source = FileSource(tmp_path / name)
        source.seek(source.beginning())
        sizes = [len(r) for _ in range(3) for r in source.poll(0, 100)]
        source.close()
        assert sizes == [10, 10, 5]
        assert read(tmp_path / name) == {"0": list(range(25))}


@pytest.mark.parametrize("kind", ["csv", "npy", "npz", "parquet", "arrow"])
def test_files_without_rows_are_at_their_end(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    empty = pl.DataFrame({"a": pl.Series([], dtype=pl.Float64)})
    {
        "csv": lambda: path.write_text("a,b\n"),
        "npy": lambda: np.save(path, np.empty((0, 2))),
        "npz": lambda: np.savez(path, np.empty((0, 2))),
        "parquet": lambda: empty.write_parquet(path),
        "arrow": lambda: empty.write_ipc(path),
    }[kind]()
    source = FileSource(path)
    assert source.beginning() == source.end()
    source.seek(source.end())
    assert source.poll(0, 10) == []
    source.close()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "no header"),
        ("a.csv", b"1,2\n3,4\n", "no header.*Add a line"),
        ("a.csv", b"a,a\n1,2\n", "twice"),
        ("a.csv", b"\xff,b\n1,2\n", "header.*not UTF-8"),
        ("a.csv", b"\xff\xfea\0,\0b\0\n\0", "UTF-16.*iconv"),
        ("a.csv", b"a,b\n1,2\n3,\xff\n", "row 1.*not UTF-8"),
        ("a.csv", b"a,b\n1,2\n3", "row 1.*last row is truncated"),
        ("a.csv", b'a,b\n1,2\n3,"4\n5,6\n', "row 1.*inside a quoted value"),
        ("a.npy", b"not numpy", "not an npy array"),
        ("a.npy", b"", "not an npy array"),
        ("a.parquet", b"PAR1", "not parquet"),
        ("a.parquet", b"a,b\n1,2\n", "not parquet"),
        ("a.npz", b"not numpy", "not an npz archive"),
        ("a.arrow", b"ARROW1", "not an Arrow IPC file"),
        ("a.feather", b"a,b\n1,2\n", "not an Arrow IPC file"),
        ("a.json", b"{}", "not a supported kind of file.*parquet"),
        ("a", b"", "not a supported kind of file"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_named(tmp_path, name, content, message):
    path = written(tmp_path, content, name)
    with pytest.raises(FileFormatError, match=f"(?s){name}.*{message}|{message}") as refused:
        read(path)
    assert str(path) in refused.value.where


@pytest.mark.parametrize("kind", ["npy", "npz", "parquet", "arrow", "feather"])
def test_a_file_cut_off_is_named(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    if kind.startswith("np"):
        np.save(path, np.arange(1000.0)) if kind == "npy" else np.savez_compressed(path, np.arange(1000.0))
    else:
        frame = pl.DataFrame({"a": range(1000)})
        frame.write_parquet(path) if kind == "parquet" else frame.write_ipc(path)
    content = path.read_bytes()
    for keep in (len(content) // 2, len(content) - 1):
        path.write_bytes(content[:keep])
        with pytest.raises(FileFormatError, match="truncated"):
            read(path)


def test_npy_never_unpickles(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(FileFormatError, match="not an npy array"):
        FileSource(tmp_path / "a.npy")


@pytest.mark.parametrize("array", [np.zeros((2, 2, 2)), np.array(1.0), np.zeros(2, complex), np.zeros(2, "M8[s]")])
def test_an_array_that_is_not_a_numeric_table_is_rejected(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(FileFormatError):
        FileSource(tmp_path / "a.npy")


def test_parquet_lists_of_text_are_rejected_only_if_they_are_read(tmp_path):
    pl.DataFrame({"a": [1.0], "l": [["x"]]}).write_parquet(tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", fields=["a"]) == {"a": [1]}
    with pytest.raises(FileFormatError, match="'l'"):
        read(tmp_path / "a.parquet")


@pytest.mark.parametrize("kind", ["csv", "npy", "parquet"])
def test_a_column_that_is_not_there_is_named_with_those_that_are(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    np.save(path, np.zeros((1, 1))) if kind == "npy" else (
        getattr(pl.DataFrame({"0": [1.5]}), f"write_{kind}")(path)
        if kind == "parquet"
        else path.write_text("0,b\n1,2\n")
    )
    with pytest.raises(FileFormatError, match=r"'z'.*Columns: 0"):
        FileSource(path, fields=["z"])
    assert list(read(path, fields=["0"])) == ["0"]


def test_a_file_that_is_not_there_is_said_with_what_to_do(tmp_path):
    with pytest.raises(MissingFileError, match=r"nowhere.*does not exist.* Check the path"):
        FileSource(tmp_path / "nowhere.csv")


def test_paths_are_given_once_and_not_none(tmp_path):
    path = written(tmp_path, "a\n1\n")
    for paths in ([], [path, path]):
        with pytest.raises(SettingsError):
            FileSource(paths)


def test_another_file_under_the_same_name_has_another_identity(tmp_path):
    path = written(tmp_path, "a\n1\n")
    identities = []
    for content in ("a\n1\n", "a\n2\n", "a\n1\n1\n"):
        written(tmp_path, content)
        source = FileSource(path)
        identities.append(source.identity())
        source.close()
    assert len({str(i) for i in identities}) == 3


def test_a_row_behind_the_end_is_lost(tmp_path):
    source = FileSource(written(tmp_path, "a\n1\n"))
    with pytest.raises(PositionLostError):
        source.seek({TopicPartition("other.csv", 0): 0})
    source.close()


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=120))
def test_arbitrary_bytes_as_csv_are_read_or_rejected_with_our_errors(tmp_path_factory, raw):
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    path.write_bytes(b"a,b\n" + raw)
    try:
        read(path, max_records=7)
    except StreamkmError as error:
        assert str(path) in error.where  # noqa: PT017  # either way is right
