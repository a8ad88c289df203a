"""What the service answers when all is well."""

from __future__ import annotations

import math
from datetime import datetime

import numpy as np
import pytest

from service_api import CENTROIDS, FIELDS, NOW, P0, SPEC, Api, Writer
from streamkm.assignment import nearest
from streamkm.service import ServiceOptions
from streamkm.service.schemas import models as schemas
from streamkm.state import CodecSpec, ModelEvent, ModelSpec
from streamkm.stores import open_store
from streamkm.times import format_time, parse_time

ALWAYS_FRESH = ServiceOptions(freshness=0.0)


@pytest.fixture(params=["memory", "sqlite"])
def store(request):
    opened = open_store("memory://" if request.param == "memory" else request.getfixturevalue("sqlite_url"))
    yield opened
    opened.close()


@pytest.fixture
def api(store):
    return Api(store, options=ALWAYS_FRESH)


def test_an_empty_store_lists_no_models(api):
    assert api.get("/v1/models").json() == {"models": []}


def test_the_list_shows_each_model_with_status_lag_points_and_newest_snapshot(api, store):
    Writer(store).commit(points=100, bad=2, lag=7, at=NOW - 1)
    Writer(store, ModelSpec("a", ("x",), 3, {}, {}, CodecSpec("json")))
    first, second = schemas.ModelList.model_validate_json(api.get("/v1/models").content).models
    assert (first.name, first.status, first.snapshot, first.lag, first.fields) == ("a", "warming-up", None, None, ["x"])
    assert (second.name, second.status, second.n_clusters) == ("orders", "running", 2)
    assert (second.points, second.bad_records, second.lag) == (100, 2, 7)
    assert second.snapshot == schemas.SnapshotRef(id=1, created_at=format_time(NOW - 1))


def test_a_model_has_position_counters_settings_and_owner(api, store):
    Writer(store).commit(points=100, bad=2)
    detail = schemas.ModelDetail.model_validate_json(api.get("/v1/models/orders").content)
    assert [(p.topic, p.partition, p.offset) for p in detail.position] == [("orders", 0, 102), ("orders", 1, 7)]
    assert detail.counters == schemas.CountersOut(records=102, points=100, bad_records=2, tombstones=0, lost_records=0)
    assert (detail.source, detail.codec) == (SPEC.source, SPEC.codec.to_json())
    assert detail.lease is not None
    assert (detail.lease.owner, detail.lease.epoch, detail.lease.live) == ("host:1", 1, True)
    assert detail.commits == 1


@pytest.mark.parametrize(
    ("now", "lag", "warmup", "released", "status"),
    [
        (NOW + 1, 5, None, False, "running"),
        (NOW + 9, 0, None, False, "running"),
        (NOW + 9, 5, None, False, "stale"),
        (NOW + 9, -1, None, False, "stale"),
        (NOW + 1, 5, (3, 8), False, "warming-up"),
        (NOW + 9, 5, (3, 8), False, "stale"),
        (NOW + 10.1, 0, None, False, "stopped"),
        (NOW + 1, 0, None, True, "stopped"),
    ],
)
def test_status_follows_from_lease_commit_age_and_lag(store, now, lag, warmup, released, status):
    writer = Writer(store)
    writer.commit(lag=lag, warmup=warmup, centroids=None if warmup else CENTROIDS)
    if released:
        store.release(writer.lease)
    api = Api(store, now=now, options=ServiceOptions(stale_after=5))
    assert api.get("/v1/models/orders").json()["status"] == status
    assert api.get("/v1/models").json()["models"][0]["status"] == status
    assert api.get("/v1/models/orders").json()["status_reason"]


def test_centroids_are_those_of_the_newest_snapshot_by_name_and_in_order(api, store):
    writer = Writer(store)
    writer.commit(centroids=((9.0, 9.0, 9.0),))
    writer.commit(weights=[1.0, 3.0], detail={"x": 1})
    answer = api.get("/v1/models/orders/centroids")
    got = schemas.Centroids.model_validate_json(answer.content)
    assert (got.model, got.snapshot.id, got.fields) == ("orders", 2, list(FIELDS))
    assert got.snapshot.inertia == 1.5
    assert got.snapshot.position[0].offset == 200
    assert [c.id for c in got.clusters] == [4, 7]
    assert [c.values for c in got.clusters] == [list(c) for c in CENTROIDS]
    assert got.clusters[1].centroid == {"amount": 10.0, "lat": 10.0, "lon": 10.0}
    assert [c.share for c in got.clusters] == [0.25, 0.75]
    assert [c.weight for c in got.clusters] == [1.0, 3.0]


