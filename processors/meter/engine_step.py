"""A step's readings of engines: what they gained, what they did, and which GPUs they hold."""

from dataclasses import dataclass

import polars as pl

from idlewatt.processors.meter import activity, tokens
from idlewatt.processors.meter.config import MeterConfig
from idlewatt.processors.meter.cutting import silence, with_gaps
from idlewatt.processors.meter.entities import pieces, with_first
from idlewatt.processors.meter.state import ENGINE_CARRY, ENGINE_INTERVAL, MeterState
from idlewatt.processors.meter.timeline import Advance, Edges, Steady, advance, first_readings
from idlewatt.stream.records import TOKEN_COUNTS


@dataclass(frozen=True, slots=True)
class EngineStep:
    """What a step knows of engines."""

    step: Advance
    # ENGINE_INTERVAL
    intervals: pl.DataFrame
    # see tokens.engine_windows()
    windows: pl.DataFrame
    # ENGINE_GAP of long gaps
    gaps: pl.DataFrame
    # as MeterState has them
    index: pl.DataFrame
    segments: pl.DataFrame
    # see activity.by_name()
    ranked: pl.DataFrame
    models: pl.Series
    # see activity.stays()
    stays: pl.DataFrame
    holding: activity.Holding


def engine_step(state: MeterState, edges: Edges, config: MeterConfig) -> EngineStep:
    """Take the readings of engines that the edge needs; GPUs are judged by what comes of them."""
    step = advance(
        state.engines,
        state.pending_engines,
        edges,
        TOKEN_COUNTS,
        ENGINE_CARRY,
        state.gone_engines,
        tokens.TOKEN_BOUNDS,
        steady=Steady(None, activity.GAUGES),
    )
    intervals = with_gaps(tokens.without_unknown(step.intervals), TOKEN_COUNTS)
    # a step may be longer than segments are kept: none of its own windows may lack them
    segments = activity.remember(
        state.segments,
        activity.segments_of(intervals, state.engine_index, edges.edge_ms),
        edges.previous_ms,
    )
    index = with_first(state.engine_index, first_readings(step))
    intervals = intervals.select_seq(*ENGINE_INTERVAL)
    silent = silence(step, edges, config.forget_ms, TOKEN_COUNTS, ())
    taken, gaps = pieces(state.open_engines, intervals, silent, step, edges, TOKEN_COUNTS)
    return EngineStep(
        step,
        intervals,
        tokens.engine_windows(taken),
        gaps.filter(tokens.to_book()) if gaps.height else gaps,
        index,
        segments,
        *activity.by_name(segments, index),
        activity.stays(index, step, config.forget_ms),
        activity.holding(activity.heard(index, step.last), state.gpu_index, state.holding),
    )
