"""Migration 0007 of an older store."""

from __future__ import annotations

import contextlib
import shutil

import sqlalchemy as sa

from store_checks import SPEC
from streamkm.state import QuarantineLimits
from streamkm.stores import open_store, serialization
from streamkm.stores.sql import migrate, sqlite


def test_what_an_older_store_keeps_is_not_cut_but_counts(tmp_path):
    (tmp_path / "versions").mkdir()
    older = sorted((migrate.SCRIPTS / "versions").glob("v000[1-6]_*.py"))
    for script in (migrate.SCRIPTS / "env.py", *older):
        shutil.copy(script, tmp_path / script.relative_to(migrate.SCRIPTS))
    url = f"sqlite:///{tmp_path}/s.db"
    engines = sqlite.engines(url, 5.0)
    migrate.upgrade(engines, tmp_path, "0006")
    with engines.writer.begin() as tx:

        def insert(table, **values):
            tx.execute(sa.table(table, *map(sa.column, values)).insert().values(**values))

        model = {"name": "m", "created_at": 1.0, "last_snapshot": 0, "numbered": 0, "lost": 0}
        insert("streamkm_models", id=1, spec=serialization.spec_to_text(SPEC), **model)
        record = {"topic": "t", "partition": 0, "record_timestamp": -1, "reason": "x", "field": "", "message": "m"}
        for offset in (0, 1):
            more = {"headers": "[]", "key": None, "value": b"v" * 100_000, "record_offset": offset}
            insert("streamkm_quarantine", model_id=1, commit_seq=1, **record, **more)
    engines.close()
    with contextlib.closing(open_store(url)) as store:
        assert [len(bad.record.value or b"") for bad in store.newest_quarantined("m")] == [100_000, 100_000]
        assert store.trim_quarantine("m", QuarantineLimits(10, 150_000)) == 1
        (left,) = store.iter_quarantine("m")
        assert (left.bad.record.offset, left.bad.record.size) == (1, None)
