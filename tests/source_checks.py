"""Checks that every source must pass, as functions of a new `Setting`: `CHECKS`, collected by name."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pytest

from streamkm.connectors import Source
from streamkm.errors import PositionLostError, SourceClosedError
from streamkm.records import ByteRecords, ColumnRecords, Position, Records, TopicPartition
from waiting import PATIENCE


@dataclass(frozen=True)
class Setting:
    """A source and its expected records: at least two partitions and fifty records."""

    open: Callable[[], Source]
    expected: Mapping[TopicPartition, list[object]]
    """Per partition, what `contents` says of its records."""


def contents(records: Records) -> list[object]:
    """Everything a source returns about its records, in a comparable form."""
    if isinstance(records, ByteRecords):
        return [records.record(i) for i in range(len(records))]
    assert isinstance(records, ColumnRecords)
    rows = zip(*(column.tolist() for column in records.columns.values()), strict=True)
    return [(offset, *row) for offset, row in zip(records.offsets.tolist(), rows, strict=True)]


def drain(source: Source, end: Position, max_records: int = 17) -> list[Records]:
    """Poll until `end`."""
    got: list[Records] = []
    deadline = time.monotonic() + PATIENCE
    while any(source.position()[tp] < end[tp] for tp in end):
        assert time.monotonic() < deadline, f"{source.position()} never reached {end}"
        got += source.poll(0.2, max_records)
    return got


def by_partition(got: list[Records]) -> dict[TopicPartition, list[object]]:
    out: dict[TopicPartition, list[object]] = {}
    for records in got:
        out.setdefault(records.partition, []).extend(contents(records))
    return out


def check_nothing_is_read_before_seek(source: Source, setting: Setting) -> None:
    assert list(source.poll(0.05, 100)) == []
    assert source.position() == {}


def check_partitions_are_sorted_and_bounded(source: Source, setting: Setting) -> None:
    partitions = source.partitions()
    assert list(partitions) == sorted(setting.expected)
    assert list(source.beginning()) == list(source.end()) == list(partitions)
    assert all(source.beginning()[tp] <= source.end()[tp] for tp in partitions)


def check_all_records_come_once_in_order(source: Source, setting: Setting) -> None:
    source.seek(source.beginning())
    assert by_partition(drain(source, source.end())) == setting.expected


def check_ranges_tile_each_partition(source: Source, setting: Setting) -> None:
    beginning, end = source.beginning(), source.end()
    source.seek(beginning)
    at = dict(beginning)
    for records in drain(source, end):
        assert records.start == at[records.partition]
        assert records.stop > records.start
        assert all(records.start <= offset < records.stop for offset in records.offsets)
        assert (records.offsets[1:] > records.offsets[:-1]).all()
        at[records.partition] = records.stop
    assert at == source.position() == end


def check_a_poll_gives_each_partition_at_most_once_sorted(source: Source, setting: Setting) -> None:
    source.seek(source.beginning())
    end = source.end()
    while source.position() != end:
        polled = [records.partition for records in source.poll(0.2, 40)]
        assert polled == sorted(set(polled))


def check_max_records_is_honoured(source: Source, setting: Setting) -> None:
    n = 7
    source.seek(source.beginning())
    end = source.end()
    total = 0
    while source.position() != end:
        polled = sum(len(records) for records in source.poll(0.2, n))
        assert polled <= n
        total += polled
    assert total == sum(map(len, setting.expected.values()))


def check_a_range_read_again_is_the_same(source: Source, setting: Setting) -> None:
    source.seek(source.beginning())
    first = drain(source, source.end(), max_records=11)
    for records in first[:: max(1, len(first) // 5)]:
        source.seek({records.partition: records.start})
        again: list[object] = []
        while source.position()[records.partition] < records.stop:
            for one in source.poll(0.2, 1000):
                head, _ = one.split(min(one.stop, records.stop))
                again += contents(head)
        assert again == contents(records)


def check_seek_goes_back_and_forward(source: Source, setting: Setting) -> None:
    beginning, end = source.beginning(), source.end()
    source.seek(end)
    assert source.position() == end
    assert list(source.poll(0.05, 10)) == []
    for tp, expected in setting.expected.items():
        for i in (len(expected) // 2, 0, len(expected) - 1):
            offset = _offset(expected[i])
            source.seek({tp: offset})
            assert source.position() == {tp: offset}
            got = by_partition(drain(source, {tp: end[tp]}))
            assert got == {tp: expected[i:]}
    assert beginning == source.beginning()


def check_seek_in_the_middle_of_a_poll_drops_what_was_buffered(source: Source, setting: Setting) -> None:
    source.seek(source.beginning())
    source.poll(5.0, 1)
    source.seek(source.beginning())
    assert by_partition(drain(source, source.end())) == setting.expected


def check_only_the_partitions_asked_for_are_read(source: Source, setting: Setting) -> None:
    tp = source.partitions()[-1]
    source.seek({tp: source.beginning()[tp]})
    assert list(source.position()) == [tp]
    assert by_partition(drain(source, {tp: source.end()[tp]})) == {tp: setting.expected[tp]}


def check_a_position_outside_is_lost_and_both_numbers_named(source: Source, setting: Setting) -> None:
    for tp in source.partitions():
        end = source.end()[tp]
        with pytest.raises(PositionLostError, match=f"{end + 5}.*{end}") as lost:
            source.seek({tp: end + 5})
        assert str(tp) in lost.value.where
        assert lost.value.hint


def check_a_partition_that_is_not_there_is_lost(source: Source, setting: Setting) -> None:
    with pytest.raises(PositionLostError):
        source.seek({TopicPartition(source.partitions()[0].topic, 99): 0})


def check_a_poll_of_nothing_returns(source: Source, setting: Setting) -> None:
    source.seek(source.end())
    for timeout in (0.0, 0.05):
        assert list(source.poll(timeout, 100)) == []


def check_a_refused_seek_changes_nothing(source: Source, setting: Setting) -> None:
    tp = source.partitions()[0]
    source.seek({tp: source.beginning()[tp]})
    before = source.position()
    with pytest.raises(PositionLostError):
        source.seek({tp: source.end()[tp] + 1})
    assert source.position() == before
    assert by_partition(drain(source, {tp: source.end()[tp]})) == {tp: setting.expected[tp]}


def check_identity_is_json_and_stays(source: Source, setting: Setting) -> None:
    import json

    identity = source.identity()
    assert json.loads(json.dumps(identity)) == identity
    other = setting.open()
    try:
        assert other.identity() == identity
    finally:
        other.close()


def check_commit_says_nothing(source: Source, setting: Setting) -> None:
    assert source.commit(source.beginning()) is None
    assert source.commit({}) is None


def check_a_closed_source_says_so(source: Source, setting: Setting) -> None:
    source.seek(source.beginning())
    beginning = source.beginning()
    source.close()
    source.close()
    calls: list[Callable[[], object]] = [
        source.identity,
        source.partitions,
        source.beginning,
        source.end,
        source.position,
        lambda: source.seek(beginning),
        lambda: source.poll(0.0, 1),
        lambda: source.commit(beginning),
    ]
    for call in calls:
        with pytest.raises(SourceClosedError):
            call()


def check_it_is_a_source(source: Source, setting: Setting) -> None:
    assert isinstance(source, Source)


def _offset(content: object) -> int:
    return content.offset if hasattr(content, "offset") else content[0]  # type: ignore[index]


Check = Callable[[Source, Setting], None]
CHECKS: Mapping[str, Check] = {
    name.removeprefix("check_"): value for name, value in sorted(globals().items()) if name.startswith("check_")
}
