"""Ledger rows to money rows. Money is a pure function of quantities and the price book, so it can be restated.

Amounts are micro-units of the currency, each row rounded to the nearest; prices are micro-units per million
tokens, so tokens x price / 10^6 is an amount.
"""

from typing import Final

import polars as pl

from idlewatt.processors.economy.config import MICRO, EconomyConfig
from idlewatt.stream import records
from idlewatt.stream.decoding import frame_schema

HOUR_MS: Final = 3_600_000
_IDLE_PARTS: Final = ("draw", "headroom")
BENCHMARK_CURRENCY: Final = "USD"
_POOL_WINDOW: Final = ("site", "pool", "window_start_ms", "window_ms")
# 150 bn USD a year from 1 GW: 150e15 micro-USD / (1e9 W x 31,536,000 s x 1000 mJ/J) = 25 / 5256 micro-USD per mJ
BENCHMARK_NUMERATOR: Final = 25
BENCHMARK_DENOMINATOR: Final = 5256

MIX_COLUMNS: Final = {
    "site": pl.String,
    "pool": pl.String,
    "model_name": pl.String,
    "window_start_ms": pl.Int64,
    "output_tokens": pl.Int64,
    # what the window's tokens of all kinds bring, in micro-units x 10^6
    "worth": pl.Int64,
}

WINDOW_LOSS_COLUMNS: Final = {
    "site": pl.String,
    "pool": pl.String,
    "window_start_ms": pl.Int64,
    "window_ms": pl.Int64,
    "kind": pl.String,
    "currency": pl.String,
    "amount_micro": pl.Int64,
}


