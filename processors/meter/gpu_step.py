"""A step's readings of GPUs: what they drew, and in which state, by what the engines did."""

from dataclasses import dataclass, replace
from typing import Final

import polars as pl

from idlewatt.processors.meter import activity, waterfall
from idlewatt.processors.meter.classifying import classify, steady_windows, whole_windows
from idlewatt.processors.meter.config import MeterConfig
from idlewatt.processors.meter.cutting import silence, split, with_gaps
from idlewatt.processors.meter.engine_step import EngineStep
from idlewatt.processors.meter.entities import ENERGY, both, pieces
from idlewatt.processors.meter.gaps import put_off
from idlewatt.processors.meter.presence import without_presence
from idlewatt.processors.meter.state import GPU_CARRY, GPU_INTERVAL, MeterState
from idlewatt.processors.meter.timeline import NEVER_MS, Advance, Edges, Steady, advance

# beside the counter, what a piece of a GPU's time is judged by
_JUDGED_BY: Final = ("power_limit_mw", "has_process")
# where there is no counter, each reading's power counts
_GAUGES: Final = (*map(pl.col, _JUDGED_BY), pl.when(pl.col("energy_mj").is_null()).then("ts_ms"))


@dataclass(frozen=True, slots=True)
class GpuStep:
    """What a step knows of GPUs."""

    step: Advance
    # GPU_INTERVAL
    intervals: pl.DataFrame
    # see waterfall.gpu_windows()
    windows: pl.DataFrame
    # GPU_GAP of long gaps
    gaps: pl.DataFrame
    # what engines did in these windows, see activity.in_windows()
    activity: pl.DataFrame


def gpu_step(state: MeterState, edges: Edges, config: MeterConfig, engines: EngineStep) -> GpuStep:
    """Take the readings of GPUs that the edge needs, and judge each piece of their time."""
    holding = engines.holding
    done = activity.in_windows(engines.ranked, edges.previous_ms, edges.edge_ms, edges.window_ms)
    whole = whole_windows(done, holding.alone, edges.window_ms)
    step = advance(
        state.gpus,
        without_presence(state.pending_gpus, state.gpus, edges.forget_ms),
        edges,
        ENERGY,
        GPU_CARRY,
        state.gone_gpus,
        waterfall.ENERGY_BOUNDS,
        steady=Steady(steady_windows(whole, holding.held, state.gpu_index, edges), _GAUGES),
    )
    intervals = with_gaps(waterfall.integrate_missing(step.intervals), ENERGY).select_seq(*GPU_INTERVAL)
    silent = _silence(step, edges, config)
    taken, gaps = pieces(state.open_gpus, intervals, silent, step, edges, ENERGY)
    earliest_ms = taken["window_start_ms"].min()
    if isinstance(earliest_ms, int) and earliest_ms < edges.previous_ms:
        late = activity.in_windows(engines.ranked, earliest_ms, edges.previous_ms, edges.window_ms)
        done = pl.concat([late, done])
        whole = whole_windows(done, holding.alone, edges.window_ms)
    classified = classify(
        waterfall.with_amounts(taken), done, whole, holding.held, engines.stays, edges.window_ms
    )
    if gaps.height or taken["late"].any():
        changes, later = _limit_changes(state, step, taken.filter("late"), gaps, edges, config)
        classified = pl.concat([classified, changes], rechunk=True)
        gaps = both(gaps, later)
    if gaps.height:
        gaps = gaps.join(_limits(state.gpus), on="id", how="left").filter(waterfall.to_book())
    return GpuStep(step, intervals, waterfall.gpu_windows(classified, engines.models), gaps, done)


def _silence(step: Advance, edges: Edges, config: MeterConfig) -> pl.DataFrame:
    silent = silence(step, edges, config.forget_ms, ENERGY, _JUDGED_BY)
    return silent.with_columns_seq(estimated=pl.lit(False))


def _limits(gpus: pl.DataFrame) -> pl.DataFrame:
    """(id, booked_limit_mw): the limits that silence is booked with."""
    return gpus.select_seq("id", booked_limit_mw="power_limit_mw")


def _limit_changes(
    state: MeterState,
    gpus: Advance,
    late: pl.DataFrame,
    gaps: pl.DataFrame,
    edges: Edges,
    config: MeterConfig,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Closed windows were booked as dark with the limit known then; readings that come late may tell another.

    Also returns what of it is booked later.
    """
    booked = _limits(state.gpus)
    changed = gpus.last.join(booked, on="id").filter(
        pl.col("booked_limit_mw").ne_missing(pl.col("power_limit_mw"))
    )
    back = pl.concat([late.select_seq("id"), gaps.select_seq("id")])
    came = replace(gpus, last=changed.join(back, on="id", how="semi"))
    closed = replace(edges, previous_ms=NEVER_MS, edge_ms=edges.previous_ms)
    silent, _, later = put_off(_silence(came, closed, config), edges, gpus.new)
    parts = [
        rows.select_seq("id", "window_start_ms", "from_ms", "to_ms", "power_limit_mw_0", "inc_energy_mj")
        for rows in (late, split(silent.clear(), silent, closed, ENERGY, gpus.new))
    ]
    return waterfall.limit_changes(pl.concat(parts), booked), later
