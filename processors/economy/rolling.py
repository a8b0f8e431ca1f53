"""Each pool's windows of the trailing hour, as sums that rolling figures are made of.

What cannot be known of a window is told by the milliseconds for which it is known (*_ms), so that a figure over
windows of which some are unknown can be withheld.
"""

from typing import Final

import polars as pl

from idlewatt.processors.economy.pricing import HOUR_MS, POOL_WINDOW

POOL: Final = ("site", "pool")
# older windows are kept by the minute
_FINE_MS: Final = 300_000
_MINUTE_MS: Final = 60_000

_COUNTS: Final = (
    "window_ms",
    "gpu_ms",
    "dark_ms",
    "output_tokens",
    "input_tokens",
    "cached_input_tokens",
    "unpriced_tokens",
    "revenue_micro",
    "lost_micro",
    "lost_ms",
    "benchmark_micro",
    "energy_micro",
    "energy_serving_micro",
    "energy_ms",
    "capital_micro",
    "capital_serving_micro",
    "capital_ms",
    "capital_published_ms",
    "invested_ms",
    "carbon_ug",
    "carbon_ms",
    "available_mj",
    "facility_mj",
    "facility_ms",
    "facility_published_ms",
)
ROLLING_COLUMNS: Final = {
    "site": pl.String,
    "pool": pl.String,
    "window_start_ms": pl.Int64,
    **dict.fromkeys(_COUNTS, pl.Int64),
    # GPU-milliseconds x what a GPU was bought for, whole units
    "invested": pl.Float64,
}
PACKING_COLUMNS: Final = {
    "site": pl.String,
    "pool": pl.String,
    "model_name": pl.String,
    "minute_start_ms": pl.Int64,
    # thousandths of a GPU: the most that served in a window of the minute, the fewest that held the model
    "served": pl.Int64,
    "held": pl.Int64,
}


def window_sums(costed: pl.DataFrame, losses: pl.DataFrame, priced: pl.DataFrame) -> pl.DataFrame:
    """ROLLING_COLUMNS of costs.costed(), pricing.idle_losses() and pricing.priced_tokens() rows."""
    parts = [_of_power(costed, losses), _of_tokens(priced)]
    return pl.concat([part.select(*ROLLING_COLUMNS) for part in parts])


def _of_power(costed: pl.DataFrame, losses: pl.DataFrame) -> pl.DataFrame:
    serving = pl.col("state") == "serving"
    drawn, held = pl.col("draw_mj") != 0, pl.col("gpu_ms") != 0
    sums = costed.group_by(POOL_WINDOW).agg(
        pl.col("gpu_ms", "energy_micro", "capital_micro", "carbon_ug", "facility_mj", "invested").sum(),
        dark_ms=pl.col("gpu_ms").filter(pl.col("state") == "dark").sum(),
        energy_serving_micro=pl.col("energy_micro").filter(serving).sum(),
        capital_serving_micro=pl.col("capital_micro").filter(serving).sum(),
        energy_ms=_known("energy_micro", drawn),
        capital_ms=_known("capital_micro", held),
        capital_published_ms=_where(((pl.col("origin") == "published") & held).any()),
        invested_ms=_known("invested", held),
        carbon_ms=_known("carbon_ug", drawn),
        available_mj=pl.col("draw_mj").sum() + pl.col("headroom_mj").sum(),
        facility_ms=_known("facility_mj", held),
        facility_published_ms=_where((pl.col("facility_origin") == "published").any()),
    )
    # half a loss is a wrong one: none of a window in which some idle watts could not be priced
    withheld = (pl.col("lost_micro").is_null() & (pl.col("energy_mj") != 0)).any()
    lost = losses.group_by(POOL_WINDOW).agg(
        pl.col("lost_micro", "benchmark_micro").sum(), withheld.alias("withheld")
    )
    is_known = pl.col("withheld").fill_null(False).not_()
    return sums.join(lost, on=POOL_WINDOW, how="left").with_columns(
        lost_micro=pl.when(is_known).then(pl.col("lost_micro").fill_null(0)).otherwise(0),
        lost_ms=pl.when(is_known).then("window_ms").otherwise(0),
        benchmark_micro=pl.col("benchmark_micro").fill_null(0),
        **dict.fromkeys(
            ("output_tokens", "input_tokens", "cached_input_tokens", "unpriced_tokens", "revenue_micro"),
            pl.lit(0, pl.Int64),
        ),
    )


