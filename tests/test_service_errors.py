"""What the service answers when something is wrong: always one shape, naming what, where and what to do."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time

import httpx
import pytest

from service_api import NOW, SPEC, TOKEN, Api, Writer
from streamkm import errors
from streamkm.http.responses import MEDIA_TYPE
from streamkm.service import ServiceOptions, create_app
from streamkm.service.problems import ProblemBody, from_error
from streamkm.state import CodecSpec, ModelSpec
from streamkm.stores import MemoryStore, open_store
from waiting import PATIENCE

PREDICT = "/v1/models/orders/predict"


@pytest.fixture(params=["memory", "sqlite"])
def store(request):
    opened = open_store("memory://" if request.param == "memory" else request.getfixturevalue("sqlite_url"))
    yield opened
    opened.close()


@pytest.fixture(scope="module", params=["memory", "sqlite"])
def api(request, tmp_path_factory):
    """One for all tests whose requests change nothing: it takes longer to make than they do."""
    file = tmp_path_factory.mktemp("kept") / "models.db"
    store = open_store("memory://" if request.param == "memory" else f"sqlite:///{file}")
    Writer(store).commit()
    yield Api(store, options=ServiceOptions(freshness=0.0, max_body_bytes=100_000))
    store.close()


class Broken:
    """A store whose every method fails."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __getattr__(self, name):
        def fail(*_args, **_kwargs):
            raise self.error

        return fail


def problem(answer: httpx.Response, status: int, code: str) -> ProblemBody:
    """The answer, which must be a problem of this status and code."""
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == MEDIA_TYPE
    found = ProblemBody.model_validate_json(answer.content)
    assert (found.status, found.code) == (status, code)
    assert found.detail
    if found.where:
        assert found.detail.startswith(f"{found.where}: ")
    return found


def test_an_unknown_route_has_the_one_shape(api):
    assert "/openapi.json" in problem(api.get("/v1/nothing"), 404, "not-found").hint
    problem(api.get("/v1/models/"), 404, "not-found")


def test_a_wrong_method_gets_the_allowed_ones(api):
    answer = api.get(PREDICT)
    assert "POST" in problem(answer, 405, "method-not-allowed").hint
    assert answer.headers["Allow"] == "POST"


@pytest.mark.parametrize("path", ["", "/centroids", "/snapshots", "/snapshots/1"])
def test_an_unknown_model_is_answered_with_those_there_are(api, path):
    found = problem(api.get(f"/v1/models/taxis{path}"), 404, "not-found")
    assert "taxis" in found.detail
    assert "orders" in found.detail + found.hint


def test_predict_of_an_unknown_model_is_answered_with_those_there_are(api):
    found = problem(api.predict([[1, 2, 3]], "taxis"), 404, "not-found")
    assert "orders" in found.detail + found.hint


@pytest.mark.parametrize("url", ["centroids?snapshot=9", "snapshots/9", "centroids?at=2001-01-01"])
def test_an_unknown_snapshot_is_answered_with_the_range_there_is(api, url):
    found = problem(api.get(f"/v1/models/orders/{url}"), 404, "not-found")
    assert "1" in (found.detail + found.hint).replace("2001-01-01", "")
    assert "snapshot" in found.detail + found.hint


def test_predict_with_an_unknown_snapshot_is_not_found(api):
    problem(api.predict([[1, 2, 3]], snapshot=9), 404, "not-found")


@pytest.mark.parametrize("ask", ["centroids", "centroids?at=2100-01-01", "snapshots/1", "predict"])
def test_a_model_that_warms_up_says_how_far_it_is(store, ask):
    writer = Writer(store)
    api = Api(store, options=ServiceOptions(freshness=3600))

    def answer():
        return api.predict([[1, 2, 3]]) if ask == "predict" else api.get(f"/v1/models/orders/{ask}")

    nothing = problem(answer(), 409, "warming-up")
    assert (nothing.points, nothing.points_needed) == (0, None)
    writer.commit(points=120, warmup=(120, 800), centroids=None)
    some = problem(answer(), 409, "warming-up")
    assert (some.points, some.points_needed) == (120, 800)
    assert "120 of 800" in some.detail
    writer.commit(points=680, centroids=None)
    unpublished = problem(answer(), 409, "warming-up")
    assert (unpublished.points, unpublished.points_needed) == (800, 800)
    writer.commit()
    assert answer().status_code == 200


