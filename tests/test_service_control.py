"""Acting over HTTP: promote, pause, resume, delete, and what comes of each in the store."""

from __future__ import annotations

import dataclasses

import jsonschema
import pytest

from service_api import NOW, TOKEN, Api, Writer
from streamkm.errors import NotFoundError
from streamkm.http.responses import MEDIA_TYPE
from streamkm.stores import Job, Promotion, open_store

AUTH = {"Authorization": f"Bearer {TOKEN}"}
ORDERS = "/v1/models/orders"


@pytest.fixture(params=["memory", "sqlite"])
def store(request):
    opened = open_store("memory://" if request.param == "memory" else request.getfixturevalue("sqlite_url"))
    yield opened
    opened.close()


@pytest.fixture
def writer(store):
    w = Writer(store)
    w.commit()
    w.commit()
    return w


@pytest.fixture
def api(store, writer):
    return Api(store, token=TOKEN)


@pytest.fixture(scope="module", params=["memory", "sqlite"])
def kept(request, tmp_path_factory):
    """An application and its store for tests whose requests change nothing."""
    file = tmp_path_factory.mktemp("kept") / "models.db"
    store = open_store("memory://" if request.param == "memory" else f"sqlite:///{file}")
    w = Writer(store)
    w.commit()
    w.commit()
    yield Api(store, token=TOKEN), store
    store.close()


def act(api, method, url, **kwargs):
    return api.request(method, url, headers=AUTH, **kwargs)


def code(answer):
    assert answer.headers["Content-Type"] == MEDIA_TYPE
    return answer.status_code, answer.json()["code"]


def test_a_promotion_is_requested_from_the_owner(api, store):
    answer = act(api, "POST", f"{ORDERS}/promote", json={"snapshot": 1})
    assert (answer.status_code, answer.json()) == (202, {"snapshot": 1, "skip": False, "state": "requested"})
    assert store.control_requests("orders").promotion == Promotion(1, skip=False)
    answer = act(api, "POST", f"{ORDERS}/promote", json={"snapshot": 2, "skip": True})
    assert answer.json()["skip"] is True
    assert store.control_requests("orders").promotion == Promotion(2, skip=True)


@pytest.mark.parametrize(
    ("body", "status", "word", "where"),
    [
        (b"{", 400, "not-json", "body"),
        (b"[]", 422, "invalid", "body"),
        (b"{}", 422, "missing-field", "body.snapshot"),
        (b'{"snapshot":"1"}', 422, "invalid", "body.snapshot"),
        (b'{"snapshot":true}', 422, "invalid", "body.snapshot"),
        (b'{"snapshot":1.5}', 422, "invalid", "body.snapshot"),
        (b'{"snapshot":0}', 422, "invalid", "body.snapshot"),
        (b'{"snapshot":99999999999999999999}', 422, "invalid", "body.snapshot"),
        (b'{"snapshot":1,"skip":"yes"}', 422, "invalid", "body.skip"),
        (b'{"snapshot":1,"skp":true}', 422, "unknown-field", "body.skp"),
        (b'{"snapshot":77}', 404, "not-found", None),
    ],
)
def test_a_promotion_that_makes_no_sense_changes_nothing(kept, body, status, word, where):
    api, store = kept
    answer = api.request(
        "POST", f"{ORDERS}/promote", content=body, headers={**AUTH, "Content-Type": "application/json"}
    )
    assert code(answer) == (status, word)
    if where is not None:
        assert answer.json()["where"] == where
    assert store.control_requests("orders").promotion is None


def test_pause_and_resume_reach_the_store_and_show_in_the_status(api, store):
    assert act(api, "POST", f"{ORDERS}/pause").json() == {"paused": True}
    assert store.model("orders").paused
    shown = api.get(ORDERS, headers=AUTH).json()
    assert (shown["status"], "request" in shown["status_reason"]) == ("paused", True)
    assert 'streamkm_model_status{model="orders",status="paused"} 1.0' in api.get("/metrics", headers=AUTH).text
    assert act(api, "POST", f"{ORDERS}/resume").json() == {"paused": False}
    assert not store.model("orders").paused
    assert api.get(ORDERS, headers=AUTH).json()["status"] == "running"


def test_a_paused_model_is_not_stale_and_one_without_an_owner_is_stopped(store, writer):
    writer.commit(lag=100)
    store.renew(writer.lease, 1e4, NOW)
    late = Api(store, now=NOW + 1000, token=TOKEN)
    assert late.get(ORDERS, headers=AUTH).json()["status"] == "stale"
    store.set_paused("orders", paused=True)
    assert late.get(ORDERS, headers=AUTH).json()["status"] == "paused"
    store.release(writer.lease)
    assert late.get(ORDERS, headers=AUTH).json()["status"] == "stopped"


