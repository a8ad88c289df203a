"""The csv parser: one table of cases for files, the service and ``predict --csv``."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import re
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from consumers import cli, logs
from streamkm.cells import MISSING, explain_non_number, parse_number
from streamkm.connectors.files import csv_text, tables
from streamkm.connectors.files.source import expand
from streamkm.delivery.predictions import Batches, Header, csv_rows, lines
from streamkm.errors import BadRecordsError, DataError, StreamkmError
from streamkm.recompute.collect import TableFiles, collect
from streamkm.service.problems import Problem
from streamkm.service.tables import read_csv

XY = [[1, 10], [2, 20], [3, 30]]
READ = {
    "plain": "x,y\n1,10\n2,20\n3,30\n",
    "no newline at the end": "x,y\n1,10\n2,20\n3,30",
    "CRLF": "x,y\r\n1,10\r\n2,20\r\n3,30\r\n",
    "empty lines at both ends": "\n\nx,y\n1,10\n2,20\n3,30\n\n\r\n",
    "byte order mark": "\ufeffx,y\n1,10\n2,20\n3,30\n",
    "tabs": "x\ty\n1\t10\n2\t20\n3\t30\n",
    "semicolons": "x;y\n1;10\n2;20\n3;30\n",
    "pipes": "x|y\n1|10\n2|20\n3|30\n",
    "blanks between, as R's write.table": '"x" "y"\n"1" 1 10\n"2" 2 20\n"3" 3 30\n',
    "columns of blanks": "  x    y\n  1   10\n  2   20\n  3   30\n",
    "Excel's first line": "sep=;\nx;y\n1;10\n2;20\n3;30\n",
    "np.savetxt with a delimiter of two characters": "x, y\n1, 10\n2, 20\n3, 30\n",
    "np.savetxt with its header as a comment": "# x y\n1 10\n2 20\n3 30\n",
    "comments before the header": "# made by hand\n# today\nx,y\n1,10\n2,20\n3,30\n",
    "blanks in cells only": "x,y\n 1,10 \n2 , 20\n\t3,30\n",
    "quotes behind blanks": 'x, y, "a, b"\n1, 10, "c, d"\n2, 20, e\n3, 30, "f ""g"""\n',
    "separators inside of quotes": '"x";"y";"height, m"\n1;10;"a;b"\n2;20;2\n3;30;3\n',
    "quoted numbers": '"x","y"\n"1","10"\n"2",20\n3," 30 "\n',
    "quotes inside of a cell": 'x,note,y\n1,ok,10\n2,5" pipe,20\n3,6" pipe,30\n',
    "one quote in all of it": 'x,note,y\n1,ok,10\n2,5" pipe,20\n3,ok,30\n',
    "a quoted cell that goes on": 'x,note,y\n1,"a"b,10\n2,"c""d",20\n3,"e" f,30\n',
    "newlines in quotes": 'x,note,y\n1,"a\nb",10\n2,"c\r\n\nd",20\n3,e,30\n',
    "a newline in the header": '"a\nb",x,y\n0,1,10\n0,2,20\n0,3,30\n',
    "R's write.csv": '"","x","y"\n"1",1,10\n"2",2,20\n"3",3,30\n',
    "R's write.table with commas": '"x","y"\n"a",1,10\n"b",2,20\n"c",3,30\n',
    "pandas' to_csv": ",x,y\n0,1,10\n1,2,20\n2,3,30\n",
    "a separator behind the last name": "x,y,\n1,10,\n2,20,\n3,30,\n",
    "a separator behind the last value": "x,y\n1,10,\n2,20,\n3,30,\n",
    "two columns without a name": ",,x,y\na,0,1,10\na,1,2,20\nb,0,3,30\n",
    "other columns of one name": "x,note,note,y\n1,a,b,10\n2,a,b,20\n3,a,b,30\n",
    "signs and exponents": "x,y\n+1,1e1\n2.,+2E+1\n3.0,300e-1\n",
    "a huge cell": f"x,note,y\n1,{'a' * 200_000},10\n2,b,20\n3,c,30\n",
    "a huge cell with a quote in it": f'x,note,y\n1,5"{"a" * 200_000},10\n2,b,20\n3,c,30\n',
    "letters of many languages": "x,größe,y\n1,é,10\n2,日本,20\n3,ß,30\n",
}


def by_files(tmp_path, text, fields):
    (tmp_path / "a.csv").write_bytes(text)
    files = TableFiles(expand([str(tmp_path / "a.csv")]), fields)
    return collect(files.rows(), files.fields, line_of=files.line).array


