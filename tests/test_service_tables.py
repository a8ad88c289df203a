"""Points as CSV and Arrow, and answers of each kind."""

from __future__ import annotations

import io
import math
import struct
import sys

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from service_api import FIELDS, Api, Writer
from streamkm.service import ServiceOptions, tables
from streamkm.service.problems import Problem, ProblemBody
from streamkm.service.request_body import ARROW, CSV, JSON
from streamkm.service.routes.predict import SNAPSHOT_HEADER, negotiate
from streamkm.stores import MemoryStore

X = np.array([[1.0, 0.0, 0.0], [9.0, 10.0, 10.0], [10.0, 10.0, 12.0]])
HEAD = b"amount,lat,lon\n"


@pytest.fixture(scope="module")
def api():
    store = MemoryStore()
    writer = Writer(store)
    writer.commit(centroids=((5.0, 5.0, 5.0),))
    writer.commit()
    return Api(store)


def arrow(columns, *, schema=None, rows=None, **options):
    """A table as an Arrow stream."""
    table = pa.table(columns, schema=schema)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as stream:
        stream.write_table(table, max_chunksize=rows)
    return sink.getvalue().to_pybytes()


def columns_of(points):
    return dict(zip(FIELDS, points.T.copy(), strict=True))


def predict(api, body, kind, accept=JSON, query=""):
    headers = {"Content-Type": kind, "Accept": accept}
    return api.request("POST", f"/v1/models/orders/predict{query}", content=body, headers=headers)


def problem(answer, status, code):
    assert answer.status_code == status, answer.text
    found = ProblemBody.model_validate_json(answer.content)
    assert found.code == code, found
    return found


BODIES = {
    "header": (CSV, HEAD + b"1,0,0\n9,10,10\n10,10,12\n"),
    "other order and more columns": (CSV, b'lon,note,lat,amount\r\n0,a,0,1\r\n10,"b,\nc",10,9\r\n12,,10,10\r\n'),
    "no header": (CSV, b"1,0,0\n9,10,10\n10,10,12"),
    "blanks": (CSV, b" amount, lat, lon\n 1, 0, 0\n9 , 10,10 \n10,\t10, 12\n"),
    "semicolons": (CSV, b'"amount";"lat";"lon, deg";"lon"\n1;0;x;0\n9;10;y;10\n10;10;"a;b";12\n'),
    "row names": (CSV, b'"","amount","lat","lon"\n"1",1,0,0\n"2",9,10,10\n"3",10,10,12\n'),
    "inches": (CSV, b'amount,lat,lon,note\n1,0,0,5" pipe\n9,10,10,ok\n10,10,12,6" pipe\n'),
    "byte order mark": (CSV, b"\xef\xbb\xbf" + HEAD + b"1,0,0\n9.0,1e1,+10\n10,10,12\n"),
    "arrow": (ARROW, arrow(columns_of(X))),
    "arrow in batches": (ARROW, arrow(columns_of(X), rows=2)),
    "arrow of other numbers": (
        ARROW,
        arrow({"lon": X[:, 2].astype(np.int8), "x": ["a", None, "b"], "lat": X[:, 1].astype(np.float32),
               "amount": X[:, 0].astype(np.uint64)}),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "body"), BODIES.values(), ids=BODIES)
@pytest.mark.parametrize("accept", [JSON, CSV, ARROW])
def test_every_kind_of_points_gets_every_kind_of_answer(api, kind, body, accept):
    answer = predict(api, body, kind, accept)
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"].startswith(accept)
    assert answer.headers[SNAPSHOT_HEADER] == "2"
    if accept == JSON:
        told = answer.json()
        found = told["ids"], told["distances"], told["scores"]
    elif accept == CSV:
        frame = pl.read_csv(answer.content)
        found = tuple(frame[name].to_list() for name in ("id", "distance", "score"))
    else:
        table = pa.ipc.open_stream(answer.content).read_all()
        assert table.schema.metadata[b"snapshot"] == b"2"
        assert table.schema.metadata[b"clusters"] == b"4,7"
        found = tuple(table[name].to_pylist() for name in ("id", "distance", "score"))
    assert found == ([4, 7, 7], [1.0, 1.0, 2.0], [2.0, 2.0, 4.0])


def test_the_snapshot_and_more_distances_are_asked_for_in_the_address(api):
    told = predict(api, BODIES["arrow"][1], ARROW, query="?snapshot=1&include=distances,second").json()
    assert told["snapshot"]["id"] == 1
    assert told["second_ids"] == told["second_distances"] == [None] * 3
    told = api.request(
        "POST", "/v1/models/orders/predict?include=distances&include=second", json={"points": X.tolist()}
    ).json()
    true = np.linalg.norm(X[:, None] - np.array([[0.0] * 3, [10.0] * 3]), axis=2)
    np.testing.assert_allclose(told["all_distances"], true)
    assert told["clusters"] == [4, 7]
    assert told["second_ids"] == [7, 4, 4]
    np.testing.assert_allclose(told["second_distances"], true.max(axis=1))
    csv = pl.read_csv(predict(api, HEAD + b"1,0,0\n", CSV, CSV, "?include=distances,second").content)
    assert csv.columns == ["id", "distance", "score", "second_id", "second_distance", "distance_4", "distance_7"]
    table = pa.ipc.open_stream(predict(api, BODIES["arrow"][1], ARROW, ARROW, "?include=distances,second").content)
    table = table.read_all()
    np.testing.assert_allclose(table["distances"].to_pylist(), true)
    assert table["second_id"].to_pylist() == [7, 4, 4]


