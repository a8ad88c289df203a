"""Validation and conversion of user input for the kernels, with errors that name the row and the field.

Kernels are compiled for one layout: C-contiguous, aligned, native byte order, float32 or float64, read-only. Other
input is converted here, because another layout would trigger compilation; read-only, so that read-only arrays need no
copy.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from streamkm.errors import DataError, SettingsError
from streamkm.kernels.assign import Real, largest
from streamkm.kernels.update import to_unit_length

LIMIT = 1e140
"""Largest absolute value of a coordinate, so that sums of squared differences stay finite."""


def frozen(array: NDArray[Any]) -> NDArray[Any]:
    """View an array of any shape as a plain, read-only ndarray: the only input type that kernels are compiled for."""
    view = array.view(np.ndarray)
    view.flags.writeable = False
    return view


ONES: NDArray[np.float64] = frozen(np.empty(0))
"""Stands for row weights of one."""


def _place(row: int, column: int, fields: Sequence[str]) -> str:
    return f"row {row}, {f'field {fields[column]!r}' if fields else f'column {column}'}"


def _real(array: NDArray[Any]) -> NDArray[Any]:
    """Convert to float32 or float64, keeping the layout."""
    if array.dtype in (np.float32, np.float64) and array.dtype.isnative:
        return array
    if array.dtype.kind not in "biufO":
        raise DataError(f"points must be numbers, not {array.dtype}")
    return array.astype(np.float64)


def _numbers(column: Any, name: str) -> NDArray[Any]:
    """Convert a column of a data frame to numbers, with NaN for missing values."""
    try:
        if hasattr(column, "null_count"):  # polars
            return _real(column.to_numpy())
        return _real(np.asarray(column.to_numpy(dtype=np.float64, na_value=math.nan)))
    except (TypeError, ValueError) as e:
        raise DataError(f"cannot be read as numbers ({e})", where=f"field {name!r}") from e


def _frame(X: Any, fields: Sequence[str]) -> tuple[NDArray[Any], tuple[str, ...]]:
    """Convert a pandas or polars data frame, with its columns in the order of the model's fields."""
    names = tuple(str(c) for c in X.columns)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            f"the data frame has several columns called {', '.join(map(repr, twice))}",
            hint="Rename all but one of them",
        )
    if fields and set(names) != set(fields):
        missing = [f for f in fields if f not in names]
        extra = [n for n in names if n not in fields]
        problem = (
            f"lacks the columns {missing}" if missing else f"has the columns {extra}, which the model does not know"
        )
        raise DataError(f"the data frame {problem}", hint=f"The model was made with {list(fields)}")
    order = fields or names
    columns = [X[X.columns[names.index(f)]] for f in order]
    if not columns:
        raise DataError("the data frame has no columns")
    return np.column_stack([_numbers(c, f) for c, f in zip(columns, order, strict=True)]), tuple(order)


def points(X: Any, fields: Sequence[str], n_features: int) -> tuple[Real, tuple[str, ...]]:
    """Convert X to an (n, d) array for kernels, without a copy if it already is one.

    Parameters
    ----------
    X
        (n, d) array of numbers, or a pandas or polars data frame, whose columns are selected by name.
    fields
        Names of the dimensions, empty if unknown.
    n_features
        Number of dimensions d, or 0 if unknown.

    Returns
    -------
    array
        (n, d) float32 or float64, C-contiguous, read-only. May still hold NaN or infinity: see `finite`.
    fields
        Names of the dimensions, empty if still unknown.

    Raises
    ------
    DataError
        Not two-dimensional, not numbers, or not d columns.
    """
    if hasattr(X, "columns") and hasattr(X, "to_numpy"):
        array, fields = _frame(X, fields)
    else:
        try:
            array = _real(np.asarray(X))
        except (TypeError, ValueError) as e:
            raise DataError(f"points cannot be read as numbers ({e})") from e
    if array.ndim != 2:
        raise DataError(
            f"points must be an (n, d) array, but the shape is {array.shape}",
            hint="Reshape one point with X.reshape(1, -1), one feature with X.reshape(-1, 1)",
        )
    if array.shape[1] == 0:
        raise DataError("points have no columns")
    if n_features and array.shape[1] != n_features:
        known = f" ({', '.join(fields)})" if fields else ""
        raise DataError(f"points have {array.shape[1]} columns, the model has {n_features}{known}")
    return frozen(np.require(array, requirements=("C", "A"))), tuple(fields)


@lru_cache(maxsize=64)
def _doubles(n: int) -> struct.Struct:
    """Packs n numbers as native float64."""
    return struct.Struct(f"{n}d")


