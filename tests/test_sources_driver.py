"""The state machine of `KafkaSource`, with a client in memory that does on cue what Kafka does rarely."""

from __future__ import annotations

import threading

import pytest

from streamkm.connectors import KafkaSource
from streamkm.connectors.kafka import background, source
from streamkm.connectors.kafka.driver import ErrorKind
from streamkm.errors import (
    BrokerUnreachableError,
    CorruptBatchError,
    PositionLostError,
    SettingsError,
    SourceClosedError,
    SourceError,
    TopicChangedError,
    TopicNotFoundError,
)
from streamkm.records import RawRecord, TopicPartition
from streamkm.testing import InMemoryKafkaError, KafkaClusterInMemory, KafkaDriverInMemory, ManualClock
from waiting import wait_until

P0, P1, P2 = (TopicPartition("t", i) for i in range(3))


def records(partition, offsets):
    return [RawRecord(partition, i, 1000 * i, b"k", b"%d" % i) for i in offsets]


class World:
    """A topic of two partitions, and a source that reads it from the beginning."""

    def __init__(self, **options):
        self.cluster, self.clock = KafkaClusterInMemory(), ManualClock()
        self.cluster.create_topic("t", 2)
        self.cluster.append([*records(P0, range(5)), *records(P1, range(3))])
        self.driver = KafkaDriverInMemory(self.cluster, self.clock.monotonic)
        self.source = KafkaSource(self.driver, "t", **options)
        self.driver.refresh()
        self.source.seek(self.source.beginning())

    def poll(self, most=100):
        return [(got.partition, got.start, got.stop, len(got)) for got in self.source.poll(0.0, most)]


@pytest.fixture
def w():
    world = World(group_id="g")
    yield world
    world.source.close()
    assert world.driver.closed


@pytest.mark.parametrize(
    ("kind", "error", "words"),
    [
        (ErrorKind.UNREACHABLE, BrokerUnreachableError, "no broker answered at memory:9092 while .*(what).*advertise"),
        (ErrorKind.POSITION_LOST, PositionLostError, "no longer in the topic.*what.*choose a new position"),
        (ErrorKind.CORRUPT_BATCH, CorruptBatchError, "batch cannot be read.*what.*Restore"),
        (ErrorKind.TOPIC_NOT_FOUND, TopicNotFoundError, "does not exist.*what"),
        (ErrorKind.SETTINGS, SettingsError, "the client in memory refuses its settings: what"),
        (ErrorKind.DENIED, SourceError, "denies access while .*: what.*credentials"),
        (ErrorKind.FAILED, SourceError, "the client in memory failed while .*: InMemoryKafkaError: what"),
    ],
)
@pytest.mark.parametrize("method", ["describe_topic", "cluster_id", "bounds", "offsets_at", "fetch"])
def test_an_error_of_the_client_is_chosen_by_its_kind_wherever_it_happens(w, method, kind, error, words):
    calls = {
        "describe_topic": w.source.identity,
        "cluster_id": w.source.identity,
        "bounds": w.source.end,
        "offsets_at": lambda: w.source.offsets_at(1.0),
        "fetch": lambda: w.source.poll(0.0, 1),
    }
    cause = w.driver.fail[method] = InMemoryKafkaError(kind, "what")
    with pytest.raises(error, match=f"(?s)t.*{words}") as raised:
        calls[method]()
    assert type(raised.value) is error
    assert raised.value.__cause__ is cause


def test_every_kind_of_error_is_checked():
    mark = next(m for m in test_an_error_of_the_client_is_chosen_by_its_kind_wherever_it_happens.pytestmark[::-1])
    assert {kind for kind, _, _ in mark.args[1]} == set(ErrorKind) - {ErrorKind.FOREIGN}


def test_an_error_of_another_library_while_reading_is_a_batch_that_cannot_be_read_with_its_place(w):
    w.driver.fail["fetch"] = ValueError("bad magic")
    with pytest.raises(CorruptBatchError, match=r"batch cannot be read \(ValueError: bad magic\)"):
        w.source.poll(0.0, 1)
    w.driver.fail["bounds"] = ValueError("what")
    other = KafkaSource(w.driver, "t")
    with pytest.raises(SourceError, match=r"the client in memory failed while asking .*: ValueError: what"):
        other.beginning()


def test_after_an_error_of_a_poll_the_client_is_not_asked_for_records_again(w):
    w.driver.fail["fetch"] = InMemoryKafkaError(ErrorKind.UNREACHABLE, "gone")
    for _ in range(3):
        with pytest.raises(BrokerUnreachableError, match="gone"):
            w.source.poll(0.0, 10)
    assert w.driver.requests["fetch"] == 1
    with pytest.raises(BrokerUnreachableError, match="gone"):
        w.source.end()
    assert w.source.position() == {P0: 0, P1: 0}


def test_ranges_tile_over_offsets_without_records(w):
    assert w.poll() == [(P0, 0, 5, 5), (P1, 0, 3, 3)]
    w.cluster.advance(P1, 7)
    assert w.poll() == [(P1, 3, 7, 0)]
    assert w.poll() == []
    w.cluster.append(records(P1, [7]))
    assert w.poll() == [(P1, 7, 8, 1)]


