"""GPU pieces to the waterfall of watts: by state, draw and headroom add up to what was available."""

from typing import Final

import polars as pl

from idlewatt.processors.amounts import rounded
from idlewatt.processors.meter.intake import LARGEST_POWER_MW
from idlewatt.processors.meter.renames import with_booked_names
from idlewatt.processors.meter.rows import as_one, sums_by
from idlewatt.processors.meter.timeline import Bounds
from idlewatt.stream.records import IDLE_STATES, STATES

STATE: Final = pl.Enum(STATES)
# Power cannot exceed the limit for long: an unstamped reset that claims more is no reset. But what counts as a limit may be
# what was set aside for the GPU: a rise is disbelieved only where no GPU draws as much.
ENERGY_BOUNDS: Final = Bounds(
    per_s=LARGEST_POWER_MW,
    after_reset=pl.col("power_limit_mw_0") * 13 // 10 * (pl.col("ts_ms") - pl.col("t0_ms")) // 1000,
)

SUMS: Final = ("gpu_ms", "draw_mj", "headroom_mj", "estimated_mj")


def integrate_missing(intervals: pl.DataFrame) -> pl.DataFrame:
    """Where a GPU has no energy counter, integrate its power (trapezoid) and mark the joules as estimated.

    mW x ms = uJ. Over a gap the samples say nothing: no joules, not measured.
    """
    span_ms = pl.col("end_ms") - pl.col("t0_ms")
    trapezoid = (pl.col("power_mw") + pl.col("power_mw_0")) * span_ms // 2000
    missing = pl.col("inc_energy_mj").is_null()
    usable = missing & pl.col("measured") & trapezoid.is_not_null()
    return intervals.with_columns_seq(
        inc_energy_mj=pl.when(usable).then(trapezoid).otherwise(pl.col("inc_energy_mj").fill_null(0)),
        estimated=usable,
        measured=pl.col("measured") & (~missing | usable),
    )


def with_amounts(pieces: pl.DataFrame) -> pl.DataFrame:
    """Add gpu_ms, available_mj and estimated_mj to pieces of GPU time."""
    return pieces.with_columns_seq(
        gpu_ms=pl.col("to_ms") - pl.col("from_ms"),
        available_mj=_given_mj(),
        estimated_mj=pl.when("estimated").then("inc_energy_mj").otherwise(0),
    )


def to_book() -> pl.Expr:
    """Whether a long gap says anything that silence did not: joules, another limit, or that it was there at all."""
    other_limit = pl.col("booked_limit_mw").ne_missing(pl.col("power_limit_mw_0"))
    return pl.col("fresh") | (pl.col("inc_energy_mj") > 0) | other_limit


def dark_windows(gaps: pl.DataFrame) -> pl.DataFrame:
    """Pieces of gaps to what gpu_windows() gives: of those that were booked as dark before (`late`), what is missing."""
    return (
        gaps.select_seq(
            "id",
            "window_start_ms",
            pl.when("late").then(0).otherwise(pl.col("to_ms") - pl.col("from_ms")).alias("gpu_ms"),
            pl.col("inc_energy_mj").alias("draw_mj"),
            pl.when("late").then(_limit_change_mj()).otherwise(_given_mj()).alias("available_mj"),
        )
        .group_by("id", "window_start_ms")
        .agg(pl.col("gpu_ms", "draw_mj", "available_mj").sum())
        .select_seq(
            "id",
            "window_start_ms",
            pl.lit("dark").alias("state"),
            pl.lit("").alias("model_name"),
            "gpu_ms",
            "draw_mj",
            (pl.col("available_mj") - pl.col("draw_mj")).alias("headroom_mj"),
            pl.lit(0, pl.Int64).alias("estimated_mj"),
        )
    )


def limit_changes(pieces: pl.DataFrame, booked: pl.DataFrame) -> pl.DataFrame:
    """What dark time had available more, or less, than was booked for it, as rows like classify() gives.

    `pieces`: time that was booked as dark, with the limit that held really, and what was drawn; `booked`: id and
    booked_limit_mw of each GPU's last reading at that time.
    """
    told = pl.col("power_limit_mw_0")
    # without a limit what was drawn was available, which was not known
    changed = pieces.join(booked, on="id").filter(told.is_null() | told.ne_missing(pl.col("booked_limit_mw")))
    nothing = pl.lit(0, pl.Int64)
    return changed.select_seq(
        "id",
        "window_start_ms",
        pl.lit(False).alias("late"),
        pl.lit(False).alias("measured"),
        pl.lit("dark", STATE).alias("state"),
        pl.lit(None, pl.Int64).alias("model"),
        nothing.alias("gpu_ms"),
        _limit_change_mj().alias("available_mj"),
        nothing.alias("inc_energy_mj"),
        nothing.alias("estimated_mj"),
    )


