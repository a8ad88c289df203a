"""Stable identities of clusters, and what happened to them between two snapshots."""
