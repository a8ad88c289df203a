"""Migration 0004 of an older store."""

from __future__ import annotations

import contextlib
import shutil

import pytest
import sqlalchemy as sa

from store_checks import SPEC
from streamkm.records import BatchRange, TopicPartition
from streamkm.state import JournalEntry
from streamkm.stores import journal, open_store, serialization
from streamkm.stores.sql import migrate, sqlite

OLD = ("env.py", "versions/v0001_first.py", "versions/v0002_published.py", "versions/v0003_source.py")


@pytest.mark.parametrize("asked", [0, 3])
def test_snapshots_that_the_journal_or_a_promotion_names_are_pinned(tmp_path, asked):
    (tmp_path / "versions").mkdir()
    for script in OLD:
        shutil.copy(migrate.SCRIPTS / script, tmp_path / script)
    url = f"sqlite:///{tmp_path}/s.db"
    engines = sqlite.engines(url, 5.0)
    migrate.upgrade(engines, tmp_path, "0003")
    row = {"commit_seq": 1, "created_at": 1.0, "kind": "live", "reason": "x", "n_points": 1, "fields": "[]"}
    row |= {"position": "[]", "detail": "{}", "distance": "euclidean", "events": "[]", "arrays": b""}
    with engines.writer.begin() as tx:

        def insert(table, **values):
            tx.execute(sa.table(table, *map(sa.column, values)).insert().values(**values))

        model = {"name": "m", "created_at": 1.0, "last_snapshot": 4, "numbered": 4, "lost": 0}
        insert("streamkm_models", id=1, spec=serialization.spec_to_text(SPEC), **model)
        for number in (1, 2, 3, 4):
            insert("streamkm_snapshots", model_id=1, id=number, **row)
        batch = ((BatchRange(TopicPartition("t", 0), 0, 5),),)
        for seq, adopted in ((1, 0), (2, 2), (3, 0)):
            insert(
                "streamkm_journal", model_id=1, commit_seq=seq, batches=journal.encode(JournalEntry(batch, -1, adopted))
            )
        if asked:
            insert("streamkm_promotions", model_id=1, snapshot=asked, skip=False)
    engines.close()
    with contextlib.closing(open_store(url)) as store:
        with store.engines.reader.connect() as connection:
            pinned = connection.execute(sa.text("SELECT id FROM streamkm_snapshots WHERE pinned ORDER BY id")).scalars()
            assert pinned.all() == ([2, 3] if asked else [2])
        assert list(store.undelivered("m")) == []
