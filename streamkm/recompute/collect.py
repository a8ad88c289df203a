"""Collects the rows of any source as points: in memory, or in a file if they may not fit."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from streamkm.codecs import make_codec
from streamkm.connectors.files.source import ExcludedColumn, FileSource, Place, Profile, profile
from streamkm.errors import BadRecordsError, DataError, FileFormatError, SettingsError
from streamkm.recompute.pointfile import PointFile, Real
from streamkm.records import BadRecord, Batch, ColumnRecords, RawRecord, TopicPartition
from streamkm.state import CodecSpec

MAX_DESCRIBED = 10
"""Maximum number of excluded columns described in a message."""
EXAMPLES = 5
"""Maximum number of skipped rows kept as examples."""
_FIRST_ROWS = 1 << 16


@dataclass(frozen=True, eq=False)
class CollectedPoints:
    """Points in the order of their rows.

    Attributes
    ----------
    points
        (n, d) float32 or float64; a `PointFile` if one was requested.
    weights
        (n,); None if all are equal.
    fields
        Names of the d columns.
    n_rows
        Number of rows read, with the skipped ones.
    skipped
        Numbers of the skipped rows, counted from 0 over all files, ascending.
    examples
        The first skipped rows.
    defect_counts
        Number of skipped rows by field and reason.
    """

    points: PointFile | Real
    weights: NDArray[np.float64] | None
    fields: tuple[str, ...]
    n_rows: int
    skipped: NDArray[np.int64]
    examples: tuple[BadRecord, ...]
    defect_counts: Mapping[tuple[str, str], int] = dataclasses.field(default_factory=dict)

    @property
    def array(self) -> Real:
        """(n, d) the points, in memory or mapped."""
        return self.points.points if isinstance(self.points, PointFile) else self.points


class TableFiles:
    """Files of one table, read one after the other in the order of their names.

    Parameters
    ----------
    places
        Result of `expand`.
    fields
        Columns to read. If empty, all numeric columns of the first file with rows that are not identifiers.
    weight_field
        Additional column with weights; "" for none.

    Attributes
    ----------
    fields
        The columns; array columns have one per dimension.
    fits_float32
        Whether float32 holds all values exactly.
    excluded
        Columns that are excluded by default.
    notes
        Assumptions about the files and skipped content.

    Raises
    ------
    DataError
        There are no rows.
    FileFormatError
        A file is not valid, has no numeric columns, or has other columns than the first file.
    """

    def __init__(self, places: Sequence[Place], fields: Sequence[str], weight_field: str = "") -> None:
        self.places = list(places)
        self.excluded: tuple[ExcludedColumn, ...] = ()
        self.notes: tuple[str, ...] = ()
        self._asked = tuple(fields) or self._numeric(weight_field)
        self._columns = (*self._asked, *((weight_field,) if weight_field else ()))
        self.fields: tuple[str, ...] = ()
        self.fits_float32 = True
        self._headers: int | None = 0
        for place in self.places:  # a missing column is better reported before reading
            with contextlib.closing(FileSource(place, fields=self._asked)) as source:
                self.fits_float32 = self.fits_float32 and source.fits_float32()
                self.notes = tuple(dict.fromkeys((*self.notes, *source.notes())))
                rows = source.row_count_of_headers()
                self._headers = None if rows is None or self._headers is None else self._headers + rows
                self.fields = self.fields or source.names()
                if source.names() != self.fields:
                    raise FileFormatError(
                        f"the columns are {', '.join(source.names()[:20])}, those of {self.places[0].name} are "
                        f"{', '.join(self.fields[:20])}",
                        where=place.name,
                    )
            if weight_field:
                FileSource(place, fields=[weight_field]).close()

    def _numeric(self, weight_field: str) -> tuple[str, ...]:
        found = None
        for place in self.places:
            found = profile(place)
            if found.rows:
                break
        if found is None or not found.rows:
            raise DataError("there are no rows", where=", ".join(place.name for place in self.places[:3]))
        chosen, excluded = found.choose({weight_field})
        self.excluded = tuple(excluded)
        self.notes = tuple(f"{found.path}: {note}" for note in found.notes)
        if not chosen:
            raise FileFormatError(
                f"no column has numbers to cluster: {describe_excluded(self.excluded)}",
                where=found.path,
                hint=_hint(self.excluded),
            )
        return chosen

    @property
    def row_count_of_headers(self) -> int | None:
        """Total number of rows if all headers have it, else None."""
        return self._headers

    def line(self, tp: TopicPartition, row: int) -> int | None:
        """Line number of a row in its file, from 1; None if the file has no lines."""
        place = next((place for place in self.places if place.name == tp.topic), None)
        if place is None:
            return None
        with contextlib.closing(FileSource(place, fields=self._asked)) as source:
            return source.line(tp, row)

    def rows(self, on_progress: Callable[[int, float], None] | None = None) -> Iterator[ColumnRecords]:
        """Read all rows.

        Parameters
        ----------
        on_progress
            Called with the number of rows read, and the share of all files.
        """
        n = 0
        for i, place in enumerate(self.places):
            with contextlib.closing(FileSource(place, fields=self._columns)) as source:
                source.seek(source.beginning())
                while found := source.poll(0.0, 1 << 62):
                    yield from found
                    n += sum(map(len, found))
                    if on_progress is not None:
                        on_progress(n, (i + source.progress()) / len(self.places))


def describe_excluded(excluded: Sequence[ExcludedColumn]) -> str:
    """Message with the first `MAX_DESCRIBED` excluded columns, reasons and examples, and the number of the others."""
    more = len(excluded) - MAX_DESCRIBED
    described = "; ".join(map(_describe_excluded, excluded[:MAX_DESCRIBED]))
    return described + (f"; and {more} more" if more > 0 else "")


def _hint(excluded: Sequence[ExcludedColumn]) -> str:
    select = "Select columns with --fields A,B,..."
    formatted = any(left.example and left.reason not in {"text", "true or false"} for left in excluded)
    return f"{select}, and write numbers with a decimal point and no other signs" if formatted else select


def _describe_excluded(left: ExcludedColumn) -> str:
    at = [] if left.line is None else [f"line {left.line}"]
    if left.line is None and left.row is not None:
        at = [f"row {left.row}"]
    example = [repr(left.example)] if left.example else []
    more = ", ".join([*example, *at])
    return f"{left.column} ({left.reason}" + (f": {more})" if more else ")")


def collect(
    rows: Iterable[ColumnRecords],
    fields: Sequence[str],
    *,
    weight_field: str = "",
    float32: bool = False,
    skip_bad: bool = False,
    file: Path | None = None,
    line_of: Callable[[TopicPartition, int], int | None] | None = None,
    most: int | None = None,
) -> CollectedPoints:
    """Convert rows to points, a block at a time.

    Parameters
    ----------
    rows
        Rows of a source.
    fields
        Columns in the order of a point's coordinates.
    weight_field
        Column with non-negative weights; "" for none.
    float32
        Store points as float32.
    skip_bad
        Skip rows with a missing or infinite value, text, too many values, or a negative weight; otherwise the first of
        them is an error.
    file
        `PointFile` to write; None to keep the points in memory.
    line_of
        Returns the line number of a row, for messages about bad rows.
    most
        Maximum number of rows.

    Raises
    ------
    BadRecordsError
        A row is bad, and `skip_bad` is not set.
    DataError
        There are more rows than `most`.
    """
    codec = make_codec(CodecSpec("columns", (*fields, *((weight_field,) if weight_field else ()))))
    d = len(fields)
    dtype = np.dtype(np.float32 if float32 else np.float64)
    sink: _MemorySink | _DiskSink = (
        _MemorySink(d, dtype) if file is None else _DiskSink(PointFile.create(file, fields, dtype))
    )
    skipped: list[NDArray[np.int64]] = []
    examples: list[BadRecord] = []
    defect_counts: Counter[tuple[str, str]] = Counter()
    n_rows = 0
    with sink:
        for records in rows:
            if most is not None and n_rows + len(records) > most:
                raise DataError(f"there are more than {most:,} rows", where=records.partition.topic)
            batch = codec.decode(records)
            good, bad = _check_weights(records, batch, d, weight_field)
            if bad and not skip_bad:
                first = _with_line(bad[0], line_of)
                tp, row = first.record.partition, first.record.offset
                raise BadRecordsError(
                    first.message,
                    where=f"{tp.topic}, row {row}" + (f", column {first.field!r}" if first.field else ""),
                    hint="Rows are counted from 0, lines from 1; --bad-rows skip skips such rows",
                )
            if bad:
                at = np.fromiter((b.record.offset for b in bad), np.int64, len(bad))
                skipped.append(np.searchsorted(records.offsets, at) + n_rows)
                examples += [_with_line(b, line_of) for b in bad[: EXAMPLES - len(examples)]]
                defect_counts.update((b.field, b.reason) for b in bad)
            points = batch.points[good]
            sink.add(points[:, :d], points[:, d] if weight_field else None)
            n_rows += len(records)
        points_, weights = sink.finish()
    none = np.empty(0, np.int64)
    return CollectedPoints(
        points_,
        weights,
        tuple(fields),
        n_rows,
        np.concatenate(skipped) if skipped else none,
        tuple(examples),
        dict(defect_counts),
    )


def _with_line(bad: BadRecord, line_of: Callable[[TopicPartition, int], int | None] | None) -> BadRecord:
    """The bad record with the line number in its message, if it is known."""
    line = None if line_of is None else line_of(bad.record.partition, bad.record.offset)
    return bad if line is None else dataclasses.replace(bad, message=f"{bad.message} (line {line})")


def choose_columns(
    records: ColumnRecords, weight_field: str, where: str
) -> tuple[tuple[str, ...], Sequence[ExcludedColumn], Sequence[str]]:
    """Select the columns to cluster by default from sample rows.

    Returns
    -------
    tuple
        Selected columns, excluded columns, and notes.

    Raises
    ------
    FileFormatError
        There is no numeric column.
    """
    found = Profile(where, list(records.columns))
    for facts, column in zip(found.columns, records.columns.values(), strict=True):
        facts.add(0, pl.Series(column.tolist(), dtype=pl.String) if column.dtype == object else pl.Series(column))
    found.finish(len(records), whole=True)
    chosen, excluded = found.choose({weight_field})
    if not chosen:
        raise FileFormatError(
            f"no column has numbers to cluster: {describe_excluded(excluded)}",
            where=where,
            hint=_hint(excluded),
        )
    return chosen, excluded, found.notes


def check_memory(files: TableFiles, *, limited: bool) -> None:
    """Check by the headers of files, before anything is decompressed, that the points fit into memory.

    Raises
    ------
    SettingsError
        They do not fit, and `limited` is not set (points beyond a limit are kept on disk).
    """
    rows = files.row_count_of_headers
    if rows is None or limited:
        return
    size = rows * len(files.fields) * (4 if files.fits_float32 else 8)
    most = memory_limit()
    if size > most:
        raise SettingsError(
            f"{rows:,} rows of {len(files.fields)} columns need {size >> 20:,} MiB, {most >> 20:,} MiB are available",
            where=files.places[0].name,
            hint="Give --memory, such as 512MB: points beyond it are kept on disk",
        )


def memory_limit() -> int:
    """Memory that this process may use, bytes: of the machine or of its control group, whichever is less."""
    most = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            most = min(most, int(Path(path).read_text()))
    return most


def check_point_count(collected: CollectedPoints, k: int, where: str) -> None:
    """Check that there are at least as many points as clusters, and that they have weight.

    Raises
    ------
    DataError
        There are not.
    """
    n = len(collected.points)
    left = ""
    if len(collected.skipped):
        field, reason = max(collected.defect_counts, key=collected.defect_counts.__getitem__)
        example = next((bad for bad in collected.examples if bad.field == field), collected.examples[0])
        n_same = collected.defect_counts[field, reason]
        why = f"for column {field!r}" if field else f"as {reason}"
        left = f" ({len(collected.skipped):,} others were skipped, {n_same:,} of them {why}: {example})"
    if n == 0:
        raise DataError(f"there are no rows{left}", where=where)
    if n < k:
        raise DataError(
            f"there are {n} rows{left}, fewer than the {k} clusters asked for",
            where=where,
            hint="Ask for fewer with --k",
        )
    if collected.weights is not None and not collected.weights.any():
        raise DataError("all weights are zero", where=where)


def _check_weights(records: ColumnRecords, batch: Batch, d: int, weight_field: str) -> tuple[Any, list[BadRecord]]:
    """Which rows of a batch's points are valid, and all bad rows, in order."""
    bad = list(batch.bad)
    good = batch.points[:, d] >= 0.0 if weight_field else np.empty(0, np.bool_)
    if good.all():
        return slice(None), bad
    for i in np.flatnonzero(~good):
        raw = RawRecord(records.partition, int(batch.offsets[i]), -1, None, None)
        message = f"the weight {weight_field} is negative: {batch.points[i, d]:g}"
        bad.append(BadRecord(raw, "not-finite", weight_field, message))
    return good, sorted(bad, key=lambda record: record.record.offset)


