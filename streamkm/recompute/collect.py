"""From rows of any source to points: in memory, or in a file of points when they may not fit there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamkm.codecs.columns import ColumnsCodec
from streamkm.errors import BadRecordsError, DataError, FileFormatError
from streamkm.recompute.pointfile import PointFile, Real
from streamkm.records import BadRecord, Batch, ColumnRecords, RawRecord
from streamkm.sources.files import FileSource, Place, numeric_columns

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
    """

    points: PointFile | Real
    weights: NDArray[np.float64] | None
    fields: tuple[str, ...]
    n_rows: int
    skipped: NDArray[np.int64]
    examples: tuple[BadRecord, ...]

    @property
    def array(self) -> Real:
        """(n, d) the points, wherever they are."""
        return self.points.points if isinstance(self.points, PointFile) else self.points


def choose_fields(fields: Sequence[str], numeric: Sequence[str], weight_field: str, where: str) -> tuple[str, ...]:
    """The fields asked for, or all columns that are numbers.

    Raises
    ------
    FileFormatError
        No column is.
    """
    chosen = tuple(fields) or tuple(name for name in numeric if name != weight_field)
    if not chosen:
        raise FileFormatError("no column holds numbers", where=where, hint="Name the columns with --fields A,B,...")
    return chosen


class Files:
    """Files that are read one after the other, sorted by name.

    Parameters
    ----------
    places
        From `expand`.
    fields
        Columns to read; all numeric ones of the first file that has rows when empty.
    weight_field
        One more column, with weights; "" for none.

    Attributes
    ----------
    fields
        The columns.
    single
        Whether float32 holds all values of these exactly.
    """

    def __init__(self, places: Sequence[Place], fields: Sequence[str], weight_field: str = "") -> None:
        self.places = list(places)
        if not fields:
            numeric = next(filter(None, map(numeric_columns, self.places)), ())
            if not numeric and all(map(_is_empty, self.places)):
                raise DataError("there are no rows", where=", ".join(place.name for place in self.places[:3]))
            fields = choose_fields((), numeric, weight_field, self.places[0].name)
        self.fields = tuple(fields)
        self._columns = (*self.fields, *((weight_field,) if weight_field else ()))
        self.single = True
        for place in self.places:  # a column that the last of many files lacks is better found now
            with contextlib.closing(FileSource(place, fields=self.fields)) as source:
                self.single = self.single and source.is_single()
            if weight_field:
                FileSource(place, fields=[weight_field]).close()

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


def collect(
    rows: Iterable[ColumnRecords],
    fields: Sequence[str],
    *,
    weight_field: str = "",
    single: bool = False,
    skip_bad: bool = False,
    file: Path | None = None,
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
        Leave out rows with no value, an infinite one, text, or a negative weight; else the first of these is an error.
    file
        Where to put a file of points; None to keep them in memory.

    Raises
    ------
    BadRecordsError
        A row is no point, and such rows are not skipped.
    """
    codec = ColumnsCodec((*fields, *((weight_field,) if weight_field else ())))
    d = len(fields)
    dtype = np.dtype(np.float32 if single else np.float64)
    sink: _Memory | _Disk = _Memory(d, dtype) if file is None else _Disk(PointFile.create(file, fields, dtype))
    skipped: list[NDArray[np.int64]] = []
    examples: list[BadRecord] = []
    n_rows = 0
    with sink:
        for records in rows:
            batch = codec.decode(records)
            good, bad = _weighed(records, batch, d, weight_field)
            if bad and not skip_bad:
                first = bad[0]
                raise BadRecordsError(
                    first.message,
                    where=f"{first.record.partition.topic}, row {first.record.offset}, column {first.field!r}",
                    hint="Rows are counted from 0; --bad-rows skip leaves such rows out",
                )
            if bad:
                at = np.fromiter((b.record.offset for b in bad), np.int64, len(bad))
                skipped.append(np.searchsorted(records.offsets, at) + n_rows)
                examples += bad[: EXAMPLES - len(examples)]
            points = batch.points[good]
            sink.add(points[:, :d], points[:, d] if weight_field else None)
            n_rows += len(records)
        points_, weights = sink.finish()
    none = np.empty(0, np.int64)
    return Collected(
        points_, weights, tuple(fields), n_rows, np.concatenate(skipped) if skipped else none, tuple(examples)
    )


def check_enough(collected: Collected, k: int, where: str) -> None:
    """Make sure that there are as many points as clusters.

    Raises
    ------
    DataError
        There are not.
    """
    n = len(collected.points)
    left = f" ({len(collected.skipped):,} others were skipped)" if len(collected.skipped) else ""
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


def _is_empty(place: Place) -> bool:
    with contextlib.closing(FileSource(place)) as source:
        source.seek(source.beginning())
        return not source.poll(0.0, 1)


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
