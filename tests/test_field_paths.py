"""Field paths: every reader of JSON records resolves a field's name by the same rule."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamkm.codecs import JsonCodec
from streamkm.connectors import FileSource, MemorySource
from streamkm.delivery.predictions import parse_point
from streamkm.errors import DataError, FileFormatError
from streamkm.field_paths import MISSING, FieldPaths, resolve_path
from streamkm.service.json_points import to_array
from streamkm.service.problems import Problem

FIELDS = ("a", "a.b", "a.b.c", "b.c", "c")
FOUND = ({"a.b.c": 1}, {"a": {"b.c": 1}}, {"a": {"b": {"c": 1}}}, {"a.b.c": 1, "a": {"b": {"c": 7}}})
NOT_FOUND = ({"a.b": {"c": 1}}, {"a": {"b": 1}}, {"a": [1]}, {"a": {"b": {"c": {}}}}, {"c": 1})


def by_codec(record, field, *, strict):
    source = MemorySource.from_values([[json.dumps(record).encode()]])
    source.seek(source.beginning())
    batch = JsonCodec([field], strict=strict).decode(source.poll(0.0, 1)[0])
    return batch.points[0, 0] if len(batch) else None


def by_http(record, field):
    try:
        return to_array([record], [field])[0, 0]
    except Problem:
        return None


def by_predict(record, field):
    try:
        return parse_point(1, json.dumps(record), (field,))[0]
    except DataError:
        return None


def by_file(record, field, path):
    path.write_text(json.dumps(record))
    try:
        source = FileSource(path, fields=[field])
    except FileFormatError:
        return None
    source.seek(source.beginning())
    value = source.poll(0.0, 1)[0].columns[field][0]
    source.close()
    return float(value) if isinstance(value, float) and not math.isnan(value) else None


@pytest.mark.parametrize("record", FOUND + NOT_FOUND, ids=json.dumps)
def test_all_readers_find_the_same_value(record, tmp_path):
    answers = {
        "scanner": by_codec(record, "a.b.c", strict=False),
        "strict": by_codec(record, "a.b.c", strict=True),
        "http": by_http(record, "a.b.c"),
        "predict": by_predict(record, "a.b.c"),
        "file": by_file(record, "a.b.c", tmp_path / "a.jsonl"),
    }
    assert answers == dict.fromkeys(answers, 1.0 if record in FOUND else None)


names = st.sampled_from(["a", "b", "c", "a.b", "b.c", "a.b.c"])
records = st.recursive(
    st.integers(0, 9), lambda inner: st.dictionaries(names, inner, min_size=1, max_size=3), max_leaves=6
).filter(lambda record: isinstance(record, dict))


@settings(max_examples=300, deadline=None)
@given(records, st.sampled_from(FIELDS))
def test_the_scanner_the_strict_parser_and_predict_agree(record, field):
    value = resolve_path(record, field)
    expected = float(value) if isinstance(value, int) else None
    assert by_codec(record, field, strict=False) == expected
    assert by_codec(record, field, strict=True) == expected
    assert by_predict(record, field) == expected


@settings(max_examples=300, deadline=None)
@given(records)
def test_http_refuses_members_of_no_field_and_finds_all_others(record):
    paths = FieldPaths(FIELDS)
    values = paths.values(record)
    whole = all(isinstance(value, int) for value in values) and not paths.unknown(record)
    try:
        array = to_array([record], FIELDS)
    except Problem:
        assert not whole
    else:
        assert whole
        assert array[0].tolist() == values


def test_a_path_into_an_array_is_an_index():
    record = {"emb": [1.5, 2], "emb[2]": 3, "deep": [[{"x": 4}]]}
    found = {
        path: resolve_path(record, path) for path in ("emb.0", "emb[1]", "emb[2]", "deep[0][0].x", "emb.01", "emb.2")
    }
    assert found == {"emb.0": 1.5, "emb[1]": 2, "emb[2]": 3, "deep[0][0].x": 4, "emb.01": MISSING, "emb.2": MISSING}
    assert to_array([{"emb": [1.5, 2]}], ["emb[0]", "emb[1]"]).tolist() == [[1.5, 2.0]]
    with pytest.raises(Problem, match="unknown field") as refused:
        to_array([{"emb": [1.5, 2, 7]}], ["emb[0]", "emb[1]"])
    assert refused.value.where == "points[0].emb.2"
