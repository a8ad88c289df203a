"""Bad records on a real broker: quarantine, dead letters, and retries."""

from __future__ import annotations

import contextlib
import json
import signal
import sqlite3
import time
from dataclasses import replace
from pathlib import Path

import kafka
import numpy as np
import pytest
from click.testing import CliRunner

from consumers import logs
from consumers.cli import cli
from consumers.factories import make_engine
from consumers.quarantine import _readable, decoded
from processes import program
from store_checks import bad_of, commit_of, owned
from streamkm.connectors import KafkaWriter
from streamkm.engine import audit
from streamkm.errors import NotFoundError, SettingsError
from streamkm.metrics import Metrics
from streamkm.records import BadRecord, ProducerRecord, RawRecord, TopicPartition
from streamkm.settings import LiveSettings, load
from streamkm.state import Commit, JournalEntry
from streamkm.stores import open_store
from streamkm.testing import StopAfter
from waiting import PATIENCE

KILLED_DEAD_LETTERS = Path(__file__).with_name("killed_dead_letters.py")
POISON = {
    100: b"\xff\xfe not JSON",
    101: b'{"a": NaN, "b": 2}',
    102: b"[1, 2, 3]",
    103: b'{"a": 1, "b": 2, "note": "' + b"x" * 3000 + b'"}',
    104: b'{"a": 1e200, "b": 2}',
    1500: b"",
    1501: b'{"a": "1", "b": 2}',
    1502: b'{"b": 2}',
    2999: b"{",
}
TOMBSTONES = (7, 8, 2000)
BEGAN_AT = int(time.time() * 1000) - 60_000  # an older record would be deleted by the topic's retention at once


def values(n):
    rng = np.random.default_rng(1)
    points = rng.normal(size=(n, 2)) + 9.0 * (rng.integers(3, size=n) == 1)[:, None]
    return [json.dumps({"a": a, "b": b}).encode() for a, b in points.tolist()]


def produce(bootstrap, topic, records, first=0):
    """Write records over two partitions; with keys, headers and timestamps that contain their numbers."""
    with contextlib.closing(kafka.KafkaProducer(bootstrap_servers=bootstrap, linger_ms=20)) as producer:
        for i, value in enumerate(records, first):
            producer.send(topic, value, b"key %d" % i, [("number", b"%d" % i)], i % 2, BEGAN_AT + i)
        producer.flush(PATIENCE)


def read_all(bootstrap, topic):
    """Every record of a topic."""
    consumer = kafka.KafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest", group_id=None)
    with contextlib.closing(consumer):
        partitions = [kafka.TopicPartition(topic, p) for p in sorted(consumer.partitions_for_topic(topic))]
        consumer.assign(partitions)
        consumer.seek_to_beginning(*partitions)
        end, found, deadline = consumer.end_offsets(partitions), [], time.monotonic() + PATIENCE
        while any(consumer.position(tp) < at for tp, at in end.items()):
            assert time.monotonic() < deadline
            for records in consumer.poll(timeout_ms=200).values():
                found += records
    return found


def live(log, bootstrap, topic, url, *more, script=None):
    where = ("--bootstrap", bootstrap, "--topic", topic, "--store", url)
    how = ("--fields", "a,b", "--k", "2", "--max-record-bytes", "2000", "--checkpoint-every", "200ms", "--lease", "2s")
    return program(log, "live", "m", *where, *how, *more, script=script)


def learn(url, bootstrap, given, until):
    """Run the engine of ``streamkm live`` in this process, where the kernels are compiled."""
    settings = load(LiveSettings, {"store": url, "bootstrap": bootstrap, "checkpoint_every": "50ms", **given}, env={})
    with contextlib.closing(open_store(url)) as store:
        make_engine("m", settings, store, Metrics()).run(StopAfter(until))


def counters(url):
    with contextlib.closing(open_store(url)) as store:
        progress = store.model("m").progress if store.models() else None
    return None if progress is None else progress.counters


def waiting(url):
    with contextlib.closing(open_store(url)) as store:
        return store.undelivered("m")


