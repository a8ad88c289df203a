"""Writes and reads centroids, and writes labels and distances.

Every file is written under a temporary name first, so that its name always refers to a complete file.
"""

from __future__ import annotations

import json
import math
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from polars.io.plugins import register_io_source

from streamkm.connectors.files.source import array_headers, expand
from streamkm.errors import FileFormatError, SettingsError, StreamkmError
from streamkm.recompute.collect import CollectedPoints, TableFiles, collect
from streamkm.recompute.fitting import FitResult
from streamkm.recompute.pointfile import atomic_write

CENTROIDS = (".json", ".csv", ".parquet", ".npz")
LABELS = (".csv", ".parquet", ".npy")
PICTURES = (".svg",)
MAX_CENTROIDS = 100_000
"""Maximum number of centroids in a file, as for --k."""
MAX_BYTES = 256 << 20
"""Maximum size of a JSON file, or of the decompressed centroids of an archive, bytes."""
MAX_FIELDS = 1_000_000
BLOCK = 1 << 17
"""Rows labelled at a time."""

Reals = NDArray[np.float64]


def check_output(option: str, path: Path | None, suffixes: Sequence[str]) -> None:
    """Check before a long fit that a file can be written; without `suffixes` any name is allowed.

    Raises
    ------
    SettingsError
        The kind of file is unknown, or its folder is not writable.
    """
    if path is None:
        return
    if suffixes and path.suffix.lower() not in suffixes:
        raise SettingsError(
            f"{path} is not a supported kind of file", where=option, hint=f"Known: {', '.join(suffixes)}"
        )
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise SettingsError(
            f"{path} cannot be written", where=option, hint="Does its folder exist, and is it writable?"
        )


def write_centroids(path: Path, result: Mapping[str, Any]) -> None:
    """Write centroids in the format of the file's suffix.

    Parameters
    ----------
    path
        json (the whole result), csv or parquet (a row per cluster: id, size, share, spread, centroid), or npz (arrays
        ``centroids``, ``sizes``, ``spreads``, ``fields``).
    result
        The result with ``fields`` and ``clusters``, as ``streamkm fit --json`` prints it.
    """
    clusters = result["clusters"]
    with atomic_write(path, shared=True) as file:
        if path.suffix.lower() == ".json":
            file.write(json.dumps(result, indent=1).encode() + b"\n")
            return
        centroids = np.array([c["centroid"] for c in clusters], np.float64)
        columns = {name: [c[name] for c in clusters] for name in ("id", "size", "share", "spread")}
        if path.suffix.lower() == ".npz":
            sizes, spreads = np.array(columns["size"], np.float64), np.array(columns["spread"], np.float64)
            names = np.array(result["fields"], dtype=np.str_)
            np.savez(file, centroids=centroids, fields=names, sizes=sizes, spreads=spreads)
            return
        named = {name if name not in result["fields"] else f"{name}_": values for name, values in columns.items()}
        frame = pl.DataFrame(named | {name: centroids[:, j] for j, name in enumerate(result["fields"])})
        if path.suffix.lower() == ".csv":
            frame.write_csv(file)
        else:
            frame.write_parquet(file)


def read_centroids(path: Path, fields: Sequence[str], k: int | None = None) -> Reals:
    """Read centroids: a file of `write_centroids`, a list of lists as json, or a table with the fields as columns.

    Parameters
    ----------
    path
        json, npz, or a kind of file that `FileSource` reads.
    fields
        Columns in the order of a centroid's coordinates.
    k
        Required number of centroids; None for any number up to `MAX_CENTROIDS`.

    Returns
    -------
    ndarray
        (k, d), finite.

    Raises
    ------
    FileFormatError
        The file has none of these formats, or a value is not a number.
    SettingsError
        The centroids have other fields, or are too many. Headers are checked before anything is decompressed.
    """
    kind = path.suffix.lower()
    if kind not in {".json", ".npz"}:
        files = TableFiles(expand([str(path)]), fields)
        _check_number(files.row_count_of_headers, k, path)
        read = collect(files.rows(), fields, line_of=files.line, most=MAX_CENTROIDS)
        _check_number(read.n_rows, k, path, exact=True)
        return read.array.astype(np.float64)
    try:
        names, values = _from_json(path) if kind == ".json" else _from_npz(path, len(fields), k)
        centroids = np.array(values, np.float64)
    except OSError as error:
        raise FileFormatError(f"the file cannot be read ({error.strerror})", where=str(path)) from error
    except (
        ValueError,
        TypeError,
        KeyError,
        OverflowError,
        EOFError,
        zipfile.BadZipFile,
        zlib.error,
        TokenError,
        SystemError,
        RecursionError,
        NotImplementedError,
    ) as error:
        if isinstance(error, StreamkmError):
            raise
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error).partition(";")[0]
        raise FileFormatError(
            f"the file has no centroids: {reason}",
            where=str(path),
            hint='For example {"fields": ["a"], "centroids": [[1], [2]]}',
        ) from error
    if centroids.ndim != 2 or not np.isfinite(centroids).all():
        content = f"numbers of shape {centroids.shape}" if centroids.ndim != 2 else "a number that is not finite"
        raise FileFormatError(f"the file has {content}, not centroids", where=str(path))
    _check_number(len(centroids), k, path, exact=True)
    if names is None:
        if centroids.shape[1] != len(fields):
            raise SettingsError(
                f"the centroids have {centroids.shape[1]} coordinates, the points {len(fields)}: {', '.join(fields)}",
                where=str(path),
            )
        return centroids
    missing = [name for name in fields if name not in names]
    if missing or len(names) != centroids.shape[1]:
        raise SettingsError(
            f"the centroids have {', '.join(names)}, and not {', '.join(missing)}" if missing else "fields are missing",
            where=str(path),
        )
    return np.ascontiguousarray(centroids[:, [names.index(name) for name in fields]])