def gpu_windows(classified: pl.DataFrame, models: pl.Series) -> pl.DataFrame:
    """Classified sums to (id, window_start_ms, state, model_name): SUMS. `models`: the name of each model.

    Time that was dark when its window closed and turns out to have been measured is taken back from dark, by
    exactly what was booked. Time that stays dark keeps the joules its counter gained meanwhile, under dark.
    """
    if classified["late"].any():
        classified = pl.concat([_without_booked(classified), _taken_back(classified)])
    state = classified["state"].to_physical().cast(pl.Int64)
    alike = as_one(classified["id"], classified["window_start_ms"], state, classified["model"])
    sums = sums_by(alike, classified, ("gpu_ms", "available_mj", "inc_energy_mj", "estimated_mj"))
    # A board can draw a little more than its limit for a moment: then what it drew was available.
    spare = pl.col("available_mj") - pl.col("inc_energy_mj")
    return sums.select_seq(
        "id",
        "window_start_ms",
        pl.col("state").cast(pl.String),
        models.gather(sums["model"]).fill_null("").alias("model_name"),
        "gpu_ms",
        pl.col("inc_energy_mj").alias("draw_mj"),
        pl.when(pl.col("state") == "dark")
        .then(spare)
        .otherwise(spare.clip(lower_bound=0))
        .alias("headroom_mj"),
        "estimated_mj",
    )


def by_model(windows: pl.DataFrame, parts: pl.DataFrame) -> pl.DataFrame:
    """GPU windows, with each model's part of the serving time where several can have served. `parts`: see serving_shares()."""
    if parts.is_empty():
        return windows
    served = parts.select_seq(
        pl.col("gpu_id").alias("id"), "window_start_ms", pl.lit("serving").alias("state"), "model_name", *SUMS
    )
    others = windows.join(served, on=["id", "window_start_ms", "state"], how="anti")
    return pl.concat([others, served])


def _without_booked(classified: pl.DataFrame) -> pl.DataFrame:
    booked_already = pl.col("late") & ~pl.col("measured")
    return classified.with_columns_seq(
        pl.when(booked_already).then(0).otherwise(name).alias(name) for name in ("gpu_ms", "available_mj")
    )


def _taken_back(classified: pl.DataFrame) -> pl.DataFrame:
    nothing = pl.lit(0, pl.Int64)
    return classified.filter("late", "measured").with_columns_seq(
        state=pl.lit("dark", STATE),
        model=pl.lit(None, pl.Int64),
        gpu_ms=-pl.col("gpu_ms"),
        available_mj=-pl.col("available_mj"),
        inc_energy_mj=nothing,
        estimated_mj=nothing,
    )


def _by_limit_mj(limit_mw: str) -> pl.Expr:
    """What the limit makes available over a piece: differences since the window began add up however time is cut."""
    upto, before = (
        pl.col(limit_mw) * (pl.col(moment) - pl.col("window_start_ms")) // 1000
        for moment in ("to_ms", "from_ms")
    )
    return upto - before


def _given_mj() -> pl.Expr:
    """What was available over a piece: where no limit is known, what was drawn."""
    return _by_limit_mj("power_limit_mw_0").fill_null(pl.col("inc_energy_mj"))


def _limit_change_mj() -> pl.Expr:
    return _given_mj() - _by_limit_mj("booked_limit_mw").fill_null(0)


def pool_windows(
    windows: pl.DataFrame, gpus: pl.DataFrame, renames: pl.DataFrame, window_ms: int
) -> pl.DataFrame:
    """Sum GPU windows to (site, pool, window_start_ms, product, model_name, state): SUMS. `gpus`: the index."""
    end_ms = pl.col("window_start_ms") + window_ms
    return (
        with_booked_names(windows, gpus, renames, end_ms, "site", "pool", "product")
        .group_by("site", "pool", "window_start_ms", "product", "model_name", "state")
        .agg(pl.col(SUMS).sum())
    )


def power_rows(windows: pl.DataFrame, demand: pl.DataFrame, window_ms: int) -> pl.DataFrame:
    """What pool_windows() gives, with yield_utpj and yardstick_model of yields(), to ledger rows (records.PowerRow)."""
    rows = windows.join(demand, on=["site", "pool", "window_start_ms"], how="left")
    idle = pl.col("state").is_in(IDLE_STATES)
    return rows.select_seq(
        "site",
        "pool",
        "window_start_ms",
        pl.lit(window_ms, pl.Int64).alias("window_ms"),
        "product",
        "model_name",
        "state",
        pl.when(idle)
        .then(pl.col("demand").fill_null("unknown"))
        .otherwise(pl.lit("unknown"))
        .alias("demand"),
        *SUMS,
        pl.when(idle).then(_tokens("draw_mj")).alias("lost_tokens_draw"),
        pl.when(idle).then(_tokens("headroom_mj")).alias("lost_tokens_headroom"),
        pl.when(idle).then("yardstick_model").alias("yardstick_model"),
    ).sort("site", "pool", "window_start_ms", "product", "model_name", "state")


def _tokens(energy_mj: str) -> pl.Expr:
    """Tokens the energy would have made: mJ x micro-tokens per joule / 10^9, to the nearest; null if beyond 64 bits."""
    product = pl.col(energy_mj).cast(pl.Int128) * pl.col("yield_utpj").cast(pl.Int128)
    return rounded(product, 1_000_000_000)
