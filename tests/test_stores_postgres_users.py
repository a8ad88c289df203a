"""Users, schemas, settings, URLs and error messages of a store on PostgreSQL."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from postgres_checks import Opener, all_told, elsewhere, opener, refused_with
from postgres_server import Databases, with_parameters
from store_checks import SPEC, commit_of, owned
from streamkm.errors import LeaseLostError, SettingsError, StoreError, StoreUnavailableError
from streamkm.service.auth import issue
from streamkm.stores import SqlStore, open_store
from streamkm.stores.sql import errors, postgres
from streamkm.stores.sql.database import Engines


@pytest.fixture
def url(emptied: str) -> str:
    return emptied


@pytest.fixture
def fresh(database: Callable[[], str]) -> str:
    """A database without a store."""
    return database()


@pytest.fixture
def opened(url: str) -> Iterator[Opener]:
    with opener(url) as opened:
        yield opened


@pytest.fixture
def store(opened: Opener) -> SqlStore:
    return opened()


def test_connections_have_the_settings_that_exactness_rests_on(opened: Opener, url: str) -> None:
    store = opened(busy_timeout=0.05)
    names = ("transaction_isolation", "transaction_read_only", "lock_timeout", "idle_in_transaction_session_timeout")
    found = {}
    for kind in ("reader", "writer", "exclusive", "autocommit"):
        with getattr(store.engines, kind).connect() as connection:
            found[kind] = [connection.exec_driver_sql(f"SHOW {name}").scalar() for name in names]
    assert found == {
        "reader": ["repeatable read", "on", "50ms", "10s"],
        "writer": ["read committed", "off", "50ms", "10s"],
        "exclusive": ["read committed", "off", "50ms", "10s"],
        "autocommit": ["read committed", "off", "50ms", "10s"],
    }
    with store.engines.writer.connect() as connection:
        assert connection.exec_driver_sql("SHOW extra_float_digits").scalar() == "3"
        info = connection.connection.driver_connection.info  # type: ignore[union-attr]
        assert info.get_parameters()["application_name"] == "streamkm"
        assert info.get_parameters()["keepalives_idle"] == "30"
        assert info.encoding == "utf-8"
    other = opened(with_parameters(url, application_name="mine", options="-c lock_timeout=7s -c search_path=public"))
    with other.engines.writer.connect() as connection:
        assert connection.exec_driver_sql("SHOW lock_timeout").scalar() == "7s"
        assert connection.exec_driver_sql("SHOW application_name").scalar() == "mine"
    assert opened(busy_timeout=0.0).models() == []


def test_states_are_stored_without_an_attempt_to_compress_them(store: SqlStore, url: str) -> None:
    with psycopg.connect(url) as looking:
        found = looking.execute("SELECT attrelid::regclass::text FROM pg_attribute WHERE attstorage = 'e'").fetchall()
    tables = ("streamkm_bases", "streamkm_checkpoints", "streamkm_recent", "streamkm_states")
    assert sorted(found) == [(name,) for name in tables]


def test_a_statement_outside_transactions_leaves_none_behind(store: SqlStore, url: str) -> None:
    lease = owned(store)
    store.commit(lease, commit_of(1, snapshot=True))
    assert store.snapshot("m").id == store.snapshot("m").id == 1
    with psycopg.connect(url) as looking:
        states = looking.execute(
            "SELECT state FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        ).fetchall()
    assert set(states) == {("idle",)}


@pytest.fixture
def reader(databases: Databases, fresh: str) -> Iterator[str]:
    """The URL of a user without privileges in a new database."""
    databases.run("CREATE ROLE reader LOGIN PASSWORD 'x'")
    yield elsewhere(fresh, login="reader:x")
    databases.run("DROP OWNED BY reader", fresh)
    databases.run("DROP ROLE reader")


def test_a_user_who_may_only_read_is_answered_and_cannot_write(opened: Opener, reader: str, fresh: str) -> None:
    store = opened(fresh)
    lease = owned(store)
    store.commit(lease, commit_of(1, snapshot=True))
    with psycopg.connect(fresh) as grants:
        grants.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader")
    reading = opened(reader)
    assert reading.snapshot("m").id == 1
    with pytest.raises(StoreUnavailableError, match=r"access is denied .*streamkm_leases") as refused:
        reading.commit(lease, commit_of(2))
    assert "GRANT" in refused.value.hint
    store.commit(lease, commit_of(2))


@pytest.fixture
def consumer(databases: Databases, opened: Opener, fresh: str) -> Iterator[str]:
    """The URL of the user of docs/security.md for consumers, made as it says."""
    opened(fresh).close()
    page = (Path(__file__).parents[1] / "docs" / "security.md").read_text()
    (statements,) = re.findall(r"```sql\n(.*?)```", page, re.DOTALL)
    assert "LOGIN PASSWORD '...'" in statements
    with psycopg.connect(fresh) as owner:
        owner.execute(statements.replace("'...'", "'x'"))
    yield elsewhere(fresh, login="consumer:x")
    databases.run("DROP OWNED BY consumer", fresh)
    databases.run("DROP ROLE consumer")


def test_the_user_of_a_consumer_does_what_consumers_do_and_makes_no_tokens(
    opened: Opener, consumer: str, fresh: str
) -> None:
    store, theirs = opened(fresh), opened(consumer)
    _, token = issue("reports", "read", (), 1.0)
    store.add_token(token)
    theirs.ping()
    lease = owned(theirs)
    for seq in range(1, 4):
        theirs.commit(lease, commit_of(seq, snapshot=True, bad=True))
    theirs.apply_retention("m", 1e9)
    theirs.release(lease)
    assert store.snapshot("m").id == 3
    for write in (lambda: theirs.add_token(issue("mine", "write", (), 1.0)[1]), lambda: theirs.remove_token("reports")):
        with pytest.raises(StoreUnavailableError, match=r"access is denied .*streamkm_tokens"):
            write()
    assert store.tokens() == theirs.tokens() == [token]
    with psycopg.connect(consumer) as connection:
        for statement in (
            "UPDATE streamkm_tokens SET access = 'write'",
            "DROP TABLE streamkm_tokens",
            "COPY streamkm_tokens TO PROGRAM 'true'",
        ):
            with pytest.raises(psycopg.Error), connection.transaction():
                connection.execute(statement)


def test_a_user_who_may_not_make_tables_cannot_make_a_store(reader: str, fresh: str) -> None:
    with psycopg.connect(fresh) as grants:
        grants.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    refused_with(reader, "access is denied .*schema public")


def test_a_database_that_is_read_only_is_told(opened: Opener, store: SqlStore, url: str) -> None:
    lease = owned(store)
    reading = opened(with_parameters(url, options="-c default_transaction_read_only=on"))
    assert [info.spec for info in reading.models()] == [SPEC]
    with pytest.raises(StoreUnavailableError, match="it is read-only"):
        reading.commit(lease, commit_of(1))


def test_a_store_is_where_the_search_path_leads(opened: Opener, fresh: str) -> None:
    store = opened(fresh)
    owned(store)
    there = with_parameters(fresh, options="-csearch_path=other")
    refused_with(there, "no schema to make tables in")
    with psycopg.connect(fresh) as connection:
        connection.execute("CREATE SCHEMA other")
    other = opened(there)
    assert other.models() == []
    other.commit(owned(other), commit_of(1))
    assert store.load_checkpoint("m") is None
    with psycopg.connect(fresh) as connection:
        found = connection.execute("SELECT schemaname FROM pg_tables WHERE tablename = 'streamkm_models'").fetchall()
    assert sorted(found) == [("other",), ("public",)]


def test_two_databases_of_one_server_are_two_stores(opened: Opener, store: SqlStore, fresh: str) -> None:
    other = opened(fresh)
    mine, theirs = owned(store), owned(other)
    store.commit(mine, commit_of(1, snapshot=True))
    assert other.load_checkpoint("m") is None
    other.commit(theirs, commit_of(1))
    assert list(other.snapshots("m")) == []
    assert [s.id for s in store.snapshots("m")] == [1]


def test_a_database_without_an_encoding_keeps_text_as_well(
    opened: Opener, database: Callable[[str], str], store: SqlStore, url: str
) -> None:
    with psycopg.connect(url) as connection:
        provider = "LOCALE_PROVIDER libc" if connection.info.server_version >= 150_000 else ""
    ascii_only = opened(database(f"ENCODING 'SQL_ASCII' {provider} LOCALE 'C' TEMPLATE template0"))
    ascii_only.commit(owned(ascii_only), commit_of(1, snapshot=True, bad=True))
    store.commit(owned(store), commit_of(1, snapshot=True, bad=True))
    assert ascii_only.model("m") == store.model("m")
    assert ascii_only.newest_quarantined("m") == store.newest_quarantined("m")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgresql://u:secret@host/db?ssl=1", 'invalid URI query parameter: "ssl"'),
        ("postgresql://[::1/db", "this URL cannot be read .*IPv6"),
        ("postgresql://u@[::1/db?password=secret", "this URL cannot be read. Write postgresql://"),
        ("postgresql://u:secret%zz@host/db", "user and password in the URL cannot be read"),
        ("postgresql://u:sec@ret@host/db", "the password in the URL is not encoded"),
        ("postgresql://u:sec/ret@host/db", "the password in the URL is not encoded"),
        ("postgresql://u:sec?a/ret@host/db", "user and password in the URL cannot be read"),
        ("PostgreSQL//u:secret@host/db", "is not the URL of a store"),
    ],
)
def test_a_url_that_libpq_cannot_read_is_refused_with_a_hint_and_without_its_password(url: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as refused:
        open_store(url)
    assert refused.value.hint
    assert not re.search(r"sec|ret@", all_told(refused.value))


def test_a_port_that_is_no_number_is_told(url: str) -> None:
    refused_with(elsewhere(url, port="many"), "cannot be connected to .*many")


def test_without_the_driver_the_command_that_installs_it_is_told() -> None:
    code = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from streamkm.stores import open_store\n"
        "try: open_store('postgresql://u:secret@host/db')\n"
        "except Exception as e: print(type(e).__name__, e.hint, 'secret' in str(e))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "SettingsError pip install 'streamkm[postgres]' False\n"


# Errors that a test cannot provoke.


@pytest.fixture(scope="module")
def engines() -> Iterator[Engines]:
    """Engines of a store that is never used."""
    made = postgres.engines("postgresql://u:secret@host/db", 5.0)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("53100", "the disk is full"),
        ("53200", "the server ran out of memory"),
        ("53300", "no connection left"),
        ("53400", "lacks resources"),
        ("40001", "other transactions came between"),
        ("57014", "broke off the statement"),
        ("57P02", "the connection was lost"),
        ("57P03", "starting or shutting down"),
        ("08006", "the connection was lost"),
        ("58030", "does not read or write its disk"),
        ("XX001", "does not read or write its disk"),
    ],
)
def test_what_a_server_can_suffer_is_told_with_a_hint(engines: Engines, code: str, message: str) -> None:
    error = psycopg.errors.lookup(code)("as the server puts it\nLINE 1: UPDATE\n        ^")
    with (
        pytest.raises(StoreUnavailableError, match=rf"{message} \(as the server puts it\)") as told,
        errors.translate_errors(engines),
    ):
        raise sa.exc.OperationalError("UPDATE", {}, error)
    assert told.value.hint
    assert told.value.where == "postgresql://u@host/db"


@pytest.mark.parametrize(
    "error",
    [
        psycopg.errors.UndefinedTable('relation "streamkm_models" does not exist'),
        psycopg.DataError("PostgreSQL text fields cannot contain NUL (0x00) bytes"),
        psycopg.InterfaceError("not so"),
    ],
)
def test_whatever_else_the_database_raises_is_an_error_of_the_store(engines: Engines, error: Any) -> None:
    with pytest.raises(StoreError, match="the database refused") as told, errors.translate_errors(engines):
        raise error
    assert not isinstance(told.value, StoreUnavailableError | LeaseLostError)
    assert told.value.__cause__ is error
