"""When a coreset is to be solved anew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from streamkm.models.centroids import BatchResult
from streamkm.models.decay import AgedWeights

OnDrift = Literal["ignore", "resolve", "forget"]

RESOLVE_GROWTH = 4.0
"""A re-solve is due when the mass is so many times that at the last one."""

RESOLVE_HALF_LIVES = 0.5
"""A re-solve is due after so many half-lives."""

JUMP_FACTOR = 5.0
"""The cost has jumped when a window of points costs so many times what was expected."""

WINDOW_POINTS = 256.0
"""Batches are taken together up to so many points, to judge by; no re-solve comes sooner after the one before."""

PAUSE_WINDOWS = 4
"""After a jump, so many windows are not judged."""

FORGET_FACTOR = 1e-3
"""What is left of all weights, if the model is to forget."""

FORGET_AFTER_RESOLVES = 2
"""So many re-solves, one a window, must fit the points of the jump badly before anything is forgotten: where there are
centroids enough for the old points and the new ones, forgetting is no help, and the first new ones may be few."""

CALM_GROWTH = 2.0
"""Nothing is forgotten unless so many times the mass came since the jump before as there was at that: three half-lives.
Where jumps come faster, the stream takes turns, and its past is still to come or still to count."""

LAG_DIVISOR = 4
"""A scheduled solution takes effect after a quarter of the rows that came between the last one and its schedule."""


class ResolveSchedule:
    """Decides after each batch whether a re-solve is due; what it decides depends on the batches only.

    Attributes
    ----------
    decay_since_publication
        Product of all decay since the last publication.
    learned
        Weight ever learned.
    may_forget
        Whether the past may have to be forgotten: if the re-solve that `after_batch` has just called for does not help.
    """

    def __init__(self, on_drift: OnDrift) -> None:
        self.on_drift: OnDrift = on_drift
        self.decay_since_publication = 1.0
        self.learned = 0.0
        self._mass = 0.0  # at the last re-solve
        self._rows = 0  # since then
        self._half_lives = 0.0  # since then
        self._cost = self._points = 0.0  # of the window
        self._expected = 0.0  # mean cost before the window
        self._paused_until = 0  # rows seen until which no jump is judged
        self._pause_factor = 1  # how many times as long to be quiet after the next jump
        self.may_forget = False
        self._cost_before_jump = 0.0  # mean cost before the jump
        self._failed_resolves = 0  # re-solves since then, while it is not known whether they help
        self._last_jump = 0.0, 0.0  # weight ever learned, and the mass with what was forgotten, at the last jump
        self._forgotten_mass = 0.0  # mass that would be there but for forgetting

    def after_batch(self, learned: BatchResult, n_seen: int, n: int, aged: AgedWeights) -> Literal["", "mass", "jump"]:
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
            self.decay_since_publication *= aged.factor
            self._forgotten_mass *= aged.factor
        if self.on_drift != "ignore" and self._jumped(learned, n_seen, n):
            return "jump"
        due = learned.mass >= RESOLVE_GROWTH * self._mass or (
            self._half_lives >= RESOLVE_HALF_LIVES and self._rows >= WINDOW_POINTS
        )
        return "mass" if due else ""

    def _jumped(self, learned: BatchResult, n_seen: int, n: int) -> bool:
        self.may_forget = False
        if self._points == 0.0:
            mass = learned.mass - learned.decayed_points
            self._expected = (learned.total_cost - learned.decayed_cost) / mass if mass > 0.0 else 0.0
        self._cost += learned.cost
        self._points += learned.points
        if self._points < WINDOW_POINTS:
            return False
        cost, points, self._cost, self._points = self._cost, self._points, 0.0, 0.0
        jumps = cost > JUMP_FACTOR * self._expected * points
        calm = jumps and self._was_calm(learned.mass)  # jumps are looked at in quiet times, too
        tries, self._failed_resolves = self._failed_resolves, 0
        if tries:
            # Judged by the cost before the jump: that of now has the points that fit badly in it.
            if not cost > JUMP_FACTOR * self._cost_before_jump * points:
                return False
            self._failed_resolves, self.may_forget = tries, True
        elif n_seen < self._paused_until or not jumps:
            return False
        elif calm and self.on_drift == "forget":
            self._cost_before_jump, self.may_forget = self._expected, True
        self._paused_until = n_seen + PAUSE_WINDOWS * self._pause_factor * max(n, int(WINDOW_POINTS))
        self._pause_factor = min(64, 2 * self._pause_factor)
        return True

    def should_forget(self, cost: float, points: float, mass: float) -> bool:
        """Whether to forget, after a jump that `may_forget`.

        Parameters
        ----------
        cost, points
            Of the last batch, with the centroids of the re-solve.
        mass
            Decayed mass of all.
        """
        if not cost > JUMP_FACTOR * self._cost_before_jump * points:
            self._failed_resolves = 0
            return False
        self._failed_resolves += 1
        if self._failed_resolves < FORGET_AFTER_RESOLVES:
            return False
        self._failed_resolves = 0
        self._forgotten_mass += (1.0 - FORGET_FACTOR) * mass
        return True

    def _was_calm(self, mass: float) -> bool:
        """Whether the last jump was long ago; the last one is now."""
        (learned, had), self._last_jump = self._last_jump, (self.learned, mass + self._forgotten_mass)
        return self.learned - learned >= CALM_GROWTH * had

    @property
    def lag(self) -> int:
        """Rows to wait before a solution that is due now takes effect."""
        return self._rows // LAG_DIVISOR

    def resolve_started(self, mass: float) -> None:
        """Count from here: a re-solve was begun at this decayed mass."""
        self._mass = mass
        self._rows, self._half_lives = 0, 0.0

    def resolve_improved(self) -> None:
        """A re-solve was worth it: the next jump is no false alarm."""
        self._pause_factor = 1

    # Saving

    def scalars(self) -> dict[str, Any]:
        """All there is, JSON values."""
        return {
            "kept": self.decay_since_publication,
            "learned": self.learned,
            "mass": self._mass,
            "rows": self._rows,
            "half_lives": self._half_lives,
            "window": [self._cost, self._points, self._expected],
            "quiet": self._paused_until,
            "rests": self._pause_factor,
            "doubt": [self._cost_before_jump, self._failed_resolves, *self._last_jump, self._forgotten_mass],
        }

    @classmethod
    def restore(cls, on_drift: OnDrift, scalars: Mapping[str, Any]) -> ResolveSchedule:
        """Undo `scalars`."""
        schedule = cls(on_drift)
        schedule.decay_since_publication, schedule.learned = float(scalars["kept"]), float(scalars["learned"])
        schedule._mass, schedule._rows = float(scalars["mass"]), int(scalars["rows"])
        schedule._half_lives = float(scalars["half_lives"])
        schedule._cost, schedule._points, schedule._expected = map(float, scalars["window"])
        schedule._paused_until, schedule._pause_factor = int(scalars["quiet"]), int(scalars["rests"])
        calm, tries, learned, had, forgotten = scalars.get("doubt", (0.0, 0, 0.0, 0.0, 0.0))
        schedule._cost_before_jump, schedule._failed_resolves = float(calm), int(tries)
        schedule._last_jump, schedule._forgotten_mass = (float(learned), float(had)), float(forgotten)
        return schedule
