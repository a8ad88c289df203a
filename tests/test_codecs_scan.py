"""The kernels that scan JSON numbers and records, compared with naive implementations."""

from __future__ import annotations

import datetime as dt
import importlib
import inspect
import json
import math
import struct

import numpy as np
import orjson
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

import naive_scan as naive
from streamkm.codecs.fields import FieldTree
from streamkm.kernels.decode.decimal import (
    MAX_POWER,
    MIN_POWER,
    REFUSED,
    leading_zeros,
    multiply,
    nearest_float64,
    parse_number,
)
from streamkm.kernels.decode.iso_time import days_since_1970, parse_time, two_digits
from streamkm.kernels.decode.json_scan import (
    ARRAY,
    DATED,
    NULL,
    OBJECT,
    UNSURE,
    is_hex,
    matches,
    scan_rows,
    skip_space,
    skip_text,
    utf8_length,
)

UINT64 = st.integers(0, 2**64 - 1)


@pytest.mark.parametrize("module", ["decimal", "iso_time", "json_scan"])
def test_every_public_kernel_has_a_naive_twin_of_its_name(module):
    kernels = importlib.import_module(f"streamkm.kernels.decode.{module}")
    names = {
        name
        for name, value in vars(kernels).items()
        if callable(value)
        and not isinstance(value, type)  # groups of arguments
        and getattr(value, "__module__", "") == kernels.__name__
        and not name.startswith("_")
    }
    assert names
    assert names <= set(vars(naive))
    assert "streamkm" not in inspect.getsource(naive)


def bytes_of(text: str | bytes):
    return np.frombuffer(text.encode() if isinstance(text, str) else text, np.uint8)


def read(text: str):
    """The number that the kernel reads, as bits; None if it leaves it to the strict parser."""
    data = bytes_of(text)
    pos, bits = parse_number(data, 0, len(data))
    if pos == REFUSED:
        return None
    assert pos == len(text)
    return int(bits)


@settings(deadline=None)
@given(UINT64, UINT64)
def test_a_product_is_the_naive_one(a, b):
    assert tuple(map(int, multiply(np.uint64(a), np.uint64(b)))) == naive.multiply(a, b)


@settings(deadline=None)
@given(st.integers(1, 2**64 - 1))
def test_leading_zeros_are_the_naive_ones(x):
    assert leading_zeros(np.uint64(x)) == naive.leading_zeros(x)


@settings(max_examples=500, deadline=None)
@given(st.integers(1, 2**64 - 1), st.integers(MIN_POWER - 2, MAX_POWER + 2), st.booleans())
@example(mantissa=2**53 + 1, power=0, negative=False)
@example(mantissa=9007199254740993, power=0, negative=True)
@example(mantissa=1, power=MIN_POWER, negative=False)
@example(mantissa=17976931348623157, power=292, negative=False)
@example(mantissa=17976931348623159, power=292, negative=False)
@example(mantissa=22250738585072014, power=-324, negative=False)
@example(mantissa=22250738585072011, power=-324, negative=False)
@example(mantissa=4652036866169810272, power=-250, negative=False)  # the second 64 bits of the power carry
def test_a_decimal_is_rounded_as_python_rounds_it_or_left_alone(mantissa, power, negative):
    decided, bits = nearest_float64(np.uint64(mantissa), power, negative)
    assume(decided)
    assert int(bits) == naive.nearest_float64(mantissa, power, negative)


@settings(max_examples=500, deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False))
@example(0.1)
@example(5e-324)
@example(1.7976931348623157e308)
@example(2.2250738585072014e-308)
@example(9007199254740993.0)
def test_every_float_that_python_writes_is_read_as_python_reads_it_or_left_alone(number):
    text = repr(number)
    bits = read(text)
    assert bits is None or bits == naive.parse_number(text)


@settings(max_examples=500, deadline=None)
@given(st.from_regex(r"-?(0|[1-9][0-9]{0,21})(\.[0-9]{1,22})?([eE][+-]?[0-9]{1,4})?", fullmatch=True))
@example("18446744073709551616")
@example("18446744073709551617e-1")
@example("1844674407370955161600000")
@example("0.00000000000000000000000000000000000001")
@example("12.125")
@example("0e999")
@example("-0")
@example("-0.0")
@example("1e400")
@example("9007199254740993")
def test_a_json_number_is_read_as_python_reads_it_or_left_alone(text):
    bits = read(text)
    assert bits is None or bits == naive.parse_number(text)


