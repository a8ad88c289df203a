"""Every decoder under mutated real input: it decodes or refuses in our words. No crash, no hang, no flood of memory."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import httpx
import numpy as np
import orjson
import polars as pl
import pytest
from kafka.record import MemoryRecords
from pyarrow import fs

import fuzzing as real
import store_checks as facts
from fuzzing import Campaign, Family, Range, firing_range
from service_api import Api, Writer
from streamkm import OnlineKMeans, settings
from streamkm.codecs import ColumnsCodec, JsonCodec
from streamkm.connectors.columns import byte_records
from streamkm.connectors.files.source import FileSource, Place, numeric_columns
from streamkm.connectors.kafka.record_batches import BatchRecords, join
from streamkm.errors import CorruptBatchError, DataError, FileFormatError, SettingsError, StateError, StoreError
from streamkm.field_paths import resolve_path
from streamkm.recompute import checkpoint
from streamkm.recompute.archive import Archive, ArchivePart
from streamkm.recompute.outputs import read_centroids
from streamkm.recompute.pointfile import PointFile
from streamkm.recompute.span import OffsetSpan
from streamkm.records import Batch, ByteRecords, ColumnRecords, RawRecord, TopicPartition
from streamkm.state import ModelState
from streamkm.stores import Token, journal, open_store
from streamkm.stores.sql.schema import metadata
from test_codecs_json import same
from test_sources_batches import Aborted

TP = TopicPartition("t", 3)


def complete(batch: Batch, n: int) -> Batch:
    """Check that a batch accounts for n records, each once, and that its points are numbers."""
    assert len(batch) + len(batch.bad) + batch.tombstones == n
    assert len(batch.points) == len(batch.offsets) == len(batch.times)
    assert np.isfinite(batch.points).all()
    assert not set(batch.offsets.tolist()) & {bad.record.offset for bad in batch.bad}
    return batch


def json_records(_: Path) -> Campaign:
    fields = ("x", "a.b", "é")
    neighbour = b'{"x":7,"a":{"b":8},"\xc3\xa9":9,"t":5}'

    def decode(data: bytes) -> bool:
        values = [neighbour, data, None, neighbour]
        records = [RawRecord(TP, 10 + i, 1_700_000_000_500, b"k", v, (("h", data),)) for i, v in enumerate(values)]
        columns = byte_records(TP, 10, 20, records)
        for time_field in (None, "t"):
            codec, slow = (JsonCodec(fields, time_field=time_field, max_bytes=1 << 15, strict=s) for s in (False, True))
            batch = complete(codec.decode(columns), 4)
            assert same(batch, slow.decode(columns))
            found = dict(zip(batch.offsets.tolist(), batch.points.tolist(), strict=True))
            assert found.pop(10) == found.pop(13) == [7, 8, 9]
            assert [bad.record for bad in batch.bad] == ([] if found else [records[1]])
            if found:
                with contextlib.suppress(RecursionError):  # Python's own parser takes less depth
                    parsed = json.loads(data.decode(), parse_int=float, parse_constant=int)  # NaN is an error of int's
                    assert found[11] == (
                        parsed if isinstance(parsed, list) else [resolve_path(parsed, f) for f in fields]
                    )
            elif batch.bad[0].reason == "not-json":
                with pytest.raises(orjson.JSONDecodeError):
                    orjson.loads(data)
        return bool(found)

    known = [b'{"x":' + b"[" * 1020 + b"]" * 1020 + b"}"]  # orjson takes it, Python's encoder does not
    return Campaign(real.json_families(), decode, known=known, examples=400)


def column_texts(_: Path) -> Campaign:
    seeds = [b"1\n2.5\n-3e5\n\n.5\n+7", b"2023-11-14T22:13:20Z\n1e3\n1700000000123\ninf\nnan", "5\n½\n٣\n".encode()]

    def decode(data: bytes) -> bool:
        cells = data.decode("utf-8", "surrogateescape").split("\n")  # numpy's text may hold lone surrogates too
        n = len(cells)
        columns = {"x": np.array([cell or None for cell in cells], object), "t": np.array(cells[::-1], object)}
        rows = ColumnRecords(TP, 0, n, columns, np.arange(n), np.full(n, -1))
        timed, plain = (complete(ColumnsCodec(["x"], time_field=t).decode(rows), n) for t in ("t", None))
        assert plain.points[:, 0].tolist() == [float(cells[i].strip()) for i in plain.offsets]
        assert set(timed.offsets.tolist()) <= set(plain.offsets.tolist())
        return len(plain) > 0

    return Campaign([Family(seeds)], decode, known=[b"9" * 60_000 + b"x"])  # a pattern may go back and back


def record_batches(_: Path) -> Campaign:
    def decode(data: bytes) -> bool:
        aborted = [Aborted(2, 11), Aborted(1, 90)]
        part = BatchRecords(10, TP, MemoryRecords(data), isolation_level=1, aborted_transactions=aborted)
        position = 10
        while part:
            columns = [*part.take(3)]
            after = part.next_fetch_offset
            assert position <= after < 2**63
            if columns:
                found = join(columns)
                offsets = found.offsets.tolist()
                assert all(a < b for a, b in pairwise([position - 1, *offsets, after]))
                assert ((found.ends == -1) | ((found.begins >= 0) & (found.begins <= found.ends))).all()
                assert len(found.data) >= max(found.ends)
                table = found.begins, found.ends, found.offsets, found.timestamps
                read = ByteRecords(TP, position, after, found.data, *table, found.details, found.cut)
                assert [read.record(i).offset for i in range(len(read))] == offsets
                complete(JsonCodec(["x", "y"]).decode(read), len(read))
            position = after
        return True

    families = real.kafka_families()
    batch, *_, message = (family.seeds[0] for family in families)
    known = [
        real.wrapped(message[:8] + b"\xff\xff\xff\xf4" + message[12:], 1, 1),  # a message that ends where it begins
        families[0].dress(batch[:22] + b"\2" + batch[23:61] + b"\xff\xff\xff\xff\x0f\0abc"),  # snappy of 4 GiB
        families[0].dress(b"\x7f" + b"\xff" * 7 + batch[8:]),  # offsets beyond 64 bits
    ]
    return Campaign(families, decode, (CorruptBatchError,), known, 700)


def journal_entries(_: Path) -> Campaign:
    def decode(data: bytes) -> bool:
        found = journal.decode(data)
        assert all(0 <= r.start <= r.stop < 2**63 for batch in (*found.batches, found.lost) for r in batch)
        assert journal.decode(journal.encode(found)) == found
        return True

    return Campaign(real.journal_families(), decode, (StoreError,))


def model_states(_: Path) -> Campaign:
    rows = np.random.default_rng(0).normal(0, 1, (20, 2)) + np.arange(20)[:, None] % 2 * 9

    def decode(data: bytes) -> bool:
        state = ModelState.from_bytes(data)
        assert ModelState.from_bytes(state.to_bytes()).to_bytes() == state.to_bytes()
        OnlineKMeans.from_state(state).learn_many(rows)
        return True

    return Campaign(real.state_families(rows), decode, (StateError, DataError), examples=400)  # or of other columns


def stored_rows(folder: Path) -> Campaign:
    """Every text and every blob in a database."""
    store = open_store(f"sqlite:///{folder}/store.db")
    lease = facts.owned(store)
    for seq in (1, 2):
        seen = facts.recent_of(seq)
        store.commit(lease, replace(facts.commit_of(seq, snapshot=True, bad=True), recent=seen))
    store.keep_checkpoint("m", 1e9)
    store.put_job(facts.job_of("1"))
    store.add_token(Token("ci", "a" * 64, "read", ("m",), 1.0))
    raw = sqlite3.connect(folder / "store.db", isolation_level=None)
    raw.row_factory = sqlite3.Row
    raw.execute("PRAGMA synchronous=OFF")

    def read() -> None:
        spec, s = store.model("m").spec, store.snapshot("m", 1)
        k, d = s.centroids.shape
        assert s.factors.shape == (d,) == (len(s.fields),)
        assert all(getattr(s, name).shape == (k,) for name in ("ids", "weights", "spreads", "born"))
        assert all(isinstance(name, str) for name in (*spec.fields, *s.fields))
        positions = [
            s.position,
            store.load_checkpoint("m").progress.position,
            store.kept_checkpoint("m", 2).progress.position,
        ]
        places = [(*p, at) for position in positions for p, at in position.items()]
        assert all([*map(type, place)] == [str, int, int] for place in places)
        assert all(isinstance(name, str) for bad in store.newest_quarantined("m") for name, _ in bad.record.headers)
        assert len(list(store.journal("m"))) == 2
        recent = store.recent("m")
        assert recent is None or (recent.points.ndim == 2 and all(isinstance(at, int) for at in recent.ends.values()))
        assert all(isinstance(job.options, dict) and isinstance(job.progress, dict) for job in store.jobs("m"))
        assert all(isinstance(name, str) for token in store.tokens() for name in token.models)

    def decode(data: bytes) -> bool:
        place, _, content = data.partition(b"\0")
        table, column = place.decode().split(".")
        row, cell = raw.execute(f"SELECT rowid, {column} FROM {table} LIMIT 1").fetchone()  # noqa: S608
        change = f"UPDATE {table} SET {column} = CAST(? AS {'BLOB' if isinstance(cell, bytes) else 'TEXT'})"  # noqa: S608
        try:
            raw.execute(f"{change} WHERE rowid = ?", (content, row))
            read()
        finally:
            raw.execute(f"{change} WHERE rowid = ?", (cell, row))
        return True

    families = []
    for table in metadata.tables:
        for column, cell in dict(raw.execute(f"SELECT * FROM {table} LIMIT 1").fetchone() or {}).items():  # noqa: S608
            if isinstance(cell, str | bytes):
                content = cell if isinstance(cell, bytes) else cell.encode()
                is_json = content[:1] in (b"[", b"{") and column != "value"
                families.append(Family([content], f"{table}.{column}\0".encode().__add__, json=is_json))
    return Campaign(families, decode, (StoreError, StateError), examples=400)


def in_file(path: Path, read: Callable[[], object], data: bytes) -> bool:
    path.unlink(missing_ok=True)  # the one before may still be mapped
    path.write_bytes(data)
    read()
    return True


def fit_checkpoints(folder: Path) -> Campaign:
    path = folder / "fit"

    def read() -> None:
        found = checkpoint.load(path, "me")
        assert found.centroids.ndim == 2
        assert all(isinstance(n, int) for n in (found.run, found.n_iter, found.moved))
        np.random.RandomState().set_state(found.rng)

    return Campaign(real.mark_families(path, "me"), partial(in_file, path, read), (StateError,), examples=300)


def point_files(folder: Path) -> Campaign:
    path = folder / "points"

    def read() -> None:
        with PointFile.open(path) as file:
            assert file.points.shape == file.shape == (len(file), len(file.fields))
            assert all(isinstance(name, str) for name in file.fields)
            assert file.weights is None or file.weights.shape == (len(file),)
            file.points.sum()

    return Campaign(real.point_families(path), partial(in_file, path, read), (FileFormatError,))


def archives(folder: Path) -> Campaign:
    contents = {"source": {"topic": "t"}, "fields": ["a"], "codec": {"kind": "json"}}
    part = ArchivePart(3, 0, 4, 4, 0, 0, 5.0)
    index, rows = folder / "archive.json", folder / part.name
    frame = pl.DataFrame({"_offset": [0, 1, 2, 3], "_time": [1.0, 2.0, 3.0, 5.0], "a": [0.5, 1.5, 2.5, 3.5]})
    told, sound = json.dumps({"contents": contents, "parts": [asdict(part)]}).encode(), real.saved(frame.write_parquet)

    def decode(data: bytes) -> bool:
        is_part = data.startswith(b"PAR1")
        index.write_bytes(told if is_part else data)
        rows.write_bytes(data if is_part else sound)
        for points in Archive(folder, contents).points(OffsetSpan({TP: 0}, {TP: 3})):
            assert (points.ndim, points.dtype) == (2, np.float64)
        return True

    families = [Family([told], json=True), Family([sound])]
    return Campaign(families, decode, (FileFormatError, SettingsError), spare=6 << 30)


def starts(folder: Path) -> Campaign:
    def decode(data: bytes) -> bool:
        path = folder / ("c.npz" if data.startswith(b"PK") else "c.json")
        path.write_bytes(data)
        found = read_centroids(path, ("a", "b"))
        assert found.shape == (len(found), 2)
        assert np.isfinite(found).all()
        return True

    return Campaign(real.centroid_families(), decode, (FileFormatError, SettingsError))


def tables(folder: Path, kind: str, *, elsewhere: bool = False) -> Campaign:
    path = folder / f"a.{kind}"
    place = Place(f"file://{path}", fs.LocalFileSystem(), str(path)) if elsewhere else Place(str(path))

    def read() -> None:
        numbers = numeric_columns(place)
        with contextlib.closing(FileSource(place)) as source:
            source.seek(source.beginning())
            end, rows = sum(source.end().values()), 0
            for _ in range(20):
                for records in source.poll(0, 100):
                    rows += len(records)
                    assert all(len(column) == len(records) for column in records.columns.values())
                    with contextlib.suppress(SettingsError):  # a column may have a name that is no field's
                        if numbers:
                            complete(ColumnsCodec(numbers).decode(records), len(records))
            assert rows == min(end, 2000)

    # Polars makes room for as many bytes as a page says it has, up to 2 GiB each, before it looks for them.
    spare, known = (6 if kind == "parquet" else 1) << 30, real.broken_arrow() if kind == "arrow" else ()
    return Campaign(real.table_families(kind), partial(in_file, path, read), (FileFormatError,), known, spare=spare)


def requests(_: Path) -> Campaign:
    store = open_store("memory://")
    Writer(store).commit()
    api = Api(store)
    bodies = [b'{"points": [[1.0, 2, 3e5], {"amount": 1, "lat": 2.5, "lon": 3}], "snapshot": 1}', b'{"points":[]}']
    queries = [b"?at=2030-11-01T10:00:00%2B01:00", b"?snapshot=1", b"?before=12&limit=3", b"?at=1900000000.5"]

    def decode(data: bytes) -> bool:
        if data.startswith(b"?"):
            what = "snapshots" if b"before" in data else "centroids"
            answer = api.get(f"/v1/models/orders/{what}", params=httpx.QueryParams(data[1:9999].decode("latin-1")))
        else:
            answer = api.request("POST", "/v1/models/orders/predict", content=data)
        told = answer.json()
        assert answer.status_code in (200, 400, 404, 414, 422), told
        if answer.status_code == 200 and "ids" in told:
            assert len(told["ids"]) == len(told["distances"]) == len(json.loads(data)["points"])
        return answer.status_code == 200

    known = [b'{"points":[{"\\ud800":NaN}]}']  # the place of the NaN cannot be written as UTF-8
    return Campaign([Family(bodies, json=True), Family(queries)], decode, known=known, examples=300)


SETTINGS = {
    "live.k": b"auto", "live.half_life": b"10m", "live.checkpoint_every": b"250ms", "live.fields": b"a,b.c",
    "live.kafka_property": b"security.protocol=SSL,a=b", "live.max_bad_ratio": b"0.5", "replay.k": b"2..20",
    "replay.memory": b"1.5 GiB", "replay.tol": b"1e-4",
}  # fmt: skip


def setting_texts(_: Path) -> Campaign:
    def decode(data: bytes) -> bool:
        place, _, text = data.partition(b"\0")
        program, _, name = place.decode().partition(".")
        cls = {"live": settings.LiveSettings, "replay": settings.ReplaySettings}[program]
        value = getattr(settings.load(cls, {name: text.decode("utf-8", "surrogateescape")}, env={}), name)
        assert value == value  # noqa: PLR0124  # no NaN
        return True

    families = [Family([text], f"{name}\0".encode().__add__) for name, text in SETTINGS.items()]
    return Campaign(families, decode, (SettingsError,), [b"replay.memory\0" + b"9" * 400], 400)


MAKERS = (
    json_records, column_texts, record_batches, journal_entries, model_states, stored_rows, fit_checkpoints,
    point_files, archives, starts, requests, setting_texts,
)  # fmt: skip
CAMPAIGNS: dict[str, Callable[[Path], Campaign]] = {
    **{make.__name__.replace("_", "-"): make for make in MAKERS},
    **{kind: partial(tables, kind=kind) for kind in ("csv", "npy", "npz", "parquet", "arrow")},
    **{f"{kind}-elsewhere": partial(tables, kind=kind, elsewhere=True) for kind in ("parquet", "arrow")},
}


@pytest.fixture(scope="module")
def campaigns() -> Iterator[Range]:
    with firing_range("test_fuzz") as running:
        yield running


@pytest.mark.parametrize("name", CAMPAIGNS)
def test_mutated_input_is_decoded_or_refused_and_nothing_else(campaigns: Range, name: str, tmp_path: Path) -> None:
    counts = campaigns.run(name, float(os.environ.get("STREAMKM_FUZZ_EXAMPLES", "1")), tmp_path / "log")
    print(name, counts)  # noqa: T201  # pytest -rP shows it
    assert min(counts["accepted"], counts["refused"]) > 0