class _MemorySink:
    """Collects points in growing arrays."""

    def __init__(self, d: int, dtype: np.dtype[Any]) -> None:
        self._points: NDArray[Any] = np.empty((0, d), dtype)
        self._weights = np.empty(0)
        self._n, self._weighted = 0, False

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    def add(self, points: NDArray[np.float64], weights: NDArray[np.float64] | None) -> None:
        stop = self._n + len(points)
        if stop > len(self._points):
            # Small steps: large arrays grow in place, the kernel remaps their pages instead of copying them.
            size = max(stop, _FIRST_ROWS, len(self._points) * 9 // 8)
            self._points.resize((size, self._points.shape[1]), refcheck=False)
            if weights is not None:
                self._weights.resize(size, refcheck=False)
        self._points[self._n : stop] = points
        if weights is not None:
            self._weights[self._n : stop] = weights
            self._weighted = True
        self._n = stop

    def finish(self) -> tuple[Real, NDArray[np.float64] | None]:
        self._points.resize((self._n, self._points.shape[1]), refcheck=False)
        self._weights.resize(self._n if self._weighted else 0, refcheck=False)
        return self._points, self._weights if self._weighted else None


class _DiskSink:
    """Collects points in a file."""

    def __init__(self, file: PointFile) -> None:
        self._file, self._whole = file, False

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        if not self._whole:
            self._file.close()

    def add(self, points: NDArray[np.float64], weights: NDArray[np.float64] | None) -> None:
        self._file.append(points, weights)

    def finish(self) -> tuple[PointFile, NDArray[np.float64] | None]:
        self._file.finish()
        self._whole = True
        return self._file, self._file.weights
