"""Rolling figures per pool from its closed windows: sums first, ratios at the end, withheld where they would lie."""

from typing import Final

import polars as pl

from idlewatt.processors.at_once import at_once
from idlewatt.processors.blind_nodes import UNMETERED_TOKENS, blind, metered, with_blind
from idlewatt.processors.meter.config import MeterConfig
from idlewatt.processors.meter.rows import where
from idlewatt.processors.meter.timeline import Edges
from idlewatt.processors.meter.unread_gpus import with_unread
from idlewatt.stream.clock import HOUR_MS, MINUTE_MS
from idlewatt.stream.records import TOKEN_COUNTS

ROLLING_MS: Final = {"1m": MINUTE_MS, "5m": 5 * MINUTE_MS, "1h": HOUR_MS}
HISTORY_COLUMNS: Final = {
    "site": pl.String,
    "pool": pl.String,
    "window_start_ms": pl.Int64,
    "draw_mj": pl.Int64,
    "gpu_ms": pl.Int64,
    "dark_ms": pl.Int64,
    **dict.fromkeys(TOKEN_COUNTS, pl.Int64),
    **dict.fromkeys(UNMETERED_TOKENS.values(), pl.Int64),
    "measured_ms": pl.Int64,
    "silent_ms": pl.Int64,
    # tokens of a server whose counter jumps at a request's end
    "request_end": pl.Boolean,
}
_KEY: Final = ("site", "pool", "window_start_ms")
_SUMS: Final = [name for name, dtype in HISTORY_COLUMNS.items() if dtype == pl.Int64 and name not in _KEY]
_SHORTEST, *_, LONGEST = ROLLING_MS
# the windows that each one lies in
_WITHIN: Final = pl.DataFrame(
    [
        (inner, outer)
        for inner in ROLLING_MS
        for outer in ROLLING_MS
        if ROLLING_MS[inner] <= ROLLING_MS[outer]
    ],
    schema={"youngest": pl.String, "window": pl.String},
    orient="row",
)


def extend(
    history: pl.DataFrame,
    power: pl.DataFrame,
    tokens: pl.DataFrame,
    unread: pl.DataFrame,
    unloaded: pl.DataFrame,
    edges: Edges,
) -> pl.DataFrame:
    """Add the closed windows of these ledger rows; keep an hour.

    `unread`: see unread_gpus(). An engine's tokens would stand over the joules of the rest of its GPUs: those that are not
    read are as dark as the ones that fell silent. Tokens of windows in which a pool had no GPU that was read would stand
    over the joules of other windows. `unloaded`: see unloaded(); nobody misses those, nor engines that have stopped.
    """
    is_gone = pl.col("stopped")
    if unloaded.height:
        marked = unloaded.with_columns_seq(unloaded=pl.lit(True))
        tokens = tokens.join(marked, on=unloaded.columns, how="left")
        is_gone |= pl.col("unloaded").fill_null(False)
    tokens = tokens.with_columns_seq(silent_ms=pl.when(is_gone).then(0).otherwise("silent_ms"))
    window = [*_KEY, "window_ms"]
    watts = power.group_by(window).agg(
        pl.col("draw_mj", "gpu_ms").sum(),
        pl.when(pl.col("state") == "dark").then("gpu_ms").otherwise(0).sum().alias("dark_ms"),
    )
    names_read = ~(pl.col("unread_gpus") > 0).fill_null(False)
    served = (
        with_blind(tokens, blind(tokens))
        .group_by(window)
        .agg(
            pl.col(*TOKEN_COUNTS, "measured_ms", "silent_ms").sum(),
            # GPUs that an engine names and nobody reads are counted below
            pl.col("measured_ms").filter("blind", names_read).sum().alias("blind_ms"),
            *(pl.col(name).filter("blind").sum().alias(to) for name, to in UNMETERED_TOKENS.items()),
            (pl.col("advance") == "request_end").any().alias("request_end"),
        )
    )
    both = watts.join(served, on=window, how="full", coalesce=True).with_columns_seq(
        pl.col(pl.Int64).fill_null(0), pl.col("request_end").fill_null(False)
    )
    # nothing is left to be blind to where no token counts
    seen = pl.col("gpu_ms") > 0
    more_ms = pl.when(seen).then("blind_ms").otherwise(0)
    both = both.with_columns_seq(
        pl.when(seen).then(pl.col(*TOKEN_COUNTS, *UNMETERED_TOKENS.values())).otherwise(0),
        pl.col("measured_ms") - more_ms,
        pl.col("silent_ms") + more_ms,
    )
    if unread.height:
        never_ms = pl.col("unread_gpus") * pl.col("window_ms")
        both = with_unread(both, unread, ("site", "pool"), edges.window_ms).with_columns_seq(
            pl.col("gpu_ms", "dark_ms") + never_ms
        )
    longer = pl.concat([history, both.select_seq(*HISTORY_COLUMNS)], rechunk=True)
    return where(longer, longer["window_start_ms"] >= edges.edge_ms - max(ROLLING_MS.values()))


def rolling(history: pl.DataFrame, edge_ms: int, config: MeterConfig) -> pl.DataFrame:
    """Per (site, pool, window): tokens per joule by kind (null where withheld) and coverage of watts and tokens."""
    age_ms = edge_ms - pl.col("window_start_ms")
    youngest = pl.coalesce(
        pl.when(age_ms <= length_ms).then(pl.lit(name)) for name, length_ms in ROLLING_MS.items()
    )
    sums = (pl.col(*_SUMS).sum(), pl.col("request_end").any())
    expected_ms = pl.col("measured_ms") + pl.col("silent_ms")
    coverage_watts = pl.when(pl.col("gpu_ms") > 0).then(1 - pl.col("dark_ms") / pl.col("gpu_ms"))
    least = pl.min_horizontal(
        pl.col("measured_ms") / expected_ms, metered(UNMETERED_TOKENS, config.min_tokens)
    )
    coverage_tokens = pl.when(expected_ms > 0).then(least)
    trusted = (
        (coverage_watts >= config.coverage_floor)
        & (coverage_tokens >= config.coverage_floor)
        & (pl.col("output_tokens") >= config.min_tokens)
        & (pl.col("draw_mj") > 0)
        # a minute is shorter than many requests: counters that move at their end would give zero, then a spike
        & ~(pl.col("request_end") & (pl.col("window") == _SHORTEST))
    )
    return at_once(
        history.lazy()
        # the hour is gone through once: what is in the shortest window is in the longer ones as well
        .with_columns(youngest=youngest)
        .group_by("site", "pool", "youngest", maintain_order=True)
        .agg(sums)
        .join(_WITHIN.lazy(), on="youngest", maintain_order="left_right")
        .group_by("site", "pool", "window", maintain_order=True)
        .agg(sums)
        .select(
            "site",
            "pool",
            "window",
            coverage_watts.alias("coverage_watts"),
            coverage_tokens.alias("coverage_tokens"),
            *(
                pl.when(trusted).then(pl.col(kind) * 1000.0 / pl.col("draw_mj")).alias(kind)
                for kind in TOKEN_COUNTS
            ),
        )
    )
