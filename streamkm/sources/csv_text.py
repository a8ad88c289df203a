"""Text with separators: which dialect it is, where its rows end, and what stands in them.

Files, bodies of requests and standard input are all read by this. Rows end and cells are quoted as Python's csv module
has it: a quote begins a quoted cell only where the cell begins. Blocks whose quotes pair in the simple way are read by
polars, and all others by the csv module itself.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from streamkm import cells
from streamkm.errors import FileFormatError

if TYPE_CHECKING:
    import polars as pl

HEAD_BYTES = 1 << 16
"""Bytes from the start that tell the dialect, where the header is not longer."""
INDEX = "index"
"""What a column without a name is called."""
PADDED = r"^\s*0[0-9]+\s*$"
"""Digits behind a leading zero: a code rather than a number."""
LONGEST_CELL = 64 << 20
_SEPARATORS = ",\t;| "
_MAYBE_PADDED = re.compile(rb"(?<![0-9.eE+-])0[0-9]")
_PADDED_ROWS = 1000
"""Rows of a block that are looked at for leading zeros."""
_SAMPLE_ROWS = 100
_SHOWN = 60
_QUOTE, _NEWLINE, _RETURN = ord('"'), ord("\n"), ord("\r")
_LEADING_SEPARATOR = re.compile(r"sep=(.)\r?\n?")
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a text has to be read.

    Attributes
    ----------
    separator
        One character.
    blanks
        Whether blanks behind a separator belong to it, so that a quote behind them begins a quoted cell, and several
        blanks are one separator.
    names
        Of the columns; None where the first row is one of numbers. A name may be there several times.
    unnamed
        Those of the names that stand for columns without one.
    width
        Cells of a row, by its header, or by the first row where there is none.
    first
        Byte where the rows begin.
    first_line
        Line where they do, from 1.
    trailing
        Whether each row ends with a separator that the header does not have.
    notes
        What was assumed or passed over, for people.
    """

    separator: str
    blanks: bool
    names: tuple[str, ...] | None
    unnamed: tuple[str, ...]
    width: int
    first: int
    first_line: int
    trailing: bool = False
    notes: tuple[str, ...] = ()

    def rows(self, lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
        """Rows one by one, each with the number of lines read until its end.

        Raises
        ------
        csv.Error
            The text is no csv.
        """
        csv.field_size_limit(LONGEST_CELL)  # of the process; the module's own limit is 128 KiB
        reader = csv.reader(lines, delimiter=self.separator, skipinitialspace=self.blanks)
        for row in reader:
            if self.trailing and len(row) == self.width + 1 and not row[-1].strip():
                del row[-1]
            yield reader.line_num, row


class CsvError(Exception):
    """A block cannot be read; `row` says which row of it is wrong, from 0.

    Parameters
    ----------
    message
        What is wrong.
    row
        Where.
    hint
        What to do.
    """

    def __init__(self, message: str, row: int, hint: str = "") -> None:
        super().__init__(message)
        self.message, self.row, self.hint = message, row, hint


def detect(head: bytes, *, whole: bool, where: str) -> Dialect | None:
    """Find out how a text has to be read.

    Parameters
    ----------
    head
        Its first bytes.
    whole
        Whether there are no more.
    where
        For errors.

    Returns
    -------
    Dialect
        None if more bytes are needed to see the header's end.

    Raises
    ------
    FileFormatError
        There is no header, or nothing at all, or no text in UTF-8.
    """
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            raise FileFormatError(f"it is {encoding.upper()}, not UTF-8 text", where=where, hint=_iconv(encoding))
    begin = len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0
    if b"\n" not in head and b"\r" in head.rstrip(b"\r"):
        raise FileFormatError("its lines end with CR only", where=where, hint="Convert it: tr '\\r' '\\n' <IN >OUT")
    raw = head[begin:].split(b"\n")
    if not whole:
        raw.pop()  # what the last line goes on with is not known
    lines = [line.decode("utf-8", "replace") + "\n" for line in raw]
    if whole and lines:
        lines[-1] = lines[-1][:-1]
    used, separator, comment, notes = _preamble(lines)
    if not "".join(lines[used:]).strip("\r\n"):
        if not whole:
            return None
        raise FileFormatError("it is empty: there is no header", where=where)
    header_lines, dialect = _dialect(lines[used:], separator, comment, where)
    if not whole and header_lines >= len(lines) - used:
        return None
    if dialect.names is None or comment is not None:
        header_lines = 0
    try:
        b"\n".join(raw[: max(used + header_lines, used + 1)]).decode()
    except UnicodeDecodeError as error:
        raise FileFormatError(
            f"it is not UTF-8 text: {error}", where=f"{where}, header", hint=_iconv("latin1")
        ) from error
    first = min(len(head), begin + sum(len(line) + 1 for line in raw[: used + header_lines]))
    return replace(dialect, first=first, first_line=used + header_lines + 1, notes=(*notes, *dialect.notes))


def dialect_of(text: bytes) -> Dialect:
    """Find out how a whole text has to be read.

    Raises
    ------
    FileFormatError
        As `detect`.
    """
    size = HEAD_BYTES
    while True:
        found = detect(text[:size], whole=len(text) <= size, where="csv")
        if found is not None:
            return found
        size *= 4


def _iconv(encoding: str) -> str:
    return f"Convert it: iconv -f {encoding} -t utf-8 IN >OUT"


def _lines(text: str) -> list[str]:
    """Lines with their ends; the last one may have none, or be empty."""
    found = [line + "\n" for line in text.split("\n")]
    found[-1] = found[-1][:-1]
    return found


def _preamble(lines: Sequence[str]) -> tuple[int, str, str | None, list[str]]:
    """Lines before the header: how many, the separator that Excel's ``sep=`` tells, and a header behind a ``#``."""
    used, separator, comments = 0, "", []
    for line in lines:
        told = _LEADING_SEPARATOR.fullmatch(line) if not used else None
        if told:
            separator = told[1]
        elif line.startswith("#"):
            comments.append(line)
        elif line.strip("\r\n"):
            break
        used += 1
    else:
        return used if used < len(lines) else max(0, len(lines) - 1), separator, None, []
    if not comments:
        return used, separator, None, []
    # np.savetxt writes its header as a comment, behind which come numbers.
    first = lines[used]
    for sign in separator or _SEPARATORS:
        names = comments[-1][1:].strip().split(sign)
        values = first.strip().split(sign)
        named = len(names) == len(values) and all(name.strip() for name in names) and not _all_numbers(names)
        if named and _all_numbers(values):
            return used, sign, comments[-1][1:].lstrip(), []
    return used, separator, None, [f"{len(comments)} lines that begin with # were passed over"]


def _dialect(lines: Sequence[str], separator: str, comment: str | None, where: str) -> tuple[int, Dialect]:
    """Lines of the header, and the dialect with the first separator that fits best."""
    best: tuple[tuple[float, int], int, str, bool, list[str], list[list[str]]] | None = None
    for sign in separator or _SEPARATORS:
        source = [comment, *lines] if comment is not None else list(lines)
        blanks = sign == " " or _always_blank(source[0], sign)
        plain = Dialect(sign, blanks, None, (), 0, 0, 1)
        rows = []
        header_lines, at = 0, 0
        try:
            for at, row in plain.rows(source):
                header_lines = header_lines or at
                if row:
                    rows.append(row)
                if len(rows) > _SAMPLE_ROWS:
                    break
        except csv.Error as error:
            if not rows:
                raise FileFormatError(f"it is not csv: {error}", where=f"{where}, header") from error
        if not rows:
            continue
        header, sample = rows[0], rows[1:]
        fitting = [len(row) - len(header) for row in sample]
        share = max(fitting.count(0), fitting.count(1)) / len(fitting) if fitting else 1.0
        if sign == " " and not (fitting and share == 1.0):
            continue  # a name may have blanks
        if len(header) > 1 or best is None:
            score = (share if len(header) > 1 else -1.0, len(header))
            if best is None or score > best[0]:
                best = score, header_lines, sign, blanks, header, sample
    assert best is not None  # noqa: S101 -- the comma is tried, and there is a line
    _, header_lines, sign, blanks, header, sample = best
    return header_lines, _named(Dialect(sign, blanks, None, (), len(header), 0, 1), header, sample, where)


def _always_blank(header: str, sign: str) -> bool:
    return sign in header and re.search(rf"{re.escape(sign)}(?! )", header) is None


def _named(dialect: Dialect, header: list[str], sample: list[list[str]], where: str) -> Dialect:
    """Names of the columns, where the first row is one of names."""
    shown = dialect.separator.join(header)[:_SHOWN]
    names = [name.strip() for name in header]
    notes: list[str] = []
    if not any(names):
        raise FileFormatError(f"its header has no names: {shown!r}", where=where, hint="Add a line of column names")
    # A first column without a name, and others called by a number, such as a year: as pandas writes them.
    pivoted = not names[0] and all(name.isdigit() for name in names[1:])
    if not pivoted and all(_number_like(name) for name in names if name):
        if len(names) < 2 or names != [str(i) for i in range(len(names))]:
            return dialect
        notes.append(f"its first row, {shown}, is taken for names, as pandas writes them")
    trailing = False
    if sample and all(len(row) == len(header) + 1 for row in sample):
        firsts = [row[0] for row in sample]
        if all(not row[-1].strip() for row in sample):
            trailing = True
        elif len(names) > 1 or not _all_numbers(firsts):
            names = ["", *names]
        else:
            raise FileFormatError(
                f"its header has one name less than its rows have values: {shown!r} and {sample[0]}",
                where=where,
                hint="Name all columns; if these are decimal commas, write points",
            )
    unnamed = []
    for i, name in enumerate(names):
        if not name:
            called, n = INDEX, 1
            while called in names:
                n += 1
                called = f"{INDEX}_{n}"
            names[i] = called
            unnamed.append(called)
    return replace(
        dialect, names=tuple(names), unnamed=tuple(unnamed), width=len(names), trailing=trailing, notes=tuple(notes)
    )


def _number_like(text: str) -> bool:
    value = cells.number(text)
    return value is not None and text != ""


def _all_numbers(texts: Sequence[str]) -> bool:
    return all(cells.number(text) is not None for text in texts)


class Ends:
    """Where rows end.

    Parameters
    ----------
    data
        The text.
    ends
        (n,) int64, behind the newline of each row; None where every newline ends one.
    open_quote
        Whether the rest begins a quoted cell that does not end.
    simple
        Whether all quotes pair simply: at the begin and the end of cells, doubled in between.

    Attributes
    ----------
    rows
        n.
    used
        Bytes of all rows.
    """

    def __init__(self, data: bytes, ends: NDArray[np.int64] | None, *, open_quote: bool, simple: bool) -> None:
        self.open_quote, self.simple = open_quote, simple
        self._data, self._ends = data, ends
        if ends is None:  # counting is several times as fast as looking for places
            self.rows, self.used = data.count(b"\n"), data.rfind(b"\n") + 1
        else:
            self.rows, self.used = len(ends), int(ends[-1]) if len(ends) else 0

    @property
    def lines(self) -> int:
        """Lines of all rows."""
        return self.rows if self._ends is None else self._data.count(b"\n", 0, self.used)

    @property
    def ends(self) -> NDArray[np.int64]:
        """(n,) int64, behind the newline of each row."""
        if self._ends is None:
            self._ends = _newlines(self._data) + 1
        return self._ends


def _newlines(data: bytes) -> NDArray[np.int64]:
    return np.flatnonzero(np.frombuffer(data, np.uint8) == _NEWLINE)


def row_ends(data: bytes, dialect: Dialect) -> Ends:
    """Find the ends of rows in a text that begins with one."""
    if b'"' not in data:
        return Ends(data, None, open_quote=False, simple=True)
    raw, newlines = np.frombuffer(data, np.uint8), _newlines(data)
    quotes = np.flatnonzero(raw == _QUOTE)
    if dialect.blanks or not _pair(raw, quotes, ord(dialect.separator)):
        return _ends_by_csv(data, newlines, dialect)
    rows = newlines[np.searchsorted(quotes, newlines) % 2 == 0]
    return Ends(data, rows + 1, open_quote=len(quotes) % 2 == 1, simple=True)


def _pair(raw: NDArray[np.uint8], quotes: NDArray[np.int64], separator: int) -> bool:
    """Whether quotes open where cells begin, and close where they end or are doubled."""
    opening, closing = quotes[::2], quotes[1::2]
    before = raw[np.maximum(opening - 1, 0)]
    opens = (opening == 0) | (before == separator) | (before == _NEWLINE) | (before == _QUOTE)
    behind = raw[np.minimum(closing + 1, len(raw) - 1)]
    closes = (behind == separator) | (behind == _NEWLINE) | (behind == _RETURN) | (behind == _QUOTE)
    return bool(opens.all() and (closes | (closing == len(raw) - 1)).all())


def _ends_by_csv(data: bytes, newlines: NDArray[np.int64], dialect: Dialect) -> Ends:
    lines = [line + "\n" for line in data.decode("latin-1").split("\n")[:-1]]
    mark = "\x01"  # whether this is a row of its own tells whether the last one ended before it
    found: list[int] = []
    last: list[str] = []
    try:
        for at, last in dialect.rows([*lines, mark]):  # noqa: B007 -- the last one is looked at below
            found.append(at)
    except csv.Error:
        return Ends(
            data, newlines + 1, open_quote=False, simple=False
        )  # the row that is wrong is found when it is read
    open_quote = last != [mark]
    ends = newlines[np.array(found[:-1], np.int64) - 1] + 1
    rest = data[int(ends[-1]) if len(ends) else 0 :]
    if not open_quote and b'"' in rest:  # a line without its newline
        with contextlib.suppress(csv.Error):
            rows = [row for _, row in dialect.rows([rest.decode("latin-1"), "\n", mark])]
            open_quote = rows[-1:] != [[mark]]
    return Ends(data, ends, open_quote=open_quote, simple=False)


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """What rows hold.

    Attributes
    ----------
    columns
        One for each wanted column: Float64 with NaN for missing values where all cells are numbers, else String with
        null for missing values.
    long
        Rows that have more cells than the header, from 0, each with the number of its cells. None of their cells is
        taken: which column is which is not known.
    """

    columns: list[pl.Series]
    long: dict[int, int]


def read(
    data: bytes, dialect: Dialect, wanted: Sequence[int], texts: Collection[int] = (), ends: Ends | None = None
) -> Cells:
    """Read whole rows.

    Parameters
    ----------
    data
        Rows, each with its newline.
    dialect
        How.
    wanted
        Places of columns.
    texts
        Those of them that are known to be no plain numbers: the result is the same, and sooner there.
    ends
        From `row_ends` where it is known.

    Raises
    ------
    CsvError
        It is no csv, or no text in UTF-8.
    """
    import polars as pl  # noqa: PLC0415 -- an image without it still finds dialects and rows

    ends = ends or row_ends(data, dialect)
    # polars does not look at the number of cells where columns are chosen.
    if ends.simple and dialect.separator != " " and not _any_long(data, dialect):
        places = [*wanted, *([dialect.width] if dialect.trailing else ())]
        header = dialect.separator.join(f"c{i}" for i in range(dialect.width + dialect.trailing))
        source = header.encode() + b"\n" + data
        attempts = [{i: pl.String if i in texts else pl.Float64 for i in wanted}]
        if len(texts) < len(wanted):
            attempts.append(dict.fromkeys(wanted, pl.String))
        for kinds in attempts:
            try:
                frame = pl.read_csv(
                    io.BytesIO(source),
                    separator=dialect.separator,
                    quote_char='"' if b'"' in data else None,
                    schema={f"c{i}": kinds.get(i, pl.String) for i in range(dialect.width + dialect.trailing)},
                    columns=[f"c{i}" for i in places],
                )
            except (pl.exceptions.PolarsError, UnicodeDecodeError):
                continue
            if dialect.trailing and (frame[f"c{dialect.width}"].str.strip_chars() != "").any():
                break
            if frame.height == ends.rows:
                return Cells([_cleaned(frame[f"c{i}"]) for i in wanted], {})
    return _read_by_csv(data, dialect, wanted)


def padded(data: bytes, dialect: Dialect, ends: Ends | None = None) -> dict[int, tuple[int, str]]:
    """Columns that have digits behind a leading zero, each with the first row of those, from 0, and its cell.

    Raises
    ------
    CsvError
        It is no csv.
    """
    found: dict[int, tuple[int, str]] = {}
    places = [match.start() for match in _MAYBE_PADDED.finditer(data)]
    if not places:
        return found
    behind = (ends or row_ends(data, dialect)).ends
    for row in np.unique(np.searchsorted(behind, places, side="right"))[:_PADDED_ROWS].tolist():
        text = data[int(behind[row - 1]) if row else 0 : int(behind[row])].decode("utf-8", "replace")
        try:
            cells_ = next(dialect.rows(_lines(text)))[1]
        except csv.Error as error:
            raise CsvError(f"it is not csv: {error}", row) from error
        for place, cell in enumerate(cells_):
            if place not in found and re.match(PADDED, cell):
                found[place] = (row, cell)
    return found


def _any_long(data: bytes, dialect: Dialect) -> bool:
    """Whether any row has more cells than can be; quotes pair simply."""
    raw = np.frombuffer(data, np.uint8)
    marks = np.flatnonzero((raw == ord(dialect.separator)) | (raw == _NEWLINE))
    if b'"' in data:
        quotes = np.flatnonzero(raw == _QUOTE)
        marks = marks[np.searchsorted(quotes, marks) % 2 == 0]
    cells_of_rows = np.diff(np.flatnonzero(raw[marks] == _NEWLINE), prepend=-1)
    return bool((cells_of_rows > dialect.width + dialect.trailing).any())


def _read_by_csv(data: bytes, dialect: Dialect, wanted: Sequence[int]) -> Cells:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        row = int(np.searchsorted(row_ends(data, dialect).ends, error.start, side="right"))
        raise CsvError(f"it is not UTF-8 text: {error}", row, _iconv("latin1")) from error
    columns: list[list[str]] = [[] for _ in wanted]
    long: dict[int, int] = {}
    row = 0
    lines = _lines(text)
    if not lines[-1]:
        lines.pop()
    try:
        for _, found in dialect.rows(lines):
            if len(found) > dialect.width:
                long[row] = len(found)
            for column, place in zip(columns, wanted, strict=True):
                column.append(found[place] if place < len(found) <= dialect.width else "")
            row += 1
    except csv.Error as error:
        raise CsvError(f"it is not csv: {error}", row) from error
    import polars as pl  # noqa: PLC0415 -- see above

    return Cells([_cleaned(pl.Series(column, dtype=pl.String)) for column in columns], long)


def _cleaned(series: pl.Series) -> pl.Series:
    """Numbers if all cells are, else text; without missing values either way."""
    if series.dtype.is_float():
        return series.fill_null(float("nan"))
    numbers, missing = numbers_of(series)
    if not (numbers.is_null() & ~missing).any():
        return numbers.fill_null(float("nan"))
    return series.set(missing, None) if missing.any() else series


def numbers_of(series: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Text as numbers, null where it is none, and which of it is missing.

    Parameters
    ----------
    series
        (n,) String.

    Returns
    -------
    numbers, missing
        (n,) Float64, (n,) Boolean; a missing value is no number.
    """
    import polars as pl  # noqa: PLC0415 -- see above

    stripped = series.str.strip_chars()
    missing = stripped.is_null() | stripped.str.to_lowercase().is_in(list(cells.MISSING)).fill_null(value=True)
    return stripped.set(missing, None).cast(pl.Float64, strict=False), missing
