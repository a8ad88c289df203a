"""JSON records: objects by field name, arrays by position."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from streamkm.codecs.fields import MAX_ABS_VALUE, FieldTree, validate_fields
from streamkm.codecs.times import is_debezium_infinity, parse_iso_or_none, to_seconds, validate_unit
from streamkm.errors import SettingsError
from streamkm.field_paths import MISSING, FieldPaths, resolve_path
from streamkm.kernels.assign import largest
from streamkm.kernels.decode import json_scan
from streamkm.records import BadRecord, Batch, BatchRange, ByteRecords, Records, TopicPartition
from streamkm.state import Json

DEFAULT_MAX_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class _Defect:
    """What is wrong with a record."""

    reason: str
    field: str
    message: str


class JsonCodec:
    """JSON objects and arrays as points.

    An object gives the values of `fields`, which may be dotted paths into nested objects, and into arrays by the number
    of a value: ``emb.0`` or ``emb[0]`` (these are read by the strict parser, several times slower). Other keys do not
    matter. An
    array of exactly ``len(fields)`` numbers is taken by position. Both may occur in one topic. Numbers are read
    exactly. A text is never a number, and neither is true, false or null. A number beyond 1e140 makes a bad record too:
    no model could take it.

    Parameters
    ----------
    fields
        Names in the order of a point's coordinates.
    time_field
        Field with the event time: a number since 1970 or ISO 8601 text (UTC unless it says otherwise). Without it, and
        for arrays, the record's own timestamp is taken.
    time_unit
        Unit of a number there: "s", "ms", "us", "ns", or "auto", by its size.
    max_bytes
        A longer record is bad, unread.
    strict
        Ask the strict parser about every record instead of only those the scanner is unsure of: slower by several
        times, and the same in result.

    Raises
    ------
    SettingsError
        An argument is not usable.
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
            raise SettingsError(f"{max_bytes} bytes are not enough for any record", where="max_bytes")
        self.max_bytes = max_bytes
        self._paths = FieldPaths(self.fields)
        self._tree = FieldTree(self.fields if time_field is None else (*self.fields, time_field))
        self._scanner = self._tree.plain and not strict

    def spec(self) -> Json:
        return {
            "kind": "json",
            "fields": list(self.fields),
            "time_field": self.time_field,
            "time_unit": self.time_unit,
            "max_bytes": self.max_bytes,
        }

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
        # Step 1: the scanner reads all that is plain.
        if self._scanner and n:
            data = records.data.view()
            data.flags.writeable = False  # one type of array for the kernel, whatever the source gave
            json_scan.scan_rows(
                data,
                records.begins,
                records.ends,
                self.max_bytes,
                self._tree.names,
                self._tree.entries,
                self._tree.firsts,
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
        # Step 2: a strict parser judges the rest, one by one.
        bad: list[BadRecord] = []
        good = kinds != json_scan.NULL
        if records.full_sizes:  # what is there of such a record may look like one
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
        # Step 3: records without a time of their own have the broker's or the producer's.
        stamped = np.where(records.timestamps < 0, np.nan, records.timestamps / 1000.0)
        times = np.where(has_time, times, stamped)
        if not good.all():
            points, times = np.ascontiguousarray(points[good]), times[good]
        # Step 4: what can be read but not learned. Almost never there is any, so one pass looks for all of it.
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
        """What is wrong with a record whose value is too long, or that the source did not give whole."""
        said = f"more than {self.max_bytes}" if size > self.max_bytes else "more than the source gives of one"
        return _Defect("too-large", "", f"the record has {size} bytes, {said}")

    def _decode_strictly(self, value: bytes) -> tuple[Sequence[float], float | None] | _Defect:
        """What one record is: the point and its time, or what is wrong."""
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
        """Say which field of a point is too large for a model."""
        column = int(np.flatnonzero(~(np.abs(point) <= MAX_ABS_VALUE))[0])
        field = self.fields[column]
        said = f"{field} is {point[column]:g}, beyond the largest value taken, {MAX_ABS_VALUE:g}"
        return _Defect("out-of-range", field, said)

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
        """Say why; a number that is not finite is told apart, because what made it is another mistake."""
        try:
            parsed = json.loads(value.decode())
        except (ValueError, RecursionError):
            parsed = None
        if isinstance(parsed, dict | list):
            defect = self._to_point(parsed)
            if isinstance(defect, _Defect) and defect.reason == "not-finite":
                return defect
        if value[:1] == b"\0":
            return _Defect("not-json", "", "it begins with a zero byte, as records of a schema registry do")
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
    """A value as JSON writes it, short."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except RecursionError:  # orjson takes deeper ones than Python writes
        text = f"{'an array' if isinstance(value, list) else 'an object'} of great depth"
    return text if len(text) <= 40 else text[:37] + "..."


def compile_scanner() -> None:
    """Run the scanner once, so that numba's cache on disk holds it before somebody waits for it."""
    value = np.frombuffer(b'{"t":"2000-01-01T00:00:00Z","x":1.5}', np.uint8)
    one = np.zeros(1, np.int64)
    records = ByteRecords(TopicPartition("", 0), 0, 1, value, one, one + len(value), one, one)
    JsonCodec(["x"], time_field="t").decode(records)
