"""How much is asked of a pool: a day that rises and falls, unevenly, and the requests it brings."""

import math
import random
from typing import Final

# Of the pool's capacity: the curve crosses zero (idle engines) and one (requests wait) every day.
_MEAN: Final = 0.45
_SWING: Final = 0.8
_UNEVENNESS: Final = 0.15
_KNOTS_A_DAY: Final = 10


class DayCurve:
    """Demand as a share of capacity, 0 to about 1.4. Time may only move forward."""

    def __init__(self, day_ms: int, phase: float, rng: random.Random) -> None:
        self._day_ms = day_ms
        self._phase = phase
        self._rng = rng
        self._knot = 0
        self._from, self._to = self._draw(), self._draw()

    def _draw(self) -> float:
        return self._rng.uniform(-_UNEVENNESS, _UNEVENNESS)

    def level(self, elapsed_ms: int) -> float:
        """Demand this long after the start."""
        knots = elapsed_ms * _KNOTS_A_DAY / self._day_ms
        while self._knot + 1 <= knots:
            self._knot += 1
            self._from, self._to = self._to, self._draw()
        part = knots - self._knot
        unevenness = self._from + (self._to - self._from) * part
        turn = 2 * math.pi * (elapsed_ms / self._day_ms + self._phase)
        return max(0.0, _MEAN + _SWING * math.sin(turn) + unevenness)


class Arrivals:
    """Whole requests that come at a rate, scattered about as widely as independent clients scatter."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._owed = 0.0

    def take(self, expected: float) -> int:
        """Requests of one tick in which `expected` are due on average."""
        self._owed += expected
        if self._owed <= 0:
            return 0
        # what chance brings early is not owed later, so that the mean is kept exactly
        count = max(0, int(self._rng.gauss(self._owed, math.sqrt(self._owed)) + 0.5))
        self._owed -= count
        return count
