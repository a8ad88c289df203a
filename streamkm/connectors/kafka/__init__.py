"""Kafka: source, writer and transactional writer."""
