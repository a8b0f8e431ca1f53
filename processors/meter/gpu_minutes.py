"""GPU time and energy by the minute, for the ledger."""

import polars as pl

from idlewatt.processors.meter.renames import with_booked_names
from idlewatt.processors.meter.rows import as_one, sums_by, where
from idlewatt.processors.meter.state import MeterState
from idlewatt.processors.meter.waterfall import STATE
from idlewatt.stream import records
from idlewatt.stream.clock import MINUTE_MS
from idlewatt.stream.frames import empty_frame, frame_schema


def gpu_minutes(
    state: MeterState, gpu_windows: pl.DataFrame, edge_ms: int
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """GPU rows per minute: the ledger rows of minutes that are over, and what is to be kept."""
    minute = (pl.col("window_start_ms") // MINUTE_MS * MINUTE_MS).alias("minute_start_ms")
    new = gpu_windows.select_seq("id", minute, "state", "gpu_ms", "draw_mj", "headroom_mj")
    rows = pl.concat([state.minutes, new], rechunk=True)
    states = rows["state"].cast(STATE).to_physical().cast(pl.Int64)
    rows = sums_by(
        as_one(rows["id"], rows["minute_start_ms"] // MINUTE_MS, states),
        rows,
        ("gpu_ms", "draw_mj", "headroom_mj"),
    )
    over = rows["minute_start_ms"] + MINUTE_MS <= edge_ms
    ended = where(rows, over)
    if ended.is_empty():
        return empty_frame(records.GPU_MINUTE), rows
    names = ("site", "pool", "node", "gpu_uuid", "product")
    end_ms = pl.col("minute_start_ms") + MINUTE_MS
    ended = ended.sort("id", "minute_start_ms", "state")
    ledger = with_booked_names(ended, state.gpu_index, state.gpu_renames, end_ms, *names)
    return ledger.select_seq(*frame_schema(records.GPU_MINUTE)), where(rows, ~over)