def test_a_stopped_model_without_snapshot_says_how_to_start_it(store):
    writer = Writer(store)
    store.release(writer.lease)
    found = problem(Api(store).get("/v1/models/orders/centroids"), 409, "warming-up")
    assert "streamkm live orders" in found.hint


@pytest.mark.parametrize(
    ("points", "code", "where", "says"),
    [
        (
            [[1, 2, 3]] * 3 + [[1, 2]],
            "wrong-dimension",
            "points[3]",
            "2 values, the model has 3 fields (amount, lat, lon)",
        ),
        ([[1, 2, 3, 4]], "wrong-dimension", "points[0]", "4 values"),
        ([[]], "wrong-dimension", "points[0]", "0 values"),
        ([[1, "2", 3]], "not-a-number", "points[0][1]", "a string, not a number (field lat)"),
        ([[1, 2, None]], "not-a-number", "points[0][2]", "null"),
        ([[True, 2, 3]], "not-a-number", "points[0][0]", "a boolean"),
        ([[1, 2, [3]]], "not-a-number", "points[0][2]", "an array"),
        ([[1, 2, 3], 5], "invalid", "points[1]", "a number, a point is an array"),
        ([1, 2, 3], "invalid", "points[0]", "a number"),
        ([None], "invalid", "points[0]", "null"),
        ([{"amount": 1, "lat": 2}], "missing-field", "points[0].lon", "missing"),
        ([{"amount": 1, "lat": 2, "lng": 3}], "unknown-field", "points[0].lng", "amount, lat, lon"),
        ([{"amount": 1, "lat": 2, "lon": 3, "x": 4}], "unknown-field", "points[0].x", "unknown field"),
        ([{}], "missing-field", "points[0].amount", "missing"),
        ([{"amount": 1, "lat": "x", "lon": 3}], "not-a-number", "points[0].lat", "a string"),
        ([{"amount": 1, "lat": {}, "lon": 3}], "not-a-number", "points[0].lat", "an object"),
        ([{"amount": 1, "lat": False, "lon": 3}], "not-a-number", "points[0].lat", "a boolean"),
        ([[1, 2, 3], {"amount": 1, "lat": 2}], "missing-field", "points[1].lon", "missing"),
        ({"amount": 1}, "invalid", "points", "an object, not an array of points"),
        (None, "invalid", "points", "null"),
    ],
)
def test_a_wrong_point_is_named_with_its_field(api, points, code, where, says):
    found = problem(api.predict(points), 422, code)
    assert found.where == where
    assert says in found.detail


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_numbers_that_json_cannot_carry_are_named_with_their_place(api, number):
    def post(text):
        return problem(api.request("POST", PREDICT, content=text % number), 422, "not-finite").where

    assert post('{"points": [[1, 2, 3], [1, %s, 3]]}') == "points[1][1]"
    assert post('{"points": [{"amount": %s, "lat": 2, "lon": 3}]}') == "points[0].amount"
    assert post('{"points": [[1, 2, 3]], "snapshot": %s}') == "snapshot"


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b'{"points": [[1,2,3]', b"\xff\xfe", b'{"points": [[1,2,0x3]]}', b'{"a": "\\ud800"}', b"[" * 90_000],
)
def test_a_body_that_is_not_json_is_refused(api, body):
    assert problem(api.request("POST", PREDICT, content=body), 400, "not-json").where == "body"


@pytest.mark.parametrize(
    ("request_", "code", "where"),
    [
        ([[1, 2, 3]], "invalid", "body"),
        ({}, "missing-field", "points"),
        ({"points": [], "snapshots": 3}, "unknown-field", "snapshots"),
        ({"points": [], "snapshot": 0}, "invalid", "snapshot"),
        ({"points": [], "snapshot": "3"}, "invalid", "snapshot"),
        ({"points": [], "snapshot": True}, "invalid", "snapshot"),
        ({"points": [], "snapshot": 1.5}, "invalid", "snapshot"),
        ({"points": [], "snapshot": 2**64 - 1}, "invalid", "snapshot"),
    ],
)
def test_a_request_of_another_shape_is_refused(api, request_, code, where):
    assert problem(api.request("POST", PREDICT, json=request_), 422, code).where == where


