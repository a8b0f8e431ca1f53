"""Readings of GPUs that tell neither joules nor watts: that the GPU is there, and nothing else."""

import polars as pl

from idlewatt.processors.meter.rows import where


def without_presence(pending: pl.DataFrame, last: pl.DataFrame, forget_ms: int) -> pl.DataFrame:
    """Readings that wait, without those that tell of a GPU's presence where it is known already.

    Between readings of power such a one would begin and end an interval of which nothing is known. Alone it makes its GPU
    known, and keeps it so, and the time is dark: left out, the tokens of its engine would be those of fewer GPUs. `last`:
    each GPU's last taken reading.
    """
    if not pending["energy_mj"].null_count():
        return pending
    is_mute = pending.select_seq(pl.col("energy_mj").is_null() & pl.col("power_mw").is_null()).to_series()
    if not is_mute.any():
        return pending
    rows = pending.select_seq("id", "ts_ms", place=pl.int_range(pl.len())).hstack([is_mute.alias("mute")])
    judged = rows.filter(pl.col("id").is_in(rows["id"].filter(is_mute).unique().implode()))
    known_ms = dict(last.select_seq("id", "ts_ms").iter_rows())
    told_already = []
    for entity, ts_ms, place, mute in judged.sort("id", "ts_ms", "mute").iter_rows():
        if not mute or entity not in known_ms or ts_ms - known_ms[entity] >= forget_ms:
            known_ms[entity] = max(ts_ms, known_ms.get(entity, ts_ms))
        else:
            told_already.append(place)
    return where(pending, pl.repeat(True, pending.height, eager=True).scatter(told_already, False))
