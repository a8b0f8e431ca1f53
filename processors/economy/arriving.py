"""Whether usage that is late is still coming in: tokens that are priced before it is read are nobody's.

A backlog is told from a source that is always late (an export once an hour) by its age: that of a backlog grows at once
and falls from fold to fold, that of the other stays about what it was.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Self

import polars as pl

from idlewatt.processors.economy.tiers import LEAD_MS, MOST_BEHIND_MS
from idlewatt.processors.economy.usage import AHEAD_MS

# Far behind, a fold comes half a minute and its own time after the one before.
HOLD_MS: Final = 60_000
# Beyond it all are forgotten: a sender of a million names takes no room.
MAX_SOURCES: Final = 10_000


@dataclass(frozen=True, slots=True)
class Arriving:
    """What was seen of one partition's usage since it was taken over. Times are Unix milliseconds."""

    # (site, source) -> the least age in ms that its late usage had, and when there was some last
    ages: Mapping[tuple[str, str], tuple[int, int]] = field(default_factory=dict)
    # when a backlog was last seen to begin or to go on
    late_ms: int | None = None
    # when usage was last read that is none, if that was since
    told_ms: int | None = None

    def after(self, usage: pl.DataFrame, now_ms: int) -> Self:
        """When these rows (records.USAGE) are read."""
        told = _ages(usage, now_ms)
        if not told:
            return self
        ages = dict(self.ages) if len(self.ages) < MAX_SOURCES else {}
        begins = goes_on = False
        for source, age_ms in told.items():
            if age_ms > LEAD_MS:
                known_ms, at_ms = ages.get(source, (0, 0))
                is_new = abs(age_ms - known_ms) > LEAD_MS
                begins |= is_new
                goes_on |= age_ms < known_ms and at_ms > now_ms - HOLD_MS
                ages[source] = (age_ms if is_new else min(age_ms, known_ms), now_ms)
        told_ms = None if begins or goes_on else now_ms
        # many that tell something late now and then do not make one long wait
        is_seen = goes_on or (begins and not self.is_late(now_ms))
        return replace(self, ages=ages, late_ms=now_ms if is_seen else self.late_ms, told_ms=told_ms)

    def is_late(self, now_ms: int) -> bool:
        """Whether more of a backlog is to be expected, though all that is in the log may be read."""
        return self.late_ms is not None and self.late_ms > now_ms - HOLD_MS

    def is_told(self, now_ms: int) -> bool:
        """Whether usage is told as it always is, though there may be some that is not read yet."""
        return self.told_ms is not None and self.told_ms > now_ms - LEAD_MS


def _ages(usage: pl.DataFrame, now_ms: int) -> dict[tuple[str, str], int]:
    """How old each source's rows are, ms.

    By the middle one, not the newest: in a backlog one of a clock that is ahead says nothing.
    """
    in_time = usage.filter(pl.col("ts_ms").is_between(now_ms - MOST_BEHIND_MS, now_ms + AHEAD_MS))
    middle = in_time.group_by("site", "source").agg(pl.col("ts_ms").quantile(0.5))
    return {(site, source): round(now_ms - ts_ms) for site, source, ts_ms in middle.iter_rows()}
