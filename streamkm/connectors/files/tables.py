"""Common parts of all table readers: blocks of rows, selection of columns, and column statistics."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from streamkm import cells
from streamkm.connectors.files import csv_text
from streamkm.errors import FileFormatError

Column = NDArray[np.generic]

BLOCK_BYTES = 4 << 20
"""Bytes of a text file read at a time."""
MAX_ROW_BYTES = 64 << 20
"""Maximum size of a row, bytes."""
BLOCK_ROWS = 1 << 17
"""Rows of other files read at a time."""
PROFILE_BYTES = 64 << 20
"""Approximate number of bytes read to find the numeric columns."""
MIN_ID_ROWS = 5
"""Minimum number of rows for strictly increasing or decreasing integers to count as row numbers."""
MIN_DISTINCT_ROWS, MAX_DISTINCT_VALUES = 30, 1 << 20
"""Minimum number of rows for a warning that integers are all different, and maximum number of values compared."""
MAX_DIMENSIONS = 100_000
"""Maximum length of the arrays in a column."""
_PART = re.compile(r"(.+?)(?:\[(\d{1,6})\]|\.(\d{1,6}))")
_ID = re.compile(
    r"(?i:(?:.*[\W_])?(?:id|uuid|guid)|index(?:_\d+)?|row_?names?|row\.names|row_?(?:no|nr|number)|unnamed: ?\d+)"
    r"|.*[a-z]I[dD]"
)
ResolvedColumns = dict[str, tuple[str, int | None]]
"""Source column and dimension (None for a plain column) by output name."""


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """The rows [start, stop) of a file, by column.

    Attributes
    ----------
    malformed_rows
        As in `ColumnRecords`, by number of the row.
    """

    start: int
    stop: int
    columns: dict[str, Column]
    malformed_rows: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ColumnSelection:
    """Columns to read from a file.

    Attributes
    ----------
    fields
        Names; None for all.
    elsewhere
        Columns that come from the file's path, so that the file need not have them.
    """

    fields: Sequence[str] | None = None
    elsewhere: Collection[str] = ()

    def resolve(
        self, path: str, names: Sequence[str], widths: Mapping[str, int] | None = None, unnamed: Collection[str] = ()
    ) -> ResolvedColumns:
        """Resolve the selection against the columns of a file.

        Parameters
        ----------
        path
            The file, for errors.
        names
            Its columns.
        widths
            Array columns and the length of their arrays: the name stands for all dimensions, ``name[0]`` or ``name.0``
            for one.
        unnamed
            Columns without a name in the file: only read if they are selected explicitly.

        Raises
        ------
        FileFormatError
            A column does not exist, or its name occurs twice.
        """
        widths = widths or {}
        selected = self.fields
        if selected is None:
            selected = [name for name in names if name not in unnamed] or list(names)
        chosen: ResolvedColumns = {}
        for name in selected:
            if name in names:
                if names.count(name) > 1:
                    raise FileFormatError(
                        "the header has a column twice", where=f"{path}, column {name!r}", hint="Rename one of them"
                    )
                if name in widths:
                    chosen |= {f"{name}[{i}]": (name, i) for i in range(widths[name])}
                else:
                    chosen[name] = (name, None)
                continue
            part = _PART.fullmatch(name)
            if part and part[1] in widths:
                i, width = int(part[2] or part[3]), widths[part[1]]
                if i >= width:
                    raise FileFormatError(
                        f"the column has dimensions 0 to {width - 1}",
                        where=f"{path}, column {part[1]!r}",
                        hint=f"Not {name}",
                    )
                chosen[name] = (part[1], i)
            elif name not in self.elsewhere:
                known = [*names, *(name for name in self.elsewhere if name not in names)]
                shown = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
                raise FileFormatError(
                    "the column does not exist", where=f"{path}, column {name!r}", hint=f"Columns: {shown}"
                )
        # At least one column is read, for the number of rows.
        return chosen or {name: (name, None) for name in names[:1]}


@dataclass(frozen=True, slots=True)
class ExcludedColumn:
    """A column that is not read because it was not selected, and is not suitable by itself.

    Attributes
    ----------
    column
        Name of the column.
    reason
        Why it is excluded.
    example
        The first cell that is not a number; "" for other reasons.
    row, line
        Row of the example from 0, and line from 1; None if unknown.
    """

    column: str
    reason: str
    example: str = ""
    row: int | None = None
    line: int | None = None


class ColumnStatistics:
    """Statistics of a column's values.

    Attributes
    ----------
    name
        Name of the column.
    width
        Length of its arrays; None for a plain column.
    numbers, missing, others
        Number of cells that are numbers, missing, and neither.
    example
        Row and text of the first cell that is neither.
    leading_zero_example
        Row and text of the first cell of digits with a leading zero.
    reason
        Why the column is not numeric, if its data type says so.
    line
        Line number of the example.
    integers
        Whether all numbers are integers.
    largest
        Largest absolute value.
    """

    def __init__(self, name: str, width: int | None = None) -> None:
        self.name, self.width = name, width
        self.numbers, self.missing, self.others = 0, 0, 0
        self.example: tuple[int, str] | None = None
        self.leading_zero_example: tuple[int, str] | None = None
        self.reason = ""
        self.line: int | None = None
        self.integers = True
        self.largest = 0.0
        self._rising = self._falling = True
        self._last: float | None = None
        self._distinct: list[NDArray[np.float64]] | None = []  # None: not all are different numbers

    def add(self, start: int, column: pl.Series) -> None:
        """Add rows, the first of them with the number `start`."""
        if column.dtype.is_temporal():
            self.others += len(column) - column.null_count()
            self.missing += column.null_count()
            self.reason = "a date or a time"
            return
        if not column.dtype.is_numeric():
            texts = column.cast(pl.String)
            numbers, missing = csv_text.numbers_of(texts)
            other = numbers.is_null() & ~missing
            n_missing, n_other = int(missing.sum()), int(other.sum())
            if n_other and self.example is None:
                first = int(other.arg_max() or 0)
                self.example = (start + first, texts[first])
            self.others += n_other
            with_leading_zeros = texts.str.contains(csv_text.LEADING_ZERO_PATTERN).fill_null(value=False)
            if self.leading_zero_example is None and with_leading_zeros.any():
                at = int(with_leading_zeros.arg_max() or 0)
                self.leading_zero_example = (start + at, texts[at])
            values = numbers.drop_nulls().to_numpy()
        else:
            values = column.drop_nulls().cast(pl.Float64).to_numpy()
            values = values[~np.isnan(values)]
            n_missing, n_other = len(column) - len(values), 0
        self.missing += n_missing
        self.numbers += len(values)
        if n_missing or n_other:
            self._rising = self._falling = False
            self._distinct = None
        if self.integers and len(values):
            with np.errstate(invalid="ignore"):
                self.integers = bool((values == np.floor(values)).all()) and bool(np.isfinite(values).all())
            self.largest = max(self.largest, float(np.abs(values).max()))
        if (self._rising or self._falling) and len(values):
            steps = np.diff(values if self._last is None else np.concatenate([[self._last], values]))
            self._rising = self._rising and bool((steps > 0).all())
            self._falling = self._falling and bool((steps < 0).all())
            self._last = float(values[-1])
        if self._distinct is not None and self.integers and sum(map(len, self._distinct)) < MAX_DISTINCT_VALUES:
            unique = np.unique(np.concatenate([*self._distinct, values]))
            self._distinct = [unique] if len(unique) == sum(map(len, self._distinct)) + len(values) else None

    @property
    def is_numeric(self) -> bool:
        """Whether most cells with a value are numbers: a single text does not exclude a column."""
        return self.numbers > self.others

    @property
    def is_called_id(self) -> bool:
        """Whether the name is that of an identifier, and all values are integers."""
        return self.integers and self.others == 0 and _ID.fullmatch(self.name) is not None

    @property
    def is_code(self) -> bool:
        """Whether some values have leading zeros, as in postal codes, and all are integers."""
        return self.integers and self.others == 0 and self.leading_zero_example is not None

    @property
    def has_distinct_integers(self) -> bool:
        """Whether all values are different integers, in any order, like those of an identifier."""
        return self.integers and self._distinct is not None and self.numbers >= MIN_DISTINCT_ROWS

    @property
    def counts_rows(self) -> bool:
        """Whether the values are strictly monotonic integers, like row numbers."""
        return self.integers and (self._rising or self._falling) and self.numbers >= MIN_ID_ROWS


class Profile:
    """Statistics of the columns of a file.

    Parameters
    ----------
    path
        The file.
    names
        Its columns.
    unnamed
        Columns without a name in the file.
    notes
        Assumptions about the file.
    widths
        Array columns and the length of their arrays.

    Attributes
    ----------
    columns
        Statistics by column, in the order of `names`.
    rows
        Number of rows read.
    """

    def __init__(
        self,
        path: str,
        names: Sequence[str],
        unnamed: Collection[str] = (),
        notes: Sequence[str] = (),
        widths: Mapping[str, int] | None = None,
    ) -> None:
        self.path, self.unnamed, self.notes = path, unnamed, list(notes)
        self.columns = [ColumnStatistics(name, (widths or {}).get(name)) for name in names]
        self.rows = 0

    def finish(self, rows: int, *, whole: bool, line: Callable[[int], int | None] | None = None) -> None:
        """Complete the statistics.

        Parameters
        ----------
        rows
            Number of rows read.
        whole
            Whether these are all rows of the file.
        line
            Returns the line number of a row.
        """
        self.rows = rows
        for facts in self.columns:
            first = facts.example or facts.leading_zero_example
            if first is not None and line is not None:
                facts.line = line(first[0])
        if not whole:
            self.notes.append(f"numeric columns were detected in the first {rows:,} rows")

    def choose(self, without: Collection[str] = ()) -> tuple[tuple[str, ...], list[ExcludedColumn]]:
        """Select the columns to cluster by default.

        Parameters
        ----------
        without
            Columns that have another use.

        Returns
        -------
        tuple
            Names of the selected columns, and the excluded columns.

        Raises
        ------
        FileFormatError
            A numeric column occurs twice.
        """
        left: dict[str, ExcludedColumn] = {}
        kept: list[ColumnStatistics] = []
        names = [facts.name for facts in self.columns]
        for facts in self.columns:
            if facts.name in without:
                continue
            if names.count(facts.name) > 1 and facts.is_numeric:
                raise FileFormatError(
                    f"the header has a column twice: {facts.name}",
                    where=self.path,
                    hint="Rename one of them, or select columns with --fields A,B,...",
                )
            if facts.name in self.unnamed:
                left[facts.name] = ExcludedColumn(
                    facts.name, "a column without a name, as R and pandas write for row names"
                )
            elif facts.width is None and not facts.is_numeric:
                left[facts.name] = self._no_number(facts)
            elif facts.width is None and facts.is_called_id:
                left[facts.name] = ExcludedColumn(facts.name, "named like an identifier")
            elif facts.width is None and facts.is_code:
                row, text = facts.leading_zero_example or (0, "")
                reason = "digits with leading zeros, like a code"
                left[facts.name] = ExcludedColumn(facts.name, reason, text.strip()[:40], row, facts.line)
            else:
                kept.append(facts)
        counting = [facts for facts in kept if facts.width is None and facts.counts_rows]
        if len(counting) < len(kept):
            for facts in counting:
                left[facts.name] = ExcludedColumn(facts.name, "strictly monotonic integers, like an identifier")
                kept.remove(facts)
        for facts in kept:
            if facts.width is None and facts.has_distinct_integers and len(kept) > 1:
                self.notes.append(
                    f"column {facts.name} is clustered, but may be an identifier: it has {facts.numbers:,} different "
                    "integers; to exclude it, select the other columns with --fields"
                )
            if facts.integers and facts.largest >= 2.0**53:
                self.notes.append(f"integers of column {facts.name} beyond 2**53 are rounded")
        return tuple(facts.name for facts in kept), [left[name] for name in dict.fromkeys(names) if name in left]

    def _no_number(self, facts: ColumnStatistics) -> ExcludedColumn:
        if facts.reason:
            return ExcludedColumn(facts.name, facts.reason)
        if facts.example is None:
            return ExcludedColumn(facts.name, "no values" if self.rows else "no rows")
        row, text = facts.example
        why = cells.explain_non_number(text)
        return ExcludedColumn(facts.name, why, text[:40], row, facts.line)


class Reader(Protocol):
    """Reads one file.

    Attributes
    ----------
    names
        Output columns; an array column has one per dimension.
    fits_float32
        Whether float32 holds all values exactly.
    row_count_known
        Whether the number of rows is known without reading the file.
    notes
        Assumptions about the file and skipped content.
    """

    names: tuple[str, ...]
    fits_float32: bool
    row_count_known: bool
    notes: tuple[str, ...]

    def rows(self) -> int:
        """Number of rows; may read the whole file."""

    def is_past_end(self, row: int) -> bool:
        """Whether ``row >= rows()``, reading no more than necessary."""

    def progress(self, row: int) -> float:
        """Approximate share of the file before this row, 0 to 1."""

    def block(self, row: int) -> Block:
        """A block that contains this row, ``0 <= row < rows()``."""

    def line(self, row: int) -> int | None:
        """Line number of a row, from 1; None if the file has no lines."""

    def profile(self) -> Profile:
        """Statistics of all columns."""

    def close(self) -> None:
        """Close the file."""


class KnownRowCount:
    """Base of readers whose number of rows is known from the start."""

    row_count_known = True
    notes: tuple[str, ...] = ()
    _rows: int

    def rows(self) -> int:
        """See `Reader`."""
        return self._rows

    def is_past_end(self, row: int) -> bool:
        """See `Reader`."""
        return row >= self._rows

    def progress(self, row: int) -> float:
        """See `Reader`."""
        return row / max(1, self._rows)

    def line(self, row: int) -> int | None:
        """See `Reader`."""
        del row
        return None


def from_series(series: pl.Series) -> Column:
    """Convert a column: numbers with NaN for missing values, times as seconds since the epoch, others as text."""
    kind = series.dtype
    if kind.is_temporal() and not isinstance(kind, pl.Duration | pl.Time):
        series = series.cast(pl.Datetime("us")).dt.epoch("us").cast(pl.Float64) / 1e6
        kind = series.dtype
    if kind.is_numeric():
        if series.null_count() and kind == pl.Float32:
            series = series.fill_null(float("nan"))
        elif kind.is_decimal() or series.null_count():
            series = series.cast(pl.Float64).fill_null(float("nan"))
        return series.to_numpy()
    return np.array(series.cast(pl.String).to_list(), dtype=object)
