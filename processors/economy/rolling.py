"""Each pool's windows of the trailing hour, as sums that rolling figures are made of.

What cannot be known of a window is told by the milliseconds for which it is known (*_ms), so that a figure over
windows of which some are unknown can be withheld.
"""

from collections.abc import Mapping
from typing import Final

import polars as pl

from idlewatt.processors.amounts import by_turns
from idlewatt.processors.at_once import at_once
from idlewatt.processors.blind_nodes import NODE_WINDOW, UNMETERED, blind, with_blind
from idlewatt.processors.economy.book import MICRO
from idlewatt.processors.economy.pricing import POOL_WINDOW
from idlewatt.stream.clock import HOUR_MS, MINUTE_MS
from idlewatt.stream.records import POOL, TOKEN_COUNTS

# older windows are kept by the minute
_FINE_MS: Final = 300_000
# What engines made in other windows, as before their pool's first GPU was read, would stand over the costs of these.
HAS_GPU_TIME: Final = pl.col("gpu_ms").sum().over(*POOL, "window_start_ms") > 0

_COUNTS: Final = (
    "window_ms",
    "gpu_ms",
    "dark_ms",
    *TOKEN_COUNTS,
    "unpriced_tokens",
    "revenue_micro",
    *UNMETERED.values(),
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
    "read_ms",
    "unread_ms",
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


def window_sums(
    costed: pl.DataFrame, losses: pl.DataFrame, priced: pl.DataFrame, tokens: pl.DataFrame
) -> pl.LazyFrame:
    """ROLLING_COLUMNS of costs.costed(), pricing.idle_losses() and pricing.priced_tokens() rows, and of the ledger's tokens."""
    nodes = blind(tokens)
    return pl.concat(
        [
            _of_power(costed.lazy(), losses.lazy()),
            _of_tokens(with_blind(priced, nodes).lazy()),
            _of_engines(with_blind(tokens, nodes).lazy()),
        ]
    )


def _of_power(costed: pl.LazyFrame, losses: pl.LazyFrame) -> pl.LazyFrame:
    sums = costed.group_by(POOL_WINDOW).agg(_POWER_SUMS)
    lost = losses.group_by(POOL_WINDOW).agg(_LOSS_SUMS)
    return sums.join(lost, on=POOL_WINDOW, how="left").select(_OF_POWER)


def _of_tokens(priced: pl.LazyFrame) -> pl.LazyFrame:
    earned = priced.with_columns(_REVENUE)
    return earned.group_by("site", "pool", "window_start_ms").agg(_TOKEN_SUMS).select(_OF_TOKENS)


def _of_engines(tokens: pl.LazyFrame) -> pl.LazyFrame:
    """For how long engines were read and not read. One whose other model was read only lacks a model that it unloaded.

    One whose GPUs are not all read is as good as not read; nobody misses one that has stopped.
    """
    engine = (*NODE_WINDOW, "engine")
    # what comes late takes back what was silent
    models = tokens.group_by(*engine, "model_name").agg(
        pl.col("measured_ms").sum(),
        pl.when(pl.col("stopped").any()).then(0).otherwise(pl.col("silent_ms").sum()).alias("silent_ms"),
        pl.col("blind").any(),
    )
    engines = models.group_by(engine).agg(
        read_ms=pl.col("measured_ms").max(), silent_ms=pl.col("silent_ms").min(), blind=pl.col("blind").any()
    )
    read_ms = pl.col("read_ms")
    return (
        engines.group_by("site", "pool", "window_start_ms")
        .agg(
            read_ms=read_ms.filter(~pl.col("blind")).sum(),
            unread_ms=pl.col("silent_ms").sum() + read_ms.filter("blind").sum(),
        )
        .select(_OF_ENGINES)
    )


def _known(amount: str, counts: pl.Expr) -> pl.Expr:
    """The window's length where every row that counts has the amount, else 0."""
    return _where((pl.col(amount).is_null() & counts).any().not_())


def _where(condition: pl.Expr) -> pl.Expr:
    return pl.when(condition).then(pl.col("window_ms").first()).otherwise(pl.lit(0, pl.Int64))


def _columns(found: Mapping[str, pl.Expr]) -> tuple[pl.Expr, ...]:
    """ROLLING_COLUMNS: what is found, else 0."""
    return tuple(found.get(name, pl.lit(0, dtype)).alias(name) for name, dtype in ROLLING_COLUMNS.items())


# Expressions are made once: these take longer to make than to evaluate.
_SERVING: Final = pl.col("state") == "serving"
_DRAWN: Final = pl.col("draw_mj") != 0
_HELD: Final = pl.col("gpu_ms") != 0
_POWER_SUMS: Final = (
    pl.col("gpu_ms", "energy_micro", "capital_micro", "carbon_ug", "facility_mj", "invested").sum(),
    pl.col("gpu_ms").filter(pl.col("state") == "dark").sum().alias("dark_ms"),
    pl.col("energy_micro").filter(_SERVING).sum().alias("energy_serving_micro"),
    pl.col("capital_micro").filter(_SERVING).sum().alias("capital_serving_micro"),
    _known("energy_micro", _DRAWN).alias("energy_ms"),
    _known("capital_micro", _HELD).alias("capital_ms"),
    _where(((pl.col("origin") == "published") & _HELD).any()).alias("capital_published_ms"),
    _known("invested", _HELD).alias("invested_ms"),
    _known("carbon_ug", _DRAWN).alias("carbon_ms"),
    (pl.col("draw_mj").sum() + pl.col("headroom_mj").sum()).alias("available_mj"),
    _known("facility_mj", _HELD).alias("facility_ms"),
    _where((pl.col("facility_origin") == "published").any()).alias("facility_published_ms"),
)
_LOSS_SUMS: Final = (
    pl.col("lost_micro", "benchmark_micro").sum(),
    # half a loss is a wrong one: none of a window in which some idle watts could not be priced
    (pl.col("lost_micro").is_null() & (pl.col("energy_mj") != 0)).any().alias("withheld"),
)
_REVENUE: Final = by_turns(pl.col("earned"), MICRO).alias("revenue_micro")
_TOKEN_SUMS: Final = (
    pl.col(*UNMETERED).sum(),
    *(pl.col(name).filter("blind").sum().alias(unmetered) for name, unmetered in UNMETERED.items()),
    # of all kinds: what embeds or ranks makes no output
    pl.sum_horizontal(TOKEN_COUNTS).filter(pl.col("earned").is_null()).sum().alias("unpriced_tokens"),
)
_LOSS_IS_KNOWN: Final = pl.col("withheld").fill_null(False).not_()
_TOKEN_COLUMNS: Final = (
    *TOKEN_COUNTS,
    "unpriced_tokens",
    "revenue_micro",
    *UNMETERED.values(),
)
_ENGINE_COLUMNS: Final = ("read_ms", "unread_ms")
_POWER_COLUMNS: Final = [name for name in ROLLING_COLUMNS if name not in (*_TOKEN_COLUMNS, *_ENGINE_COLUMNS)]
_OF_POWER: Final = _columns(
    {name: pl.col(name) for name in _POWER_COLUMNS}
    | {
        "lost_micro": pl.when(_LOSS_IS_KNOWN).then(pl.col("lost_micro").fill_null(0)).otherwise(0),
        "lost_ms": pl.when(_LOSS_IS_KNOWN).then("window_ms").otherwise(0),
        "benchmark_micro": pl.col("benchmark_micro").fill_null(0),
    }
)
_OF_TOKENS: Final = _columns(
    {name: pl.col(name) for name in ("site", "pool", "window_start_ms", *_TOKEN_COLUMNS)}
)
_OF_ENGINES: Final = _columns(
    {name: pl.col(name) for name in ("site", "pool", "window_start_ms", *_ENGINE_COLUMNS)}
)


def packing(power: pl.LazyFrame, before: pl.DataFrame) -> pl.LazyFrame:
    """PACKING_COLUMNS of rows of power: how many GPUs a model was held by, and how many of them served.

    0 in windows of its pool without a row of the model, once an earlier one had such a row. `before`: what packed() gave
    of the windows before.
    """
    share = 1000 * pl.col("gpu_ms")
    model = (*POOL, "model_name")
    found = (
        power.filter((pl.col("model_name") != "") & pl.col("state").is_in(["serving", "idle_loaded"]))
        .group_by(*POOL_WINDOW, "model_name")
        .agg(
            # up for what is needed, down for what is there
            served=-(-share.filter(pl.col("state") == "serving").sum() // pl.col("window_ms").first()),
            held=share.sum() // pl.col("window_ms").first(),
        )
    )
    held = before.lazy().filter(pl.col("held") > 0).select(*model, since_ms=pl.lit(0, pl.Int64))
    seen = pl.concat([held, found.select(*model, since_ms="window_start_ms")])
    expected = (
        power.select(POOL_WINDOW)
        .unique()
        .join(seen.group_by(model).agg(pl.col("since_ms").min()), on=list(POOL))
        .filter(pl.col("window_start_ms") >= pl.col("since_ms"))
    )
    rows = expected.join(found, on=[*POOL_WINDOW, "model_name"], how="left").with_columns(
        pl.col("served", "held").fill_null(0),
        minute_start_ms=pl.col("window_start_ms") // MINUTE_MS * MINUTE_MS,
    )
    return rows.select(*PACKING_COLUMNS)


def packed(rows: pl.DataFrame, ends: pl.DataFrame) -> pl.DataFrame:
    """The rows by the minute, of the hour before each pool's newest window."""
    kept = rows.lazy().join(ends.lazy(), on=list(POOL), how="left")
    return at_once(
        kept.filter(recent(pl.col("minute_start_ms")))
        .group_by(*POOL, "model_name", "minute_start_ms")
        .agg(pl.col("served").max(), pl.col("held").min())
    )


def on_time(rows: pl.LazyFrame, ends_before: pl.DataFrame) -> pl.LazyFrame:
    """Without amendments of windows that were closed before: they stay out of the rolling figures."""
    live = (pl.col("window_start_ms") >= pl.col("end_ms")).fill_null(True)
    return rows.join(ends_before.lazy(), on=list(POOL), how="left").filter(live).drop("end_ms")


def aged(rows: pl.DataFrame, ends: pl.DataFrame) -> pl.DataFrame:
    """ROLLING_COLUMNS of the hour before each pool's newest window; windows that are no longer new by the minute.

    Of those without GPU time nothing is kept: within a minute that has some, nobody could tell them apart.
    """
    start = pl.col("window_start_ms")
    is_old = (start < pl.col("end_ms") - _FINE_MS).fill_null(False)
    kept = rows.lazy().join(ends.lazy(), on=list(POOL), how="left").filter(recent(start))
    return at_once(
        kept.filter(is_old.not_() | HAS_GPU_TIME)
        .with_columns(window_start_ms=pl.when(is_old).then(start // MINUTE_MS * MINUTE_MS).otherwise(start))
        .group_by(*POOL, "window_start_ms")
        .agg(pl.col(*_COUNTS, "invested").sum())
    )


def recent(start: pl.Expr, length_ms: int = HOUR_MS) -> pl.Expr:
    """Whether a row is so near to where its pool's windows end (end_ms).

    A pool that has engines and no GPUs has no such end: there it is where its newest row begins.
    """
    return start >= pl.coalesce("end_ms", start.max().over(POOL)) - length_ms
