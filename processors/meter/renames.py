"""Where a GPU was, and as what it was known, when a window was booked.

A GPU's node and product are what its newest reading says. What is booked late, or taken back, in windows that were
closed before goes to the names they were booked on; else dark time would be left behind under one and missing under
the other.
"""

from typing import Any, Final

import polars as pl

from idlewatt.processors.meter.rows import where, with_names

# what may change of a GPU that stays the same
GPU_ATTRIBUTES: Final = ("node", "product")
# rows that end at or before until_ms, and after the one before, have these names
RENAME_COLUMNS: Final[dict[str, Any]] = {
    "id": pl.Int64,
    "until_ms": pl.Int64,
    **dict.fromkeys(GPU_ATTRIBUTES, pl.String),
}
# of one GPU: two collectors that call it differently would rename it with every message
_MOST_RENAMES: Final = 8


def renamed(
    renames: pl.DataFrame, before: pl.DataFrame, after: pl.DataFrame, edge_ms: int | None
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The renames with what changed from one index to the next, while windows before `edge_ms` are closed; and the index.

    A GPU that was renamed too often keeps the name it has, so that it is still known where its hours were booked.
    """
    if edge_ms is None or after is before:
        return renames, after
    old, new = before.select_seq(GPU_ATTRIBUTES), after.head(before.height).select_seq(GPU_ATTRIBUTES)
    differs = pl.Series([False]).new_from_index(0, before.height)
    for name in GPU_ATTRIBUTES:
        differs |= old[name].ne_missing(new[name])
    if not differs.any():
        return renames, after
    often = renames.group_by("id").len().filter(pl.col("len") >= _MOST_RENAMES)["id"]
    kept = differs & before["id"].is_in(often.implode())
    if kept.any():
        first = after.head(before.height).with_columns(
            pl.when(kept).then(old[name]).otherwise(name).alias(name) for name in GPU_ATTRIBUTES
        )
        after = pl.concat([first, after.tail(after.height - before.height)])
    changed = before.filter(differs & ~kept).select_seq(
        "id", pl.lit(edge_ms, pl.Int64).alias("until_ms"), *GPU_ATTRIBUTES
    )
    # of several between two edges the first says what the windows were booked on
    both = pl.concat([renames, changed]).unique(["id", "until_ms"], keep="first", maintain_order=True)
    return both, after


def forget(renames: pl.DataFrame, index: pl.DataFrame, since_ms: int) -> pl.DataFrame:
    """Leave out what no row since `since_ms` needs, and GPUs that are not known any more."""
    if renames.is_empty():
        return renames
    return where(renames, renames["until_ms"] > since_ms).join(
        index, on="id", how="semi", maintain_order="left"
    )


def with_booked_names(
    rows: pl.DataFrame, index: pl.DataFrame, renames: pl.DataFrame, end_ms: pl.Expr, *columns: str
) -> pl.DataFrame:
    """Like with_names(), but with the names that each row, which ends at `end_ms`, was or would have been booked on."""
    rows = with_names(rows, index, *columns)
    names = [name for name in columns if name in GPU_ATTRIBUTES]
    if renames.is_empty():
        return rows
    booked = renames.select_seq("id", "until_ms", *(pl.col(name).alias(f"{name}_then") for name in names))
    return (
        rows.with_columns_seq(end_ms=end_ms)
        .sort("end_ms", maintain_order=True)
        .join_asof(
            booked.sort("until_ms"),
            left_on="end_ms",
            right_on="until_ms",
            by="id",
            strategy="forward",
            check_sortedness=False,
        )
        .with_columns_seq(pl.coalesce(f"{name}_then", name).alias(name) for name in names)
        .select_seq(rows.columns)
    )
