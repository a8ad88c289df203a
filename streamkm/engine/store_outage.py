"""Whether the store is available, over all sessions of an engine."""

from __future__ import annotations

import logging

from streamkm.engine.context import EngineContext
from streamkm.errors import StoreUnavailableError
from streamkm.reporting import ProgressReporter

log = logging.getLogger("streamkm.engine")


class StoreOutage:
    """Reports the store as unavailable until it does again what it failed to do.

    A store whose disk is full may still grant and renew leases, which need less space than commits. So after a rejected
    commit only an accepted one, of any owner, ends the outage.

    Parameters
    ----------
    context
        Of the engine.
    """

    def __init__(self, context: EngineContext) -> None:
        self.context = context
        self._reporter = ProgressReporter(log, context.spec.name, context.clock.monotonic)
        self._rejected = 0  # number of the rejected commit; 0: none

    def failed(self, error: StoreUnavailableError, *, commit: int = 0) -> None:
        """Note that the store is unavailable; `commit` is the number of the rejected commit, if it was one."""
        self._rejected = commit or self._rejected
        self._reporter.mark_down("store", error)
        self.context.mark_down("store", error)

    def answered(self) -> None:
        """Note that the store did something else than a commit."""
        if not self._rejected or self._last_commit() >= self._rejected:
            self.committed()

    def committed(self) -> None:
        """Note that the store accepted a commit."""
        self._rejected = 0
        self._reporter.mark_up("store")
        self.context.mark_up("store")

    def _last_commit(self) -> int:
        try:
            progress = self.context.store.model(self.context.spec.name).progress
        except StoreUnavailableError:
            return 0
        return 0 if progress is None else progress.commit_seq
