"""Every codec passes the same checks: a new one joins with one line of `FORMATS`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamkm.codecs import Codec, CodecResources, complete_spec, make_codec, registry
from streamkm.codecs.registry import CodecKind
from streamkm.connectors.columns import byte_records
from streamkm.errors import SettingsError
from streamkm.records import Batch, ColumnRecords, RawRecord, Records, TopicPartition
from streamkm.state import CodecSpec
from streamkm.stores.serialization import spec_from_text, spec_to_text
from streamkm.testing import FramedCodec, SchemaRegistryInMemory

TP = TopicPartition("t", 3)
FIRST = 100
"""Offset of the first record."""
FIELDS = ("x", "y")
DEFECTS = (
    "wrong dimension",
    "NaN",
    "infinity",
    "text",
    "missing",
    "null",
    "huge number",
    "huge record",
    "truncated",
    "trailing bytes",
    "other framing",
    "nothing",
)
"""What can be wrong with a record."""


@dataclass(frozen=True)
class Format:
    """A codec, and records for it."""

    spec: CodecSpec
    """Its fields are x and y; a record has at most 200 bytes."""
    good: Callable[[float, float], Any]
    """A record with the point (x, y)."""
    records: Callable[[Sequence[Any]], Records]
    """Consecutive records from offset `FIRST`, without timestamps."""
    bad: Mapping[str, tuple[Any, str]]
    """Record and expected reason, for each of `DEFECTS` that a record of the format can have."""
    resources: CodecResources = field(default_factory=CodecResources)
    options: Mapping[str, Any] = field(default_factory=dict)
    """A value other than the default, for each option."""

    def codec(self) -> Codec:
        return make_codec(self.spec, self.resources)

    def decode(self, records: Sequence[Any]) -> Batch:
        return self.codec().decode(self.records(records))


def values(records: Sequence[bytes | None]) -> Records:
    raw = [RawRecord(TP, FIRST + i, -1, b"key", value) for i, value in enumerate(records)]
    return byte_records(TP, FIRST, FIRST + len(raw), raw)


def _json() -> Format:
    return Format(
        CodecSpec("json", FIELDS, {"max_bytes": 200}),
        lambda x, y: json.dumps({"x": x, "id": "a", "y": y}).encode(),
        values,
        {
            "wrong dimension": (b"[1, 2, 3]", "wrong-dimension"),
            "NaN": (b'{"x": NaN, "y": 1}', "not-finite"),
            "infinity": (b'{"x": 1, "y": 1e400}', "not-finite"),
            "text": (b'{"x": "1", "y": 1}', "not-a-number"),
            "missing": (b'{"x": 1}', "missing-field"),
            "null": (b'{"x": null, "y": 1}', "not-a-number"),
            "huge number": (b'{"x": 1e300, "y": 1}', "out-of-range"),
            "huge record": (b'{"x": 1, "y": 1}' + b" " * 200, "too-large"),
            "truncated": (b'{"x": 1, "y": 1', "not-json"),
            "trailing bytes": (b'{"x": 1, "y": 1}{"x": 2, "y": 2}', "not-json"),
            "other framing": (b"\0\0\0\0\7[1, 2]", "not-json"),
            "nothing": (b"", "not-json"),
        },
        options={"time_field": "t", "time_unit": "ms", "max_bytes": 9, "strict": False},
    )


def _table(rows: Sequence[str | None]) -> Records:
    """Rows of a csv file, as its reader gives them."""
    cells = [(row or "").split(",") for row in rows]
    columns = {name: np.array([(*c, "", "")[j] or None for c in cells], object) for j, name in enumerate(FIELDS)}
    n = len(rows)
    malformed = {FIRST + i: f"it has {len(c)} cells, the header 2" for i, c in enumerate(cells) if len(c) > 2}
    return ColumnRecords(TP, FIRST, FIRST + n, columns, np.arange(FIRST, FIRST + n), np.full(n, -1), malformed)


def _columns() -> Format:
    # A row has no size, and neither bytes behind it nor another framing: its reader has seen to that.
    return Format(
        CodecSpec("columns", FIELDS),
        lambda x, y: f"{x!r},{y!r}",
        _table,
        {
            "wrong dimension": ("1,2,3", "too-many-values"),
            "NaN": ("nan,1", "not-finite"),
            "infinity": ("1,1e400", "not-finite"),
            "text": ("1,one", "not-a-number"),
            "missing": (",1", "not-finite"),
            "null": ("null,1", "not-finite"),
            "huge number": ("1e300,1", "out-of-range"),
            "truncated": ("1", "not-finite"),
            "nothing": ("", "not-finite"),
        },
        options={"time_field": "t", "time_unit": "ms"},
    )


def frame(schema: int, text: str) -> bytes:
    return b"\0" + schema.to_bytes(4, "big") + text.encode()


def _framed() -> Format:
    return Format(
        CodecSpec("framed", FIELDS, {"max_bytes": 200}),
        lambda x, y: frame(7, json.dumps([y, x])),
        values,
        {
            "wrong dimension": (frame(7, "[1, 2, 3]"), "wrong-dimension"),
            "NaN": (frame(7, "[NaN, 1]"), "not-finite"),
            "infinity": (frame(7, "[1, 1e400]"), "not-finite"),
            "text": (frame(7, '["1", 1]'), "not-a-number"),
            "missing": (frame(8, "[1]"), "missing-field"),
            "null": (frame(7, "[null, 1]"), "not-a-number"),
            "huge number": (frame(7, "[1e300, 1]"), "out-of-range"),
            "huge record": (frame(7, "[1, 1]" + " " * 200), "too-large"),
            "truncated": (frame(7, "[1, 1"), "not-json"),
            "trailing bytes": (frame(7, "[1, 1][2, 2]"), "not-json"),
            "other framing": (b'{"x": 1, "y": 1}', "other-framing"),
            "nothing": (b"", "other-framing"),
        },
        CodecResources(SchemaRegistryInMemory({"7": "y,x", "8": "x"})),
        {"max_bytes": 9},
    )


FORMATS: Mapping[str, Callable[[], Format]] = {"json": _json, "columns": _columns, "framed": _framed}


@pytest.fixture(autouse=True)
def framed(monkeypatch):
    """Makes the codec of the test double known."""
    kind = CodecKind(FramedCodec, lambda spec, resources: FramedCodec(spec.fields, resources.schemas, **spec.options))
    monkeypatch.setitem(registry.KINDS, "framed", kind)


@pytest.fixture(params=FORMATS)
def given_format(request) -> Format:
    return FORMATS[request.param]()


def same(a: Batch, b: Batch) -> bool:
    return (
        (a.range, a.bad, a.tombstones) == (b.range, b.bad, b.tombstones)
        and a.points.tobytes() == b.points.tobytes()
        and a.times.tobytes() == b.times.tobytes()
        and a.offsets.tolist() == b.offsets.tolist()
    )


def test_every_kind_is_checked():
    assert set(FORMATS) == set(registry.KINDS)


@pytest.mark.parametrize(("name", "defect"), [(name, d) for name, made in FORMATS.items() for d in made().bad])
def test_a_bad_record_has_place_and_reason_and_its_neighbours_are_decoded(name, defect):
    form = FORMATS[name]()
    record, reason = form.bad[defect]
    batch = form.decode([form.good(1.0, 2.0), record, form.good(3.0, 4.5), record])
    assert batch.points.tolist() == [[1.0, 2.0], [3.0, 4.5]]
    assert batch.offsets.tolist() == [FIRST, FIRST + 2]
    assert batch.range == (TP, FIRST, FIRST + 4)
    assert [(bad.reason, bad.record.partition, bad.record.offset) for bad in batch.bad] == [
        (reason, TP, FIRST + 1),
        (reason, TP, FIRST + 3),
    ]
    for bad in batch.bad:
        assert bad.message
        assert bad.field in {"", *FIELDS}
        assert bad.field in bad.message
        assert bad.record.value is not None


def test_a_format_has_every_defect_that_its_records_can_have(given_format):
    assert set(given_format.bad) <= set(DEFECTS)
    assert len(given_format.bad) >= 9, "of twelve; say in a comment why a record cannot have the others"


def test_numbers_are_exact(given_format):
    points = [(0.1, -0.0), (5e-324, 1e140), (-1.7976931348623157e-300, 2.0**53 + 2), (1 / 3, -1e-140)]
    batch = given_format.decode([given_format.good(*point) for point in points])
    assert batch.points.tobytes() == np.array(points).tobytes()
    assert batch.points.dtype == np.float64
    assert batch.points.flags.c_contiguous
    assert all(map(math.isnan, batch.times)), "there is neither a time nor a timestamp"


def test_decoding_does_not_depend_on_how_a_range_was_cut_or_on_what_was_decoded_before(given_format):
    good, bad = given_format.good, [record for record, _ in given_format.bad.values()]
    rows = [row for i, record in enumerate(bad) for row in (good(i, -i), record)]
    whole = given_format.records(rows)
    batch, codec = given_format.codec().decode(whole), given_format.codec()
    for cut in range(FIRST, FIRST + len(rows) + 1):
        head, tail = map(codec.decode, whole.split(cut))
        assert np.concatenate([head.points, tail.points]).tobytes() == batch.points.tobytes()
        assert [*head.offsets, *tail.offsets] == batch.offsets.tolist()
        assert (*head.bad, *tail.bad) == batch.bad
    assert same(codec.decode(whole), batch)


def test_nothing_and_null_values_are_counted(given_format):
    empty = given_format.decode([])
    assert (empty.points.shape, empty.bad, empty.tombstones) == ((0, 2), (), 0)
    if isinstance(given_format.records([]), ColumnRecords):
        return  # a row is never null
    batch = given_format.decode([None, given_format.good(1.0, 2.0), None])
    assert (batch.points.tolist(), batch.bad, batch.tombstones) == ([[1.0, 2.0]], (), 2)


def test_records_of_another_form_are_an_error_of_the_settings(given_format):
    others = _table(["1,2"]) if given_format.records is values else values([b"[1, 2]"])
    with pytest.raises(SettingsError, match=r"t-3"):
        given_format.codec().decode(others)


def test_a_spec_makes_the_codec_again_also_after_it_was_stored(given_format):
    codec = given_format.codec()
    assert isinstance(codec, Codec)
    assert codec.fields == FIELDS
    spec = CodecSpec.from_json(json.loads(json.dumps(codec.spec().to_json())))
    assert spec == codec.spec()
    rows = [given_format.good(1.0, 2.0), *(record for record, _ in given_format.bad.values())]
    again = make_codec(spec, given_format.resources)
    assert same(again.decode(given_format.records(rows)), codec.decode(given_format.records(rows)))


def test_options_that_are_left_out_have_their_defaults_and_others_are_refused(given_format):
    spec = CodecSpec(given_format.spec.kind, FIELDS)
    complete = complete_spec(spec)
    assert set(complete.options) == set(given_format.options), "each option has an example"
    left_out = make_codec(spec, given_format.resources).spec()
    assert left_out.options.items() <= complete.options.items()
    assert make_codec(complete, given_format.resources).spec() == left_out
    for name, value in given_format.options.items():
        other = CodecSpec(spec.kind, FIELDS, {name: value})
        assert complete_spec(other).options[name] == value
        assert make_codec(other, given_format.resources).spec().options.get(name, value) == value
    with pytest.raises(SettingsError, match="wat"):
        make_codec(CodecSpec(spec.kind, FIELDS, {"wat": 1}), given_format.resources)


def test_a_codec_without_what_it_needs_is_refused_and_one_that_needs_nothing_is_made():
    with pytest.raises(SettingsError, match="needs a schema registry"):
        make_codec(CodecSpec("framed", FIELDS))
    assert make_codec(CodecSpec("json", FIELDS)).fields == FIELDS


@pytest.mark.parametrize("name", [name for name, made in FORMATS.items() if made().records is values])
@settings(max_examples=60, deadline=None)
@given(junk=st.lists(st.binary(max_size=12) | st.binary(max_size=6).map(lambda b: frame(7, "") + b), max_size=5))
def test_arbitrary_bytes_are_decoded_or_bad(name, junk):
    form = FORMATS[name]()
    batch = form.decode([*junk, form.good(1.0, 2.0)])
    assert len(batch) + len(batch.bad) == len(junk) + 1
    assert batch.points[-1].tolist() == [1.0, 2.0]
    assert np.isfinite(batch.points).all()


STORED = """{"name": "m", "fields": ["x", "pos.lat"], "n_clusters": 2, "source": {}, "learner": {}, \
"codec": {"kind": "json", "fields": ["x", "pos.lat"], "time_field": "t", "max_bytes": 1000}}"""
"""The spec of a model as stores of schema 6 and 7 have it."""


def test_the_specs_of_older_stores_make_the_same_codec():
    spec = spec_from_text(STORED)
    assert spec.codec == CodecSpec("json", ("x", "pos.lat"), {"time_field": "t", "max_bytes": 1000})
    assert json.loads(spec_to_text(spec)) == json.loads(STORED)
    assert make_codec(spec.codec).spec().options == {"time_field": "t", "time_unit": "auto", "max_bytes": 1000}
