"""Reads and writes points as CSV and Arrow streams.

The libraries are imported with the first table: that takes a while, and many services see no table.
"""

from __future__ import annotations

import csv
import io
import struct
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from streamkm import cells
from streamkm.errors import FileFormatError
from streamkm.service.problems import Problem

if TYPE_CHECKING:
    from streamkm.connectors.files.csv_text import Dialect

Reals = NDArray[np.float64]

_MAX_FIELDS_SHOWN, _MAX_CHARS_SHOWN = 20, 100
"""Fields and characters that an error message repeats."""
_BOM = b"\xef\xbb\xbf"


def read_csv(body: bytes, fields: Sequence[str]) -> Reals:
    """Read points from CSV: columns by name, or the fields in their order if there is no header.

    Parameters
    ----------
    body
        UTF-8, in any dialect of `csv_text`. Columns that are not fields are ignored. A first line of numbers is not a
        header.
    fields
        Names of the d dimensions.

    Returns
    -------
    points
        (n, d), all finite, in Fortran order.

    Raises
    ------
    Problem
        400: not CSV. 422: the first invalid line and field.
    """
    import polars as pl  # noqa: PLC0415 - see above

    from streamkm.connectors.files import csv_text  # noqa: PLC0415 - it imports polars

    if not body.removeprefix(_BOM).strip(b"\r\n"):
        return np.empty((0, len(fields)))
    try:
        dialect = csv_text.dialect_of(body)
    except FileFormatError as e:
        raise Problem(400, "invalid", f"not CSV in UTF-8 ({e.message})", where="line 1") from e
    columns_of_fields = _column_indices(dialect, fields)
    data = body[dialect.first :].rstrip(b"\r\n")
    data = data + b"\n" if data else b""
    ends = csv_text.row_ends(data, dialect)
    if ends.open_quote:
        line = dialect.first_line + data.count(b"\n", 0, ends.used)
        raise Problem(400, "invalid", "not CSV (it ends inside a quoted value)", where=f"line {line}")
    try:
        parsed = csv_text.read(data, dialect, columns_of_fields, (), ends)
        columns = [] if parsed.long_rows else parsed.columns
    except csv_text.CsvError:
        columns = []
    points = np.empty((ends.rows, len(fields)), order="F")
    for j, column in enumerate(columns):
        if column.dtype != pl.Float64:
            columns = []
            break
        points[:, j] = column.to_numpy()
    if not columns or not np.isfinite(points).all():
        raise _csv_error(data, fields, dialect, columns_of_fields)
    return points


def _column_indices(dialect: Dialect, fields: Sequence[str]) -> list[int]:
    """The column of each field."""
    if dialect.names is None:
        if dialect.width != len(fields):
            raise Problem(422, "wrong-dimension", _dimension_message(dialect.width, fields), where="line 1")
        return list(range(len(fields)))
    if missing := [f for f in fields if f not in dialect.names]:
        raise Problem(
            422,
            "missing-field",
            f"there is no column {', '.join(missing[:_MAX_FIELDS_SHOWN])}",
            where="line 1",
            hint=f"Name the fields in the first line, or leave it out: {', '.join(fields[:_MAX_FIELDS_SHOWN])}",
        )
    for name in fields:
        if dialect.names.count(name) > 1:
            raise Problem(422, "invalid", "there are several columns of this name", where=f"field {name}")
    return [dialect.names.index(name) for name in fields]


def _csv_error(data: bytes, fields: Sequence[str], dialect: Dialect, indices: Sequence[int]) -> Problem:
    """The error in the first invalid line."""
    try:
        text = data.decode()
    except UnicodeDecodeError as e:
        line = data.count(b"\n", 0, e.start) + dialect.first_line
        return Problem(400, "invalid", f"not UTF-8 ({e.reason})", where=f"line {line}")
    line = dialect.first_line
    try:
        for line, row in dialect.rows(io.StringIO(text, newline="")):
            problem = _row_error(row, fields, dialect, indices, f"line {line + dialect.first_line - 1}")
            if problem is not None:
                return problem
    except csv.Error as e:
        return Problem(400, "invalid", f"not CSV ({e})", where=f"line {line + dialect.first_line}")
    return Problem(400, "invalid", "not CSV (unreadable)", where="body")


