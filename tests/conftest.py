from kafka_fixtures import admin, bootstrap, topic
from postgres_fixtures import database, databases, emptied, kept_database
from store_fixtures import empty_sqlite, sqlite_url

__all__ = [
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
