"""What all readers of tables have in common: blocks of rows, columns chosen by name, and what columns hold."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from streamkm import cells
from streamkm.errors import FileFormatError
from streamkm.sources import csv_text

Column = NDArray[np.generic]

BLOCK_BYTES = 4 << 20
"""Bytes of a csv file read at once."""
LONGEST_ROW_BYTES = 64 << 20
BLOCK_ROWS = 1 << 17
"""Rows of any other file read at once."""
PROFILE_BYTES = 64 << 20
"""About so much of a file is looked at to say which columns hold numbers."""
LEAST_IDS = 5
"""From so many rows on, distinct integers that only rise or only fall are taken for numbers of rows."""
LEAST_DISTINCT, MOST_DISTINCT = 30, 1 << 20
"""From so many rows on, integers that are all different are said to be like an identifier; more are not compared."""
MOST_DIMENSIONS = 100_000
_PART = re.compile(r"(.+?)(?:\[(\d{1,6})\]|\.(\d{1,6}))")
_ID = re.compile(
    r"(?i:(?:.*[\W_])?(?:id|uuid|guid)|index(?:_\d+)?|row_?names?|row\.names|row_?(?:no|nr|number)|unnamed: ?\d+)"
    r"|.*[a-z]I[dD]"
)
Chosen = dict[str, tuple[str, int | None]]
"""Names as they are given on: the column of each, and which of its dimensions."""


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """The rows [start, stop) of a file, by column.

    Attributes
    ----------
    broken
        As in `ColumnRecords`, by number of the row.
    """

    start: int
    stop: int
    columns: dict[str, Column]
    broken: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which columns of a file are read.

    Attributes
    ----------
    fields
        These; None for all.
    elsewhere
        Columns that come from the file's path, so that it is no mistake if the file has not got them.
    """

    fields: Sequence[str] | None = None
    elsewhere: Collection[str] = ()

    def among(
        self, path: str, names: Sequence[str], widths: Mapping[str, int] | None = None, unnamed: Collection[str] = ()
    ) -> Chosen:
        """Choose among the columns that a file has.

        Parameters
        ----------
        path
            The file.
        names
            Of its columns.
        widths
            Those that hold several numbers in each row, and how many: such a name stands for all of them, ``name[0]``
            or ``name.0`` for one.
        unnamed
            Those that have no name in the file: they are only read if they are asked for.

        Raises
        ------
        FileFormatError
            There is no such column, or there are two of the name.
        """
        widths = widths or {}
        asked = self.fields
        if asked is None:
            asked = [name for name in names if name not in unnamed] or list(names)
        chosen: Chosen = {}
        for name in asked:
            if name in names:
                if names.count(name) > 1:
                    raise FileFormatError(
                        "its header names a column twice", where=f"{path}, column {name!r}", hint="Rename one of them"
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
                        f"it has {width} dimensions, from 0", where=f"{path}, column {part[1]!r}", hint=f"Not {name}"
                    )
                chosen[name] = (part[1], i)
            elif name not in self.elsewhere:
                known = [*names, *(name for name in self.elsewhere if name not in names)]
                shown = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
                raise FileFormatError(
                    "there is no such column", where=f"{path}, column {name!r}", hint=f"It has {shown}"
                )
        # Rows are counted by some column, even if none of those asked for is in the file itself.
        return chosen or {name: (name, None) for name in names[:1]}


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A column that is not read, because nobody named it.

    Attributes
    ----------
    column
        Its name.
    reason
        Why.
    example
        The first cell that is no number; "" where the reason is another one.
    row, line
        Where that is, from 0 and from 1; None where unknown.
    """

    column: str
    reason: str
    example: str = ""
    row: int | None = None
    line: int | None = None


class Facts:
    """What a column holds."""

    def __init__(self, name: str, width: int | None = None) -> None:
        self.name, self.width = name, width
        self.numbers, self.missing, self.others = 0, 0, 0
        self.example: tuple[int, str] | None = None
        self.padded: tuple[int, str] | None = None
        """The first cell that has digits behind a leading zero: its row, and its text."""
        self.reason = ""
        self.line: int | None = None
        self.integers = True
        self.largest = 0.0
        self._rising = self._falling = True
        self._last: float | None = None
        self._distinct: list[NDArray[np.float64]] | None = []  # None: some value is there twice

    def add(self, start: int, column: pl.Series) -> None:
        """Look at some more rows."""
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
            padded = texts.str.contains(csv_text.PADDED).fill_null(value=False)
            if self.padded is None and padded.any():
                at = int(padded.arg_max() or 0)
                self.padded = (start + at, texts[at])
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
        if self._distinct is not None and self.integers and sum(map(len, self._distinct)) < MOST_DISTINCT:
            unique = np.unique(np.concatenate([*self._distinct, values]))
            self._distinct = [unique] if len(unique) == sum(map(len, self._distinct)) + len(values) else None

    @property
    def is_numeric(self) -> bool:
        """Whether most of its cells that have a value are numbers: a stray word does not hide a column."""
        return self.numbers > self.others

    @property
    def is_called_id(self) -> bool:
        """Whether it is an identifier by its name."""
        return self.integers and self.others == 0 and _ID.fullmatch(self.name) is not None

    @property
    def is_code(self) -> bool:
        """Whether it is of digits with leading zeros, such as postal codes."""
        return self.integers and self.others == 0 and self.padded is not None

    @property
    def is_all_different(self) -> bool:
        """Whether it may be an identifier: integers, no two of them equal, in any order."""
        return self.integers and self._distinct is not None and self.numbers >= LEAST_DISTINCT

    @property
    def counts_rows(self) -> bool:
        """Whether it is an identifier by what it holds."""
        return self.integers and (self._rising or self._falling) and self.numbers >= LEAST_IDS


class Profile:
    """What the columns of a file hold.

    Parameters
    ----------
    path
        The file.
    names
        Its columns.
    unnamed
        Those without a name of their own.
    notes
        What was assumed of the file.
    widths
        Columns that hold several numbers in each row.
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
        self.columns = [Facts(name, (widths or {}).get(name)) for name in names]
        self.rows = 0

    def finish(self, rows: int, *, whole: bool, line: Callable[[int], int | None] | None = None) -> None:
        """All rows that are looked at have been; `line` tells in which line of the file a row is."""
        self.rows = rows
        for facts in self.columns:
            first = facts.example or facts.padded
            if first is not None and line is not None:
                facts.line = line(first[0])
        if not whole:
            self.notes.append(f"columns of numbers were looked for in the first {rows:,} rows")

    def choose(self, without: Collection[str] = ()) -> tuple[tuple[str, ...], list[LeftOut]]:
        """Columns to cluster where none is named, and those left out.

        Parameters
        ----------
        without
            Columns that are used for something else.
        """
        left: dict[str, LeftOut] = {}
        kept: list[Facts] = []
        names = [facts.name for facts in self.columns]
        for facts in self.columns:
            if facts.name in without:
                continue
            if names.count(facts.name) > 1 and facts.is_numeric:
                raise FileFormatError(
                    f"its header names a column twice: {facts.name}",
                    where=self.path,
                    hint="Rename one of them, or name the columns to read with --fields A,B,...",
                )
            if facts.name in self.unnamed:
                left[facts.name] = LeftOut(facts.name, "a column without a name, as R and pandas write row names")
            elif facts.width is None and not facts.is_numeric:
                left[facts.name] = self._no_number(facts)
            elif facts.width is None and facts.is_called_id:
                left[facts.name] = LeftOut(facts.name, "an identifier by its name")
            elif facts.width is None and facts.is_code:
                row, text = facts.padded or (0, "")
                why = "digits with leading zeros, like a code"
                left[facts.name] = LeftOut(facts.name, why, text.strip()[:40], row, facts.line)
            else:
                kept.append(facts)
        counting = [facts for facts in kept if facts.width is None and facts.counts_rows]
        if len(counting) < len(kept):
            for facts in counting:
                left[facts.name] = LeftOut(facts.name, "integers that only rise or fall, like an identifier")
                kept.remove(facts)
        for facts in kept:
            if facts.width is None and facts.is_all_different and len(kept) > 1:
                self.notes.append(
                    f"column {facts.name} is clustered, but may be an identifier: {facts.numbers:,} integers, no two "
                    "of them equal; to leave it out, name the others with --fields"
                )
            if facts.integers and facts.largest >= 2.0**53:
                self.notes.append(f"integers of column {facts.name} beyond 2**53 are rounded")
        return tuple(facts.name for facts in kept), [left[name] for name in dict.fromkeys(names) if name in left]

    def _no_number(self, facts: Facts) -> LeftOut:
        if facts.reason:
            return LeftOut(facts.name, facts.reason)
        if facts.example is None:
            return LeftOut(facts.name, "no value in it" if self.rows else "no rows")
        row, text = facts.example
        why = cells.why_not(text)
        return LeftOut(facts.name, why, text[:40], row, facts.line)


