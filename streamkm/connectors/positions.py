"""Validation of positions, shared by all sources."""

from __future__ import annotations

from streamkm.errors import PositionLostError
from streamkm.records import TopicPartition


def check_position(tp: TopicPartition, offset: int, beginning: int, end: int) -> None:
    """Raise unless ``beginning <= offset <= end``.

    Raises
    ------
    PositionLostError
        The offset is outside of the partition's range.
    """
    if offset < beginning:
        raise PositionLostError(
            f"offset {offset} was deleted: the partition begins at {beginning} now",
            where=str(tp),
            hint="Retention is shorter than the pause; continue from the beginning and accept the gap, or start again",
        )
    if offset > end:
        raise PositionLostError(
            f"offset {offset} does not exist: the partition ends at {end}",
            where=str(tp),
            hint="The topic was truncated or recreated; start a new model, or continue from an existing offset",
        )
