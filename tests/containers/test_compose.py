"""``docker compose up``: all of it comes up, answers, survives the death of an owner, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import json
import urllib.request

import kafka
import pytest
import yaml
from compose_project import FILE, Compose, docker, kinds, until

pytestmark = pytest.mark.filterwarnings("default::ResourceWarning")


@pytest.fixture(scope="module", params=kinds())
def up(request):
    compose = Compose(request.param)
    compose.run("--profile", "observe", "down", "--volumes", "--timeout", "1", check=False)
    try:
        compose.run("up", "--detach", "--no-build", timeout=400)
        yield compose
    finally:
        for service in ("live", "standby", "service", "kafka", "postgres", "producer"):
            told = docker("logs", "--tail", "20", compose.container(service), check=False, error=True)
            print(f"--- {service}\n{told}")  # noqa: T201 - pytest shows it when a test failed
        compose.run("--profile", "observe", "down", "--volumes", "--timeout", "30")
    assert compose.left() == {"containers": "", "volumes": "", "networks": ""}


@pytest.fixture(scope="module")
def token(up):
    return up.execute("service", "cat", "/run/token/token")


def counted(up, token):
    """Records that the model has accounted for, as the service tells it."""
    answer = up.get("/v1/models/shuttle", token)
    return answer["counters"]["records"] if isinstance(answer, dict) else 0


def role(up, service):
    """What a consumer says of itself: owner or standby."""
    return up.execute(service, "python3", "/opt/streamkm/bin/health.py", check=False)


def test_everything_becomes_healthy(up):
    for service in ("kafka", "postgres", "live", "standby", "service"):
        until(lambda service=service: up.health(service) == "healthy", 90, f"{service} healthy")
    assert sorted(("owner" in role(up, s), "standby" in role(up, s)) for s in ("live", "standby")) == [
        (False, True),
        (True, False),
    ]


def test_secrets_are_files_of_those_who_need_them(up, token):
    assert len(token) >= 32
    for service in ("live", "standby", "service", "postgres"):
        (told,) = json.loads(docker("inspect", up.container(service)))
        password = up.execute("postgres", "cat", "/run/database/password")
        assert token not in json.dumps(told)
        assert password not in json.dumps(told)
        assert password not in docker("logs", up.container(service))
    assert up.execute("producer", "ls", "/run/token", "/run/database", check=False) == ""
    assert up.execute("live", "ls", "/run/token", check=False) == ""


def test_centroids_answer_from_outside_with_the_token_only(up, token):
    assert up.get("/livez")["status"] == "ok"
    assert up.get("/v1/models/shuttle/centroids") == 401
    found = until(
        lambda: isinstance(answer := up.get("/v1/models/shuttle/centroids", token), dict) and answer, 60, "centroids"
    )
    assert len(found["clusters"]) == 7
    assert found["fields"] == ["f1", "f3", "f5", "f7", "f8", "f9"]


def test_the_page_is_there_and_a_recomputation_runs_in_the_container_of_the_service(up, token):
    with urllib.request.urlopen(f"http://127.0.0.1:{up.ports['PORT']}/", timeout=10) as answer:
        assert b"/assets/app.js" in answer.read()
    jobs = "/v1/models/shuttle/jobs"
    asked = {"from": "beginning", "to": "now"}
    assert up.get(jobs, body=asked) == 401
    job = up.get(jobs, token, body=asked)
    done = until(
        lambda: (found := up.get(f"{jobs}/{job['id']}", token))["state"] not in {"queued", "running"} and found,
        120,
        "the recomputation to end",
    )
    assert (done["state"], done["error"]) == ("done", "")
    assert up.get(f"/v1/models/shuttle/snapshots/{done['snapshot']}", token)["kind"] == "replay"


def test_the_owner_is_killed_and_the_standby_goes_on_with_nothing_lost(up, token):
    owner, other = sorted(("live", "standby"), key=lambda service: "owner" not in role(up, service))
    before = until(lambda: counted(up, token), 30, "records")
    docker("kill", up.container(owner))
    until(lambda: "owner" in role(up, other), 30, "the standby owns the model")
    until(lambda: counted(up, token) > before, 30, "more records")
    docker("stop", "--time", "30", up.container("producer"))
    with contextlib.closing(kafka.KafkaConsumer(bootstrap_servers=f"localhost:{up.ports['KAFKA_PORT']}")) as consumer:
        partitions = [kafka.TopicPartition("shuttle", p) for p in consumer.partitions_for_topic("shuttle")]
        written = sum(consumer.end_offsets(partitions).values())
    assert len(partitions) == 3
    until(lambda: counted(up, token) == written, 60, f"{written} records counted")

    def proven():
        verdict = json.loads(up.execute(other, "streamkm", "verify", "shuttle", "--json"))
        assert verdict["equal"]
        return verdict["points"] == written  # else the last records are in no snapshot yet

    until(proven, 60, "a snapshot with all records")
    # Started again, it stands by.
    docker("start", up.container(owner))
    until(lambda: "standby" in role(up, owner), 30, "the owner before stands by")


def test_every_alert_comes_when_it_should_and_none_on_a_healthy_stream():
    image = yaml.safe_load(FILE.read_text())["services"]["prometheus"]["image"].removeprefix("${PROMETHEUS_IMAGE:-")
    rules = ("--volume", f"{FILE.parent / 'prometheus'}:/rules:ro")
    promtool = ("run", "--rm", "--network", "none", *rules, "--entrypoint", "promtool", image.removesuffix("}"))
    assert "10 rules found" in docker(*promtool, "check", "rules", "/rules/alerts.yml")
    docker(*promtool, "test", "rules", "/rules/alerts_test.yml")


def test_prometheus_sees_all_of_it_and_the_dashboard_shows_something(up, token, dashboard_queries):
    up.run("up", "--detach", "--no-build", "--no-deps", "reader")  # its token may read from then on
    up.run("up", "--detach", "--no-build", "--no-deps", "prometheus")
    docker("start", up.container("producer"))
    until(lambda: up.health("prometheus") == "healthy", 60, "prometheus healthy")

    def targets():
        found = up.get("/api/v1/targets?state=active", port="PROMETHEUS_PORT")["data"]["activeTargets"]
        return {t["labels"]["instance"]: t["health"] for t in found}

    until(lambda: targets() == dict.fromkeys(("service:8000", "live:9100", "standby:9100"), "up"), 60, "all targets up")
    rules = up.get("/api/v1/rules", port="PROMETHEUS_PORT")["data"]["groups"][0]["rules"]
    assert {rule["health"] for rule in rules} <= {"ok", "unknown"}
    assert len(rules) == 10
    for title, query in dashboard_queries:

        def answer(query=query):
            found = up.get(f"/api/v1/query?query={query}", port="PROMETHEUS_PORT")
            return isinstance(found, dict) and found["status"] == "success" and found["data"]["result"]

        until(answer, 40, f"{title}: {query}")