@pytest.mark.parametrize(
    ("query", "code", "where"),
    [
        ("?snapshot=0", "invalid", "query.snapshot"),
        ("?snapshot=x", "invalid", "query.snapshot"),
        ("?snapshot=99999999999999999999", "invalid", "query.snapshot"),
        ("?include=third", "invalid", "query.include"),
        ("?snapsot=1", "unknown-field", "query.snapsot"),
        ("?%ED%A0%80=1", "unknown-field", "query."),
    ],
)
def test_what_the_address_may_not_say_is_named(api, query, code, where):
    assert problem(predict(api, b"", CSV, query=query), 422, code).where.startswith(where)
    both = api.request("POST", "/v1/models/orders/predict?snapshot=1", json={"points": [], "snapshot": 2})
    assert problem(both, 422, "invalid").where == "query.snapshot"


@pytest.mark.parametrize(("body", "kind"), [(b"", CSV), (HEAD, CSV), (arrow(columns_of(X[:0])), ARROW)])
def test_no_points_get_an_empty_answer(api, body, kind):
    assert predict(api, body, kind).json()["ids"] == []
    assert pa.ipc.open_stream(predict(api, body, kind, ARROW).content).read_all().num_rows == 0


@pytest.mark.parametrize(
    ("body", "status", "code", "where", "says"),
    [
        (b"a,b,c\n1,2,3\n", 422, "missing-field", "line 1", "amount, lat, lon"),
        (b"amount,lat\n1,2\n", 422, "missing-field", "line 1", "there is no column lon"),
        (b"1,2\n", 422, "wrong-dimension", "line 1", "2 values, the model has 3 fields"),
        (b"1,2,3\n1,,3\n", 422, "missing-field", "line 2, field lat", "missing"),
        (b"1,2,3\n1,2\n", 422, "wrong-dimension", "line 2", "2 values"),
        (b"1,2,3\n1,2,3,4\n", 422, "wrong-dimension", "line 2", "4 values"),
        (HEAD + b"1,x,3\n", 422, "not-a-number", "line 2, field lat", "'x'"),
        (HEAD + b'1,"1,5",3\n', 422, "not-a-number", "line 2, field lat", "'1,5' is not a number (a decimal comma)"),
        (HEAD + b"1_0,2,3\n", 422, "not-a-number", "line 2, field amount", "'1_0'"),
        (HEAD + b"1,2,3\n1,inf,3\n", 422, "not-finite", "line 3, field lat", "finite"),
        (HEAD + b"1,2,NaN\n", 422, "missing-field", "line 2, field lon", "missing"),
        (HEAD + b"1,1e999,3\n", 422, "not-finite", "line 2, field lat", "finite"),
        (HEAD + b"1,2,3\n\n4,5,6\n", 422, "missing-field", "line 3", "empty line"),
        (b'amount,lat,lon,note\n1,2,3,"a\nb"\n1,2,q,z\n', 422, "not-a-number", "line 4, field lon", "'q'"),
        (HEAD + b"\xff,2,3\n", 400, "invalid", "line 2", "UTF-8"),
        (b"\xff\xfe\n", 400, "invalid", "line 1", "UTF-8"),
        (HEAD + b'1,2,3\n"x,2,3\n', 400, "invalid", "line 3", "not CSV"),
    ],
)
def test_the_line_of_csv_that_is_wrong_is_named(api, body, status, code, where, says):
    found = problem(predict(api, body, CSV), status, code)
    assert found.where == where
    assert says in found.detail


WITH_NAN, WITH_NULL = X.copy(), {**columns_of(X), "lat": pa.array([1.0, None, 2.0])}
WITH_NAN[2, 1] = math.nan
TWICE = pa.RecordBatch.from_arrays([pa.array([1.0])] * 4, names=[*FIELDS, "lat"])


@pytest.mark.parametrize(
    ("body", "code", "where"),
    [
        (arrow({"amount": [1.0], "lat": [1.0]}), "missing-field", "field lon"),
        (arrow(columns_of(WITH_NAN), rows=1), "not-finite", "row 2, field lat"),
        (arrow(WITH_NULL), "missing-field", "row 1, field lat"),
        (arrow(WITH_NULL, rows=1), "missing-field", "row 1, field lat"),
        (arrow({**columns_of(X), "lat": ["a", "b", "c"]}), "not-a-number", "field lat"),
        (arrow({**columns_of(X), "lat": [True, False, True]}), "not-a-number", "field lat"),
        (arrow({**columns_of(X), "lat": pa.nulls(3)}), "not-a-number", "field lat"),
    ],
)
@pytest.mark.parametrize("library", ["pyarrow", "polars"])
def test_the_row_and_column_of_arrow_that_are_wrong_are_named(api, monkeypatch, body, code, where, library):
    if library == "polars":
        monkeypatch.setitem(sys.modules, "pyarrow", None)
    found = problem(predict(api, body, ARROW), 422, code)
    assert found.where == where


