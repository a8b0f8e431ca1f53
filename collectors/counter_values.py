"""Samples as counts, and what cannot be one."""

import math
from collections.abc import Container, Hashable, Iterable
from dataclasses import dataclass
from typing import Final

from idlewatt.collectors.exposition import Sample

# Beyond it a double no longer counts by ones; also catches blanks such as 2^63-16 and infinity.
COUNT_LIMIT: Final = 2**53
# counters that one request makes
_TOGETHER_MS: Final = 1000


class LeftOutError(Exception):
    """A value that cannot be true; the argument is the reason."""


def finite(sample: Sample) -> float:
    """Its value. Raises LeftOutError (nan, negative, sentinel)."""
    if math.isnan(sample.value):
        raise LeftOutError("nan")
    if sample.value < 0:
        raise LeftOutError("negative")
    if sample.value >= COUNT_LIMIT:
        raise LeftOutError("sentinel")
    return sample.value


def count(sample: Sample) -> int:
    """Its value as a whole number. Raises LeftOutError, also for not_whole."""
    value = finite(sample)
    if value != int(value):
        raise LeftOutError("not_whole")
    return int(value)


def earliest_ms(samples: Iterable[Sample]) -> int | None:
    """The first of their times, Unix seconds, in milliseconds; None where none of them can be one.

    When counters began that are added up: the first stays the same when another joins, which is no restart of what the
    others have counted.
    """
    times = (round(sample.value * 1000) for sample in samples if 0 < sample.value < COUNT_LIMIT / 1000)
    return min(times, default=None)


@dataclass(frozen=True, slots=True)
class _Difference:
    epoch_ms: int | None
    whole: int
    part: int
    rest: int


class Differences:
    """Counters less others, as last told: both only grow, their difference may seem to shrink.

    A page is written while its server counts: a request that ends in between is in the part and not yet in the
    whole. Without an epoch such a fall would be taken for a restart and everything counted again.
    """

    def __init__(self) -> None:
        self._last: dict[Hashable, _Difference] = {}

    def rest(self, key: Hashable, epoch_ms: int | None, whole: int, part: int) -> int:
        """`whole` less `part`, which never falls while neither of the two does. Raises LeftOutError (negative)."""
        rest = whole - part
        last = self._last.get(key)
        if last and last.epoch_ms == epoch_ms and last.whole <= whole and last.part <= part:
            rest = max(rest, last.rest)
        if rest < 0:
            raise LeftOutError("negative")
        self._last[key] = _Difference(epoch_ms, whole, part, rest)
        return rest

    def keep(self, keys: Container[Hashable]) -> None:
        """Forget the others: what pages name comes and goes, the memory of it shall not grow."""
        self._last = {key: kept for key, kept in self._last.items() if key in keys}


@dataclass(frozen=True, slots=True)
class _Part:
    epoch_ms: int | None
    whole: int
    told: int
    before: int


class Continued:
    """Counters of a part that is forgotten, and begins anew, at other times than the whole.

    A gateway forgets what was not used for a time, each of its counters by itself and when that is next used. So the part
    may begin anew while the whole goes on, in whose life it must not fall; and linger when the whole has begun anew.
    """

    def __init__(self) -> None:
        self._last: dict[Hashable, _Part] = {}

    def count(
        self, key: Hashable, epoch_ms: int | None, whole: int, part: int | None, part_epoch_ms: int | None
    ) -> int:
        """What was counted of the part in the life of the whole; `part` is None where the page says nothing of it."""
        last = self._last.get(key)
        told = part or 0
        before = 0
        if last is not None and epoch_ms is not None:
            if last.epoch_ms == epoch_ms and last.whole <= whole:
                told = last.told if part is None else part
                before = last.before + (last.told if told < last.told else 0)
            elif (
                told == last.told or told > whole
                if part_epoch_ms is None
                else part_epoch_ms < epoch_ms - _TOGETHER_MS
            ):
                # it lingers
                before = -min(last.told, told)
        self._last[key] = _Part(epoch_ms, whole, told, before)
        return before + told

    def keep(self, keys: Container[Hashable]) -> None:
        """Forget the others."""
        self._last = {key: kept for key, kept in self._last.items() if key in keys}
