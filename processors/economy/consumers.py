"""What consumers spent: minutes of usage at the book's prices, and what each consumer of each kind ever spent."""

from dataclasses import dataclass
from typing import Any, Final

import polars as pl

from idlewatt.processors.amounts import SUM
from idlewatt.processors.economy.book import CONSUMER_KINDS, Book
from idlewatt.processors.economy.prices import VOLUME_KEY, listed, month_of, price_minutes
from idlewatt.processors.economy.tiers import TIER_COLUMNS
from idlewatt.stream.records import TOKEN_COUNTS

# Beyond it new names are booked together, and new volumes not at all: a sender of a million names costs others nothing.
MAX_SERIES: Final = 200_000
# What a row needs while it is priced is many times the row, and one gap of a counter makes 60 of them.
_PRICED_AT_ONCE: Final = 250_000
OTHER: Final = "(other)"
# what the book has no such tier for
UNKNOWN_TIER: Final = "(unknown)"
CONSUMER_KEY: Final = ("site", "consumer_kind", "consumer", "model_name", "tier", "currency")
CONSUMER_TOTAL_COLUMNS: Final[dict[str, Any]] = {
    **dict.fromkeys(CONSUMER_KEY, pl.String),
    **dict.fromkeys(TOKEN_COUNTS, SUM),
    "spend_micro": SUM,
    # of all kinds, without a price
    "unpriced_tokens": SUM,
}


@dataclass(frozen=True, slots=True)
class Spent:
    """What a fold's minutes come to."""

    # records.CONSUMER and prices.EXACT
    rows: pl.DataFrame
    # prices.VOLUME_COLUMNS and rests.REST_COLUMNS after
    volumes: pl.DataFrame
    rests: pl.DataFrame
    # tiers.TIER_COLUMNS of these minutes
    tiers: pl.DataFrame


def spend(book: Book, minutes: pl.DataFrame, volumes: pl.DataFrame, rests: pl.DataFrame) -> Spent:
    """Price minutes of usage (usage_minutes.MINUTE_COLUMNS) in their order; a tier that nobody told is the default one."""
    priced = []
    for some in list(minutes.iter_slices(_PRICED_AT_ONCE)) or [minutes]:
        rows, volumes, rests = _priced(book, some, volumes, rests)
        priced.append(rows)
    rows = pl.concat(priced)
    return Spent(rows, _recent(volumes), _recent(rests), tier_rows(book, with_known_tiers(book, rows)))


def tier_rows(book: Book, rows: pl.DataFrame) -> pl.DataFrame:
    """Rows as in Spent, with known tiers, as TIER_COLUMNS. What was given away says nothing of volume steps."""
    listed = pl.when(pl.col("tier").is_in(book.unsold)).then(0).otherwise("worth")
    return rows.with_columns(listed=listed).select(*TIER_COLUMNS).cast(pl.Schema(TIER_COLUMNS))


def with_known_tiers(book: Book, rows: pl.DataFrame) -> pl.DataFrame:
    """The rows with one name for all tiers that the book does not have."""
    known = pl.when(pl.col("tier").is_in(book.tiers)).then("tier").otherwise(pl.lit(UNKNOWN_TIER))
    return rows.with_columns(known.alias("tier"))


def _priced(
    book: Book, minutes: pl.DataFrame, volumes: pl.DataFrame, rests: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Rows, volumes and rests as in Spent."""
    tier = pl.when(pl.col("tier") == "").then(pl.lit(book.default_tier)).otherwise("tier")
    minutes = minutes.with_columns(tier.alias("tier"))
    billed = minutes.get_column(book.billed)
    stepless = _without_room(book, minutes, volumes)
    named = minutes.with_columns(pl.when(stepless).then(pl.lit("")).otherwise(billed).alias(book.billed))
    rows, volumes, rests = price_minutes(book, named, volumes, rests)
    return rows.with_columns(billed), volumes, rests


def totals(before: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    """CONSUMER_TOTAL_COLUMNS with these rows added. A row counts once in each kind of consumer that it names."""
    if rows.is_empty():
        return before
    counted = rows.with_columns(
        unpriced_tokens=pl.when(pl.col("spend_micro").is_null())
        .then(pl.sum_horizontal(TOKEN_COUNTS))
        .otherwise(0),
        spend_micro=pl.col("spend_micro").fill_null(0),
    ).with_columns(pl.col(*TOKEN_COUNTS, "unpriced_tokens", "spend_micro").cast(SUM))
    # summed kind by kind: all kinds together are four times the rows
    parts = [
        _summed(
            counted.filter(pl.col(kind) != "")
            .rename({kind: "consumer"})
            .with_columns(pl.lit(kind).alias("consumer_kind"))
            .select(*CONSUMER_TOTAL_COLUMNS)
        )
        for kind in CONSUMER_KINDS
    ]
    more = _summed(pl.concat(parts))
    together = _summed(pl.concat([before, more]))
    if together.height <= MAX_SERIES:
        return together
    known = more.join(before, on=CONSUMER_KEY, how="semi")
    new = more.join(before, on=CONSUMER_KEY, how="anti")
    one = new.with_columns(
        pl.lit(OTHER).alias("consumer"), pl.lit(OTHER).alias("model_name"), tier=pl.lit(OTHER)
    )
    return _summed(pl.concat([before, known, one]))


def _summed(rows: pl.DataFrame) -> pl.DataFrame:
    amounts = list(CONSUMER_TOTAL_COLUMNS)[len(CONSUMER_KEY) :]
    return rows.group_by(CONSUMER_KEY).agg(pl.col(*amounts).sum()).sort(CONSUMER_KEY)


def _without_room(book: Book, minutes: pl.DataFrame, volumes: pl.DataFrame) -> pl.Series:
    """Whether the volume that a row would add to is a new one beyond MAX_SERIES: such rows know no steps.

    Half of the room is kept for those who are known: they go on in the next month although others flood it.
    """
    if volumes.height + minutes.height <= MAX_SERIES // 2:
        return pl.repeat(False, minutes.height, eager=True)
    keys = listed(book, minutes).select(
        "site",
        "glob",
        "tier",
        billed_kind=pl.lit(book.billed),
        billed=pl.col(book.billed),
        month=month_of(book),
    )
    counted = keys.filter((pl.col("billed") != "") & pl.col("glob").is_not_null())
    new = counted.unique(maintain_order=True).join(volumes, on=VOLUME_KEY, how="anti", maintain_order="left")
    names = ["site", "billed_kind", "billed"]
    unknown = new.join(volumes, on=names, how="anti", maintain_order="left")
    with_room = unknown.select(names).unique(maintain_order=True)
    with_room = with_room.head(max(0, MAX_SERIES // 2 - volumes.height))
    kept = new.join(
        pl.concat([volumes.select(names), with_room]), on=names, how="semi", maintain_order="left"
    )
    left = new.join(kept.head(max(0, MAX_SERIES - volumes.height)), on=VOLUME_KEY, how="anti")
    beyond = keys.join(left.with_columns(beyond=True), on=VOLUME_KEY, how="left", maintain_order="left")
    return beyond.get_column("beyond").fill_null(False)


def _recent(by_month: pl.DataFrame) -> pl.DataFrame:
    """Each site's newest month and the one before: its usage comes at most two weeks late, or is refused."""
    by_site = pl.col("month").rank("dense", descending=True).over("site")
    return by_month.filter(by_site <= 2)
