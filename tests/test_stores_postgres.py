"""PostgreSQL servers that are missing, fail, or block others."""

from __future__ import annotations

import gc
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from urllib.parse import quote

import psycopg
import pytest
import sqlalchemy as sa

import store_workers
from postgres_checks import Opener, all_told, elsewhere, opener, refused_with
from postgres_server import ENCODED, PASSWORD, USER, Databases, NoPostgresError, PostgresServer, with_parameters
from processes import Worker
from store_checks import SPEC, commit_of, owned
from streamkm.errors import ConflictError, StoreUnavailableError
from streamkm.stores import SqlStore, open_store
from waiting import PATIENCE, wait_until


class Kept:
    """A server that tests may stop and kill, with a store; shared while it works."""

    def __init__(self) -> None:
        self.stack, self.url = ExitStack(), ""
        self.server: PostgresServer | None = None

    def sound(self) -> tuple[PostgresServer, str]:
        """Server and store in working order, created again if an earlier test left them broken."""
        try:
            if self.server is not None:
                self.server.heal()
                Databases(self.server.url).empty(self.url)
                return self.server, self.url
        except (NoPostgresError, psycopg.Error):
            self.stack.close()
        self.server = server = self.stack.enter_context(PostgresServer())
        Databases(server.url).run("CREATE DATABASE kept")
        self.url = f"{server.url.removesuffix('postgres')}kept"
        open_store(self.url).close()
        return server, self.url


@pytest.fixture(scope="module")
def kept() -> Iterator[Kept]:
    kept = Kept()
    with kept.stack:
        yield kept


@pytest.fixture
def server(kept: Kept) -> PostgresServer:
    """A server that the tests of this module may stop and kill."""
    return kept.sound()[0]


@pytest.fixture
def url(server: PostgresServer, kept: Kept) -> str:
    """An empty store on it."""
    return kept.url


@pytest.fixture
def opened(url: str) -> Iterator[Opener]:
    with opener(url) as opened:
        yield opened


@pytest.fixture
def store(opened: Opener) -> SqlStore:
    return opened()


# Servers that are missing or deny access.


