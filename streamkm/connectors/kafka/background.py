"""Requests to the broker that run beside the stream: end offsets, and commits of the group's positions."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable

from streamkm.records import Position


class BackgroundCall:
    """A thread that asks when it is told to.

    Parameters
    ----------
    call
        Returns, or raises; called in the thread.
    name
        Of the thread.
    """

    def __init__(self, call: Callable[[], object], name: str) -> None:
        self._call = call
        self._changed = threading.Condition()
        self._requested = self._completed = 0
        self._failure: Exception | None = None
        self._closed = False
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def start(self) -> None:
        """Ask soon; return at once."""
        with self._changed:
            self._requested += 1
            self._changed.notify_all()

    def wait(self, timeout: float) -> bool:
        """Wait for the answer to what was asked last; False if it did not come in time.

        Raises
        ------
        Exception
            What the question raised.
        """
        with self._changed:
            wanted = self._requested
            if not self._changed.wait_for(lambda: self._completed >= wanted, timeout):
                return False
            failure = self._failure
        if failure is not None:
            raise failure
        return True

    def close(self) -> None:
        """Ask no more."""
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
            except Exception as error:  # noqa: BLE001  # told to whom waits
                failure = error
            with self._changed:
                self._completed, self._failure = requested, failure
                self._changed.notify_all()


log = logging.getLogger(__name__)

_RETRY_SECONDS = 0.25
"""A coordinator that has just come to a broker says "not yet" for about as long."""
WARN_SECONDS = 10.0
"""A first start waits for the coordinator some seconds, and the store is the truth: that is no warning."""


class OffsetCommitter:
    """A thread that sends the newest position it was given, again and again until the broker has it.

    The store is the truth; this is only for looking at. So a slow or missing group coordinator must not delay the
    stream: `commit` replaces what is not sent yet and returns at once.

    Parameters
    ----------
    send
        Sends a position, and may raise; called in the thread.
    name
        Whose positions they are, for the log.
    explain
        Says why the broker may not take them, or nothing; asked when it does not.
    warn_after
        Seconds for which it may take none until that is a warning, if there is no such reason.
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
        """Commit this position soon, instead of any that still waits."""
        with self._changed:
            self._next = dict(position)
            self._changed.notify()

    def close(self, timeout: float) -> None:
        """Send what waits, for at most `timeout` seconds."""
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
        except Exception as error:  # noqa: BLE001  # whatever it was, it must not stop the stream
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
                    failure = f"{error}; {why}" if why else error
                    log.warning("The position of %s is not committed to Kafka yet: %s", self._name, failure)
            return False
        self._failing_since, self._warned = None, False
        return True
