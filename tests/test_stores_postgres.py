"""What only PostgreSQL can do wrong: servers, networks, users, time-outs, schemas."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
import sqlalchemy as sa

import store_workers
from postgres_server import ENCODED, PASSWORD, USER, Databases, PostgresServer, with_parameters
from store_checks import SPEC, commit_of, owned
from streamkm.errors import ConflictError, LeaseLostError, SettingsError, StoreError, StoreUnavailableError
from streamkm.stores import SqlStore, edge, open_store, postgres
from streamkm.stores.engines import Engines


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """A server that the tests of this module may stop and kill."""
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="module")
def kept(server: PostgresServer) -> Iterator[str]:
    """A database on it with a store."""
    with Databases(server.url).fresh() as made:
        open_store(made).close()
        yield made


@pytest.fixture
def url(server: PostgresServer, kept: str) -> str:
    """The same with an empty store."""
    if server.process is None:  # a test that failed left it so
        server.start()
    Databases(server.url).empty(kept)
    return kept


@pytest.fixture
def fresh(server: PostgresServer) -> Iterator[str]:
    """A database without any."""
    with Databases(server.url).fresh() as made:
        yield made


@pytest.fixture
def opened(url: str) -> Iterator[Callable[..., SqlStore]]:
    """Opens stores, on the fresh database or elsewhere; they are closed after the test."""
    with ExitStack() as stack:

        def open_(where: str = url, **options: float) -> SqlStore:
            store = stack.enter_context(closing(open_store(where, **options)))
            assert isinstance(store, SqlStore)
            return store

        yield open_


@pytest.fixture
def store(opened: Callable[..., SqlStore]) -> SqlStore:
    return opened()


def _refused(url: str, match: str) -> StoreUnavailableError:
    with pytest.raises(StoreUnavailableError, match=match) as refused:
        open_store(url, busy_timeout=0.05)
    assert refused.value.hint
    assert refused.value.where.startswith("postgresql://")
    told = _told(refused.value)
    assert PASSWORD not in told
    assert ENCODED not in told
    return refused.value


def _told(error: BaseException | None) -> str:
    """What an error says, with all that led to it."""
    return "" if error is None else f"{error!r} {error}\n{_told(error.__context__)}"


def _elsewhere(url: str, **parts: str) -> str:
    """A URL with another login (user and password), port or database."""
    found = re.fullmatch(r"postgresql://(?P<login>.*)@(?P<host>.*):(?P<port>.*)/(?P<database>.*)", url)
    assert found is not None
    return "postgresql://{login}@{host}:{port}/{database}".format(**{**found.groupdict(), **parts})


# Servers that are not there, or let nobody in.


def test_where_nobody_listens_no_server_is_there(url: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        error = _refused(_elsewhere(url, port=str(unused.getsockname()[1])), "no server is there .*refused")
    assert re.fullmatch(r"postgresql://streamkm@127.0.0.1:\d+/test_\w+", error.where)
    _refused("postgresql:///here?host=/nowhere", "no server is there .*No such file")


def test_a_host_that_no_name_server_knows_is_told() -> None:
    _refused("postgresql://nowhere.invalid/db", "no host has this name")


def test_a_wrong_password_is_told_and_never_shown(url: str) -> None:
    with pytest.raises(StoreUnavailableError, match=r"does not let this user in .*authentication failed") as refused:
        open_store(_elsewhere(url, login=f"{USER}:guessed"))
    assert "guessed" not in _told(refused.value)


def test_a_database_that_does_not_exist_is_told(url: str) -> None:
    _refused(_elsewhere(url, database="nothing"), 'this database does not exist .*"nothing"')


def test_a_server_without_a_free_connection_is_told(server: PostgresServer, url: str) -> None:
    databases = Databases(server.url)
    databases.run("CREATE ROLE lonely LOGIN PASSWORD 'x' CONNECTION LIMIT 1")
    with psycopg.connect(_elsewhere(url, login="lonely:x")):
        _refused(_elsewhere(url, login="lonely:x"), "has no connection left")
    databases.run("DROP ROLE lonely")


def test_a_server_that_stands_still_is_not_waited_for(server: PostgresServer, url: str) -> None:
    server.pause()
    try:
        _refused(with_parameters(url, connect_timeout="2"), "the server does not answer")
    finally:
        server.resume()


def test_a_server_that_shuts_down_or_restarts_is_told_and_the_next_call_works(
    server: PostgresServer, store: SqlStore, url: str
) -> None:
    lease = owned(store)
    store.commit(lease, commit_of(1))
    assert server.process is not None
    with psycopg.connect(url) as last_guest:
        server.process.send_signal(signal.SIGTERM)  # it waits for its guests to go, and lets nobody in
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                psycopg.connect(url).close()
            except psycopg.OperationalError:
                break
        _refused(url, "starting or shutting down")
        last_guest.execute("SELECT 1")
    store.engines.close()  # the last ones
    server.process.wait(60)
    with pytest.raises(StoreUnavailableError, match="no server is there"):
        store.commit(lease, commit_of(2))
    server.start()
    store.commit(lease, commit_of(2))
    server.restart()
    assert store.snapshots("m") == []
    assert store.load("m") is not None
    store.commit(lease, commit_of(3))


# Connections that are lost.


@contextmanager
def _before(store: SqlStore, point: int, act: Callable[[], None]) -> Iterator[None]:
    """Do something before a statement of the next transaction that writes; COMMIT counts too."""
    left = [point]

    def count(*_: object) -> None:
        left[0] -= 1
        if left[0] == -1:
            act()

    events = ("before_cursor_execute", "commit")
    for event in events:
        sa.event.listen(store.engines.writer, event, count)
    yield
    for event in events:
        sa.event.remove(store.engines.writer, event, count)
    assert left[0] < 0


def _seq(store: SqlStore) -> int:
    return store_workers._seq(store.load("m"))


@pytest.mark.parametrize("point", [0, 5, 11])
def test_a_connection_that_the_server_ends_in_a_commit_is_told_and_the_commit_may_be_made_again(
    server: PostgresServer, store: SqlStore, point: int
) -> None:
    lease = owned(store)
    store.commit(lease, commit_of(1, snapshot=True, bad=True))
    end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'streamkm'"
    second = commit_of(2, snapshot=True, bad=True)
    with (
        _before(store, point, lambda: Databases(server.url).run(end)),
        pytest.raises(StoreUnavailableError, match="the connection was lost"),
    ):
        store.commit(lease, second)
    assert _seq(store) == 1
    assert store.commit(lease, second) == 2
    assert _seq(store) == 2


@pytest.mark.parametrize("point", [0, 5, 11])
def test_a_server_killed_in_a_commit_keeps_all_before_it_and_nothing_of_it(
    server: PostgresServer, store: SqlStore, point: int
) -> None:
    lease = owned(store)
    store.commit(lease, commit_of(1, snapshot=True, bad=True))
    second = commit_of(2, snapshot=True, bad=True)
    with _before(store, point, server.kill), pytest.raises(StoreUnavailableError):
        store.commit(lease, second)
    with pytest.raises(StoreUnavailableError, match="no server is there"):
        store.load("m")
    server.start()
    assert _seq(store) == 1
    assert [s.id for s in store.snapshots("m")] == [1]
    assert store.commit(lease, second) == 2


def test_a_server_killed_at_any_moment_keeps_every_commit_that_was_answered(
    server: PostgresServer, store: SqlStore
) -> None:
    lease, answered = owned(store), 0

    def write() -> None:
        nonlocal answered
        answered = _seq(store)
        while True:
            store.commit(lease, commit_of(answered + 1, snapshot=True, size=10_000))
            answered += 1

    for seconds in (0.05, 0.2):
        timer = threading.Timer(seconds, server.kill)
        timer.start()
        with pytest.raises(StoreUnavailableError):
            write()
        timer.join()
        server.start()
        assert _seq(store) in (answered, answered + 1)  # one may have been done, but not answered
        assert [seq for seq, _ in store.journal("m")] == list(range(1, _seq(store) + 1))
        assert [s.commit_seq for s in store.snapshots("m", limit=10_000)] == list(range(_seq(store), 0, -1))
    store.commit(lease, commit_of(_seq(store) + 1))


class _Mute:
    """Carries bytes between a client and a server, until it has carried a COMMIT: its answer it keeps to itself."""

    def __init__(self, server: int) -> None:
        self.server, self.listening = server, False
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            behind = socket.create_connection(("127.0.0.1", self.server))
            muted = threading.Event()
            for one, other in ((client, behind), (behind, client)):
                threading.Thread(target=self._carry, args=(one, other, one is client, muted), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket, asks: bool, muted: threading.Event) -> None:
        with source, target, suppress(OSError):
            while data := source.recv(1 << 16):
                if asks and self.listening and b"COMMIT\0" in data:
                    self.listening = False
                    muted.set()
                if not asks and muted.is_set():
                    break
                target.sendall(data)
            for end in (source, target):
                end.shutdown(socket.SHUT_RDWR)


def test_a_commit_whose_answer_is_lost_cannot_be_made_twice(server: PostgresServer, url: str, store: SqlStore) -> None:
    mute = _Mute(server.port)
    far = open_store(with_parameters(_elsewhere(url, port=str(mute.port)), sslmode="disable", gssencmode="disable"))
    lease = owned(far)
    far.commit(lease, commit_of(1))
    mute.listening = True
    with pytest.raises(StoreUnavailableError, match="the connection was lost"):
        far.commit(lease, commit_of(2, snapshot=True, bad=True))
    with pytest.raises(ConflictError, match="the stored position is not the expected one"):
        far.commit(lease, commit_of(2, snapshot=True, bad=True))
    assert _seq(store) == 2
    assert [s.id for s in store.snapshots("m")] == [1]
    far.commit(lease, commit_of(3))
    far.close()
    mute.listener.close()


# Locks and time-outs.


def test_a_lock_that_is_held_too_long_is_told_and_the_call_may_be_made_again(
    opened: Callable[..., SqlStore], url: str
) -> None:
    store = opened(busy_timeout=0.05)
    lease = owned(store)
    with psycopg.connect(url) as holder:
        holder.execute("SELECT FROM streamkm_leases FOR UPDATE")
        for _ in range(5):
            with pytest.raises(StoreUnavailableError, match=r"locked by another writer .*lock timeout"):
                store.commit(lease, commit_of(1))
        assert store.engines.reader.pool.checkedout() == 0  # type: ignore[attr-defined]
        assert store.load("m") is None
        store.ping()
    store.commit(lease, commit_of(1))


def test_a_deadlock_with_another_program_is_told_and_the_call_may_be_made_again(
    opened: Callable[..., SqlStore], url: str
) -> None:
    store = opened(with_parameters(url, options="-c deadlock_timeout=20ms"))
    lease = owned(store)
    with psycopg.connect(url) as other, psycopg.connect(url, autocommit=True) as looking:
        other.execute("SELECT FROM streamkm_models FOR UPDATE")
        waiting = threading.Thread(target=lambda: other.execute("UPDATE streamkm_leases SET epoch = epoch"))

        def cross() -> None:
            waiting.start()
            while not looking.execute("SELECT FROM pg_locks WHERE NOT granted").fetchall():
                time.sleep(0.001)

        with _before(store, 1, cross), pytest.raises(StoreUnavailableError, match=r"came between .*deadlock detected"):
            store.commit(lease, commit_of(1))
        waiting.join()
    store.commit(lease, commit_of(1))


def test_an_owner_that_is_stopped_inside_a_commit_is_thrown_out_and_a_successor_takes_over(
    store: SqlStore, url: str
) -> None:
    command = [sys.executable, store_workers.__file__, "sleep"]
    impatient = with_parameters(url, options="-c idle_in_transaction_session_timeout=300ms")
    with subprocess.Popen([*command, impatient, "inside"], stdout=subprocess.PIPE, text=True) as owner:
        os.waitid(os.P_PID, owner.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        assert owner.poll() is None
        lease = store.acquire("m", "successor", ttl=10.0, now=1e12)
        assert lease is not None
        assert _seq(store) == 2
        store.commit(lease, commit_of(3))
        owner.send_signal(signal.SIGCONT)
        assert owner.communicate(timeout=60)[0] == "unavailable\nlost\n"
    assert _seq(store) == 3
    store.commit(lease, commit_of(4))


def test_connections_have_the_settings_that_exactness_rests_on(opened: Callable[..., SqlStore], url: str) -> None:
    store = opened(busy_timeout=0.05)
    names = ("transaction_isolation", "transaction_read_only", "lock_timeout", "idle_in_transaction_session_timeout")
    found = {}
    for kind in ("reader", "writer", "alone", "glance"):
        with getattr(store.engines, kind).connect() as connection:
            found[kind] = [connection.exec_driver_sql(f"SHOW {name}").scalar() for name in names]
    assert found == {
        "reader": ["repeatable read", "on", "50ms", "10s"],
        "writer": ["read committed", "off", "50ms", "10s"],
        "alone": ["read committed", "off", "50ms", "10s"],
        "glance": ["read committed", "off", "50ms", "10s"],
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
    assert set(found) == {("streamkm_checkpoints",), ("streamkm_states",)}


def test_a_glance_leaves_no_transaction_behind(store: SqlStore, url: str) -> None:
    lease = owned(store)
    store.commit(lease, commit_of(1, snapshot=True))
    assert store.snapshot("m").id == store.snapshot("m").id == 1
    with psycopg.connect(url) as looking:
        states = looking.execute(
            "SELECT state FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        ).fetchall()
    assert set(states) == {("idle",)}


# Users and schemas.


@pytest.fixture
def reader(server: PostgresServer, fresh: str) -> Iterator[str]:
    """The URL of a user who owns nothing in a fresh database."""
    databases = Databases(server.url)
    databases.run("CREATE ROLE reader LOGIN PASSWORD 'x'")
    yield _elsewhere(fresh, login="reader:x")
    databases.run("DROP OWNED BY reader", fresh)
    databases.run("DROP ROLE reader")


def test_a_user_who_may_only_read_is_answered_and_cannot_write(
    opened: Callable[..., SqlStore], reader: str, fresh: str
) -> None:
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


def test_a_user_who_may_not_make_tables_cannot_make_a_store(reader: str, fresh: str) -> None:
    with psycopg.connect(fresh) as grants:
        grants.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    _refused(reader, "access is denied .*schema public")


def test_a_database_that_is_read_only_is_told(opened: Callable[..., SqlStore], store: SqlStore, url: str) -> None:
    lease = owned(store)
    reading = opened(with_parameters(url, options="-c default_transaction_read_only=on"))
    assert [info.spec for info in reading.models()] == [SPEC]
    with pytest.raises(StoreUnavailableError, match="it is read-only"):
        reading.commit(lease, commit_of(1))


def test_a_store_is_where_the_search_path_leads(opened: Callable[..., SqlStore], fresh: str) -> None:
    store = opened(fresh)
    owned(store)
    there = with_parameters(fresh, options="-csearch_path=other")
    _refused(there, "no schema to make tables in")
    with psycopg.connect(fresh) as connection:
        connection.execute("CREATE SCHEMA other")
    other = opened(there)
    assert other.models() == []
    other.commit(owned(other), commit_of(1))
    assert store.load("m") is None
    with psycopg.connect(fresh) as connection:
        found = connection.execute("SELECT schemaname FROM pg_tables WHERE tablename = 'streamkm_models'").fetchall()
    assert sorted(found) == [("other",), ("public",)]


def test_two_databases_of_one_server_are_two_stores(
    opened: Callable[..., SqlStore], store: SqlStore, fresh: str
) -> None:
    other = opened(fresh)
    mine, theirs = owned(store), owned(other)
    store.commit(mine, commit_of(1, snapshot=True))
    assert other.load("m") is None
    other.commit(theirs, commit_of(1))
    assert list(other.snapshots("m")) == []
    assert [s.id for s in store.snapshots("m")] == [1]


def test_a_database_without_an_encoding_keeps_text_as_well(
    opened: Callable[..., SqlStore], server: PostgresServer
) -> None:
    options = "ENCODING 'SQL_ASCII' LOCALE_PROVIDER libc LOCALE 'C' TEMPLATE template0"
    with Databases(server.url).fresh(options) as url:
        store = opened(url)
        store.commit(owned(store), commit_of(1, snapshot=True, bad=True))
        assert store.model("m").spec == SPEC


# URLs.


def test_every_form_of_the_url_opens_the_same_store(
    opened: Callable[..., SqlStore], server: PostgresServer, store: SqlStore, url: str
) -> None:
    owned(store)
    rest, name = url.partition("://")[2], url.rpartition("/")[2]
    for form in (
        f"postgres://{rest}",
        f"postgresql+psycopg://{rest}",
        f"postgresql://{USER}@/{name}?host={server.folder}&port={server.port}",
        f"postgresql://{USER}@{quote(str(server.folder), safe='')}:{server.port}/{name}",
        f"postgresql://127.0.0.1:1,127.0.0.1:{server.port}/{name}?user={USER}&password={ENCODED}",
    ):
        found = opened(form)
        assert [info.spec for info in found.models()] == [SPEC], form
        assert PASSWORD not in found.engines.where
        assert ENCODED not in found.engines.where


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
        ("PostgreSQL//u:secret@host/db", "this is not the URL of a store"),
    ],
)
def test_a_url_that_libpq_cannot_read_is_refused_with_a_hint_and_without_its_password(url: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as refused:
        open_store(url)
    assert refused.value.hint
    assert not re.search(r"sec|ret@", _told(refused.value))


def test_a_port_that_is_no_number_is_told(url: str) -> None:
    _refused(_elsewhere(url, port="many"), "cannot be connected to .*many")


def test_without_the_driver_the_command_that_installs_it_is_told() -> None:
    code = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from streamkm.stores import open_store\n"
        "try: open_store('postgresql://u:secret@host/db')\n"
        "except Exception as e: print(type(e).__name__, e.hint, 'secret' in str(e))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "SettingsError pip install 'streamkm[postgres]' False\n"


# What a test cannot make a server say.


@pytest.fixture(scope="module")
def engines() -> Iterator[Engines]:
    """Those of a store that nobody asks."""
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
        edge.mapped(engines),
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
    with pytest.raises(StoreError, match="the database refused") as told, edge.mapped(engines):
        raise error
    assert not isinstance(told.value, StoreUnavailableError | LeaseLostError)
    assert told.value.__cause__ is error
