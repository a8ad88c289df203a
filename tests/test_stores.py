"""Every store passes the conformance suite of `store_checks`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from store_checks import CHECKS
from streamkm.errors import SettingsError
from streamkm.stores import MemoryStore, SqlStore, Store, open_store

STORES: Mapping[str, Callable[[pytest.FixtureRequest], str]] = {
    "memory": lambda _: "memory://",
    "sqlite": lambda request: request.getfixturevalue("sqlite_url"),
    "postgresql": lambda request: request.getfixturevalue("emptied"),
}
CASES = [(store, check) for store in STORES for check in CHECKS]


@pytest.fixture
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    opened = open_store(STORES[request.param](request))
    yield opened
    opened.close()


@pytest.mark.parametrize(
    ("store", "check"),
    [pytest.param(store, CHECKS[check], id=f"{store}:{check}") for store, check in CASES],
    indirect=["store"],
)
def test_store(store: Store, check: Callable[[Store], None]) -> None:
    check(store)


def test_every_store_has_checks() -> None:
    assert len(CHECKS) > 25
    assert all(sum(store == name for store, _ in CASES) == len(CHECKS) for name in STORES)


def test_a_url_opens_the_store_it_names(tmp_path: Path) -> None:
    assert isinstance(open_store("memory://"), MemoryStore)
    store = open_store(f"sqlite:///{tmp_path}/a store with spaces?mode=rwc")
    assert isinstance(store, SqlStore)
    store.close()
    assert [path.name for path in tmp_path.iterdir()] == ["a store with spaces"]


def test_a_relative_path_stays_the_same_file_when_the_process_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    store = open_store("sqlite:///store.db")
    monkeypatch.chdir(tmp_path / "elsewhere")
    store.engines.reader.dispose()  # type: ignore[attr-defined]
    store.ping()
    store.close()
    assert not (tmp_path / "elsewhere" / "store.db").exists()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite://", "each connection has a database of its own"),
        ("sqlite:///", "each connection has a database of its own"),
        ("sqlite:///:memory:", "memory://"),
        ("sqlite://host/store.db", "no host"),
        ("sqlite:///store.db?mode=memory", "unknown mode 'memory'"),
        ("sqlite:///store.db?cache=shared", "unknown parameter 'cache'"),
        ("sqlite://host:port/store.db", "cannot be read"),
        ("redis://localhost", "no store has the scheme redis://"),
        ("postgresql+psycopg2://localhost", r"no store has the scheme postgresql\+psycopg2://"),
        ("memory://name", "Write sqlite:///path.db, postgresql://user:password@host/database, or memory://"),
        ("store.db", "'store.db' is not the URL of a store"),
        ("", "is not the URL of a store"),
    ],
)
def test_a_url_that_names_no_store_is_refused_with_a_hint(url: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as refused:
        open_store(url)
    assert refused.value.hint
