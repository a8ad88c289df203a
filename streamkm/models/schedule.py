"""Schedule of re-solves: by growth of the mass, by age, and by jumps of the cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from streamkm.models.centroids import BatchResult
from streamkm.models.decay import AgedWeights

OnDrift = Literal["ignore", "resolve", "forget"]

RESOLVE_GROWTH = 4.0
"""A re-solve is due when the mass has grown by this factor since the last one."""

RESOLVE_HALF_LIVES = 0.5
"""A re-solve is due after this many half-lives."""

JUMP_FACTOR = 5.0
"""The cost has jumped when a window of points costs this many times the expected cost."""

WINDOW_POINTS = 256.0
"""Points of a window in which costs are compared; also the minimum distance of re-solves due to age."""

PAUSE_WINDOWS = 4
"""Windows after a jump in which no other jump is detected."""

FORGET_FACTOR = 1e-3
"""Factor on all weights when the model forgets."""

FORGET_AFTER_RESOLVES = 2
"""Re-solves, one per window, that must fail to fit the points of a jump before the past is forgotten. If there are
enough centroids for old and new points, forgetting does not help, and the first new points may be few."""

CALM_GROWTH = 2.0
"""The past is forgotten only if the mass learned since the previous jump is this multiple of the mass at that jump:
about three half-lives. If jumps are more frequent, the stream alternates, and its past is still relevant."""

LAG_DIVISOR = 4
"""A scheduled solution takes effect after 1/LAG_DIVISOR of the rows between the last re-solve and this one."""


class ResolveSchedule:
    """Decides after each batch whether a re-solve is due, depending on the batches only.

    Attributes
    ----------
    decay_since_publication
        Product of all decay factors since the last publication.
    learned
        Weight ever learned.
    may_forget
        Whether the past may have to be forgotten, if the re-solve requested by `after_batch` does not help.
    """

    def __init__(self, on_drift: OnDrift) -> None:
        self.on_drift: OnDrift = on_drift
        self.decay_since_publication = 1.0
        self.learned = 0.0
        self._mass = 0.0  # at the last re-solve
        self._rows = 0  # since the last re-solve
        self._half_lives = 0.0  # since the last re-solve
        self._cost = self._points = 0.0  # of the window
        self._expected = 0.0  # mean cost before the window
        self._paused_until = 0  # rows seen up to which no jump is detected
        self._pause_factor = 1  # factor on the pause after the next jump
        self.may_forget = False
        self._cost_before_jump = 0.0  # mean cost before the jump
        self._failed_resolves = 0  # re-solves since the jump that did not fit its points
        self._last_jump = 0.0, 0.0  # weight ever learned, and the mass including forgotten mass, at the last jump
        self._forgotten_mass = 0.0  # mass that there would be more without forgetting

    def after_batch(self, learned: BatchResult, n_seen: int, n: int, aged: AgedWeights) -> Literal["", "mass", "jump"]:
        """Record a learned batch, and return why a re-solve is due, or an empty string.

        Parameters
        ----------
        n_seen, n
            Rows seen, including the batch; rows of the batch.
        aged
            The weights of the batch, and the decay of everything learned before.
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
        calm = jumps and self._was_calm(learned.mass)  # also updated during pauses
        tries, self._failed_resolves = self._failed_resolves, 0
        if tries:
            # Compared with the cost before the jump: the current one includes the badly fitting points.
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
        """Decide whether to forget, after a jump with `may_forget`.

        Parameters
        ----------
        cost, points
            Cost and weight of the last batch, with the centroids of the re-solve.
        mass
            Decayed mass of everything learned.
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
        """Whether the previous jump was long ago; records this one."""
        (learned, had), self._last_jump = self._last_jump, (self.learned, mass + self._forgotten_mass)
        return self.learned - learned >= CALM_GROWTH * had

    @property
    def lag(self) -> int:
        """Rows between a re-solve that starts now and the row at which it takes effect."""
        return self._rows // LAG_DIVISOR

    def resolve_started(self, mass: float) -> None:
        """Reset the counters: a re-solve was started at this decayed mass."""
        self._mass = mass
        self._rows, self._half_lives = 0, 0.0

    def resolve_improved(self) -> None:
        """Record that a re-solve was accepted, which resets the growth of the pauses."""
        self._pause_factor = 1

    # Saving

    def scalars(self) -> dict[str, Any]:
        """Return the complete state, as JSON values."""
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
        """Restore a schedule from `scalars`."""
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