def test_a_silent_broker_is_noticed_after_three_refreshes_without_an_answer(w):
    w.poll()
    w.cluster.silent = True
    w.clock.advance(3 * w.driver.metadata_seconds)
    w.driver.refresh()
    assert w.poll() == []
    w.clock.advance(0.5)
    with pytest.raises(BrokerUnreachableError, match=r"while reading \(silent for 16 s\)"):
        w.source.poll(0.0, 10)


def test_a_broker_that_answers_without_records_is_not_silent(w):
    w.poll()
    for _ in range(10):
        w.clock.advance(w.driver.metadata_seconds)
        w.driver.refresh()
        assert w.poll() == []


def test_looking_for_partitions_asks_no_broker_while_the_client_has_heard_of_none(w):
    before = w.driver.requests.copy()
    for _ in range(5):
        w.driver.refresh()
        assert w.source.partitions() == (P0, P1)
    assert w.driver.requests == before
    w.cluster.add_partitions("t", 3)
    assert w.source.partitions() == (P0, P1)
    w.driver.refresh()
    assert w.source.partitions() == (P0, P1, P2)
    assert w.driver.requests["describe_topic"] == before["describe_topic"] + 1


def test_metadata_that_stay_behind_the_broker_are_asked_about_once(w):
    w.cluster.add_partitions("t", 4)
    w.source.identity()  # asks the broker; the client's metadata are older now
    before = w.driver.requests["describe_topic"]
    for _ in range(5):
        assert len(w.source.partitions()) == 4
    assert w.driver.requests["describe_topic"] == before + 1


def test_records_of_a_topic_that_was_recreated_are_not_confirmed(w):
    w.poll()
    w.source.begin_identity_check()
    w.source.confirm_identity()
    w.cluster.create_topic("t", 2)
    w.cluster.append([*records(P0, range(9)), *records(P1, range(3))])
    assert w.poll() == [(P0, 5, 9, 4)], "as fetches name a topic and not its id"
    with pytest.raises(TopicChangedError, match="recreated while it was read"):
        w.source.confirm_identity()
    w.driver.refresh()
    with pytest.raises(TopicChangedError):
        w.source.poll(0.0, 10)


def test_a_topic_that_is_gone_is_named_with_those_near_it(w):
    w.cluster.create_topic("tt")
    w.cluster.delete_topic("t")
    with pytest.raises(TopicNotFoundError, match=r"t on memory:9092.*Did you mean tt"):
        w.source.identity()


def test_a_check_of_the_identity_holds_only_for_what_was_polled_before_it(w):
    w.source.begin_identity_check()
    w.poll()  # later than the check
    before = w.driver.requests["describe_topic"]
    w.source.confirm_identity()
    assert w.driver.requests["describe_topic"] == before + 1


def test_a_broker_that_does_not_confirm_in_time_is_unreachable_and_may_confirm_later(w, monkeypatch):
    monkeypatch.setattr(source, "_CONFIRM_SECONDS", 0.01)
    answer = threading.Event()
    describe = w.driver.describe_topic
    monkeypatch.setattr(w.driver, "describe_topic", lambda topic: (answer.wait(), describe(topic))[1])
    w.poll()
    with pytest.raises(BrokerUnreachableError, match="confirmed the topic's identity within"):
        w.source.confirm_identity()
    answer.set()
    monkeypatch.undo()
    w.source.confirm_identity()


def test_what_retention_took_while_reading_is_lost_with_both_offsets(w):
    w.source.seek({P0: 1, P1: 0})
    w.cluster.truncate(P0, 4)
    with pytest.raises(PositionLostError, match="offset 1 was deleted: the partition begins at 4") as lost:
        w.source.poll(0.0, 10)
    assert lost.value.where == str(P0)


def test_records_before_an_unreadable_batch_come_first_and_the_lost_range_ends_with_the_topic(w):
    w.cluster.spoil(P0, 3, 1 << 40)
    assert w.poll()[0] == (P0, 0, 3, 3)
    with pytest.raises(CorruptBatchError) as broken:
        w.source.poll(0.0, 10)
    assert broken.value.lost == ("t", 0, 3, 5)


def test_a_time_after_all_records_is_the_end(w):
    assert w.source.offsets_at(1.5) == {P0: 2, P1: 2}
    assert w.source.offsets_at(3.0) == {P0: 3, P1: 3}
    assert w.source.offsets_at(99.0) == {P0: 5, P1: 3}


def test_a_commit_is_sent_until_the_group_has_it(w, monkeypatch):
    monkeypatch.setattr(background, "_RETRY_SECONDS", 0.01)
    w.driver.fail["commit_group"] = InMemoryKafkaError(ErrorKind.UNREACHABLE, "moving")
    w.source.commit({P0: 2})
    wait_until(lambda: w.cluster.groups.get("g") == {P0: 2})
    assert w.driver.requests["commit_group"] == 2
    assert w.driver.requests["group_conflict"] == 1


def test_a_source_without_a_group_commits_nothing():
    w = World()
    w.source.commit({P0: 2})
    w.source.close()
    assert w.cluster.groups == {}
    with pytest.raises(SourceClosedError):
        w.source.commit({P0: 2})