def test_without_freshness_a_new_snapshot_is_served_at_once(api, store):
    writer = Writer(store)
    for i in range(1, 4):
        assert writer.commit(centroids=((float(i),) * 3,)) == i
        assert api.get("/v1/models/orders/centroids").json()["clusters"][0]["values"] == [i, i, i]
        assert api.predict([[0, 0, 0]]).json()["snapshot"]["id"] == i


def test_within_the_freshness_the_store_is_not_asked_again(store):
    asked = []

    class Counted:
        def __getattr__(self, name):
            asked.append(name)
            return getattr(store, name)

    Writer(store).commit()
    api = Api(Counted(), options=ServiceOptions(freshness=3600))
    for _ in range(5):
        assert api.predict([[1, 1, 1]]).status_code == 200
        assert api.get("/v1/models/orders/centroids").status_code == 200
    assert sorted(asked) == ["model", "snapshot"]


def test_a_model_made_anew_never_shows_the_snapshots_of_the_one_before(api, store):
    Writer(store).commit()
    old = api.get("/v1/models/orders/centroids")
    store.delete("orders")
    Writer(store, created_at=NOW - 1).commit(centroids=((5.0, 5.0, 5.0),), at=NOW + 1)
    new = api.get("/v1/models/orders/centroids", headers={"If-None-Match": old.headers["ETag"]})
    assert new.status_code == 200
    assert len(new.json()["clusters"]) == 1


def test_snapshots_come_newest_first_a_page_at_a_time(api, store):
    writer = Writer(store)
    for _ in range(5):
        writer.commit()
    seen, before = [], None
    while True:
        url = "/v1/models/orders/snapshots?limit=2" + (f"&before={before}" if before else "")
        page = schemas.SnapshotList.model_validate_json(api.get(url).content)
        assert len(page.snapshots) <= 2
        seen += [s.id for s in page.snapshots]
        if (before := page.next) is None:
            break
    assert seen == [5, 4, 3, 2, 1]


def test_a_page_that_ends_with_the_first_snapshot_is_the_last(api, store):
    writer = Writer(store)
    for _ in range(2):
        writer.commit()
    assert api.get("/v1/models/orders/snapshots?limit=2").json()["next"] is None


def test_one_snapshot_has_its_clusters_and_where_it_came_from(api, store):
    writer = Writer(store)
    writer.commit(detail={"commit_seq": 1, "owner": "me"})
    writer.commit()
    got = schemas.SnapshotDetail.model_validate_json(api.get("/v1/models/orders/snapshots/1").content)
    assert (got.id, got.commit_seq, got.n_points, got.detail) == (1, 1, 100, {"commit_seq": 1, "owner": "me"})
    assert len(got.clusters) == 2


def test_time_travel_by_number_by_iso_time_and_by_seconds(api, store):
    writer = Writer(store)
    times = [NOW - 100, NOW - 50.123456, NOW]
    for t in times:
        writer.commit(at=t)

    def at(text):
        return api.get("/v1/models/orders/centroids", params={"at": text}).json()["snapshot"]["id"]

    assert api.get("/v1/models/orders/centroids?snapshot=2").json()["snapshot"]["id"] == 2
    assert at(format_time(NOW - 51)) == 1
    assert at(str(NOW - 1)) == 2
    assert at("2100-01-01") == 3
    for i, t in enumerate(times, 1):
        assert at(format_time(t)) == i  # what an answer tells is what finds it again
        assert at(repr(t)) == i


def test_a_plus_sign_that_the_url_turned_into_a_space_is_understood(api, store):
    Writer(store).commit(at=parse_time("2026-11-01T10:00:00Z"))
    assert api.get("/v1/models/orders/centroids?at=2026-11-01T12:00:00+02:00").status_code == 200
    assert api.get("/v1/models/orders/centroids?at=2026-11-01T11:59:59+02:00").status_code == 404


def test_times_are_never_rounded_down():
    rng = np.random.default_rng(0)
    for t in (NOW + rng.random(1000)).tolist():
        assert t <= parse_time(format_time(t)) < t + 2e-6
    assert datetime.fromisoformat(format_time(NOW)).timestamp() == NOW


