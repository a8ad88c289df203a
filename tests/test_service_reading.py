"""What happened to a model, looked at over HTTP: history, lineage, differences, k, points and quarantine."""

from __future__ import annotations

import dataclasses
import threading

import numpy as np
import orjson
import pytest

from service_api import FIELDS, NOW, P0, SPEC, Api, Writer
from streamkm import OnlineKMeans
from streamkm.errors import StoreUnavailableError
from streamkm.records import BadRecord, RawRecord
from streamkm.service import ServiceOptions
from streamkm.service.schemas import live
from streamkm.state import ModelEvent, Recent
from streamkm.stores import MemoryStore, open_store
from streamkm.times import format_time

MODEL = "/v1/models/orders"
PROFILE = {
    "running": 2,
    "suggested": 3,
    "reason": "the gap is highest at 3",
    "ks": [2, 3],
    "cost": [2.0, 1.0],
    "silhouette": [0.5, 0.9],
    "gap": [0.1, 0.4],
    "gap_error": [0.01, 0.01],
    "davies_bouldin": [None, 0.4],
    "gap_of_one": 0.0,
}


@pytest.fixture(params=["memory", "sqlite"])
def store(request):
    opened = open_store("memory://" if request.param == "memory" else request.getfixturevalue("sqlite_url"))
    yield opened
    opened.close()


@pytest.fixture
def writer(store):
    return Writer(store)


@pytest.fixture
def api(store):
    return Api(store, options=ServiceOptions(freshness=0.0))


def commit_with(writer, state=None, **more):
    """A commit that carries more than the writer's own."""
    plain = writer.store.commit

    class Store:
        def commit(self, lease, commit):
            extra = more if state is None else {**more, "state": state}
            return plain(lease, dataclasses.replace(commit, **extra))

    store, writer.store = writer.store, Store()
    try:
        return writer.commit()
    finally:
        writer.store = store


def read(api, rest, schema):
    answer = api.get(f"{MODEL}/{rest}")
    assert answer.status_code == 200, answer.text
    schema.model_validate_json(answer.content)
    return answer.json()


def test_history_has_the_clusters_of_every_snapshot_newest_first(api, writer):
    split = ModelEvent("split", (4,), (4, 7), {"share": 0.5})
    for i in range(5):
        writer.commit(at=NOW + i, weights=[1.0, 3.0], events=(split,) if i == 2 else ())
    seen, before = [], ""
    while True:
        page = read(api, f"history?limit=2{before}", live.History)
        seen += page["snapshots"]
        if page["next"] is None:
            break
        before = f"&before={page['next']}"
    assert page["fields"] == list(FIELDS)
    assert [s["id"] for s in seen] == [5, 4, 3, 2, 1]
    assert seen[2]["events"] == [split.to_json()]
    assert (seen[0]["created_at"], seen[0]["shares"]) == (format_time(NOW + 4), [0.25, 0.75])
    assert api.get("/v1/models/nobody/history").status_code == 404


def test_history_leaves_out_what_was_recomputed_and_not_promoted(api, store, writer):
    writer.commit()
    learned = OnlineKMeans(n_clusters=2, seed=0).state()
    recomputed = dataclasses.replace(store.snapshot("orders"), kind="replay", reason="replay", id=0)
    number = store.add_snapshot(recomputed, learned)
    writer.commit()
    assert [s["id"] for s in read(api, "history", live.History)["snapshots"]] == [3, 1]
    assert number == 2


def test_a_page_may_have_a_thousand_snapshots():
    with_k = {"k": PROFILE}
    store = MemoryStore()
    fields = tuple(f"f{i}" for i in range(8))
    writer = Writer(store, dataclasses.replace(SPEC, fields=fields))
    centroids = np.arange(64.0).reshape(8, 8).tolist()
    for _ in range(1000):
        writer.commit(centroids=centroids, detail=with_k)
    told = Api(store).get(f"{MODEL}/history?limit=1000").json()
    assert [s["id"] for s in told["snapshots"]] == list(range(1000, 0, -1))
    assert told["next"] is None


