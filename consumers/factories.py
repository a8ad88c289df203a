"""Make sources, writers, codecs and engines from settings."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable

import numpy as np

from streamkm.codecs import Codec, CodecResources, make_codec
from streamkm.codecs.base import DEFAULT_MAX_BYTES
from streamkm.connectors import KafkaSource, KafkaTransactionalWriter, KafkaWriter, MemorySource
from streamkm.engine import Engine, EngineOptions
from streamkm.engine.model_spec import model_spec
from streamkm.errors import SettingsError
from streamkm.metrics import Metrics
from streamkm.models import compile_kernels
from streamkm.settings import AssignSettings, LiveSettings, NotifySettings, ReplaySettings, SourceSettings
from streamkm.state import CodecSpec
from streamkm.stores.base import Store

_ENGINE_OPTIONS = [field.name for field in dataclasses.fields(EngineOptions) if field.name != "owner"]
"""Options of the engine that are settings of the same name."""


def source_opener(
    topic: str,
    settings: SourceSettings | ReplaySettings | AssignSettings,
    codec: CodecSpec,
    group: str | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Callable[[], KafkaSource]:
    """A function that opens a Kafka source; without a group no offsets are committed to Kafka.

    `should_stop` ends the wait for a broker.
    """
    return functools.partial(
        KafkaSource.connect,
        settings.bootstrap,
        topic,
        group_id=group,
        client=settings.kafka_properties,
        max_decompressed_bytes=settings.max_decompressed,
        max_value_bytes=int(codec.options.get("max_bytes", DEFAULT_MAX_BYTES)),
        should_stop=should_stop,
    )


def writer_opener(
    settings: SourceSettings | NotifySettings, should_stop: Callable[[], bool] = lambda: False
) -> Callable[[], KafkaWriter]:
    """A function that opens a writer to the Kafka cluster of the records."""
    return lambda: KafkaWriter(settings.bootstrap, client=settings.kafka_properties, should_stop=should_stop)


def transactions_opener(
    name: str, settings: AssignSettings, should_stop: Callable[[], bool] = lambda: False
) -> Callable[[], KafkaTransactionalWriter]:
    """A function that opens a transactional writer to the Kafka cluster of the records."""
    return lambda: KafkaTransactionalWriter(
        settings.bootstrap, name, client=settings.kafka_properties, should_stop=should_stop
    )


def codec_resources() -> CodecResources:
    """Clients and secrets of the codecs that read a stream: none, as no setting names any yet."""
    return CodecResources()


def warm_up(codec: Codec) -> float:
    """Compile the kernels of models and codec, or load them from the cache; returns the duration in seconds."""
    started = time.perf_counter()
    compile_kernels([np.float64])  # the dtype of codecs
    source = MemorySource.from_values([[b"{}", b"[1.5]"]])
    source.seek(source.beginning())
    for records in source.poll(0.0, 2):
        codec.decode(records)
    return time.perf_counter() - started


def make_engine(
    model: str, settings: LiveSettings, store: Store, metrics: Metrics, should_stop: Callable[[], bool] = lambda: False
) -> Engine:
    """The engine of ``streamkm live``."""
    spec, topic = model_spec(
        model, settings, store, lambda topic, codec: source_opener(topic, settings, codec, should_stop=should_stop)()
    )
    if settings.dead_letters == topic:
        raise SettingsError(
            f"{topic} is the topic of the records: each dead letter would be read as a record",
            where="--dead-letters",
            hint=f"Name another topic, such as {topic}.dead",
        )
    return Engine(
        spec,
        open_source=source_opener(topic, settings, spec.codec, settings.group or f"streamkm-{model}", should_stop),
        codec=make_codec(spec.codec, codec_resources()),
        store=store,
        options=EngineOptions(**{name: getattr(settings, name) for name in _ENGINE_OPTIONS}),
        metrics=metrics,
        open_writer=writer_opener(settings, should_stop),
    )
