"""HTTP beneath the service: bounded connections, common headers, and the one form of errors."""
