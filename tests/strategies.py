"""Hypothesis strategies for the plain data that sources, models, stores and the service share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from streamkm.records import BadRecord, BatchRange, Position, RawRecord, TopicPartition
from streamkm.state import (
    CodecSpec,
    Commit,
    Counters,
    EventTimeLimit,
    JournalEntry,
    MiniBatch,
    ModelEvent,
    ModelSpec,
    ModelState,
    Progress,
    Snapshot,
)

INT64 = 2**63 - 1

names = st.text("abcXYZ019-_.", min_size=1, max_size=12)
# Any string at all: lone surrogates (a file's name that is not UTF-8) and NUL included.
texts = st.text(st.characters(), max_size=20)
topics = st.one_of(names, texts)
offsets = st.integers(0, INT64)
counts = st.integers(0, 2**53)
seconds = st.floats(0, 1e11)
floats = st.floats(width=64)
partitions = st.builds(TopicPartition, topics, st.integers(0, 2**31 - 1))

json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), texts),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=6,
)
jsons = st.dictionaries(texts, json_values, max_size=4)
some_ids = st.lists(st.integers(0, INT64), max_size=3).map(tuple)
events = st.builds(
    ModelEvent,
    st.sampled_from(["birth", "death", "split", "merge", "drift", "promotion", "outliers"]),
    some_ids,
    some_ids,
    jsons,
)

arrays = hnp.arrays(
    st.sampled_from([np.float64, np.float32, np.int64, np.int32, np.uint8, np.bool_]),
    hnp.array_shapes(max_dims=3, min_side=0, max_side=5),
)
model_states = st.builds(
    ModelState,
    kind=texts,
    version=st.integers(1, 1000),
    params=jsons,
    arrays=st.dictionaries(st.text("abc_", min_size=1, max_size=5), arrays, max_size=4),
)
specs = st.builds(
    ModelSpec,
    name=names,
    fields=st.lists(texts, min_size=1, max_size=4).map(tuple),
    n_clusters=st.integers(1, 10_000),
    source=jsons,
    learner=jsons,
    codec=st.builds(
        CodecSpec,
        kind=texts,
        fields=st.lists(texts, max_size=3).map(tuple),
        options=jsons.map(lambda options: {k: v for k, v in options.items() if k not in {"kind", "fields"}}),
    ),
)
positions = st.dictionaries(partitions, offsets, max_size=4)
counters = st.builds(Counters, counts, counts, counts, counts)
headers = st.lists(st.tuples(texts, st.none() | st.binary(max_size=8)), max_size=3).map(tuple)
raw_records = st.builds(
    RawRecord,
    partition=partitions,
    offset=offsets,
    timestamp=st.integers(-1, INT64),
    key=st.none() | st.binary(max_size=8),
    value=st.none() | st.binary(max_size=40),
    headers=headers,
    size=st.none() | st.integers(65_537, INT64),
)
bad_records = st.builds(
    BadRecord,
    record=raw_records,
    reason=st.sampled_from(
        ["not-json", "missing-field", "not-a-number", "not-finite", "too-large", "out-of-range", "event-time-ahead"]
    ),
    field=texts,
    message=texts,
)


# What columns of real data are like: equal values everywhere. Whole numbers, so that sums of them are exact.
COLUMNS = {
    "constant": lambda rng, n: np.full(n, float(rng.integers(-3, 9))),
    "zero": lambda rng, n: np.zeros(n),  # noqa: ARG005
    "flag": lambda rng, n: rng.integers(0, 2, n).astype(float),
    "rating": lambda rng, n: rng.integers(1, 6, n).astype(float),
    "rare": lambda rng, n: (rng.random(n) < 3.0 / max(n, 1)) * 5.0,
    "first": lambda rng, n: np.where(np.arange(n) == 0, 5.0, 0.0),  # noqa: ARG005
    "last": lambda rng, n: np.where(np.arange(n) == n - 1, 5.0, 0.0),  # noqa: ARG005
    "zero-inflated": lambda rng, n: rng.poisson(4.0, n) * (rng.random(n) < 0.2),
    "long-tailed": lambda rng, n: np.minimum(rng.zipf(1.8, n), 2**20).astype(float),
    "sorted": lambda rng, n: np.sort(rng.integers(0, 1 + n // 3, n)).astype(float),
    "falling": lambda rng, n: np.arange(n, 0.0, -1.0),  # noqa: ARG005
    "even": lambda rng, n: np.round(rng.normal(size=n) * 1024),
}


@st.composite
def common_rows(draw: st.DrawFn, max_rows: int = 400, max_columns: int = 3, min_rows: int = 1) -> np.ndarray:
    """(n, d) float64 whole numbers as people have them: ties, constant columns, few distinct values, counts with many
    zeros and long tails, and blocks of equal rows."""
    n = draw(st.integers(min_rows, max_rows) | st.sampled_from([m for m in (33, 64, 65) if min_rows <= m <= max_rows]))
    kinds = draw(st.lists(st.sampled_from(sorted(COLUMNS)), min_size=1, max_size=max_columns))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows = np.column_stack([np.asarray(COLUMNS[kind](rng, n), float) for kind in kinds])
    order = draw(st.sampled_from(["as is", "blocks", "shuffled", "turns"]))
    if order == "blocks":  # each row again and again, next to itself
        rows = rows[np.sort(rng.integers(0, 1 + n // 8, n))]
    elif order == "shuffled":
        rows = rng.permutation(rows)
    elif order == "turns":
        rows = rows[np.arange(n) % (1 + n // 8)]
    return np.ascontiguousarray(rows)


@st.composite
def common_weights(draw: st.DrawFn, n: int) -> np.ndarray:
    """(n,) weights of rows: ones, small numbers with zeros, one heavy row, numbers of any size; not all are zero."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    weights = {
        "ones": np.ones(n),
        "counts": rng.integers(0, 4, n).astype(float),
        "one": np.where(np.arange(n) == n // 2, 1.0, 0.0),
        "heavy": np.where(rng.random(n) < 0.05, 2.0**40, 1.0),
        "long-tailed": np.minimum(rng.zipf(1.5, n), 2**30).astype(float),
        "any size": 10.0 ** rng.uniform(-12, 12, n),
    }[draw(st.sampled_from(["ones", "ones", "counts", "one", "heavy", "long-tailed", "any size"]))]
    return weights if weights.any() else np.ones(n)


