"""What all sources say about a position that a partition does not have."""

from __future__ import annotations

from streamkm.errors import PositionLostError
from streamkm.records import TopicPartition


def check_position(tp: TopicPartition, offset: int, beginning: int, end: int) -> None:
    """Raise `PositionLostError` unless ``beginning <= offset <= end``."""
    if offset < beginning:
        raise PositionLostError(
            f"offset {offset} is lost: the partition begins at {beginning} now",
            where=str(tp),
            hint="Retention was shorter than the pause; go on from the beginning and accept the gap, or start anew",
        )
    if offset > end:
        raise PositionLostError(
            f"offset {offset} is not there: the partition ends at {end}",
            where=str(tp),
            hint="The topic was truncated or made anew; start a new model, or go on from a position it has",
        )
