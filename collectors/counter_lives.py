"""Whether counters go on from one page to the next, and since when they count: pages do not always tell alike."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from idlewatt.collectors.counter_values import LeftOutError

_LEAST_MS: Final = 60_000


@dataclass(frozen=True, slots=True)
class _Life:
    # the series that told the epoch
    series: str | None
    epoch_ms: int | None
    counts: Sequence[int | None]
    # since when pages say less, and no epoch says why
    fell_ms: int | None = None
    # a page could not be fetched since
    missed: bool = False


class CounterLives:
    """Epochs and counts as last told, by whose they are.

    An epoch is told by one series for as long as that is on the page: others differ by what a process does before it
    counts, and a change would be taken for a restart. prometheus_client leaves process_start_time_seconds out while its
    process has no file to spare; then it is what it was, unless a counter fell.
    """

    def __init__(self, grace_ms: int) -> None:
        """`grace_ms`: the processors'. After so long a reading the meter takes nothing of a fall for gained."""
        self._sure_ms = max(_LEAST_MS, grace_ms)
        self._lives: dict[str, _Life] = {}

    def epoch_ms(self, whose: str, told: Mapping[str, int]) -> int | None:
        """The epoch if the counters go on. `told`: by series, the most wanted first."""
        life = self._lives.get(whose)
        if life is None or life.series is None:
            return next(iter(told.values()), None)
        return told.get(life.series, life.epoch_ms)

    def settle(
        self, whose: str, told: Mapping[str, int], counts: Sequence[int | None], ts_ms: int
    ) -> int | None:
        """The epoch of these counts.

        Raises LeftOutError (counter_fell) where one is less than before, and neither a later epoch nor, if none is told, a
        page that could not be fetched says that it began anew: the page may be cut, or one of several servers behind one
        address have answered.
        """
        life = self._lives.get(whose)
        fell = life is not None and any(
            now is not None and before is not None and now < before
            for now, before in zip(counts, life.counts, strict=True)
        )
        epoch_ms = self.epoch_ms(whose, told)
        series = life.series if life is not None else None
        if series is None or (series not in told and fell):
            # a start before the one that is known is of the same process
            known_ms = None if life is None else life.epoch_ms
            later = ((name, ms) for name, ms in told.items() if known_ms is None or ms > known_ms)
            series, epoch_ms = next(later, (None, None))
        if life is not None and fell and series is None and (told or not life.missed):
            fell_ms = ts_ms if life.fell_ms is None else life.fell_ms
            if 0 <= ts_ms - fell_ms < self._sure_ms:
                self._lives[whose] = replace(life, fell_ms=fell_ms)
                raise LeftOutError("counter_fell")
        self._lives[whose] = _Life(series, epoch_ms, counts)
        return epoch_ms

    def miss(self) -> None:
        """Note that a page could not be fetched: a process that is started anew does not answer for a while."""
        self._lives = {whose: replace(life, missed=True) for whose, life in self._lives.items()}

    def keep(self, those: Container[str | None]) -> None:
        """Forget the others."""
        self._lives = {whose: life for whose, life in self._lives.items() if whose in those}
