"""Maintenance of a store: backups while it is in use, vacuum, integrity, and full disks."""

from __future__ import annotations

import contextlib
import json
import resource
import sqlite3
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner

from consumers.cli import cli
from consumers.doctor import _store as store_finding
from store_checks import SPEC, bad_of, commit_of, owned
from streamkm.engine import audit
from streamkm.errors import SettingsError
from streamkm.state import Counters
from streamkm.stores import maintenance, open_store
from streamkm.testing import StopAfter
from test_engine import N, World, eager  # noqa: F401 - eager is a fixture
from test_quarantine import counters, live, produce, values
from waiting import PATIENCE


@pytest.fixture
def file(tmp_path):
    return tmp_path / "s.db"


@pytest.fixture
def store(file):
    with contextlib.closing(open_store(f"sqlite:///{file}")) as opened:
        yield opened


def filled(store, n=5, **more):
    lease = owned(store)
    for seq in range(1, n + 1):
        store.commit(lease, commit_of(seq, snapshot=True, **more))
    return lease


def run(*arguments, code=0):
    done = CliRunner().invoke(cli, ["store", *arguments], env={"COLUMNS": "200"})
    assert done.exit_code == code, f"{done.output}{done.exception!r}"
    return done.output


def test_a_copy_made_while_commits_go_on_is_a_whole_store_of_one_moment(store, file, tmp_path):
    lease, done, wrong = owned(store), threading.Event(), []

    def write():
        seq = 0
        while not done.is_set():
            seq += 1
            store.commit(lease, commit_of(seq, snapshot=True, size=20_000))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for i in range(4):
            copy = tmp_path / f"copy-{i}.db"
            out = run("backup", str(copy), "--store", f"sqlite:///{file}", "--json")
            assert json.loads(out)["bytes"] == copy.stat().st_size
            with contextlib.closing(open_store(f"sqlite:///{copy}")) as copied:
                wrong += [*maintenance.find_damage(copied), *(audit(copied, "m") if copied.models() else [])]
                checkpoint = copied.load_checkpoint("m")
            seq = checkpoint.progress.commit_seq if checkpoint else 0
            assert checkpoint is None or checkpoint.state.params == {"seq": seq}
    finally:
        done.set()
        writer.join()
    assert wrong == []
    with contextlib.closing(open_store(f"sqlite:///{copy}")) as copied:
        again = copied.acquire("m", "other", 10.0, 1e9)
        copied.commit(again, commit_of(seq + 1))  # a consumer continues from it
    assert not list(tmp_path.glob("*.part*"))


def test_a_copy_replaces_no_file_unless_it_is_told_to(store, file, tmp_path):
    filled(store)
    url, there = f"sqlite:///{file}", tmp_path / "there.db"
    there.write_text("precious")
    with pytest.raises(SettingsError, match="this file exists") as refused:
        maintenance.backup(store, there)
    assert there.read_text() == "precious"
    assert "--force" in refused.value.hint
    run("backup", str(there), "--store", url, "--force")
    with contextlib.closing(open_store(f"sqlite:///{there}")) as copied:
        assert copied.snapshot("m").id == 5
    with pytest.raises(SettingsError, match="no such directory"):
        maintenance.backup(store, tmp_path / "missing" / "x.db")


def test_where_there_is_no_file_the_tool_that_does_it_is_named(database):
    with pytest.raises(SettingsError, match="ends with its process"):
        maintenance.backup(open_store("memory://"), Path("x"))
    with contextlib.closing(open_store(database())) as store:
        filled(store)
        with pytest.raises(SettingsError) as e:
            maintenance.backup(store, Path("x.sql"))
        assert "pg_dump --table='streamkm_*' --file=x.sql" in e.value.hint
        with pytest.raises(SettingsError) as e:
            maintenance.vacuum(store)
        assert "vacuumdb" in e.value.hint
        assert maintenance.find_damage(store) == []
        assert audit(store, "m") == []


def test_room_is_given_back(store, file):
    filled(store, 40, size=50_000)
    with contextlib.closing(sqlite3.connect(file)) as database, database:
        database.execute("UPDATE streamkm_snapshots SET arrays = zeroblob(100000)")
    store.delete("m")
    told = json.loads(run("vacuum", "--store", f"sqlite:///{file}", "--json"))
    assert told["after"] < 0.3 * told["before"]
    assert file.stat().st_size == told["after"]
    store.create(SPEC, 1.0)


def test_a_consistent_store_is_reported_as_such(store, file):
    filled(store)
    store.create(SPEC, 1.0)
    assert run("check", "--store", f"sqlite:///{file}") == "m: consistent\n"
    assert json.loads(run("check", "--quick", "--json", "--store", f"sqlite:///{file}")) == {
        "damage": [],
        "models": {"m": []},
    }
    store.delete("m")
    assert run("check", "--store", f"sqlite:///{file}") == "undamaged, without models\n"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("UPDATE streamkm_checkpoints SET bad = 7", "100 records are not 100 points, 7 bad ones and 0 tombstones"),
        ("UPDATE streamkm_checkpoints SET records = 120, points = 120", "120 records were counted in 100 offsets"),
        ("DELETE FROM streamkm_journal WHERE commit_seq = 3", "the journal goes from commit 2 to 4"),
        (
            "DELETE FROM streamkm_journal WHERE commit_seq = 5",
            "the journal ends at commit 4, the checkpoint is commit 5",
        ),
        ("UPDATE streamkm_journal SET batches = x'00' WHERE commit_seq = 2", "cannot be read behind commit 1"),
        ("UPDATE streamkm_progress SET next_offset = 60 WHERE partition = 1", "the position of orders-1 is 60"),
        ("UPDATE streamkm_models SET last_snapshot = 4", "the newest snapshot is 5, the model says 4"),
        ("UPDATE streamkm_snapshots SET commit_seq = 0 WHERE id = 2", "snapshot 2 has no commit"),
        ("UPDATE streamkm_snapshots SET arrays = x'00' WHERE id = 2", "snapshot 2: it is damaged"),
        ("UPDATE streamkm_progress SET next_offset = 40", "snapshot 5 is ahead of the model in orders-0, orders-1"),
        ("UPDATE streamkm_checkpoints SET state = x'00'", "the state of the checkpoint cannot be read"),
        ("DELETE FROM streamkm_checkpoints", "snapshot 5 exists without a checkpoint"),
    ],
)
def test_every_inconsistency_is_reported(store, file, change, said):
    filled(store)
    with contextlib.closing(sqlite3.connect(file)) as database, database:
        database.execute(change)
    out = run("check", "--store", f"sqlite:///{file}", code=5)
    assert said in out


