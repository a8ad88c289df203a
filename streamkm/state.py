"""Plain data that models, stores and the service share: states, snapshots, specs, commits and journal entries."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from streamkm.errors import StateError
from streamkm.records import BadRecord, BatchRange, Position

STATE_FORMAT = 1
"""Version of the envelope that `ModelState.to_bytes` writes; the payload of each model has a `version` of its own."""

Json = Mapping[str, Any]
Distance = Literal["euclidean", "cosine"]


@dataclass(frozen=True, eq=False)
class ModelState:
    """An immutable copy of the complete state of a model.

    Attributes
    ----------
    kind
        Class of the model, such as ``OnlineKMeans``.
    version
        Version of the model's own payload.
    params
        Constructor arguments and scalars, as JSON values. Floats round-trip exactly.
    arrays
        Read-only arrays of any numeric dtype and shape, by name.
    """

    kind: str
    version: int
    params: Json
    arrays: Mapping[str, NDArray[Any]]

    def to_bytes(self) -> bytes:
        """Serialise; equal states give equal bytes, so that their hash identifies a state."""
        header = {
            "format": str(STATE_FORMAT),
            "kind": self.kind,
            "version": str(self.version),
            "params": json.dumps(self.params, sort_keys=True),
        }
        # safetensors does not order its metadata, so the header is stored as an array.
        blob = np.frombuffer(json.dumps(header, sort_keys=True).encode(), np.uint8)
        arrays = {name: np.ascontiguousarray(a) for name, a in self.arrays.items()}
        return safetensors.numpy.save({"__state__": blob, **arrays})

    @classmethod
    def from_bytes(cls, data: bytes) -> ModelState:
        """Undo `to_bytes`.

        Raises
        ------
        StateError
            The bytes are not a state, are truncated, or were written by a newer version of streamkm.
        """
        try:
            arrays = safetensors.numpy.load(data)
            header = json.loads(arrays.pop("__state__").tobytes())
            written = int(header["format"])
            state = cls(str(header["kind"]), int(header["version"]), json.loads(header["params"]), arrays)
        except (safetensors.SafetensorError, LookupError, ValueError, TypeError, ArithmeticError, RecursionError) as e:
            raise StateError(f"these {len(data)} bytes are not a model state ({e})") from e
        if written > STATE_FORMAT:
            raise StateError(
                f"the state has format {written}, this version of streamkm reads up to {STATE_FORMAT}",
                hint="Upgrade streamkm, or restore a backup",
            )
        for a in arrays.values():
            a.flags.writeable = False
        return state


@dataclass(frozen=True)
class ModelEvent:
    """A change of clusters between two publications, by the rules of `models.lineage`.

    Attributes
    ----------
    kind
        ``birth``, ``death``, ``split``, ``merge`` or ``drift`` from the model; from its owner ``promotion`` (another
        snapshot was promoted) or ``outliers`` (many more points than before belong to no cluster).
    before
        Ids of the clusters before the change; sorted, empty for a birth and for outliers.
    after
        Ids of the clusters after the change; sorted, empty for a death and for outliers.
    detail
        The measured values behind it, as JSON values.
    """

    kind: str
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    detail: Json = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The event as JSON values."""
        return {"kind": self.kind, "before": [*self.before], "after": [*self.after], "detail": {**self.detail}}

    @classmethod
    def from_json(cls, value: Json) -> ModelEvent:
        """Undo `to_json`."""
        return cls(value["kind"], tuple(value["before"]), tuple(value["after"]), dict(value["detail"]))


