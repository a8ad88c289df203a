from kafka_fixtures import admin, bootstrap, topic

__all__ = ["admin", "bootstrap", "topic"]
