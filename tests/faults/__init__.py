"""Real processes, a real broker, real stores; faults from a seed; and a count at the end of each round."""
