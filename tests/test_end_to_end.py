"""The main job on a real broker: records in, processes killed, and every record counted once."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import signal
import threading
import time

import httpx
import kafka
import numpy as np
import pytest

from kafka_traffic import Transactions
from processes import program, run, run_apart
from streamkm.errors import NotFoundError, StoreUnavailableError
from streamkm.models import ARITHMETIC
from streamkm.stores import open_store
from waiting import PATIENCE

pytestmark = pytest.mark.kafka

FIELDS = ("a", "b.c", "d")
CENTRES = np.array([[0.0, 0.0, 0.0], [10.0, 0.0, -5.0], [0.0, 12.0, 5.0], [-9.0, -9.0, 0.0]])


def endless(seed=0):
    """Records as bytes: points around four centres."""
    rng = np.random.default_rng(seed)
    while True:
        points = CENTRES[rng.integers(len(CENTRES), size=1000)] + rng.normal(size=(1000, 3))
        for a, b, d in points.tolist():
            yield json.dumps({"a": a, "b": {"c": b}, "d": d, "note": "x"}).encode()


def values(n, seed=0):
    """The first n records."""
    return list(itertools.islice(endless(seed), n))


class Feed(threading.Thread):
    """Produces records at a steady rate, over all partitions."""

    def __init__(self, bootstrap, topic, records, per_second, partitions=3):
        super().__init__(daemon=True)
        self.producer = kafka.KafkaProducer(bootstrap_servers=bootstrap, linger_ms=50)
        self.topic, self.records, self.per_second, self.partitions = topic, records, per_second, partitions
        self.enough, self.sent = threading.Event(), 0

    def run(self):
        began = time.monotonic()
        for i, value in enumerate(self.records):
            key = b"k" if value is None else None  # kafka-python rejects records without key and value
            self.producer.send(self.topic, value, key, partition=i % self.partitions)
            self.sent += 1
            if self.enough.is_set():
                break
            ahead = i / self.per_second - (time.monotonic() - began)
            if ahead > 0.01:
                time.sleep(ahead)
        self.producer.flush()
        self.producer.close()


def progress(url, model):
    """The state of the store, through a read-only connection."""
    with contextlib.closing(open_store(url)) as store:
        try:
            return store.model(model).progress
        except (NotFoundError, StoreUnavailableError):
            return None


def points(url, model):
    p = progress(url, model)
    return p.counters.points if p else 0


def snapshots(url):
    with contextlib.closing(open_store(url)) as store:
        return store.model("m").last_snapshot


def live(log, bootstrap, topic, url, *more):
    arguments = ("--bootstrap", bootstrap, "--topic", topic, "--fields", ",".join(FIELDS), "--k", "4", "--store", url)
    return program(log, "live", "m", *arguments, "--checkpoint-every", "200ms", "--snapshot-every", "1s", *more)


@pytest.fixture(params=["sqlite", "postgres"])
def url_of_a_store(request, tmp_path):
    return f"sqlite:///{tmp_path}/s.db" if request.param == "sqlite" else request.getfixturevalue("database")()


def test_killed_twice_every_record_counts_once_and_the_journal_proves_it(bootstrap, topic, tmp_path, url_of_a_store):
    name, url, log = topic(partitions=3), url_of_a_store, tmp_path / "log"
    Feed(bootstrap, name, values(3000), per_second=1e9).run()
    feed = Feed(
        bootstrap, name, endless(1), per_second=1500
    )  # longer than the test, so that both kills happen while it runs
    for killed_at in (6000, 9000):
        with live(log, bootstrap, name, url, "--batch", "300", "--lease", "2s") as owner:
            owner.until(lambda: points(url, "m") >= 3000)
            if not feed.is_alive():
                feed.start()
            owner.until(lambda killed_at=killed_at: points(url, "m") >= killed_at)
            owner.kill()
            assert feed.is_alive(), "the kill must happen while records arrive"
    with live(log, bootstrap, name, url, "--batch", "300", "--lease", "2s") as owner:
        owner.until(lambda: points(url, "m") >= 12_000)
        feed.enough.set()
        feed.join()
        n = 3000 + feed.sent
        owner.until(lambda: points(url, "m") == n)
        assert owner.leave() == 0
    with contextlib.closing(open_store(url)) as store:
        last = store.snapshot("m")
        counters = store.model("m").progress.counters
        assert (counters.records, counters.points, counters.bad, counters.tombstones) == (n, n, 0, 0)
        assert last.weights.sum() == pytest.approx(n, rel=1e-12)  # float64 sums of a coreset's weights
        assert last.n_points == n
        assert sum(last.position.values()) == n
        assert last.reason in {"interval", "stop"}
        assert last.id >= 3
    verdict = run("verify", "m", "--store", url, "--bootstrap", bootstrap, "--json")
    assert verdict.returncode == 0, verdict.stderr
    assert json.loads(verdict.stdout) == {
        "model": "m",
        "snapshot": last.id,
        "points": n,
        "start_commit": 0,
        "arithmetic": ARITHMETIC,
        "equal": True,
        "differences": [],
        "lost": [],
    }
    # Kafka tools show the group's offsets.
    consumer = kafka.KafkaConsumer(bootstrap_servers=bootstrap, group_id="streamkm-m")
    with contextlib.closing(consumer):
        for tp, at in last.position.items():
            assert consumer.committed(kafka.TopicPartition(tp.topic, tp.partition)) == at


def test_the_number_of_clusters_is_found_and_kept_when_the_owner_is_killed(bootstrap, topic, tmp_path):
    name, url = topic(partitions=3), f"sqlite:///{tmp_path}/s.db"
    Feed(bootstrap, name, values(4000), per_second=1e9).run()
    feed = Feed(bootstrap, name, endless(1), per_second=1000)
    feed.start()

    def proposal():
        with contextlib.closing(open_store(url)) as store:
            return store.snapshot("m").detail["k"] if store.model("m").last_snapshot else None

    with live(tmp_path / "log", bootstrap, name, url, "--k", "auto") as owner:
        owner.until(lambda: points(url, "m") > 0)
        owner.until(proposal)
        found = proposal()
        owner.kill()
    assert (found["suggested"], found["running"]) == (4, 4)
    learned = points(url, "m")
    with live(tmp_path / "log", bootstrap, name, url, "--k", "auto", "--lease", "2s") as owner:
        owner.until(lambda: points(url, "m") > learned + 2000)
        assert owner.leave() == 0
    feed.enough.set()
    with contextlib.closing(open_store(url)) as store:
        last = store.snapshot("m")
        assert store.model("m").spec.n_clusters == 0, "it is to be found"
    assert len(last.ids) == len(CENTRES)
    verdict = run("verify", "m", "--store", url, "--bootstrap", bootstrap)
    assert verdict.returncode == 0, verdict.stdout + verdict.stderr


def test_verify_sees_a_snapshot_that_is_not_what_the_records_say(bootstrap, topic, tmp_path):
    name, url = topic(partitions=1), f"sqlite:///{tmp_path}/s.db"
    feed = Feed(bootstrap, name, values(2000), per_second=1e9, partitions=1)
    feed.run()
    with live(tmp_path / "log", bootstrap, name, url) as owner:
        owner.until(lambda: points(url, "m") == 2000)
        assert owner.leave() == 0
    with contextlib.closing(open_store(url)) as store:
        honest = store.snapshot("m")
        forged = honest.centroids.copy()
        forged[0, 0] = np.nextafter(forged[0, 0], np.inf)
    from streamkm.codecs import make_codec
    from streamkm.connectors import KafkaSource
    from streamkm.engine import JournalReplay, compare_snapshot

    with contextlib.closing(open_store(url)) as store:
        spec = store.model("m").spec
        journal = [entry for _, entry in store.journal("m")]
    with JournalReplay(spec, lambda: KafkaSource.connect(bootstrap, name), make_codec(spec.codec)) as again:
        for entry in journal:
            again.apply(entry)
        assert compare_snapshot(honest, again.learner)
        honest.centroids.flags.writeable = True
        honest.centroids[:] = forged
        assert "centroids differ" in compare_snapshot(honest, again.learner).differences[0]


def test_bad_records_and_tombstones_are_accounted_for_and_lose_no_neighbour(bootstrap, topic, tmp_path):
    name, url = topic(partitions=2), f"sqlite:///{tmp_path}/s.db"
    good = values(3000)
    bad = {
        500: b"{",
        501: b'{"a": 1, "d": 2}',
        1200: b'{"a": "1", "b": {"c": 2}, "d": 3}',
        2500: b'{"a": NaN, "b": {"c": 2}, "d": 3}',
    }
    records = [bad.get(i, None if i in (7, 8) else v) for i, v in enumerate(good)]
    Feed(bootstrap, name, records, per_second=1e9, partitions=2).run()
    with live(tmp_path / "log", bootstrap, name, url) as owner:
        owner.until(lambda: (p := progress(url, "m")) is not None and p.counters.records == 3000)
        assert owner.leave() == 0
    with contextlib.closing(open_store(url)) as store:
        c = store.model("m").progress.counters
        assert (c.points, c.bad, c.tombstones) == (2994, 4, 2)
        assert store.snapshot("m").weights.sum() == pytest.approx(2994, rel=1e-12)
        found = {(b.record.partition.partition, b.record.offset): b for b in store.newest_quarantined("m")}
    assert {at: (b.reason, b.field) for at, b in found.items()} == {
        (0, 250): ("not-json", ""),
        (1, 250): ("missing-field", "b.c"),
        (0, 600): ("not-a-number", "a"),
        (0, 1250): ("not-finite", "a"),
    }
    assert found[0, 250].record.value == b"{"
    verdict = run("verify", "m", "--store", url, "--bootstrap", bootstrap)
    assert verdict.returncode == 0, verdict.stdout + verdict.stderr


def test_a_standby_takes_over_at_once_after_sigterm_and_after_the_lease_when_the_owner_is_killed(
    bootstrap, topic, tmp_path
):
    name, url = topic(partitions=3), f"sqlite:///{tmp_path}/s.db"
    feed = Feed(bootstrap, name, endless(), per_second=500)  # longer than the test
    feed.start()

    def lease():
        with contextlib.closing(open_store(url)) as store:
            return store.model("m").lease

    def owner_of(p):
        found = lease()
        return found if found is not None and f":{p.popen.pid}:" in found.owner else None

    with live(tmp_path / "a", bootstrap, name, url, "--lease", "10s") as a:
        a.until(lambda: points(url, "m") > 0)
        # Its own lease lasts longer than the test, so that no other takes over by waiting.
        with live(tmp_path / "b", bootstrap, name, url, "--lease", "1h") as b:
            b.until(lambda: "standing by" in b.output())
            a.kill()
            ends = lease()
            assert f":{a.popen.pid}:" in ends.owner
            b.until(lambda: owner_of(b))
            assert time.time() > ends.expires_at, "it waited for the lease to expire"
            assert owner_of(b).epoch == ends.epoch + 1
            with live(tmp_path / "c", bootstrap, name, url, "--lease", "10s") as c:
                c.until(lambda: "standing by" in c.output())
                before = points(url, "m")
                assert b.leave() == 0
                c.until(lambda: owner_of(c))
                c.until(lambda: points(url, "m") > before)
                feed.enough.set()
                feed.join()
                c.until(lambda: points(url, "m") == feed.sent)
                assert c.leave() == 0


def test_sigint_finishes_the_batch_and_leaves_with_success(bootstrap, topic, tmp_path):
    name, url = topic(partitions=1), f"sqlite:///{tmp_path}/s.db"
    Feed(bootstrap, name, values(5000), per_second=1e9, partitions=1).run()
    with live(tmp_path / "log", bootstrap, name, url, "--checkpoint-every", "1h", "--snapshot-every", "1h") as owner:
        owner.until(lambda: progress(url, "m") is not None)
        owner.until(lambda: "owner" in owner.output())
        owner.signal(signal.SIGINT)
        assert owner.popen.wait(PATIENCE) == 0, owner.output()
    p = progress(url, "m")
    assert p.counters.points == sum(p.position.values())


def test_a_model_goes_on_with_its_name_alone_and_refuses_other_settings(bootstrap, topic, tmp_path):
    name, url = topic(partitions=1), f"sqlite:///{tmp_path}/s.db"
    Feed(bootstrap, name, values(1000), per_second=1e9, partitions=1).run()
    with live(tmp_path / "log", bootstrap, name, url) as owner:
        owner.until(lambda: points(url, "m") == 1000)
        assert owner.leave() == 0
    Feed(bootstrap, name, values(500, seed=1), per_second=1e9, partitions=1).run()
    with program(tmp_path / "log", "live", "m", "--store", url, "--bootstrap", bootstrap) as again:
        again.until(lambda: points(url, "m") == 1500)
        assert again.leave() == 0
    other = run(
        "live", "m", "--store", url, "--bootstrap", bootstrap, "--topic", name, "--fields", ",".join(FIELDS), "--k", "5"
    )  # fmt: skip
    assert other.returncode == 2
    assert "k was 4, is 5" in other.stderr
    assert "what to do:" in other.stderr


def test_the_service_answers_about_the_live_model(bootstrap, topic, tmp_path):
    name, url = topic(partitions=3), f"sqlite:///{tmp_path}/s.db"
    Feed(bootstrap, name, values(6000), per_second=1e9).run()
    with live(tmp_path / "log", bootstrap, name, url) as owner:
        owner.until(lambda: points(url, "m") == 6000)
        with program(tmp_path / "serve", "serve", "--store", url, "--port", "0") as service:
            service.until(lambda: "http://127.0.0.1:" in service.output())
            base = re.search(r"http://127.0.0.1:\d+", service.output())[0]
            owner.until(lambda: snapshots(url) > 0)
            answer = httpx.post(base + "/v1/models/m/predict", json={"points": CENTRES.tolist()}, timeout=PATIENCE)
            predicted = answer.raise_for_status().json()
            answer = httpx.get(base + "/v1/models/m/centroids", timeout=PATIENCE).raise_for_status()
            centroids = {c["id"]: c["values"] for c in answer.json()["clusters"]}
            assert len(set(predicted["ids"])) == 4
            for centre, cluster, distance in zip(CENTRES, predicted["ids"], predicted["distances"], strict=True):
                assert np.linalg.norm(centre - centroids[cluster]) == pytest.approx(distance)
                assert distance < 1
            assert service.leave() == 0
        assert owner.leave() == 0


def test_a_recomputation_leaves_the_consumer_alone_survives_kills_and_is_promoted(bootstrap, topic, tmp_path):
    name, url, log = topic(partitions=3), f"sqlite:///{tmp_path}/s.db", tmp_path / "log"
    Feed(bootstrap, name, values(10_000), per_second=1e9).run()
    feed = Feed(bootstrap, name, endless(1), per_second=500)
    feed.start()
    work = str(tmp_path / "work")
    command = ("replay", "m", "--from", "beginning", "--to", "now", "--store", url, "--bootstrap", bootstrap)
    with live(log, bootstrap, name, url) as owner:
        owner.until(lambda: points(url, "m") >= 10_000)
        # Killed after its range is pinned, and after it has read part of it; the pinned range stays the same.
        for sign in ("plan.json", "*/*.parquet"):
            with program(tmp_path / "replay-log", *command, "--work", work) as killed:
                killed.until(lambda sign=sign: any((tmp_path / "work").glob(sign)))
                killed.kill()
        pinned = json.loads((tmp_path / "work" / "plan.json").read_text())["stop"]
        result = run_apart(*command, "--work", work, "--json")
        assert result.returncode == 0, result.stderr
        assert "resuming the replay" in result.stderr
        found = json.loads(result.stdout)
        assert found["n_points"] == sum(at for *_, at in pinned)
        assert [(p["topic"], p["partition"], p["offset"]) for p in found["position"]] == [tuple(p) for p in pinned]
        learned = points(url, "m")
        owner.until(lambda: points(url, "m") > learned)  # it has continued meanwhile
        difference = run("diff", "m", "1", str(found["id"]), "--store", url, "--json")
        assert difference.returncode == 0, difference.stderr
        assert json.loads(difference.stdout)["changed"] < 0.05
        promoted = run("promote", "m", str(found["id"]), "--store", url, "--wait", "180")
        assert promoted.returncode == 0, promoted.stdout + promoted.stderr
        feed.enough.set()
        feed.join()
        owner.until(lambda: points(url, "m") == 10_000 + feed.sent)
        assert owner.leave() == 0
    with contextlib.closing(open_store(url)) as store:
        taken = next(s for s in store.snapshots("m") if s.reason == "promoted")
        last = store.snapshot("m")
        assert taken.ids.tolist() == [c["id"] for c in found["clusters"]]
        assert taken.weights.sum() == pytest.approx(sum(taken.position.values()), rel=1e-12)
        assert last.weights.sum() == pytest.approx(10_000 + feed.sent, rel=1e-12)
        assert store.model("m").progress.counters.records == 10_000 + feed.sent
    verdict = run("verify", "m", "--store", url, "--bootstrap", bootstrap)
    assert verdict.returncode == 0, verdict.stdout + verdict.stderr


def test_a_recomputation_reads_committed_records_only_to_the_marker_that_ends_the_topic(bootstrap, topic, tmp_path):
    name, url = topic(partitions=2), f"sqlite:///{tmp_path}/s.db"
    records, aborted = values(3000), [b'{"a": 1e6, "b": {"c": 1e6}, "d": 1e6}'] * 40
    with contextlib.closing(Transactions(bootstrap, name)) as producer:
        for i in range(0, 3000, 500):
            producer.write(name, records[i : i + 500], i // 500 % 2)
            producer.write(name, aborted, i // 500 % 2, commit=False)
    with contextlib.closing(kafka.KafkaConsumer(bootstrap_servers=bootstrap)) as consumer:
        ends = consumer.end_offsets([kafka.TopicPartition(name, p) for p in range(2)])
    with live(tmp_path / "log", bootstrap, name, url) as owner:
        owner.until(lambda: points(url, "m") == 3000)
        assert owner.leave() == 0
    result = run_apart(
        "replay", "m", "--from", "beginning", "--to", "now", "--store", url, "--bootstrap", bootstrap, "--json"
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["n_points"] == 3000
    assert {p["partition"]: p["offset"] for p in found["position"]} == {tp.partition: end for tp, end in ends.items()}
    assert sum(ends.values()) > 3000 + 6 * len(aborted), "aborted records, and markers"
    with contextlib.closing(open_store(url)) as store:
        exact = store.snapshot("m", found["id"])
    assert exact.weights.sum() == 3000
    assert np.abs(exact.centroids).max() < 20
