"""Picking rows: by a mask, by the id of an entity, by window."""

from collections.abc import Sequence
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
    return table.scatter(keys, values)[_as_places(ids)]


def among(ids: pl.Series, keys: pl.Series) -> pl.Series:
    """For each of `ids` whether it is one of the keys."""
    return by_id(ids, keys, True, pl.Boolean, default=False)


def at(rows: pl.DataFrame, places: pl.Series) -> pl.DataFrame:
    """The rows at these places. Column by column that takes half the time of gather()."""
    places = _as_places(places)
    return pl.DataFrame([column[places] for column in rows.get_columns()])


def _as_places(numbers: pl.Series) -> pl.Series:
    # polars looks at each for whether it counts from the end, unless they are as it has them itself
    return numbers.cast(pl.get_index_type(), wrap_numerical=True)


def as_one(*columns: pl.Series) -> pl.Series:
    """Rows of several integers to one integer that is equal where all of them are, and orders as they do.

    Columns may hold nulls, which come first. It groups and sorts several times faster.
    """
    key, room = pl.Series([0], dtype=pl.Int64).new_from_index(0, columns[0].len()), 1
    for column in columns:
        size = _size(column)
        if room * size >= 1 << 63:
            key, room = key.rank("dense").cast(pl.Int64), key.len() + 1
            column = column.rank("dense").cast(pl.Int64)
            size = _size(column)
        place = column - (_least(column) - 1)
        key, room = key * size + (place.fill_null(0) if place.has_nulls() else place), room * size
    return key


def _least(column: pl.Series) -> int:
    found = column.min()
    return found if isinstance(found, int) else 0


def _size(column: pl.Series) -> int:
    """How many values lie between the least and the highest, and null."""
    return max(0, highest(column) - _least(column)) + 2


def sums_by(key: pl.Series, rows: pl.DataFrame, sums: Sequence[str]) -> pl.DataFrame:
    """Sum the columns `sums` over rows with the same key, in the order of the keys; the others as in the first row.

    Sorting integers and taking differences of running sums is twice as fast as grouping by hashes. What is summed
    holds no nulls.
    """
    order, rows = key.arg_sort(), rows.rechunk()
    ordered = key[order].to_frame("key")
    differs = (pl.col("key") != pl.col("key").shift(1)).fill_null(True)
    begins, ends = ordered.select_seq(begins=differs, ends=differs.shift(-1, fill_value=True))
    upto = at(rows.select_seq(sums), order).select_seq(pl.all().cum_sum().filter(ends))
    summed = upto.select_seq(pl.all() - pl.all().shift(1, fill_value=0))
    return at(rows.select_seq(pl.exclude(sums)), order.filter(begins)).hstack(summed)


def with_names(rows: pl.DataFrame, index: pl.DataFrame, *columns: str, key: str = "id") -> pl.DataFrame:
    """Add columns of the index to the rows whose id it has; the others are left out."""
    place = by_id(rows[key], index["id"], pl.int_range(index.height, eager=True))
    if place.has_nulls():
        rows, place = rows.filter(place.is_not_null()), place.drop_nulls()
    return rows.hstack(at(index.select_seq(columns), place).get_columns())


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
