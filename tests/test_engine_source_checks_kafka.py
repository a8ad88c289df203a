"""Retention, deletion and new partitions of a real topic under a model that reads it."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from typing import Any

import kafka
import pytest

from kafka_traffic import make_anew, produce
from processes import program, run, run_apart
from streamkm.codecs import make_codec
from streamkm.connectors import KafkaSource
from streamkm.engine import Engine, EngineOptions
from streamkm.engine.source_manager import DISCOVERY_SECONDS
from streamkm.errors import PositionLostError, TopicChangedError, TopicNotFoundError
from streamkm.records import TopicPartition
from streamkm.state import CodecSpec, Counters, ModelSpec
from streamkm.stores import Store, open_store
from waiting import PATIENCE

pytestmark = pytest.mark.kafka


def values(n: int, start: int = 0) -> list[bytes | None]:
    return [b'{"x": %d, "y": %d}' % (i % 7, 100 * (i % 2)) for i in range(start, start + n)]


class Until:
    """A stop request once a condition holds; fails after `PATIENCE`."""

    def __init__(self, condition: Callable[[], bool]) -> None:
        self.condition, self.deadline = condition, time.monotonic() + PATIENCE

    def is_set(self) -> bool:
        assert time.monotonic() < self.deadline, "the condition never held"
        return self.condition()

    def wait(self, timeout: float) -> bool:
        time.sleep(timeout)
        return self.is_set()


def engine(bootstrap: str, topic: str, store: Store, **options: Any) -> Engine:
    codec = CodecSpec("json", ("x", "y"), {"time_field": None, "max_bytes": 1000})
    with contextlib.closing(KafkaSource.connect(bootstrap, topic)) as source:
        identity = source.identity()
    return Engine(
        ModelSpec("m", ("x", "y"), 2, identity, {"kind": "OnlineKMeans", "warmup": 50, "seed": 1}, codec),
        open_source=lambda: KafkaSource.connect(bootstrap, topic),
        codec=make_codec(codec),
        store=store,
        options=EngineOptions(checkpoint_every=0.05, **options),
    )


def counters(store: Store) -> Counters:
    progress = store.model("m").progress if store.models() else None
    return progress.counters if progress is not None else Counters()


def test_what_retention_took_ends_the_program_or_is_skipped_counted_and_proven(
    bootstrap: str, topic: Any, admin: Any, tmp_path: Any
) -> None:
    name, url, log = topic(partitions=2), f"sqlite:///{tmp_path}/s.db", tmp_path / "log"
    at = ("--store", url, "--bootstrap", bootstrap)
    produce(bootstrap, name, values(300))
    with contextlib.closing(open_store(url)) as store:
        engine(bootstrap, name, store).run(Until(lambda: counters(store).points == 300))
        produce(bootstrap, name, values(100), partition=1)
        admin.delete_records({kafka.TopicPartition(name, 1): 40})
        with pytest.raises(PositionLostError, match="--on-data-loss skip") as refused:
            engine(bootstrap, name, store).run(Until(lambda: False))
        assert f"{name}-1@0: 40 records were deleted before they were read: {name}-1 begins at 40" in str(refused.value)
        with program(log, "live", "m", *at, "--on-data-loss", "skip") as owner:
            owner.until(lambda: counters(store).points == 360)
            assert owner.leave() == 0
        assert counters(store) == Counters(360, 360, lost=40)
        progress = store.model("m").progress
        assert progress is not None
        assert sum(progress.position.values()) == 360 + 40
    assert f"40 records were deleted before they were read, skipped: {name}-1@0 to 39" in log.read_text()
    verdict = run("verify", "m", *at, "--json")
    assert verdict.returncode == 0, verdict.stdout + verdict.stderr
    found = json.loads(verdict.stdout)
    assert (found["equal"], found["points"]) == (True, 360)
    assert [{**gap, "commit": 0} for gap in found["lost"]] == [
        {"commit": 0, "partition": f"{name}-1", "start": 0, "stop": 40}
    ]


def test_a_topic_made_anew_under_a_running_model_ends_it_and_is_refused_for_ever_after(
    bootstrap: str, topic: Any, admin: Any, tmp_path: Any
) -> None:
    name, url = topic(partitions=1), f"sqlite:///{tmp_path}/s.db"
    produce(bootstrap, name, values(300))
    with contextlib.closing(open_store(url)) as store:

        def anew() -> bool:
            if counters(store).points == 300 and store.model("m").last_snapshot and not again:
                make_anew(admin, name)
                produce(bootstrap, name, values(1000))
                again.append(name)
            return False

        again: list[str] = []
        with pytest.raises((TopicChangedError, TopicNotFoundError)):
            engine(bootstrap, name, store, on_data_loss="skip").run(Until(anew))
        assert counters(store) == Counters(300, 300), "no records of the new topic"
    for command in (("live", "m", "--on-data-loss", "skip"), ("verify", "m"), ("replay", "m")):
        refused = run_apart(*command, "--store", url, "--bootstrap", bootstrap)
        assert refused.returncode == 4, refused.stderr
        assert "this is not the topic that the model has read: the topic's id was" in refused.stderr
        assert "another name" in refused.stderr


def test_a_topic_that_is_deleted_under_a_running_model_ends_it(bootstrap: str, topic: Any, admin: Any) -> None:
    name, store = topic(partitions=1), open_store("memory://")
    produce(bootstrap, name, values(300))
    deleted: list[str] = []

    def delete() -> bool:
        if counters(store).points == 300 and not deleted:
            admin.delete_topics([name])
            deleted.append(name)
        return False

    with pytest.raises(TopicNotFoundError, match=name):
        engine(bootstrap, name, store).run(Until(delete))
    assert counters(store).points == 300


def test_partitions_that_are_added_are_read_within_seconds_without_a_restart(
    bootstrap: str, topic: Any, admin: Any
) -> None:
    assert DISCOVERY_SECONDS < 10, "the interval of the check; the test itself does not depend on a clock"
    name, store = topic(partitions=1), open_store("memory://")
    produce(bootstrap, name, values(300))
    added: list[str] = []

    def add() -> bool:
        if counters(store).points == 300 and not added:
            admin.create_partitions({name: 3})
            produce(bootstrap, name, values(50), partition=2)
            added.append(name)
        return counters(store).points == 350

    engine(bootstrap, name, store).run(Until(add))
    progress = store.model("m").progress
    assert progress is not None
    assert progress.position == {TopicPartition(name, 0): 300, TopicPartition(name, 1): 0, TopicPartition(name, 2): 50}