@settings(max_examples=200, deadline=None)
@given(st.integers(2**52, 2**53 - 1), st.integers(0, 9), st.integers(-2, 2))
def test_ties_between_two_floats_are_rounded_as_python_rounds_them(mantissa, shift, off):
    text = str(((2 * mantissa + 1) << shift) + off)
    assume(len(text) <= 19)
    bits = read(text)
    assert bits is None or bits == naive.parse_number(text)


@pytest.mark.parametrize("text", ["-", "+1", ".5", "01", "-01", "1.", "1.e5", "1e", "1e+", "--1", "0x1", "a"])
def test_what_is_no_json_number_is_not_read_as_one(text):
    data = bytes_of(text)
    pos, _ = parse_number(data, 0, len(data))
    assert pos == REFUSED or pos < len(text)


def test_common_numbers_are_not_left_to_others():
    rng = np.random.default_rng(0)
    values = rng.normal(0, 100, 2000)
    texts = [f"{v:.{i % 9}f}" for i, v in enumerate(values)] + [repr(v) for v in values.tolist()]
    left = [t for t in texts if read(t) is None and float(t) != 0]
    assert left == []


@settings(deadline=None)
@given(st.text(' \t\r\n\f"\\ab', max_size=12), st.integers(0, 12))
def test_space_is_skipped_and_words_are_matched_as_naively(text, pos):
    data = text.encode()
    assume(pos <= len(data))
    assert skip_space(bytes_of(data), pos, len(data)) == max(pos, naive.skip_space(data, pos))
    assert matches(bytes_of(data), pos, len(data), bytes_of("ab")) == naive.matches(data, pos, b"ab")


@settings(max_examples=300, deadline=None)
@given(
    st.binary(min_size=1, max_size=5) | st.characters().filter(lambda c: not 0xD800 <= ord(c) < 0xE000).map(str.encode)
)
@example(b"\xc0\x80")
@example(b"\xe0\x9f\xbf")
@example(b"\xed\xa0\x80")
@example(b"\xf0\x8f\xbf\xbf")
@example(b"\xf4\x90\x80\x80")
@example(b"\xf5\x80\x80\x80")
@example(b"\xc3")
def test_utf8_is_what_python_decodes(raw):
    assert utf8_length(bytes_of(raw), 0, len(raw)) == naive.utf8_length(raw, 0)


@settings(max_examples=500, deadline=None)
@given(st.text("0189adDefEF/:@G`g", max_size=5))
@example("d7ff")
@example("D800")
@example("dfff")
@example("e000")
def test_four_hexadecimal_digits_are_what_python_reads(text):
    assert is_hex(bytes_of(text), 0, len(text)) == naive.is_hex(text.encode(), 0)


pieces = st.sampled_from(
    ["a", "é", "\u20ac", "\U0001f600", '\\"', "\\\\", "\\/", "\\n", "\\u00e9", "\\ud800", "\\x", "\\u12", "\t", '"']
)


@settings(max_examples=300, deadline=None)
@given(st.lists(pieces, max_size=8).map("".join), st.sampled_from([b"", b"\xff", b"\xc3"]), st.booleans())
@example("\\", b"", False)  # noqa: FBT003 -- by position
def test_text_is_skipped_as_a_strict_parser_reads_it(text, spoil, closed):
    data = text.encode() + spoil + (b'"' if closed else b"")
    end = skip_text(bytes_of(data), 0, len(data))
    try:
        orjson.loads(b'"' + data[: end if end != REFUSED else len(data)])
        sound = True
    except orjson.JSONDecodeError:
        sound = False
    if end != REFUSED:
        assert sound
        assert end == naive.skip_text(data[:end], 0)
    else:
        assert not sound or b'"' in data[:-1]


days = st.dates().map(str)
clocks = st.from_regex(
    r"[T ]([01][0-9]|2[0-4]):[0-6][0-9]:[0-6][0-9](\.[0-9]{1,7})?(Z|[+-][0-2][0-9]:[0-6][0-9])?", fullmatch=True
)


