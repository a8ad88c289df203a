"""Archive of decoded topic ranges as parquet files."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from streamkm import private_files
from streamkm.codecs.base import Codec
from streamkm.connectors.base import Source
from streamkm.connectors.files.panics import suppress_panic_output
from streamkm.connectors.ranges import RangeReader
from streamkm.errors import BadRecordsError, FileFormatError, SettingsError
from streamkm.recompute.pointfile import atomic_write
from streamkm.recompute.span import OffsetSpan
from streamkm.records import Batch, BatchRange, TopicPartition
from streamkm.state import Json

PART_OFFSETS = 1 << 20
"""Maximum number of offsets per file: the work lost by a kill, and the points in memory at a time."""
READ_OFFSETS = 1 << 16
"""Offsets read at a time."""
MIN_JUDGED_RECORDS = 1000
"""Minimum number of records before the share of bad ones is checked."""


@dataclass(frozen=True)
class ArchivePart:
    """One file of an archive.

    Attributes
    ----------
    partition
        Number of the partition.
    start, stop
        Offset range [start, stop).
    points, bad, tombstones
        Number of records by outcome.
    newest
        Latest event time of its points, s since the epoch; None if they have none.
    lost
        Offset ranges (start, stop) that could not be read and were skipped.
    """

    partition: int
    start: int
    stop: int
    points: int
    bad: int
    tombstones: int
    newest: float | None
    lost: Sequence[Sequence[int]] = ()

    @property
    def name(self) -> str:
        """File name."""
        return f"{self.partition:05d}-{self.start:020d}-{self.stop:020d}.parquet"


class Archive:
    """A folder of parquet files with the decoded points of ranges of one topic, and their index.

    A file has a column per field, and ``_offset`` and ``_time``. It is added to the index when it is complete, so a
    kill loses only the file that was being written.

    Parameters
    ----------
    folder
        Folder of the archive; created if it does not exist.
    contents
        What the archive holds: source, fields and codec.

    Attributes
    ----------
    folder, contents
        See above.
    parts
        Files in the index.

    Raises
    ------
    SettingsError
        The folder holds other contents.
    FileFormatError
        The index is damaged.
    """

    def __init__(self, folder: Path, contents: Json) -> None:
        self.folder = folder
        self.contents: Json = json.loads(json.dumps(contents))
        self.parts: list[ArchivePart] = []
        private_files.make_folder(folder)
        index = folder / "archive.json"
        if not index.exists():
            return
        try:
            stored = json.loads(index.read_text())
            self.parts = [ArchivePart(**part) for part in stored["parts"]]
            stored_contents = stored["contents"]
            numbers = [n for p in self.parts for n in (p.partition, p.start, p.stop, p.points, p.bad, p.tombstones)]
            numbers += [n for p in self.parts for start, stop in p.lost for n in (start, stop)]
            sound = all(type(n) is int for n in numbers)
        except (ValueError, TypeError, KeyError, RecursionError) as e:
            raise FileFormatError(f"is not the index of an archive ({e})", where=str(index)) from e
        if not sound:
            raise FileFormatError("is not the index of an archive: not all numbers are integers", where=str(index))
        if stored_contents != self.contents:
            raise SettingsError(
                "the archive has other contents: its source, fields or codec differ",
                where=str(folder),
                hint="Give another folder, or remove this one",
            )

    def fill(
        self,
        span: OffsetSpan,
        open_source: Callable[[], Source],
        codec: Codec,
        *,
        max_bad_ratio: float = 0.5,
        skip_lost: bool = False,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Read the missing parts of a span.

        Parameters
        ----------
        span
            Offsets to read; each partition is read to the end of its range by position.
        open_source
            Opens a source.
        codec
            Decodes the records.
        max_bad_ratio
            Maximum share of bad records in a part.
        skip_lost
            Skip record batches that cannot be read, and keep their offsets in the index.
        on_progress
            Called with the number of offsets read, and of all offsets.

        Raises
        ------
        PositionLostError
            Records of the span were deleted.
        CorruptBatchError
            A record batch cannot be read.
        BadRecordsError
            The share of bad records in a part exceeds `max_bad_ratio`.
        """
        missing = [gap for tp in sorted(span.start) for gap in self._missing_ranges(tp, span.start[tp], span.stop[tp])]
        total = span.offsets
        done = total - sum(stop - start for _, start, stop in missing)
        if not missing:
            return
        source = open_source()
        readers: list[RangeReader] = []
        try:
            for tp, start, stop in missing:
                lost: list[BatchRange] = []
                reader = RangeReader(source, tp, on_lost=lost.append if skip_lost else None, reopen=open_source)
                readers.append(reader)
                for at in range(start, stop, PART_OFFSETS):
                    until = min(at + PART_OFFSETS, stop)
                    batches: list[Batch] = []
                    lost.clear()
                    for a in range(at, until, READ_OFFSETS):
                        b = min(a + READ_OFFSETS, until)
                        batches += [codec.decode(records) for records in reader.read(BatchRange(tp, a, b))]
                        done += b - a
                        if on_progress is not None:
                            on_progress(done, total)
                    self._write(tp, at, until, batches, max_bad_ratio, lost)
                source = reader.source
        finally:
            (readers[-1].source if readers else source).close()

    def _missing_ranges(self, tp: TopicPartition, start: int, stop: int) -> Iterator[tuple[TopicPartition, int, int]]:
        for part in sorted(self._parts_of(tp), key=lambda p: p.start):
            if part.stop <= start or part.start >= stop:
                continue
            if part.start > start:
                yield tp, start, part.start
            start = max(start, part.stop)
        if start < stop:
            yield tp, start, stop

    def _parts_of(self, tp: TopicPartition) -> list[ArchivePart]:
        return [part for part in self.parts if part.partition == tp.partition]

    def _write(
        self,
        tp: TopicPartition,
        start: int,
        stop: int,
        batches: Sequence[Batch],
        max_bad_ratio: float,
        lost: Sequence[BatchRange],
    ) -> None:
        fields: Sequence[str] = self.contents["fields"]
        bad = [b for batch in batches for b in batch.bad]
        points = np.concatenate([batch.points for batch in batches]) if batches else np.empty((0, len(fields)))
        tombstones = sum(batch.tombstones for batch in batches)
        records = len(points) + len(bad) + tombstones
        if records >= MIN_JUDGED_RECORDS and len(bad) > max_bad_ratio * records:
            raise BadRecordsError(
                f"{len(bad) / records:.0%} of the records from {start} to {stop} are bad, for example {bad[0]}",
                where=str(tp),
                hint="Correct the fields, or raise --max-bad-ratio",
            )
        times = np.concatenate([batch.times for batch in batches]) if batches else np.empty(0)
        offsets = np.concatenate([batch.offsets for batch in batches]) if batches else np.empty(0, np.int64)
        newest = float(np.nanmax(times)) if len(times) and not np.isnan(times).all() else None
        part = ArchivePart(tp.partition, start, stop, len(points), len(bad), tombstones, newest, _merge_ranges(lost))
        columns = {"_offset": offsets, "_time": times} | {f: points[:, j] for j, f in enumerate(fields)}
        with atomic_write(self.folder / part.name) as file:
            pl.DataFrame(columns).write_parquet(file)
        parts = [*self.parts, part]
        with atomic_write(self.folder / "archive.json") as file:
            stored = {"contents": self.contents, "parts": [asdict(p) for p in parts]}
            file.write(json.dumps(stored, indent=1).encode())
        self.parts = parts

    def remove(self) -> None:
        """Remove the archive and temporary files of killed processes; other files, and then the folder, are kept."""
        own = [self.folder / name for name in ("archive.json", *(part.name for part in self.parts))]
        for path in (*own, *self.folder.glob(".*.partial")):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def parts_within(self, span: OffsetSpan) -> list[ArchivePart]:
        """Parts that overlap a span, by partition and offset."""
        return [
            part
            for tp in sorted(span.start)
            for part in sorted(self._parts_of(tp), key=lambda p: p.start)
            if part.start < span.stop[tp] and part.stop > span.start[tp]
        ]

    def points(self, span: OffsetSpan) -> Iterator[NDArray[np.float64]]:
        """Points of a span in the order of partitions and offsets, in blocks of (m, d)."""
        fields: Sequence[str] = self.contents["fields"]
        bounds = {tp.partition: (at, span.stop[tp]) for tp, at in span.start.items()}
        for part in self.parts_within(span):
            low, high = bounds[part.partition]
            frame = self._read(part, fields)
            offsets = frame["_offset"].to_numpy()
            inside = (offsets >= low) & (offsets < high)
            rows = np.ascontiguousarray(frame.select(fields).to_numpy())
            yield rows if inside.all() else rows[inside]

    def _read(self, part: ArchivePart, fields: Sequence[str]) -> pl.DataFrame:
        path = self.folder / part.name
        try:
            with suppress_panic_output():
                frame = pl.scan_parquet(path, glob=False, hive_partitioning=False)
                # The header has the number of rows before decompression.
                rows = int(frame.select(pl.len()).collect().item())
                if rows != part.points:
                    raise FileFormatError(
                        f"has {rows} points, and the archive's index says {part.points}",
                        where=str(path),
                        hint="Remove the archive",
                    )
                return frame.select("_offset", *fields).collect()
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as e:
            raise FileFormatError(f"cannot be read ({e})", where=str(path), hint="Remove the archive") from e


