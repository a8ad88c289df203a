"""Plain data that a model, a store and the service share: a model's state, and a published snapshot of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from streamkm.errors import StateError
from streamkm.records import BadRecord, BatchRange, Position

STATE_FORMAT = 1
"""Version of the envelope that `ModelState.to_bytes` writes; a model's own `version` is counted by the model."""

Json = Mapping[str, Any]
Distance = Literal["euclidean", "cosine"]


@dataclass(frozen=True, eq=False)
class ModelState:
    """An immutable copy of all that a model knows.

    Attributes
    ----------
    kind
        Class of the model, such as ``OnlineKMeans``.
    version
        Version of the model's own payload.
    params
        Constructor arguments and scalars, JSON values only. Floats survive exactly.
    arrays
        Arrays by name, any numeric dtype; read-only.
    """

    kind: str
    version: int
    params: Json
    arrays: Mapping[str, NDArray[Any]]

    def to_bytes(self) -> bytes:
        """Serialise: equal states give equal bytes, so a hash of them identifies a state."""
        header = {
            "format": str(STATE_FORMAT),
            "kind": self.kind,
            "version": str(self.version),
            "params": json.dumps(self.params, sort_keys=True),
        }
        # safetensors does not order its metadata, so the header travels as an array of its own.
        blob = np.frombuffer(json.dumps(header, sort_keys=True).encode(), np.uint8)
        arrays = {name: np.ascontiguousarray(a) for name, a in self.arrays.items()}
        return safetensors.numpy.save({"__state__": blob, **arrays})

    @classmethod
    def from_bytes(cls, data: bytes) -> ModelState:
        """Read what `to_bytes` wrote.

        Raises
        ------
        StateError
            The bytes are no state, are cut short, or were written by a newer streamkm.
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
                f"the state has format {written}, this streamkm reads up to {STATE_FORMAT}",
                hint="Upgrade streamkm, or restore a backup",
            )
        for a in arrays.values():
            a.flags.writeable = False
        return state


@dataclass(frozen=True)
class Event:
    """Something that happened to clusters between two publications; `models.lineage` tells the rules.

    Attributes
    ----------
    kind
        ``birth``, ``death``, ``split``, ``merge`` or ``drift``; of an owner, ``promotion``: another snapshot was put in
        charge, or ``outliers``: many more of the points than before belong to no cluster.
    before
        Ids of the clusters it happened to; sorted, empty for a birth and for outliers.
    after
        Ids of the clusters that came of it; sorted, empty for a death and for outliers.
    detail
        What it was judged by: JSON values.
    """

    kind: str
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    detail: Json = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {"kind": self.kind, "before": [*self.before], "after": [*self.after], "detail": {**self.detail}}

    @classmethod
    def from_json(cls, value: Json) -> Event:
        """Undo `to_json`."""
        return cls(value["kind"], tuple(value["before"]), tuple(value["after"]), dict(value["detail"]))


@dataclass(frozen=True, eq=False)
class Publication:
    """What a model says its clusters are, after a re-solve; the arrays are read-only.

    Attributes
    ----------
    ids
        (k,) int64, stable cluster ids.
    centroids
        (k, d) float64, raw units.
    weights
        (k,) float64: (decayed) weight of each cluster's points.
    spreads
        (k,) float64: root mean squared distance of a cluster's points to its centroid, in the unit of distances.
    born
        (k,) int64: rows the model had seen when the id was published first.
    factors
        (d,) float64: coordinates are multiplied by these before distances are taken.
    deviations
        (k, d) float64, raw units: root mean squared difference of a cluster's points to its centroid, by field; None
        where it is not known: the model goes on from clusters that an older streamkm published.
    n_seen
        Rows the model had seen.
    events
        What happened to clusters since the publication before.
    detail
        How it came about: JSON values.
    """

    ids: NDArray[np.int64]
    centroids: NDArray[np.float64]
    weights: NDArray[np.float64]
    spreads: NDArray[np.float64]
    born: NDArray[np.int64]
    factors: NDArray[np.float64]
    deviations: NDArray[np.float64] | None
    n_seen: int
    events: tuple[Event, ...] = ()
    detail: Json = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Snapshot:
    """What a model published: immutable, numbered, enough to answer every query about the clusters at that moment.

    Attributes
    ----------
    model, id
        Name of the model; number of the snapshot in it, from 1 (0 until the store has numbered it).
    created_at
        Seconds since 1970, by the clock of the process that published.
    kind, reason
        ``live`` or ``replay``; why now: ``first``, ``interval``, ``points``, ``stop``, ``promoted``, ``replay``.
    fields
        Names of the d columns.
    ids
        (k,) int64, stable cluster ids.
    centroids
        (k, d) float64, raw units.
    weights
        (k,) float64: (decayed) number of points of each cluster.
    spreads
        (k,) float64: root mean squared distance of a cluster's points to its centroid, in the unit of distances.
    born
        (k,) int64: points learned when the id was published first; their difference to `n_points` is a cluster's age.
    factors
        (d,) float64: coordinates are multiplied by these before distances are taken; ones unless the model scales.
    distance
        ``euclidean``, or ``cosine``: points are scaled to length one first.
    inertia
        Mean squared distance to the nearest centroid of the points learned since the snapshot before, each judged
        before it was learned; NaN when there were none.
    n_points
        Points learned since the model was made.
    position
        Offsets the snapshot reflects: every record below, none at or above.
    detail
        Provenance: JSON values.
    events
        What happened to clusters since the snapshot before.
    commit_seq
        Number of the commit that published it (0 until the store has numbered it): the journal up to it re-derives it.
    deviations
        (k, d) float64, raw units: root mean squared difference of a cluster's points to its centroid, by field; None
        where it is not known, as in what older versions published.
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
    events: tuple[Event, ...] = ()
    id: int = 0
    commit_seq: int = 0
    deviations: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class ModelSpec:
    """What a model is made of; fixed for its life, checked at every start.

    Attributes
    ----------
    name
        Letters, digits, ``-``, ``_`` and ``.``; at most 128.
    fields
        Names of the dimensions, in order (dotted paths into nested objects).
    n_clusters
        k; 0: chosen from the first points.
    source
        Where the points come from: ``{"kind": "kafka", "topic": ..., "cluster_id": ..., "topic_id": ...}``.
    learner
        All constructor arguments of the model that can change its result.
    codec
        How records are decoded: ``{"kind": "json"}``.
    """

    name: str
    fields: tuple[str, ...]
    n_clusters: int
    source: Json
    learner: Json
    codec: Json


