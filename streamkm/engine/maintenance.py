"""Periodic work of an owner beside learning: dead letters and retention."""

from __future__ import annotations

import logging

from streamkm.engine.context import EngineContext
from streamkm.engine.dead_letters import DeadLetterSender
from streamkm.errors import StoreUnavailableError

log = logging.getLogger("streamkm.engine")

INTERVAL_SECONDS = 60.0
"""Time between runs of retention."""
CATCH_UP_SECONDS = 1.0
"""The same after a run that deleted something, as one run deletes a limited number of rows."""


class Maintenance:
    """Sends dead letters in a thread, and applies retention after commits: a few milliseconds per minute.

    Parameters
    ----------
    context
        Of the engine.
    """

    def __init__(self, context: EngineContext) -> None:
        self.context, self.options = context, context.options
        self.dead_letters: DeadLetterSender | None = None
        if context.open_writer is not None and context.options.dead_letters:
            self.dead_letters = DeadLetterSender(context, context.open_writer)
        self._due_at = float("-inf")

    def after_commit(self, quarantined: int) -> None:
        """Start due work after a commit that added `quarantined` records to the quarantine."""
        if quarantined and self.dead_letters is not None:
            self.dead_letters.wake()
        now = self.context.clock.monotonic()
        if now >= self._due_at:
            self._due_at = now + (CATCH_UP_SECONDS if self._apply_retention() else INTERVAL_SECONDS)

    def _apply_retention(self) -> int:
        """Trim the quarantine and apply retention; number of rows deleted."""
        store, name = self.context.store, self.context.spec.name
        try:
            deleted = store.trim_quarantine(name, self.options.quarantine_limits())
            now = self.context.clock.time()
            store.keep_checkpoint(name, now)
            return deleted + (store.apply_retention(name, now) if self.options.keep_snapshots != "all" else 0)
        except StoreUnavailableError as e:
            log.debug("%s: retention is applied later: %s", name, e)
            return 0

    def close(self) -> None:
        """Send the remaining dead letters."""
        if self.dead_letters is not None:
            self.dead_letters.close()
