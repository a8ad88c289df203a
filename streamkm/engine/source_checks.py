"""Whether what a source gives now is what the model has read so far: asked at each start and after each reconnect.

Exactness holds only while offsets mean the same records. So a model never reads another topic or cluster, and never
steps over records without saying so. `docs/guarantees.md` lists the cases.
"""

from __future__ import annotations

from collections.abc import Sequence

from streamkm.errors import ModelMismatchError, PositionLostError, TopicChangedError
from streamkm.records import BatchRange, Position
from streamkm.state import Json, ModelSpec
from streamkm.values import ClusterCount, HalfLife

_IDS = {"cluster_id": "cluster", "topic_id": "topic"}
"""Keys of `Source.identity` that tell the same name for another thing; a source may lack them, or not know them."""
_NEW_MODEL = "Start a new model under another name, or read the topic that this one has read"
_SHOWN = 10
_NOT_SET = "not set"
_CODEC = {"kind": "codec", "max_bytes": "max_record_bytes"}
"""Names of a codec's parts that are others than those of the settings."""


def check_same_spec(ours: ModelSpec, stored: ModelSpec) -> None:
    """Refuse settings that the stored model was not made with.

    Raises
    ------
    ModelMismatchError
        Fields, k, topic, codec or an argument of the model differ.
    TopicChangedError
        Only the ids behind the topic's name do.
    """
    its, mine = _told(stored), _told(ours)
    differences = [
        f"{name} was {its.get(name, _NOT_SET)}, is {mine.get(name, _NOT_SET)}"
        for name in {**its, **mine}
        if its.get(name) != mine.get(name)
    ]
    if differences:
        raise ModelMismatchError(
            "; ".join(differences),
            where=f"model {stored.name}",
            hint="Give the settings it was made with, or choose another name for a new model",
        )
    check_same_stream(stored, ours.source)


def _told(spec: ModelSpec) -> dict[str, str]:
    """What a model is made with, by the names of the settings, as text for people."""
    learner = dict(spec.learner)
    half_life, unit = learner.pop("half_life", None), learner.pop("half_life_unit", "points")
    parts = {
        **{name: value for name, value in _without_ids(spec.source).items() if name != "kind"},
        "fields": spec.fields,
        "k": ClusterCount(spec.n_clusters) if spec.n_clusters else "auto",
        "half-life": None if half_life is None else HalfLife(half_life, unit),
        **learner,
        **{_CODEC.get(name, name): value for name, value in spec.codec.items() if name != "fields"},
    }
    return {name.replace("_", "-"): _text(value) for name, value in parts.items()}


def _text(value: object) -> str:
    if value is None or value == "":
        return _NOT_SET
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def check_same_stream(stored: ModelSpec, found: Json) -> None:
    """Refuse a source that is another one under the same name.

    Parameters
    ----------
    stored
        The model; its source is what it has read since it was made.
    found
        What the source says of itself now (`Source.identity`).

    Raises
    ------
    TopicChangedError
        Both know an id of the topic or of the cluster, and it differs.
    """
    read = stored.source
    differ = [
        f"the {word}'s id was {read[key]}, is {found[key]}"
        for key, word in _IDS.items()
        if read.get(key) and found.get(key) and read[key] != found[key]
    ]
    if differ:
        topic = found.get("topic", read.get("topic", ""))
        raise TopicChangedError(
            f"this is not the topic that the model has read: {', '.join(differ)}. Its offsets count other records",
            where=f"model {stored.name}, topic {topic}",
            hint=_NEW_MODEL,
        )


def lost_ranges(
    model: str, position: Position, beginning: Position, end: Position, *, skip: bool
) -> tuple[BatchRange, ...]:
    """What lies between a position and where a source can be read from.

    Parameters
    ----------
    model
        Its name, for the errors.
    position
        Where the model stands.
    beginning, end
        What each partition has now.
    skip
        Return what is gone instead of raising.

    Returns
    -------
    tuple
        The ranges to skip, by partition; empty when all is there.

    Raises
    ------
    TopicChangedError
        A partition of the position is not there.
    PositionLostError
        The position lies beyond the end; or before the beginning, and nothing may be skipped.
    """
    stored = sorted(position.items())
    if missing := [f"{tp}@{at}" for tp, at in stored if tp not in beginning]:
        raise TopicChangedError(
            f"the topic has {len(beginning)} partitions, the model has read {len(position)}: it was made anew",
            where=f"model {model}, {_some(missing)}",
            hint=_NEW_MODEL,
        )
    if beyond := [f"{tp}@{at}" for tp, at in stored if at > end.get(tp, at)]:
        learned = sum(max(0, at - end.get(tp, at)) for tp, at in stored)
        ends = [f"{tp} ends at {end[tp]}" for tp, at in stored if at > end.get(tp, at)]
        raise PositionLostError(
            f"{learned} records that the model has read are not in the topic any more: {_some(ends)}",
            where=f"model {model}, {_some(beyond)}",
            hint=f"It was truncated or made anew. {_NEW_MODEL}",
        )
    gone = tuple(BatchRange(tp, at, beginning[tp]) for tp, at in stored if at < beginning[tp])
    if gone and not skip:
        begins = [f"{r.partition} begins at {r.stop}" for r in gone]
        raise PositionLostError(
            f"{count_offsets(gone)} records are gone that were not read: {_some(begins)}",
            where=f"model {model}, {_some([f'{r.partition}@{r.start}' for r in gone])}",
            hint="Retention was shorter than the pause. --on-data-loss skip goes on behind the gap and counts it; or "
            "start a new model under another name",
        )
    return gone


def count_offsets(ranges: Sequence[BatchRange]) -> int:
    """Number of offsets in ranges."""
    return sum(r.stop - r.start for r in ranges)


def format_ranges(ranges: Sequence[BatchRange]) -> str:
    """Ranges for people."""
    return _some([f"{r.partition}@{r.start} to {r.stop - 1}" for r in ranges])


def _some(items: Sequence[str]) -> str:
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more


def _without_ids(source: Json) -> Json:
    return {key: value for key, value in source.items() if key not in _IDS}
