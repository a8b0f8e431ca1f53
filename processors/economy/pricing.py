"""Ledger rows to money rows. Money is a pure function of quantities and the book, so it can be restated.

Amounts are micro-units of the currency, each row rounded up or down by turns, see by_turns(); prices are micro-units per
million tokens, so tokens x price / 10^6 is an amount.
"""

from collections.abc import Sequence
from typing import Final

import polars as pl

from idlewatt.processors.amounts import SUM, by_turns, rounded
from idlewatt.processors.at_once import at_once
from idlewatt.processors.economy import prices, tiers
from idlewatt.processors.economy.book import MICRO, Book
from idlewatt.processors.economy.config import EVERY_IDLE_PART, EconomyConfig
from idlewatt.stream import records
from idlewatt.stream.clock import HOUR_MS
from idlewatt.stream.frames import empty_frame, frame_schema
from idlewatt.stream.records import POOL

BENCHMARK_CURRENCY: Final = "USD"
POOL_WINDOW: Final = (*POOL, "window_start_ms", "window_ms")
# 150 bn USD a year from 1 GW: 150e15 micro-USD / (1e9 W x 31,536,000 s x 1000 mJ/J) = 25 / 5256 micro-USD per mJ
BENCHMARK_NUMERATOR: Final = 25
BENCHMARK_DENOMINATOR: Final = 5256
# how far back a pool's mix goes: two hours, so that a row that is an hour late has the hour up to its window
MIX_MS: Final = 2 * HOUR_MS
# Times the list price of output. What brings more lives by its input: classifiers, the prefill half of a pair. Yardsticks
# are of output and of a day, so that no watt may have made so many of such tokens: it counts for ever less, and from the
# square of it on for no more than its list price.
MOST_PER_OUTPUT: Final = 10
_PRICED_BY: Final = ["site", "pool", "yardstick_model", "window_start_ms", "priced_ms", "src"]
# rows for each of which an hour of the mix is looked through
_PRICED_AT_ONCE: Final = 1000

MIX_COLUMNS: Final = {
    "site": pl.String,
    "pool": pl.String,
    "model_name": pl.String,
    "window_start_ms": pl.Int64,
    "output_tokens": pl.Int64,
    # what the window's tokens of all kinds bring, in micro-units x 10^6
    "earned": pl.Int128,
}


def priced_tokens(tokens: pl.DataFrame, shares: pl.DataFrame, book: Book) -> pl.DataFrame:
    """Token rows by tier, with `worth`, what they are listed at, and `earned`, what they bring (micro-units x 10^6).

    A tier that is not sold brings 0; else both are null where the book has no price. What a tier brings is less than its
    list price by the volume steps that its usage of the trailing hour reached.
    """
    rows = prices.listed(book, tiers.split(tokens, shares, book.default_tier))
    unsold = pl.col("tier").is_in(book.unsold)
    # worth x owed // listed, of which the product alone may need more than 128 bits
    owed, listed = pl.col("owed"), pl.col("listed")
    discounted = pl.col("worth") // listed * owed + pl.col("worth") % listed * owed // listed
    earned = (
        pl.when(unsold)
        .then(pl.lit(0, pl.Int128))
        .when(pl.col("worth").is_null())
        .then(None)
        .when(listed > 0)
        .then(discounted)
        .otherwise("worth")
    )
    return rows.with_columns(earned=earned.cast(pl.Int128))


def mix_rows(priced: pl.DataFrame) -> pl.DataFrame:
    """What the realised price is made of: MIX_COLUMNS and src of priced token rows."""
    key = ("site", "pool", "model_name", "window_start_ms", "src")
    return at_once(
        priced.lazy()
        # what of a model without a price is given away says nothing of what the rest would bring
        .filter(pl.col("earned").is_not_null() & pl.col("worth").is_not_null())
        .group_by(key)
        .agg(pl.col("output_tokens").sum(), pl.col("earned").sum())
        .select(*MIX_COLUMNS, "src")
    )


