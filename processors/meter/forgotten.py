"""Who was forgotten, and so the darkness that was booked in their place.

A node that is cut off for longer than it is remembered sends its spool all the same: its readings are booked as those of
somebody new, and what stood there as dark is taken back from the first of them on.
"""

from collections.abc import Sequence

import polars as pl

from idlewatt.processors.gone_pools import TAKEN_BACK_MS
from idlewatt.processors.meter.rows import where, with_names
from idlewatt.processors.meter.timeline import Advance, first_readings


def back(
    forgotten: pl.DataFrame, step: Advance, index: pl.DataFrame, key: Sequence[str]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The darkness of those who are back, and those who are still forgotten.

    `forgotten`: key, until_ms, up to which silence was booked, and what it was booked with. The darkness: id, start_ms,
    end_ms, and what it was booked with.
    """
    came = with_names(first_readings(step), index, *key)
    returned = came.join(forgotten, on=list(key))
    booked = returned.select_seq(
        pl.exclude(*key, "first_ms", "until_ms"), start_ms="first_ms", end_ms="until_ms"
    )
    still = (
        forgotten.join(came, on=list(key), how="anti", maintain_order="left") if came.height else forgotten
    )
    return where(booked, booked["start_ms"] < booked["end_ms"]), still


def remember(
    forgotten: pl.DataFrame, lost: pl.DataFrame, index: pl.DataFrame, key: Sequence[str], edge_ms: int
) -> pl.DataFrame:
    """With those whom the step forgets (`lost`: their last readings, with until_ms)."""
    if lost.is_empty() and forgotten.is_empty():
        return forgotten
    both = pl.concat([forgotten, with_names(lost, index, *key).select_seq(forgotten.columns)])
    return where(both, both["until_ms"] > edge_ms - TAKEN_BACK_MS)
