"""Kernels that decode records: JSON, decimal numbers, times, and Kafka's record batches."""
