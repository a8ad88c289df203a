import pytest

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


@pytest.fixture(autouse=True)
def nothing_remembered():
    """The secrets of one test do not mask the words of another."""
    redaction.forget()
    yield
    redaction.forget()