def by_service(_, text, fields):
    return read_csv(text, fields)


def by_predict(_, text, fields):
    header = Header(fields, sys.stdout.writelines)
    batches = Batches(lambda _: None)
    coming = lines(io.BytesIO(text), batches)
    begun = header.read(coming, batches)
    return np.array([point for _, point in csv_rows(header, begun, coming)])


READERS = {"files": by_files, "service": by_service, "predict": by_predict}


@pytest.mark.parametrize("text", READ.values(), ids=READ)
@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
@pytest.mark.parametrize("block", [40, 1 << 22])
def test_dialects_are_read_alike_by_all(tmp_path, monkeypatch, capsys, text, reader, block):
    monkeypatch.setattr(tables, "BLOCK_BYTES", block)
    assert reader(tmp_path, text.encode(), ["x", "y"]).tolist() == XY


REFUSED = {
    "nothing": ("", "empty|no header"),
    "no header": ("1,10\n2,20\n", "no header"),
    "no header, but blanks": ("   1.5  10\n   2.5  20\n", "no header|no column|values"),
    "a header without names": (",\n1,2\n", "no names"),
    "the other column only": ("x,z\n1,10\n", "column does not exist|no column y"),
    "a column twice": ("x,y,y\n1,2,3\n", "twice|several columns"),
    "UTF-16": ("x,y\n1,10\n".encode("utf-16"), "UTF-16|not UTF-8"),
    "Latin-1 in the header": ("x,y,größe\n1,10,1\n".encode("latin-1"), "not UTF-8"),
    "CR only": ("x,y\r1,10\r2,20\r", "CR only"),
    "a row that is too long": ("x,y\n1,10\n2,20,7\n3,30\n", "3 values"),
    "cut off in quotes": ('x,y\n1,10\n2,"20\n3,30\n', "inside a quoted value"),
    "an empty line inside": ("x,y\n1,10\n\n3,30\n", "missing|empty line"),
    "a decimal comma": ('x,y\n1,10\n2,"2,5"\n', r"a decimal comma"),
    "a thousands separator": ('x,y\n1,10\n2,"1,200.50"\n', r"a thousands separator"),
    "a currency": ("x,y\n1,10\n2,$1.5\n", r"a currency"),
    "a per cent sign": ("x,y\n1,10\n2,5 %\n", r"a per cent sign"),
    "a hexadecimal number": ("x,y\n1,10\n2,0x10\n", r"a hexadecimal number"),
    "a date": ("x,y\n1,10\n2,2024-01-02\n", r"a date or a time"),
    "a boolean": ("x,y\n1,10\n2,TRUE\n", r"true or false"),
    "a unit": ("x,y\n1,10\n2,5 kg\n", r"a number with a unit"),
    "digits with underscores": ("x,y\n1,10\n2,1_000\n", r"underscores"),
    "infinity": ("x,y\n1,10\n2,inf\n", r"infinite|finite"),
} | {f"missing {text!r}": (f"x,y\n1,10\n2, {text}\n3,30\n", "missing") for text in sorted(MISSING - {""})}


