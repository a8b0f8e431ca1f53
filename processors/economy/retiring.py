"""When a pool of a site is gone, by how far the site's windows go."""

from typing import Final

import polars as pl

from idlewatt.processors.at_once import at_once
from idlewatt.processors.gone_pools import TAKEN_BACK_MS
from idlewatt.stream.clock import DAY_MS
from idlewatt.stream.records import POOL

# What is known of a pool's last hours goes when nothing was booked for so long: the meter goes on with silent GPUs for a
# day.
SILENT_MS: Final = DAY_MS
# Its counters end when nothing was booked for so long: a partition of the meter may be a little behind the others.
ENDED_MS: Final = TAKEN_BACK_MS + DAY_MS


def last_booked(booked: pl.DataFrame, power: pl.DataFrame, tokens: pl.DataFrame) -> pl.DataFrame:
    """BOOKED_COLUMNS with the pools of ledger rows."""
    end_ms = pl.col("window_start_ms") + pl.col("window_ms")
    seen = [rows.lazy().select(*POOL, booked_ms=end_ms, is_new=True) for rows in (power, tokens)]
    both = pl.concat([booked.lazy().with_columns(is_new=False), *seen])
    newest_ms = pl.when("is_new").then(pl.col("booked_ms").max().over("site")).otherwise("booked_ms")
    sums = both.with_columns(booked_ms=newest_ms).group_by(*POOL, maintain_order=True)
    return at_once(sums.agg(pl.col("booked_ms").max()))


def gone(booked: pl.DataFrame, for_ms: int) -> pl.DataFrame:
    """The pools of which nothing was booked for so long."""
    return booked.filter(pl.col("booked_ms") < pl.col("booked_ms").max().over("site") - for_ms)


def with_gpus(ends: pl.DataFrame, rolling: pl.DataFrame) -> pl.DataFrame:
    """The ends of windows (site, pool, end_ms) of pools whose engines did not go on alone for so long that GPUs are silent.

    By the clock of the pool itself, which may be hours behind its site's. `rolling`: ROLLING_COLUMNS.
    """
    newest = rolling.lazy().group_by(*POOL).agg(pl.col("window_start_ms").max())
    both = ends.lazy().join(newest, on=POOL, how="left", maintain_order="left")
    alone = pl.col("window_start_ms") - pl.col("end_ms") >= SILENT_MS
    return at_once(both.filter(alone.fill_null(False).not_()).drop("window_start_ms"))