@dataclass(frozen=True, eq=False)
class Publication:
    """The clusters of a model after a re-solve; the arrays are read-only.

    Attributes
    ----------
    ids
        (k,) int64, stable cluster ids.
    centroids
        (k, d) float64, raw units.
    weights
        (k,) float64, (decayed) weight of each cluster's points.
    spreads
        (k,) float64, root mean square distance of a cluster's points to its centroid, in scaled units.
    born
        (k,) int64, number of rows that the model had learned when the id was first published.
    factors
        (d,) float64, scale factors: coordinates are multiplied by them before distances are computed.
    deviations
        (k, d) float64, raw units, root mean square deviation of a cluster's points from its centroid by field; None
        when unknown (the model continues from clusters that an older version published).
    n_seen
        Number of rows that the model had learned.
    events
        Changes of clusters since the previous publication.
    detail
        Provenance, as JSON values.
    """

    ids: NDArray[np.int64]
    centroids: NDArray[np.float64]
    weights: NDArray[np.float64]
    spreads: NDArray[np.float64]
    born: NDArray[np.int64]
    factors: NDArray[np.float64]
    deviations: NDArray[np.float64] | None
    n_seen: int
    events: tuple[ModelEvent, ...] = ()
    detail: Json = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A published version of a model: immutable and numbered; sufficient to answer all queries about its clusters.

    Attributes
    ----------
    model, id
        Name of the model; number of the snapshot within the model, from 1 (0 before the store assigns it).
    created_at
        Seconds since 1970, by the clock of the publishing process.
    kind
        ``live``, or ``replay`` for a recomputed snapshot.
    reason
        Why it was published: ``first``, ``interval``, ``points``, ``stop``, ``promoted`` or ``replay``.
    fields
        Names of the d dimensions.
    ids
        (k,) int64, stable cluster ids.
    centroids
        (k, d) float64, raw units.
    weights
        (k,) float64, (decayed) number of points of each cluster.
    spreads
        (k,) float64, root mean square distance of a cluster's points to its centroid, in scaled units.
    born
        (k,) int64, number of points learned when the id was first published; `n_points` minus this is a cluster's age.
    factors
        (d,) float64, scale factors: coordinates are multiplied by them before distances are computed; ones without
        scaling.
    distance
        ``euclidean``, or ``cosine``: points are normalised to length one first.
    inertia
        Mean squared distance, in scaled units, of the points since the previous snapshot to their nearest centroid,
        each measured before it was learned; NaN when there were none.
    n_points
        Number of points learned since the model was created.
    position
        The snapshot reflects every record below these offsets, and none at or above.
    detail
        Provenance, as JSON values.
    events
        Changes of clusters since the previous snapshot.
    commit_seq
        Number of the commit that published it (0 before the store assigns it); replaying the journal up to this commit
        reproduces it.
    deviations
        (k, d) float64, raw units, root mean square deviation of a cluster's points from its centroid by field; None
        when unknown, as in snapshots of older versions.
    """

    model: str
    created_at: float
    kind: str
    reason: str
    fields: tuple[str, ...]
    ids: NDArray[np.int64]
    centroids: NDArray[np.float64]
    weights: NDArray[np.float64]
    spreads: NDArray[np.float64]
    born: NDArray[np.int64]
    factors: NDArray[np.float64]
    distance: Distance
    inertia: float
    n_points: int
    position: Position
    detail: Json = field(default_factory=dict)
    events: tuple[ModelEvent, ...] = ()
    id: int = 0
    commit_seq: int = 0
    deviations: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class CodecSpec:
    """Everything that decides how records become points: equal specs decode equal records into equal points.

    It is stored with the model, compared at every start, and shown to everybody who may read the model, so it has no
    secrets: those, and clients, are `streamkm.codecs.CodecResources`.

    Attributes
    ----------
    kind
        Name of the codec in `streamkm.codecs.registry`, such as ``json``.
    fields
        What the coordinates are made of, in order, in the codec's own language: for ``json`` and ``columns`` a name for
        each coordinate.
    options
        All else, as JSON values: the codec's options by name, of which those that are missing have the codec's
        defaults. No option is called ``kind`` or ``fields``.
    """

    kind: str
    fields: tuple[str, ...] = ()
    options: Json = field(default_factory=dict)

    @classmethod
    def from_json(cls, stored: Json) -> Self:
        """Undo `to_json`.

        Raises
        ------
        TypeError
            The fields are not a list.
        """
        options = dict(stored)
        kind, fields = options.pop("kind", ""), options.pop("fields", ())
        if isinstance(fields, str):
            raise TypeError("the fields of a codec are a list")
        return cls(str(kind), tuple(map(str, fields)), options)

    def to_json(self) -> dict[str, Any]:
        """The form that is stored and shown: ``{"kind": "json", "fields": [...]}`` and the options beside them."""
        return {"kind": self.kind, "fields": list(self.fields), **self.options}


@dataclass(frozen=True)
class ModelSpec:
    """The definition of a model; never changes, and is checked at every start.

    Attributes
    ----------
    name
        Letters, digits, ``-``, ``_`` and ``.``; at most 128.
    fields
        Names of the dimensions, in order (dotted paths into nested objects).
    n_clusters
        k; 0: chosen from the first points.
    source
        Identity of the source: ``{"kind": "kafka", "topic": ..., "cluster_id": ..., "topic_id": ...}``.
    learner
        All constructor arguments of the model that affect its results.
    codec
        How records become points.
    """

    name: str
    fields: tuple[str, ...]
    n_clusters: int
    source: Json
    learner: Json
    codec: CodecSpec


@dataclass(frozen=True)
class Counters:
    """Records since the model was created: ``records == points + bad + tombstones``.

    Attributes
    ----------
    lost
        Offsets that the topic deleted before they were read, and that were skipped (``--on-data-loss skip``). They are
        not in `records`: without transactions and compaction, `records` plus `lost` is the number of offsets passed.
    """

    records: int = 0
    points: int = 0
    bad: int = 0
    tombstones: int = 0
    lost: int = 0

    def plus(self, *, points: int = 0, bad: int = 0, tombstones: int = 0, lost: int = 0) -> Counters:
        """The counters after more records."""
        return Counters(
            self.records + points + bad + tombstones,
            self.points + points,
            self.bad + bad,
            self.tombstones + tombstones,
            self.lost + lost,
        )


MiniBatch = tuple[BatchRange, ...]
"""The ranges of one mini-batch, in the order in which their points were learned."""


class EventTimeLimit(NamedTuple):
    """How far in the future an event time may be; records beyond it are bad.

    Attributes
    ----------
    lead
        Maximum seconds ahead of the record's timestamp and of `read_at`.
    read_at
        When the records were read, in seconds since 1970; in the journal, so that a replay decides the same way.
    """

    lead: float
    read_at: float


class JournalEntry(NamedTuple):
    """What a model did between two commits; together with the spec, sufficient to repeat it.

    Attributes
    ----------
    batches
        The mini-batches learned, in order.
    prepared_after
        Number of mini-batches after which a publication was prepared, which took effect after the last one; -1: none
        was.
    promoted_snapshot
        Number of the snapshot that the model continued from before the first mini-batch, and that was published, with
        what it then learned, after the last; 0: none was.
    lost
        Ranges behind the last mini-batch that the topic had deleted before they were read.
    limit
        Limit of event times; None: no limit.
    arithmetic
        Version of the arithmetic (`streamkm.models.ARITHMETIC`): another version may give different bits.
    """

    batches: tuple[MiniBatch, ...]
    prepared_after: int = -1
    promoted_snapshot: int = 0
    lost: MiniBatch = ()
    limit: EventTimeLimit | None = None
    arithmetic: int = 1


@dataclass(frozen=True)
class Progress:
    """Progress of a model through its source.

    Attributes
    ----------
    position
        Every record below was learned, quarantined, counted as a tombstone or lost; none at or above was.
    commit_seq
        Number of commits so far.
    committed_at
        Seconds since 1970.
    lag
        Offsets between `position` and the end of the source at the commit; -1 when unknown.
    warmup
        (points buffered, points needed) while the model has no centroids yet; otherwise None.
    """

    position: Position
    counters: Counters
    commit_seq: int
    committed_at: float
    lag: int = -1
    warmup: tuple[int, int] | None = None


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The state of a model, and the progress that it reflects."""

    state: ModelState
    progress: Progress


