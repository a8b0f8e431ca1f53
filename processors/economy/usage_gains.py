"""What each counter of usage gained between two readings."""

from collections import Counter
from typing import Final

import polars as pl

from idlewatt.processors.economy.usage_minutes import GAIN_COLUMNS, NAMES
from idlewatt.processors.meter.going_on import going_on
from idlewatt.processors.meter.timeline import gains as meter_gains
from idlewatt.processors.meter.tokens import TOKEN_BOUNDS
from idlewatt.stream.clock import DAY_MS
from idlewatt.stream.records import TOKEN_COUNTS

ENTITY: Final = ("site", "source", "counter")
# A counter not heard of for so long starts anew: what it gained meanwhile is nobody's.
FORGET_MS: Final = 7 * DAY_MS
# Readings so far behind their site's newest row are refused: a counter is remembered until no reading can go on from
# its last one, whatever else is read.
LATE_MS: Final = FORGET_MS
# A fall of a counter without an epoch within this long is a restart, and its value, if it can be, what it gained since.
_RESET_MS: Final = 300_000
# Further ones are refused: a sender of a million names costs others nothing.
MAX_COUNTERS: Final = 200_000


def without(
    rows: pl.DataFrame, fault: pl.Expr | pl.Series, reason: str, rejected: Counter[str]
) -> pl.DataFrame:
    """The rows less those at fault, which are counted."""
    kept = rows.filter(~fault)
    rejected[reason] += rows.height - kept.height
    return kept


def gains(
    last: pl.DataFrame, rows: pl.DataFrame, rejected: Counter[str]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Each counter's newest reading, and what it gained over each pair of readings: GAIN_COLUMNS.

    What was gained goes to the names of the newer reading: a change of the rules that name consumers counts from
    then on, and nothing counts twice. It has that reading's `place` too.
    """
    if rows.is_empty():
        return last, pl.DataFrame(schema=GAIN_COLUMNS)
    before = last.with_columns(place=pl.int_range(-last.height, 0, dtype=pl.Int64))
    both = pl.concat([before, rows.select(*before.columns, *NAMES)], how="diagonal")
    ids = both.select(*ENTITY).unique(maintain_order=True).with_row_index("id")
    both = both.join(ids, on=list(ENTITY), how="left", maintain_order="left")
    if ids.height > MAX_COUNTERS:
        both = without(both, pl.col("id") >= MAX_COUNTERS, "too_many_counters", rejected)
    # of equals the one that was read first
    both = both.sort("id", "ts_ms", "place")
    # nothing of a counter comes before its last reading but repeats
    is_last = pl.col("place") < 0
    fresh = both.filter(is_last.cum_max().over("id") | ~is_last.any().over("id"))
    fresh = fresh.filter(
        (pl.col("id") != pl.col("id").shift(1)).fill_null(True) | pl.col("ts_ms").diff().ne(0)
    )
    rejected["repeat"] += both.height - fresh.height
    good, left_out = going_on(fresh, TOKEN_COUNTS, FORGET_MS)
    rejected.update(left_out)
    newest = good.filter((pl.col("id") != pl.col("id").shift(-1)).fill_null(True))
    return newest.select(last.columns), _intervals(good)


def _intervals(readings: pl.DataFrame) -> pl.DataFrame:
    """GAIN_COLUMNS of each pair of consecutive readings of a counter."""
    before = (pl.col(name).shift(1).alias(f"{name}_0") for name in ("epoch_ms", *TOKEN_COUNTS))
    paired = readings.with_columns(*before, t0_ms=pl.col("ts_ms").shift(1)).filter(
        pl.col("id") == pl.col("id").shift(1)
    )
    gained = meter_gains(paired, _RESET_MS, FORGET_MS, TOKEN_COUNTS, TOKEN_BOUNDS)
    return gained.with_columns(pl.col(f"inc_{c}").alias(c) for c in TOKEN_COUNTS).select(*GAIN_COLUMNS)
