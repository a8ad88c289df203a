"""Points and predictions as Arrow streams, where pyarrow is installed."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from streamkm.client.responses import Prediction
from streamkm.errors import ServiceError


def there() -> bool:
    """Whether pyarrow is."""
    return find_spec("pyarrow") is not None


def encode(points: NDArray[np.float64], fields: Sequence[str]) -> bytes:
    """Points (n, d) as a stream with a column for each field."""
    import pyarrow as pa  # type: ignore[import-untyped]  # noqa: PLC0415 - an extra

    columns = [pa.array(np.ascontiguousarray(column)) for column in points.T]
    batch = pa.RecordBatch.from_arrays(columns, names=list(fields))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def decode(model: str, content: bytes) -> Prediction:
    """The answer to points.

    Raises
    ------
    ServiceError
        It is none.
    """
    import pyarrow as pa  # noqa: PLC0415 - an extra

    try:
        table = pa.ipc.open_stream(content).read_all()
        snapshot = int(table.schema.metadata[b"snapshot"])
        ids, distances, scores = (table[name].to_numpy() for name in ("id", "distance", "score"))
    except (ValueError, LookupError, TypeError, OSError) as e:
        raise ServiceError(f"the answer is no prediction ({e})", hint="Is a streamkm service there?") from e
    return Prediction(model, snapshot, ids, distances, scores)
