"""``serve`` as a real process, asked over a real socket."""

from __future__ import annotations

import json
import signal
import socket
from pathlib import Path
from typing import Self

import httpx
import pytest

from consumers.serve import SHUTDOWN_SECONDS
from processes import Program, run
from service_api import TOKEN, Writer
from streamkm.errors import SettingsError
from streamkm.http.listening import check_bind, listen, url_of
from streamkm.service.auth import TOKEN_CACHE_SECONDS
from streamkm.stores import open_store
from waiting import PATIENCE, wait_until


class Serving(Program):
    """``streamkm serve`` on a free port."""

    def __init__(self, log: Path, *arguments: str, **environment: str) -> None:
        super().__init__(log, "serve", "--port", "0", *arguments, env=environment)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def url(self) -> str:
        """Where it listens, once it does."""

        def lines() -> list[str]:
            return [line for line in self.output().splitlines(keepends=True) if "serving on " in line and "\n" in line]

        self.until(lines)
        return json.loads(lines()[0])["message"].rpartition(" ")[2]

    def ends(self, number: signal.Signals) -> int:
        """Exit status after a signal."""
        self.signal(number)
        return self.popen.wait(PATIENCE)


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log"


@pytest.fixture
def url_of_store(tmp_path):
    url = f"sqlite:///{tmp_path / 'models.db'}"
    store = open_store(url)
    Writer(store).commit()
    store.close()
    return url


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_answers_and_leaves_within_seconds_with_status_0(url_of_store, number, log):
    with Serving(log, "--store", url_of_store) as serve:
        base = serve.url()
        with httpx.Client(base_url=base, trust_env=False, timeout=PATIENCE) as client:
            assert client.get("/readyz").json() == {"status": "ok"}
            assert client.get("/v1/models/orders/centroids").json()["snapshot"]["id"] == 1
            answer = client.post("/v1/models/orders/predict", json={"points": [[10, 10, 11]]})
            assert answer.json()["distances"] == [1.0]
            assert "process_resident_memory_bytes" in client.get("/metrics").text
            status = serve.ends(number)  # with a connection still open
        assert status == 0, serve.output()
        assert SHUTDOWN_SECONDS < 10, "what may still be waited for then"
        assert "Traceback" not in serve.output()


def test_a_token_from_the_environment_is_asked_for_and_never_logged(url_of_store, log):
    with Serving(log, "--store", url_of_store, "--verbose", STREAMKM_TOKEN=TOKEN) as serve:
        with httpx.Client(base_url=serve.url(), trust_env=False, timeout=PATIENCE) as client:
            assert client.get("/v1/models").status_code == 401
            assert client.get("/v1/models", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
        assert serve.ends(signal.SIGTERM) == 0
        assert "/v1/models" in serve.output()
        assert TOKEN not in serve.output()


def test_without_a_token_only_who_asks_for_this_machine_is_answered(url_of_store, log):
    with (
        Serving(log, "--store", url_of_store) as serve,
        httpx.Client(base_url=serve.url(), trust_env=False, timeout=PATIENCE) as client,
    ):

        def status(host):
            return client.get("/v1/models", headers={"Host": host}).status_code

        for host in ("127.0.0.1", "localhost:8000", "LOCALHOST", "[::1]:8000", "a.localhost", "localhost."):
            assert status(host) == 200, host
        for host in ("evil.example", "evil.example:8000", "localhost.evil.example", "10.0.0.1", "[::2]", ""):
            assert status(host) == 421, host
        assert status("[") == 400
        told = client.get("/v1/models", headers={"Host": "evil.example"}).json()
        assert (told["code"], told["where"]) == ("misdirected", "Host")
        assert client.get("/livez", headers={"Host": "evil.example"}).status_code == 200
        assert "421" in client.get("/openapi.json").json()["paths"]["/v1/models"]["get"]["responses"]
    asked = {"Host": "streamkm.example", "Authorization": f"Bearer {TOKEN}"}
    with Serving(log.with_name("again"), "--store", url_of_store, STREAMKM_TOKEN=TOKEN) as serve:
        assert (
            httpx.get(serve.url() + "/v1/models", headers=asked, trust_env=False, timeout=PATIENCE).status_code == 200
        )


def test_a_body_that_stops_half_way_does_not_keep_it_from_leaving(url_of_store, log):
    with Serving(log, "--store", url_of_store) as serve:
        host, _, port = serve.url().removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port))) as client:
            client.sendall(
                b"POST /v1/models/orders/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"
            )
            status = serve.ends(signal.SIGTERM)  # the body never comes
        assert status == 0, serve.output()