def revenue_rows(priced: pl.DataFrame, book: Book) -> pl.DataFrame:
    """Revenue, and what tokens of tiers that are not sold are listed at, by model and tier (records.MoneyRow).

    Each row is rounded by itself, so that sums do not depend on which rows are read together.
    """
    if not book.price:
        return empty_frame(records.MONEY)
    parts = []
    for kind, worth, rows in (
        ("revenue", "earned", priced.lazy()),
        ("acquisition_cost", "worth", priced.lazy().filter(pl.col("tier").is_in(book.unsold))),
    ):
        sums = (
            rows.filter(pl.col(worth).is_not_null() & (pl.col(worth) != 0))
            .group_by(*POOL_WINDOW, "model_name", "tier")
            .agg(by_turns(pl.col(worth), MICRO).cast(SUM).sum().alias("amount_micro"))
            # more than a row of money holds is not known
            .with_columns(pl.col("amount_micro").cast(pl.Int64, strict=False))
            .filter(pl.col("amount_micro").is_not_null())
            .with_columns(pl.lit("").alias(name) for name in ("state", "part", "demand"))
        )
        parts.append(_money(sums, kind, book.currency))
    return at_once(pl.concat(parts))


def idle_losses(
    power: pl.DataFrame,
    mix: pl.DataFrame,
    book: Book,
    config: EconomyConfig,
    ends: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """Idle power rows by part that counts as lost, with lost_micro (null where withheld) and benchmark_micro.

    `mix`: mix_rows() of all token rows so far, those read together with `power` included; `src` tells their order.
    `ends`: site, pool and end_ms of windows that were read before `power`, where the mix goes MIX_MS back and no further.
    """
    idle = _idle_parts(power, config.lost_revenue_counts)
    idle = idle.with_columns(priced_ms="window_start_ms") if ends is None else _priced_ms(idle, power, ends)
    amount = pl.col("lost_tokens").cast(pl.Int128) * pl.col("price").cast(pl.Int128)
    return at_once(
        idle.lazy()
        .join(
            _blended(idle, mix, book, config.min_tokens).lazy(),
            on=_PRICED_BY,
            how="left",
        )
        .with_columns(
            lost_micro=by_turns(amount, MICRO),
            benchmark_micro=by_turns(
                pl.col("energy_mj").cast(pl.Int128) * BENCHMARK_NUMERATOR, BENCHMARK_DENOMINATOR
            ),
        )
    )


def loss_rows(losses: pl.DataFrame, book: Book) -> pl.DataFrame:
    """Lost revenue and the benchmark loss (records.MoneyRow)."""
    found = losses.lazy().with_columns(tier=pl.lit(None, pl.String))
    lost = found.filter(pl.col("lost_micro").is_not_null()).rename({"lost_micro": "amount_micro"})
    benchmark = found.rename({"benchmark_micro": "amount_micro"})
    return at_once(
        pl.concat(
            [
                _money(lost, "lost_revenue", book.currency),
                _money(benchmark, "benchmark_lost_revenue", BENCHMARK_CURRENCY),
            ]
        )
    )


def _idle_parts(power: pl.DataFrame, counts: Sequence[str]) -> pl.DataFrame:
    """One row per idle state and part that counts as lost: energy_mj and lost_tokens."""
    parts = [
        power.lazy()
        .filter(pl.col("state") == state)
        .select(
            *POOL_WINDOW,
            "src",
            "model_name",
            # rows of older meters do not tell it
            pl.coalesce("yardstick_model", "model_name").alias("yardstick_model"),
            "state",
            "demand",
            pl.lit(part).alias("part"),
            pl.col(f"{part}_mj").alias("energy_mj"),
            pl.col(f"lost_tokens_{part}").alias("lost_tokens"),
        )
        for state, _, part in (counted.partition(".") for counted in counts or EVERY_IDLE_PART)
    ]
    rows = at_once(pl.concat(parts))
    return rows if counts else rows.clear()


def _priced_ms(idle: pl.DataFrame, power: pl.DataFrame, ends: pl.DataFrame) -> pl.DataFrame:
    """Add the moment that the hour of a row's price ends at: that of its window, or the earliest whose hour is known.

    What is known goes by the rows up to its message, whichever messages are read together.
    """
    end_ms = pl.col("window_start_ms") + pl.col("window_ms")
    told = power.group_by(*POOL, "src").agg(end_ms.max().alias("end_ms")).sort("src")
    told = told.join(ends, on=POOL, how="left", suffix="_before").select(
        *POOL, "src", newest_ms=pl.max_horizontal("end_ms_before", pl.col("end_ms").cum_max().over(POOL))
    )
    earliest_ms = pl.col("newest_ms") - (MIX_MS - HOUR_MS)
    return (
        idle.join(told, on=[*POOL, "src"], how="left")
        .with_columns(priced_ms=pl.max_horizontal("window_start_ms", earliest_ms))
        .drop("newest_ms")
    )


def _blended(lost: pl.DataFrame, mix: pl.DataFrame, book: Book, min_tokens: int) -> pl.DataFrame:
    """The realised price per output token, input and cached revenue included, over the hour up to each `priced_ms`.

    Of the model whose yield the tokens are, else (GPUs of which no model is known) of those of the pool together. A model
    that made fewer than `min_tokens` says nothing, and one that brought more than MOST_PER_OUTPUT ever less: a prompt of
    100,000 tokens is no price of the one token that was made of it. Where none does, the list price of output alone on the
    default tier, without a model the least that there is; no row where the price book has none: then the loss in money is
    withheld.
    Only what the ledger told before a row counts for it: an amendment that comes later changes no price, whether
    it is read together with the row or not. Columns _PRICED_BY and price (micro-units per million output tokens).
    """
    wanted = lost[_PRICED_BY].unique()
    if wanted.is_empty() or (mix.is_empty() and not book.price):
        return wanted.clear().with_columns(price=pl.lit(None, pl.Int64))
    known = (
        mix.lazy()
        .rename({"window_start_ms": "sold_ms", "src": "sold_src"})
        .with_columns(yardstick_model="model_name")
    )
    if (wanted["yardstick_model"] == "").any():
        known = pl.concat([known, known.with_columns(pl.lit("").alias("yardstick_model"))])
    within = (
        (pl.col("sold_ms") <= pl.col("priced_ms"))
        & (pl.col("sold_ms") > pl.col("priced_ms") - HOUR_MS)
        & (pl.col("sold_src") < pl.col("src"))
    )
    # an hour lies in two of the clock's: a join without them has a row for each two windows of a pool, days apart or not
    hour = pl.col("sold_ms") // HOUR_MS
    by_hour = at_once(pl.concat([known.with_columns(hour=hour), known.with_columns(hour=hour + 1)]))
    sold = pl.concat(
        at_once(
            some.lazy()
            .with_columns(hour=pl.col("priced_ms") // HOUR_MS)
            .join(by_hour.lazy(), on=["site", "pool", "yardstick_model", "hour"])
            .filter(within)
            .group_by(*_PRICED_BY, "model_name")
            .agg(pl.col("output_tokens").cast(pl.Int128).sum(), pl.col("earned").sum())
            .filter(pl.col("output_tokens") >= min_tokens)
        )
        for some in wanted.iter_slices(_PRICED_AT_ONCE)
    )
    # whatever tier they were sold on: the default one may be for what is given away
    listed = prices.highest_output(book, sold).lazy()
    realised = (
        sold.lazy()
        .join(listed, on=["model_name", "window_start_ms"], how="left")
        .with_columns(earned=_of_output(pl.col("earned"), pl.col("output_tokens") * pl.col("price_output")))
        .group_by(_PRICED_BY)
        .agg(pl.col("output_tokens").sum(), pl.col("earned").sum())
        .select(*_PRICED_BY, rounded(pl.col("earned"), pl.col("output_tokens")).alias("price"))
    )
    stand_in = prices.default_output(book, wanted.rename({"yardstick_model": "model_name"})).lazy()
    return at_once(
        wanted.lazy()
        .join(realised, on=_PRICED_BY, how="left")
        .join(
            stand_in,
            left_on=["yardstick_model", "window_start_ms"],
            right_on=["model_name", "window_start_ms"],
            how="left",
        )
        .select(*_PRICED_BY, pl.coalesce("price", "price_output").alias("price"))
        .filter(pl.col("price").is_not_null())
    )


def _of_output(earned: pl.Expr, listed: pl.Expr) -> pl.Expr:
    """What tokens brought, see MOST_PER_OUTPUT; `listed`: what their output alone is listed at, null if it is not."""
    thousandths = earned * 1000 // listed
    faded = listed * (MOST_PER_OUTPUT**2 * 1000) // thousandths
    return (
        pl.when(listed.is_null() | (earned <= MOST_PER_OUTPUT * listed))
        .then(earned)
        .when(listed > 0)
        .then(pl.max_horizontal(faded, listed))
        .otherwise(0)
    )


def _money(rows: pl.LazyFrame, kind: str, currency: str) -> pl.LazyFrame:
    return (
        rows.with_columns(
            pl.lit(kind).alias("kind"),
            pl.lit(currency).alias("currency"),
            pl.lit(None, pl.String).alias("origin"),
        )
        .filter(pl.col("amount_micro") != 0)
        .select(*frame_schema(records.MONEY))
    )
