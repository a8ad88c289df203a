"""``streamkm feed``: sample records in a real topic."""

from __future__ import annotations

import contextlib
import json
import uuid

import kafka
import pytest

from processes import run
from secured_broker import Secured, secured

__all__ = ["secured"]

pytestmark = pytest.mark.kafka


def test_a_topic_is_made_and_gets_as_many_records_as_were_asked_for(bootstrap, admin):
    name = f"test-{uuid.uuid4().hex[:12]}"
    try:
        for records in (0, 1000):
            done = run("feed", name, "--bootstrap", bootstrap, "--records", str(records), "--rate", "100000")
            assert done.returncode == 0, done.stderr
            assert f"wrote {records:,} records into {name}" in done.stdout
        with contextlib.closing(kafka.KafkaConsumer(bootstrap_servers=bootstrap)) as consumer:
            partitions = [kafka.TopicPartition(name, p) for p in range(3)]
            ends = consumer.end_offsets(partitions)
            assert sorted(ends.values()) == [333, 333, 334]
            consumer.assign(partitions[:1])
            consumer.seek_to_beginning()
            (first, *_), *_ = consumer.poll(10_000).values()
        assert set(json.loads(first.value)) == {f"f{i}" for i in range(1, 10)}
    finally:
        admin.delete_topics([name])


def test_a_topic_that_exists_may_have_fewer_partitions_than_ours_have(bootstrap, topic):
    name = topic(partitions=2)
    done = run("feed", name, "--bootstrap", bootstrap, "--records", "100", "--rate", "100000")
    assert done.returncode == 0, done.stderr
    with contextlib.closing(kafka.KafkaConsumer(bootstrap_servers=bootstrap)) as consumer:
        assert list(consumer.end_offsets([kafka.TopicPartition(name, p) for p in range(2)]).values()) == [50, 50]


def test_a_broker_that_is_not_there_is_said_so():
    done = run("feed", "t", "--bootstrap", "127.0.0.1:1")
    assert done.returncode == 4
    assert "127.0.0.1:1" in done.stderr
    assert "Is it running" in done.stderr


def test_it_writes_to_a_broker_with_login_and_reports_why_one_refuses(secured: Secured, tmp_path):
    def fed(login):
        config = tmp_path / "streamkm.toml"
        config.write_text(f"kafka_property = {json.dumps([f'{name}={value}' for name, value in login.items()])}\n")
        at = ("--bootstrap", secured.sasl, "--config", str(config))
        return run("feed", "fed", *at, "--records", "10", "--rate", "1000")

    done = fed(secured.login())
    assert done.returncode == 0, done.stderr
    assert "wrote 10 records into fed" in done.stdout
    refused = fed(secured.login(**{"sasl.password": "wrong-password"}))
    assert refused.returncode == 4
    assert "login failed" in refused.stderr
    assert "wrong-password" not in refused.stderr