@pytest.mark.parametrize(("text", "says"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_invalid_points_are_rejected_with_a_reason_by_all_readers(tmp_path, text, says, reader):
    raw = text if isinstance(text, bytes) else text.encode()
    if reader is by_service and (text == "" or says.startswith("no header")):
        assert reader(tmp_path, raw, ["x", "y"]).shape == (
            raw.count(b"\n"),
            2,
        )  # the service accepts csv without a header
        return
    with pytest.raises((StreamkmError, Problem), match=says):
        reader(tmp_path, raw, ["x", "y"])


def test_the_first_bad_cell_is_named_with_its_line(tmp_path):
    text = b'# a\nnote,x,y\n"two\nlines",1,10\n5" pipe,2,oops\n'
    with pytest.raises(StreamkmError, match=r"a\.csv, row 1, column 'y': y is not a number: 'oops' \(line 5\)"):
        by_files(tmp_path, text, ["x", "y"])
    with pytest.raises(Problem) as refused:
        read_csv(text, ["x", "y"])
    assert refused.value.where == "line 5, field y"
    with pytest.raises(DataError, match="line 5, field y"):
        by_predict(tmp_path, text, ["x", "y"])


cell = st.text(st.sampled_from(list('ab"\n,; 1')), max_size=6)


@settings(max_examples=150, deadline=None)
@given(rows=st.lists(st.lists(cell, min_size=2, max_size=2), min_size=1, max_size=12), block=st.integers(8, 60))
def test_rows_are_those_of_pythons_csv_module(tmp_path_factory, rows, block):
    # Unquoted cells with any content: Python's reader defines the rows.
    text = "x,y\n" + "".join(f"{a},{b}\n" for a, b in rows)
    expected = list(csv.reader(io.StringIO(text, newline="")))[1:]
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    path.write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "BLOCK_BYTES", block)
        plain = csv_text.Dialect(",", blanks=False, names=("x", "y"), unnamed=(), width=2, first=4, first_line=2)
        patch.setattr(csv_text, "detect", lambda *_, **__: plain)
        try:
            files = TableFiles(expand([str(path)]), ["x", "y"])
            got = [row for r in files.rows() for row in zip(r.columns["x"], r.columns["y"], strict=True)]
        except StreamkmError as error:
            assert "quoted" in error.message, error  # noqa: PT017 -- an open quote at the end
            return
    while expected and not expected[-1]:
        expected.pop()
    # No cell of a row with too many cells is used.
    cells = [(*row, "", "")[:2] if len(row) <= 2 else ("", "") for row in expected]
    assert [as_seen(*row) for row in got] == [as_seen(*row) for row in cells]


def as_seen(*row):
    """Cells as numbers, None if missing, else text."""
    values = [None if c is None else parse_number(c) if isinstance(c, str) else float(c) for c in row]
    return tuple(
        c if v is None and c is not None else None if v is None or np.isnan(v) else v
        for c, v in zip(row, values, strict=True)
    )


@pytest.mark.parametrize("memory", [0, 1 << 16])
def test_a_packed_file_is_read_like_any_other(tmp_path, monkeypatch, memory):
    monkeypatch.setattr(tables, "BLOCK_BYTES", 100)
    text = "x,y\n" + "".join(f"{i},{i * i}\n" for i in range(500))
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(text.encode()))
    files = TableFiles(expand([str(tmp_path)]), ["x", "y"])
    assert collect(files.rows(), files.fields).array.tolist() == [[i, i * i] for i in range(500)]
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(StreamkmError, match="truncated"):
        collect(TableFiles(expand([str(path)]), ["x", "y"]).rows(), ["x", "y"])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1,5", "a decimal comma"),
        (",5", "a decimal comma"),
        ("1,200", "a comma, of thousands or of decimals"),
        ("1,200,300", "a thousands separator"),
        ("1.200,5", "a thousands separator"),
        ("1 200,5", "a thousands separator"),
        ("1'200", "a thousands separator"),
        ("€ 5", "a currency"),
        ("5.00 USD", "a currency"),
        ("12:30", "a date or a time"),
        ("31.12.2024", "a date or a time"),
        ("oops", "text"),
        ("1e", "a number with a unit"),
        ("x" * 1000, "text"),
    ],
)
def test_the_reason_why_a_text_is_not_a_number(text, reason):
    assert parse_number(text) is None
    assert explain_non_number(text) == reason


# `fit` on whole files


@pytest.fixture
def fit(tmp_path, monkeypatch):
    """Run ``fit`` on a csv file; returns the result and its messages."""
    monkeypatch.setattr(logs, "configure", lambda **_: None)

    def run(text, *arguments, name="p.csv"):
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        result = CliRunner().invoke(cli.cli, ["fit", str(tmp_path / name), "--k", "1", "--json", *map(str, arguments)])
        if isinstance(result.exception, StreamkmError):
            raise result.exception
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout), result.stderr

    return run


ROWS = "".join(f"{100 + i},{x},{t}\n" for i, (x, t) in enumerate(zip([5, 1, 4, 2, 3], "abcde", strict=True)))


