"""Books what counters gained over long gaps, which the closing of windows left for later."""

from dataclasses import replace
from typing import Final

import polars as pl

from idlewatt.processors.meter import gaps, tokens, totals, waterfall
from idlewatt.processors.meter.closing import Closing
from idlewatt.processors.meter.config import MeterConfig
from idlewatt.processors.meter.entities import ENERGY
from idlewatt.processors.meter.gpu_minutes import gpu_minutes
from idlewatt.processors.meter.state import MeterState
from idlewatt.processors.meter.yardstick import PAIR
from idlewatt.stream import records
from idlewatt.stream.frames import empty_frame
from idlewatt.stream.records import TOKEN_COUNTS

# windows of entities that are cut together
_PIECES: Final = 250_000
_NO_JOULES: Final = pl.DataFrame(schema=tokens.JOULE_COLUMNS)
# dark time loses no tokens, so nobody asks who waited
_NO_DEMAND: Final = pl.DataFrame(
    schema={"site": pl.String, "pool": pl.String, "window_start_ms": pl.Int64, "demand": pl.String}
)


def waits(state: MeterState) -> bool:
    """Whether there is anything to book."""
    return state.gpu_gaps.height + state.engine_gaps.height > 0


def book(state: MeterState, room: int, config: MeterConfig) -> tuple[MeterState, Closing, int]:
    """Book up to `room` windows of gaps, those of GPUs first; also returns how many they were."""
    room = min(room, _PIECES)
    if state.gpu_gaps.height:
        return _book_gpus(state, room, config)
    return _book_engines(state, room, config)


def _book_gpus(state: MeterState, room: int, config: MeterConfig) -> tuple[MeterState, Closing, int]:
    assert state.edge_ms is not None
    pieces, left = gaps.take(state.gpu_gaps, room, config.window_ms, ENERGY)
    windows = waterfall.dark_windows(pieces)
    pools = waterfall.pool_windows(windows, state.gpu_index, state.gpu_renames, config.window_ms)
    pools = pools.join(state.yields, on=PAIR, how="left")
    power = waterfall.power_rows(pools, _NO_DEMAND, config.window_ms)
    minutes, open_minutes = gpu_minutes(state, windows, state.edge_ms)
    power_totals, available_totals = totals.add_power(
        state.power_totals, state.available_totals, power, config.pue
    )
    after = replace(
        state,
        gpu_gaps=left,
        minutes=open_minutes,
        power_totals=power_totals,
        available_totals=available_totals,
    )
    return after, Closing(power, empty_frame(records.TOKENS), minutes, {}), pieces.height


def _book_engines(state: MeterState, room: int, config: MeterConfig) -> tuple[MeterState, Closing, int]:
    pieces, left = gaps.take(state.engine_gaps, room, config.window_ms, TOKEN_COUNTS)
    windows = tokens.engine_windows(pieces)
    made = tokens.with_joules(windows, _NO_JOULES, state.engine_index)
    # nobody knows any more what was read then
    rows = tokens.token_rows(
        made.with_columns_seq(unread_gpus=pl.lit(None, pl.Int64), stopped=pl.lit(None, pl.Boolean)),
        config.window_ms,
    )
    after = replace(state, engine_gaps=left, token_totals=totals.add_tokens(state.token_totals, rows))
    return (
        after,
        Closing(empty_frame(records.POWER), rows, empty_frame(records.GPU_MINUTE), {}),
        pieces.height,
    )
