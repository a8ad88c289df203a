"""Stored records and models are readable by their owner only, whatever the umask."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

import numpy as np
import pytest

from store_checks import commit_of, owned
from streamkm.broker import data_dir
from streamkm.recompute.archive import Archive
from streamkm.recompute.pointfile import PointFile, atomic_write
from streamkm.recompute.replay import WorkFolder
from streamkm.stores import maintenance, open_store


@pytest.fixture(autouse=True)
def open_umask():
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_store_its_log_and_its_backups_are_private(tmp_path):
    with contextlib.closing(open_store(f"sqlite:///{tmp_path}/s.db")) as store:
        lease = owned(store)
        store.commit(lease, commit_of(1, snapshot=True, bad=True))
        maintenance.backup(store, tmp_path / "backup.db")
        found = {path.name: mode(path) for path in tmp_path.iterdir()}
    assert set(found) == {"s.db", "s.db-wal", "s.db-shm", "backup.db"}
    assert set(found.values()) == {0o600}


def test_a_store_that_is_there_stays_as_open_as_it_is(tmp_path):
    (tmp_path / "s.db").touch(0o640)
    open_store(f"sqlite:///{tmp_path}/s.db").close()
    assert mode(tmp_path / "s.db") == 0o640


def test_what_recomputations_keep_is_private_and_what_they_were_asked_for_is_not(tmp_path):
    WorkFolder(tmp_path / "below" / "work")
    Archive(tmp_path / "archive", {"fields": ["x"]})
    with PointFile.create(tmp_path / "points", ["x"]) as points:
        points.append(np.ones((3, 1)), np.ones(3))
        points.finish()
    with atomic_write(tmp_path / "checkpoint") as file:
        file.write(b"x")
    with atomic_write(tmp_path / "result.csv", shared=True) as file:
        file.write(b"x")
    assert mode(tmp_path / "below") == 0o755
    assert mode(tmp_path / "below" / "work") == mode(tmp_path / "archive") == 0o700
    files = {path.name: mode(path) for path in tmp_path.iterdir() if path.is_file()}
    assert files.pop("result.csv") == 0o644
    assert set(files.values()) == {0o600}


def test_the_data_of_a_local_broker_is_private(tmp_path):
    (tmp_path / "checkpoint").write_bytes(b"")
    with data_dir.open_data_dir(tmp_path / "data", tmp_path / "checkpoint"):
        assert mode(tmp_path / "data") == 0o700
        assert mode(tmp_path / "data" / "lock") == 0o600
