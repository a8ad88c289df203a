"""HTTP below the service: bounded connections, default headers and error bodies."""
