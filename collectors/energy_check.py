"""Whether a GPU's energy counter can be believed, by what its sampled power says."""

from typing import Final

_NEVER_MS: Final = -(1 << 62)
_WINDOW_MS: Final = 60_000
_WINDOWS_TO_REFUTE: Final = 2
_WINDOWS_TO_TRUST_AGAIN: Final = 10
# a GPU may be read every ten seconds; over more than this, samples of power say little
_LONGEST_STEP_MS: Final = 15_000
# Averages of a second leave next to no time unseen then. What is seen of less may be peaks or pauses only.
_THROUGHOUT_STEP_MS: Final = 1_100
# GPUs were seen whose idle counter gains 43 % less than their power says (ml-energy/zeus#181); nobody knows which is right.
_FACTOR: Final = 2
# The least that counts against a counter that gained nothing. A board that is on draws more.
_LEAST_MW: Final = 1_000


class EnergyCheck:
    """Holds a counter's gain against the trapezoid of sampled power, a minute at a time.

    Too lenient rather than too strict. What counts against a counter is that it stood still or, where power was
    seen throughout and is no stuck figure itself, that it gained less than half or more than twice as much.
    """

    def __init__(self) -> None:
        # the last minutes said that the counter is not to be believed
        self.is_refuted = False
        # in a row, that say otherwise than is believed
        self._windows_otherwise = 0
        self._began_ms = 0
        self._began_mj = 0
        self._readings = 0
        self._twice_sampled_uj = 0
        self._is_moving = False
        self._last_ms = _NEVER_MS
        self._last_mj = 0
        self._last_mw = 0

    def take(self, ts_ms: int, energy_mj: int, power_mw: int, is_average: bool) -> None:
        """Take one reading that has both. `is_average`: whether power is believed to be that of the second before."""
        step_ms = ts_ms - self._last_ms
        if not 0 < step_ms <= _LONGEST_STEP_MS or energy_mj < self._last_mj:
            self._windows_otherwise = 0
            self._begin(ts_ms, energy_mj)
        else:
            self._readings += 1
            self._twice_sampled_uj += (self._last_mw + power_mw) * step_ms
            self._is_moving |= power_mw != self._last_mw
            if ts_ms - self._began_ms >= _WINDOW_MS:
                self._judge(ts_ms, energy_mj, is_average)
                self._begin(ts_ms, energy_mj)
        self._last_ms, self._last_mj, self._last_mw = ts_ms, energy_mj, power_mw

    def is_blind(self, ts_ms: int) -> bool:
        """Whether a counter that is not believed could not be judged for a while: it is all there is then."""
        # nor over a while of a clock that was set back
        return self.is_refuted and not 0 <= ts_ms - self._last_ms <= _WINDOW_MS

    def _begin(self, ts_ms: int, energy_mj: int) -> None:
        self._began_ms, self._began_mj = ts_ms, energy_mj
        self._readings = self._twice_sampled_uj = 0
        self._is_moving = False

    def _judge(self, ts_ms: int, energy_mj: int, is_average: bool) -> None:
        elapsed_ms = ts_ms - self._began_ms
        gained_mj, sampled_mj = energy_mj - self._began_mj, self._twice_sampled_uj // 2000
        is_near = sampled_mj <= gained_mj * _FACTOR <= sampled_mj * _FACTOR**2
        is_throughout = is_average and elapsed_ms <= self._readings * _THROUGHOUT_STEP_MS
        is_false = gained_mj == 0 and sampled_mj >= _LEAST_MW * elapsed_ms // 1000
        is_false |= is_throughout and self._is_moving and not is_near
        says_otherwise = is_near if self.is_refuted else is_false
        self._windows_otherwise = self._windows_otherwise + 1 if says_otherwise else 0
        if self._windows_otherwise == (_WINDOWS_TO_TRUST_AGAIN if self.is_refuted else _WINDOWS_TO_REFUTE):
            self.is_refuted = not self.is_refuted
            self._windows_otherwise = 0
