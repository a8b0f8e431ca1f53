"""What Prometheus counters show: everything ever booked, restored with the state, never stepping back."""

from typing import Final

import polars as pl

from idlewatt.processors.amounts import SUM
from idlewatt.processors.gone_pools import TAKEN_BACK_MS
from idlewatt.processors.meter.rows import sums_by, with_names
from idlewatt.stream.records import POOL, TOKEN_COUNTS

_POWER_KEY: Final = ("site", "pool", "product", "state", "demand")
_POWER_SUMS: Final = ("gpu_ms", "draw_mj", "headroom_mj", "lost_tokens_draw", "lost_tokens_headroom")
# Dark time can be taken back. A counter may not fall, so it stands until dark time has caught up with it.
_SHOWN: Final = {"gpu_ms": "shown_gpu_ms", "headroom_mj": "shown_headroom_mj"}
# What a joule of the boards was at the utility when it was booked: null where no PUE was known.
_FACILITY: Final = "facility_mj"
_TOKEN_KEY: Final = (*POOL, "model_name")

POWER_COLUMNS: Final = {
    **dict.fromkeys(_POWER_KEY, pl.String),
    **dict.fromkeys((*_POWER_SUMS, *_SHOWN.values(), _FACILITY), SUM),
}
TOKEN_COLUMNS: Final = {**dict.fromkeys(_TOKEN_KEY, pl.String), **dict.fromkeys(TOKEN_COUNTS, SUM)}
AVAILABLE_COLUMNS: Final = {**dict.fromkeys(POOL, pl.String), "shown_available_mj": SUM}
MEASURED_COLUMNS: Final = {**dict.fromkeys(POOL, pl.String), "measured_mj": SUM}


def add_power(
    totals: pl.DataFrame, available: pl.DataFrame, power: pl.DataFrame, pue: float | None
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """POWER_COLUMNS and AVAILABLE_COLUMNS with ledger rows of watts added.

    A sum of which every part is withheld stays withheld (null).
    """
    shown = [pl.lit(0).alias(name) for name in _SHOWN.values()]
    facility = (pl.col("draw_mj") * pl.lit(pue, pl.Float64)).round().alias(_FACILITY)
    more = power.select_seq(*_POWER_KEY, *_POWER_SUMS, *shown, facility).cast(pl.Schema(POWER_COLUMNS))
    rows = pl.concat([totals, more])
    sums = (
        rows.group_by(*_POWER_KEY)
        .agg(
            *map(known_sum, _POWER_SUMS),
            *(pl.col(name).max() for name in _SHOWN.values()),
            known_sum(_FACILITY),
        )
        .with_columns_seq(pl.max_horizontal(raw, name).alias(name) for raw, name in _SHOWN.items())
        .sort(*_POWER_KEY)
    )
    return sums, _shown_available(available, sums)


def known_sum(column: str) -> pl.Expr:
    """The sum of what is known of the column; null where nothing is."""
    return pl.when(pl.col(column).count() > 0).then(pl.col(column).sum()).alias(column)


def _shown_available(shown: pl.DataFrame, power_totals: pl.DataFrame) -> pl.DataFrame:
    """AVAILABLE_COLUMNS: the most that a pool has ever had available; late readings may tell a lower power limit."""
    now = power_totals.select_seq(*POOL, shown_available_mj=pl.col("draw_mj") + pl.col("headroom_mj"))
    sums = now.group_by(*POOL).agg(pl.col("shown_available_mj").sum())
    rows = pl.concat([shown, sums]).group_by(*POOL).agg(pl.col("shown_available_mj").max())
    return rows.sort(*POOL)


def add_tokens(totals: pl.DataFrame, tokens: pl.DataFrame) -> pl.DataFrame:
    """Add ledger rows of tokens."""
    more = tokens.select_seq(*_TOKEN_KEY, *TOKEN_COUNTS).cast(pl.Schema(TOKEN_COLUMNS))
    rows = pl.concat([totals, more])
    return rows.group_by(*_TOKEN_KEY).agg(pl.col(TOKEN_COUNTS).sum()).sort(*_TOKEN_KEY)


def add_measured(totals: pl.DataFrame, intervals: pl.DataFrame, gpus: pl.DataFrame) -> pl.DataFrame:
    """Add what the readings themselves differ by: the other side of the books."""
    gained = sums_by(intervals["id"], intervals.select_seq("id", "inc_energy_mj"), ("inc_energy_mj",))
    more = with_names(gained, gpus, *POOL).select_seq(*POOL, measured_mj="inc_energy_mj")
    rows = pl.concat([totals, more.cast(pl.Schema(MEASURED_COLUMNS))])
    return rows.group_by(*POOL).agg(pl.col("measured_mj").sum()).sort(*POOL)


def last_booked(
    booked: pl.DataFrame, edge_ms: int, power: pl.DataFrame, tokens: pl.DataFrame
) -> pl.DataFrame:
    """BOOKED_COLUMNS with the pools of a step's ledger rows, by the edge of the step."""
    now = pl.concat([rows.select_seq(*POOL) for rows in (power, tokens)]).unique()
    both = pl.concat([booked, now.with_columns_seq(booked_ms=pl.lit(edge_ms, pl.Int64))])
    return both.group_by(*POOL).agg(pl.col("booked_ms").max()).sort(*POOL)


def gone(booked: pl.DataFrame, edge_ms: int) -> pl.DataFrame:
    """Pools whose counters end: nothing was booked for so long that nothing is taken back any more."""
    return booked.filter(pl.col("booked_ms") <= edge_ms - TAKEN_BACK_MS)
