"""Downloads Kafka and shortens later starts of a local broker."""

from __future__ import annotations

import os

from streamkm.broker.distribution import Distribution, get_distribution
from streamkm.broker.local import LocalBroker
from streamkm.broker.progress import announce

_WRITE_SECONDS = 120.0
"""Maximum time for the JVM to write its cache, s."""


def prepare(*, fast_start: bool = False, quiet: bool = False) -> Distribution:
    """Download Kafka if it is not in the cache, and optionally create an ahead-of-time cache of the JVM.

    A JVM with an ahead-of-time cache of Kafka's classes (JEP 483, 515) starts in half the time. It is written once,
    when a broker that has processed some requests ends; this takes about 15 s and is meant for set-up scripts and
    images.

    Parameters
    ----------
    fast_start
        Create the ahead-of-time cache unless it exists.
    quiet
        Print nothing on stderr.

    Returns
    -------
    Distribution
        Content of the cache.

    Raises
    ------
    DownloadError
        Kafka cannot be downloaded.
    LocalBrokerError
        The extra is not installed, the cache is not writable, or the broker died.
    """
    found = get_distribution(quiet=quiet)
    if fast_start and not found.aot_cache.exists():
        announce("Creating a start cache for Apache Kafka (once)", quiet=quiet)
        partial = found.aot_cache.with_suffix(f".{os.getpid()}.partial")
        try:
            broker = LocalBroker(jvm_options=[f"-XX:AOTCacheOutput={partial}"], quiet=quiet).start()
            try:
                _generate_load(broker)
            finally:
                broker.stop(_WRITE_SECONDS)  # the JVM writes the cache as it ends
            if partial.exists():
                partial.replace(found.aot_cache)
            else:
                announce("This Java cannot write a start cache; starts are not faster", quiet=quiet)
        finally:
            partial.unlink(missing_ok=True)
    return found


def _generate_load(broker: LocalBroker) -> None:
    """Make the broker load the classes that clients need."""
    from kafka import KafkaConsumer, KafkaProducer  # type: ignore[import-untyped] # noqa: PLC0415 - slow to import

    broker.create_topic("load")
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap)
    producer.send("load", b"1").get(30)
    producer.close()
    consumer = KafkaConsumer("load", bootstrap_servers=broker.bootstrap, group_id="load", auto_offset_reset="earliest")
    consumer.poll(timeout_ms=5000)
    consumer.commit()
    consumer.close()
