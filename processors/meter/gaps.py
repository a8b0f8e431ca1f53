"""What counters gained over long gaps, kept to be booked a bounded number of windows at a time.

When a rack comes back after hours, every entity's gap spans hundreds or thousands of closed windows. Cut all at once
they would take memory by entities times windows; so a step puts long gaps off, and later ones take parts of them.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import polars as pl

from idlewatt.processors.meter.cutting import cut
from idlewatt.processors.meter.rows import where
from idlewatt.processors.meter.timeline import Edges

# a gap over no more closed windows than this is booked at once
SHORT_WINDOWS: Final = 6
# next_ms: booked up to here; until_ms: the last edge when it was put off, what lies after it is an open interval;
# fresh: not even silence was booked over it; taken_back: silence that was booked, and is no more
GAP_COLUMNS: Final = {
    "next_ms": pl.Int64,
    "until_ms": pl.Int64,
    "fresh": pl.Boolean,
    "taken_back": pl.Boolean,
}


def put_off(
    intervals: pl.DataFrame, edges: Edges, new: pl.Series
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Intervals to split now; those to split from the last edge on; and long gaps before it, with GAP_COLUMNS."""
    closed_ms = intervals["end_ms"].clip(upper_bound=edges.previous_ms) - intervals["start_ms"]
    long = ~intervals["measured"] & (closed_ms > SHORT_WINDOWS * edges.window_ms)
    gaps, now = where(intervals, long), where(intervals, ~long)
    later = gaps.with_columns_seq(
        next_ms=pl.col("start_ms"),
        until_ms=pl.min_horizontal("end_ms", pl.lit(edges.previous_ms)),
        fresh=pl.col("id").is_in(new.implode()),
        taken_back=pl.lit(False),
    )
    return now, where(gaps, gaps["end_ms"] > edges.previous_ms), later


def taken_back(booked: pl.DataFrame, columns: Mapping[str, Any], counters: Sequence[str]) -> pl.DataFrame:
    """Gaps of these columns that take back silence: id, start_ms, end_ms, and what it was booked with."""
    told = {
        "t0_ms": pl.col("start_ms"),
        "measured": pl.lit(False),
        "estimated": pl.lit(False),
        **{f"inc_{c}": pl.lit(0, pl.Int64) for c in counters},
        "next_ms": pl.col("start_ms"),
        "until_ms": pl.col("end_ms"),
        "fresh": pl.lit(True),
        "taken_back": pl.lit(True),
    }
    return booked.select_seq(
        name if name in booked.columns else told.get(name, pl.lit(None, dtype)).alias(name)
        for name, dtype in columns.items()
    )


def take(
    gaps: pl.DataFrame, room: int, window_ms: int, counters: Sequence[str]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """At most `room` pieces of gaps, cut as split() cuts; and the gaps that are left."""
    some = gaps.head(room)
    windows = room // max(some.height, 1)
    edge_ms = (pl.col("next_ms") // window_ms + windows) * window_ms
    some = some.with_columns_seq(from_ms=pl.col("next_ms"), to_ms=pl.min_horizontal("until_ms", edge_ms))
    left = some.filter(pl.col("to_ms") < pl.col("until_ms")).with_columns_seq(next_ms=pl.col("to_ms"))
    pieces = cut(some, window_ms, counters).with_columns_seq(
        # time that runs backwards is less time
        *(
            pl.when("taken_back").then(other).otherwise(name).alias(name)
            for name, other in (("from_ms", "to_ms"), ("to_ms", "from_ms"))
        ),
        late=~pl.col("fresh"),
    )
    return pieces, pl.concat([left.select_seq(gaps.columns), gaps.tail(-room)])
