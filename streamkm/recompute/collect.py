"""From rows of any source to points: in memory, or in a file of points when they may not fit there."""

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

from streamkm.codecs.columns import ColumnsCodec
from streamkm.errors import BadRecordsError, DataError, FileFormatError, SettingsError
from streamkm.recompute.pointfile import PointFile, Real
from streamkm.records import BadRecord, Batch, ColumnRecords, RawRecord, TopicPartition
from streamkm.sources.files import FileSource, LeftOut, Place, Profile, profile

MOST_SAID = 10
"""Columns that are left out and said; the rest is counted."""
EXAMPLES = 5
"""Skipped rows that are kept to be shown."""
_FIRST_ROWS = 1 << 16


@dataclass(frozen=True, eq=False)
class Collected:
    """Points, in the order of the rows they came from.

    Attributes
    ----------
    points
        (n, d) float32 or float64; a file of points where these were asked for.
    weights
        (n,), or None where all count the same.
    fields
        Names of the d columns.
    n_rows
        Rows that were read, the skipped ones included.
    skipped
        Numbers of the rows that are no points, counted from 0 over all files, ascending.
    examples
        The first few of them.
    flaws
        How many were skipped for each field and reason.
    """

    points: PointFile | Real
    weights: NDArray[np.float64] | None
    fields: tuple[str, ...]
    n_rows: int
    skipped: NDArray[np.int64]
    examples: tuple[BadRecord, ...]
    flaws: Mapping[tuple[str, str], int] = dataclasses.field(default_factory=dict)

    @property
    def array(self) -> Real:
        """(n, d) the points, wherever they are."""
        return self.points.points if isinstance(self.points, PointFile) else self.points


