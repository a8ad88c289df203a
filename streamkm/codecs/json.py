"""Decodes JSON records: objects by field name, arrays by position."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from streamkm.codecs.base import DEFAULT_MAX_BYTES
from streamkm.codecs.fields import MAX_ABS_VALUE, FieldTree, validate_fields
from streamkm.codecs.times import is_debezium_infinity, parse_iso_or_none, to_seconds, validate_unit
from streamkm.errors import SettingsError
from streamkm.field_paths import MISSING, FieldPaths, resolve_path
from streamkm.kernels.assign import largest
from streamkm.kernels.decode import json_scan
from streamkm.records import BadRecord, Batch, BatchRange, ByteRecords, Records, TopicPartition
from streamkm.state import CodecSpec


@dataclass(frozen=True, slots=True)
class _Defect:
    """Why a record is bad."""

    reason: str
    field: str
    message: str


class JsonCodec:
    """Decodes JSON objects and arrays into points.

    An object gives the values of `fields`, by the rule of `streamkm.field_paths`; other members are ignored. Elements
    of arrays (``emb.0`` or ``emb[0]``) are read by the strict parser, which is several times slower. An array of
    exactly ``len(fields)`` numbers is a point by position. Both forms may occur in one topic. Numbers are read exactly.
    Text, true, false and null are not numbers. A number of an absolute value above 1e140 makes a record bad: no model
    accepts it.

    Parameters
    ----------
    fields
        Names in the order of a point's coordinates.
    time_field
        Field with the event time: a number since the epoch, or ISO 8601 text (UTC unless it has an offset). Without it,
        and for arrays, the record's own timestamp is used.
    time_unit
        Unit of a number in `time_field`: "s", "ms", "us", "ns", or "auto" to infer it from the size.
    max_bytes
        Maximum size of a record's value, bytes; a longer record is bad and is not parsed.
    strict
        Parse every record with the strict parser instead of only those that the scanner cannot decide: several times
        slower, with the same result; for tests.

    Raises
    ------
    SettingsError
        An argument is not valid.
    """

    def __init__(
        self,
        fields: Sequence[str],
        *,
        time_field: str | None = None,
        time_unit: str = "auto",
        max_bytes: int = DEFAULT_MAX_BYTES,
        strict: bool = False,
    ) -> None:
        self.fields = validate_fields(fields, time_field)
        self.time_field = time_field
        self.time_unit = validate_unit(time_unit)
        if max_bytes < 1:
            raise SettingsError(f"a maximum of {max_bytes} bytes excludes every record", where="max_bytes")
        self.max_bytes = max_bytes
        self._paths = FieldPaths(self.fields)
        self._tree = FieldTree(self.fields if time_field is None else (*self.fields, time_field))
        self._scanner = self._tree.plain and not strict

    def spec(self) -> CodecSpec:
        options = {"time_field": self.time_field, "time_unit": self.time_unit, "max_bytes": self.max_bytes}
        return CodecSpec("json", self.fields, options)

    def decode(self, records: Records) -> Batch:
        if not isinstance(records, ByteRecords):
            raise SettingsError(
                "JSON is decoded from bytes, and these records have columns",
                where=str(records.partition),
                hint="Use the columns codec for files",
            )
        n, d = len(records), len(self.fields)
        points = np.empty((n, d))
        times = np.full(n, np.nan)
        kinds = np.where(records.ends < 0, json_scan.NULL, json_scan.UNSURE).astype(np.uint8)
        # Step 1: the scanner decodes all simple records.
        if self._scanner and n:
            data = records.data.view()
            data.flags.writeable = False  # one array type for the kernel
            json_scan.scan_rows(
                data,
                records.begins,
                records.ends,
                self.max_bytes,
                self._tree.names,
                d if self.time_field is None else d + 1,
                points.view(np.uint64),
                times.view(np.uint64),
                kinds,
            )
        has_time = np.zeros(n, np.bool_)
        if self.time_field is not None:
            kinds[(kinds == json_scan.OBJECT) & is_debezium_infinity(times)] = json_scan.UNSURE
            numbered = kinds == json_scan.OBJECT
            times[numbered] = to_seconds(times[numbered], self.time_unit)
            has_time = numbered | (kinds == json_scan.DATED)
        # Step 2: the strict parser decodes the others, one by one.
        bad: list[BadRecord] = []
        good = kinds != json_scan.NULL
        if records.full_sizes:  # the kept part of a truncated record may be valid JSON
            kinds[np.isin(records.offsets, list(records.full_sizes))] = json_scan.UNSURE
        for i in np.flatnonzero(kinds == json_scan.UNSURE).tolist():
            size = records.size(i)
            too_large = size > self.max_bytes or int(records.offsets[i]) in records.full_sizes
            found = self._too_large(size) if too_large else self._decode_strictly(records.value(i) or b"")
            if isinstance(found, _Defect):
                good[i] = False
                bad.append(BadRecord(records.truncated(i), found.reason, found.field, found.message))
                continue
            points[i], time = found
            if time is not None:
                times[i], has_time[i] = time, True
        # Step 3: records without an event time get their timestamp.
        stamped = np.where(records.timestamps < 0, np.nan, records.timestamps / 1000.0)
        times = np.where(has_time, times, stamped)
        if not good.all():
            points, times = np.ascontiguousarray(points[good]), times[good]
        # Step 4: values out of range. They are rare, so one pass over all values comes first.
        flat = points.reshape(-1)
        flat.flags.writeable = False
        if not largest(flat) <= MAX_ABS_VALUE:
            fits = np.all(np.abs(points) <= MAX_ABS_VALUE, axis=1)
            rows = np.flatnonzero(good)
            for row in np.flatnonzero(~fits).tolist():
                defect = self._out_of_range(points[row])
                bad.append(BadRecord(records.truncated(int(rows[row])), defect.reason, defect.field, defect.message))
            bad.sort(key=lambda b: b.record.offset)
            good[rows[~fits]] = False
            points, times = np.ascontiguousarray(points[fits]), times[fits]
        return Batch(
            range=BatchRange(records.partition, records.start, records.stop),
            points=points,
            times=times,
            offsets=records.offsets[good],
            bad=tuple(bad),
            tombstones=int(np.count_nonzero(kinds == json_scan.NULL)),
        )

    def _too_large(self, size: int) -> _Defect:
        """The defect of a record that is too long, or that the source has truncated."""
        limit = f"more than {self.max_bytes}" if size > self.max_bytes else "more than the source keeps of one"
        return _Defect("too-large", "", f"the record has {size} bytes, {limit}")

    def _decode_strictly(self, value: bytes) -> tuple[Sequence[float], float | None] | _Defect:
        """Decode one record: its point and time, or its defect."""
        try:
            parsed = orjson.loads(value)
        except orjson.JSONDecodeError as error:
            return self._not_json(value, error)
        return self._to_point(parsed)

    def _to_point(self, parsed: Any) -> tuple[Sequence[float], float | None] | _Defect:
        if isinstance(parsed, dict):
            values = self._paths.values(parsed)
        elif isinstance(parsed, list):
            if len(parsed) != len(self.fields):
                return _Defect(
                    "wrong-dimension", "", f"the array has {len(parsed)} values, {len(self.fields)} are expected"
                )
            values = parsed
        else:
            return _Defect("wrong-dimension", "", f"{_shortened_json(parsed)} is neither an object nor an array")
        point = []
        for field, found in zip(self.fields, values, strict=True):
            number = _to_number(field, found)
            if isinstance(number, _Defect):
                return number
            point.append(number)
        if self.time_field is None or not isinstance(parsed, dict):
            return point, None
        time = self._to_time(resolve_path(parsed, self.time_field))
        return time if isinstance(time, _Defect) else (point, time)

    def _out_of_range(self, point: NDArray[np.float64]) -> _Defect:
        """The defect of a point with a value out of range."""
        column = int(np.flatnonzero(~(np.abs(point) <= MAX_ABS_VALUE))[0])
        field = self.fields[column]
        message = f"{field} is {point[column]:g}, beyond the maximum of {MAX_ABS_VALUE:g}"
        return _Defect("out-of-range", field, message)

    def _to_time(self, found: Any) -> float | _Defect:
        field = self.time_field or ""
        if isinstance(found, str):
            time = parse_iso_or_none(found)
            return (
                _Defect("not-a-time", field, f"{field} is not a time: {_shortened_json(found)}")
                if time is None
                else time
            )
        number = _to_number(field, found)
        if isinstance(number, _Defect):
            return number
        times = np.array([number])
        if is_debezium_infinity(times).any():
            return _Defect("not-a-time", field, f"{field} is {_shortened_json(found)}: infinity, as Debezium writes it")
        return float(to_seconds(times, self.time_unit)[0])

    def _not_json(self, value: bytes, error: Exception) -> _Defect:
        """The defect of a value that is not JSON; NaN and infinity have a reason of their own."""
        try:
            parsed = json.loads(value.decode())
        except (ValueError, RecursionError):
            parsed = None
        if isinstance(parsed, dict | list):
            defect = self._to_point(parsed)
            if isinstance(defect, _Defect) and defect.reason == "not-finite":
                return defect
        if value[:1] == b"\0":
            return _Defect("not-json", "", "it begins with a zero byte, like records of a schema registry")
        return _Defect("not-json", "", str(error) if value else "the value is empty")


def _to_number(field: str, found: Any) -> float | _Defect:
    if found is MISSING:
        return _Defect("missing-field", field, f"{field} is missing")
    if isinstance(found, bool) or not isinstance(found, int | float):
        more = f"; its values are called {field}[0], ..." if isinstance(found, list) else ""
        return _Defect("not-a-number", field, f"{field} is not a number: {_shortened_json(found)}{more}")
    try:
        number = float(found)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        return _Defect("not-finite", field, f"{field} is not finite: {number}")
    return number


def _shortened_json(value: Any) -> str:
    """A value as JSON, of at most 40 characters."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except RecursionError:  # orjson parses deeper nesting than Python writes
        text = f"a deeply nested {'array' if isinstance(value, list) else 'object'}"
    return text if len(text) <= 40 else text[:37] + "..."


def compile_scanner() -> None:
    """Compile the scanner, or load it from numba's cache."""
    value = np.frombuffer(b'{"t":"2000-01-01T00:00:00Z","x":1.5}', np.uint8)
    one = np.zeros(1, np.int64)
    records = ByteRecords(TopicPartition("", 0), 0, 1, value, one, one + len(value), one, one)
    JsonCodec(["x"], time_field="t").decode(records)