@dataclass(frozen=True, eq=False)
class Recent:
    """The points that were learned last, for display: nothing is learned or derived from them.

    Attributes
    ----------
    points
        (m, d) float64, raw units, a sample of the points that were learned last, oldest first.
    ends
        End offset of each partition (one above its newest record) when it was last read; empty if unknown.
    """

    points: NDArray[np.float64]
    ends: Position = field(default_factory=dict)


class QuarantineLimits(NamedTuple):
    """Limits of a quarantine; the oldest records are removed first.

    Attributes
    ----------
    rows
        Maximum number of records.
    size
        Maximum bytes of their values, keys, headers and messages.
    delivered_only
        Do not remove records whose dead letters are undelivered. Beyond `size` they lose their values instead, oldest
        first; the whole records are in the topic.
    """

    rows: int
    size: int
    delivered_only: bool = False


@dataclass(frozen=True, eq=False)
class Commit:
    """The content of one transaction: state, progress, journal entry, and optionally a snapshot and more.

    Attributes
    ----------
    expected
        The position that the store must have; any other means that another process has written. Empty at first.
    progress
        The new progress; its `commit_seq` is the stored one plus 1.
    journal_entry
        What the model did since `expected`.
    snapshot
        A snapshot to publish.
    quarantine
        Records to add to the quarantine.
    recent
        The points that were learned last.
    quarantine_limits
        Limits to trim the quarantine to, if the commit adds to it; None: do not trim.
    """

    state: ModelState
    expected: Position
    progress: Progress
    journal_entry: JournalEntry
    snapshot: Snapshot | None = None
    quarantine: tuple[BadRecord, ...] = ()
    recent: Recent | None = None
    quarantine_limits: QuarantineLimits | None = None
