"""HTTP below the service: sockets, bounded connections, default headers, error bodies, and the probes of consumers."""
