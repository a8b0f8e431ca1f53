"""Names to ids: the same entity keeps its id. Integers sort, join and group several times faster."""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl
import polars.selectors as cs

from idlewatt.processors.meter.intake import too_long_names
from idlewatt.processors.meter.rows import highest


@dataclass(frozen=True, slots=True, eq=False)
class Ids:
    """Of entities that rows point to, in a partition."""

    # as they came, and with lists as lines
    named: pl.DataFrame
    entities: pl.DataFrame
    # whether one of its names is
    too_long: pl.Series
    index: pl.DataFrame
    # the id of each entity; null where the index does not have it as it is
    ids: pl.Series


def ids_of(
    named: pl.DataFrame,
    index: pl.DataFrame,
    key: Sequence[str],
    attributes: Sequence[str],
    before: Ids | None,
) -> Ids:
    """As before, while neither has changed."""
    if before is not None and before.named is named:
        if before.index is index:
            return before
        entities, too_long = before.entities, before.too_long
    else:
        entities = named.with_columns_seq(cs.list().list.join("\n").fill_null(""))
        too_long = too_long_names(named)
    columns = [*key, *attributes]
    found = entities.join(index.select_seq(*columns, "id"), on=columns, how="left", maintain_order="left")
    return Ids(named, entities, too_long, index, found["id"])


def with_ids(
    known: Ids,
    rows: pl.DataFrame,
    key: Sequence[str],
    attributes: Sequence[str],
    before: Sequence[pl.DataFrame],
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Give rows the `id` of their entity instead of its place among them, whose names are heavy to move and to sort.

    The index has key, attributes and id of each entity, attributes as its newest reading says; returned up to date.
    `before`: id and ts_ms of readings that came before these rows.
    """
    index = known.index
    ids = known.ids.gather(rows["entity"])
    if ids.has_nulls():
        index = _learn(index, rows, known.entities, key, attributes, before)
        by_key = known.entities.join(index.select_seq(*key, "id"), on=key, how="left", maintain_order="left")
        ids = by_key["id"].gather(rows["entity"])
    return rows.drop("entity").hstack([ids]), index


def _learn(
    index: pl.DataFrame,
    rows: pl.DataFrame,
    entities: pl.DataFrame,
    key: Sequence[str],
    attributes: Sequence[str],
    before: Sequence[pl.DataFrame],
) -> pl.DataFrame:
    """The index with what the rows say of entities that are new or have changed."""
    seen = rows.group_by("entity").agg(pl.col("ts_ms").max())
    newest = (
        entities.select_seq(*key, *attributes)
        .with_row_index("entity")
        # there may be others, whom no row is about
        .join(seen, on=pl.col("entity").cast(pl.Int64), how="inner", maintain_order="left")
        .sort("ts_ms", maintain_order=True)
        .unique(key, keep="last", maintain_order=True)
        .select_seq(*key, *attributes, "ts_ms")
        .join(index.select_seq(*key, "id"), on=key, how="left", maintain_order="left")
    )
    new = newest.filter(pl.col("id").is_null()).drop("ts_ms")
    new = new.with_columns_seq(
        pl.int_range(pl.len(), dtype=pl.Int64).add(1 + highest(index["id"])).alias("id")
    )
    newer_ms = pl.concat([readings.select_seq("id", newer_ms="ts_ms") for readings in before])
    known = (
        newest.filter(pl.col("id").is_not_null())
        .join(newer_ms.group_by("id").agg(pl.col("newer_ms").max()), on="id", how="left")
        # a message that comes once more says nothing new
        .filter((pl.col("ts_ms") >= pl.col("newer_ms")).fill_null(True))
        .select_seq("id", *attributes)
    )
    return pl.concat([index.update(known, on="id", maintain_order="left"), new], how="diagonal")
