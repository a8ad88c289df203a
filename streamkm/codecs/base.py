"""Protocol of codecs, and what they may need besides their spec."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from streamkm.records import Batch, Records
from streamkm.state import CodecSpec

DEFAULT_MAX_BYTES = 1 << 20
"""Default maximum size of a record's value, bytes."""


class SchemaLookup(Protocol):
    """Finds schemas by the identifiers that records carry: a schema registry, or schemas that were kept.

    What an identifier stands for never changes, so a codec may keep what it was given.
    """

    def schema(self, identifier: str) -> str | None:
        """The schema as text; None: there is none, so the records that name it are bad.

        Raises
        ------
        CodecUnavailableError
            It cannot be told now.
        """


@dataclass(frozen=True)
class CodecResources:
    """Clients and secrets of codecs. They are neither compared, stored nor shown, and never decide what a record means.

    Attributes
    ----------
    schemas
        None: there is no registry; a codec that needs one refuses its spec.
    """

    schemas: SchemaLookup | None = None


NO_RESOURCES = CodecResources()
"""For codecs that have to decode by their spec alone."""


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

        Raises
        ------
        CodecUnavailableError
            A resource is away: nothing was decoded, and the same records can be decoded once it is back.
        """

    def spec(self) -> CodecSpec:
        """Specification from which `make_codec` creates this codec, with all options: none is left to a default."""
