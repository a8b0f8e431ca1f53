"""Readings of GPUs that tell neither joules nor watts: that the GPU is there, with its limit, and nothing else."""

from typing import Final

import polars as pl

from idlewatt.processors.meter.rows import where

_IS_MUTE: Final = pl.col("energy_mj").is_null() & pl.col("power_mw").is_null()


def without_presence(pending: pl.DataFrame, last: pl.DataFrame, forget_ms: int) -> pl.DataFrame:
    """Readings that wait, without those that tell no power of a GPU that told some less than `forget_ms` before.

    Between readings of power such a one would begin and end an interval of which nothing is known. Of other GPUs each
    counts: it makes its GPU known, and keeps it so, and the time is dark; left out, the tokens of its engine would be
    those of fewer GPUs. `last`: each GPU's last taken reading.
    """
    if not pending["energy_mj"].null_count():
        return pending
    rows = pending.select_seq("id", "ts_ms", mute=_IS_MUTE).with_row_index("place")
    if not rows["mute"].any():
        return pending
    is_judged = pl.col("id").is_in(rows["id"].filter(rows["mute"]).unique().implode())
    before = last.filter(is_judged).select_seq(
        pl.lit(None, pl.UInt32).alias("place"), "id", "ts_ms", mute=_IS_MUTE
    )
    told_ms = pl.when(~pl.col("mute")).then("ts_ms").forward_fill().over("id")
    told_already = (
        pl.concat([before, rows.filter(is_judged)])
        .sort("id", "ts_ms", "mute")
        .filter(pl.col("mute") & (pl.col("ts_ms") - told_ms < forget_ms))["place"]
        .drop_nulls()
    )
    return where(pending, pl.repeat(True, pending.height, eager=True).scatter(told_already, False))
