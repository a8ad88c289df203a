"""The exported metrics are those of the contract."""

from __future__ import annotations

import math
import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from service_api import NOW, TOKEN, Api, Writer
from streamkm import metrics as names
from streamkm.metrics import CONTRACT, CounterSpec, GaugeSpec, HistogramSpec, Metrics, family, markdown_table
from streamkm.records import BadRecord, RawRecord, TopicPartition
from streamkm.state import Counters, ModelEvent, Progress, Snapshot
from streamkm.stores import MemoryStore

TP = TopicPartition("orders", 0)


def samples(text):
    """The samples of a scrape: name -> {labels: value}."""
    found = {}
    for f in text_string_to_metric_families(text if isinstance(text, str) else text.decode()):
        for s in f.samples:
            found.setdefault(s.name, {})[tuple(sorted(s.labels.items()))] = s.value
    return found


def exported(found):
    """Names of the contract with samples in a scrape."""
    return {
        spec.name
        for spec in CONTRACT
        if (spec.name + "_count" if isinstance(spec, HistogramSpec) else spec.name) in found
    }


def by(emitter):
    return {spec.name for spec in CONTRACT if spec.emitter == emitter}


def snapshot(**changes):
    import numpy as np

    one = np.ones(1)
    values = {
        "model": "m", "created_at": NOW, "kind": "live", "reason": "first", "fields": ("x",),
        "ids": np.zeros(1, np.int64), "centroids": one[:, None], "weights": one, "spreads": one,
        "born": np.zeros(1, np.int64), "factors": one, "distance": "euclidean",
        "inertia": 2.5, "n_points": 9, "position": {TP: 10}, "events": (ModelEvent("death", (3,)),),
    }  # fmt: skip
    return Snapshot(**{**values, **changes})


DETAIL = {"evaluation": {"silhouette": 0.75, "staleness": 0.1}, "outliers": 3, "k": {"suggested": 5}}


def bad(reason):
    return BadRecord(RawRecord(TP, 0, 0, None, b""), reason, "", "")


@pytest.fixture
def engine_metrics():
    m = Metrics()
    m.batch("m", 7, [bad("not-json"), bad("not-json"), bad("not-finite")], 1, 0.25, 0.5)
    m.commit("m", Progress({TP: 11}, Counters(), 1, NOW, 4), {TP: 4}, snapshot(), 0.125)
    m.add(names.ERRORS, model="m", stage="poll")
    m.add(names.LETTERS, 3, model="m")
    m.add(names.RECORDS_LOST, 2, model="m")
    m.add(names.ALARMS, model="m", alarm="hung")
    m.set(names.LEASE_HELD, 1, model="m")
    return m


def test_every_name_is_there_once_and_follows_the_conventions():
    assert len({spec.name for spec in CONTRACT}) == len(CONTRACT)
    everything = {v for v in vars(names).values() if isinstance(v, names.MetricSpec)}
    assert everything == set(CONTRACT)
    for spec in CONTRACT:
        assert re.fullmatch(r"streamkm_[a-z]+(_[a-z]+)*", spec.name)
        assert spec.name.endswith("_total") == isinstance(spec, CounterSpec)
        assert not isinstance(spec, HistogramSpec) or spec.name.endswith("_seconds")
        assert spec.help
        assert not {"offset", "key", "path", "snapshot"} & set(spec.labels)


def test_every_name_of_the_engine_is_exported(engine_metrics):
    assert exported(samples(engine_metrics.render())) == by("engine")


def test_every_name_of_the_service_and_of_the_store_is_exported():
    store = MemoryStore()
    Writer(store).commit(bad=2, lag=3, at=NOW - 5, detail=DETAIL)
    api = Api(store)
    api.predict([[1, 2, 3], [4, 5, 6]])
    found = samples(api.get("/metrics").text)
    assert exported(found) == by("service") | by("store")


def test_nothing_is_exported_that_is_not_in_the_contract(engine_metrics):
    store = MemoryStore()
    Writer(store).commit()
    api = Api(store, metrics=engine_metrics)
    api.get("/v1/models")
    allowed = {spec.name for spec in CONTRACT} | {
        spec.name + suffix
        for spec in CONTRACT
        if isinstance(spec, HistogramSpec)
        for suffix in ("_bucket", "_count", "_sum")
    }
    found = samples(api.get("/metrics").text)
    assert set(found) <= allowed
    assert exported(found) > by("engine")  # a process may be consumer and service


def test_every_name_is_in_the_table_for_the_docs():
    table = markdown_table()
    assert all(f"| `{spec.name}` |" in table for spec in CONTRACT)


def test_a_batch_counts_its_records_by_what_they_were(engine_metrics):
    value = engine_metrics.value
    assert value(names.RECORDS_RECEIVED, model="m") == 11
    assert value(names.POINTS_LEARNED, model="m") == 7
    assert value(names.RECORDS_BAD, model="m", reason="not-json") == 2
    assert value(names.RECORDS_BAD, model="m", reason="not-finite") == 1
    assert value(names.TOMBSTONES, model="m") == 1
    found = samples(engine_metrics.render())
    assert found["streamkm_decode_seconds_sum"][("model", "m"),] == 0.25
    assert found["streamkm_learn_seconds_sum"][("model", "m"),] == 0.5
    assert found["streamkm_commit_seconds_sum"][("model", "m"),] == 0.125