def _merge_ranges(ranges: Sequence[BatchRange]) -> list[list[int]]:
    """Offset ranges in order, with adjacent ones merged."""
    found: list[list[int]] = []
    for _, start, stop in ranges:
        if found and found[-1][1] == start:
            found[-1][1] = stop
        else:
            found.append([start, stop])
    return found


def lost_offsets(archive: Archive, span: OffsetSpan) -> dict[str, list[list[int]]]:
    """Offset ranges [start, stop] of a span that could not be read and were skipped, by partition."""
    found: dict[str, list[list[int]]] = {}
    for tp in sorted(span.start):
        clipped = [
            BatchRange(tp, max(start, span.start[tp]), min(stop, span.stop[tp]))
            for part in archive.parts_within(OffsetSpan({tp: span.start[tp]}, {tp: span.stop[tp]}))
            for start, stop in part.lost
            if start < span.stop[tp] and stop > span.start[tp]
        ]
        if clipped:
            found[str(tp)] = _merge_ranges(clipped)
    return found


def part_counts(archive: Archive, span: OffsetSpan) -> dict[str, Any]:
    """Sum of the counts of the parts that overlap a span; parts are counted as a whole."""
    parts = archive.parts_within(span)
    totals = {name: sum(getattr(p, name) for p in parts) for name in ("points", "bad", "tombstones")}
    newest = [p.newest for p in parts if p.newest is not None]
    return {**totals, "newest": max(newest, default=None)}
