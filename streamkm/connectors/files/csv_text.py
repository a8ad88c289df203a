"""Text with separators: detection of the dialect, ends of rows, and values of cells.

Used for files, request bodies and standard input. Rows end and cells are quoted as in Python's csv module: a quote
opens a quoted cell only at the start of the cell. Blocks with simple quoting are parsed by polars, all others by the
csv module.
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
"""Bytes at the start of a text from which the dialect is detected, if the header is not longer."""
UNNAMED_COLUMN = "index"
"""Name of a column that has no name in the header."""
LEADING_ZERO_PATTERN = r"^\s*0[0-9]+\s*$"
"""Digits with a leading zero: a code, not a number."""
MAX_CELL_CHARACTERS = 64 << 20
_SEPARATORS = ",\t;| "
_LEADING_ZERO_BYTES = re.compile(rb"(?<![0-9.eE+-])0[0-9]")
_MAX_LEADING_ZERO_ROWS = 1000
"""Maximum number of rows of a block that are searched for leading zeros."""
_SAMPLE_ROWS = 100
_MAX_SHOWN = 60
_QUOTE, _NEWLINE, _RETURN = ord('"'), ord("\n"), ord("\r")
_LEADING_SEPARATOR = re.compile(r"sep=(.)\r?\n?")
_ENCODING_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a text is parsed.

    Attributes
    ----------
    separator
        One character.
    blanks
        Whether blanks after a separator belong to it, so that a quote after them opens a quoted cell, and consecutive
        blanks are one separator.
    names
        Column names; None if the first row is numeric. Names may occur twice.
    unnamed
        Generated names, of columns that have none in the header.
    width
        Number of cells per row by the header, or by the first row if there is none.
    first
        Index of the byte where the rows begin.
    first_line
        Line number where the rows begin, from 1.
    trailing
        Whether each row ends with a separator that the header does not have.
    notes
        Assumptions and skipped content, as messages.
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
        """Rows one by one, each with the number of lines read up to its end.

        Raises
        ------
        csv.Error
            The text is not csv.
        """
        csv.field_size_limit(MAX_CELL_CHARACTERS)  # process-wide; the default is 128 KiB
        reader = csv.reader(lines, delimiter=self.separator, skipinitialspace=self.blanks)
        for row in reader:
            if self.trailing and len(row) == self.width + 1 and not row[-1].strip():
                del row[-1]
            yield reader.line_num, row


class CsvError(Exception):
    """A block cannot be parsed.

    Parameters
    ----------
    message
        What is wrong.
    row
        Index of the row in the block.
    hint
        How to correct it.
    """

    def __init__(self, message: str, row: int, hint: str = "") -> None:
        super().__init__(message)
        self.message, self.row, self.hint = message, row, hint


def detect(head: bytes, *, whole: bool, where: str) -> Dialect | None:
    """Detect the dialect of a text.

    Parameters
    ----------
    head
        Its first bytes.
    whole
        Whether `head` is the whole text.
    where
        Name of the text, for errors.

    Returns
    -------
    Dialect or None
        None if the header is longer than `head`.

    Raises
    ------
    FileFormatError
        The text is empty, has no header, or is not UTF-8.
    """
    for mark, encoding in _ENCODING_MARKS:
        if head.startswith(mark):
            raise FileFormatError(f"the text is {encoding.upper()}, not UTF-8", where=where, hint=_iconv(encoding))
    begin = len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0
    if b"\n" not in head and b"\r" in head.rstrip(b"\r"):
        raise FileFormatError("the lines end with CR only", where=where, hint="Convert it: tr '\\r' '\\n' <IN >OUT")
    raw = head[begin:].split(b"\n")
    if not whole:
        raw.pop()  # the last line may be incomplete
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
            f"the text is not UTF-8: {error}", where=f"{where}, header", hint=_iconv("latin1")
        ) from error
    first = min(len(head), begin + sum(len(line) + 1 for line in raw[: used + header_lines]))
    return replace(dialect, first=first, first_line=used + header_lines + 1, notes=(*notes, *dialect.notes))


def dialect_of(text: bytes) -> Dialect:
    """Detect the dialect of a complete text.

    Raises
    ------
    FileFormatError
        See `detect`.
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
    """Lines with their newlines; the last one may have none, or be empty."""
    found = [line + "\n" for line in text.split("\n")]
    found[-1] = found[-1][:-1]
    return found


