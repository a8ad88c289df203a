"""What an owner does for its store beside learning: dead letters go out, and what is old goes."""

from __future__ import annotations

import logging

from streamkm.engine.context import Parts
from streamkm.engine.dead_letters import Letters
from streamkm.errors import StoreUnavailableError

log = logging.getLogger("streamkm.engine")

CARE_SECONDS = 60.0
"""How often old snapshots and quarantined records are looked for."""
SOON_SECONDS = 1.0
"""The same while there may be more than one small transaction takes."""


class Care:
    """Beside one tenure: letters in a thread of their own, the rest after a commit, a few milliseconds a minute."""

    def __init__(self, parts: Parts) -> None:
        self.parts, self.options = parts, parts.options
        self.letters: Letters | None = None
        if parts.open_writer is not None and parts.options.dead_letters:
            self.letters = Letters(parts, parts.open_writer)
        self._due_at = float("-inf")

    def committed(self, bad: int) -> None:
        """A commit was made, with so many records for the quarantine."""
        if bad and self.letters is not None:
            self.letters.wake()
        now = self.parts.clock.monotonic()
        if now >= self._due_at:
            self._due_at = now + (SOON_SECONDS if self._clear() else CARE_SECONDS)

    def _clear(self) -> int:
        """Remove what is too old or too much; how many rows went."""
        store, name = self.parts.store, self.parts.spec.name
        try:
            gone = store.trim(name, self.options.quarantine_bounds())
            now = self.parts.clock.time()
            store.keep_base(name, now)
            return gone + (store.thin(name, now) if self.options.keep_snapshots != "all" else 0)
        except StoreUnavailableError as e:
            log.debug("%s: what is old stays for now: %s", name, e)
            return 0

    def close(self) -> None:
        """Let the last letters go out."""
        if self.letters is not None:
            self.letters.close()
