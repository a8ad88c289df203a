"""Calls that run in the background of the stream: identity checks, and commits of offsets to the group."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable

from streamkm.records import Position


class BackgroundCall:
    """Runs a call in its own thread on request.

    Parameters
    ----------
    call
        Called in the thread; its result is ignored.
    name
        Name of the thread.
    """

    def __init__(self, call: Callable[[], object], name: str) -> None:
        self._call = call
        self._changed = threading.Condition()
        self._requested = self._completed = 0
        self._failure: Exception | None = None
        self._closed = False
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def start(self) -> None:
        """Request a call; returns at once."""
        with self._changed:
            self._requested += 1
            self._changed.notify_all()

    def wait(self, timeout: float) -> bool:
        """Wait until the last requested call has ended.

        Parameters
        ----------
        timeout
            Maximum wait, s.

        Returns
        -------
        bool
            False if it did not end in time.

        Raises
        ------
        Exception
            What the call raised.
        """
        with self._changed:
            requested = self._requested
            if not self._changed.wait_for(lambda: self._completed >= requested, timeout):
                return False
            failure = self._failure
        if failure is not None:
            raise failure
        return True

    def close(self) -> None:
        """Start no more calls."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._requested > self._completed)
                if self._closed:
                    return
                requested = self._requested
            failure: Exception | None = None
            try:
                self._call()
            except Exception as error:  # noqa: BLE001  # raised again by wait()
                failure = error
            with self._changed:
                self._completed, self._failure = requested, failure
                self._changed.notify_all()


log = logging.getLogger(__name__)

_RETRY_SECONDS = 0.25
"""Time between two attempts, s; a coordinator that has just moved to a broker refuses commits for about as long."""
WARN_SECONDS = 10.0
"""Duration of failures before a warning, s; the coordinator of a new group takes some seconds."""


class OffsetCommitter:
    """Commits offsets to the group in its own thread, and retries until the broker has accepted the newest ones.

    The positions that count are in the store; those of the group are for monitoring tools. A slow or missing group
    coordinator must not delay the stream, so `commit` replaces a pending position and returns at once.

    Parameters
    ----------
    send
        Sends a position, and may raise; called in the thread.
    name
        Owner of the positions, for the log.
    explain
        Returns a reason for a failure, or an empty text; called after failures.
    warn_after
        Duration of failures without such a reason before a warning, s.
    """

    def __init__(
        self,
        send: Callable[[Position], None],
        name: str,
        explain: Callable[[], str] = str,
        warn_after: float = WARN_SECONDS,
    ) -> None:
        self._send, self._explain = send, explain
        self._name = name
        self._changed = threading.Condition()
        self._next: Position | None = None
        self._deadline: float | None = None
        self._warn_after = warn_after
        self._failing_since: float | None = None
        self._warned = False
        self._thread = threading.Thread(target=self._run, name=f"streamkm-commit-{name}", daemon=True)
        self._thread.start()

    def commit(self, position: Position) -> None:
        """Commit a position soon, in place of a pending one."""
        with self._changed:
            self._next = dict(position)
            self._changed.notify()

    def close(self, timeout: float) -> None:
        """Send the pending position, for at most `timeout` seconds."""
        with self._changed:
            self._deadline = time.monotonic() + timeout
            self._changed.notify()
        self._thread.join(timeout)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._next is not None or self._deadline is not None)
                position, self._next = self._next, None
            if position is None:
                return
            if self._try(position):
                continue
            with self._changed:
                if self._next is None:
                    self._next = position
                if self._deadline is not None and time.monotonic() + _RETRY_SECONDS > self._deadline:
                    return
                self._changed.wait(_RETRY_SECONDS)

    def _try(self, position: Position) -> bool:
        try:
            self._send(position)
        except Exception as error:  # noqa: BLE001  # no failure may stop the stream
            now = time.monotonic()
            new = self._failing_since is None
            since = self._failing_since = now if self._failing_since is None else self._failing_since
            late = not self._warned and now - since >= self._warn_after
            if new or late:
                why = ""
                with contextlib.suppress(Exception):
                    why = self._explain()
                if why or late:
                    self._warned = True  # once per outage, not once per checkpoint
                    message = f"{error}; {why}" if why else error
                    log.warning("The position of %s is not committed to Kafka yet: %s", self._name, message)
            return False
        self._failing_since, self._warned = None, False
        return True