@pytest.mark.kafka
def test_killed_between_sending_and_marking_every_bad_record_is_in_the_topic_of_dead_letters(
    bootstrap, topic, admin, tmp_path
):
    name, url, dead = topic(partitions=2), f"sqlite:///{tmp_path}/s.db", f"{tmp_path.name}-dead"
    n = 3000
    records = [POISON.get(i, None if i in TOMBSTONES else value) for i, value in enumerate(values(n))]
    produce(bootstrap, name, records[:1000])
    with live(tmp_path / "log", bootstrap, name, url, "--dead-letters", dead, script=KILLED_DEAD_LETTERS) as killed:
        assert killed.popen.wait(PATIENCE) == -signal.SIGKILL, killed.output()
    assert waiting(url), "it was killed before it could mark them"
    produced = len(read_all(bootstrap, dead))
    assert produced > 0
    produce(bootstrap, name, records[1000:], first=1000)
    with live(tmp_path / "log", bootstrap, name, url, "--dead-letters", dead) as owner:
        owner.until(lambda: (c := counters(url)) is not None and c.records == n and not waiting(url))
        assert owner.leave() == 0
    c = counters(url)
    assert (c.points, c.bad, c.tombstones) == (n - len(POISON) - len(TOMBSTONES), len(POISON), len(TOMBSTONES))
    found = read_all(bootstrap, dead)
    first = {}
    for letter in found:
        told = dict(letter.headers)
        place = tuple(told[f"__connect.errors.{part}"].decode() for part in ("topic", "partition", "offset"))
        first.setdefault(place, letter)
        i = int(told["number"])
        assert place == (name, str(i % 2), str(i // 2))
        assert (letter.value, letter.key) == (POISON[i], b"key %d" % i)
        assert letter.timestamp == BEGAN_AT + i
        assert told["__connect.errors.connector.name"] == b"m"
    assert {int(dict(letter.headers)["number"]) for letter in first.values()} == set(POISON)
    assert len(found) == len(POISON) + produced, "only those that were sent and not marked arrived twice"
    reasons = {int(dict(x.headers)["number"]): dict(x.headers)["__streamkm.reason"].decode() for x in found}
    assert [reasons[i] for i in (100, 101, 102, 103, 104)] == [
        "not-json", "not-finite", "wrong-dimension", "too-large", "out-of-range",
    ]  # fmt: skip
    with contextlib.closing(open_store(url)) as store:
        assert audit(store, "m") == []  # each offset read once
    admin.delete_topics([dead])


@pytest.mark.kafka
def test_records_that_can_be_decoded_after_all_are_tried_again_and_learned(bootstrap, topic, tmp_path, monkeypatch):
    name, file = topic(partitions=2), tmp_path / "s.db"
    url, n = f"sqlite:///{file}", 200
    # Longer than the quarantine keeps: the whole value is read from the topic again.
    long = b'{"a": 1, "b": 2, "note": "' + b"x" * 70_000 + b'"}'
    records = [{**POISON, 103: long}.get(i, value) for i, value in enumerate(values(n))]
    produce(bootstrap, name, records)
    new = {"topic": name, "fields": "a,b", "k": "2", "max_record_bytes": 2000}
    learn(url, bootstrap, new, lambda: (c := counters(url)) is not None and c.records == n)
    monkeypatch.setattr(logs, "configure", lambda: None)

    def retry(*arguments):
        where = ("--store", url, "--bootstrap", bootstrap, "--json")
        done = CliRunner().invoke(cli, ["quarantine", "retry", "m", *arguments, *where])
        assert done.exit_code == 0, f"{done.output}{done.exception!r}"
        return json.loads(done.stdout)

    assert retry("--all") == {
        "tried": 5,
        "decoded": 0,
        "produced": 0,
        "unavailable": 0,
        "remaining": 5,
        "dry_run": False,
    }
    held = CliRunner().invoke(cli, ["quarantine", "show", "m", f"{name}-1-51", "--store", url])
    assert f"truncated  65,536 of {len(long):,} bytes of the value are kept" in held.output
    with contextlib.closing(sqlite3.connect(file)) as database, database:
        database.execute("UPDATE streamkm_models SET spec = json_set(spec, '$.codec.max_bytes', 100000)")
    assert retry("--all", "--dry-run") == {
        "tried": 5,
        "decoded": 1,
        "produced": 0,
        "unavailable": 0,
        "remaining": 5,
        "dry_run": True,
    }
    assert retry("--reason", "not-json") == {
        "tried": 1,
        "decoded": 0,
        "produced": 0,
        "unavailable": 0,
        "remaining": 1,
        "dry_run": False,
    }
    assert retry(f"{name}-1-51") == {
        "tried": 1,
        "decoded": 1,
        "produced": 1,
        "unavailable": 0,
        "remaining": 0,
        "dry_run": False,
    }
    learn(url, bootstrap, {}, lambda: counters(url).records == n + 1)
    c = counters(url)
    assert (c.points, c.bad) == (n - 5 + 1, 5)
    back = next(r for r in read_all(bootstrap, name) if dict(r.headers).get("__streamkm.retry.topic"))
    assert (back.value, back.key, back.partition) == (long, b"key 103", 1)
    assert back.timestamp == BEGAN_AT + 103
    told = {key.rpartition(".")[2]: value for key, value in back.headers if key.startswith("__streamkm.retry.")}
    assert told == {"topic": name.encode(), "partition": b"1", "offset": b"51"}
    with contextlib.closing(open_store(url)) as store:
        assert store.quarantine_counts("m") == {"not-json": 1, "not-finite": 1, "wrong-dimension": 1, "out-of-range": 1}
        # The last record again, as if the topic had deleted it.
        long_ago = RawRecord(TopicPartition(name, 1), 10**6, -1, None, b"{", size=10**6)
        lease, last = store.acquire("m", "test", 10.0, 1e12), store.load_checkpoint("m")
        at = last.progress
        more = Commit(last.state, at.position, replace(at, commit_seq=at.commit_seq + 1), JournalEntry(()))
        gone = BadRecord(long_ago, "too-large", "", "x")
        store.commit(lease, replace(more, quarantine=(gone,)))
    assert retry("--reason", "too-large") == {
        "tried": 1, "decoded": 0, "produced": 0, "unavailable": 1, "remaining": 1, "dry_run": False,
    }  # fmt: skip
    missing = CliRunner().invoke(cli, ["quarantine", "show", "m", f"{name}-1-51", "--store", url])
    assert isinstance(missing.exception, NotFoundError)


@pytest.mark.kafka
def test_a_writer_tells_what_was_not_written_and_why(bootstrap, topic):
    name = topic(configs={"max.message.bytes": "2000"})
    with contextlib.closing(KafkaWriter(bootstrap, timeout=PATIENCE)) as writer:
        writer.create_topic(name)
        answers = writer.write(
            [
                ProducerRecord(name, None, None, (("null", None), ("empty", b"")), 5),
                ProducerRecord(name, None, b"x" * 5000, ()),
                ProducerRecord(name, b"k", b"v", (("lone \udcff", b"1"),), partition=0),
                ProducerRecord(name, b"k", b"v", (), partition=7),
            ]
        )
    assert [None if a is None else a.permanent for a in answers] == [None, True, None, True]
    one, two = read_all(bootstrap, name)
    assert (one.value, one.timestamp) == (b"", 5)
    assert one.headers == [("null", b""), ("empty", b""), ("__streamkm.null.headers", b"null")]
    assert two.headers == [("lone ?", b"1")]


@pytest.mark.kafka
def test_letters_into_the_topic_that_is_read_are_refused(bootstrap, topic, tmp_path):
    name, url = topic(), f"sqlite:///{tmp_path}/s.db"
    where = ("--bootstrap", bootstrap, "--topic", name, "--fields", "a,b", "--store", url)
    done = CliRunner().invoke(cli, ["live", "m", *where, "--dead-letters", name])
    assert isinstance(done.exception, SettingsError)
    assert "each dead letter would be read as a record" in str(done.exception)


@pytest.fixture
def run(tmp_path):
    """Runs ``streamkm quarantine`` on a store with three records in it."""
    url = f"sqlite:///{tmp_path}/s.db"
    with contextlib.closing(open_store(url)) as store:
        lease = owned(store)
        for seq in (1, 2, 3):
            store.commit(lease, commit_of(seq, bad=True))
        store.mark_delivered("m", [(bad_of(2).record.partition, bad_of(2).record.offset)], 5.0)

    def call(command, *arguments, code=0):
        done = CliRunner().invoke(cli, ["quarantine", command, *arguments, "--store", url], env={"COLUMNS": "200"})
        assert done.exit_code == code, done.output
        return done.output

    return call


def test_the_quarantine_is_listed_newest_first(run):
    out = run("list", "m")
    assert "3 in quarantine: 3 not-json" in out
    assert out.index("orders-0-29") < out.index("orders-0-19") < out.index("orders-0-9")
    assert "commit 3: not JSON at byte 1" in out
    assert "orders-0-9" not in run("list", "m", "--limit", "2")
    listed = json.loads(run("list", "m", "--json", "--limit", "1"))
    assert (listed["total"], listed["reasons"]) == (3, {"not-json": 3})
    (one,) = listed["records"]
    assert (one["topic"], one["partition"], one["offset"], one["reason"]) == ("orders", 0, 29, "not-json")
    assert (one["value"], one["value_bytes"], one["key"]) == ("{", 1, "\ufffd\x00")
    assert json.loads(run("list", "m", "--json", "--reason", "too-large"))["records"] == []


def test_one_record_is_shown_whole(run):
    for place in ("orders-0-19", "orders-0@19"):
        out = run("show", "m", place)
        assert "orders-0-19: commit 2: not JSON at byte 1" in out
        for line in ("reason     not-json", "letter     delivered", "header     h: fe (hex)", "header     none: null",
                     "key        ff00 (hex)", "value      {"):  # fmt: skip
            assert line in out
    shown = json.loads(run("show", "m", "orders-0-9", "--json"))
    assert (shown["value_base64"], shown["key_base64"], shown["delivered_at"]) == ("ew==", "/wA=", None)
    assert "is not TOPIC-PARTITION-OFFSET" in run("show", "m", "orders", code=2)


def test_which_records_to_try_again_must_be_said(run, tmp_path):
    url = f"sqlite:///{tmp_path}/s.db"
    for wrong in ((), ("--all", "--reason", "x"), ("orders-0-9", "--all")):
        done = CliRunner().invoke(cli, ["quarantine", "retry", "m", *wrong, "--store", url])
        assert isinstance(done.exception, SettingsError)
        assert "say which records" in str(done.exception)
    # The stored codec of these checks names no fields.
    with contextlib.closing(sqlite3.connect(tmp_path / "s.db")) as database, database:
        database.execute("""UPDATE streamkm_models SET spec = json_set(spec, '$.codec.fields', json('["x"]'))""")
    assert "0 of 3 can be decoded now" in run("retry", "m", "--all", "--dry-run")


def test_bytes_are_shown_as_text_where_they_are_text_and_never_cut_in_the_middle_of_a_letter():
    assert decoded("aé".encode(), 2) == decoded("aé".encode()[:2], None, 3) == "a"
    assert decoded("aé".encode()[:2], None) is None
    assert decoded(b"\x00\x01", None) is None
    assert decoded(b"\xff" * 10, 3) is None
    assert decoded(b"two\nlines", None) == "two\nlines"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (b"{nope \x1b[31m", "{nope \x1b[31m"),  # escaped when printed
        (b"\x00\x01\x02", "000102 (hex)"),
        (b"\xff\xfe", "fffe (hex)"),
        ("é\t{".encode(), "é\t{"),
    ],
)
def test_bytes_for_people_are_text_where_most_of_them_are(value, shown):
    assert _readable(value, 100, None) == shown
