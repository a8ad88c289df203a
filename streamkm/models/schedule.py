"""When a coreset is to be solved anew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from streamkm.models.centroids import Learned
from streamkm.models.decay import Aged

OnDrift = Literal["ignore", "resolve", "forget"]

GROWTH = 4.0
"""A re-solve is due when the mass is so many times that at the last one."""

HALF_LIVES = 0.5
"""A re-solve is due after so many half-lives."""

JUMP = 5.0
"""The cost has jumped when a window of points costs so many times what was expected."""

WINDOW = 256.0
"""Batches are taken together up to so many points, to judge by; no re-solve comes sooner after the one before."""

REST = 4
"""After a jump, so many windows are not judged."""

FORGOTTEN = 1e-3
"""What is left of all weights, if the model is to forget."""

TRIES = 2
"""So many re-solves, one a window, must fit the points of the jump badly before anything is forgotten: where there are
centroids enough for the old points and the new ones, forgetting is no help, and the first new ones may be few."""

CALM = 2.0
"""Nothing is forgotten unless so many times the mass came since the jump before as there was at that: three half-lives.
Where jumps come faster, the stream takes turns, and its past is still to come or still to count."""

LAG = 4
"""A scheduled solution takes effect after a quarter of the rows that came between the last one and its schedule."""


class Schedule:
    """Decides after each batch whether a re-solve is due; what it decides depends on the batches only.

    Attributes
    ----------
    kept
        Product of all decay since the last publication.
    learned
        Weight ever learned.
    doubts
        Whether the past may have to be forgotten: if the re-solve that `after` has just called for does not help.
    """

    def __init__(self, on_drift: OnDrift) -> None:
        self.on_drift: OnDrift = on_drift
        self.kept = 1.0
        self.learned = 0.0
        self._mass = 0.0  # at the last re-solve
        self._rows = 0  # since then
        self._half_lives = 0.0  # since then
        self._cost = self._points = 0.0  # of the window
        self._expected = 0.0  # mean cost before the window
        self._quiet = 0  # rows seen until which no jump is judged
        self._rests = 1  # how many times as long to be quiet after the next jump
        self.doubts = False
        self._calm = 0.0  # mean cost before the jump
        self._tries = 0  # re-solves since then, while it is not known whether they help
        self._jump = 0.0, 0.0  # weight ever learned, and the mass with what was forgotten, at the last jump
        self._forgotten = 0.0  # mass that would be there but for forgetting

    def after(self, learned: Learned, n_seen: int, n: int, aged: Aged) -> Literal["", "mass", "jump"]:
        """Look at a batch that was learned, and say why a re-solve is due, if it is.

        Parameters
        ----------
        n_seen, n
            Rows seen, the batch included; rows of the batch.
        aged
            How much older the batch made all that was there before.
        """
        self._rows += n
        self.learned += learned.points
        if aged.half_lives:
            self._half_lives += aged.half_lives
            self.kept *= aged.factor
            self._forgotten *= aged.factor
        if self.on_drift != "ignore" and self._jumped(learned, n_seen, n):
            return "jump"
        due = learned.mass >= GROWTH * self._mass or (self._half_lives >= HALF_LIVES and self._rows >= WINDOW)
        return "mass" if due else ""

    def _jumped(self, learned: Learned, n_seen: int, n: int) -> bool:
        self.doubts = False
        if self._points == 0.0:
            mass = learned.mass - learned.decayed_points
            self._expected = (learned.total_cost - learned.decayed_cost) / mass if mass > 0.0 else 0.0
        self._cost += learned.cost
        self._points += learned.points
        if self._points < WINDOW:
            return False
        cost, points, self._cost, self._points = self._cost, self._points, 0.0, 0.0
        jumps = cost > JUMP * self._expected * points
        calm = jumps and self._was_calm(learned.mass)  # jumps are looked at in quiet times, too
        tries, self._tries = self._tries, 0
        if tries:
            # Judged by the cost before the jump: that of now has the points that fit badly in it.
            if not cost > JUMP * self._calm * points:
                return False
            self._tries, self.doubts = tries, True
        elif n_seen < self._quiet or not jumps:
            return False
        elif calm and self.on_drift == "forget":
            self._calm, self.doubts = self._expected, True
        self._quiet = n_seen + REST * self._rests * max(n, int(WINDOW))
        self._rests = min(64, 2 * self._rests)
        return True

    def forgets(self, cost: float, points: float, mass: float) -> bool:
        """Whether to forget, after a jump that `doubts`.

        Parameters
        ----------
        cost, points
            Of the last batch, with the centroids of the re-solve.
        mass
            Decayed mass of all.
        """
        if not cost > JUMP * self._calm * points:
            self._tries = 0
            return False
        self._tries += 1
        if self._tries < TRIES:
            return False
        self._tries = 0
        self._forgotten += (1.0 - FORGOTTEN) * mass
        return True

    def _was_calm(self, mass: float) -> bool:
        """Whether the last jump was long ago; the last one is now."""
        (learned, had), self._jump = self._jump, (self.learned, mass + self._forgotten)
        return self.learned - learned >= CALM * had

    @property
    def lag(self) -> int:
        """Rows to wait before a solution that is due now takes effect."""
        return self._rows // LAG

    def solved(self, mass: float) -> None:
        """Count from here: a re-solve was begun at this decayed mass."""
        self._mass = mass
        self._rows, self._half_lives = 0, 0.0

    def helped(self) -> None:
        """A re-solve was worth it: the next jump is no false alarm."""
        self._rests = 1

    # Saving

    def numbers(self) -> dict[str, Any]:
        """All there is, JSON values."""
        return {
            "kept": self.kept,
            "learned": self.learned,
            "mass": self._mass,
            "rows": self._rows,
            "half_lives": self._half_lives,
            "window": [self._cost, self._points, self._expected],
            "quiet": self._quiet,
            "rests": self._rests,
            "doubt": [self._calm, self._tries, *self._jump, self._forgotten],
        }

    @classmethod
    def restore(cls, on_drift: OnDrift, numbers: Mapping[str, Any]) -> Schedule:
        """Undo `numbers`."""
        schedule = cls(on_drift)
        schedule.kept, schedule.learned = float(numbers["kept"]), float(numbers["learned"])
        schedule._mass, schedule._rows = float(numbers["mass"]), int(numbers["rows"])
        schedule._half_lives = float(numbers["half_lives"])
        schedule._cost, schedule._points, schedule._expected = map(float, numbers["window"])
        schedule._quiet, schedule._rests = int(numbers["quiet"]), int(numbers["rests"])
        calm, tries, learned, had, forgotten = numbers.get("doubt", (0.0, 0, 0.0, 0.0, 0.0))
        schedule._calm, schedule._tries = float(calm), int(tries)
        schedule._jump, schedule._forgotten = (float(learned), float(had)), float(forgotten)
        return schedule
