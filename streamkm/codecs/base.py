"""The contract of a codec."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from streamkm.records import Batch, Records
from streamkm.state import Json


@runtime_checkable
class Codec(Protocol):
    """Turns the records of one poll into points, all at once.

    Decoding is pure: the same records give the same batch, in the same order, at any time and on any machine, because
    a replay has to learn what the live consumer learned. It never raises for what a record contains: a bad record goes
    to `Batch.bad` with its place and reason, and its neighbours are decoded.
    """

    fields: tuple[str, ...]

    def decode(self, records: Records) -> Batch:
        """Decode one partition's range.

        Parameters
        ----------
        records
            What a source's `poll` gave.

        Returns
        -------
        Batch
            ``len(points) + len(bad) + tombstones == len(records)``.
        """
        ...

    def spec(self) -> Json:
        """What makes this codec, for `ModelSpec.codec`."""
        ...