@pytest.mark.parametrize("depth", [1, 500, 1000])
def test_deep_objects_are_refused_not_followed(store, depth):
    Writer(store, ModelSpec("nested", ("a.a", "b"), 2, {}, {}, CodecSpec("json"))).commit(
        centroids=[[0.0, 0.0], [1.0, 1.0]]
    )
    body = '{"points": [' + '{"a":' * depth + "1" + "}" * depth + "]}"
    found = problem(
        Api(store).request("POST", "/v1/models/nested/predict", content=body),
        422,
        "unknown-field" if depth == 1 else "missing-field",
    )
    assert found.where in {"points[0].a", "points[0].b"}


def test_an_error_does_not_send_a_large_request_back(api):
    for point in ({"x" * 50_000: 1}, {"amount": 1, "lat": 2, "lon": "y" * 50_000}):
        answer = api.predict([point])
        assert answer.status_code == 422
        assert len(answer.content) < 1000


@pytest.mark.parametrize(
    ("url", "where"),
    [
        ("centroids?snapshots=1", "query.snapshots"),
        ("centroids?snapshot=x", "query.snapshot"),
        ("centroids?snapshot=0", "query.snapshot"),
        (f"centroids?snapshot={2**63}", "query.snapshot"),
        ("centroids?at=yesterday", "query.at"),
        ("centroids?at=nan", "query.at"),
        ("centroids?at=1e300", "query.at"),
        ("centroids?snapshot=1&at=1", "query.at"),
        ("snapshots?limit=1001", "query.limit"),
        ("snapshots?limit=0", "query.limit"),
        ("snapshots?after=3", "query.after"),
        ("snapshots?before=x", "query.before"),
        ("snapshots/x", "path.snapshot_id"),
        (f"snapshots/{2**63}", "path.snapshot_id"),
    ],
)
def test_a_wrong_parameter_is_named_and_a_misspelt_one_not_passed_over(api, url, where):
    assert (
        problem(
            api.get(f"/v1/models/orders/{url}"),
            422,
            "unknown-field" if where in {"query.snapshots", "query.after"} else "invalid",
        ).where
        == where
    )


def test_a_name_that_no_model_can_have_is_refused(api):
    for name in ("a b", "x" * 129, "%00", "a;b"):
        assert problem(api.get(f"/v1/models/{name}"), 422, "invalid").where == "path.model"


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_over_the_limit_is_refused(api, announced):
    body = json.dumps({"points": [[1, 2, 3]] * 20_000}).encode()

    async def parts():
        for i in range(0, len(body), 1000):
            yield body[i : i + 1000]

    found = problem(api.request("POST", PREDICT, content=body if announced else parts()), 413, "too-large")
    assert "100000" in found.detail


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/html"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Encoding": "gzip"},
    ],
)
def test_a_body_that_is_not_plain_json_is_refused(api, headers):
    answer = api.request("POST", PREDICT, content=b"{}", headers=headers)
    assert problem(answer, 415, "unsupported-media-type").where in headers


@pytest.mark.parametrize("url", ["/v1/models", "/v1/models/orders", "/v1/models/orders/centroids"])
def test_a_store_that_is_away_is_503_and_worth_another_try(url):
    away = Broken(errors.StoreUnavailableError("database is locked", where="models.db", hint="Ask again"))
    answer = Api(away).get(url)
    found = problem(answer, 503, "store-unavailable")
    assert (found.detail, found.hint) == ("models.db: database is locked", "Ask again")
    assert answer.headers["Retry-After"] == "1"


def test_readiness_names_the_store_and_its_error_only_in_the_log(caplog):
    """Anybody may ask for it, without a token."""
    away = Broken(errors.StoreUnavailableError("connection refused", where="postgresql://db.internal/points", hint="x"))
    answer = Api(away, guarded=True).get("/readyz")
    found = problem(answer, 503, "store-unavailable")
    assert (found.detail, found.where, found.hint) == ("the store is unavailable; see the log of the service", "", "")
    assert answer.headers["Retry-After"] == "1"
    assert "postgresql://db.internal/points" in caplog.text
    assert "connection refused" in caplog.text


def test_without_a_store_the_process_is_alive_and_its_metrics_say_so():
    api = Api(Broken(errors.StoreUnavailableError("gone")))
    assert api.get("/livez").status_code == 200
    assert "streamkm_store_up 0.0" in api.get("/metrics").text


