"""One step of the meter: from one window edge to the next, readings in, ledger rows out."""

from dataclasses import dataclass, replace
from typing import Final

import polars as pl

from idlewatt.processors.gone_pools import frames_of_others
from idlewatt.processors.meter import activity, learning, rolling, tokens, totals, waterfall
from idlewatt.processors.meter.config import MeterConfig
from idlewatt.processors.meter.engine_step import engine_step
from idlewatt.processors.meter.entities import ENGINES, GPUS, Entities, remembered
from idlewatt.processors.meter.gpu_minutes import gpu_minutes
from idlewatt.processors.meter.gpu_step import gpu_step
from idlewatt.processors.meter.renames import forget
from idlewatt.processors.meter.rows import where, with_names
from idlewatt.processors.meter.state import OFFENDER_COLUMNS, SAMPLE_COLUMNS, MeterState
from idlewatt.processors.meter.timeline import Edges
from idlewatt.processors.meter.unread_gpus import unread_gpus, with_stays, with_unread
from idlewatt.stream.records import IDLE_STATES

# frames of the state that counters are made of
_COUNTED: Final = ("power_totals", "available_totals", "token_totals", "measured_totals", "booked")


@dataclass(frozen=True, slots=True)
class Closing:
    """What a step adds to the ledger."""

    power: pl.DataFrame
    tokens: pl.DataFrame
    minutes: pl.DataFrame
    dropped: dict[tuple[str, str], int]


def close(state: MeterState, edges: Edges, config: MeterConfig) -> tuple[MeterState, Closing]:
    """Close the windows up to `edges.edge_ms`."""
    engines = engine_step(state, edges, config)
    gpus = gpu_step(state, edges, config, engines)
    holding = engines.holding

    demand = activity.demand(gpus.activity, engines.index)
    shares, parts = tokens.serving_shares(
        gpus.windows, engines.windows, state.engine_index, holding.held, engines.segments, edges.window_ms
    )
    engine_windows = tokens.with_joules(
        engines.windows, tokens.joules(shares, state.gpu_index), state.engine_index
    )
    unread = unread_gpus(
        holding,
        engines.stays,
        engine_windows,
        state.gpus,
        state.forgotten_gpus,
        gpus.step,
        edges,
    )
    engine_windows = with_unread(
        tokens.with_server(engine_windows, engines.index), unread, ("server",), edges.window_ms
    )
    held = with_stays(holding.held, state.gpus, gpus.step, edges)
    engine_windows = tokens.with_stopped(engine_windows, gpus.windows, held, engines.stays, edges.window_ms)
    token_rows = tokens.token_rows(engine_windows, edges.window_ms)
    minutes, open_minutes = gpu_minutes(state, gpus.windows, edges.edge_ms)
    samples = tokens.samples(_on_time(engine_windows, edges), gpus.windows, held, edges)
    pool_windows = waterfall.pool_windows(
        waterfall.by_model(gpus.windows, parts), state.gpu_index, state.gpu_renames, edges.window_ms
    )
    power, learned = learning.power_rows(
        state, pool_windows, demand, samples.select_seq(*SAMPLE_COLUMNS), edges, config
    )
    power_totals, available_totals = totals.add_power(
        state.power_totals, state.available_totals, power, config.pue
    )
    of_gpus = remembered(
        GPUS,
        Entities(
            state.gpus,
            state.forgotten_gpus,
            state.gone_gpus,
            state.open_gpus,
            state.gpu_gaps,
            state.gpu_index,
        ),
        gpus.step,
        gpus.intervals,
        gpus.gaps,
        edges,
        [open_minutes],
    )
    of_engines = remembered(
        ENGINES,
        Entities(
            state.engines,
            state.forgotten_engines,
            state.gone_engines,
            state.open_engines,
            state.engine_gaps,
            engines.index,
        ),
        engines.step,
        engines.intervals,
        engines.gaps,
        edges,
        # segments are kept for an hour: until then no other engine may have the id that stands in them
        [engines.segments.select_seq(id="model")],
    )
    after = replace(
        state,
        edge_ms=edges.edge_ms,
        gpu_index=of_gpus.index,
        # gaps that wait to be booked began up to forget_ms before the edge of then
        gpu_renames=forget(state.gpu_renames, of_gpus.index, edges.edge_ms - 2 * config.forget_ms),
        gpus=of_gpus.last,
        forgotten_gpus=of_gpus.forgotten,
        gone_gpus=of_gpus.gone,
        open_gpus=of_gpus.open,
        gpu_gaps=of_gpus.gaps,
        pending_gpus=gpus.step.pending,
        engine_index=of_engines.index,
        engines=of_engines.last,
        forgotten_engines=of_engines.forgotten,
        gone_engines=of_engines.gone,
        open_engines=of_engines.open,
        engine_gaps=of_engines.gaps,
        pending_engines=engines.step.pending,
        segments=engines.segments,
        holding=holding,
        minutes=open_minutes,
        samples=learned.samples,
        histogram=learned.histogram,
        pairs=learned.pairs,
        yields=learned.yields,
        history=rolling.extend(
            state.history,
            _on_time(power, edges),
            _on_time(token_rows, edges),
            unread,
            activity.unloaded(engines.index, engines.step.last),
            edges,
        ),
        power_totals=power_totals,
        available_totals=available_totals,
        token_totals=totals.add_tokens(state.token_totals, token_rows),
        measured_totals=totals.add_measured(state.measured_totals, gpus.intervals, state.gpu_index),
        booked=totals.last_booked(state.booked, edges.edge_ms, power, token_rows),
        latest_power=where(power, power["window_start_ms"] == edges.edge_ms - edges.window_ms),
        offenders=_offenders(gpus.windows, state.gpu_index, edges, config),
    )
    dropped = {("gpu", reason): n for reason, n in gpus.step.dropped.items()}
    dropped |= {("engine", reason): n for reason, n in engines.step.dropped.items()}
    return _without_gone(after, edges.edge_ms), Closing(power, token_rows, minutes, dropped)


def _without_gone(state: MeterState, edge_ms: int) -> MeterState:
    gone = totals.gone(state.booked, edge_ms)
    return state if gone.is_empty() else replace(state, **frames_of_others(gone, state, _COUNTED))


def _on_time(rows: pl.DataFrame, edges: Edges) -> pl.DataFrame:
    return where(rows, rows["window_start_ms"] >= edges.previous_ms)


def _offenders(
    gpu_windows: pl.DataFrame, gpus: pl.DataFrame, edges: Edges, config: MeterConfig
) -> pl.DataFrame:
    last_window = pl.col("window_start_ms") == edges.edge_ms - edges.window_ms
    wasted = (
        gpu_windows.filter(last_window & pl.col("state").is_in(IDLE_STATES) & (pl.col("draw_mj") > 0))
        .group_by("id", "state")
        .agg(pl.col("draw_mj").sum().alias("wasted_mj"))
    )
    # all that tie with the last one stay, for the names to decide
    least = wasted["wasted_mj"].top_k(config.worst_offenders).min()
    wasted = where(wasted, wasted["wasted_mj"] >= least) if least is not None else wasted
    return (
        with_names(wasted, gpus, "site", "pool", "node", "gpu_uuid", "product")
        .sort("wasted_mj", "gpu_uuid", descending=[True, False])
        .head(config.worst_offenders)
        .select_seq(*OFFENDER_COLUMNS)
    )
