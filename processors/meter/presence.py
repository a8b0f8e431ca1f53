"""Readings of GPUs that tell neither joules nor watts: that the GPU is there, with its limit, and nothing else."""

from typing import Final

import polars as pl

from idlewatt.processors.meter.rows import where

_IS_MUTE: Final = pl.col("energy_mj").is_null() & pl.col("power_mw").is_null()
_TELLS: Final = -1
_JUDGED_BY: Final = ("id", "ts_ms", "power_limit_mw")


def without_presence(pending: pl.DataFrame, last: pl.DataFrame, forget_ms: int) -> pl.DataFrame:
    """Readings that wait, without those that tell of a GPU's presence what is known already.

    Between readings of power such a one would begin and end an interval of which nothing is known. Alone it makes its GPU
    known, and keeps it so, and the time is dark: left out, the tokens of its engine would be those of fewer GPUs. `last`:
    each GPU's last taken reading.
    """
    if not pending["energy_mj"].null_count():
        return pending
    rows = pending.select_seq(*_JUDGED_BY, place=pl.int_range(pl.len()), mute=_IS_MUTE)
    if not rows["mute"].any():
        return pending
    is_judged = pl.col("id").is_in(rows["id"].filter(rows["mute"]).unique().implode())
    # one by one, which is seldom
    judged = rows.filter(is_judged).sort("id", "ts_ms", "mute")
    # of each GPU when it was read last; of one that told no power, its limit
    known = {
        entity: (ts_ms, limit_mw if mute else _TELLS)
        for entity, ts_ms, limit_mw, mute in last.filter(is_judged)
        .select_seq(*_JUDGED_BY, _IS_MUTE)
        .iter_rows()
    }
    told_already = []
    for entity, ts_ms, limit_mw, place, mute in judged.iter_rows():
        before_ms, before = known.get(entity, (None, None))
        is_told = before_ms is not None and ts_ms - before_ms < forget_ms
        if mute and is_told and (ts_ms <= before_ms or before in (_TELLS, limit_mw)):
            told_already.append(place)
        elif before_ms is None or ts_ms >= before_ms:
            known[entity] = (ts_ms, limit_mw if mute else _TELLS)
    return where(pending, pl.repeat(True, pending.height, eager=True).scatter(told_already, False))