def _preamble(lines: Sequence[str]) -> tuple[int, str, str | None, list[str]]:
    """Lines before the header: their number, the separator of Excel's ``sep=``, a header in a comment, and notes."""
    used, separator, comments = 0, "", []
    for line in lines:
        match = _LEADING_SEPARATOR.fullmatch(line) if not used else None
        if match:
            separator = match[1]
        elif line.startswith("#"):
            comments.append(line)
        elif line.strip("\r\n"):
            break
        used += 1
    else:
        return used if used < len(lines) else max(0, len(lines) - 1), separator, None, []
    if not comments:
        return used, separator, None, []
    # np.savetxt writes its header as a comment, followed by rows of numbers.
    first = lines[used]
    for sign in separator or _SEPARATORS:
        names = comments[-1][1:].strip().split(sign)
        values = first.strip().split(sign)
        named = len(names) == len(values) and all(name.strip() for name in names) and not _all_numbers(names)
        if named and _all_numbers(values):
            return used, sign, comments[-1][1:].lstrip(), []
    return used, separator, None, [f"{len(comments)} lines that begin with # were skipped"]


def _dialect(lines: Sequence[str], separator: str, comment: str | None, where: str) -> tuple[int, Dialect]:
    """Number of header lines, and the dialect with the separator that fits best; of equals the first."""
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
                raise FileFormatError(f"the text is not csv: {error}", where=f"{where}, header") from error
        if not rows:
            continue
        header, sample = rows[0], rows[1:]
        fitting = [len(row) - len(header) for row in sample]
        share = max(fitting.count(0), fitting.count(1)) / len(fitting) if fitting else 1.0
        if sign == " " and not (fitting and share == 1.0):
            continue  # names may contain blanks
        if len(header) > 1 or best is None:
            score = (share if len(header) > 1 else -1.0, len(header))
            if best is None or score > best[0]:
                best = score, header_lines, sign, blanks, header, sample
    assert best is not None  # noqa: S101 -- there is at least one line, and the comma always fits
    _, header_lines, sign, blanks, header, sample = best
    return header_lines, _named(Dialect(sign, blanks, None, (), len(header), 0, 1), header, sample, where)


def _always_blank(header: str, sign: str) -> bool:
    return sign in header and re.search(rf"{re.escape(sign)}(?! )", header) is None


def _named(dialect: Dialect, header: list[str], sample: list[list[str]], where: str) -> Dialect:
    """Add the column names to a dialect, if the first row has names."""
    shown = dialect.separator.join(header)[:_MAX_SHOWN]
    names = [name.strip() for name in header]
    notes: list[str] = []
    if not any(names):
        raise FileFormatError(f"the header has no names: {shown!r}", where=where, hint="Add a line of column names")
    # pandas pivot tables: a first column without a name, and others named by numbers, such as years.
    pivoted = not names[0] and all(name.isdigit() for name in names[1:])
    if not pivoted and all(_number_like(name) for name in names if name):
        if len(names) < 2 or names != [str(i) for i in range(len(names))]:
            return dialect
        notes.append(f"the first row, {shown}, is taken for column names, as pandas writes them")
    trailing = False
    if sample and all(len(row) == len(header) + 1 for row in sample):
        firsts = [row[0] for row in sample]
        if all(not row[-1].strip() for row in sample):
            trailing = True
        elif len(names) > 1 or not _all_numbers(firsts):
            names = ["", *names]
        else:
            raise FileFormatError(
                f"the header has one name less than the rows have values: {shown!r} and {sample[0]}",
                where=where,
                hint="Name all columns; if the values have decimal commas, use decimal points",
            )
    unnamed = []
    for i, name in enumerate(names):
        if not name:
            generated, n = UNNAMED_COLUMN, 1
            while generated in names:
                n += 1
                generated = f"{UNNAMED_COLUMN}_{n}"
            names[i] = generated
            unnamed.append(generated)
    return replace(
        dialect, names=tuple(names), unnamed=tuple(unnamed), width=len(names), trailing=trailing, notes=tuple(notes)
    )


def _number_like(text: str) -> bool:
    value = cells.parse_number(text)
    return value is not None and text != ""


def _all_numbers(texts: Sequence[str]) -> bool:
    return all(cells.parse_number(text) is not None for text in texts)