def _check_number(n: int | None, k: int | None, path: Path, *, exact: bool = False) -> None:
    """Reject a number of centroids other than the required one; without `exact` `n` is a lower bound of it."""
    if n is None:
        return
    if k is not None and n != k and (exact or n > k):
        raise SettingsError(f"the file has {n:,} centroids, and --k is {k}", where=str(path))
    if n > MAX_CENTROIDS:
        raise SettingsError(f"the file has {n:,} centroids, more than {MAX_CENTROIDS:,}", where=str(path))


def _from_json(path: Path) -> tuple[list[str] | None, Any]:
    if path.stat().st_size > MAX_BYTES:
        raise SettingsError(f"the file is longer than {MAX_BYTES >> 20} MiB", where=str(path), hint="Write it as npz")
    content = json.loads(path.read_bytes())
    if isinstance(content, list):
        return None, content
    values = content["centroids"] if "centroids" in content else [c["centroid"] for c in content["clusters"]]
    return (list(map(str, content["fields"])) if "fields" in content else None), values


def _from_npz(path: Path, d: int, k: int | None) -> tuple[list[str] | None, Any]:
    """Names and centroids of an archive; arrays larger than centroids and names can be are not decompressed."""
    headers = array_headers(path)
    tables = [name for name, (shape, _) in headers.items() if len(shape) == 2]
    if "centroids" not in tables and len(tables) != 1:
        raise ValueError(f"the arrays are {', '.join(headers)}, and none is called centroids")
    name = "centroids" if "centroids" in tables else tables[0]
    (n, width), _ = headers[name]
    _check_number(n, k, path)
    named, size = headers.get("fields", ((), 0))
    if len(named) > 1 or math.prod(named) > MAX_FIELDS or size > MAX_BYTES:
        raise SettingsError(f"the file has {math.prod(named):,} field names", where=str(path))
    fields = int(math.prod(named)) if "fields" in headers else width
    if width != fields or width < d:
        raise SettingsError(
            f"the centroids have {width} coordinates and {fields} names, the points {d} fields", where=str(path)
        )
    if headers[name][1] > MAX_BYTES:
        raise SettingsError(f"the centroids need {headers[name][1] >> 20:,} MiB", where=str(path))
    with np.load(path, allow_pickle=False) as content:
        return (list(map(str, content["fields"])) if "fields" in headers else None), content[name]


LabelBlock = tuple[NDArray[np.int32], Reals]


def label_blocks(fitted: FitResult, collected: CollectedPoints) -> Iterator[LabelBlock]:
    """Label all rows in the order of input, a block at a time.

    Yields
    ------
    tuple
        (m,) index of the nearest centroid and (m,) distance to it; -1 and NaN for a skipped row.
    """
    skipped = collected.skipped
    for start in range(0, collected.n_rows, BLOCK):
        stop = min(start + BLOCK, collected.n_rows)
        low, high = np.searchsorted(skipped, [start, stop])
        good = np.ones(stop - start, np.bool_)
        good[skipped[low:high] - start] = False
        labels, distances = np.full(stop - start, -1, np.int32), np.full(stop - start, np.nan)
        first, last = start - int(low), stop - int(high)
        if last > first:
            labels[good], distances[good] = fitted.assign(first, last)
        yield labels, distances


def write_labels(path: Path, blocks: Iterator[LabelBlock], n_rows: int) -> None:
    """Write label and distance of each row in the format of the file's suffix.

    Parameters
    ----------
    path
        csv, parquet, or npy (a structured array).
    blocks
        Result of `label_blocks`.
    n_rows
        Total number of rows.
    """
    writers: dict[str, Callable[[IO[bytes], Iterator[LabelBlock], int], None]] = {
        ".csv": _labels_csv,
        ".npy": _labels_npy,
        ".parquet": _labels_parquet,
    }
    with atomic_write(path, shared=True) as file:
        writers[path.suffix.lower()](file, blocks, n_rows)


def _labels_csv(file: IO[bytes], blocks: Iterator[LabelBlock], n_rows: int) -> None:
    del n_rows
    file.write(b"label,distance\n")
    for labels, distances in blocks:
        frame = pl.DataFrame({"label": labels, "distance": pl.Series(distances, nan_to_null=True)})
        frame.write_csv(file, include_header=False)


def _labels_npy(file: IO[bytes], blocks: Iterator[LabelBlock], n_rows: int) -> None:
    dtype = np.dtype([("label", "<i4"), ("distance", "<f8")])
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (n_rows,)}
    np.lib.format.write_array_header_1_0(file, header)
    for labels, distances in blocks:
        both = np.empty(len(labels), dtype)
        both["label"], both["distance"] = labels, distances
        file.write(both.data)


def _labels_parquet(file: IO[bytes], blocks: Iterator[LabelBlock], n_rows: int) -> None:
    del n_rows

    def frames(*_: object) -> Iterator[pl.DataFrame]:
        for labels, distances in blocks:
            yield pl.DataFrame({"label": labels, "distance": pl.Series(distances, nan_to_null=True)})

    register_io_source(frames, schema={"label": pl.Int32, "distance": pl.Float64}).sink_parquet(file)