def row(x: Mapping[Any, Any], fields: Sequence[str]) -> Real:
    """Convert one point, a mapping of field names to numbers, to a (1, d) array.

    Raises
    ------
    DataError
        A field is missing, unknown, or not a number.
    """
    names = fields or tuple(str(name) for name in x)
    try:
        values = [x[name] for name in names]
    except KeyError:
        x = {str(name): value for name, value in x.items()}
        missing = next((name for name in names if name not in x), None)
        if missing is not None:
            where = f"field {missing!r}"
            raise DataError("is missing", where=where, hint=f"The model was made with {list(fields)}") from None
        values = [x[name] for name in names]
    if len(x) != len(names):
        extra = next(str(name) for name in x if str(name) not in names)
        raise DataError("is not known", where=f"field {extra!r}", hint=f"The model was made with {list(fields)}")
    if not names:
        raise DataError("the point has no fields")
    try:
        # An array from bytes is read-only from the start, and takes half the time of a conversion by numpy.
        return np.frombuffer(_doubles(len(names)).pack(*values), np.float64).reshape(1, -1)
    except (struct.error, OverflowError):
        pass
    try:
        array = np.array([values], np.float64)
    except (TypeError, ValueError):
        for name, value in zip(names, values, strict=True):
            try:
                float(value)
            except (TypeError, ValueError) as e:
                raise DataError(f"{value!r} is not a number", where=f"field {name!r}") from e
        raise
    array.flags.writeable = False
    return array


def finite(X: Real, fields: Sequence[str]) -> float:
    """Check that points, (n, d), can be learned, and return their largest absolute value.

    Raises
    ------
    DataError
        NaN, infinity or a value beyond 1e140, named by row and field.
    """
    high = largest(X.reshape(-1))
    if high <= LIMIT:
        return high
    bad = np.argwhere(~(np.abs(X) <= LIMIT))
    i, j = int(bad[0, 0]), int(bad[0, 1])
    value = float(X[i, j])
    what = f"is {value}" if not math.isfinite(value) else f"is {value:g}, beyond the largest value taken, {LIMIT:g}"
    more = f" ({len(bad)} such values in {len(X)} rows)" if len(bad) > 1 else ""
    raise DataError(what + more, where=_place(i, j, fields), hint="Remove or repair such rows before learning")


def directions(X: Real, fields: Sequence[str]) -> Real:
    """Scale rows, (n, d), to length one.

    Raises
    ------
    DataError
        A row of zeros has no direction.
    """
    rows = X.astype(np.float64)
    to_unit_length(rows)
    zero = np.flatnonzero(~rows.any(axis=1))
    if len(zero):
        more = f" ({len(zero)} such rows of {len(rows)})" if len(zero) > 1 else ""
        raise DataError(
            f"all values are zero, which has no direction{more}",
            where=f"row {zero[0]}" + (f", fields {', '.join(fields)}" if fields else ""),
            hint="Remove such rows before learning, or use distance='euclidean'",
        )
    return frozen(rows)


def choice(name: str, value: Any, literal: Any) -> None:
    """Check that a setting has one of the values of a `Literal`.

    Raises
    ------
    SettingsError
        The value is not one of them.
    """
    choices = get_args(literal)
    if value not in choices:
        raise SettingsError(f"{name} must be one of {', '.join(map(repr, choices))}, not {value!r}")


def row_weights(weights: ArrayLike | None, n: int) -> NDArray[np.float64]:
    """Convert (n,) weights of rows to a read-only float64 array; `ONES` for None.

    Raises
    ------
    DataError
        Not n numbers, negative, NaN or infinite.
    """
    if weights is None:
        return ONES
    array = np.require(np.asarray(weights, np.float64), requirements=("C", "A"))
    if array.ndim == 0:
        array = np.full(n, float(array))
    if array.shape != (n,):
        raise DataError(f"weights have the shape {array.shape}, the points are {n} rows")
    bad = np.flatnonzero(~((array >= 0.0) & (array <= LIMIT)))
    if len(bad):
        raise DataError(
            f"weight is {array[bad[0]]}", where=f"row {bad[0]}", hint="Weights must be finite and not negative"
        )
    return frozen(array)


def event_times(times: ArrayLike, n: int) -> NDArray[np.float64]:
    """(n,) float64, read-only: event times of n rows in seconds, from one for all or one each; NaN if unknown.

    Raises
    ------
    DataError
        Not one or n numbers, or infinite.
    """
    array = np.require(np.asarray(times, np.float64), requirements=("C", "A"))
    if array.ndim == 0:
        array = np.full(n, float(array))
    if array.shape != (n,):
        raise DataError(f"times have the shape {array.shape}, the points are {n} rows")
    if np.isinf(array).any():
        row = int(np.flatnonzero(np.isinf(array))[0])
        raise DataError(
            "the event time is infinite", where=f"row {row}", hint="Times are seconds since 1970, NaN where unknown"
        )
    return frozen(array)