@st.composite
def mini_batches(draw: st.DrawFn, among: st.SearchStrategy[TopicPartition] = partitions) -> tuple[MiniBatch, ...]:
    """Mini-batches of one commit: mostly ranges that follow each other in their partition, sometimes any range."""
    known = draw(st.lists(among, min_size=1, max_size=4, unique=True))
    at = {p: draw(st.integers(0, INT64 // 2)) for p in known}
    batches = []
    for _ in range(draw(st.integers(0, 6))):
        batch = []
        for p in draw(st.lists(st.sampled_from(known), max_size=5)):
            start = at[p] if draw(st.booleans()) else draw(st.integers(0, INT64 // 2))
            at[p] = start + draw(st.integers(0, 100_000))
            batch.append(BatchRange(p, start, at[p]))
        batches.append(tuple(batch))
    return tuple(batches)


@st.composite
def journal_entries(draw: st.DrawFn) -> JournalEntry:
    """What a model did before one commit."""
    batches = draw(mini_batches())
    lost = draw(st.just(()) | mini_batches().filter(bool).map(lambda drawn: drawn[0]).filter(bool))
    limit = draw(st.none() | st.builds(EventTimeLimit, st.floats(0, 1e9), st.floats(0, 1e10)))
    prepared, adopted = draw(st.integers(-1, len(batches))), draw(st.sampled_from([0, 0, 1, INT64]))
    return JournalEntry(batches, prepared, adopted, lost, limit, draw(st.integers(1, 65535)))


@st.composite
def snapshots(draw: st.DrawFn, *, position: Position | None = None) -> Snapshot:
    """Snapshots that no store has numbered yet."""
    k, d = draw(st.integers(0, 4)), draw(st.integers(1, 4))
    vector = hnp.arrays(np.float64, k, elements=floats)
    return Snapshot(
        model=draw(names),
        created_at=draw(seconds),
        kind="live",
        reason=draw(st.sampled_from(["first", "interval", "points", "stop"])),
        fields=tuple(draw(st.lists(texts, min_size=d, max_size=d))),
        ids=draw(hnp.arrays(np.int64, k)),
        centroids=draw(hnp.arrays(np.float64, (k, d), elements=floats)),
        weights=draw(vector),
        spreads=draw(vector),
        born=draw(hnp.arrays(np.int64, k)),
        factors=draw(hnp.arrays(np.float64, d, elements=floats)),
        distance=draw(st.sampled_from(["euclidean", "cosine"])),
        inertia=draw(floats),
        n_points=draw(counts),
        position=draw(positions) if position is None else position,
        detail=draw(jsons),
        events=tuple(draw(st.lists(events, max_size=2))),
        deviations=draw(st.none() | hnp.arrays(np.float64, (k, d), elements=floats)),
    )


@st.composite
def progresses(draw: st.DrawFn, *, position: Position | None = None, commit_seq: int | None = None) -> Progress:
    """How far some model is."""
    return Progress(
        position=draw(positions) if position is None else position,
        counters=draw(counters),
        commit_seq=draw(counts) if commit_seq is None else commit_seq,
        committed_at=draw(seconds),
        lag=draw(st.integers(-1, INT64)),
        warmup=draw(st.none() | st.tuples(counts, counts)),
    )


@st.composite
def commits(draw: st.DrawFn, *, expected: Position | None = None, seq: int = 1) -> Commit:
    """Commits that may follow `expected` as commit number `seq`."""
    before = dict(expected or {})
    after = {p: draw(st.integers(offset, INT64)) for p, offset in before.items()}
    after.update({p: o for p, o in draw(positions).items() if p not in before})
    bad = draw(st.lists(bad_records, max_size=2, unique_by=lambda b: (b.record.partition, b.record.offset)))
    return Commit(
        state=draw(model_states),
        expected=before,
        progress=draw(progresses(position=after, commit_seq=seq)),
        journal_entry=draw(journal_entries()),
        snapshot=draw(st.none() | snapshots(position=after)),
        quarantine=tuple(bad),
    )


@st.composite
def histories(draw: st.DrawFn, max_commits: int = 4) -> Sequence[Commit]:
    """Commits that follow one another, from a model's first on."""
    done: list[Commit] = []
    for seq in range(1, draw(st.integers(1, max_commits)) + 1):
        done.append(draw(commits(expected=done[-1].progress.position if done else {}, seq=seq)))
    return done


def same_state(a: ModelState, b: ModelState) -> bool:
    """Whether two states are equal bit for bit (NaN equals NaN), dtype and shape included."""
    return a.to_bytes() == b.to_bytes()


def same_snapshot(a: Snapshot, b: Snapshot) -> bool:
    """Whether two snapshots are equal bit for bit, whatever numbers the store gave them."""
    plain = ("created_at", "kind", "reason", "fields", "n_points", "position", "detail")
    arrays_ = ("ids", "centroids", "weights", "spreads", "born", "factors")
    if a.deviations is not None and b.deviations is not None:
        arrays_ = (*arrays_, "deviations")
    return (
        (a.deviations is None) == (b.deviations is None)
        and all(getattr(a, name) == getattr(b, name) for name in plain)
        and np.array_equal([a.inertia], [b.inertia], equal_nan=True)
        and all(getattr(a, name).shape == getattr(b, name).shape for name in arrays_)
        and all(getattr(a, name).tobytes() == getattr(b, name).tobytes() for name in arrays_)
    )
