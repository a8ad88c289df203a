"""Everything that makes the next start of a local broker quick."""

from __future__ import annotations

import os

from streamkm.broker.distribution import Distribution, get_distribution
from streamkm.broker.local import LocalBroker
from streamkm.broker.progress import announce

_WRITE_SECONDS = 120.0


def prepare(*, fast_start: bool = False, quiet: bool = False) -> Distribution:
    """Download Kafka if need be, and optionally train the JVM's start.

    A JVM that has an ahead-of-time cache of Kafka's classes (JEP 483, 515) starts in half the time. It is written once,
    at the end of a broker that did a little of everything, which takes some 15 s: for set-up scripts and images.

    Parameters
    ----------
    fast_start
        Write the ahead-of-time cache, unless it is there.
    quiet
        Say nothing on stderr.

    Returns
    -------
    Distribution
        What is in the cache now.

    Raises
    ------
    DownloadError
        Kafka cannot be downloaded.
    LocalBrokerError
        The extra is not installed, the cache cannot be written, or the training broker died.
    """
    found = get_distribution(quiet=quiet)
    if fast_start and not found.start_cache.exists():
        announce("Training the start of Apache Kafka (once)", quiet=quiet)
        partial = found.start_cache.with_suffix(f".{os.getpid()}.partial")
        try:
            broker = LocalBroker(jvm_options=[f"-XX:AOTCacheOutput={partial}"], quiet=quiet).start()
            try:
                _exercise(broker)
            finally:
                broker.stop(_WRITE_SECONDS)  # the JVM writes the cache as it ends
            if partial.exists():
                partial.replace(found.start_cache)
            else:
                announce("This Java cannot write a start cache; starts stay as they are", quiet=quiet)
        finally:
            partial.unlink(missing_ok=True)
    return found


def _exercise(broker: LocalBroker) -> None:
    """Let the broker load the classes that clients make it load."""
    from kafka import KafkaConsumer, KafkaProducer  # type: ignore[import-untyped] # noqa: PLC0415 - slow to import

    broker.create_topic("training")
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap)
    producer.send("training", b"1").get(30)
    producer.close()
    consumer = KafkaConsumer(
        "training", bootstrap_servers=broker.bootstrap, group_id="training", auto_offset_reset="earliest"
    )
    consumer.poll(timeout_ms=5000)
    consumer.commit()
    consumer.close()
