"""The columns codec: rows of files as points, each decoded independently."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamkm.codecs import Codec, ColumnsCodec, make_codec
from streamkm.connectors import MemorySource
from streamkm.errors import FileFormatError, SettingsError
from streamkm.records import ColumnRecords, TopicPartition

TP = TopicPartition("points.csv", 0)


def table(start=10, **columns):
    arrays = {
        name: np.array(c, dtype=object) if any(isinstance(x, str) for x in c) else np.array(c)
        for name, c in columns.items()
    }
    n = len(next(iter(arrays.values())))
    return ColumnRecords(TP, start, start + n, arrays, np.arange(start, start + n), np.full(n, -1))


def test_columns_become_coordinates_in_the_order_of_the_fields():
    batch = ColumnsCodec(["b", "a"]).decode(table(a=[1, 2], b=[0.5, 1.5], c=["x", "y"]))
    assert batch.points.tolist() == [[0.5, 1], [1.5, 2]]
    assert batch.points.flags.c_contiguous
    assert batch.range == (TP, 10, 12)
    assert all(map(math.isnan, batch.times))


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ("abc", "not-a-number"),
        ("1_000", "not-a-number"),
        ("0x10", "not-a-number"),
        ("1,5", "not-a-number"),
        ("true", "not-a-number"),
        ("", "not-finite"),
        (None, "not-finite"),
        ("nan", "not-finite"),
        ("-Infinity", "not-finite"),
        ("1e999", "not-finite"),
    ],
)
def test_a_bad_cell_is_named_with_its_file_and_row(cell, reason):
    batch = ColumnsCodec(["a", "b"]).decode(table(a=["1.5", cell, " 3 "], b=[1, 2, 3]))
    assert batch.points.tolist() == [[1.5, 1], [3, 3]]
    assert batch.offsets.tolist() == [10, 12]
    (bad,) = batch.bad
    assert (bad.reason, bad.field) == (reason, "a")
    assert str(bad).startswith("points.csv-0@11: a is")


def test_numbers_that_are_not_finite_are_bad_rows():
    batch = ColumnsCodec(["a", "b"]).decode(table(a=[1.0, np.nan, np.inf], b=[1, 2, 3]))
    assert batch.points.tolist() == [[1, 1]]
    assert [bad.record.value for bad in batch.bad] == [b"nan,2", b"inf,3"]


@settings(deadline=None)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1))
def test_a_number_is_the_same_whether_its_column_has_text_or_not(numbers):
    plain = ColumnsCodec(["a"]).decode(table(a=numbers))
    mixed = ColumnsCodec(["a"]).decode(table(a=[repr(n) for n in numbers] + ["text"]))
    assert plain.points.tobytes() == mixed.points.tobytes()


def test_a_row_is_quarantined_as_the_csv_that_it_was():
    batch = ColumnsCodec(["a"]).decode(table(a=["bad"], b=['say "x", y'], c=["é"]))
    assert batch.bad[0].record.value == 'bad,"say ""x"", y",é'.encode()


@pytest.mark.parametrize(
    ("times", "unit", "seconds"),
    [
        ([1_700_000_000, 1_700_000_000_500], "auto", [1.7e9, 1.7e9 + 0.5]),
        ([1500.0, 2000.0], "ms", [1.5, 2.0]),
        (["2023-11-14T22:13:20Z", "1700000000500"], "auto", [1.7e9, 1.7e9 + 0.5]),
    ],
)
def test_event_times_are_numbers_or_iso_text(times, unit, seconds):
    batch = ColumnsCodec(["a"], time_field="t", time_unit=unit).decode(table(a=[1, 2], t=times))
    assert batch.times.tolist() == seconds


def test_a_row_without_a_time_is_bad():
    batch = ColumnsCodec(["a"], time_field="t").decode(table(a=[1, 2, 3], t=["2023-01-01", "soon", None]))
    assert [(bad.reason, bad.field) for bad in batch.bad] == [("not-a-time", "t")] * 2
    batch = ColumnsCodec(["a"], time_field="t").decode(table(a=[1, 2], t=[np.nan, 0.0]))
    assert [bad.reason for bad in batch.bad] == ["not-finite"]


def test_a_column_that_is_not_there_is_an_error_of_the_file():
    with pytest.raises(FileFormatError, match=r"'z'.*It has a"):
        ColumnsCodec(["z"]).decode(table(a=[1]))


def test_bytes_are_not_columns():
    source = MemorySource.from_values([[b"1"]])
    source.seek(source.beginning())
    with pytest.raises(SettingsError, match="json codec"):
        ColumnsCodec(["a"]).decode(source.poll(0, 1)[0])


def test_a_spec_makes_the_codec_again():
    codec = ColumnsCodec(["a", "b"], time_field="t", time_unit="s")
    assert isinstance(codec, Codec)
    assert make_codec(codec.spec()).spec() == codec.spec()
