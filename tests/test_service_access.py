"""Who may do what: tokens, models, limits, and what pages of other sites can make of the service: nothing."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from service_api import NOW, SPEC, TOKEN, Api, Writer
from streamkm.errors import SettingsError, StoreUnavailableError
from streamkm.service import ServiceOptions, auth
from streamkm.service.auth import TOKEN_PREFIX, digest, issue
from streamkm.service.limits import UNKNOWN_ADDRESS, RateLimiter, client_network
from streamkm.service.middleware import MAX_WRONG_TOKENS, AccessMiddleware
from streamkm.state import ModelSpec
from streamkm.stores import Job, MemoryStore, open_store
from streamkm.testing import ManualClock

OTHER = ModelSpec("payments", SPEC.fields, 2, SPEC.source, SPEC.learner, SPEC.codec)
ROOT = Path(__file__).parents[1]


@pytest.fixture(params=["memory", "sqlite"])
def store(request):
    """Two models, with a snapshot each."""
    opened = open_store("memory://" if request.param == "memory" else request.getfixturevalue("sqlite_url"))
    Writer(opened).commit()
    Writer(opened, OTHER).commit()
    yield opened
    opened.close()


@pytest.fixture(scope="module", params=["memory", "sqlite"])
def kept_store(request, tmp_path_factory):
    """The same store for tests whose requests change nothing."""
    file = tmp_path_factory.mktemp("kept") / "models.db"
    store = open_store("memory://" if request.param == "memory" else f"sqlite:///{file}")
    Writer(store).commit()
    Writer(store, OTHER).commit()
    yield store
    store.close()


@pytest.fixture(scope="module")
def kept(kept_store):
    """An application on it, and a token that may write one model."""
    return Api(kept_store), token(kept_store, right="write", models=("orders",))


@pytest.fixture(scope="module")
def guarded(kept_store):
    """An application on it that nobody may even read without a token."""
    return Api(kept_store, guarded=True)


def token(store, name="reports", right="read", models=()):
    text, kept = issue(name, right, models, 1.0)
    store.add_token(kept)
    return text


def sent(text, **more):
    return {"headers": {"Authorization": f"Bearer {text}", **more}}


def code(answer):
    return answer.status_code, answer.json()["code"]


PREDICT = "/v1/models/orders/predict"
POINTS = {"points": [[0, 0, 0]]}


# Tokens


def test_a_token_is_random_and_the_store_has_only_its_digest(store):
    text = token(store)
    assert text.startswith(TOKEN_PREFIX)
    assert len(text) == len(TOKEN_PREFIX) + 43  # 256 bits
    (kept,) = store.tokens()
    assert kept.digest == digest(text.encode())
    assert text not in repr(kept)
    assert text != token(store, "another")


@pytest.mark.parametrize("name", ["", "a b", "x" * 65, "a\n", "STREAMKM_TOKEN", "é"])
def test_a_name_that_is_none_is_refused(name):
    with pytest.raises(SettingsError, match="is not a name for a token"):
        issue(name, "read", (), 1.0)
    with pytest.raises(SettingsError, match="is not a name of a model"):
        issue("fine", "read", ("a/b",), 1.0)


def test_on_loopback_reading_needs_no_token_and_control_does(store):
    api = Api(store, local_only=True)
    local = {"headers": {"Host": "localhost:8000"}}
    assert api.get("/v1/models", **local).status_code == 200
    assert api.request("POST", PREDICT, json=POINTS, **local).status_code == 200
    for method, url in ACTS:
        assert code(api.request(method, url, **local)) == (401, "unauthorized")
    reader = sent(token(store), Host="localhost")
    for method, url in ACTS:
        assert code(api.request(method, url, **reader)) == (403, "forbidden")
    assert api.get("/v1/models", **reader).status_code == 200


ACTS = (
    ("POST", "/v1/models/orders/pause"),
    ("POST", "/v1/models/orders/resume"),
    ("POST", "/v1/models/orders/promote"),
    ("POST", "/v1/models/orders/jobs"),
    ("DELETE", "/v1/models/orders/jobs/abc"),
    ("DELETE", "/v1/models/orders"),
)


def test_every_route_that_changes_something_is_known_to_act(store):
    api = Api(store)
    for path, methods in api.get("/openapi.json").json()["paths"].items():
        for method in methods:
            asks = path.endswith(("/predict", "/infer"))
            assert auth.modifies(method.upper(), path.format(model="a", version=1, job_id="b", snapshot_id=1)) == (
                method != "get" and not asks
            ), (method, path)


def test_with_a_token_in_the_environment_reading_needs_one_too(store):
    api = Api(store, token=TOKEN)
    assert code(api.get("/v1/models")) == (401, "unauthorized")
    assert code(api.get("/v1/models", **sent("wrong"))) == (401, "unauthorized")
    assert api.get("/v1/models", **sent(TOKEN)).status_code == 200
    assert api.request("POST", "/v1/models/orders/pause", **sent(TOKEN)).status_code == 200
    assert api.get("/v1/models", **sent(token(store))).status_code == 200
    assert api.get("/livez").status_code == 200
    assert api.get("/readyz").status_code == 200


def test_a_guarded_service_takes_the_tokens_of_the_store_alone(store):
    api = Api(store, guarded=True)
    assert code(api.get("/v1/models")) == (401, "unauthorized")
    assert api.get("/v1/models", **sent(token(store))).status_code == 200


def test_a_revoked_token_ends_within_five_seconds():
    asyncio.run(_revoked())


async def _revoked():
    store, now = MemoryStore(), [100.0]
    text = token(store)

    async def load():
        return store.tokens()

    tokens = auth.TokenCache(load, None, lambda: now[0])
    grant = await tokens.find(text.encode())
    assert grant == auth.Grant("reports", "read", None, digest(text.encode()))
    store.remove_token("reports")
    assert await tokens.find(text.encode()) == grant  # looked up in memory
    now[0] += 4.9
    assert await tokens.find(text.encode()) is None
    assert not await tokens.is_valid(grant)
    again = token(store)
    now[0] += 0.3
    assert await tokens.find(again.encode()) is not None  # a new one need not wait


def test_many_wrong_tokens_cause_few_queries_and_fill_no_memory():
    asyncio.run(_wrong())


async def _wrong():
    asked = 0

    async def load():
        nonlocal asked
        asked += 1
        return []

    tokens = auth.TokenCache(load, "own", lambda: 100.0)
    for i in range(1000):
        assert await tokens.find(f"{TOKEN_PREFIX}{i}".encode()) is None
    assert asked == 1
    assert not tokens._grants


def test_a_store_that_is_unavailable_is_asked_for_tokens_four_times_per_second():
    asyncio.run(_unavailable())


async def _unavailable():
    asked, now, text = 0, 100.0, TOKEN_PREFIX + "x"

    async def load():
        nonlocal asked
        asked += 1
        if now < 101.0:
            raise StoreUnavailableError("away")
        return [auth.Token("reports", digest(text.encode()), "read", (), 1.0)]

    tokens = auth.TokenCache(load, None, lambda: now)
    for _ in range(4):
        for _ in range(100):
            with pytest.raises(StoreUnavailableError):
                await tokens.find(text.encode())
        now += 0.25
    assert asked == 4
    assert await tokens.find(text.encode()) is not None  # and it is asked again as soon as it may be


def test_no_token_is_accepted_while_the_store_is_unavailable():
    class Away(MemoryStore):
        def tokens(self):
            raise StoreUnavailableError("away")

    store = Away()
    api = Api(store, token=TOKEN)
    answer = api.get("/v1/models", **sent(TOKEN_PREFIX + "x"))
    assert code(answer) == (503, "store-unavailable")
    assert "Retry-After" in answer.headers
    assert api.get("/v1/models", **sent(TOKEN)).status_code == 200


def test_a_token_is_never_in_a_log_or_a_response(store, caplog):
    text = token(store, right="write")
    api = Api(store)
    with caplog.at_level(0):
        answers = [
            api.request("POST", "/v1/models/orders/pause", **sent(text)),
            api.get("/v1/me", **sent(text)),
            api.get("/v1/models", **sent(text + "x")),
        ]
    assert [a.status_code for a in answers] == [200, 200, 401]
    assert text not in caplog.text + "".join(a.text for a in answers)


def test_a_stream_ends_when_its_token_does():
    asyncio.run(_stream())


async def _stream():
    store, now, out = MemoryStore(), [100.0], []
    text = token(store)

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for i in range(100):
            await send({"type": "http.response.body", "body": b"%d " % i, "more_body": True})
            now[0] += 1.0
            if i == 9:
                store.remove_token("reports")

    async def load():
        return store.tokens()

    async def send(message):
        out.append(message)

    tokens = auth.TokenCache(load, None, lambda: now[0])
    rights = {"guarded": True, "local_only": False, "rate": 0, "route_exists": lambda _: True}
    guard = AccessMiddleware(app, tokens=tokens, clock=lambda: now[0], **rights)
    headers = [(b"authorization", b"Bearer " + text.encode())]
    scope: dict[str, Any] = {"type": "http", "method": "GET", "path": "/v1/models", "headers": headers}
    await guard(scope, None, send)  # type: ignore[arg-type]
    assert 10 <= len(out) - 2 <= 14
    assert out[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


# Models


def test_a_token_for_some_models_sees_no_other(store):
    mine = sent(token(store, right="write", models=("orders",)))
    api = Api(store, token=TOKEN)
    assert api.get("/v1/models/orders/centroids", **mine).status_code == 200
    assert api.get("/v2/models/orders/ready", **mine).status_code == 200
    assert [m["name"] for m in api.get("/v1/models", **mine).json()["models"]] == ["orders"]
    answers = [api.get(f"/v1/models/{name}/centroids", **mine).json() for name in ("payments", "nothing")]
    assert [a["code"] for a in answers] == ["forbidden"] * 2
    assert answers[0]["detail"].replace("payments", "nothing") == answers[1]["detail"]
    assert code(api.get("/metrics", **mine)) == (403, "forbidden")
    assert code(api.request("DELETE", "/v1/models/payments", **mine)) == (403, "forbidden")
    assert api.get("/v1/me", **mine).json() == {"name": "reports", "right": "write", "models": ["orders"]}


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models/payments/",
        "/v1/models//payments",
        "//v1/models/payments/centroids",
        "/v1//models/payments",
        "/v1/models/orders/../payments/centroids",
        "/v1/models/orders%2f..%2fpayments/centroids",
        "/v1/models/%70ayments/centroids",
        "/v1/models/orders%2Fpayments",
        "/v1/models/payments%2F",
        "/V1/models/payments",
        "/v1/MODELS/payments",
        "/v1/models/payments;x=orders/centroids",
        "/v1/models/payments%00/centroids",
        "/v1/models/payments%0a",
        "/v1/models/payments/centroids%0a",
        "/v1/models/payments?model=orders",
        "/v1/models/.%2e/v1/models/payments",
        "/v2/models/payments",
        "/v2/models/payments/versions/1",
        "/v3/anything",
        "/v1/models/",
    ],
)
def test_no_encoding_of_a_path_leads_to_another_model(kept, path):
    api, mine = kept
    raw = path.partition("?")[0].encode()
    found = asyncio.run(_asked(api.app, raw, path.partition("?")[2].encode(), mine))
    assert found[0] in {401, 403, 404}, found
    assert b'"values"' not in found[1]


async def _asked(app, raw, query, text):
    """Status and body, with the path as a server hands it on: no client has tidied it."""
    from urllib.parse import unquote

    out: list[Any] = []

    async def send(message):
        out.append(message)

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": unquote(raw.decode()),
        "raw_path": raw,
        "query_string": query,
        "root_path": "",
        "headers": [(b"host", b"test"), (b"authorization", b"Bearer " + text.encode())],
        "client": ("192.0.2.1", 1),
        "server": ("test", 80),
    }
    await app(scope, receive, send)
    return out[0]["status"], b"".join(m.get("body", b"") for m in out)


def test_every_route_of_a_model_is_closed_to_a_token_of_another(store):
    mine = sent(token(store, right="write", models=("payments",)))
    api = Api(store)
    paths = api.get("/openapi.json").json()["paths"]
    checked = 0
    for path, methods in paths.items():
        for method in methods:
            if "{model}" in path:
                url = re.sub(r"\{(?!model)\w+\}", "1", path).replace("{model}", "orders")
                assert code(api.request(method.upper(), url, **mine)) == (403, "forbidden"), (method, path)
                checked += 1
    assert checked > 15
    known = {"/v1/models", "/v1/me", "/v2", "/v2/health/live", "/v2/health/ready", "/livez", "/readyz", "/metrics"}
    assert {p for p in paths if "{model}" not in p} == known, "a path without a model: decide in access.py who may ask"


def test_everybody_may_ask_who_they_are(store):
    assert Api(store).get("/v1/me").json() == {"name": None, "right": "read", "models": None}
    api = Api(store, token=TOKEN)
    assert api.get("/v1/me").json() == {"name": None, "right": "none", "models": None}
    assert api.get("/v1/me", **sent(TOKEN)).json() == {"name": "STREAMKM_TOKEN", "right": "write", "models": None}
    assert api.get("/v1/me", **sent("wrong")).status_code == 401


# Pages of other sites


def test_every_response_has_the_headers_against_other_sites(store):
    api = Api(store, token=TOKEN)
    for url in ("/v1/models", "/livez", "/nothing", "/v1/models/orders/centroids", "/"):
        for more in ({}, sent(TOKEN)):
            check_headers(api.get(url, **more).headers)
    assert api.get("/v1/models", **sent(TOKEN)).headers["Cache-Control"] == "no-store"
    assert api.get("/v1/models/orders/centroids", **sent(TOKEN)).headers["Cache-Control"] == "private, no-cache"


def test_an_unexpected_error_has_the_headers_against_other_sites_too():
    class Faulty(MemoryStore):
        def models(self):
            raise RuntimeError("a fault of the program")

    answer = Api(Faulty()).get("/v1/models")
    assert code(answer) == (500, "internal")
    assert "a fault" not in answer.text
    check_headers(answer.headers)


def check_headers(headers):
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert len(headers.get_list("Content-Security-Policy")) == 1
    assert len(headers.get_list("Cache-Control")) == 1


def test_no_other_site_may_read_a_response(store):
    api = Api(store, local_only=True)
    asks = {"Host": "localhost", "Origin": "https://evil.example"}
    answers = [api.get(url, headers=asks) for url in ("/", "/v1/models", "/nothing")]
    assert [a.status_code for a in answers] == [200, 200, 404], "by Origin alone only writes are refused"
    newer = asks | {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"}
    answers += [api.get(url, headers=newer) for url in ("/", "/v1/models", "/nothing")]
    assert [a.status_code for a in answers[3:]] == [403] * 3
    preflight = asks | {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    answers.append(api.request("OPTIONS", "/v1/models/orders/promote", headers=preflight))
    assert answers[-1].status_code >= 400
    assert not [name for a in answers for name in a.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    ("headers", "method", "allowed"),
    [
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"}, "POST", False),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, "POST", False),
        ({"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"}, "POST", False),
        ({"Origin": "https://evil.example"}, "POST", False),
        ({"Origin": "null"}, "POST", False),
        ({"Origin": "http://test:8000"}, "POST", False),
        ({"Origin": "http://test"}, "POST", True),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "https://in.front.example"}, "POST", True),
        ({"Sec-Fetch-Site": "none"}, "POST", True),
        ({}, "POST", True),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, "GET", False),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, "GET", True),
        ({"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}, "GET", True),
    ],
)
def test_a_page_of_another_site_cannot_write_even_with_a_token(store, headers, method, allowed):
    url = "/v1/models/orders/pause" if method == "POST" else "/v1/models/orders"
    answer = Api(store, token=TOKEN).request(method, url, **sent(TOKEN, **headers))
    assert answer.status_code == (200 if allowed else 403)
    if not allowed:
        assert answer.json()["code"] == "cross-site"
        assert not store.model("orders").paused


# Limits


def test_a_bucket_holds_its_burst_and_fills_up():
    b = RateLimiter(10.0, 20.0)
    assert [b.take("a", 0.0) for _ in range(20)] == [0.0] * 20
    assert b.take("a", 0.0) == pytest.approx(0.1)
    assert b.take("other", 0.0) == 0.0
    assert b.take("a", 0.1) == 0.0
    assert b.take("a", 0.1) > 0.0
    assert b.retry_after("a", 1000.0) == 0.0
    assert [b.take("a", 1000.0) for _ in range(20)] == [0.0] * 20
    assert b.take("a", 1000.0) > 0.0
    assert RateLimiter(0, 0).take("a", 0.0) == 0.0


def test_the_table_of_clients_is_bounded_and_drops_the_oldest():
    b = RateLimiter(1.0, 1.0, max_clients=100)
    for i in range(1000):
        b.take(str(i), 0.0)
    assert len(b) == 100
    assert b.take("999", 0.0) > 0.0
    assert b.take("0", 0.0) == 0.0


def test_too_many_requests_get_retry_after(store):
    api = Api(store, options=ServiceOptions(rate_limit=2.0), monotonic=ManualClock().monotonic)
    statuses = [api.get("/v1/models").status_code for _ in range(6)]
    assert statuses == [200] * 4 + [429] * 2
    answer = api.get("/v1/models")
    assert code(answer) == (429, "too-many")
    assert int(answer.headers["Retry-After"]) >= 1
    assert api.get("/livez").status_code == 200  # what starts and stops it is not limited
    assert api.get("/v1/models", **sent(token(store))).status_code == 200  # a token has its own


def test_wrong_tokens_are_limited_and_hide_whether_the_next_is_right(store):
    clock = ManualClock()
    api, stored = Api(store, token=TOKEN, monotonic=clock.monotonic), token(store)
    statuses = [api.get("/v1/models", **sent(f"wrong{i}")).status_code for i in range(MAX_WRONG_TOKENS + 8)]
    assert statuses == [401] * MAX_WRONG_TOKENS + [429] * 8
    assert api.get("/v1/models", **sent(TOKEN)).status_code == 429
    # 256 random bits are not guessed, so their holder is not locked out by a neighbour who tries.
    assert api.get("/v1/models", **sent(stored)).status_code == 200
    clock.advance(0.3)
    assert api.get("/v1/models", **sent(TOKEN)).status_code == 200


async def _statuses(load, tokens):
    """Statuses of requests that one address sends at the same time, while the clock stands still."""
    cache = auth.TokenCache(load, TOKEN_PREFIX + TOKEN, lambda: 100.0)

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    rights = {"guarded": True, "local_only": False, "rate": 0, "route_exists": lambda _: True}
    guard = AccessMiddleware(app, tokens=cache, clock=lambda: 100.0, **rights)

    async def status(text):
        found = []

        async def send(message):
            found.append(message)

        headers = [(b"authorization", b"Bearer " + text.encode())]
        scope = {"type": "http", "method": "GET", "path": "/v1/models", "headers": headers, "client": ("192.0.2.1", 1)}
        await guard(scope, None, send)
        return found[0]["status"]

    answers = await asyncio.gather(*map(status, tokens))
    return answers, await status(TOKEN_PREFIX + TOKEN)


@pytest.mark.parametrize("available", [True, False])
def test_guesses_are_counted_before_the_store_is_waited_for(available):
    async def load():
        await asyncio.sleep(0)
        if not available:
            raise StoreUnavailableError("away")
        return []

    right = TOKEN_PREFIX + TOKEN
    guesses = [f"{TOKEN_PREFIX}wrong{i}" for i in range(MAX_WRONG_TOKENS)]
    answers, after = asyncio.run(_statuses(load, [*guesses, right]))
    assert answers == [401] * MAX_WRONG_TOKENS + [429] if available else [503] * (MAX_WRONG_TOKENS + 1)
    assert after == (429 if available else 503)


def test_requests_with_a_right_token_are_no_guesses_however_many_come_at_once():
    text, stored = issue("reports", "read", (), 1.0)

    async def load():
        await asyncio.sleep(0)
        return [stored]

    answers, after = asyncio.run(_statuses(load, [text] * 5 * MAX_WRONG_TOKENS))
    assert answers == [200] * 5 * MAX_WRONG_TOKENS
    assert after == 200, "what they took is given back"


def test_a_network_of_ipv6_counts_as_one_client():
    assert client_network("2001:db8::1") == client_network("2001:db8::ffff:1") != client_network("2001:db8:0:1::1")
    assert client_network("::ffff:192.0.2.1") == client_network("192.0.2.1")
    assert (
        client_network("not:an:address") == client_network("made up") == client_network("1" * 70_000) == UNKNOWN_ADDRESS
    )


# The page of threats


def test_every_defence_in_the_docs_has_an_existing_test():
    text = (ROOT / "docs" / "security.md").read_text()
    section = text.partition("## Threats")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")][2:]
    named = [n for row in rows for n in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row)]
    assert len(rows) >= 14
    for row in rows:
        assert "::" in row or "no test" in row, row
    for file, test in named:
        assert f"def {test}(" in (ROOT / file).read_text(), (file, test)


def test_the_json_of_errors_has_no_markup_of_the_client(store):
    """What a request says comes back as JSON text that no browser takes for a page."""
    answer = Api(store).get("/v1/models/<script>alert(1)</script>")
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert json.loads(answer.text)["status"] in {404, 422}
    assert isinstance(answer, httpx.Response)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/nothing", 404),
        ("POST", "/v1/models/orders/nothing", 404),
        ("DELETE", "/v1/model/orders", 404),
        ("PROPFIND", "/nothing", 404),
        ("POST", "/livez", 405),
        ("POST", "/", 405),
        ("POST", "/v1/models", 405),
        ("PATCH", "/v1/models/orders", 405),
        ("PUT", "/v1/models/orders/promote", 405),
        ("POST", "/openapi.json", 405),
        ("POST", "/v1/models/orders/promote", 401),  # it is there, and acts
        ("DELETE", "/v1/models/orders", 401),
    ],
)
def test_what_is_not_there_is_said_before_a_token_is_asked_for(kept, guarded, method, path, status):
    answer = kept[0].request(method, path)
    assert answer.status_code == status
    if status == 405:
        assert answer.headers["allow"]
    # Who may not even read is told nothing of what is there.
    if path not in {"/", "/livez"}:
        assert guarded.request(method, path).status_code == 401


def gets(api):
    """Every path that GET is for, with a model and a snapshot that are there."""
    made = {"{model}": "orders", "{snapshot_id}": "1", "{version}": "1", "{job_id}": "a1"}
    paths = [path for path, methods in api.get("/openapi.json").json()["paths"].items() if "get" in methods]
    for path in ("/", "/assets/style.css", "/openapi.json", *paths):
        yield re.sub(r"\{\w+\}", lambda found: made[found[0]], path)


def test_head_is_answered_as_get_without_a_body_on_every_route(store):
    api = Api(store)
    store.put_job(Job("a1", "orders", {}, "done", {}, 0, "", NOW, NOW))
    seen = set()
    for path in gets(api):
        head = api.request("HEAD", path)
        assert head.content == b"", path
        if not path.endswith("/stream"):  # whose GET has no end
            get = api.get(path)
            assert (head.status_code, set(head.headers)) == (get.status_code, set(get.headers)), path
        seen.add(head.status_code)
        wrong = api.request("POST", path)
        if wrong.status_code == 405:
            assert {"GET", "HEAD"} <= set(wrong.headers["allow"].split(", ")), path
    assert 200 in seen
    assert 405 not in seen
    assert api.request("HEAD", "/v1/models/orders/predict").status_code == 405
    assert 'method="HEAD"' in api.get("/metrics").text


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/", "/v1/models", "/v1/models/orders/history", "/nothing"])
@pytest.mark.parametrize("query", ["a=1&" * 100, "&" * 100, "a=" + "b" * 4096, "before=" + "1" * 4090])
def test_long_queries_are_refused(kept, path, query):
    answer = kept[0].get(f"{path}?{query}")
    assert code(answer) == (414, "too-large")
    assert answer.json()["where"] == "query"


def test_long_paths_are_refused(store):
    answer = Api(store).get("/v1/models/" + "a" * 1000)
    assert code(answer) == (414, "too-large")
    assert answer.json()["where"] == "path"


def test_long_header_values_are_neither_parsed_nor_cached(store):
    api = Api(store, local_only=True)
    host = {"Host": "a" * 60_000 + ".localhost"}
    assert code(api.get("/v1/models", headers=host)) == (421, "misdirected")
    local = {"Host": "localhost"}
    claims = {"iss": "https://login.example", "groups": [f"team-{i}" for i in range(3000)]}
    payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode()
    signed = f"eyJhbGciOiJSUzI1NiJ9.{payload}.{hashlib.sha512(payload.encode()).hexdigest()}"
    assert 50_000 < len(signed) < 60_000
    for scheme in ("Bearer", "bearer", "Basic", "Negotiate"):
        answer = api.get("/v1/models", headers=local | {"Authorization": f"{scheme} {signed}"})
        assert answer.status_code == (401 if scheme.lower() == "bearer" else 200), "reading needs no token here"
        assert signed[:40] not in answer.text
    tags = local | {"If-None-Match": '"a",' * 10_000 + "*"}
    assert api.get("/v1/models/orders/centroids", headers=tags).status_code == 200
    accept = local | {"Accept": "text/csv," * 6000}
    answer = api.request("POST", "/v1/models/orders/predict", headers=accept, json={"points": [[1, 2, 3]]})
    assert code(answer) == (406, "not-acceptable")
