"""The JSON codec: exact numbers, and a bad record does not affect its neighbours."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamkm.codecs import Codec, JsonCodec, compile_scanner, make_codec
from streamkm.connectors.columns import byte_records
from streamkm.errors import SettingsError
from streamkm.kernels.decode import json_scan
from streamkm.records import MAX_KEPT_BYTES, ColumnRecords, RawRecord, TopicPartition
from streamkm.state import CodecSpec
from test_codecs_scan import PATHS, records

TP = TopicPartition("t", 3)


def raw(values, start=100, timestamp=1_700_000_000_500):
    found = [RawRecord(TP, start + 2 * i, timestamp, b"k", v, (("h", b"1"),)) for i, v in enumerate(values)]
    return byte_records(TP, start, start + 2 * len(found) + 5, found)


def decode(values, fields=("x", "y"), **options):
    return JsonCodec(fields, **options).decode(raw(values))


def same(a, b):
    """Whether two batches are bitwise equal."""
    return (
        a.range == b.range
        and a.points.tobytes() == b.points.tobytes()
        and a.times.tobytes() == b.times.tobytes()
        and a.offsets.tolist() == b.offsets.tolist()
        and a.bad == b.bad
        and a.tombstones == b.tombstones
    )


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.none() | records() | st.binary(max_size=6), max_size=8),
    st.sampled_from([None, "z", "a.t"]),
    st.sampled_from(["auto", "ms"]),
)
def test_the_scanner_changes_nothing_but_the_speed(values, time_field, unit):
    options = {"time_field": time_field, "time_unit": unit, "max_bytes": 200}
    fast = decode(values, PATHS, **options)
    strict = decode(values, PATHS, strict=True, **options)
    assert same(fast, strict)
    assert len(fast) + len(fast.bad) + fast.tombstones == len(values)


def test_a_record_that_is_too_large_or_not_there_whole_is_judged_by_its_size_and_kept_in_part():
    whole = raw([b"[1, 2]" + b" " * 100_000, b"[3, 4]", b"[5, 6]   ", b"[7, 8]"])
    # The third is truncated by the source, and the rest would be a valid record.
    cut = dataclasses.replace(whole, full_sizes={104: 70_000_000})
    batch = JsonCodec(["x", "y"], max_bytes=90_000).decode(cut)
    assert batch.points.tolist() == [[3, 4], [7, 8]]
    long, part = batch.bad
    assert (long.reason, len(long.record.value), long.record.size) == ("too-large", MAX_KEPT_BYTES, 100_006)
    assert (part.reason, part.record.value, part.record.size) == ("too-large", b"[5, 6]   ", 70_000_000)
    assert "70000000 bytes, more than 90000" in part.message
    (only,) = JsonCodec(["x", "y"], max_bytes=100_000_000).decode(cut).bad
    assert "more than the source keeps" in only.message
    head, tail = cut.split(103)
    assert [len(JsonCodec(["x", "y"]).decode(half)) for half in (head, tail)] == [2, 1]


times = st.sampled_from(
    [
        '"2023-11-14T22:13:20Z"',
        '"2023-11-14 22:13:20.5"',
        '"2023-11-14"',
        '"20231114"',
        '"soon"',
        "5",
        "1e400",
        "null",
        "1700000000123",
    ]
)


@settings(max_examples=200, deadline=None)
@given(st.lists(times, max_size=6), st.sampled_from(["auto", "ms"]))
def test_the_scanner_reads_times_as_the_strict_parser_does(written, unit):
    values = [f'{{"x":1,"y":2,"t":{t}}}'.encode() for t in written]
    options = {"time_field": "t", "time_unit": unit}
    assert same(decode(values, **options), decode(values, strict=True, **options))


@settings(deadline=None)
@given(st.lists(records(), max_size=6), st.integers(0, 6))
def test_decoding_does_not_depend_on_how_a_range_was_cut(values, cut):
    codec, whole = JsonCodec(PATHS), raw(values)
    head, tail = whole.split(min(100 + 2 * cut, whole.stop))
    parts = [codec.decode(head), codec.decode(tail)]
    batch = codec.decode(whole)
    assert np.concatenate([p.points for p in parts]).tobytes() == batch.points.tobytes()
    assert sum((p.bad for p in parts), ()) == batch.bad


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(-1e140, 1e140), min_size=2, max_size=2))
def test_numbers_are_those_that_python_reads(point):
    for value in (json.dumps(point).encode(), json.dumps({"y": point[1], "x": point[0]}).encode()):
        batch = decode([value])
        assert batch.points.tobytes() == np.array([point]).tobytes()


def test_objects_and_arrays_may_mix_and_order_stays():
    batch = decode([b'{"x":1,"y":2}', b"[3,4]", b'{"y":6,"other":"?","x":5}'])
    assert batch.points.tolist() == [[1, 2], [3, 4], [5, 6]]
    assert batch.points.flags.c_contiguous
    assert batch.offsets.tolist() == [100, 102, 104]
    assert batch.range == (TP, 100, 111)


def test_bad_records_are_kept_whole_with_their_place_and_their_neighbours_decoded():
    batch = decode([b"[1,2]", b"nonsense", None, b"[3,4]", b'{"x":1}'])
    assert batch.points.tolist() == [[1, 2], [3, 4]]
    assert batch.offsets.tolist() == [100, 106]
    assert batch.tombstones == 1
    first, second = batch.bad
    assert first.record == RawRecord(TP, 102, 1_700_000_000_500, b"k", b"nonsense", (("h", b"1"),))
    assert (first.reason, second.reason, second.field) == ("not-json", "missing-field", "y")
    assert str(second) == "t-3@108: y is missing"


@pytest.mark.parametrize(
    ("value", "reason", "field", "message"),
    [
        (b"", "not-json", "", "empty"),
        (b" ", "not-json", "", ""),
        (b"{", "not-json", "", ""),
        (b'{"x":1,"y":2}}', "not-json", "", ""),
        (b'{"x":1,"y":2}{"x":1,"y":2}', "not-json", "", ""),
        (b'{"x":1,"y":2,}', "not-json", "", ""),
        (b'{"x":01,"y":2}', "not-json", "", ""),
        (b"{'x':1,'y':2}", "not-json", "", ""),
        (b'\xef\xbb\xbf{"x":1,"y":2}', "not-json", "", "BOM"),
        (b'{"x":1,"y":2,"z":"\xff"}', "not-json", "", ""),
        (b'\0\0\0\0\1{"x":1,"y":2}', "not-json", "", "schema registry"),
        (b'{"x":1,"y":2,"z":NaN}', "not-json", "", ""),
        (b'{"x":1}', "missing-field", "y", "y is missing"),
        (b"{}", "missing-field", "x", ""),
        (b'{"x":1,"y":null}', "not-a-number", "y", "null"),
        (b'{"x":1,"y":"2"}', "not-a-number", "y", '"2"'),
        (b'{"x":true,"y":2}', "not-a-number", "x", "true"),
        (b'{"x":[1],"y":2}', "not-a-number", "x", "[1]"),
        (b'{"x":{"y":1},"y":2}', "not-a-number", "x", ""),
        (b'{"x":1,"x":"1","y":2}', "not-a-number", "x", ""),
        (b'[1,"2"]', "not-a-number", "y", ""),
        (b'{"x":NaN,"y":2}', "not-finite", "x", "nan"),
        (b'{"x":1,"y":-Infinity}', "not-finite", "y", "-inf"),
        (b'{"x":1e400,"y":2}', "not-finite", "x", "inf"),
        (b"[1,NaN]", "not-finite", "y", ""),
        (b'{"x":1e141,"y":2}', "out-of-range", "x", "beyond the maximum"),
        (b"[1,-1e300]", "out-of-range", "y", "-1e+300"),
        (b"[1]", "wrong-dimension", "", "1 values, 2 are expected"),
        (b"[1,2,3]", "wrong-dimension", "", "3 values"),
        (b"[]", "wrong-dimension", "", ""),
        (b"5", "wrong-dimension", "", "neither"),
        (b"null", "wrong-dimension", "", "null"),
        (b'"text"', "wrong-dimension", "", ""),
        (b"[" * 2000 + b"]" * 2000, "not-json", "", ""),
        (b"[1," + b" " * 5000 + b"2]", "too-large", "", "5005 bytes"),
    ],
)
@pytest.mark.parametrize("strict", [False, True])
def test_what_is_wrong_with_a_record_is_named(value, reason, field, message, strict):
    batch = decode([b"[1,2]", value, b"[3,4]"], max_bytes=4500, strict=strict)
    assert batch.points.tolist() == [[1, 2], [3, 4]]
    (bad,) = batch.bad
    assert (bad.reason, bad.field) == (reason, field)
    assert message in bad.message


def test_the_last_of_equal_keys_counts():
    assert decode([b'{"x":"no","x":1,"y":2}']).points.tolist() == [[1, 2]]


def test_integers_beyond_a_float_are_rounded_as_python_rounds_them():
    big = [2**53 + 1, -(2**63) - 1, 2**64 - 1, 2**64 + 2**11 + 1, 10**25]
    batch = decode([b"[%d,0]" % n for n in big])
    assert batch.points[:, 0].tolist() == [float(n) for n in big]


def test_paths_lead_into_nested_objects_and_a_whole_key_comes_first():
    values = [b'{"a":{"b":1},"c":2}', b'{"a.b":1,"c":2}', b'{"a":{"b":7},"a.b":1,"c":2}', b'{"a":5,"c":2}']
    batch = decode(values, ("a.b", "c"))
    assert batch.points.tolist() == [[1, 2]] * 3
    assert (batch.bad[0].reason, batch.bad[0].field) == ("missing-field", "a.b")


@pytest.mark.parametrize("strict", [False, True])
def test_paths_lead_into_arrays_by_number(strict):
    values = [
        b'{"emb":[1.5,2],"a":{"b":[[0,3]]}}',
        b'{"emb":{"0":1.5,"1":2},"a":{"b":{"0":{"1":3}}}}',
        b'{"emb.0":1.5,"emb[1]":2,"emb":[7,8],"a":{"b":[[0,3]]}}',
        b'{"emb":[1.5],"a":{"b":[[0,3]]}}',
    ]
    for fields in (("emb.0", "emb[1]", "a.b[0][1]"), ("emb[0]", "emb.1", "a.b.0.1")):
        batch = decode(values[:2] + values[3:], fields, strict=strict)
        assert batch.points.tolist() == [[1.5, 2, 3]] * 2
        assert [(bad.reason, bad.field) for bad in batch.bad] == [("missing-field", fields[1])]
    assert decode(values[2:3], ("emb.0", "emb[1]", "a.b.0.1")).points.tolist() == [[1.5, 2, 3]]
    for path in ("emb.-1", "emb.00", "emb.2", "emb[x]", "emb[0].x", "emb.1e0"):
        assert decode(values[:1], (path,)).bad[0].reason == "missing-field"
    (bad,) = decode(values[:1], ("emb",)).bad
    assert bad.message == "emb is not a number: [1.5, 2]; its values are called emb[0], ..."


def test_names_that_json_escapes_are_found():
    value = json.dumps({'qu"ote': 1, "back\\slash": 2, "tab\t": 3}).encode()
    assert decode([value], ('qu"ote', "back\\slash", "tab\t")).points.tolist() == [[1, 2, 3]]


def test_without_a_time_field_the_record_says_when():
    assert decode([b"[1,2]"]).times.tolist() == [1_700_000_000.5]
    batch = JsonCodec(["x"]).decode(raw([b"[1]"], timestamp=-1))
    assert math.isnan(batch.times[0])


@pytest.mark.parametrize(
    ("written", "unit", "seconds"),
    [
        ("1700000000", "auto", 1.7e9),
        ("1700000000.25", "auto", 1.7e9 + 0.25),
        ("1700000000250", "auto", 1.7e9 + 0.25),
        ("1700000000250000", "auto", 1.7e9 + 0.25),
        ("1700000000250000000", "auto", 1.7e9 + 0.25),
        ("-5", "auto", -5),
        ("1500", "ms", 1.5),
        ("1500", "us", 0.0015),
        ("1500", "ns", 1.5e-6),
        ("1500", "s", 1500),
        ('"2023-11-14T22:13:20Z"', "auto", 1.7e9),
        ('"2023-11-14T23:13:20+01:00"', "auto", 1.7e9),
        ('"2023-11-14T22:13:20.250"', "auto", 1.7e9 + 0.25),
        ('"2023-11-14"', "ms", 1_699_920_000),
    ],
)
@pytest.mark.parametrize("strict", [False, True])
def test_event_times_are_numbers_or_iso_text(written, unit, seconds, strict):
    batch = decode([f'{{"x":1,"y":2,"t":{written}}}'.encode(), b"[1,2]"], time_field="t", time_unit=unit, strict=strict)
    assert batch.times.tolist() == pytest.approx([seconds, 1_700_000_000.5], abs=1e-6)


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ('"yesterday"', "not-a-time"),
        ("null", "not-a-number"),
        ("true", "not-a-number"),
        ("NaN", "not-finite"),
    ],
)
def test_a_record_without_a_usable_time_is_bad(written, reason):
    batch = decode([f'{{"x":1,"y":2,"t":{written}}}'.encode(), b'{"x":1,"y":2}'], time_field="t")
    assert [(bad.reason, bad.field) for bad in batch.bad] == [(reason, "t"), ("missing-field", "t")]


def test_nothing_gives_nothing():
    batch = decode([])
    assert batch.points.shape == (0, 2)
    assert len(batch) == len(batch.bad) == batch.tombstones == 0
    assert decode([None, None]).tombstones == 2


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ([], {}),
        ("x", {}),
        (["x", "x"], {}),
        ([""], {}),
        (["a..b"], {}),
        ([".a"], {}),
        (["x"], {"time_field": "x"}),
        (["x"], {"time_unit": "weeks"}),
        (["x"], {"max_bytes": 0}),
    ],
)
def test_invalid_settings_are_rejected(fields, options):
    with pytest.raises(SettingsError):
        JsonCodec(fields, **options)


def test_a_spec_makes_the_codec_again():
    codec = JsonCodec(["x", "a.b"], time_field="t", time_unit="ms", max_bytes=1000)
    assert isinstance(codec, Codec)
    assert make_codec(codec.spec()).spec() == codec.spec()


@pytest.mark.parametrize("spec", [{}, {"kind": "xml"}, {"kind": "json"}, {"kind": "json", "fields": ["x"], "wat": 1}])
def test_an_invalid_codec_spec_is_rejected(spec):
    with pytest.raises(SettingsError):
        make_codec(CodecSpec.from_json(spec))


def test_columns_are_not_json():
    empty = np.empty(0, np.int64)
    with pytest.raises(SettingsError, match="columns codec"):
        JsonCodec(["x"]).decode(ColumnRecords(TP, 0, 0, {}, empty, empty))


def test_compiling_ahead_covers_what_records_need():
    compile_scanner()
    compiled = set(json_scan.scan_rows.signatures)
    decode([b"[1,2]", None, b'{"x":1,"y":2}'])
    decode([b'{"x":1,"y":2,"t":3}'], time_field="t")
    assert set(json_scan.scan_rows.signatures) == compiled