def test_a_commit_sets_position_lag_and_time(engine_metrics):
    value, where = engine_metrics.value, {"model": "m", "topic": "orders", "partition": "0"}
    assert value(names.PARTITION_POSITION, **where) == 11
    assert value(names.PARTITION_LAG, **where) == 4
    assert value(names.LAG, model="m") == 4
    assert value(names.COMMIT_TIMESTAMP, model="m") == NOW
    assert value(names.SNAPSHOT_TIMESTAMP, model="m") == NOW
    assert value(names.SNAPSHOTS, model="m", reason="first") == 1
    assert value(names.INERTIA, model="m") == 2.5


def test_a_lag_that_is_not_known_any_more_does_not_keep_its_last_value(engine_metrics):
    engine_metrics.commit("m", Progress({TP: 12}, Counters(), 2, NOW, -1), {}, None, 0.1)
    where = {"model": "m", "topic": "orders", "partition": "0"}
    assert math.isnan(engine_metrics.value(names.LAG, model="m"))
    assert math.isnan(engine_metrics.value(names.PARTITION_LAG, **where))
    assert engine_metrics.value(names.SNAPSHOT_TIMESTAMP, model="m") == NOW


def test_a_dropped_series_is_gone(engine_metrics):
    where = {"model": "m", "topic": "orders", "partition": "0"}
    engine_metrics.remove(names.PARTITION_LAG, **where)
    assert engine_metrics.value(names.PARTITION_LAG, **where) is None


def test_a_timed_body_is_observed_even_when_it_fails():
    m = Metrics()
    with pytest.raises(KeyError), m.time(names.LEARN_SECONDS, model="m"):
        raise KeyError
    assert samples(m.render())["streamkm_learn_seconds_count"][("model", "m"),] == 1


def test_a_wrong_label_is_an_error_not_a_new_series():
    with pytest.raises(ValueError, match="label"):
        Metrics().add(names.POINTS_LEARNED, 1, modell="m")


def test_two_metrics_in_one_process_do_not_meet():
    a, b = Metrics(), Metrics()
    a.add(names.POINTS_LEARNED, 1, model="m")
    assert b.value(names.POINTS_LEARNED, model="m") is None


def test_a_process_tells_its_memory_when_asked_to():
    assert "process_resident_memory_bytes" in samples(Metrics(process=True).render())
    assert "process_resident_memory_bytes" not in samples(Metrics().render())


def test_a_family_made_for_a_scrape_carries_its_labels():
    text = Metrics().render([family(names.MODEL_LAG, {("a",): 3.0}), family(names.STORE_UP, {(): 1.0})])
    assert samples(text)["streamkm_model_lag_records"] == {(("model", "a"),): 3.0}
    assert samples(text)["streamkm_store_up"] == {(): 1.0}
    assert isinstance(names.STORE_UP, GaugeSpec)


def test_the_store_is_read_at_scrape_time():
    store = MemoryStore()
    writer = Writer(store)
    writer.commit(points=100, bad=2, lag=7, at=NOW - 5, weights=[1, 3], inertia=0.5, detail=DETAIL)
    writer.commit(points=10, lag=-1, at=NOW - 2, centroids=None)
    api = Api(store)
    found = samples(api.get("/metrics").text)
    model = (("model", "orders"),)
    assert found["streamkm_store_up"] == {(): 1}
    assert found["streamkm_model_records_total"][model] == 112
    assert found["streamkm_model_bad_records_total"][model] == 2
    assert "streamkm_model_lag_records" not in found
    assert found["streamkm_model_commit_age_seconds"][model] == 2
    assert found["streamkm_model_snapshot_age_seconds"][model] == 5
    assert found["streamkm_model_inertia"][model] == 0.5
    assert found["streamkm_model_silhouette"][model] == 0.75
    assert found["streamkm_model_staleness"][model] == 0.1
    assert found["streamkm_model_outliers_total"][model] == 3
    assert found["streamkm_model_suggested_k"][model] == 5
    assert found["streamkm_model_cluster_share"] == {
        (("cluster", "4"), *model): 0.25,
        (("cluster", "7"), *model): 0.75,
    }
    status = {dict(labels)["status"]: v for labels, v in found["streamkm_model_status"].items()}
    assert status == {"warming-up": 0, "running": 1, "paused": 0, "stale": 0, "stopped": 0}
    writer.commit(lag=9)
    assert samples(api.get("/metrics").text)["streamkm_model_lag_records"][model] == 9


def test_requests_are_counted_by_route_and_never_by_what_clients_make_up():
    store = MemoryStore()
    Writer(store).commit()
    m = Metrics()
    api = Api(store, metrics=m, token=TOKEN)
    yes = {"Authorization": f"Bearer {TOKEN}"}
    api.get("/v1/models/orders", headers=yes)
    api.get("/v1/models/other", headers=yes)
    api.get("/v1/made/up", headers=yes)
    api.request("BREW", "/v1/models", headers=yes)
    api.get("/v1/models")
    api.request("POST", "/v1/models/orders/predict", json={"points": [[1, 2, 3]] * 3}, headers=yes)
    route = "/v1/models/{model}"
    assert m.value(names.HTTP_REQUESTS, method="GET", route=route, status="200") == 1
    assert m.value(names.HTTP_REQUESTS, method="GET", route=route, status="404") == 1
    assert m.value(names.HTTP_REQUESTS, method="GET", route="none", status="404") == 1
    assert m.value(names.HTTP_REQUESTS, method="GET", route="none", status="401") == 1
    assert m.value(names.HTTP_REQUESTS, method="other", route="/v1/models", status="405") == 1
    assert m.value(names.POINTS_PREDICTED, model="orders") == 3
