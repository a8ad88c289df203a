"""Schema and transactions of a SQL store, on SQLite and on PostgreSQL."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from store_checks import SPEC, commit_of, owned
from streamkm.errors import SchemaVersionError
from streamkm.stores import SqlStore, open_store, serialization
from streamkm.stores.sql import migrate, postgres, schema, sqlite
from streamkm.stores.sql.database import Engines

MAKERS = {"sqlite": sqlite.engines, "postgresql": postgres.engines}


@pytest.fixture(params=list(MAKERS))
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    made = request.getfixturevalue("database")() if request.param == "postgresql" else f"sqlite:///{tmp_path}/store.db"
    return str(made)


@pytest.fixture
def engines(url: str) -> Iterator[Engines]:
    """A database without a store."""
    made = MAKERS[url.partition(":")[0]](url, 5.0)
    yield made
    made.close()


@pytest.fixture
def store(url: str) -> Iterator[SqlStore]:
    opened = open_store(url)
    assert isinstance(opened, SqlStore)
    yield opened
    opened.close()


def _scripts(folder: Path, last: str) -> Path:
    """A copy of the migrations up to a revision."""
    (folder / "versions").mkdir(parents=True)
    names = sorted(path.name for path in (migrate.SCRIPTS / "versions").glob("v*.py"))
    for name in ("env.py", *(f"versions/{name}" for name in names if name[1:5] <= last)):
        (folder / name).write_text((migrate.SCRIPTS / name).read_text())
    return folder


def _has_table(engines: Engines, name: str) -> bool:
    with engines.reader.connect() as connection:
        return sa.inspect(connection).has_table(name)


def _revision(engines: Engines) -> str | None:
    with engines.reader.connect() as connection:
        return migrate.revision(connection)


def test_migrations_make_the_tables_that_the_store_uses(store: SqlStore) -> None:
    with store.engines.reader.connect() as connection:
        options = {"version_table": migrate.VERSION_TABLE, "compare_type": True}
        assert compare_metadata(MigrationContext.configure(connection, opts=options), schema.metadata) == []


def test_the_newest_migration_is_the_one_that_opening_looks_for() -> None:
    config = Config()
    config.set_main_option("script_location", str(migrate.SCRIPTS))
    assert ScriptDirectory.from_config(config).get_current_head() == migrate.HEAD


def test_a_store_of_a_newer_streamkm_is_refused_and_left_alone(store: SqlStore, url: str) -> None:
    owned(store)
    with store.engines.writer.begin() as tx:
        tx.exec_driver_sql("UPDATE streamkm_version SET version_num = '9999'")
    with pytest.raises(
        SchemaVersionError, match=rf"schema 9999, this version of streamkm knows up to {migrate.HEAD}. Upgrade"
    ):
        open_store(url)
    with pytest.raises(SchemaVersionError):
        store.ping()
    assert [info.spec for info in store.models()] == [SPEC]


def test_a_store_can_share_its_database_with_other_programs(engines: Engines, url: str) -> None:
    with engines.writer.begin() as other:
        for statement in (
            "CREATE TABLE models (x INTEGER)",
            "CREATE TABLE alembic_version (version_num VARCHAR(32))",
            "INSERT INTO alembic_version VALUES ('7')",
        ):
            other.exec_driver_sql(statement)
    opened = open_store(url)
    opened.create(SPEC, 1.0)
    opened.close()
    with engines.reader.connect() as other:
        assert other.exec_driver_sql("SELECT version_num FROM alembic_version").scalar() == "7"


def test_a_store_of_the_first_streamkm_is_brought_up_to_date_with_what_it_holds(
    engines: Engines, url: str, tmp_path: Path
) -> None:
    migrate.upgrade(engines, _scripts(tmp_path / "scripts", "0001"), "0001")
    assert not _has_table(engines, "streamkm_promotions")
    old = sa.MetaData()
    with engines.writer.begin() as tx:
        old.reflect(tx)
        arrays = {
            "ids": np.array([1, 2]),
            "centroids": np.array([[1.0, 2.0], [3.0, 4.0]]),
            "weights": np.array([5.0, 6.0]),
            "spreads": np.array([0.5, np.nan]),
        }
        model = {"id": 3, "name": "m", "created_at": 1.0, "last_snapshot": 7, "spec": serialization.spec_to_text(SPEC)}
        snapshot = {"model_id": 3, "id": 7, "commit_seq": 1, "created_at": 2.0, "kind": "live", "reason": "first"}
        more = {"n_points": 20, "fields": '["amount", "lat"]', "position": "[]", "detail": "{}"}
        tx.execute(old.tables["streamkm_models"].insert(), model)
        tx.execute(old.tables["streamkm_leases"].insert(), {"model": "m", "epoch": 4, "expires_at": 0.0})
        blob = safetensors.numpy.save(arrays)
        tx.execute(old.tables["streamkm_snapshots"].insert(), {**snapshot, **more, "arrays": blob})
    store = open_store(url)
    found = store.snapshot("m")
    assert (found.id, found.distance, found.events) == (7, "euclidean", ())
    assert found.centroids.tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert found.born.tolist() == [0, 0]
    assert found.factors.tolist() == [1.0, 1.0]
    assert found.deviations is None, "they were not measured"
    lease = owned(store)
    assert lease.epoch == 5
    assert store.commit(lease, commit_of(1, snapshot=True)) == 8
    store.close()


def test_a_migration_that_fails_leaves_nothing_behind(store: SqlStore, url: str, tmp_path: Path) -> None:
    owned(store)
    scripts = _scripts(tmp_path / "scripts", migrate.HEAD)
    broken = scripts / "versions" / "v9999_broken.py"
    broken.write_text(
        f"from alembic import op\nimport sqlalchemy as sa\nrevision, down_revision = '9999', '{migrate.HEAD}'\n"  # noqa: S608
        "def upgrade():\n"
        "    op.create_table('half', sa.Column('x', sa.Integer))\n"
        "    op.execute('INSERT INTO half VALUES (1)')\n"
        "    op.execute('INSERT INTO nowhere VALUES (1)')\n"
    )
    with pytest.raises(sa.exc.DBAPIError, match="nowhere"):
        migrate.upgrade(store.engines, scripts, "9999")
    assert _revision(store.engines) == migrate.HEAD
    assert not _has_table(store.engines, "half")
    broken.write_text(broken.read_text().replace("nowhere", "half"))
    migrate.upgrade(store.engines, scripts, "9999")
    assert _revision(store.engines) == "9999"
    with pytest.raises(SchemaVersionError, match=f"schema 9999, this version of streamkm knows up to {migrate.HEAD}"):
        open_store(url)


def test_opening_a_store_that_is_up_to_date_does_not_import_alembic(store: SqlStore, url: str) -> None:
    code = (
        "import sys; from streamkm.stores import open_store\n"
        "open_store(sys.argv[1]).close(); print('alembic' in sys.modules, 'psycopg' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, url], check=True, capture_output=True, text=True)
    assert done.stdout == f"False {url.startswith('postgresql')}\n"


def test_a_reading_transaction_sees_one_moment(store: SqlStore) -> None:
    lease = owned(store)
    store.commit(lease, commit_of(1))
    seq = sa.select(schema.checkpoints.c.commit_seq)
    with store.engines.reader.connect() as reading:
        assert reading.execute(seq).scalar() == 1
        store.commit(lease, commit_of(2))
        assert reading.execute(seq).scalar() == 1
    with store.engines.reader.connect() as reading:
        assert reading.execute(seq).scalar() == 2


def test_the_journal_does_not_hold_a_transaction_open_between_pages(store: SqlStore) -> None:
    lease = owned(store)
    store.commit(lease, commit_of(1))
    reading = store.journal("m")
    next(reading)
    assert store.engines.reader.pool.checkedout() == 0  # type: ignore[attr-defined]


def test_no_pickle_comes_near_a_store() -> None:
    folder = Path(migrate.__file__).parent
    for source in itertools.chain(folder.glob("*.py"), folder.glob("migrations/**/*.py")):
        assert "pickle" not in source.read_text().replace("No pickle", "")
    assert "PickleType" not in {type(c.type).__name__ for t in schema.metadata.tables.values() for c in t.columns}
