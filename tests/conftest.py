import gc
import os
import signal

import pytest
from hypothesis import HealthCheck, settings

from kafka_fixtures import admin, bootstrap, topic
from ledger import _weights_are_those_learned
from postgres_fixtures import database, databases, emptied, kept_database
from store_fixtures import empty_sqlite, sqlite_url
from streamkm import redaction

__all__ = [
    "_weights_are_those_learned",
    "admin",
    "bootstrap",
    "database",
    "databases",
    "emptied",
    "empty_sqlite",
    "kept_database",
    "sqlite_url",
    "topic",
]


# The collector visits what is alive again and again, which is mostly what all tests share: imports, the abstract syntax
# trees of the tests while they are collected, numba's types while it compiles.
gc.set_threshold(50_000, 20, 20)


def pytest_collection_finish() -> None:
    """Exclude the objects that all tests share, such as modules, from garbage collection."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def nothing_remembered():
    """The secrets of one test do not mask the words of another."""
    redaction.forget()
    yield
    redaction.forget()


HANDLERS = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}


@pytest.fixture(autouse=True)
def signals_are_for_the_tests_themselves():
    """A command that ran in this process takes signals no longer: they end the tests."""
    yield
    for number, handler in HANDLERS.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True, scope="session")
def the_priority_stays():
    """A command that ran in this process, such as ``replay``, does not make all tests after it wait for others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "nice", lambda _: 0)
        yield


# A busy machine is slow, which is no failure. Everybody's run tries the same examples; for other ones:
# pytest --hypothesis-profile default
settings.register_profile(
    "streamkm",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("streamkm")