def _row_error(  # noqa: PLR0911 - one return per kind of error
    row: Sequence[str], fields: Sequence[str], dialect: Dialect, indices: Sequence[int], where: str
) -> Problem | None:
    if not row:
        return Problem(422, "missing-field", "an empty line", where=where)
    if len(row) > dialect.width:
        return Problem(422, "wrong-dimension", f"{len(row)} values, others have {dialect.width}", where=where)
    for field, index in zip(fields, indices, strict=True):
        if index >= len(row):
            return Problem(422, "wrong-dimension", _dimension_message(len(row), fields), where=where)
        value = cells.parse_number(row[index])
        location = f"{where}, field {field}"
        if value is None:
            why = cells.explain_non_number(row[index])
            message = f"{row[index][:_MAX_CHARS_SHOWN]!r} is not a number" + (f" ({why})" if why != "text" else "")
            return Problem(422, "not-a-number", message, where=location)
        if np.isnan(value):
            return Problem(422, "missing-field", "is missing", where=location)
        if not np.isfinite(value):
            return Problem(422, "not-finite", "not a finite number", where=location)
    return None


def read_arrow(body: bytes, fields: Sequence[str]) -> Reals:
    """Read points from an Arrow stream: numeric columns by name.

    Parameters
    ----------
    body
        Arrow IPC stream without compression, whose decompressed size would not be bounded. Columns that are not fields
        are ignored.
    fields
        Names of the d dimensions.

    Returns
    -------
    points
        (n, d), all finite, in Fortran order.

    Raises
    ------
    Problem
        400: not an Arrow stream. 415: compressed. 422: the first invalid column and row.
    """
    if compressed(body):
        raise Problem(
            415,
            "unsupported-media-type",
            "compressed record batches are not accepted",
            where="body",
            hint="Write the stream without compression",
        )
    try:
        columns = _arrow_columns(body, fields)
    except (ValueError, OSError, TypeError) as e:
        raise Problem(400, "invalid", f"not an Arrow stream ({str(e)[:200]})", where="body") from e
    for name, chunks in columns.items():
        for start, piece, nulls in chunks:
            if nulls is not None:
                where = f"row {start + int(np.argmax(nulls))}, field {name}"
                raise Problem(422, "missing-field", "is null", where=where)
            if piece.dtype.kind not in "fiu":
                raise Problem(422, "not-a-number", f"a column of {piece.dtype}, not of numbers", where=f"field {name}")
    n = sum(len(piece) for _, piece, _ in columns[fields[0]])
    points = np.empty((n, len(fields)), order="F")
    for j, name in enumerate(fields):
        for start, piece, _ in columns[name]:
            points[start : start + len(piece), j] = piece
    finite = np.isfinite(points)
    if not finite.all():
        row = int(np.argmin(finite.all(axis=1)))
        where = f"row {row}, field {fields[int(np.argmin(finite[row]))]}"
        raise Problem(422, "not-finite", "not a finite number", where=where)
    return points


Chunks = list[tuple[int, NDArray[Any], NDArray[np.bool_] | None]]
"""First row, values, and mask of the nulls (None without nulls) of each chunk of a column."""


def _arrow_columns(body: bytes, fields: Sequence[str]) -> Mapping[str, Chunks]:
    try:
        import pyarrow as pa  # type: ignore[import-untyped]  # noqa: PLC0415 - optional
    except ImportError:
        return _polars_columns(body, fields)
    result: dict[str, Chunks] = {name: [] for name in fields}
    with pa.ipc.open_stream(pa.py_buffer(body)) as stream:
        types = {f.name: f.type for f in stream.schema}
        indices = _arrow_indices(stream.schema.names, fields)
        for name in fields:
            dtype = types[name]
            if not (pa.types.is_integer(dtype) or pa.types.is_floating(dtype)):
                raise Problem(422, "not-a-number", f"a column of {dtype}, not of numbers", where=f"field {name}")
        start = 0
        for batch in stream:
            for name, index in indices.items():
                column = batch.column(index)
                column.validate()  # checks the lengths of its buffers
                nulls = column.is_null().to_numpy(zero_copy_only=False) if column.null_count else None
                values = np.zeros(len(column)) if nulls is not None else column.to_numpy(zero_copy_only=True)
                result[name].append((start, values, nulls))
            start += len(batch)
    return result


def _polars_columns(body: bytes, fields: Sequence[str]) -> Mapping[str, Chunks]:
    """The columns of the fields, read without pyarrow."""
    import polars as pl  # noqa: PLC0415 - see above

    try:
        frame = pl.read_ipc_stream(io.BytesIO(body))
    except (pl.exceptions.PolarsError, OSError) as e:
        raise ValueError(str(e)) from e
    _arrow_indices(frame.columns, fields)
    result: dict[str, Chunks] = {}
    for name in fields:
        column = frame[name]
        if not column.dtype.is_numeric():
            raise Problem(422, "not-a-number", f"a column of {column.dtype}, not of numbers", where=f"field {name}")
        nulls = column.is_null().to_numpy() if column.null_count() else None
        result[name] = [(0, np.zeros(len(column)) if nulls is not None else column.to_numpy(), nulls)]
    return result


