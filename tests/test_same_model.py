"""An existing model keeps its settings: given settings are compared, others come from the stored spec."""

from __future__ import annotations

import pytest

from streamkm.connectors import MemorySource
from streamkm.engine.model_spec import model_spec
from streamkm.engine.source_checks import check_same_spec
from streamkm.errors import ModelMismatchError, SettingsError
from streamkm.settings import LiveSettings, load
from streamkm.stores import MemoryStore

MADE = {"topic": "t", "fields": "a,b", "k": "3", "half_life": "10m", "scale": "standard"}


def settings(**given):
    return load(LiveSettings, given, env={})


def opened(topic, _codec):
    return MemorySource.from_values([[]], topic=topic)


@pytest.fixture
def spec_of():
    """The spec that `streamkm live` would run over a store with a model that was made with `MADE`."""
    store = MemoryStore()

    def find(**given):
        return model_spec("m", settings(**given), store, opened)[0]

    store.create(find(**MADE), 0.0)
    return find, store.model("m").spec


@pytest.mark.parametrize(
    "given",
    [
        {},
        MADE,
        {"k": "3"},
        {"half_life": "600s", "fields": "a,b"},
        {"topic": "t"},
        {"topic": "t", "fields": "a,b", "batch": "9"},
        {"max_record_bytes": "1048576"},
    ],
    ids=str,
)
def test_what_is_given_as_it_was_or_not_at_all_is_the_same_model(spec_of, given):
    find, stored = spec_of
    check_same_spec(find(**given), stored)
    assert find(**given) == stored


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"k": "8"}, "k was 3, is 8"),
        ({"k": "auto"}, "k was 3, is auto"),
        ({"half_life": "1h"}, "half-life was 10m, is 1h"),
        ({"half_life": "600"}, "half-life was 10m, is 600"),
        ({"half_life": ""}, "half-life was 10m, is not set"),
        ({"scale": "none"}, "scale was standard, is none"),
        ({"fields": "b,a"}, "fields was a, b, is b, a"),
        ({"topic": "u"}, "topic was t, is u"),
        ({"time_field": "at"}, "time-field was not set, is at"),
        ({"max_record_bytes": "9"}, "max-record-bytes was 1048576, is 9"),
        ({"seed": "1", "distance": "cosine"}, "distance was euclidean, is cosine; seed was 0, is 1"),
    ],
    ids=str,
)
def test_what_is_given_otherwise_is_refused_in_words(spec_of, given, says):
    find, stored = spec_of
    with pytest.raises(ModelMismatchError) as refused:
        check_same_spec(find(**given), stored)
    assert refused.value.message == says


@pytest.mark.parametrize("given", [{}, {"topic": "t"}, {"fields": "a"}], ids=str)
def test_a_new_model_needs_topic_and_fields(given):
    with pytest.raises(SettingsError, match=r"model new: .*--fields"):
        model_spec("new", settings(**given), MemoryStore(), opened)