def test_a_quarantine_with_more_records_than_were_counted_is_reported(store):
    filled(store, bad=True)
    assert audit(store, "m") == ["5 records are in quarantine, 0 were counted as bad"]
    store.remove_quarantined("m", [(bad_of(seq).record.partition, bad_of(seq).record.offset) for seq in range(1, 6)])
    assert audit(store, "m") == []


def test_rows_that_belong_to_nothing_and_pages_that_are_broken_are_damage(store, file):
    filled(store)
    assert maintenance.find_damage(store) == []
    with contextlib.closing(sqlite3.connect(file)) as database, database:
        database.execute("UPDATE streamkm_journal SET model_id = 77 WHERE commit_seq = 1")
    assert "refers to a streamkm_models that is gone" in maintenance.find_damage(store)[0]
    store.close()
    with contextlib.closing(sqlite3.connect(file)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        root = database.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'streamkm_snapshots_created'"
        ).fetchone()[0]
        (size,) = database.execute("PRAGMA page_size").fetchone()
    data = bytearray(file.read_bytes())
    data[root * size - 400 : root * size] = b"\xa5" * 400  # entries of one index
    file.write_bytes(data)
    assert "damaged: " in run("check", "--store", f"sqlite:///{file}", code=5)


def test_doctor_looks_at_the_store_and_makes_none(store, file, tmp_path):
    filled(store)
    found = store_finding(f"sqlite:///{file}")
    assert (found.ok, found.detail) == (True, "1 models, undamaged")
    missing = store_finding(f"sqlite:///{tmp_path}/none.db")
    assert (missing.ok, missing.needed) == (False, False)
    assert "does not exist" in missing.detail
    assert not (tmp_path / "none.db").exists()
    with contextlib.closing(sqlite3.connect(file)) as database, database:
        database.execute("UPDATE streamkm_journal SET model_id = 77 WHERE commit_seq = 1")
    damaged = store_finding(f"sqlite:///{file}")
    assert (damaged.ok, damaged.needed) == (False, True)


@pytest.mark.kafka
def test_a_full_disk_stops_the_consumer_and_with_room_it_goes_on_with_nothing_lost(bootstrap, topic, tmp_path):
    name, file = topic(partitions=2), tmp_path / "s.db"
    url, n = f"sqlite:///{file}", 3000
    records = values(n)
    produce(bootstrap, name, records[:1000])
    with live(tmp_path / "log", bootstrap, name, url) as owner:
        owner.until(lambda: (c := counters(url)) is not None and c.points == 1000)
        # From here on no file of the process can grow beyond the present size of the write-ahead log.
        room = (tmp_path / "s.db-wal").stat().st_size
        resource.prlimit(owner.popen.pid, resource.RLIMIT_FSIZE, (room, room))
        produce(bootstrap, name, records[1000:])
        assert owner.popen.wait(PATIENCE) == 5, owner.output()
        assert "disk" in owner.output().rpartition("error:")[2]
    c = counters(url)
    assert 1000 <= c.points < n
    with contextlib.closing(open_store(url)) as store:
        assert maintenance.find_damage(store) == audit(store, "m") == []
    with live(tmp_path / "log", bootstrap, name, url) as owner:
        owner.until(lambda: counters(url).points == n)
        assert owner.leave() == 0
    assert counters(url) == Counters(n, n)
    with contextlib.closing(open_store(url)) as store:
        assert audit(store, "m") == []  # each offset read once


def test_who_waits_for_a_read_only_store_says_why_and_is_not_ready(file, caplog):
    url = f"sqlite:///{file}"
    with contextlib.closing(open_store(url)) as store:
        w = World(store=store)
        w.engine().run(StopAfter(lambda: (c := w.counters_or_none()) is not None and c.records >= 500, w.clock))
        before = w.counters()
    with contextlib.closing(open_store(url + "?mode=ro")) as store:
        w.clock.advance(60)
        engine = w.engine(store=store)
        why, until = [], w.clock.now + 400
        engine.run(StopAfter(lambda: why.append(engine.context.heartbeat.ready()) or w.clock.now > until, w.clock))
        assert {well for well, _ in why[2:-1]} == {False}
        assert "store unavailable: it is read-only" in why[-2][1]
        assert "Give this process the right to write" in caplog.text
    with contextlib.closing(open_store(url)) as store:
        w.store = store
        assert w.counters() == before
        w.engine().run(w.until_all_read())
        assert w.counters().points == N
        assert w.verify()