def test_an_etag_saves_sending_the_same_clusters_again(api, store):
    writer = Writer(store)
    writer.commit()
    for url in ("/v1/models/orders/centroids", "/v1/models/orders/snapshots/1"):
        tag = api.get(url).headers["ETag"]
        for sent in (tag, f'W/{tag}, "x"', f'"x", {tag}', "*"):
            again = api.get(url, headers={"If-None-Match": sent})
            assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", tag)
    writer.commit()
    assert api.get("/v1/models/orders/centroids", headers={"If-None-Match": tag}).status_code == 200


def test_predict_gives_id_distance_and_the_snapshot_that_answered(api, store):
    Writer(store).commit(at=NOW - 3)
    answer = api.predict([[1, 0, 0], [9.0, 10.0, 10.0], [10, 10, 12]])
    got = schemas.Prediction.model_validate_json(answer.content)
    assert (got.ids, got.distances) == ([4, 7, 7], [1.0, 1.0, 2.0])
    assert got.snapshot == schemas.SnapshotRef(id=1, created_at=format_time(NOW - 3))


def test_the_score_of_a_point_is_its_distance_in_spreads_of_its_cluster(api, store):
    Writer(store).commit()
    got = api.predict([[0, 0, 1.5], [10, 10, 10]]).json()
    assert got["scores"] == [3.0, 0.0]  # the spreads of the writer's clusters are 0.5


def test_points_are_compared_in_the_units_of_the_model(api, store):
    writer = Writer(store)
    writer.commit(centroids=((0, 0, 0), (10, 1000, 0)), factors=(1.0, 0.001, 1.0))
    got = api.predict([[1, 990, 0], [9, 10, 0]]).json()
    assert got["ids"] == [4, 7]
    np.testing.assert_allclose(got["distances"], [math.hypot(1, 0.99), math.hypot(1, 0.99)])


def test_directions_are_compared_where_the_model_does(api, store):
    Writer(store).commit(centroids=((1, 0, 0), (0, 1, 0)), distance="cosine")
    got = api.predict([[0.1, 0.001, 0], [1, 500, 0]]).json()
    assert got["ids"] == [4, 7]
    answer = api.predict([[1, 2, 3], [0, 0, 0]])
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("points[1]: all values are zero")


def test_events_are_listed_by_snapshot(api, store):
    writer = Writer(store)
    split, birth = ModelEvent("split", (4,), (4, 9), {"share": 0.5}), ModelEvent("birth", (), (11,))
    for events in ((), (split,), (), (birth, ModelEvent("death", (4,))), ()):
        writer.commit(events=events)
    got = api.get("/v1/models/orders/events").json()
    assert [s["id"] for s in got["snapshots"]] == [4, 2]
    assert got["snapshots"][1]["events"] == [split.to_json()]
    assert got["next"] is None
    page = api.get("/v1/models/orders/events?limit=1").json()
    assert ([s["id"] for s in page["snapshots"]], page["next"]) == ([4], 4)
    assert [s["id"] for s in api.get("/v1/models/orders/events?before=4").json()["snapshots"]] == [2]
    assert api.get("/v1/models/orders/snapshots/4").json()["events"][0] == birth.to_json()
    assert [s["n_events"] for s in api.get("/v1/models/orders/snapshots").json()["snapshots"]] == [0, 2, 0, 1, 0]
    assert api.get("/v1/models/nobody/events").status_code == 404


def test_a_cluster_has_an_age_in_points(api, store):
    Writer(store).commit(points=100)
    clusters = api.get("/v1/models/orders/centroids").json()["clusters"]
    assert [(c["born_at_points"], c["age"]) for c in clusters] == [(0, 100), (1, 99)]


def test_predict_takes_objects_in_any_order_of_fields_and_arrays_beside_them(api, store):
    Writer(store).commit()
    points = [{"lon": 1, "lat": 2, "amount": 3}, {"amount": 10, "lat": 10, "lon": 9.5}]
    assert api.predict(points).json()["distances"] == [math.sqrt(14), 0.5]
    assert api.predict([points[0], [10, 10, 9.5]]).json()["ids"] == [4, 7]


def test_predict_takes_dotted_fields_flat_or_nested(api, store):
    spec = ModelSpec("nested", ("id", "pos.lat", "pos.lon"), 2, {}, {}, CodecSpec("json"))
    Writer(store, spec).commit()
    flat = {"id": 1, "pos.lat": 2, "pos.lon": 3}
    nested = {"id": 1, "pos": {"lat": 2, "lon": 3}}
    answers = [api.predict(p, "nested").json() for p in ([flat], [nested], [flat, nested])]
    assert answers[0] == answers[1]
    assert answers[2]["distances"] == 2 * answers[0]["distances"]