def test_lineage_has_origin_and_end_of_clusters(api, writer):
    writer.commit(at=NOW, events=(ModelEvent("birth", (), (4,)),))
    writer.commit(at=NOW + 1, events=(ModelEvent("split", (4,), (4, 7)),))
    writer.commit(at=NOW + 2, events=(ModelEvent("merge", (4, 7), (4,)), ModelEvent("death", (9,), ())))
    told = {c["id"]: c for c in read(api, "lineage", live.Lineage)["clusters"]}
    assert told[4]["born"]["id"] == 1
    assert (told[7]["born"]["id"], told[7]["ended"]["id"]) == (2, 3)
    assert (told[9]["born"], told[9]["ended"]["id"]) == (None, 3)
    assert told[4]["ended"] is None
    assert api.get("/v1/models/nobody/lineage").status_code == 404


def test_two_snapshots_are_compared_on_what_the_model_remembers(api, writer):
    rng = np.random.default_rng(0)
    learner = OnlineKMeans(n_clusters=2, seed=0)
    learner.learn_many(np.vstack([rng.normal(size=(500, 3)), rng.normal(size=(500, 3)) + 10]))
    commit_with(writer, state=learner.state())
    writer.commit(centroids=((0.0, 0.0, 0.0), (20.0, 20.0, 20.0)))
    commit_with(writer, state=learner.state())
    told = read(api, "diff?a=1&b=2", live.SnapshotDiff)
    assert (told["a"], told["b"], told["removed"], told["added"]) == (1, 2, [], [])
    assert [m["id"] for m in told["shifts"]] == [7, 4]
    assert told["shifts"][0]["distance"] == pytest.approx(300**0.5)
    assert told["cost_b"] > told["cost_a"] > 0
    same = read(api, "diff?a=1&b=1", live.SnapshotDiff)
    assert (same["changed"], same["shifts"][0]["distance"]) == (0.0, 0.0)
    assert api.get(f"{MODEL}/diff?a=1&b=99").status_code == 404
    assert api.get(f"{MODEL}/diff?a=1").status_code == 422


def test_the_choice_of_k_is_that_of_the_newest_snapshot(api, writer):
    writer.commit(detail={"k": PROFILE})
    told = read(api, "k", live.KProfile)
    assert told["current"] == PROFILE["running"]
    for name in ("suggested", "reason", "ks", "cost", "silhouette", "gap", "davies_bouldin"):
        assert told[name] == PROFILE[name], name


def test_a_sample_is_of_the_last_points_with_their_clusters(api, store, writer):
    rng = np.random.default_rng(1)
    points = np.vstack([rng.normal(size=(40, 3)), rng.normal(size=(60, 3)) + 10])
    commit_with(writer, recent=Recent(points, {P0: 9}))
    told = read(api, "sample?n=50", live.PointSample)
    shown = np.array(told["points"])
    assert shown.shape == (50, 3)
    assert {tuple(p) for p in shown.tolist()} <= {tuple(p) for p in points.tolist()}
    assert told["ids"] == np.where(shown.sum(axis=1) < 15, 4, 7).tolist()
    x, y = np.array(told["projection"]["axes"]) @ (shown - told["projection"]["mean"]).T
    assert np.var(x) > np.var(y)
    assert told["projection"]["explained"][0] == pytest.approx(
        np.var(x) * 50 / (np.var(shown, axis=0).sum() * 50), abs=0.1
    )
    assert len(read(api, "sample", live.PointSample)["points"]) == 100
    writer.commit(centroids=((5.0, 5.0, 5.0),))
    assert set(read(api, "sample", live.PointSample)["ids"]) == {4}
    assert read(api, "sample?n=50&snapshot=1", live.PointSample)["ids"] == told["ids"]


@pytest.mark.parametrize(
    "points", [np.empty((0, 3)), np.zeros((1, 3)), np.ones((5, 3)), np.full((4, 3), 1.7e308) * [[1], [-1], [1], [-1]]]
)
def test_points_that_have_no_plane_are_shown_all_the_same(api, writer, points):
    commit_with(writer, recent=Recent(points))
    told = read(api, "sample", live.PointSample)
    assert np.array(told["projection"]["axes"]).shape == (2, 3)


def test_a_model_that_never_showed_points_has_an_empty_sample(api, writer):
    writer.commit()
    assert read(api, "sample", live.PointSample)["points"] == []


