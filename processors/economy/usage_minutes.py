"""What counters gained, split over the minutes between two readings in integers that add up to it."""

from typing import Any, Final

import polars as pl

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
MINUTE_MS: Final = 60_000
# A gap is cut into the smallest of these that makes at most _PARTS parts. A quarter of an hour divides the offset
# of every time zone, so that days and months stay whole for gaps of up to 15 hours.
_STEPS_MS: Final = (MINUTE_MS, 900_000, 21_600_000)
_PARTS: Final = 60


def split(gained: pl.DataFrame) -> pl.DataFrame:
    """Gains (start_ms, end_ms and MINUTE_COLUMNS but its windows) to MINUTE_COLUMNS; the last part takes the remainder.

    A window is a minute where the interval is up to an hour long, a quarter of an hour up to 15 hours, else 6 hours.
    """
    elapsed_ms = pl.col("end_ms") - pl.col("start_ms")
    step_ms = pl.lit(_STEPS_MS[-1], pl.Int64)
    for step in reversed(_STEPS_MS[:-1]):
        step_ms = pl.when(elapsed_ms <= step * _PARTS).then(step).otherwise(step_ms)
    gained = gained.filter(pl.any_horizontal(pl.col(*TOKEN_COUNTS) != 0)).with_columns(window_ms=step_ms)
    if gained.is_empty():
        return pl.DataFrame(schema=MINUTE_COLUMNS)
    step_ms = pl.col("window_ms")
    first, last = pl.col("start_ms") // step_ms, (pl.col("end_ms") - 1) // step_ms
    parts = gained.with_columns(window_start_ms=pl.int_ranges(first, last + 1)).explode("window_start_ms")
    parts = parts.with_columns(pl.col("window_start_ms") * step_ms)
    parts = parts.with_columns(
        from_ms=pl.max_horizontal("start_ms", "window_start_ms"),
        to_ms=pl.min_horizontal("end_ms", pl.col("window_start_ms") + step_ms),
    )
    return (
        parts.with_columns(
            (_by(c, "to_ms") - _by(c, "from_ms")).cast(pl.Int64).alias(c) for c in TOKEN_COUNTS
        )
        .filter(pl.any_horizontal(pl.col(*TOKEN_COUNTS) != 0))
        .select(*MINUTE_COLUMNS)
    )


def _by(tokens: str, moment: str) -> pl.Expr:
    """What had been gained by the moment; 128 bits, for a week's milliseconds times 2^53 tokens."""
    passed_ms = (pl.col(moment) - pl.col("start_ms")).cast(pl.Int128)
    return (
        passed_ms * pl.col(tokens).cast(pl.Int128) // (pl.col("end_ms") - pl.col("start_ms")).cast(pl.Int128)
    )
