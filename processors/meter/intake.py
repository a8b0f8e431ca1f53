"""Rows from the wire to rows that may be taken: what cannot be true is left out and counted by reason."""

from collections.abc import Iterable, Mapping
from typing import Final

import polars as pl

from idlewatt.stream.records import RESTART_GAP_MS, TOKEN_COUNTS

# Unsupported counters show up as values just under 2^63 (dcgm's "blank"). No real counter gets here: 9 PJ of one GPU,
# 9e15 tokens. What a thousand of them sum up to, and are worth, still fits 64 bits.
LARGEST_COUNTER: Final = 1 << 53
LARGEST_POWER_MW: Final = 100_000_000
# of a name, as the economy has it: they go into each row of the ledger
MAX_NAME_BYTES: Final = 512

GPU_COLUMNS: Final = (
    "ts_ms",
    "site",
    "pool",
    "node",
    "gpu_uuid",
    "product",
    "energy_mj",
    "power_mw",
    "power_limit_mw",
    "epoch_ms",
    "has_process",
)
ENGINE_COLUMNS: Final = (
    "ts_ms",
    "site",
    "pool",
    "node",
    "engine",
    "model_name",
    *TOKEN_COUNTS,
    "advance",
    "requests_running",
    "requests_waiting",
    "epoch_ms",
    "gpus",
)
ADVANCES: Final = ("step", "prefill_end", "request_end")


def gpu_rows(
    rows: pl.DataFrame,
    entities: pl.DataFrame,
    too_long: pl.Series,
    now_ms: int,
    grace_ms: int,
    provisioned_mw: Mapping[str, int],
) -> tuple[pl.DataFrame, dict[str, int]]:
    """The GPU rows that may be taken; and how many were left out, by reason. `too_long`: see too_long_names()."""
    faults = {
        **clock_faults(now_ms + grace_ms),
        "negative": pl.any_horizontal(
            pl.col("energy_mj", "power_mw").lt(0).fill_null(False),
            pl.col("power_limit_mw").le(0).fill_null(False),
        ),
        "implausible": pl.any_horizontal(
            pl.col("energy_mj").ge(LARGEST_COUNTER).fill_null(False),
            pl.col("power_mw", "power_limit_mw").ge(LARGEST_POWER_MW).fill_null(False),
        ),
    }
    kept, left_out = _without(rows, faults | _of_names(rows, too_long))
    if provisioned_mw:
        limits = entities["pool"].replace_strict(provisioned_mw, default=None, return_dtype=pl.Int64)
        limit = pl.lit(limits.gather(kept["entity"]))
        kept = kept.with_columns_seq(power_limit_mw=pl.coalesce(limit, "power_limit_mw"))
    return kept, left_out


def engine_rows(
    rows: pl.DataFrame, entities: pl.DataFrame, too_long: pl.Series, now_ms: int, grace_ms: int
) -> tuple[pl.DataFrame, dict[str, int]]:
    """The engine rows that may be taken; and how many were left out, by reason. `too_long`: see too_long_names()."""
    counters = pl.col(TOKEN_COUNTS)
    faults = {
        **clock_faults(now_ms + grace_ms),
        "negative": pl.any_horizontal(counters.lt(0).fill_null(False)),
        "implausible": pl.any_horizontal(counters.ge(LARGEST_COUNTER).fill_null(False)),
    }
    known = entities["advance"].is_in(ADVANCES)
    if not known.all():
        faults["unknown_advance"] = ~pl.lit(known.gather(rows["entity"]))
    return _without(rows, faults | _of_names(rows, too_long))


def too_long_name(names: Iterable[str]) -> pl.Expr:
    """Whether one of these columns has more than MAX_NAME_BYTES."""
    return pl.any_horizontal((pl.col(*names).str.len_bytes() > MAX_NAME_BYTES).fill_null(False))


def too_long_names(entities: pl.DataFrame) -> pl.Series:
    """Of each entity."""
    # which GPUs an engine holds goes into no row of the ledger
    texts = [name for name, dtype in entities.schema.items() if dtype == pl.String and name != "gpus"]
    return entities.select_seq(too_long_name(texts)).to_series()


def _of_names(rows: pl.DataFrame, too_long: pl.Series) -> dict[str, pl.Expr]:
    return {"name_too_long": pl.lit(too_long.gather(rows["entity"]))} if too_long.any() else {}


def clock_faults(latest_ms: int) -> dict[str, pl.Expr]:
    """What is wrong with rows by their times, which may be up to `latest_ms`."""
    # one clock ahead would close every window of its partition before the others' rows are there
    return {
        "clock_ahead": pl.col("ts_ms") > latest_ms,
        "clock_before_1990": pl.col("ts_ms") < 631_152_000_000,
        # a server's clock may be ahead of the collector's; rows with a true epoch would all be older than a wild one
        "epoch_ahead": (pl.col("epoch_ms") > pl.col("ts_ms") + RESTART_GAP_MS).fill_null(False),
    }


def _without(rows: pl.DataFrame, faults: Mapping[str, pl.Expr]) -> tuple[pl.DataFrame, dict[str, int]]:
    if rows.is_empty():
        return rows, {}
    found = rows.select_seq(**{reason: fault.sum() for reason, fault in faults.items()}).row(0, named=True)
    left_out = {reason: int(count) for reason, count in found.items() if count}
    if left_out:
        rows = rows.filter(~pl.any_horizontal(*faults.values()))
    return rows, left_out
