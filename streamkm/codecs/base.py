"""Protocol of codecs."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from streamkm.records import Batch, Records
from streamkm.state import Json


@runtime_checkable
class Codec(Protocol):
    """Decodes the records of one poll into points.

    Decoding is a pure function: the same records give the same batch, in the same order, at any time and on any
    machine, because a replay has to learn what the live consumer learned. It never raises for the content of a record:
    a bad record is listed in `Batch.bad` with its place and the reason, and its neighbours are decoded.

    Attributes
    ----------
    fields
        Names in the order of a point's coordinates.
    """

    fields: tuple[str, ...]

    def decode(self, records: Records) -> Batch:
        """Decode one partition's range.

        Parameters
        ----------
        records
            An item of a source's `poll`.

        Returns
        -------
        Batch
            ``len(points) + len(bad) + tombstones == len(records)``.
        """
        ...

    def spec(self) -> Json:
        """Specification from which `make_codec` creates this codec, for `ModelSpec.codec`."""
        ...
