"""Offset ranges of a recomputation, fixed before the first record is read."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

from streamkm.connectors.base import Source
from streamkm.errors import PositionLostError, SettingsError
from streamkm.records import Position, TopicPartition
from streamkm.times import parse_duration, parse_iso

HINT = "Give beginning, now, a time (2026-11-01T10:00), an age (2h), offset:500, 0:500,1:480 or snapshot:12"


class TimeIndexedSource(Source, Protocol):
    """A source that finds offsets by time."""

    def offsets_at(self, seconds: float) -> Position:
        """For each partition the offset of the first record at or after a time, s since the epoch, or else its end."""


class OffsetSpan(NamedTuple):
    """Records of each partition from its offset in `start` up to, not including, its offset in `stop`."""

    start: Position
    stop: Position

    @property
    def offsets(self) -> int:
        """Number of offsets, including those of markers and gaps."""
        return sum(self.stop[tp] - at for tp, at in self.start.items())


def resolve_span(
    source: TimeIndexedSource, start: str, stop: str, position_of: Callable[[int], Position], now: float | None = None
) -> OffsetSpan:
    """Resolve two texts to exact offset ranges.

    Parameters
    ----------
    source
        Source of the records.
    start, stop
        ``beginning``, ``now``, an ISO 8601 time, an age, ``offset:N`` (of every partition), ``P:N,P:N`` (of some
        partitions only), or ``snapshot:N`` (the position of that snapshot).
    position_of
        Returns the position of a snapshot.
    now
        Time since the epoch, s; None for the current time.

    Raises
    ------
    SettingsError
        A text is not valid, or the range is empty.
    PositionLostError
        Offsets or a snapshot are outside of the topic's range.
    """
    now = time.time() if now is None else now
    beginning, end = source.beginning(), source.end()
    bounds = [_offsets(source, text, beginning, end, position_of, now) for text in (start, stop)]
    # A partition without a bound was not read by the snapshot that is the bound: its bound is the beginning. If a text
    # lists partitions, only those are used.
    texts = zip(bounds, (start, stop), strict=True)
    listed: list[set[TopicPartition]] = [set(b) for b, text in texts if _OFFSET_LIST.fullmatch(text)]
    partitions = sorted(set(end).intersection(*listed))
    low = {tp: bounds[0].get(tp, beginning[tp]) for tp in partitions}
    high = {tp: bounds[1].get(tp, beginning[tp]) for tp in partitions}
    for tp in partitions:
        for at in (low[tp], high[tp]):
            if not beginning[tp] <= at <= end[tp]:
                raise PositionLostError(
                    f"offset {at} is not between the beginning {beginning[tp]} and the end {end[tp]}",
                    where=str(tp),
                    hint="Retention may have deleted records: --from beginning takes the existing ones",
                )
    if all(low[tp] >= high[tp] for tp in partitions):
        raise SettingsError(f"there are no records from {start!r} to {stop!r}", hint=HINT)
    return OffsetSpan(low, {tp: max(low[tp], high[tp]) for tp in partitions})


_OFFSET_LIST = re.compile(r"\d+:\d+(,\d+:\d+)*")


def _offsets(
    source: TimeIndexedSource,
    text: str,
    beginning: Position,
    end: Position,
    position_of: Callable[[int], Position],
    now: float,
) -> dict[TopicPartition, int]:
    if text in ("beginning", "now", "end"):
        return dict(beginning if text == "beginning" else end)
    kind, _, number = text.partition(":")
    if kind in ("offset", "snapshot") and number.isdigit():
        return dict.fromkeys(end, int(number)) if kind == "offset" else dict(position_of(int(number)))
    if _OFFSET_LIST.fullmatch(text):
        pairs = (pair.split(":") for pair in text.split(","))
        offsets = {int(partition): int(at) for partition, at in pairs}
        unknown = sorted(set(offsets) - {tp.partition for tp in end})
        if unknown:
            raise SettingsError(f"there is no partition {', '.join(map(str, unknown))}", where=text)
        return {tp: offsets[tp.partition] for tp in end if tp.partition in offsets}
    try:
        seconds = now - parse_duration(text) if re.fullmatch(r"[\d.]+(ms|s|m|h|d)", text) else parse_iso(text)
    except ValueError:
        raise SettingsError(f"{text!r} is not a position in a topic", hint=HINT) from None
    return dict(source.offsets_at(seconds))