def test_a_running_model_is_not_deleted(api, store, writer):
    answer = act(api, "DELETE", ORDERS)
    assert code(answer) == (409, "in-use")
    assert "host:1" in answer.json()["detail"]
    assert store.model("orders").last_snapshot == 2
    store.renew(writer.lease, 10.0, NOW)  # it was not pushed out of its lease either


def test_a_stopped_model_is_deleted_with_all_its_data(api, store, writer):
    store.put_job(Job("a1", "orders", {}, "done", {}, 1, "", NOW, NOW))
    store.release(writer.lease)
    answer = act(api, "DELETE", ORDERS)
    assert (answer.status_code, answer.content) == (204, b"")
    with pytest.raises(NotFoundError):
        store.model("orders")
    assert api.get(ORDERS, headers=AUTH).status_code == 404
    assert code(act(api, "DELETE", ORDERS)) == (404, "not-found")


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/promote", {"snapshot": 1}),
        ("POST", "/pause", None),
        ("POST", "/resume", None),
        ("DELETE", "", None),
        ("GET", "/jobs", None),
    ],
)
def test_an_unknown_model_is_404(kept, method, path, body):
    api, _ = kept
    more = {} if body is None else {"json": body}
    assert code(act(api, method, f"/v1/models/taxis{path}", **more)) == (404, "not-found")
    assert code(act(api, method, f"{ORDERS}{path}?x=1", **more)) == (422, "unknown-field")


def test_answers_are_as_described(store, writer):
    api = Api(store, token=TOKEN)
    description = api.get("/openapi.json", headers=AUTH).json()
    store.put_job(Job("a1", "orders", {"from": "2h"}, "done", {"stage": "fitting", "run": 0}, 2, "", NOW, NOW))
    asked = [
        ("get", "/v1/me", None),
        ("post", "/v1/models/{model}/promote", {"snapshot": 1}),
        ("post", "/v1/models/{model}/pause", None),
        ("post", "/v1/models/{model}/resume", None),
        ("get", "/v1/models/{model}/jobs", None),
        ("get", "/v1/models/{model}/jobs/{job_id}", None),
    ]
    for method, path, body in asked:
        answer = act(api, method.upper(), path.format(model="orders", job_id="a1"), json=body)
        operation = description["paths"][path][method]
        (content,) = operation["responses"][str(answer.status_code)]["content"].values()
        jsonschema.validate(answer.json(), {**content["schema"], "components": description["components"]})
    assert description["paths"][ORDERS.replace("orders", "{model}")]["delete"]["security"] == [{"token": []}]


def test_a_lost_job_has_failed(api, store):
    job = Job("a1", "orders", {}, "running", {"stage": "reading"}, 0, "", NOW - 99, NOW - 29)
    store.put_job(job)
    assert api.get(f"{ORDERS}/jobs/a1", headers=AUTH).json()["state"] == "running"
    store.put_job(dataclasses.replace(job, updated_at=NOW - 31))
    (shown,) = api.get(f"{ORDERS}/jobs", headers=AUTH).json()["jobs"]
    assert (shown["state"], shown["error"]) == ("failed", "the service that ran it is gone")
    assert store.job("orders", "a1").state == "failed"  # marked so
    assert code(act(api, "DELETE", f"{ORDERS}/jobs/a1")) == (409, "ended")


def test_a_service_without_jobs_says_so(api):
    assert code(act(api, "POST", f"{ORDERS}/jobs", json={})) == (409, "no-jobs")
    assert code(api.get(f"{ORDERS}/jobs/nothing", headers=AUTH)) == (404, "not-found")


@pytest.mark.parametrize(
    ("asked", "where"),
    [
        ({"from": "-x"}, "from"),
        ({"from": "--store=sqlite:///x"}, "from"),
        ({"to": "x" * 201}, "to"),
        ({"to": "now\n"}, "to"),
        ({"to": "now\x00"}, "to"),
        ({"from": ""}, "from"),
        ({"from": 3}, "from"),
        ({"start": "now"}, "start"),
        ({"k": 0}, "k"),
        ({"k": 1001}, "k"),
        ({"k": "8"}, "k"),
        ({"init": "/etc/passwd"}, "init"),
        ({"init": "random\n"}, "init"),
        ({"init": "snapshot:0"}, "init"),
        ({"n_init": 101}, "n_init"),
        ({"max_iter": 0}, "max_iter"),
        ({"store": "sqlite:///other.db"}, "store"),
    ],
)
def test_invalid_job_requests_are_refused(kept, asked, where):
    answer = act(kept[0], "POST", f"{ORDERS}/jobs", json=asked)
    assert answer.status_code == 422
    assert answer.json()["where"] == f"body.{where}"