def _arrow_indices(names: Sequence[str], fields: Sequence[str]) -> dict[str, int]:
    """The column of each field."""
    hint = f"The fields are {', '.join(fields[:_MAX_FIELDS_SHOWN])}"
    for name in fields:
        if name not in names:
            raise Problem(422, "missing-field", "there is no column of this name", where=f"field {name}", hint=hint)
        if names.count(name) > 1:
            raise Problem(422, "invalid", "there are several columns of this name", where=f"field {name}")
    return {name: names.index(name) for name in fields}


def compressed(body: bytes) -> bool:
    """Whether a record batch of an Arrow stream is compressed.

    The messages are flatbuffers (Arrow's ``Message.fbs``): a batch is a `RecordBatch`, whose fourth field is the
    compression. A stream that cannot be parsed is left to the library, which refuses it.
    """
    at = 0
    try:
        while at + 8 <= len(body):
            (marker, size) = struct.unpack_from("<Ii", body, at)
            at += 8
            if marker != 0xFFFFFFFF:  # before version 0.15 there was no marker
                at, size = at - 4, marker
            if size <= 0:
                return False
            message = at + struct.unpack_from("<I", body, at)[0]
            header = _slot(body, message, 2)
            if header and body[_slot(body, message, 1)] in (2, 3):  # a dictionary batch, or a record batch
                batch = header + struct.unpack_from("<I", body, header)[0]
                if body[_slot(body, message, 1)] == 2:
                    data = _slot(body, batch, 1)
                    batch = data + struct.unpack_from("<I", body, data)[0] if data else batch
                if _slot(body, batch, 3):
                    return True
            length = _slot(body, message, 3)
            at += size + (struct.unpack_from("<q", body, length)[0] if length else 0)
            if at < 0:
                return False
    except (struct.error, IndexError):
        return False
    return False


def _slot(body: bytes, table: int, field: int) -> int:
    """Offset of a field of a flatbuffer's table; 0 if it is absent."""
    vtable = table - struct.unpack_from("<i", body, table)[0]
    (size,) = struct.unpack_from("<H", body, vtable)
    entry = 4 + 2 * field
    offset = struct.unpack_from("<H", body, vtable + entry)[0] if entry < size else 0
    return table + offset if offset else 0


def write_csv(columns: Mapping[str, NDArray[Any]]) -> bytes:
    """Write columns as CSV with a header; numbers that are not finite are empty."""
    import polars as pl  # noqa: PLC0415 - see above

    text: str = _frame(pl, columns).write_csv()
    return text.encode()


def write_arrow(columns: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> bytes:
    """Write columns as an Arrow stream.

    Parameters
    ----------
    columns
        (n,) each, or (n, k) for a list column. Numbers that are not finite are null.
    metadata
        Metadata of the schema, if pyarrow is installed.
    """
    try:
        import pyarrow as pa  # noqa: PLC0415 - optional
    except ImportError:
        import polars as pl  # noqa: PLC0415 - see above

        out = io.BytesIO()
        _frame(pl, columns).write_ipc_stream(out)
        return out.getvalue()
    arrays = []
    for values in columns.values():
        flat = pa.array(values.reshape(-1), mask=_null_mask(values.reshape(-1)))
        arrays.append(flat if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[1]))
    table = pa.RecordBatch.from_arrays(arrays, names=list(columns)).replace_schema_metadata(dict(metadata))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_batch(table)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _null_mask(values: NDArray[Any]) -> NDArray[np.bool_] | None:
    """Mask of numbers that are not finite and ids below zero; None if there are none."""
    mask = ~np.isfinite(values) if values.dtype.kind == "f" else values < 0
    return mask if mask.any() else None


def _frame(pl: Any, columns: Mapping[str, NDArray[Any]]) -> Any:
    series = {}
    for name, values in columns.items():
        column = pl.Series(name, values.reshape(-1))
        mask = _null_mask(values.reshape(-1))
        if mask is not None:
            column = column.set(pl.Series(mask), None)
        series[name] = column if values.ndim == 1 else column.reshape(values.shape)
    return pl.DataFrame(series)


def _dimension_message(n: int, fields: Sequence[str]) -> str:
    rest = ", ..." if len(fields) > _MAX_FIELDS_SHOWN else ""
    return f"{n} values, the model has {len(fields)} fields ({', '.join(fields[:_MAX_FIELDS_SHOWN])}{rest})"