@settings(max_examples=400, deadline=None)
@given(
    st.builds(str.__add__, days, clocks | st.just(""))
    | st.datetimes().map(lambda t: t.isoformat())
    | st.text("0123456789-:T .Z+", max_size=30)
)
@example("2000-02-29")
@example("1900-02-29")
@example("2023-02-29T00:00:00Z")
@example("0000-01-01T00:00:00Z")
@example("9999-12-31T23:59:59.999999Z")
@example("1969-12-31T23:59:59.999999Z")
@example("2023-11-14T22:13:20+23:59")
@example("2023-11-14T24:00:00Z")
@example("2023-11-14T22:13:20.Z")
@example("2023-11-14_22:13:20Z")
@example("2023-11-14T22-13-20Z")
def test_a_time_is_read_as_python_reads_it_or_left_alone(text):
    seconds = parse_time(bytes_of(text), 0, len(text))
    if not math.isnan(seconds):
        assert struct.pack("<d", seconds) == struct.pack("<d", naive.parse_time(text))


@settings(max_examples=300, deadline=None)
@given(
    st.datetimes(dt.datetime(1800, 1, 1), dt.datetime(2200, 1, 1)),  # noqa: DTZ001  # naive ones are drawn
    st.sampled_from(["", "Z", "+05:30", "-08:00"]),
)
def test_ordinary_times_are_not_left_to_others(time, zone):
    text = time.isoformat() + zone
    assert parse_time(bytes_of(text), 0, len(text)) == naive.parse_time(text)


@settings(deadline=None)
@given(st.dates())
def test_days_are_counted_as_python_counts_them(date):
    assert days_since_1970(date.year, date.month, date.day) == naive.days_since_1970(date.year, date.month, date.day)
    text = f"{date.day:02}"
    assert two_digits(bytes_of(text), 0) == naive.two_digits(text)


def scan(values, paths, d, max_bytes=1 << 20):
    """(kind, numbers) of each record by the kernel."""
    tree = FieldTree(paths)
    data = bytes_of(b"".join(v or b"" for v in values))
    ends = np.cumsum([len(v or b"") for v in values])
    begins = ends - [len(v or b"") for v in values]
    ends = np.where([v is None for v in values], -1, ends)
    n = len(values)
    points, times, kinds = np.zeros((n, d), np.uint64), np.zeros(n, np.uint64), np.empty(n, np.uint8)
    scan_rows(data, begins, ends, max_bytes, tree.names, len(paths), points, times, kinds)
    out = []
    for i, kind in enumerate(kinds.tolist()):
        numbers = points[i].tolist() + ([int(times[i])] if kind in {OBJECT, DATED} and len(paths) > d else [])
        out.append((kind, numbers))
    return out


PATHS = ("x", "a.b", "a.c.d", "é")
keys = st.sampled_from(["x", "a", "b", "c", "d", "a.b", "c.d", "a.c.d", "é", "z", "x ", ""])
json_numbers = st.floats(-1e9, 1e9) | st.integers(-(2**70), 2**70) | st.sampled_from([0, 0.5, -0.0, 1e300, 5e-324])
leaves = json_numbers | st.booleans() | st.none() | st.text(max_size=4)
trees = st.recursive(leaves, lambda t: st.lists(t, max_size=4) | st.dictionaries(keys, t, max_size=5), max_leaves=12)
wholes = st.builds(
    lambda x, b, d, e, rest: {**rest, "x": x, "a": {"b": b, "c": {"d": d}}, "é": e},
    json_numbers,
    json_numbers,
    json_numbers,
    json_numbers,
    st.dictionaries(keys, trees, max_size=2),
)
layouts = st.sampled_from([{}, {"indent": 1}, {"separators": (",", ":")}, {"ensure_ascii": False}])


@st.composite
def records(draw):
    """JSON of all kinds, often with the fields, sometimes with a changed byte, duplicate keys or truncated."""
    value = draw(st.one_of(wholes, wholes, trees, st.lists(json_numbers, min_size=3, max_size=5)))
    text = json.dumps(value, **draw(layouts)).encode()
    change = draw(st.sampled_from(["none", "none", "none", "byte", "cut", "append", "double"]))
    if change == "byte" and text:
        at = draw(st.integers(0, len(text) - 1))
        text = text[:at] + bytes([draw(st.sampled_from(list(b'{}[]",:-+.eE0 9\\\x00\x1f\xffntf')))]) + text[at + 1 :]
    elif change == "cut":
        text = text[: draw(st.integers(0, len(text)))]
    elif change == "append":
        text += draw(st.sampled_from([b" ", b"\n", b"\0", b"}", b",", b"1", text]))
    elif change == "double" and text.endswith(b"}") and len(text) > 2:
        text = text[:-1] + b',"x":' + draw(st.sampled_from([b"1", b'"1"', b"null", b"{}"])) + b"}"
    return text


