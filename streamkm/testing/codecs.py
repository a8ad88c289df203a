"""A codec whose records name their schema, and the registry that has it, in memory: for tests of resources."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from streamkm.codecs import SchemaLookup
from streamkm.codecs.fields import MAX_ABS_VALUE
from streamkm.errors import CodecUnavailableError, SettingsError
from streamkm.records import BadRecord, Batch, BatchRange, ByteRecords, Records
from streamkm.state import CodecSpec

_HEAD_BYTES = 5
"""A zero byte, and the number of the schema."""


class SchemaRegistryInMemory:
    """A `SchemaLookup` that can be away.

    Parameters
    ----------
    schemas
        Schemas by identifier.

    Attributes
    ----------
    away
        Whether it does not answer now.
    lookups
        Number of questions so far.
    """

    def __init__(self, schemas: Mapping[str, str]) -> None:
        self.schemas, self.away, self.lookups = dict(schemas), False, 0

    def schema(self, identifier: str) -> str | None:
        """See `SchemaLookup.schema`.

        Raises
        ------
        CodecUnavailableError
            It is away.
        """
        self.lookups += 1
        if self.away:
            raise CodecUnavailableError("the schema registry does not answer", where="registry:8081")
        return self.schemas.get(identifier)


class FramedCodec:
    """Decodes values of a zero byte, the number of a schema in four bytes, and a JSON array of numbers.

    The schema lists the names of the array's elements, separated by commas. A codec asks once for each schema.

    Parameters
    ----------
    fields
        Names in the order of a point's coordinates.
    schemas
        Has the schemas.
    max_bytes
        Maximum size of a record's value, bytes.

    Raises
    ------
    SettingsError
        There is nothing to ask for schemas.
    """

    def __init__(self, fields: Sequence[str], schemas: SchemaLookup | None, *, max_bytes: int = 1 << 20) -> None:
        if schemas is None:
            raise SettingsError("this codec needs a schema registry", where="codec")
        self.fields, self.max_bytes, self._schemas = tuple(fields), max_bytes, schemas
        self._known: dict[str, list[str] | None] = {}

    def spec(self) -> CodecSpec:
        """See `streamkm.codecs.Codec`."""
        return CodecSpec("framed", self.fields, {"max_bytes": self.max_bytes})

    def decode(self, records: Records) -> Batch:
        """See `streamkm.codecs.Codec`.

        Raises
        ------
        CodecUnavailableError
            The registry is away.
        SettingsError
            The records have no bytes.
        """
        if not isinstance(records, ByteRecords):
            raise SettingsError("framed values are decoded from bytes", where=str(records.partition))
        points: list[list[float]] = []
        rows: list[int] = []
        bad: list[BadRecord] = []
        for i in np.flatnonzero(records.ends >= 0).tolist():
            found = self._point(records.value(i) or b"", records.size(i))
            if isinstance(found, tuple):
                bad.append(BadRecord(records.truncated(i), *found))
            else:
                points.append(found)
                rows.append(i)
        at = np.array(rows, np.int64)
        stamps = records.timestamps[at]
        return Batch(
            range=BatchRange(records.partition, records.start, records.stop),
            points=np.array(points, np.float64).reshape(len(points), len(self.fields)),
            times=np.where(stamps < 0, np.nan, stamps / 1000.0),
            offsets=records.offsets[at],
            bad=tuple(bad),
            tombstones=int(np.count_nonzero(records.ends < 0)),
        )

    def _names(self, identifier: str) -> list[str] | None:
        if identifier not in self._known:
            schema = self._schemas.schema(identifier)
            self._known[identifier] = None if schema is None else schema.split(",")
        return self._known[identifier]

    def _point(self, value: bytes, size: int) -> list[float] | tuple[str, str, str]:
        """The point of a value, or the reason, the field and the message of a bad record."""
        if size > self.max_bytes:
            return "too-large", "", f"the record has {size} bytes, more than {self.max_bytes}"
        row = self._row(value)
        if isinstance(row, tuple):
            return row
        defects = [(*_defect(row.get(field, ...)), field) for field in self.fields]
        for reason, message, field in defects:
            if reason:
                return reason, field, f"{field} {message}"
        return [float(row[field]) for field in self.fields]

    def _row(self, value: bytes) -> dict[str, Any] | tuple[str, str, str]:
        """The values by name, or the defect as above."""
        if len(value) < _HEAD_BYTES or value[0]:
            return "other-framing", "", "it does not begin with a zero byte and the number of a schema"
        identifier = str(int.from_bytes(value[1:_HEAD_BYTES], "big"))
        names = self._names(identifier)
        if names is None:
            return "unknown-schema", "", f"the registry has no schema {identifier}"
        try:
            values: Any = json.loads(value[_HEAD_BYTES:])
        except ValueError as error:
            return "not-json", "", str(error)
        if not isinstance(values, list) or len(values) != len(names):
            return "wrong-dimension", "", f"the schema has {len(names)} names"
        return dict(zip(names, values, strict=True))


def _defect(found: Any) -> tuple[str, str]:
    """Why a value is not a coordinate; empty if it is one."""
    if found is ...:
        return "missing-field", "is missing"
    if isinstance(found, bool) or not isinstance(found, int | float):
        return "not-a-number", "is not a number"
    if not math.isfinite(found):
        return "not-finite", "is not finite"
    return ("out-of-range", "is out of range") if abs(found) > MAX_ABS_VALUE else ("", "")