def test_a_column_that_is_there_twice_is_refused(api):
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, TWICE.schema) as stream:
        stream.write_batch(TWICE)
    assert problem(predict(api, sink.getvalue().to_pybytes(), ARROW), 422, "invalid").where == "field lat"


def test_arrow_is_spoken_without_pyarrow_too(api, monkeypatch):
    body = arrow(columns_of(X), rows=2)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    answer = predict(api, body, ARROW, ARROW, "?include=second,distances")
    frame = pl.read_ipc_stream(io.BytesIO(answer.content))
    assert frame["id"].to_list() == [4, 7, 7]
    assert frame["second_id"].to_list() == [7, 4, 4]
    assert np.asarray(frame["distances"].to_list()).shape == (3, 2)
    assert answer.headers[SNAPSHOT_HEADER] == "2"


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_compressed_arrow_is_refused_before_it_is_unpacked(api, compression):
    zeros = {name: np.zeros(1 << 20) for name in FIELDS}
    body = arrow(zeros, compression=compression)
    assert len(body) < 1 << 20
    assert problem(predict(api, body, ARROW), 415, "unsupported-media-type").hint
    words = pa.array(["a", "b"] * 50_000).dictionary_encode()
    assert tables.compressed(arrow({"x": words}, compression=compression))
    assert not tables.compressed(arrow({"x": words}))


def test_bytes_that_are_no_arrow_stream_are_refused(api):
    whole = arrow(columns_of(X), rows=1)
    rng = np.random.default_rng(0)
    for body in (b"", b"x", b"\xff" * 100, b"\0" * 64, whole[:50], whole[: len(whole) // 2]):
        assert predict(api, body, ARROW).status_code in {200, 400}, body[:20]
    for _ in range(300):
        broken = bytearray(whole)
        for at in rng.integers(len(whole), size=3).tolist():
            broken[at] = int(rng.integers(256))
        assert predict(api, bytes(broken), ARROW).status_code in {200, 400, 415, 422}
    longer = bytearray(whole)
    at = whole.index(struct.pack("<q", 8), 300)
    longer[at : at + 8] = struct.pack("<q", 1 << 40)
    assert predict(api, bytes(longer), ARROW).status_code in {200, 400, 422}


def test_tables_may_be_larger_than_json_and_not_without_bound():
    store = MemoryStore()
    Writer(store).commit()
    api = Api(store, options=ServiceOptions(max_body_bytes=1000, max_table_bytes=100_000))
    body = HEAD + b"1,2,3\n" * 1000
    assert len(predict(api, body, CSV).json()["ids"]) == 1000
    assert "100000" in problem(predict(api, body * 20, CSV), 413, "too-large").detail
    assert "1000" in problem(api.predict([[1, 2, 3]] * 1000), 413, "too-large").detail


def test_too_many_distances_are_refused(api, monkeypatch):
    monkeypatch.setattr("streamkm.service.routes.predict.MAX_DISTANCES", 5)
    assert problem(predict(api, BODIES["arrow"][1], ARROW, query="?include=distances"), 413, "too-large").hint


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("", JSON),
        ("*/*", JSON),
        ("text/html, */*;q=0.1", JSON),
        ("text/csv", CSV),
        ("TEXT/CSV; header=present", CSV),
        ("application/json;q=0.2, application/vnd.apache.arrow.stream", ARROW),
        ("text/*", CSV),
        ("application/*", JSON),
    ],
)
def test_the_answer_is_of_the_kind_that_is_accepted(accept, kind):
    assert negotiate(accept) == kind


@pytest.mark.parametrize("accept", ["text/html", "image/*", "application/json;q=0", "text/csv;q=nan", "text/csv;q=x"])
def test_what_cannot_be_accepted_is_406(api, accept):
    with pytest.raises(Problem):
        negotiate(accept)
    assert problem(predict(api, b"", CSV, accept), 406, "not-acceptable").hint


def test_many_points_in_arrow_are_those_of_a_direct_computation():
    rng = np.random.default_rng(5)
    centroids, points = rng.normal(size=(16, 3)), rng.normal(size=(200_000, 3))
    store = MemoryStore()
    Writer(store).commit(centroids=centroids.tolist())
    answer = predict(Api(store), arrow(columns_of(points), rows=30_000), ARROW, ARROW)
    table = pa.ipc.open_stream(answer.content).read_all()
    true = np.linalg.norm(points[:, None] - centroids, axis=2)
    np.testing.assert_array_equal(table["id"].to_numpy(), true.argmin(axis=1) * 3 + 4)
    np.testing.assert_allclose(table["distance"].to_numpy(), true.min(axis=1))