@pytest.mark.parametrize(
    ("text", "fields", "left"),
    [
        (f",x,t\n{ROWS}", ["x"], {"index": "without a name", "t": "text"}),
        (f"id,x,t\n{ROWS}", ["x"], {"id": "like an identifier", "t": "text"}),
        (f"customerId,x,t\n{ROWS}", ["x"], {"customerId": "like an identifier", "t": "text"}),
        (f"when,x,t\n{ROWS}", ["x"], {"when": "strictly monotonic integers", "t": "text"}),
        ("x\n1\n2\n3\n4\n5\n", ["x"], {}),  # the only column is always used
        ("id,x\n1,0.5\n1.5,1\n", ["id", "x"], {}),  # fractional values are not identifiers
        ("when,x\n1,5\n2,1\n3,4\n3,2\n5,3\n", ["when", "x"], {}),
        ("x,y\n1,10\n2,\n3,NA\n", ["x", "y"], {}),
        ("x,e\n1,\n2,NA\n3,-\n", ["x"], {"e": "no value"}),
        ('x,d,p\n1,"1,5",$2\n2,"2,5",$3\n', ["x"], {"d": "a decimal comma", "p": "a currency"}),
        ("x," + "y\n1,NA" + "\n1,NA" * 50 + "\n1,2\n", ["x", "y"], {}),
    ],
)  # fmt: skip
def test_columns_of_numbers_are_taken_and_the_others_said_with_the_reason(fit, text, fields, left):
    got, said = fit(text, "--bad-rows", "skip")
    assert got["fields"] == fields
    assert {one["column"]: one["reason"] for one in got["excluded_columns"]}.keys() == left.keys()
    for one in got["excluded_columns"]:
        assert left[one["column"]] in one["reason"]
        assert f"{one['column']} ({one['reason']}" in said


def test_the_first_cell_that_is_no_number_is_said_with_its_line(fit):
    got, said = fit('x,note\n1,NA\n2,"5\n\n6"\n3,7" pipe\n')
    assert got["excluded_columns"] == [{"column": "note", "reason": "text", "example": "5\n\n6", "row": 1, "line": 3}]
    assert "excluded: note (text: '5\\n\\n6', line 3)" in said


def test_numbers_are_looked_for_in_the_whole_file_or_the_sample_is_said(fit, monkeypatch):
    monkeypatch.setattr(tables, "BLOCK_BYTES", 200)
    text = "x,y\n" + "1.5,\n" * 1000 + "1.5,7\n" * 10
    got, said = fit(text, "--bad-rows", "skip")
    assert (got["fields"], got["rows"]) == (["x", "y"], {"read": 1010, "used": 10, "skipped": 1000})
    monkeypatch.setattr(tables, "PROFILE_BYTES", 1000)
    got, said = fit(text)
    assert got["fields"] == ["x"]
    assert [one["reason"] for one in got["excluded_columns"]] == ["no values"]
    assert "numeric columns were detected in the first" in said
    assert len(got["notes"]) == 1


def test_what_is_named_is_read_whatever_it_is_called(fit):
    got, said = fit(f",x,t\n{ROWS}", "--fields", "index,x")
    assert (got["fields"], got["excluded_columns"], said) == (["index", "x"], [], "")
    assert got["clusters"][0]["centroid"] == [102, 3]
    got, _ = fit('x,note\n1,ok\n2,5" pipe\n3,ok\n40,6" pipe\n5,ok\n6,ok\n', "--fields", "x")
    assert got["rows"] == {"read": 6, "used": 6, "skipped": 0}
    assert got["clusters"][0]["centroid"] == [9.5]


def test_names_with_commas_are_named_in_quotes(fit):
    text = '"height, m";"weight, kg"\n1.8;80\n1.7;70\n1.6;60\n'
    got, _ = fit(text)
    assert got["fields"] == ["height, m", "weight, kg"]
    got, _ = fit(text, "--fields", '"weight, kg","height, m"')
    assert got["fields"] == ["weight, kg", "height, m"]
    assert got["clusters"][0]["centroid"] == pytest.approx([70, 1.7])


def test_a_text_column_whose_rows_are_all_skipped_is_named_with_an_example(fit):
    with pytest.raises(DataError, match=r"no rows \(3 others were skipped, 3 of them for column 't': .*'a'"):
        fit("x,t\n1,a\n2,b\n3,c\n", "--fields", "x,t", "--bad-rows", "skip")


def test_a_header_one_name_short_of_one_column_is_asked_about(fit):
    with pytest.raises(StreamkmError, match=r"one name less.*decimal commas"):
        fit("x\n1,5\n2,5\n3,5\n")