@dataclass(frozen=True)
class Counters:
    """Records accounted for since the model was made: ``records == points + bad + tombstones``.

    Attributes
    ----------
    lost
        Offsets that were gone from the topic before they could be read, and were skipped because the user said so. None
        of `records`: on a topic without transactions or compaction `records` and `lost` add up to the offsets passed.
    """

    records: int = 0
    points: int = 0
    bad: int = 0
    tombstones: int = 0
    lost: int = 0

    def plus(self, *, points: int = 0, bad: int = 0, tombstones: int = 0, lost: int = 0) -> Counters:
        """The counters after some more records."""
        return Counters(
            self.records + points + bad + tombstones,
            self.points + points,
            self.bad + bad,
            self.tombstones + tombstones,
            self.lost + lost,
        )


MiniBatch = tuple[BatchRange, ...]
"""The ranges that one mini-batch was made of, in the order in which their points were learned."""


class EventTimeLimit(NamedTuple):
    """How far in the future an event time may lie; what lies beyond is a bad record.

    Attributes
    ----------
    lead
        Seconds ahead of the record's own timestamp, and of `read_at`.
    read_at
        When the records were read, seconds since 1970: in the journal, so that a re-run decides alike.
    """

    lead: float
    read_at: float


class JournalEntry(NamedTuple):
    """What a model did between two commits: with the spec, all that is needed to do it again.

    Attributes
    ----------
    batches
        The mini-batches learned, in order.
    prepared_after
        How many of them were learned when a publication was prepared, which took effect after the last one; -1: none
        was.
    promoted_snapshot
        Number of the snapshot that was put in charge before the first of them, and published anew, as it had become,
        after the last; 0: none was.
    lost
        Ranges that the topic no longer had when they were to be read, after the last mini-batch.
    limit
        Which event times were taken; None: all.
    arithmetic
        Number of the arithmetic that learned (`streamkm.models.ARITHMETIC`): another one may give other bits.
    """

    batches: tuple[MiniBatch, ...]
    prepared_after: int = -1
    promoted_snapshot: int = 0
    lost: MiniBatch = ()
    limit: EventTimeLimit | None = None
    arithmetic: int = 1


@dataclass(frozen=True)
class Progress:
    """How far a model is.

    Attributes
    ----------
    position
        Every record below was learned, quarantined, counted as a tombstone or lost; none at or above was.
    commit_seq
        Number of commits so far.
    lag
        Records between `position` and the end of the source when the commit was made; -1 if unknown.
    warmup
        (points buffered, points needed) while the model has no centroids yet, else None.
    """

    position: Position
    counters: Counters
    commit_seq: int
    committed_at: float
    lag: int = -1
    warmup: tuple[int, int] | None = None


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Where a model stands: its state, and how far that state has learned."""

    state: ModelState
    progress: Progress


@dataclass(frozen=True, eq=False)
class Recent:
    """What an owner saw last, for people to look at: nothing is learned or derived from it.

    Attributes
    ----------
    points
        (m, d) float64, raw units: some of the points learned last, the oldest first.
    ends
        End of each partition when it was last asked for: one above its newest record. Empty if unknown.
    """

    points: NDArray[np.float64]
    ends: Position = field(default_factory=dict)


class QuarantineLimits(NamedTuple):
    """What a quarantine holds at most; the oldest records go first.

    Attributes
    ----------
    rows
        Records.
    size
        Bytes of their values, keys, headers and messages.
    delivered_only
        No record goes whose dead letter is to come. Beyond `size` such a one loses its value instead, from the oldest
        on; the whole record is in the topic.
    """

    rows: int
    size: int
    delivered_only: bool = False


@dataclass(frozen=True, eq=False)
class Commit:
    """One transaction: state, progress, journal and, sometimes, a snapshot, quarantined records and a look at the last.

    Attributes
    ----------
    expected
        The position that the store must still hold; anything else means that somebody else wrote. Empty at first.
    progress
        What becomes the model's progress; its `commit_seq` is the stored one plus 1.
    journal_entry
        What the model did since `expected`: the journal.
    quarantine_limits
        To which the quarantine is trimmed, in this transaction, if the commit adds to it; None: not.
    """

    state: ModelState
    expected: Position
    progress: Progress
    journal_entry: JournalEntry
    snapshot: Snapshot | None = None
    quarantine: tuple[BadRecord, ...] = ()
    recent: Recent | None = None
    quarantine_limits: QuarantineLimits | None = None
