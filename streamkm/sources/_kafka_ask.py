"""A question to the broker that is asked beside the stream, and waited for only when the answer is needed."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Asker:
    """A thread that asks when it is told to.

    Parameters
    ----------
    question
        Returns, or raises; called in the thread.
    name
        Of the thread.
    """

    def __init__(self, question: Callable[[], object], name: str) -> None:
        self._question = question
        self._changed = threading.Condition()
        self._asked = self._answered = 0
        self._said: Exception | None = None
        self._closed = False
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def ask(self) -> None:
        """Ask soon; return at once."""
        with self._changed:
            self._asked += 1
            self._changed.notify_all()

    def wait(self, timeout: float) -> bool:
        """Wait for the answer to what was asked last; False if it did not come in time.

        Raises
        ------
        Exception
            What the question raised.
        """
        with self._changed:
            wanted = self._asked
            if not self._changed.wait_for(lambda: self._answered >= wanted, timeout):
                return False
            said = self._said
        if said is not None:
            raise said
        return True

    def close(self) -> None:
        """Ask no more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._asked > self._answered)
                if self._closed:
                    return
                asked = self._asked
            said: Exception | None = None
            try:
                self._question()
            except Exception as error:  # noqa: BLE001  # told to whom waits
                said = error
            with self._changed:
                self._answered, self._said = asked, said
                self._changed.notify_all()
