"""Kafka: reading, writing, transactions."""
