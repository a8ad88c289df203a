"""Consumer groups that other programs use too: changed offsets are not used, and conflicts are reported."""

from __future__ import annotations

import contextlib
import socket
import struct
import uuid
from typing import Any

import kafka
import pytest

from kafka_traffic import produce
from secured_broker import Secured, secured
from streamkm.codecs import make_codec
from streamkm.connectors import KafkaSource, KafkaTransactionalWriter
from streamkm.connectors.kafka.metadata import group_conflict
from streamkm.delivery import Assigner, AssignOptions
from streamkm.errors import SettingsError
from streamkm.stores import open_store
from test_assign import CODEC, published, read_committed, until
from waiting import wait_until

__all__ = ["secured"]
pytestmark = pytest.mark.kafka

VALUES: list[bytes | None] = [b"[%d, 0]" % i for i in range(300)]


def assigner(bootstrap: str, topic: str, store: Any, start: str | None = None) -> Assigner:
    return Assigner(
        "m",
        f"{topic}.out",
        open_source=lambda: KafkaSource.connect(bootstrap, topic),
        open_writer=lambda: KafkaTransactionalWriter(bootstrap, f"streamkm-m-assign:{topic}.out"),
        codec=make_codec(CODEC),
        store=store,
        options=AssignOptions(start=start),
    )


def heartbeat_of_a_share_group(bootstrap: str, group: str, topic: str) -> int:
    """Join a share group, which kafka-python does not support; returns the error code, 0 for success."""
    host, port = bootstrap.split(":")
    texts = [bytes([len(text) + 1]) + text.encode() for text in (group, str(uuid.uuid4()), topic)]
    body = texts[0] + texts[1] + struct.pack(">i", 0) + b"\0" + b"\2" + texts[2] + b"\0"
    request = struct.pack(">hhih", 76, 1, 7, -1) + b"\0" + body
    with socket.create_connection((host, int(port))) as sock, sock.makefile("rb") as answers:
        sock.sendall(struct.pack(">i", len(request)) + request)
        (size,) = struct.unpack(">i", answers.read(4))
        (error,) = struct.unpack_from(">h", answers.read(size), 9)
    return int(error)


def test_offsets_committed_by_another_program_do_not_skip_records_silently(secured: Secured) -> None:
    bootstrap, topic = secured.plain, f"t-{uuid.uuid4().hex[:8]}"
    store = open_store("memory://")
    published(store, {"kind": "memory"})
    with contextlib.closing(kafka.KafkaAdminClient(bootstrap_servers=bootstrap)) as admin:
        admin.create_topics({topic: {"num_partitions": 1, "replication_factor": 1}}, wait_for_metadata=True)
        produce(bootstrap, topic, VALUES)
        working = assigner(bootstrap, topic, store)
        until(working, lambda: working.counts.assigned == 300)

        group = f"streamkm-m-assign:{topic}.out"
        produce(bootstrap, topic, VALUES)
        with contextlib.closing(
            kafka.KafkaConsumer(topic, bootstrap_servers=bootstrap, group_id=group, auto_offset_reset="earliest")
        ) as stranger:
            wait_until(lambda: bool(stranger.poll(500)))
            assert "active members" in group_conflict(admin, group)
            with pytest.raises(SettingsError, match="active members"):
                until(assigner(bootstrap, topic, store), lambda: False)
        wait_until(lambda: not group_conflict(admin, group))  # it has committed and left
        with pytest.raises(SettingsError, match=f"another program has changed the committed position: {topic}-0@600"):
            until(assigner(bootstrap, topic, store), lambda: False)

        again = assigner(bootstrap, topic, store, "beginning")
        until(again, lambda: again.counts.assigned == 600)
    (out,) = read_committed(bootstrap, f"{topic}.out").values()
    assert len(out) == 900


def test_a_share_group_of_the_name_is_reported(secured: Secured, caplog: pytest.LogCaptureFixture) -> None:
    bootstrap, topic = secured.plain, f"t-{uuid.uuid4().hex[:8]}"
    store = open_store("memory://")
    published(store, {"kind": "memory"})
    with contextlib.closing(kafka.KafkaAdminClient(bootstrap_servers=bootstrap)) as admin:
        admin.create_topics({topic: {"num_partitions": 1, "replication_factor": 1}}, wait_for_metadata=True)
        admin.update_features({"share.version": 1})
        with contextlib.closing(kafka.KafkaConsumer(topic, bootstrap_servers=bootstrap, group_id="first")) as consumer:
            wait_until(lambda: bool(consumer.poll(100) or consumer.assignment()))  # the coordinator exists now
        for group in (f"streamkm-m-assign:{topic}.out", "streamkm-shared"):
            wait_until(lambda group=group: heartbeat_of_a_share_group(bootstrap, group, topic) == 0)
            assert group_conflict(admin, group).startswith(f"a share group has the name {group}")
    with pytest.raises(SettingsError, match="a share group has the name streamkm-m-assign"):
        until(assigner(bootstrap, topic, store), lambda: False)
    # It does not accept offsets committed for monitoring tools either: a warning, and nothing stops.
    with contextlib.closing(KafkaSource.connect(bootstrap, topic, group_id="streamkm-shared")) as source:
        source.commit(source.end())
        wait_until(lambda: "a share group has the name streamkm-shared" in caplog.text)
