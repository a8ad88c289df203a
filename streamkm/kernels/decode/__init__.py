"""Kernels that decode records: JSON, decimal numbers, ISO 8601 times, and Kafka's record batches."""