def _of_tokens(priced: pl.DataFrame) -> pl.DataFrame:
    tokens = ("output_tokens", "input_tokens", "cached_input_tokens")
    sums = priced.group_by("site", "pool", "window_start_ms").agg(
        pl.col(*tokens).sum(),
        unpriced_tokens=pl.col("output_tokens").filter(pl.col("earned").is_null()).sum(),
        revenue_micro=((pl.col("earned") + 500_000) // 1_000_000).cast(pl.Int64).sum(),
    )
    others = [name for name in ROLLING_COLUMNS if name not in sums.columns]
    return sums.with_columns(pl.lit(0, ROLLING_COLUMNS[name]).alias(name) for name in others)


def _known(amount: str, counts: pl.Expr) -> pl.Expr:
    """The window's length where every row that counts has the amount, else 0."""
    return _where((pl.col(amount).is_null() & counts).any().not_())


def _where(condition: pl.Expr) -> pl.Expr:
    return pl.when(condition).then(pl.col("window_ms").first()).otherwise(pl.lit(0, pl.Int64))


def packing(power: pl.DataFrame) -> pl.DataFrame:
    """PACKING_COLUMNS of rows of power: how many GPUs a model was held by, and how many of them served."""
    share = 1000 * pl.col("gpu_ms")
    windows = (
        power.filter((pl.col("model_name") != "") & pl.col("state").is_in(["serving", "idle_loaded"]))
        .group_by(*POOL_WINDOW, "model_name")
        .agg(
            # up for what is needed, down for what is there
            served=-(-share.filter(pl.col("state") == "serving").sum() // pl.col("window_ms").first()),
            held=share.sum() // pl.col("window_ms").first(),
        )
        .with_columns(minute_start_ms=pl.col("window_start_ms") // _MINUTE_MS * _MINUTE_MS)
    )
    return windows.select(*PACKING_COLUMNS)


def packed(rows: pl.DataFrame, ends: pl.DataFrame) -> pl.DataFrame:
    """The rows by the minute, of the hour before each pool's newest window."""
    kept = rows.join(ends, on=list(POOL), how="left").filter(_recent(pl.col("minute_start_ms")))
    return kept.group_by(*POOL, "model_name", "minute_start_ms").agg(
        pl.col("served").max(), pl.col("held").min()
    )


def on_time(rows: pl.DataFrame, ends_before: pl.DataFrame) -> pl.DataFrame:
    """Without amendments of windows that were closed before: they stay out of the rolling figures."""
    live = (pl.col("window_start_ms") >= pl.col("end_ms")).fill_null(True)
    return rows.join(ends_before, on=list(POOL), how="left").filter(live).drop("end_ms")


def aged(rows: pl.DataFrame, ends: pl.DataFrame) -> pl.DataFrame:
    """ROLLING_COLUMNS of the hour before each pool's newest window; windows that are no longer new by the minute."""
    start = pl.col("window_start_ms")
    is_old = (start < pl.col("end_ms") - _FINE_MS).fill_null(False)
    kept = rows.join(ends, on=list(POOL), how="left").filter(_recent(start))
    kept = kept.with_columns(
        window_start_ms=pl.when(is_old).then(start // _MINUTE_MS * _MINUTE_MS).otherwise(start)
    )
    key = (*POOL, "window_start_ms")
    return kept.group_by(key).agg(pl.col(*_COUNTS, "invested").sum()).select(*ROLLING_COLUMNS)


def _recent(start: pl.Expr) -> pl.Expr:
    return (start >= pl.col("end_ms") - HOUR_MS).fill_null(True)
