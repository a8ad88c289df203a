"""Make sources, writers, codecs and engines from settings."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from streamkm.codecs import Codec, CodecResources, make_codec
from streamkm.codecs.base import DEFAULT_MAX_BYTES
from streamkm.connectors import KafkaSource, KafkaTransactionalWriter, KafkaWriter, MemorySource
from streamkm.engine import Engine, EngineOptions
from streamkm.errors import NotFoundError, SettingsError
from streamkm.metrics import Metrics
from streamkm.models import compile_kernels
from streamkm.settings import AssignSettings, LiveSettings, NotifySettings, ReplaySettings, SourceSettings, given
from streamkm.state import CodecSpec, Json, ModelSpec
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


def codec_spec(settings: LiveSettings) -> CodecSpec:
    """The spec of the codec."""
    options = {"time_field": settings.time_field or None, "max_bytes": settings.max_record_bytes}
    return CodecSpec("json", settings.fields, options)


def codec_resources() -> CodecResources:
    """Clients and secrets of the codecs that read a stream: none, as no setting names any yet."""
    return CodecResources()


def learner_spec(settings: LiveSettings) -> Json:
    """The spec of the learner, without k."""
    h = settings.half_life
    return {
        "kind": "OnlineKMeans",
        "half_life": h.value if h else None,
        "half_life_unit": h.unit if h else "points",
        "scale": settings.scale,
        "distance": settings.distance,
        "on_drift": settings.on_drift,
        "outliers": settings.outliers,
        "seed": settings.seed,
    }


_SETTING_OF = {"half_life_unit": "half_life", "max_bytes": "max_record_bytes"}
"""Keys of a spec -> settings of another name."""


def model_spec(
    model: str, settings: LiveSettings, store: Store, should_stop: Callable[[], bool] = lambda: False
) -> tuple[ModelSpec, str]:
    """The spec of the model to run, and its topic.

    For an existing model, settings that are not given are those of the stored spec.

    Raises
    ------
    SettingsError
        Fields or topic are missing, and there is no stored model.
    """
    try:
        stored: ModelSpec | None = store.model(model).spec
    except NotFoundError as e:
        stored = None
        if not settings.topic and not settings.fields:
            raise SettingsError(
                "no topic and no fields, and no stored model of this name",
                where=f"model {model}",
                hint="Give --topic TOPIC and --fields A,B,...",
            ) from e
        for name in ("topic", "fields"):
            if not getattr(settings, name):
                raise SettingsError(
                    f"--{name} is missing", where=f"model {model}", hint="A new model needs both --topic and --fields"
                ) from e
    topic = settings.topic or str(stored.source["topic"] if stored else "")
    given_spec = ModelSpec(
        name=model,
        fields=settings.fields,
        n_clusters=settings.k,
        source={},
        learner=learner_spec(settings),
        codec=codec_spec(settings),
    )
    spec = given_spec if stored is None else _merged(given_spec, stored, given(settings))
    # A wrong address is an error now; later the consumer waits for an unavailable broker.
    source = source_opener(topic, settings, spec.codec, should_stop=should_stop)()
    try:
        identity = source.identity()
    finally:
        source.close()
    return replace(spec, source=identity), topic


def _merged(given_spec: ModelSpec, stored: ModelSpec, named: frozenset[str]) -> ModelSpec:
    """The stored spec with the settings that were given; the engine compares the two, and refuses differences.

    Parameters
    ----------
    named
        Names of the settings that were given.
    """
    learner, options = (
        {name: value for name, value in part.items() if _SETTING_OF.get(name, name) in named}
        for part in (given_spec.learner, given_spec.codec.options)
    )
    return replace(
        stored,
        fields=given_spec.fields if "fields" in named and given_spec.fields else stored.fields,
        n_clusters=given_spec.n_clusters if "k" in named else stored.n_clusters,
        learner={**stored.learner, **learner},
        codec=CodecSpec(
            stored.codec.kind, given_spec.fields or stored.codec.fields, {**stored.codec.options, **options}
        ),
    )


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
    spec, topic = model_spec(model, settings, store, should_stop)
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
