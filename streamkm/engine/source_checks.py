"""Checks that a source is still the stream that the model has read, at each start and after each reconnect.

Results are exact only while offsets identify the same records. So a model never reads another topic or cluster, and
never skips records silently. `docs/guarantees.md` lists the cases.
"""

from __future__ import annotations

from collections.abc import Sequence

from streamkm.codecs import complete_spec
from streamkm.errors import ModelMismatchError, PositionLostError, TopicChangedError
from streamkm.records import BatchRange, Position
from streamkm.state import Json, ModelSpec
from streamkm.values import ClusterCount, HalfLife

_IDS = {"cluster_id": "cluster", "topic_id": "topic"}
"""Keys of `Source.identity` that distinguish topics and clusters with the same name; not every source has them."""
_NEW_MODEL = "Start a new model under another name, or read the topic that this one has read"
_MAX_LISTED = 10
_NOT_SET = "not set"
_CODEC_SETTINGS = {"max_bytes": "max_record_bytes"}
"""Options of codecs whose settings have other names."""


def check_same_spec(ours: ModelSpec, stored: ModelSpec) -> None:
    """Check that a spec equals that of the stored model.

    Raises
    ------
    ModelMismatchError
        Fields, k, topic, codec or an argument of the model differ.
    TopicChangedError
        Only the ids of topic or cluster differ.
    """
    before, now = _by_setting(stored), _by_setting(ours)
    differences = [
        f"{name} was {before.get(name, _NOT_SET)}, is {now.get(name, _NOT_SET)}"
        for name in {**before, **now}
        if before.get(name) != now.get(name)
    ]
    if differences:
        raise ModelMismatchError(
            "; ".join(differences),
            where=f"model {stored.name}",
            hint="Use the settings it was created with, or choose another name for a new model",
        )
    check_same_stream(stored, ours.source)


def _by_setting(spec: ModelSpec) -> dict[str, str]:
    """The parts of a spec as text, by the names of the settings."""
    learner = dict(spec.learner)
    half_life, unit = learner.pop("half_life", None), learner.pop("half_life_unit", "points")
    parts = {
        **{name: value for name, value in _without_ids(spec.source).items() if name != "kind"},
        "fields": spec.codec.fields or spec.fields,
        "k": ClusterCount(spec.n_clusters) if spec.n_clusters else "auto",
        "half-life": None if half_life is None else HalfLife(half_life, unit),
        **learner,
        "codec": spec.codec.kind,
        **{_CODEC_SETTINGS.get(name, name): value for name, value in complete_spec(spec.codec).options.items()},
    }
    return {name.replace("_", "-"): _text(value) for name, value in parts.items()}


def _text(value: object) -> str:
    if value is None or value == "":
        return _NOT_SET
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def check_same_stream(stored: ModelSpec, found: Json) -> None:
    """Check that a source is not another topic or cluster with the same name.

    Parameters
    ----------
    stored
        The model, whose spec has the source that it has read so far.
    found
        The present `Source.identity`.

    Raises
    ------
    TopicChangedError
        The id of the topic or of the cluster differs.
    """
    read = stored.source
    differences = [
        f"the {word}'s id was {read[key]}, is {found[key]}"
        for key, word in _IDS.items()
        if read.get(key) and found.get(key) and read[key] != found[key]
    ]
    if differences:
        topic = found.get("topic", read.get("topic", ""))
        raise TopicChangedError(
            f"this is not the topic that the model has read: {', '.join(differences)}. Its offsets count other records",
            where=f"model {stored.name}, topic {topic}",
            hint=_NEW_MODEL,
        )


def lost_ranges(
    model: str, position: Position, beginning: Position, end: Position, *, skip: bool
) -> tuple[BatchRange, ...]:
    """Ranges between the position of a model and the beginning of the topic, which the topic has deleted.

    Parameters
    ----------
    model
        Name of the model, for the errors.
    position
        The position of the model.
    beginning, end
        First offset and end offset of each partition.
    skip
        Return the ranges instead of raising.

    Returns
    -------
    tuple
        The ranges to skip, by partition; empty when nothing is lost.

    Raises
    ------
    TopicChangedError
        A partition of the position does not exist.
    PositionLostError
        The position is beyond the end; or it is before the beginning, and `skip` is false.
    """
    stored = sorted(position.items())
    if missing := [f"{tp}@{at}" for tp, at in stored if tp not in beginning]:
        raise TopicChangedError(
            f"the topic has {len(beginning)} partitions, the model has read {len(position)}: it was created anew",
            where=f"model {model}, {_first_few(missing)}",
            hint=_NEW_MODEL,
        )
    if beyond := [f"{tp}@{at}" for tp, at in stored if at > end.get(tp, at)]:
        learned = sum(max(0, at - end.get(tp, at)) for tp, at in stored)
        ends = [f"{tp} ends at {end[tp]}" for tp, at in stored if at > end.get(tp, at)]
        raise PositionLostError(
            f"{learned} records that the model has read are not in the topic any more: {_first_few(ends)}",
            where=f"model {model}, {_first_few(beyond)}",
            hint=f"It was truncated or created anew. {_NEW_MODEL}",
        )
    lost = tuple(BatchRange(tp, at, beginning[tp]) for tp, at in stored if at < beginning[tp])
    if lost and not skip:
        begins = [f"{r.partition} begins at {r.stop}" for r in lost]
        raise PositionLostError(
            f"{count_offsets(lost)} records were deleted before they were read: {_first_few(begins)}",
            where=f"model {model}, {_first_few([f'{r.partition}@{r.start}' for r in lost])}",
            hint="Retention was shorter than the pause. --on-data-loss skip continues behind the gap and counts it; or "
            "start a new model under another name",
        )
    return lost


def count_offsets(ranges: Sequence[BatchRange]) -> int:
    """Number of offsets in ranges."""
    return sum(r.stop - r.start for r in ranges)


def format_ranges(ranges: Sequence[BatchRange]) -> str:
    """Ranges as text."""
    return _first_few([f"{r.partition}@{r.start} to {r.stop - 1}" for r in ranges])


def _first_few(items: Sequence[str]) -> str:
    more = f" and {len(items) - _MAX_LISTED} more" if len(items) > _MAX_LISTED else ""
    return ", ".join(items[:_MAX_LISTED]) + more


def _without_ids(source: Json) -> Json:
    return {key: value for key, value in source.items() if key not in _IDS}