def _rounded(numerator: pl.Expr, denominator: int) -> pl.Expr:
    return ((numerator + denominator // 2) // denominator).cast(pl.Int64)


def priced_tokens(tokens: pl.DataFrame, config: EconomyConfig) -> pl.DataFrame:
    """Token rows with `worth` (micro-units x 10^6), null where the price book does not name the model."""
    models = tokens.get_column("model_name").unique().to_list()
    prices = config.price_frame(models)
    worth = pl.sum_horizontal(
        pl.col(f"{kind}_tokens") * pl.col(f"price_{kind}") for kind in ("output", "input", "cached_input")
    )
    priced = pl.col("price_output").is_not_null()
    return (
        tokens.join(prices, on="model_name", how="left", maintain_order="left")
        .with_columns(worth=pl.when(priced).then(worth))
        .drop(prices.columns[1:])
    )


def mix_rows(priced: pl.DataFrame) -> pl.DataFrame:
    """What the realised price is made of: MIX_COLUMNS and src of priced token rows."""
    return priced.filter(pl.col("worth").is_not_null()).select(*MIX_COLUMNS, "src")


def revenue_rows(priced: pl.DataFrame, config: EconomyConfig) -> pl.DataFrame:
    """Revenue per pool, window and model (records.MoneyRow).

    Each row is rounded by itself, so that sums do not depend on which rows are read together.
    """
    sold = priced.filter(pl.col("worth").is_not_null() & (pl.col("worth") != 0))
    rows = sold.group_by(*_POOL_WINDOW, "model_name").agg(
        _rounded(pl.col("worth"), MICRO).sum().alias("amount_micro")
    )
    return _money(
        rows.with_columns(*(pl.lit("").alias(name) for name in ("state", "part", "demand"))),
        "revenue",
        config.currency,
    )


def idle_losses(power: pl.DataFrame, mix: pl.DataFrame, config: EconomyConfig) -> pl.DataFrame:
    """Idle power rows by part that counts as lost, with lost_micro (null where withheld) and benchmark_micro.

    `mix`: mix_rows() of all token rows so far, those read together with `power` included; `src` tells their order.
    """
    idle = _idle_parts(power, config)
    priced = idle.join(
        _blended(idle, mix, config), on=["site", "pool", "model_name", "window_start_ms", "src"], how="left"
    )
    amount = pl.col("lost_tokens").cast(pl.Int128) * pl.col("price").cast(pl.Int128)
    return priced.with_columns(
        lost_micro=_rounded(amount, MICRO),
        benchmark_micro=_rounded(pl.col("energy_mj") * BENCHMARK_NUMERATOR, BENCHMARK_DENOMINATOR),
    )


def loss_rows(losses: pl.DataFrame, config: EconomyConfig) -> pl.DataFrame:
    """Lost revenue and the benchmark loss (records.MoneyRow)."""
    lost = losses.filter(pl.col("lost_micro").is_not_null()).rename({"lost_micro": "amount_micro"})
    benchmark = losses.rename({"benchmark_micro": "amount_micro"})
    return pl.concat(
        [
            _money(lost, "lost_revenue", config.currency),
            _money(benchmark, "benchmark_lost_revenue", BENCHMARK_CURRENCY),
        ]
    )


def window_losses(power: pl.DataFrame, losses: pl.DataFrame, config: EconomyConfig) -> pl.DataFrame:
    """What each pool lost in each window: WINDOW_LOSS_COLUMNS. Nothing idle is a loss of 0.

    No row of lost revenue for a window in which some idle watts could not be priced: half a loss is a wrong one.
    """
    windows = power.select(*_POOL_WINDOW).unique()
    sums = losses.group_by(_POOL_WINDOW).agg(
        pl.col("lost_micro").sum(),
        (pl.col("lost_micro").is_null() & (pl.col("energy_mj") != 0)).any().alias("withheld"),
        pl.col("benchmark_micro").sum(),
    )
    rows = windows.join(sums, on=_POOL_WINDOW, how="left").with_columns(
        pl.col("lost_micro", "benchmark_micro").fill_null(0), pl.col("withheld").fill_null(False)
    )
    parts = [
        rows.filter(~pl.col("withheld")).with_columns(
            kind=pl.lit("lost_revenue"), currency=pl.lit(config.currency), amount_micro="lost_micro"
        ),
        rows.with_columns(
            kind=pl.lit("benchmark_lost_revenue"),
            currency=pl.lit(BENCHMARK_CURRENCY),
            amount_micro="benchmark_micro",
        ),
    ]
    return pl.concat(part.select(*WINDOW_LOSS_COLUMNS) for part in parts)


def _idle_parts(power: pl.DataFrame, config: EconomyConfig) -> pl.DataFrame:
    """One row per idle state and part that counts as lost: energy_mj and lost_tokens."""
    parts = [
        power.filter(pl.col("state") == state).select(
            *_POOL_WINDOW,
            "src",
            "model_name",
            "state",
            "demand",
            pl.lit(part).alias("part"),
            pl.col(f"{part}_mj").alias("energy_mj"),
            pl.col(f"lost_tokens_{part}").alias("lost_tokens"),
        )
        for state, _, part in (counted.partition(".") for counted in config.lost_revenue_counts)
    ]
    if not parts:
        parts = [_idle_parts(power.clear(), EconomyConfig())]
    return pl.concat(parts)


def _blended(lost: pl.DataFrame, mix: pl.DataFrame, config: EconomyConfig) -> pl.DataFrame:
    """The realised price per output token, input and cached revenue included, over the hour up to each window.

    Of the model, else (GPUs without a model) of the pool; where neither sold anything, the list price of output
    alone. No row where the price book has nothing either: then the loss in money is withheld.
    Only what the ledger told before a row counts for it: an amendment that comes later changes no price, whether
    it is read together with the row or not. Columns site, pool, model_name, window_start_ms, src, price (micro-units
    per million output tokens).
    """
    key = ("site", "pool", "model_name")
    moment = ("window_start_ms", "src")
    wanted = lost.select(*key, *moment).unique()
    pool_mix = mix.with_columns(pl.lit("").alias("model_name"))
    known = pl.concat([mix, pool_mix]).rename({"window_start_ms": "sold_ms", "src": "sold_src"})
    within = (
        (pl.col("sold_ms") <= pl.col("window_start_ms"))
        & (pl.col("sold_ms") > pl.col("window_start_ms") - HOUR_MS)
        & (pl.col("sold_src") < pl.col("src"))
    )
    realised = (
        wanted.join(known, on=list(key))
        .filter(within)
        .group_by(*key, *moment)
        .agg(pl.col("output_tokens").sum(), pl.col("worth").sum())
        .filter(pl.col("output_tokens") > 0)
        .select(
            *key,
            *moment,
            (pl.col("worth") / pl.col("output_tokens")).round().cast(pl.Int64).alias("price"),
        )
    )
    listed = config.price_frame(wanted.get_column("model_name").unique().to_list())
    return (
        wanted.join(realised, on=[*key, *moment], how="left")
        .join(listed.select("model_name", "price_output"), on="model_name", how="left")
        .select(*key, *moment, pl.coalesce("price", "price_output").alias("price"))
        .filter(pl.col("price").is_not_null())
    )


def _money(rows: pl.DataFrame, kind: str, currency: str) -> pl.DataFrame:
    return (
        rows.with_columns(pl.lit(kind).alias("kind"), pl.lit(currency).alias("currency"))
        .filter(pl.col("amount_micro") != 0)
        .select(*frame_schema(records.MONEY))
    )
