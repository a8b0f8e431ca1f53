"""What consumers spent: minutes of usage at the book's prices, and what each consumer of each kind ever spent."""

from dataclasses import dataclass
from typing import Any, Final

import polars as pl

from idlewatt.processors.economy.book import CONSUMER_KINDS, Book
from idlewatt.processors.economy.prices import VOLUME_COLUMNS, price_minutes
from idlewatt.processors.economy.tiers import TIER_COLUMNS

_TOKENS: Final = ("output_tokens", "input_tokens", "cached_input_tokens")
CONSUMER_KEY: Final = ("site", "consumer_kind", "consumer", "model_name", "tier", "currency")
CONSUMER_TOTAL_COLUMNS: Final[dict[str, Any]] = {
    **dict.fromkeys(CONSUMER_KEY, pl.String),
    **dict.fromkeys(_TOKENS, pl.Int64),
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
    return Spent(rows, _this_month_and_last(after), rows.select(*TIER_COLUMNS))


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
    amounts = list(CONSUMER_TOTAL_COLUMNS)[len(CONSUMER_KEY) :]
    return pl.concat([before, *parts]).group_by(CONSUMER_KEY).agg(pl.col(*amounts).sum()).sort(CONSUMER_KEY)


def _this_month_and_last(volumes: pl.DataFrame) -> pl.DataFrame:
    """Usage comes at most a few days late."""
    months = volumes.get_column("month").unique().sort(descending=True).head(2)
    return volumes.filter(pl.col("month").is_in(months.implode())).select(*VOLUME_COLUMNS)