class Reader(Protocol):
    """One file."""

    names: tuple[str, ...]
    """Columns of its blocks; one of several dimensions is a column for each."""
    single: bool
    """Whether float32 holds all of its values exactly."""
    counted: bool
    """Whether it knows its number of rows from the start."""
    notes: tuple[str, ...]
    """What was assumed of it, or passed over."""

    def rows(self) -> int:
        """How many rows it has."""
        ...

    def ended(self, row: int) -> bool:
        """Whether there is no such row: ``row >= rows()``, without looking further than needed."""
        ...

    def share(self, row: int) -> float:
        """About which share of the file lies before this row, 0 to 1; for progress."""
        ...

    def block(self, row: int) -> Block:
        """A block that contains this row, ``0 <= row < rows()``."""
        ...

    def line(self, row: int) -> int | None:
        """In which line of the file a row begins, from 1; None where a file has no lines."""
        ...

    def profile(self) -> Profile:
        """What its columns hold."""
        ...

    def close(self) -> None:
        """Give the file back."""
        ...


class Counted:
    """A reader that knows its number of rows from the start."""

    counted = True
    notes: tuple[str, ...] = ()
    _rows: int

    def rows(self) -> int:
        """See `Reader`."""
        return self._rows

    def ended(self, row: int) -> bool:
        """See `Reader`."""
        return row >= self._rows

    def share(self, row: int) -> float:
        """See `Reader`."""
        return row / max(1, self._rows)

    def line(self, row: int) -> int | None:
        """See `Reader`."""
        del row
        return None


def from_series(series: pl.Series) -> Column:
    """A column as `ColumnRecords` wants it: numbers with NaN for missing ones, times as seconds, else text."""
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