def test_a_slow_store_holds_up_neither_liveness_nor_for_ever_those_who_ask_it():
    release = threading.Event()

    class Slow(MemoryStore):
        def models(self):
            release.wait(PATIENCE)
            return super().models()

        ping = models

    async def ask(patience, release_it):
        transport = httpx.ASGITransport(Api(Slow(), options=ServiceOptions(store_timeout=patience)).app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", trust_env=False) as client:
            slow = [asyncio.create_task(client.get(url)) for url in ["/v1/models"] * 20 + ["/readyz"] * 20]
            await asyncio.sleep(0)
            assert (await client.get("/livez")).status_code == 200
            if release_it:
                assert not any(task.done() for task in slow)
                release.set()
            return await asyncio.gather(*slow)

    try:
        details = [problem(a, 503, "store-unavailable").detail for a in asyncio.run(ask(0.2, release_it=False))]
        assert all("did not respond within 0.2 s" in detail for detail in details[:20])
        assert {answer.status_code for answer in asyncio.run(ask(PATIENCE, release_it=True))} == {200}
    finally:
        release.set()


@pytest.mark.parametrize("bound", ["BODY_SECONDS", "STALL_SECONDS"])
def test_a_body_that_does_not_arrive_times_out(api, monkeypatch, bound):
    monkeypatch.setattr(f"streamkm.service.request_body.{bound}", 0.05)

    async def never():
        yield b"{"
        await asyncio.Event().wait()

    # The transport hands on a body as it comes, so the service itself has to give up.
    problem(api.request("POST", PREDICT, content=never()), 408, "too-slow")


def test_an_unexpected_error_is_500_without_details(caplog):
    answer = Api(Broken(ZeroDivisionError("secret"))).get("/v1/models")
    problem(answer, 500, "internal")
    assert "secret" not in answer.text


def test_an_error_of_the_library_without_a_place_in_http_is_logged(caplog):
    with caplog.at_level(logging.ERROR):
        problem(Api(Broken(errors.ConflictError("odd"))).get("/v1/models"), 500, "store-error")
    assert "odd" in caplog.text


def all_errors(cls=errors.StreamkmError):
    yield cls
    for sub in cls.__subclasses__():
        yield from all_errors(sub)


@pytest.mark.parametrize("cls", list(all_errors()))
def test_every_error_of_the_library_has_an_answer(cls):
    answer = from_error(cls("what", where="where", hint="do"))
    assert 400 <= answer.status <= 599
    ProblemBody.model_validate_json(answer.response().body)


def test_a_token_is_needed_for_everything_but_the_health_of_the_process(store):
    Writer(store).commit()
    api = Api(store, token=TOKEN)
    for url in ("/v1/models", "/v1/models/orders/centroids", "/metrics", "/openapi.json", "/nothing"):
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": f"Basic {TOKEN}"},
            {"Authorization": TOKEN},
        ):
            answer = api.get(url, headers=headers)
            problem(answer, 401, "unauthorized")
            assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert api.get(url, headers={"Authorization": f"Bearer {TOKEN}"}).status_code in {200, 404}
        assert api.get(url, headers={"Authorization": f"bearer  {TOKEN} "}).status_code in {200, 404}
    assert api.get("/livez").status_code == api.get("/readyz").status_code == 200
    problem(api.predict([[1, 2, 3]]), 401, "unauthorized")


def test_a_token_is_never_in_a_log_or_an_answer(store, caplog):
    api = Api(store, token=TOKEN)
    with caplog.at_level(logging.DEBUG):
        answers = [api.get("/v1/models", headers={"Authorization": f"Bearer {t}"}) for t in (TOKEN, "guess")]
    assert TOKEN not in caplog.text
    assert all(TOKEN not in a.text and "guess" not in a.text for a in answers)


def test_an_empty_token_is_a_mistake_not_an_open_door(store):
    with pytest.raises(errors.SettingsError):
        create_app(store, token="")


def test_one_question_to_the_store_serves_all_who_wait_for_it():
    asked = []

    class Counted(MemoryStore):
        def model(self, name):
            asked.append(name)
            time.sleep(0.05)
            return super().model(name)

    store = Counted()
    Writer(store, SPEC).commit()
    app = Api(store, now=NOW, options=ServiceOptions(freshness=0.0)).app

    async def ask():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", trust_env=False) as client:
            return await asyncio.gather(*(client.get("/v1/models/orders/centroids") for _ in range(30)))

    assert {a.status_code for a in asyncio.run(ask())} == {200}
    assert len(asked) < 30