def test_where_nobody_listens_no_server_is_there(url: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        error = refused_with(elsewhere(url, port=str(unused.getsockname()[1])), "no server is there .*refused")
    assert re.fullmatch(r"postgresql://streamkm@127.0.0.1:\d+/kept", error.where)
    refused_with("postgresql:///here?host=/nowhere", "no server is there .*No such file")


def test_a_host_that_no_name_server_knows_is_told() -> None:
    refused_with("postgresql://nowhere.invalid/db", "no host has this name")


def test_a_wrong_password_is_told_and_never_shown(url: str) -> None:
    with pytest.raises(StoreUnavailableError, match=r"does not let this user in .*authentication failed") as refused:
        open_store(elsewhere(url, login=f"{USER}:guessed"))
    assert "guessed" not in all_told(refused.value)


def test_a_database_that_does_not_exist_is_told(url: str) -> None:
    refused_with(elsewhere(url, database="nothing"), 'this database does not exist .*"nothing"')


def test_a_server_without_a_free_connection_is_told(server: PostgresServer, url: str) -> None:
    databases = Databases(server.url)
    databases.run("CREATE ROLE lonely LOGIN PASSWORD 'x' CONNECTION LIMIT 1")
    with psycopg.connect(elsewhere(url, login="lonely:x")):
        refused_with(elsewhere(url, login="lonely:x"), "has no connection left")
    databases.run("DROP ROLE lonely")


def test_a_server_that_stands_still_is_not_waited_for(server: PostgresServer, url: str) -> None:
    server.pause()
    try:
        refused_with(with_parameters(url, connect_timeout="2"), "the server does not answer")
    finally:
        server.resume()


def test_nothing_stays_open_of_attempts_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "postgresql://u:x@127.0.0.1/db?sslmode=disable&gssencmode=disable&connect_timeout=2"
    gc.disable()  # collections would come at random times
    try:
        with socket.create_server(("127.0.0.1", 0)) as deaf:
            monkeypatch.setenv("PGPORT", str(deaf.getsockname()[1]))
            with pytest.raises(StoreUnavailableError, match="the server does not answer") as refused:
                open_store(url)
            client, _ = deaf.accept()
            with client:
                client.settimeout(PATIENCE)
                while client.recv(1 << 16):
                    pass  # until it is closed
        assert refused.value.__cause__ is not None  # the error still has its cause
    finally:
        gc.enable()


def test_a_server_that_shuts_down_or_restarts_is_told_and_the_next_call_works(
    server: PostgresServer, store: SqlStore, url: str
) -> None:
    lease = owned(store)
    store.commit(lease, commit_of(1))
    assert server.process is not None
    with psycopg.connect(url) as last_guest:
        server.process.send_signal(signal.SIGTERM)  # waits for its clients to leave, and accepts no new ones

        def shut() -> bool:
            try:
                psycopg.connect(url).close()
            except psycopg.OperationalError:
                return True
            return False

        wait_until(shut)
        refused_with(url, "starting or shutting down")
        last_guest.execute("SELECT 1")
    store.engines.close()  # the last ones
    server.process.wait(PATIENCE)
    with pytest.raises(StoreUnavailableError, match="no server is there"):
        store.commit(lease, commit_of(2))
    server.start()
    store.commit(lease, commit_of(2))
    server.restart()
    assert store.snapshots("m") == []
    assert store.load_checkpoint("m") is not None
    store.commit(lease, commit_of(3))


# Lost connections.


@contextmanager
def _before(store: SqlStore, point: int, act: Callable[[], None]) -> Iterator[None]:
    """Call something before a statement of the next writing transaction; COMMIT counts as one."""
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
    return store_workers._seq(store.load_checkpoint("m"))


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
        store.load_checkpoint("m")
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

    for more in (2, 30):
        goal = _seq(store) + more

        def kill(goal: int = goal) -> None:
            wait_until(lambda: answered >= goal)
            server.kill()

        killer = threading.Thread(target=kill)
        killer.start()
        with pytest.raises(StoreUnavailableError):
            write()
        killer.join()
        server.start()
        assert _seq(store) in (answered, answered + 1)  # one may have taken effect without a response
        assert [seq for seq, _ in store.journal("m")] == list(range(1, _seq(store) + 1))
        assert [s.commit_seq for s in store.snapshots("m", limit=10_000)] == list(range(_seq(store), 0, -1))
    store.commit(lease, commit_of(_seq(store) + 1))


class _Mute:
    """A proxy between client and server that drops the response to a COMMIT."""

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
    far = open_store(with_parameters(elsewhere(url, port=str(mute.port)), sslmode="disable", gssencmode="disable"))
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


# Locks and timeouts.


def test_a_lock_that_is_held_too_long_is_told_and_the_call_may_be_made_again(opened: Opener, url: str) -> None:
    store = opened(busy_timeout=0.05)
    lease = owned(store)
    with psycopg.connect(url) as holder:
        holder.execute("SELECT FROM streamkm_leases FOR UPDATE")
        for _ in range(5):
            with pytest.raises(StoreUnavailableError, match=r"locked by another writer .*lock timeout"):
                store.commit(lease, commit_of(1))
        assert store.engines.reader.pool.checkedout() == 0  # type: ignore[attr-defined]
        assert store.load_checkpoint("m") is None
        store.ping()
    store.commit(lease, commit_of(1))


def test_a_deadlock_with_another_program_is_told_and_the_call_may_be_made_again(opened: Opener, url: str) -> None:
    store = opened(with_parameters(url, options="-c deadlock_timeout=20ms"))
    lease = owned(store)
    with psycopg.connect(url) as other, psycopg.connect(url, autocommit=True) as looking:
        other.execute("SET deadlock_timeout = '1h'")  # so that the other transaction detects the deadlock
        other.execute("SELECT FROM streamkm_models FOR UPDATE")
        waiting = threading.Thread(target=lambda: other.execute("UPDATE streamkm_leases SET epoch = epoch"))

        def cross() -> None:
            waiting.start()
            wait_until(lambda: looking.execute("SELECT FROM pg_locks WHERE NOT granted").fetchall())

        with _before(store, 1, cross), pytest.raises(StoreUnavailableError, match=r"came between .*deadlock detected"):
            store.commit(lease, commit_of(1))
        waiting.join()
    store.commit(lease, commit_of(1))


def test_an_owner_that_is_stopped_inside_a_commit_is_thrown_out_and_a_successor_takes_over(
    store: SqlStore, url: str
) -> None:
    owner = Worker(store_workers.work, "sleep", url, "inside", "100ms")
    with closing(owner):
        owner.stopped()
        lease = store.acquire("m", "successor", ttl=10.0, now=1e12)
        assert lease is not None
        assert _seq(store) == 2
        store.commit(lease, commit_of(3))
        owner.send_signal(signal.SIGCONT)
        assert [owner.said(), owner.said()] == ["unavailable", "lost"]
        assert owner.ended() == 0
    assert _seq(store) == 3
    store.commit(lease, commit_of(4))


def test_every_form_of_the_url_opens_the_same_store(
    opened: Opener, server: PostgresServer, store: SqlStore, url: str
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
