"""Records of every kind on a real topic, for tests of readers."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Sequence
from typing import Any

import kafka
import kafka.errors

from waiting import PATIENCE, wait_until

CODECS = (None, "gzip", "lz4", "zstd", "snappy")


def produce(bootstrap: str, topic: str, values: Sequence[bytes | None], partition: int = 0, **config: Any) -> None:
    """Write values, and wait until the broker has them."""
    with contextlib.closing(kafka.KafkaProducer(bootstrap_servers=bootstrap, **config)) as producer:
        for value in values:
            producer.send(topic, value, key=b"k" if value is None else None, partition=partition)
        producer.flush(PATIENCE)


def make_anew(admin: kafka.KafkaAdminClient, name: str, partitions: int = 1) -> None:
    """Delete a topic, and create another one of its name."""
    admin.delete_topics([name])

    def made() -> bool:
        with contextlib.suppress(kafka.errors.TopicAlreadyExistsError):
            admin.create_topics({name: {"num_partitions": partitions, "replication_factor": 1}}, wait_for_metadata=True)
            return True
        return False

    wait_until(made)


class Transactions:
    """A transactional producer."""

    def __init__(self, bootstrap: str, name: str, **config: Any) -> None:
        self.producer = kafka.KafkaProducer(bootstrap_servers=bootstrap, transactional_id=name, **config)
        self.producer.init_transactions()

    def write(self, topic: str, values: Sequence[bytes | None], partition: int = 0, *, commit: bool = True) -> None:
        """One transaction."""
        self.begin(topic, values, partition)
        self.producer.commit_transaction() if commit else self.producer.abort_transaction()

    def begin(self, topic: str, values: Sequence[bytes | None], partition: int = 0) -> None:
        """Open a transaction and leave it open."""
        self.producer.begin_transaction()
        for value in values:
            self.producer.send(topic, value, key=b"t", partition=partition)
        self.producer.flush(PATIENCE)

    def close(self) -> None:
        self.producer.close()


def write_everything(bootstrap: str, topic: str, partitions: int) -> None:
    """All compressions, batch sizes, headers, nulls, and committed, aborted and interleaved transactions."""
    rng = random.Random(7)
    for codec in CODECS:
        config = {"compression_type": codec, "linger_ms": 50, "batch_size": rng.choice([200, 4000, 100_000])}
        with contextlib.closing(kafka.KafkaProducer(bootstrap_servers=bootstrap, **config)) as producer:
            for i in range(120):
                text = f'{{"x": {i}, "codec": "{codec}"}}'.encode() * (i % 4)
                value = None if i % 17 == 3 else b"" if i % 19 == 5 else text
                producer.send(
                    topic,
                    value,
                    key=None if i % 3 and value is not None else f"key-{i}".encode(),
                    headers=[("h", b"1"), ("h", b""), ("long", b"v" * 300)][: i % 4],
                    partition=i % partitions,
                    timestamp_ms=1_700_000_000_000 + rng.randrange(-5000, 5000),
                )
                if i % 40 == 0:
                    producer.flush(PATIENCE)
            producer.flush(PATIENCE)
    with (
        contextlib.closing(Transactions(bootstrap, f"{topic}-1", compression_type="lz4")) as one,
        contextlib.closing(Transactions(bootstrap, f"{topic}-2")) as two,
    ):
        for p in range(partitions):
            one.write(topic, [b"committed"] * 3, p)
            one.write(topic, [b"aborted"] * 3, p, commit=False)
            one.begin(topic, [b"interleaved, aborted"] * 2, p)
            two.begin(topic, [b"interleaved, committed"] * 2, p)
            produce(bootstrap, topic, [b"plain between"], p)
            two.producer.commit_transaction()
            one.producer.abort_transaction()
            one.write(topic, [b"committed after abort"], p)
            two.write(topic, [b"aborted at the end"], p, commit=False)
