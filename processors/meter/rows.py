"""Picking rows: by a mask, by the id of an entity, by window."""

from typing import Any, Final

import polars as pl

# An entity and a moment as one integer: 2^41 ms are 69 years between the oldest and the newest reading; there are at
# most 2^22 entities in a partition.
TIME_BITS: Final = 41


def where(rows: pl.DataFrame, mask: pl.Series) -> pl.DataFrame:
    """The rows where the mask is true; most often all or none are, and nothing need be copied."""
    if mask.all(ignore_nulls=False):
        return rows
    return rows.filter(mask) if mask.any() else rows.clear()


def highest(ids: pl.Series) -> int:
    """-1 where there is none."""
    found = ids.max()
    return found if isinstance(found, int) else -1


def by_id(
    ids: pl.Series, keys: pl.Series, values: pl.Series | bool, dtype: Any = pl.Int64, *, default: Any = None
) -> pl.Series:
    """For each of `ids` the value of its key, `default` where it is no key. Ids count from 0, so a table serves."""
    table = pl.Series([default], dtype=dtype).new_from_index(0, 1 + max(highest(ids), highest(keys)))
    return table.scatter(keys, values).gather(ids)


def with_names(rows: pl.DataFrame, index: pl.DataFrame, *columns: str, key: str = "id") -> pl.DataFrame:
    """Add columns of the index to the rows whose id it has; the others are left out."""
    place = by_id(rows[key], index["id"], pl.int_range(index.height, eager=True))
    if place.has_nulls():
        rows, place = rows.filter(place.is_not_null()), place.drop_nulls()
    return rows.hstack([index[column][place] for column in columns])


def by_window(rows: pl.DataFrame, start: str, end: str, window_ms: int) -> pl.DataFrame:
    """A row for each window that the time from `start` to `end` touches, cut to it; adds window_start_ms."""
    rows = rows.with_columns_seq(window_start_ms=pl.col(start) // window_ms * window_ms)
    several = rows[end] - rows["window_start_ms"] > window_ms
    if not several.any():
        return rows
    windows = pl.int_ranges("window_start_ms", end, window_ms).alias("window_start_ms")
    spanning = rows.filter(several).with_columns_seq(windows).explode("window_start_ms")
    spanning = spanning.with_columns_seq(
        pl.max_horizontal(start, "window_start_ms").alias(start),
        pl.min_horizontal(end, pl.col("window_start_ms") + window_ms).alias(end),
    )
    return pl.concat([rows.filter(~several), spanning])