@settings(max_examples=400, deadline=None)
@given(st.lists(records(), min_size=1, max_size=5))
@example([b'{"x":1,"a":{"b":2,"c":{"d":3}},"\xc3\xa9":4,"x":5}'])
@example([b'{"x":1,"a":{"b":2,"c":{"d":3}},"\xc3\xa9":4,"a":{}}'])
@example([b'{"x":1,"a":{"b":2,"c":{"d":3}},"\xc3\xa9":4,"a.b":9}'])
@example([b'{"x":1,"a.b":2,"a":{"c.d":3},"\xc3\xa9":4}'])
@example([b'{"\\u0078":1,"x":2,"a":{"b":2,"c":{"d":3}},"\xc3\xa9":4}'])
@example([b"[1,2,3,4]", b"[1,2,3,4,5]", b"[1,2,3]", b"[1,2,3,]", b"[,1,2,3]", b"[1,2,3,4", b"[[1,2,3,4]]"])
@example([b""])
def test_what_the_scanner_reads_is_what_the_naive_twin_reads(values):
    for value, (kind, numbers) in zip(values, scan(values, PATHS, 4), strict=True):
        expected = naive.scan_rows(value, PATHS, 4)
        if kind != UNSURE:
            assert expected == ({OBJECT: "object", ARRAY: "array"}[kind], numbers), value


def test_ordinary_records_are_not_left_to_others():
    good = {"x": 1.25, "a": {"b": -2, "c": {"d": 3e5}}, "é": 0.1}
    values = [
        json.dumps(good, ensure_ascii=False).encode(),
        json.dumps(good, ensure_ascii=False, indent=2).encode(),
        json.dumps(
            {**good, "id": "abc", "ok": True, "no": None, "tags": ["a", {"x": [1]}, []], "o": {}}, ensure_ascii=False
        ).encode(),
        json.dumps({**good, "é?": "naïve \U0001f600", "s": 'say "hi"\n'}, ensure_ascii=False).encode(),
        b"[1, 2.5, -3, 4e2]",
        b" [1,2,3,4]\r\n",
    ]
    assert [kind for kind, _ in scan(values, PATHS, 4)] == [OBJECT, OBJECT, OBJECT, OBJECT, ARRAY, ARRAY]


def test_the_order_of_keys_does_not_matter_from_record_to_record():
    values = [b'{"p":1,"q":2}', b'{"q":2,"p":1}', b'{"p":1,"z":0,"q":2}', b'{"q":2,"z":{"p":7},"p":1}'] * 3
    one, two = naive.bits_of(1.0), naive.bits_of(2.0)
    assert scan(values, ("p", "q"), 2) == [(OBJECT, [one, two])] * len(values)


def test_null_values_and_long_records_are_distinguished():
    assert [k for k, _ in scan([None, b"[1]", b"[1]    "], ("x",), 1, max_bytes=4)] == [NULL, ARRAY, UNSURE]


def test_deep_nesting_is_left_to_others():
    deep = b'{"x":1,"y":' + b"[" * 100 + b"]" * 100 + b"}"
    assert scan([deep], ("x",), 1)[0][0] == UNSURE


def test_the_time_is_one_more_column_of_objects():
    (kind, numbers), (array, _) = scan([b'{"t":1.5,"x":2}', b"[2]"], ("x", "t"), 1)
    assert (kind, array) == (OBJECT, ARRAY)
    assert [struct.unpack("<d", struct.pack("<Q", n))[0] for n in numbers] == [2.0, 1.5]
    assert scan([b'{"t":"1970-01-01T00:00:02Z","x":2}'], ("x", "t"), 1) == [
        (DATED, [naive.bits_of(2.0), naive.bits_of(2.0)])
    ]
    bad = [b'{"t":"soon","x":2}', b'{"t":1,"x":"2023-01-01"}', b'{"x":2,"t":"2023-01-01']
    assert [k for k, _ in scan(bad, ("x", "t"), 1)] == [UNSURE] * 3