def test_an_address_that_others_reach_needs_a_token(url_of_store, log):
    with Serving(log, "--store", url_of_store, "--host", "0.0.0.0") as serve:  # noqa: S104 - it is refused
        assert serve.popen.wait(PATIENCE) == 2
        assert "token" in serve.output()


def test_a_token_of_the_store_opens_an_address_that_others_reach(url_of_store, log):
    made = run("tokens", "create", "ops", "--right", "write", "--store", url_of_store)
    assert made.returncode == 0, made.stderr
    auth = {"Authorization": f"Bearer {made.stdout.strip()}"}
    with Serving(log, "--store", url_of_store, "--host", "0.0.0.0") as serve:  # noqa: S104 - that is the point
        base = serve.url().replace("0.0.0.0", "127.0.0.1")  # noqa: S104
        with httpx.Client(base_url=base, trust_env=False, timeout=PATIENCE) as client:
            assert client.get("/v1/models").status_code == 401
            assert client.get("/v1/models", headers=auth).status_code == 200
            assert client.post("/v1/models/orders/pause", headers=auth).json() == {"paused": True}
            assert run("tokens", "revoke", "ops", "--store", url_of_store).returncode == 0
            assert TOKEN_CACHE_SECONDS < 5, "seconds for which a token may still be taken"
            wait_until(lambda: client.get("/v1/models", headers=auth).status_code != 200)
            assert client.get("/v1/models", headers=auth).status_code == 401


def test_tokens_are_listed_without_what_they_are(url_of_store):
    made = run("tokens", "create", "reports", "--model", "orders", "--json", "--store", url_of_store)
    text = json.loads(made.stdout)["token"]
    listed = run("tokens", "list", "--json", "--store", url_of_store).stdout
    (one,) = json.loads(listed)
    assert (one["name"], one["right"], one["models"]) == ("reports", "read", ["orders"])
    assert text not in listed
    assert "reports" in run("tokens", "list", "--store", url_of_store).stdout
    assert run("tokens", "create", "reports", "--store", url_of_store).returncode == 5  # there is one
    assert run("tokens", "revoke", "nobody", "--store", url_of_store).returncode == 3


def test_a_job_asked_over_http_is_done_by_a_child_that_says_why_it_cannot(url_of_store, log):
    with Serving(log, "--store", url_of_store, "--bootstrap", "127.0.0.1:1", STREAMKM_TOKEN=TOKEN) as serve:
        auth = {"Authorization": f"Bearer {TOKEN}"}
        with httpx.Client(base_url=serve.url(), trust_env=False, headers=auth, timeout=PATIENCE) as client:
            taken = client.post("/v1/models/orders/jobs", json={"from": "beginning"})
            assert taken.status_code == 202

            def ended():
                found = client.get(taken.headers["Location"]).json()
                return found["state"] not in {"queued", "running"} and found

            job = wait_until(ended)
        assert job["state"] == "failed"
        assert "127.0.0.1:1" in job["error"]
        assert serve.ends(signal.SIGTERM) == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_needs_no_token(host):
    check_bind(host, "")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", "", "127.0.0.1.example.org"])  # noqa: S104 - the same
def test_any_other_address_needs_one(host):
    with pytest.raises(SettingsError, match="token"):
        check_bind(host, "")
    check_bind(host, TOKEN)
    check_bind(host, "", stored=True)
    with pytest.raises(SettingsError, match="streamkm tokens create"):
        check_bind(host, "", stored=False)


def test_a_port_in_use_is_an_error():
    with listen("127.0.0.1", 0) as first:
        assert url_of(first).startswith("http://127.0.0.1:")
        with pytest.raises(SettingsError, match="cannot listen"):
            listen("127.0.0.1", first.getsockname()[1])


def test_answers_do_not_wait_for_an_acknowledgement():
    # asyncio turns Nagle's algorithm off only on sockets whose protocol is TCP by name.
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.proto == socket.IPPROTO_TCP


def test_an_address_of_another_machine_is_an_error():
    with pytest.raises(SettingsError, match="cannot listen"):
        listen("192.0.2.1", 0)