def test_predict_uses_the_requested_snapshot(api, store):
    writer = Writer(store)
    writer.commit(centroids=((1.0, 1.0, 1.0),))
    writer.commit()
    assert api.predict([[1, 1, 1]], snapshot=1).json()["distances"] == [0.0]
    assert api.predict([[1, 1, 1]], snapshot=None).json()["snapshot"]["id"] == 2


def test_no_points_get_an_empty_answer_with_the_snapshot(api, store):
    Writer(store).commit()
    got = api.predict([]).json()
    assert (got["ids"], got["distances"], got["snapshot"]["id"]) == ([], [], 1)


def test_a_body_without_announced_length_is_read(api, store):
    Writer(store).commit()

    async def parts():
        yield b'{"points": [[1, 0, 0],'
        yield b"[0, 0, 2]]}"

    answer = api.request("POST", "/v1/models/orders/predict", content=parts())
    assert answer.json()["distances"] == [1.0, 2.0]


def test_many_points_agree_with_a_direct_computation(api, store):
    rng = np.random.default_rng(1)
    centroids = rng.normal(size=(13, 3)) * 100
    Writer(store).commit(centroids=centroids.tolist())
    points = rng.normal(size=(20_000, 3)) * 100
    got = api.predict(points.tolist()).json()
    d = np.sqrt(((points[:, None] - centroids) ** 2).sum(2))
    np.testing.assert_array_equal(got["ids"], d.argmin(1) * 3 + 4)
    np.testing.assert_allclose(got["distances"], d.min(1), rtol=1e-14)


def test_of_centroids_at_equal_distance_the_first_is_taken():
    index, _ = nearest(np.array([[1.0], [-1.0], [1.0]]), np.zeros((3, 1)))
    assert index.tolist() == [0, 0, 0]


def test_distances_hold_at_the_ends_of_the_range_of_doubles():
    far = np.array([[1e300, 0.0], [-1e300, 0.0]])
    index, distance = nearest(far, np.array([[9e299, 0.0], [-1.7e308, 0.0], [1e-300, 0.0]]))
    assert index.tolist() == [0, 1, 0]
    np.testing.assert_allclose(distance, [1e299, 1.7e308 - 1e300, 1e300])
    assert nearest(np.array([[1.7e308]]), np.array([[-1.7e308]]))[1].tolist() == [math.inf]


def test_no_answer_ever_holds_nan_or_infinity(api, store):
    writer = Writer(store)
    writer.commit(
        centroids=((1.7e308, 0.0, 0.0),), weights=[0.0], inertia=math.nan, detail={"cost": math.inf, "k": [math.nan]}
    )
    for url in ("centroids", "snapshots", "snapshots/1", ""):
        body = api.get(f"/v1/models/orders/{url}".rstrip("/")).text
        assert "NaN" not in body
        assert "Infinity" not in body
    got = api.get("/v1/models/orders/snapshots/1").json()
    assert (got["inertia"], got["clusters"][0]["share"]) == (None, None)
    assert got["detail"] == {"cost": None, "k": [None]}
    assert api.predict([[-1.7e308, 0, 0]]).json()["distances"] == [None]


def test_old_snapshots_leave_memory_before_it_is_full(store):
    writer = Writer(store)
    for _ in range(5):
        writer.commit()
    api = Api(store, options=ServiceOptions(freshness=0.0, cache_bytes=1))
    for _ in range(2):
        for i in range(1, 6):
            assert api.get(f"/v1/models/orders/centroids?snapshot={i}").json()["snapshot"]["id"] == i


def test_the_service_is_alive_and_ready(api):
    assert api.get("/livez").json() == {"status": "ok"}
    assert api.get("/readyz").json() == {"status": "ok"}
    assert api.get("/livez").headers["X-Content-Type-Options"] == "nosniff"


def test_the_position_is_that_of_the_snapshot_not_of_the_model(api, store):
    writer = Writer(store)
    writer.commit(points=10)
    writer.commit(points=10, centroids=None)
    assert api.get("/v1/models/orders/centroids").json()["snapshot"]["position"][0] == {**P0._asdict(), "offset": 10}
    assert api.get("/v1/models/orders").json()["position"][0]["offset"] == 20