class RowEnds:
    """Ends of the rows in a text.

    Parameters
    ----------
    data
        The text.
    ends
        (n,) index behind the newline of each row; None if every newline ends a row.
    open_quote
        Whether the text ends inside a quoted cell.
    simple
        Whether quotes occur only around whole cells, and doubled inside of them.

    Attributes
    ----------
    rows
        Number of rows, n.
    used
        Number of bytes of all rows.
    """

    def __init__(self, data: bytes, ends: NDArray[np.int64] | None, *, open_quote: bool, simple: bool) -> None:
        self.open_quote, self.simple = open_quote, simple
        self._data, self._ends = data, ends
        if ends is None:  # counting is several times faster than finding positions
            self.rows, self.used = data.count(b"\n"), data.rfind(b"\n") + 1
        else:
            self.rows, self.used = len(ends), int(ends[-1]) if len(ends) else 0

    @property
    def lines(self) -> int:
        """Number of lines of all rows."""
        return self.rows if self._ends is None else self._data.count(b"\n", 0, self.used)

    @property
    def ends(self) -> NDArray[np.int64]:
        """(n,) index behind the newline of each row."""
        if self._ends is None:
            self._ends = _newlines(self._data) + 1
        return self._ends


def _newlines(data: bytes) -> NDArray[np.int64]:
    return np.flatnonzero(np.frombuffer(data, np.uint8) == _NEWLINE)


def row_ends(data: bytes, dialect: Dialect) -> RowEnds:
    """Find the ends of the rows in a text that begins with a row."""
    if b'"' not in data:
        return RowEnds(data, None, open_quote=False, simple=True)
    raw, newlines = np.frombuffer(data, np.uint8), _newlines(data)
    quotes = np.flatnonzero(raw == _QUOTE)
    if dialect.blanks or not _pair(raw, quotes, ord(dialect.separator)):
        return _ends_by_csv(data, newlines, dialect)
    rows = newlines[np.searchsorted(quotes, newlines) % 2 == 0]
    return RowEnds(data, rows + 1, open_quote=len(quotes) % 2 == 1, simple=True)


def _pair(raw: NDArray[np.uint8], quotes: NDArray[np.int64], separator: int) -> bool:
    """Whether quotes open at the start of cells, and close at their end or are doubled."""
    opening, closing = quotes[::2], quotes[1::2]
    before = raw[np.maximum(opening - 1, 0)]
    opens = (opening == 0) | (before == separator) | (before == _NEWLINE) | (before == _QUOTE)
    behind = raw[np.minimum(closing + 1, len(raw) - 1)]
    closes = (behind == separator) | (behind == _NEWLINE) | (behind == _RETURN) | (behind == _QUOTE)
    return bool(opens.all() and (closes | (closing == len(raw) - 1)).all())


def _ends_by_csv(data: bytes, newlines: NDArray[np.int64], dialect: Dialect) -> RowEnds:
    lines = [line + "\n" for line in data.decode("latin-1").split("\n")[:-1]]
    mark = "\x01"  # it is a separate row if and only if the last row is complete
    found: list[int] = []
    last: list[str] = []
    try:
        for at, last in dialect.rows([*lines, mark]):  # noqa: B007 -- used below
            found.append(at)
    except csv.Error:
        return RowEnds(data, newlines + 1, open_quote=False, simple=False)  # the invalid row raises when it is read
    open_quote = last != [mark]
    ends = newlines[np.array(found[:-1], np.int64) - 1] + 1
    rest = data[int(ends[-1]) if len(ends) else 0 :]
    if not open_quote and b'"' in rest:  # a line without newline
        with contextlib.suppress(csv.Error):
            rows = [row for _, row in dialect.rows([rest.decode("latin-1"), "\n", mark])]
            open_quote = rows[-1:] != [[mark]]
    return RowEnds(data, ends, open_quote=open_quote, simple=False)


@dataclass(frozen=True, slots=True, eq=False)
class ParsedRows:
    """Result of `read`.

    Attributes
    ----------
    columns
        One per selected column: Float64 with NaN for missing values if all cells are numbers, else String with null for
        missing values.
    long_rows
        Number of cells by row, from 0, for rows with more cells than the header. All their values are missing, because
        it is unknown to which columns the cells belong.
    """

    columns: list[pl.Series]
    long_rows: dict[int, int]


