"""What watts and GPU-hours cost: energy and capital cost of each row of power, and the carbon of its energy.

On the usage basis a cost is that of the state serving; on the allocation basis that of all states. Both are sums of
the same rows.
"""

from typing import Final

import polars as pl

from idlewatt.processors.amounts import by_turns, rounded
from idlewatt.processors.at_once import at_once
from idlewatt.processors.economy.book import MICRO, Book
from idlewatt.processors.economy.capital import capital_frame
from idlewatt.processors.economy.tariff import per_kwh
from idlewatt.stream import records
from idlewatt.stream.clock import HOUR_MS
from idlewatt.stream.frames import frame_schema

_MJ_PER_KWH: Final = 3_600_000_000


def costed(power: pl.DataFrame, book: Book) -> pl.DataFrame:
    """Rows of power with energy_micro and capital_micro, null where nobody says what it costs.

    Also `origin` of the capital cost, carbon_ug (null without an intensity), invested (GPU-milliseconds x what a GPU
    was bought for, whole units, Float64), facility_mj (available energy at the utility, null if unknown) and
    facility_origin. Each row is rounded by itself, see by_turns().
    """
    pue = MICRO if book.tariff.pue is None else book.tariff.pue
    drawn = pl.col("draw_mj").cast(pl.Int128) * pue
    grams = book.tariff.carbon_g_per_kwh
    available_mj = pl.col("draw_mj") + pl.col("headroom_mj")
    at_utility = (
        pl.col("gpu_ms") * pl.col("utility_w")
        if book.tariff.pue is None
        else rounded(available_mj.cast(pl.Int128) * pue, MICRO)
    )
    return at_once(
        power.lazy()
        .join(per_kwh(book, power.get_column("window_start_ms")).lazy(), on="window_start_ms", how="left")
        .join(
            capital_frame(book, power.get_column("product").unique()).lazy(),
            on="product",
            how="left",
            maintain_order="left",
        )
        .with_columns(
            energy_micro=by_turns(drawn * pl.col("per_kwh"), _MJ_PER_KWH * MICRO),
            capital_micro=by_turns(pl.col("gpu_ms").cast(pl.Int128) * pl.col("per_gpu_hour"), HOUR_MS),
            carbon_ug=pl.lit(None, pl.Int64)
            if grams is None
            else by_turns(drawn * grams, _MJ_PER_KWH * MICRO),
            invested=pl.col("gpu_ms").cast(pl.Float64) * pl.col("bought_for") / MICRO,
            facility_mj=at_utility,
            facility_origin=pl.lit("published" if book.tariff.pue is None else "book"),
        )
    )


def cost_rows(rows: pl.DataFrame, book: Book) -> pl.DataFrame:
    """Energy cost and capital cost of costed() rows, as records.MoneyRow."""
    shared = [name for name in frame_schema(records.MONEY) if name in rows.columns and name != "origin"]
    lacking = (pl.lit("").alias("part"), pl.lit(book.currency).alias("currency"))
    nobody = pl.lit(None, pl.String)
    parts = [
        rows.lazy()
        .filter(pl.col(amount).is_not_null() & (pl.col(amount) != 0))
        .select(
            *shared,
            *lacking,
            pl.lit(kind).alias("kind"),
            pl.col(amount).alias("amount_micro"),
            nobody.alias("tier"),
            origin.alias("origin"),
        )
        for kind, amount, origin in (
            ("energy_cost", "energy_micro", nobody),
            ("capital_cost", "capital_micro", pl.col("origin")),
        )
    ]
    return at_once(pl.concat(parts).select(*frame_schema(records.MONEY)))
