"""The spec of a model from settings, and from what the store has."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace

from streamkm.connectors.base import Source
from streamkm.errors import NotFoundError, SettingsError
from streamkm.settings import LiveSettings, given
from streamkm.state import CodecSpec, Json, ModelSpec
from streamkm.stores.base import ModelStore


def codec_spec(settings: LiveSettings) -> CodecSpec:
    """The spec of the codec."""
    options = {"time_field": settings.time_field or None, "max_bytes": settings.max_record_bytes}
    return CodecSpec("json", settings.fields, options)


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
    model: str, settings: LiveSettings, store: ModelStore, open_source: Callable[[str, CodecSpec], Source]
) -> tuple[ModelSpec, str]:
    """The spec of the model to run, and its topic.

    For an existing model, settings that are not given are those of the stored spec.

    Parameters
    ----------
    model
        Name of the model.
    settings
        Settings, with those that were given.
    store
        Store that may have the model.
    open_source
        Opens the source of a topic and a codec's spec, which says which topic it is.

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
    with contextlib.closing(open_source(topic, spec.codec)) as source:
        return replace(spec, source=source.identity()), topic


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