def read(
    data: bytes, dialect: Dialect, selected: Sequence[int], texts: Collection[int] = (), ends: RowEnds | None = None
) -> ParsedRows:
    """Parse complete rows.

    Parameters
    ----------
    data
        Rows, each with its newline.
    dialect
        Dialect of the text.
    selected
        Indices of the columns to parse.
    texts
        Indices of columns known not to be numeric; only saves time.
    ends
        Result of `row_ends`, if it is known.

    Raises
    ------
    CsvError
        The text is not csv, or not UTF-8.
    """
    import polars as pl  # noqa: PLC0415 -- detection works without polars

    ends = ends or row_ends(data, dialect)
    # polars does not check the number of cells if columns are selected.
    if ends.simple and dialect.separator != " " and not _has_long_rows(data, dialect):
        places = [*selected, *([dialect.width] if dialect.trailing else ())]
        header = dialect.separator.join(f"c{i}" for i in range(dialect.width + dialect.trailing))
        source = header.encode() + b"\n" + data
        attempts = [{i: pl.String if i in texts else pl.Float64 for i in selected}]
        if len(texts) < len(selected):
            attempts.append(dict.fromkeys(selected, pl.String))
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
                return ParsedRows([_cleaned(frame[f"c{i}"]) for i in selected], {})
    return _read_by_csv(data, dialect, selected)


def find_leading_zeros(data: bytes, dialect: Dialect, ends: RowEnds | None = None) -> dict[int, tuple[int, str]]:
    """First cell of digits with a leading zero, such as ``00501``, by column index.

    Returns
    -------
    dict
        Row, from 0, and text of the cell, by column index.

    Raises
    ------
    CsvError
        The text is not csv.
    """
    found: dict[int, tuple[int, str]] = {}
    places = [match.start() for match in _LEADING_ZERO_BYTES.finditer(data)]
    if not places:
        return found
    row_stops = (ends or row_ends(data, dialect)).ends
    for row in np.unique(np.searchsorted(row_stops, places, side="right"))[:_MAX_LEADING_ZERO_ROWS].tolist():
        text = data[int(row_stops[row - 1]) if row else 0 : int(row_stops[row])].decode("utf-8", "replace")
        try:
            cells = next(dialect.rows(_lines(text)))[1]
        except csv.Error as error:
            raise CsvError(f"the text is not csv: {error}", row) from error
        for place, cell in enumerate(cells):
            if place not in found and re.match(LEADING_ZERO_PATTERN, cell):
                found[place] = (row, cell)
    return found


def _has_long_rows(data: bytes, dialect: Dialect) -> bool:
    """Whether any row has more cells than the header; only for simple quoting."""
    raw = np.frombuffer(data, np.uint8)
    cell_ends = np.flatnonzero((raw == ord(dialect.separator)) | (raw == _NEWLINE))
    if b'"' in data:
        quotes = np.flatnonzero(raw == _QUOTE)
        cell_ends = cell_ends[np.searchsorted(quotes, cell_ends) % 2 == 0]
    cell_counts = np.diff(np.flatnonzero(raw[cell_ends] == _NEWLINE), prepend=-1)
    return bool((cell_counts > dialect.width + dialect.trailing).any())


def _read_by_csv(data: bytes, dialect: Dialect, selected: Sequence[int]) -> ParsedRows:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        row = int(np.searchsorted(row_ends(data, dialect).ends, error.start, side="right"))
        raise CsvError(f"the text is not UTF-8: {error}", row, _iconv("latin1")) from error
    columns: list[list[str]] = [[] for _ in selected]
    long_rows: dict[int, int] = {}
    row = 0
    lines = _lines(text)
    if not lines[-1]:
        lines.pop()
    try:
        for _, found in dialect.rows(lines):
            if len(found) > dialect.width:
                long_rows[row] = len(found)
            for column, place in zip(columns, selected, strict=True):
                column.append(found[place] if place < len(found) <= dialect.width else "")
            row += 1
    except csv.Error as error:
        raise CsvError(f"the text is not csv: {error}", row) from error
    import polars as pl  # noqa: PLC0415 -- as above

    return ParsedRows([_cleaned(pl.Series(column, dtype=pl.String)) for column in columns], long_rows)


def _cleaned(series: pl.Series) -> pl.Series:
    """Numbers if all cells are numbers, else text with null for missing values."""
    if series.dtype.is_float():
        return series.fill_null(float("nan"))
    numbers, missing = numbers_of(series)
    if not (numbers.is_null() & ~missing).any():
        return numbers.fill_null(float("nan"))
    return series.set(missing, None) if missing.any() else series


def numbers_of(series: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Convert text to numbers.

    Parameters
    ----------
    series
        (n,) String.

    Returns
    -------
    numbers
        (n,) Float64; null where the text is missing or not a number.
    missing
        (n,) Boolean; whether the value is missing.
    """
    import polars as pl  # noqa: PLC0415 -- see above

    stripped = series.str.strip_chars()
    missing = stripped.is_null() | stripped.str.to_lowercase().is_in(list(cells.MISSING)).fill_null(value=True)
    return stripped.set(missing, None).cast(pl.Float64, strict=False), missing
