"""The exact algorithm over stored data: a range of a topic, or files; in memory or out of core."""
