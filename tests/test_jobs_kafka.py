"""A job from end to end: asked over HTTP, run by a child on a real broker, promoted over HTTP."""

from __future__ import annotations

import json
import signal

import httpx
import kafka
import numpy as np
import pytest

from processes import program
from service_api import TOKEN
from test_serve import Serving
from waiting import PATIENCE, wait_until

pytestmark = pytest.mark.kafka

CENTRES = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 12.0]])
N = 6000


def made_by(live, url):
    """The store, once the consumer has made it: a service makes none."""
    live.until(lambda: "owner" in live.output())
    return url


def test_a_job_recomputes_a_range_of_the_topic_and_its_snapshot_takes_charge(bootstrap, topic, tmp_path):
    name, url = topic(partitions=2), f"sqlite:///{tmp_path}/s.db"
    rng = np.random.default_rng(3)
    producer = kafka.KafkaProducer(bootstrap_servers=bootstrap, linger_ms=5)
    for i, (x, y) in enumerate((CENTRES[rng.integers(3, size=N)] + rng.normal(size=(N, 2))).tolist()):
        producer.send(name, json.dumps({"x": x, "y": y}).encode(), partition=i % 2)
    producer.flush()
    producer.close()
    arguments = ("--bootstrap", bootstrap, "--topic", name, "--fields", "x,y", "--k", "3", "--store", url)
    consumer = program(tmp_path / "log", "live", "m", *arguments, "--checkpoint-every", "200ms")
    environment = {"STREAMKM_TOKEN": TOKEN, "STREAMKM_CACHE": str(tmp_path / "cache")}
    with (
        consumer as live,
        Serving(
            tmp_path / "serve.log", "--store", made_by(live, url), "--bootstrap", bootstrap, **environment
        ) as serve,
    ):
        auth = {"Authorization": f"Bearer {TOKEN}"}
        with httpx.Client(base_url=serve.url(), trust_env=False, headers=auth, timeout=PATIENCE) as client:
            live.until(lambda: client.get("/v1/models/m").json().get("points") == N)
            taken = client.post("/v1/models/m/jobs", json={"k": 3, "n_init": 2, "max_iter": 50})
            assert taken.status_code == 202, taken.text

            def ended():
                found = client.get(taken.headers["Location"]).json()
                stages.add(found["progress"]["stage"])
                return found["state"] not in {"queued", "running"} and found

            stages = {taken.json()["progress"]["stage"]}
            job = wait_until(ended)
            assert job["state"] == "done", job
            assert stages >= {"starting", "fitting"}
            assert (job["progress"]["done"], job["progress"]["total"]) == (N, N)
            assert job["progress"]["iteration"] >= 1
            found = client.get(f"/v1/models/m/snapshots/{job['snapshot']}").json()
            assert (found["kind"], found["n_points"]) == ("replay", N)
            before = client.get("/v1/models/m").json()["snapshot"]["id"]
            asked = client.post("/v1/models/m/promote", json={"snapshot": job["snapshot"]})
            assert asked.status_code == 202
            live.until(lambda: client.get("/v1/models/m").json()["snapshot"]["id"] > before)
        assert serve.ends(signal.SIGTERM) == 0
        assert TOKEN not in serve.output()
