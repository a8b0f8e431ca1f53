"""What consumers spent: minutes of usage at the book's prices, and what each consumer of each kind ever spent."""

from dataclasses import dataclass
from typing import Any, Final

import polars as pl

from idlewatt.processors.economy.book import CONSUMER_KINDS, Book
from idlewatt.processors.economy.prices import VOLUME_COLUMNS, price_minutes
from idlewatt.processors.economy.tiers import TIER_COLUMNS
from idlewatt.stream.records import TOKEN_COUNTS

# Beyond it new names are booked together: a sender of a million names costs others nothing.
MAX_SERIES: Final = 200_000
OTHER: Final = "(other)"
# what the book has no such tier for
UNKNOWN_TIER: Final = "(unknown)"
CONSUMER_KEY: Final = ("site", "consumer_kind", "consumer", "model_name", "tier", "currency")
CONSUMER_TOTAL_COLUMNS: Final[dict[str, Any]] = {
    **dict.fromkeys(CONSUMER_KEY, pl.String),
    **dict.fromkeys(TOKEN_COUNTS, pl.Int64),
    "spend_micro": pl.Int64,
    # output tokens of these without a price
    "unpriced_tokens": pl.Int64,
}


@dataclass(frozen=True, slots=True)
class Spent:
    """What a fold's minutes come to."""

    # records.CONSUMER and list_micro
    rows: pl.DataFrame
    # prices.VOLUME_COLUMNS after
    volumes: pl.DataFrame
    # tiers.TIER_COLUMNS of these minutes
    tiers: pl.DataFrame


def spend(book: Book, minutes: pl.DataFrame, volumes: pl.DataFrame) -> Spent:
    """Price minutes of usage (usage_minutes.MINUTE_COLUMNS); a tier that nobody told is the default one."""
    tier = pl.when(pl.col("tier") == "").then(pl.lit(book.default_tier)).otherwise("tier")
    rows, after = price_minutes(book, minutes.with_columns(tier.alias("tier")), volumes)
    known = pl.when(pl.col("tier").is_in(book.tiers)).then("tier").otherwise(pl.lit(UNKNOWN_TIER))
    by_tier = rows.with_columns(known.alias("tier")).select(*TIER_COLUMNS)
    return Spent(rows, _bounded(after), by_tier)


def totals(before: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    """CONSUMER_TOTAL_COLUMNS with these rows added. A row counts once in each kind of consumer that it names."""
    if rows.is_empty():
        return before
    counted = rows.with_columns(
        unpriced_tokens=pl.when(pl.col("spend_micro").is_null()).then("output_tokens").otherwise(0),
        spend_micro=pl.col("spend_micro").fill_null(0),
    )
    parts = [
        counted.filter(pl.col(kind) != "")
        .rename({kind: "consumer"})
        .with_columns(pl.lit(kind).alias("consumer_kind"))
        .select(*CONSUMER_TOTAL_COLUMNS)
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


def _bounded(volumes: pl.DataFrame) -> pl.DataFrame:
    """This month and the one before, as usage comes at most a few days late; beyond MAX_SERIES the largest."""
    months = volumes.get_column("month").unique().sort(descending=True).head(2)
    recent = volumes.filter(pl.col("month").is_in(months.implode())).select(*VOLUME_COLUMNS)
    return recent if recent.height <= MAX_SERIES else recent.top_k(MAX_SERIES, by="tokens")