class Files:
    """Files that are read one after the other, sorted by name.

    Parameters
    ----------
    places
        From `expand`.
    fields
        Columns to read. When empty: all of the first file that has rows which are numbers and no identifiers.
    weight_field
        One more column, with weights; "" for none.

    Attributes
    ----------
    fields
        The columns; one of several dimensions is one for each.
    single
        Whether float32 holds all values of these exactly.
    left_out
        Columns that nobody named and that are not read.
    notes
        What was assumed of the files, or passed over.

    Raises
    ------
    DataError
        There are no rows.
    FileFormatError
        A file is not what its name says, has no columns of numbers, or other columns than the first.
    """

    def __init__(self, places: Sequence[Place], fields: Sequence[str], weight_field: str = "") -> None:
        self.places = list(places)
        self.left_out: tuple[LeftOut, ...] = ()
        self.notes: tuple[str, ...] = ()
        self._asked = tuple(fields) or self._numeric(weight_field)
        self._columns = (*self._asked, *((weight_field,) if weight_field else ()))
        self.fields: tuple[str, ...] = ()
        self.single = True
        self._headers: int | None = 0
        for place in self.places:  # a column that the last of many files lacks is better found now
            with contextlib.closing(FileSource(place, fields=self._asked)) as source:
                self.single = self.single and source.is_single()
                self.notes = tuple(dict.fromkeys((*self.notes, *source.notes())))
                rows = source.rows_of_headers()
                self._headers = None if rows is None or self._headers is None else self._headers + rows
                self.fields = self.fields or source.names()
                if source.names() != self.fields:
                    raise FileFormatError(
                        f"it has the columns {', '.join(source.names()[:20])}, {self.places[0].name} has "
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
        chosen, left_out = found.choose({weight_field})
        self.left_out = tuple(left_out)
        self.notes = tuple(f"{found.path}: {note}" for note in found.notes)
        if not chosen:
            raise FileFormatError(
                f"no column holds numbers to cluster: {said_of(self.left_out)}",
                where=found.path,
                hint=_hint(self.left_out),
            )
        return chosen

    @property
    def rows_of_headers(self) -> int | None:
        """Rows of all files, where their headers tell how many these are."""
        return self._headers

    def line(self, tp: TopicPartition, row: int) -> int | None:
        """In which line of its file a row begins, from 1; None where it has no lines."""
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
            Told how many rows were read, and which share of all files.
        """
        n = 0
        for i, place in enumerate(self.places):
            with contextlib.closing(FileSource(place, fields=self._columns)) as source:
                source.seek(source.beginning())
                while found := source.poll(0.0, 1 << 62):
                    yield from found
                    n += sum(map(len, found))
                    if on_progress is not None:
                        on_progress(n, (i + source.share()) / len(self.places))


def said_of(left_out: Sequence[LeftOut]) -> str:
    """Columns that are left out, each with the reason and where it is seen first; of very many the first ones."""
    more = len(left_out) - MOST_SAID
    return "; ".join(map(_said, left_out[:MOST_SAID])) + (f"; and {more} more" if more > 0 else "")


def _hint(left_out: Sequence[LeftOut]) -> str:
    named = "Name the columns with --fields A,B,..."
    written = any(left.example and left.reason not in {"text", "true or false"} for left in left_out)
    return f"{named}, and write numbers with a decimal point and no other sign" if written else named


def _said(left: LeftOut) -> str:
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
    single: bool = False,
    skip_bad: bool = False,
    file: Path | None = None,
    line_of: Callable[[TopicPartition, int], int | None] | None = None,
    most: int | None = None,
) -> Collected:
    """Turn rows into points, a block at a time.

    Parameters
    ----------
    rows
        What a source gives.
    fields
        Columns in the order of a point's coordinates.
    weight_field
        Column with the weight of each row, not negative; "" for none.
    single
        Keep points as float32.
    skip_bad
        Leave out rows with no value, an infinite one, text, too many values, or a negative weight; else the first of
        these is an error.
    file
        Where to put a file of points; None to keep them in memory.
    line_of
        Says in which line of its file a row is, for what is said of bad rows.
    most
        Refuse more rows than these.

    Raises
    ------
    BadRecordsError
        A row is no point, and such rows are not skipped.
    DataError
        There are more rows than `most`.
    """
    codec = ColumnsCodec((*fields, *((weight_field,) if weight_field else ())))
    d = len(fields)
    dtype = np.dtype(np.float32 if single else np.float64)
    sink: _Memory | _Disk = _Memory(d, dtype) if file is None else _Disk(PointFile.create(file, fields, dtype))
    skipped: list[NDArray[np.int64]] = []
    examples: list[BadRecord] = []
    flaws: Counter[tuple[str, str]] = Counter()
    n_rows = 0
    with sink:
        for records in rows:
            if most is not None and n_rows + len(records) > most:
                raise DataError(f"it has more than {most:,} rows", where=records.partition.topic)
            batch = codec.decode(records)
            good, bad = _weighed(records, batch, d, weight_field)
            if bad and not skip_bad:
                first = _with_line(bad[0], line_of)
                tp, row = first.record.partition, first.record.offset
                raise BadRecordsError(
                    first.message,
                    where=f"{tp.topic}, row {row}" + (f", column {first.field!r}" if first.field else ""),
                    hint="Rows are counted from 0, lines from 1; --bad-rows skip leaves such rows out",
                )
            if bad:
                at = np.fromiter((b.record.offset for b in bad), np.int64, len(bad))
                skipped.append(np.searchsorted(records.offsets, at) + n_rows)
                examples += [_with_line(b, line_of) for b in bad[: EXAMPLES - len(examples)]]
                flaws.update((b.field, b.reason) for b in bad)
            points = batch.points[good]
            sink.add(points[:, :d], points[:, d] if weight_field else None)
            n_rows += len(records)
        points_, weights = sink.finish()
    none = np.empty(0, np.int64)
    return Collected(
        points_,
        weights,
        tuple(fields),
        n_rows,
        np.concatenate(skipped) if skipped else none,
        tuple(examples),
        dict(flaws),
    )


def _with_line(bad: BadRecord, line_of: Callable[[TopicPartition, int], int | None] | None) -> BadRecord:
    """The same, with the line of its file in the message where it has one."""
    line = None if line_of is None else line_of(bad.record.partition, bad.record.offset)
    return bad if line is None else dataclasses.replace(bad, message=f"{bad.message} (line {line})")


def choose_columns(
    records: ColumnRecords, weight_field: str, where: str
) -> tuple[tuple[str, ...], Sequence[LeftOut], Sequence[str]]:
    """Columns to cluster where none is named, by some rows; those left out; and notes.

    Raises
    ------
    FileFormatError
        No column holds numbers.
    """
    found = Profile(where, list(records.columns))
    for facts, column in zip(found.columns, records.columns.values(), strict=True):
        facts.add(0, pl.Series(column.tolist(), dtype=pl.String) if column.dtype == object else pl.Series(column))
    found.finish(len(records), whole=True)
    chosen, left_out = found.choose({weight_field})
    if not chosen:
        raise FileFormatError(
            f"no column holds numbers to cluster: {said_of(left_out)}",
            where=where,
            hint=_hint(left_out),
        )
    return chosen, left_out, found.notes


def check_room(files: Files, *, limited: bool) -> None:
    """Make sure, before anything is unpacked, that points fit into memory, by what the headers of files tell.

    Raises
    ------
    SettingsError
        They do not, and they are not to be kept on disk.
    """
    rows = files.rows_of_headers
    if rows is None or limited:
        return
    size = rows * len(files.fields) * (4 if files.single else 8)
    most = memory_limit()
    if size > most:
        raise SettingsError(
            f"{rows:,} rows of {len(files.fields)} columns take {size >> 20:,} MiB, and there are {most >> 20:,} MiB",
            where=files.places[0].name,
            hint="Give --memory, such as 512MB: points beyond it are kept on disk",
        )


def memory_limit() -> int:
    """Bytes of memory that this process may take: of the machine, or of its control group if that has less."""
    most = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            most = min(most, int(Path(path).read_text()))
    return most


def check_enough(collected: Collected, k: int, where: str) -> None:
    """Make sure that there are as many points as clusters.

    Raises
    ------
    DataError
        There are not.
    """
    n = len(collected.points)
    left = ""
    if len(collected.skipped):
        field, reason = max(collected.flaws, key=collected.flaws.__getitem__)
        example = next((bad for bad in collected.examples if bad.field == field), collected.examples[0])
        why = f"for column {field!r}" if field else f"as {reason}"
        left = (
            f" ({len(collected.skipped):,} others were skipped, {collected.flaws[field, reason]:,} of them {why}: "
            f"{example})"
        )
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


def _weighed(records: ColumnRecords, batch: Batch, d: int, weight_field: str) -> tuple[Any, list[BadRecord]]:
    """Which rows of a batch's points are good, and all bad ones, in order."""
    bad = list(batch.bad)
    good = batch.points[:, d] >= 0.0 if weight_field else np.empty(0, np.bool_)
    if good.all():
        return slice(None), bad
    for i in np.flatnonzero(~good):
        raw = RawRecord(records.partition, int(batch.offsets[i]), -1, None, None)
        message = f"{weight_field}, the weight, is negative: {batch.points[i, d]:g}"
        bad.append(BadRecord(raw, "not-finite", weight_field, message))
    return good, sorted(bad, key=lambda record: record.record.offset)


class _Memory:
    """Points in arrays that grow."""

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
            # Little at a time: large arrays grow in place, the system moves their pages instead of copying them.
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


class _Disk:
    """Points in a file."""

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
