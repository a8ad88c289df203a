"""The PostgreSQL of a test run, and databases on it.

It is the one named by STREAMKM_TEST_POSTGRES, else one that is started for the session: a container if Docker is
selected and has the image or can pull it, else Debian's server. Tests share it: each takes a database of its own, or
empties the one that is kept. A test that kills or stops its server starts a PostgresServer itself.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

import pytest

from postgres_server import ENCODED, PASSWORD, USER, Databases, NoPostgresError, PostgresServer
from streamkm.stores import open_store
from streamkm.testing import choose_broker

DatabaseFactory = Callable[..., str]


POSTGRES_IMAGE = "postgres:17-bookworm"


@contextlib.contextmanager
def _container() -> Iterator[str]:
    from testcontainers.community.postgres import PostgresContainer

    with PostgresContainer(POSTGRES_IMAGE, username=USER, password=PASSWORD, dbname="postgres") as container:
        yield f"postgresql://{USER}:{ENCODED}@localhost:{container.get_exposed_port(5432)}/postgres"


@pytest.fixture(scope="session")
def databases() -> Iterator[Databases]:
    """Creates databases on the session's server; fails when there is no PostgreSQL."""
    named = os.environ.get("STREAMKM_TEST_POSTGRES")
    if named:
        yield Databases(named)
        return
    if choose_broker(image=POSTGRES_IMAGE).kind == "docker":
        with _container() as url:
            yield Databases(url)
        return
    try:
        server = PostgresServer()
        server.start()
    except NoPostgresError as error:
        pytest.fail(str(error), pytrace=False)
    yield Databases(server.url)
    server.close()


@pytest.fixture(scope="session")
def kept_database(databases: Databases) -> Iterator[str]:
    with databases.fresh() as url:
        open_store(url).close()
        yield url


@pytest.fixture
def emptied(databases: Databases, kept_database: str) -> str:
    """A database with an empty store, for tests that do not change its tables, because creating one is slow."""
    databases.empty(kept_database)
    return kept_database


@pytest.fixture
def database(databases: Databases) -> Iterator[DatabaseFactory]:
    """Creates databases: ``database(options="") -> url``. They are dropped after the test."""
    with contextlib.ExitStack() as stack:
        yield lambda options="": stack.enter_context(databases.fresh(options))
