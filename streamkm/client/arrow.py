"""Points and predictions as Arrow IPC streams, if pyarrow is installed."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from streamkm.client.responses import Prediction
from streamkm.errors import ServiceError


def available() -> bool:
    """Whether pyarrow is installed."""
    return find_spec("pyarrow") is not None


def encode(points: NDArray[np.float64], fields: Sequence[str]) -> bytes:
    """Encode points (n, d) as a stream of one record batch with a column per field."""
    import pyarrow as pa  # type: ignore[import-untyped]  # noqa: PLC0415 - optional

    columns = [pa.array(np.ascontiguousarray(column)) for column in points.T]
    batch = pa.RecordBatch.from_arrays(columns, names=list(fields))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def decode(model: str, content: bytes) -> Prediction:
    """Decode the response to a prediction request.

    Raises
    ------
    ServiceError
        The content is not a prediction.
    """
    import pyarrow as pa  # noqa: PLC0415 - optional

    try:
        table = pa.ipc.open_stream(content).read_all()
        snapshot = int(table.schema.metadata[b"snapshot"])
        ids, distances, scores = (table[name].to_numpy() for name in ("id", "distance", "score"))
    except (ValueError, LookupError, TypeError, OSError) as e:
        raise ServiceError(f"the response is not a prediction ({e})", hint="Is a streamkm service there?") from e
    return Prediction(model, snapshot, ids, distances, scores)
