"""What an owner does for its store beside learning: dead letters go out, and what is old goes."""

from __future__ import annotations

import logging

from streamkm.engine.context import EngineContext
from streamkm.engine.dead_letters import DeadLetterSender
from streamkm.errors import StoreUnavailableError

log = logging.getLogger("streamkm.engine")

INTERVAL_SECONDS = 60.0
"""How often old snapshots and quarantined records are looked for."""
CATCH_UP_SECONDS = 1.0
"""The same while there may be more than one small transaction takes."""


class Maintenance:
    """Beside one tenure: letters in a thread of their own, the rest after a commit, a few milliseconds a minute."""

    def __init__(self, context: EngineContext) -> None:
        self.context, self.options = context, context.options
        self.letters: DeadLetterSender | None = None
        if context.open_writer is not None and context.options.dead_letters:
            self.letters = DeadLetterSender(context, context.open_writer)
        self._due_at = float("-inf")

    def committed(self, bad: int) -> None:
        """A commit was made, with so many records for the quarantine."""
        if bad and self.letters is not None:
            self.letters.wake()
        now = self.context.clock.monotonic()
        if now >= self._due_at:
            self._due_at = now + (CATCH_UP_SECONDS if self._clear() else INTERVAL_SECONDS)

    def _clear(self) -> int:
        """Remove what is too old or too much; how many rows went."""
        store, name = self.context.store, self.context.spec.name
        try:
            gone = store.trim_quarantine(name, self.options.quarantine_limits())
            now = self.context.clock.time()
            store.keep_checkpoint(name, now)
            return gone + (store.apply_retention(name, now) if self.options.keep_snapshots != "all" else 0)
        except StoreUnavailableError as e:
            log.debug("%s: what is old stays for now: %s", name, e)
            return 0

    def close(self) -> None:
        """Let the last letters go out."""
        if self.letters is not None:
            self.letters.close()
