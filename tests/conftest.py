from kafka_fixtures import admin, bootstrap, topic
from postgres_fixtures import database, databases, emptied, kept_database

__all__ = ["admin", "bootstrap", "database", "databases", "emptied", "kept_database", "topic"]