TRAILING = "x,y\n" + "1,2,\n" * 120
RAGGED = {  # text, rows read, rows used with x only, with y
    "plain": ("x,y\n1,2\n3,4,5\n6,7\n8\n9,1,2,3\n10,11\n", 6, 4, 3),
    "as many long as short rows": ("x,y\n1,2\n3,4,5\n6,7\n8\n9,1,2\n2\n10,11\n", 7, 5, 3),
    "quotes": ('x,y\n1,"2"\n3,"4",5\n6,"7"\n9,1,2,3\n"10",11\n', 5, 3, 3),
    "quotes inside of cells": ('x,y,z\n1,2,5" pipe\n3,4,5" pipe,6\n6,7,ok\n10,11,ok\n9,1,1,1,1\n', 5, 3, 3),
    "a separator at the end": (TRAILING + "3,4,5\n6,7,\n9,1,2,3\n", 123, 121, 121),
    "a value at the end": (TRAILING + "3,4,5\n6,7,\n", 122, 121, 121),
}


@pytest.mark.parametrize("fields", ["x", "y", "x,y"])
@pytest.mark.parametrize("kind", list(RAGGED))
def test_rows_with_too_many_values_are_bad_whatever_is_read(fit, kind, fields):
    text, read, by_x, by_y = RAGGED[kind]
    used = by_x if fields == "x" else by_y
    found, _ = fit(text, "--fields", fields, "--bad-rows", "skip")
    assert found["rows"] == {"read": read, "used": used, "skipped": read - used}
    line = text[: text.index("3,")].count("\n") + 1
    assert re.search(rf"the row has \d values, the header has \d \(line {line}\)", found["skipped_examples"][0])
    with pytest.raises(BadRecordsError, match=rf"values, the header has \d \(line {line}\)"):
        fit(text, "--fields", fields)


def test_columns_of_digits_with_leading_zeros_are_excluded_with_a_message(fit):
    rows = "".join(f"{i % 3:02d},{i * 37 % 101:05d},{i % 7}.5,0.{i:02d}\n" for i in range(20))
    found, said = fit("month,zip,x,y\n" + rows, "--k", "2")
    assert found["fields"] == ["x", "y"]
    assert "zip (digits with leading zeros, like a code: '00000', line 2)" in said
    found, _ = fit("month,zip,x,y\n" + rows, "--k", "2", "--fields", "zip,x")
    assert found["fields"] == ["zip", "x"]


def test_integers_that_are_all_different_are_clustered_with_a_warning(fit):
    rows = "".join(f"{i * 37 % 101},{i % 7}.5,{i * 5 % 40}\n" for i in range(60))
    found, said = fit("ref,x,n\n" + rows, "--k", "2")
    assert found["fields"] == ["ref", "x", "n"]
    assert "column ref is clustered, but may be an identifier: it has 60 different integers" in said
    assert "column n " not in said


def test_a_message_about_many_excluded_columns_describes_the_first_ones(fit):
    header = ",".join(["x", *(f"t{i}" for i in range(30))])
    found, said = fit(f"{header}\n" + ",".join(["1.5", *(["word"] * 30)]) + "\n", "--k", "1")
    assert len(found["excluded_columns"]) == 30
    assert said.count("text: 'word'") == 10
    assert "and 20 more" in said


def test_years_are_names_behind_one_that_is_empty(fit):
    got, _ = fit(",2019,2020\na,1.5,2\nb,1.5,3\n")
    assert (got["fields"], got["rows"]["read"]) == (["2019", "2020"], 2)
    with pytest.raises(StreamkmError, match="no header"):
        fit(",5.1,3.5\n4.9,3.0,1.4\n")


def test_names_that_are_numbers_of_columns_are_names_and_it_is_said(fit):
    got, said = fit("0,1\n0.5,7\n1.5,8\n")
    assert (got["fields"], got["rows"]["read"]) == (["0", "1"], 2)
    assert "is taken for column names" in said


def test_integers_beyond_those_that_doubles_hold_are_said(fit):
    got, said = fit("x,y\n9007199254740993,1.5\n9007199254740993,2.5\n")
    assert "integers of column x beyond 2**53 are rounded" in said
    assert got["fields"] == ["x", "y"]


def test_blocks_of_many_sizes_give_the_same_lines(tmp_path, monkeypatch):
    text = "x,note\n" + "".join(f'{i},"a\n{i}"\n' if i % 3 else f'{i},5" b\n' for i in range(60))
    (tmp_path / "a.csv").write_text(text)
    expected = list(itertools.accumulate((2 if i % 3 else 1 for i in range(60)), initial=2))[:-1]
    for block in (20, 77, 1 << 20):
        monkeypatch.setattr(tables, "BLOCK_BYTES", block)
        files = TableFiles(expand([str(tmp_path / "a.csv")]), ["x"])
        (records, *_) = files.rows()
        assert [files.line(records.partition, row) for row in range(60)] == expected
