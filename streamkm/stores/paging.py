"""Snapshots of a store, a page at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from streamkm.state import Snapshot
from streamkm.stores.base import ModelStore

PAGE_SIZE = 100
"""Snapshots that are read at a time."""


def iter_snapshots(store: ModelStore, model: str, *, eventful: bool = False) -> Iterator[Snapshot]:
    """All snapshots of a model, or those with events, newest first.

    Parameters
    ----------
    store
        The store.
    model
        Name of the model.
    eventful
        Only snapshots with events.

    Raises
    ------
    NotFoundError
        There is no such model.
    """
    before: int | None = None
    while page := store.snapshots(model, before=before, limit=PAGE_SIZE, eventful=eventful):
        yield from page
        before = page[-1].id


def split_page(found: Sequence[Snapshot], limit: int) -> tuple[Sequence[Snapshot], int | None]:
    """A page of `limit` snapshots, of which one more was read, and `before` of the next page (None: there is none)."""
    return found[:limit], found[limit - 1].id if len(found) > limit else None