def test_quarantined_records_are_truncated_text(api, writer):
    def bad(offset, reason, value, key=None):
        return BadRecord(RawRecord(P0, offset, 1_700_000_000_000, key, value), reason, "amount", "is wrong")

    records = (
        bad(0, "not-json", b"\xff{"),
        bad(1, "not-a-number", "é".encode() * 5000, b"k"),
        bad(2, "not-json", None),
    )
    commit_with(writer, quarantine=records)
    told = read(api, "quarantine", live.Quarantine)
    assert (told["total"], told["reasons"]) == (3, {"not-json": 2, "not-a-number": 1})
    found = {r["offset"]: r for r in told["records"]}
    assert (found[0]["value"], found[0]["value_bytes"]) == ("\ufffd{", 2)
    assert (found[1]["value"], found[1]["value_bytes"], found[1]["key"]) == ("é" * 2000, 10_000, "k")
    assert found[2]["value"] is None
    few = read(api, "quarantine?reason=not-json&limit=1", live.Quarantine)
    assert ([r["reason"] for r in few["records"]], few["total"]) == (["not-json"], 3)
    assert api.get("/v1/models/nobody/quarantine").status_code == 404


@pytest.mark.parametrize("rest", ["history", "lineage", "k", "sample", "quarantine", "diff?a=1&b=1"])
def test_a_parameter_that_is_misspelt_is_refused(api, writer, rest):
    writer.commit()
    answer = api.get(f"{MODEL}/{rest}{'&' if '?' in rest else '?'}limits=1")
    assert (answer.status_code, answer.json()["code"]) == (422, "unknown-field")


def test_long_answers_are_packed_for_who_takes_it(api, writer):
    for _ in range(20):
        writer.commit()
    packed = api.get(f"{MODEL}/history", headers={"Accept-Encoding": "gzip"})
    plain = api.get(f"{MODEL}/history", headers={"Accept-Encoding": "identity"})
    assert packed.headers["Content-Encoding"] == "gzip"
    assert "Content-Encoding" not in plain.headers
    assert packed.json() == plain.json()
    assert int(packed.headers["Content-Length"]) < int(plain.headers["Content-Length"]) / 3


def threads_calling(monkeypatch, module, name):
    """Names, without numbers, of the threads that call a function from now on."""
    threads = []
    call = getattr(module, name)

    def recorded(*arguments, **options):
        threads.append(threading.current_thread().name.rpartition("_")[0])
        return call(*arguments, **options)

    monkeypatch.setattr(module, name, recorded)
    return threads


LISTS = "snapshots events history lineage k sample quarantine centroids snapshots/1"


@pytest.mark.parametrize("url", ["/v1/models", MODEL, *(f"{MODEL}/{name}" for name in LISTS.split()), "/openapi.json"])
def test_responses_that_grow_with_the_store_are_built_in_a_thread(api, writer, monkeypatch, url):
    writer.commit(detail={"k": PROFILE})
    threads = threads_calling(monkeypatch, orjson, "dumps")
    assert api.get(url).status_code == 200
    assert threads
    assert set(threads) <= {"streamkm-compute", "streamkm-store"}


def test_metrics_are_exported_in_a_thread_with_the_store_or_without(api, store, writer, monkeypatch):
    writer.commit()
    threads = threads_calling(monkeypatch, api.app.state.metrics, "render")
    assert "streamkm_store_up 1.0" in api.get("/metrics").text
    monkeypatch.setattr(store, "models", raising(StoreUnavailableError("away")))
    assert "streamkm_store_up 0.0" in api.get("/metrics").text
    assert threads == ["streamkm-store", "streamkm-compute"]


def raising(error):
    def call(*_, **__):
        raise error

    return call


def test_the_openapi_description_is_generated_once(api, monkeypatch):
    threads = threads_calling(monkeypatch, api.app, "openapi")
    first = api.get("/openapi.json", headers={"Accept-Encoding": "identity"})
    packed = api.get("/openapi.json", headers={"Accept-Encoding": "gzip"})
    assert first.json() == packed.json()
    assert int(packed.headers["content-length"]) < int(first.headers["content-length"]) / 5
    assert api.get("/openapi.json", headers={"If-None-Match": first.headers["etag"]}).status_code == 304
    assert threads == ["streamkm-compute"]
