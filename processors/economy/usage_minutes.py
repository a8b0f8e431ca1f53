"""What counters gained, split over the minutes between two readings in integers that add up to it."""

from typing import Any, Final

import polars as pl

from idlewatt.processors.meter.cutting import share
from idlewatt.stream.clock import HOUR_MS, MINUTE_MS
from idlewatt.stream.records import TOKEN_COUNTS

# who spent the tokens, and on what
NAMES: Final = ("function", "team", "agent_family", "engineer", "model_name", "tier")
MINUTE_COLUMNS: Final[dict[str, Any]] = {
    "site": pl.String,
    "window_start_ms": pl.Int64,
    "window_ms": pl.Int64,
    "source": pl.String,
    **dict.fromkeys(NAMES, pl.String),
    **dict.fromkeys(TOKEN_COUNTS, pl.Int64),
}
# what somebody spent between two moments
GAIN_COLUMNS: Final[dict[str, Any]] = {
    # where what told it stands among what was read
    "place": pl.Int64,
    "start_ms": pl.Int64,
    "end_ms": pl.Int64,
    **{name: dtype for name, dtype in MINUTE_COLUMNS.items() if name not in ("window_start_ms", "window_ms")},
}
# A gap is cut into the smallest of these that makes at most _PARTS parts. A quarter of an hour divides the offset
# of every time zone, so that days and months stay whole for gaps of up to 15 hours.
LONGEST_MS: Final = 6 * HOUR_MS
_STEPS_MS: Final = (MINUTE_MS, 15 * MINUTE_MS, LONGEST_MS)
_PARTS: Final = 60
# What a part needs while it is cut is many times the part.
_SPLIT_AT_ONCE: Final = 10_000


def split(gained: pl.DataFrame) -> pl.DataFrame:
    """GAIN_COLUMNS to MINUTE_COLUMNS, in the order of their places; the last part takes the remainder.

    A window is a minute where the interval is up to an hour long, a quarter of an hour up to 15 hours, else 6 hours; the
    first is what is left of it from the interval's first minute on, and the last ends with the interval's last minute.
    """
    elapsed_ms = pl.col("end_ms") - pl.col("start_ms")
    step_ms = pl.lit(_STEPS_MS[-1], pl.Int64)
    for step in reversed(_STEPS_MS[:-1]):
        step_ms = pl.when(elapsed_ms <= step * _PARTS).then(step).otherwise(step_ms)
    spent = gained.filter(pl.any_horizontal(pl.col(*TOKEN_COUNTS) != 0))
    spent = spent.sort("place").with_columns(window_ms=step_ms)
    none = pl.DataFrame(schema=MINUTE_COLUMNS)
    return pl.concat([none, *map(_parts, spent.iter_slices(_SPLIT_AT_ONCE))])


def _parts(spent: pl.DataFrame) -> pl.DataFrame:
    """Gains with the length of their windows to MINUTE_COLUMNS."""
    step_ms = pl.col("window_ms")
    first, last = pl.col("start_ms") // step_ms, (pl.col("end_ms") - 1) // step_ms
    parts = spent.with_columns(window_start_ms=pl.int_ranges(first, last + 1)).explode("window_start_ms")
    parts = parts.with_columns(pl.col("window_start_ms") * step_ms)
    parts = parts.with_columns(
        from_ms=pl.max_horizontal("start_ms", "window_start_ms"),
        to_ms=pl.min_horizontal("end_ms", pl.col("window_start_ms") + step_ms),
    )
    # what was gained since has the price, month and period of no time before, and is of no time after
    begin_ms = pl.max_horizontal("window_start_ms", pl.col("start_ms") // MINUTE_MS * MINUTE_MS)
    end_ms = pl.min_horizontal(
        pl.col("window_start_ms") + step_ms, -(-pl.col("end_ms") // MINUTE_MS) * MINUTE_MS
    )
    return (
        parts.with_columns(window_start_ms=begin_ms, window_ms=end_ms - begin_ms)
        .with_columns((_upto("to_ms", c) - _upto("from_ms", c)).cast(pl.Int64).alias(c) for c in TOKEN_COUNTS)
        .filter(pl.any_horizontal(pl.col(*TOKEN_COUNTS) != 0))
        .select(*MINUTE_COLUMNS)
    )


def _upto(moment: str, tokens: str) -> pl.Expr:
    # a week's milliseconds times 2^53 tokens
    return share(tokens, pl.col(moment), pl.Int128)
