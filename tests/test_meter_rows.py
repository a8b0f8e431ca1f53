"""Integers that stand for several columns, and sums over rows that share one."""

import polars as pl
import pytest

from idlewatt.processors.meter.rows import as_one, sums_by


@pytest.mark.parametrize("far", [1, 1 << 40, (1 << 61) - 1])
def test_one_integer_orders_as_the_columns_do(far: int) -> None:
    """Rows get the same integer exactly where all columns agree, in the columns' order, however wide they range."""
    values = [None, -far, -1, 0, 1, far]
    rows = pl.DataFrame(
        [(a, b, c) for a in values for b in values for c in (5, None)] * 2,
        schema={"a": pl.Int64, "b": pl.Int64, "c": pl.Int64},
        orient="row",
    ).sample(fraction=1.0, shuffle=True, seed=1)
    ordered = rows.with_columns(key=as_one(*rows)).sort("key", maintain_order=True)
    assert ordered.select("a", "b", "c").equals(rows.sort("a", "b", "c", nulls_last=False))
    assert ordered["key"].n_unique() == rows.unique().height


def test_sums_are_those_of_a_group_by() -> None:
    """Each key has one row: its sums, its first row's other columns; nothing at all gives no row."""
    rows = pl.DataFrame({"name": ["x", "y", "z", "w"], "mj": [5, -7, 1 << 61, 3], "ms": [1, 2, 3, 4]})
    key = pl.Series([9, 2, 9, 2])
    summed = sums_by(key, rows, ("mj", "ms"))
    assert summed.rows() == [("y", -4, 6), ("x", (1 << 61) + 5, 4)]
    assert sums_by(key.clear(), rows.clear(), ("mj", "ms")).rows() == []
