"""One step of the meter: from one window edge to the next, readings in, ledger rows out."""

from dataclasses import dataclass, replace
from typing import Final

import polars as pl

from idlewatt.processors.gone_pools import frames_of_others
from idlewatt.processors.meter import activity, forgotten, learning, rolling, tokens, totals, waterfall
from idlewatt.processors.meter.classifying import classify, steady_windows, whole_windows
from idlewatt.processors.meter.config import MeterConfig
from idlewatt.processors.meter.cutting import silence, split, still_open, with_gaps
from idlewatt.processors.meter.gaps import put_off, taken_back
from idlewatt.processors.meter.learning import MINUTE_MS
from idlewatt.processors.meter.renames import forget, with_booked_names
from idlewatt.processors.meter.rows import as_one, sums_by, where, with_names
from idlewatt.processors.meter.state import (
    ENGINE_CARRY,
    ENGINE_GAP,
    ENGINE_INTERVAL,
    ENGINE_KEY,
    GPU_CARRY,
    GPU_GAP,
    GPU_INTERVAL,
    GPU_KEY,
    OFFENDER_COLUMNS,
    SAMPLE_COLUMNS,
    MeterState,
)
from idlewatt.processors.meter.timeline import NEVER_MS, Advance, Edges, Steady, advance
from idlewatt.stream import records
from idlewatt.stream.decoding import empty_frame, frame_schema
from idlewatt.stream.records import TOKEN_COUNTS

ENERGY: Final = ("energy_mj",)
# beside the counter, what a piece of a GPU's time is judged by
_JUDGED_BY: Final = ("power_limit_mw", "has_process")
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
    engines = advance(
        state.engines,
        state.pending_engines,
        edges,
        TOKEN_COUNTS,
        ENGINE_CARRY,
        state.gone_engines,
        tokens.TOKEN_BOUNDS,
    )
    engine_intervals = with_gaps(tokens.without_unknown(engines.intervals), TOKEN_COUNTS)
    # a step may be longer than segments are kept: none of its own windows may lack them
    segments = activity.remember(
        state.segments,
        activity.segments_of(engine_intervals, state.engine_index, edges.edge_ms),
        edges.previous_ms,
    )
    engine_index = activity.with_first(state.engine_index, engines)
    servers = activity.heard(engine_index, engines.last, config.forget_ms)
    holding = activity.holding(servers, state.gpu_index, state.holding)
    ranked, models = activity.by_name(segments, engine_index)
    done = activity.in_windows(ranked, edges.previous_ms, edges.edge_ms, edges.window_ms)
    whole = whole_windows(done, holding.alone, edges.window_ms)
    gpus = advance(
        state.gpus,
        state.pending_gpus,
        edges,
        ENERGY,
        GPU_CARRY,
        state.gone_gpus,
        waterfall.ENERGY_BOUNDS,
        steady=Steady(steady_windows(whole, holding.held, state.gpu_index, edges), _JUDGED_BY),
    )
    gpu_intervals = with_gaps(waterfall.integrate_missing(gpus.intervals), ENERGY).select_seq(*GPU_INTERVAL)
    engine_intervals = engine_intervals.select_seq(*ENGINE_INTERVAL)
    silent = _gpu_silence(gpus, edges, config)
    gpu_pieces, gpu_gaps = _pieces(state.open_gpus, gpu_intervals, silent, gpus, edges, ENERGY)
    silent = silence(engines, edges, config.forget_ms, TOKEN_COUNTS, ())
    engine_pieces, engine_gaps = _pieces(
        state.open_engines, engine_intervals, silent, engines, edges, TOKEN_COUNTS
    )
    earliest_ms = gpu_pieces["window_start_ms"].min()
    if isinstance(earliest_ms, int) and earliest_ms < edges.previous_ms:
        late = activity.in_windows(ranked, earliest_ms, edges.previous_ms, edges.window_ms)
        done = pl.concat([late, done])
        whole = whole_windows(done, holding.alone, edges.window_ms)
    classified = classify(
        waterfall.with_amounts(gpu_pieces), done, whole, holding.held, servers, edges.window_ms
    )
    if gpu_gaps.height or gpu_pieces["late"].any():
        changes, later = _limit_changes(state, gpus, gpu_pieces.filter("late"), gpu_gaps, edges, config)
        classified = pl.concat([classified, changes], rechunk=True)
        gpu_gaps = _both(gpu_gaps, later)
    gpu_windows = waterfall.gpu_windows(classified, models)
    engine_windows = tokens.engine_windows(engine_pieces)
    if gpu_gaps.height:
        gpu_gaps = gpu_gaps.join(_limits(state.gpus), on="id", how="left").filter(waterfall.to_book())
    if engine_gaps.height:
        engine_gaps = engine_gaps.filter(tokens.to_book())
    dark_gpus, forgotten_gpus = forgotten.back(
        state.forgotten_gpus, gpus, state.gpu_index, GPU_KEY, config.forget_ms
    )
    dark_engines, forgotten_engines = forgotten.back(
        state.forgotten_engines, engines, state.engine_index, ENGINE_KEY, config.forget_ms
    )
    gpu_gaps = _both(_both(state.gpu_gaps, gpu_gaps), taken_back(dark_gpus, GPU_GAP, ENERGY))
    engine_gaps = _both(
        _both(state.engine_gaps, engine_gaps), taken_back(dark_engines, ENGINE_GAP, TOKEN_COUNTS)
    )

    demand = activity.demand(done, engine_index)
    shares, parts = tokens.serving_shares(
        gpu_windows, engine_windows, state.engine_index, holding.held, segments, edges.window_ms
    )
    pool_windows = waterfall.pool_windows(
        waterfall.by_model(gpu_windows, parts), state.gpu_index, state.gpu_renames, edges.window_ms
    )
    engine_windows = tokens.with_joules(
        engine_windows, tokens.joules(shares, state.gpu_index), state.engine_index
    )
    token_rows = tokens.token_rows(engine_windows, edges.window_ms)
    minutes, open_minutes = gpu_minutes(state, gpu_windows, edges.edge_ms)

    on_time = _on_time(engine_windows, edges)
    samples = tokens.samples(on_time, gpu_windows, holding, engine_index, edges)
    power, learned = learning.power_rows(
        state, pool_windows, demand, samples.select_seq(*SAMPLE_COLUMNS), edges, config
    )
    power_totals, available_totals = totals.add_power(
        state.power_totals, state.available_totals, power, config.pue
    )
    since_ms = edges.edge_ms - config.forget_ms
    kept_gpus, lost_gpus = _parted(gpus.last, since_ms)
    kept_engines, lost_engines = _parted(engines.last, since_ms)
    gone_gpus = _read_again(state.gone_gpus, gpus)
    gone_engines = _read_again(state.gone_engines, engines)
    gpu_index = _known(state.gpu_index, kept_gpus, gpus, open_minutes, gpu_gaps, gone_gpus)
    after = replace(
        state,
        edge_ms=edges.edge_ms,
        gpu_index=gpu_index,
        # gaps that wait to be booked began up to forget_ms before the edge of then
        gpu_renames=forget(state.gpu_renames, gpu_index, since_ms - config.forget_ms),
        gpus=kept_gpus,
        forgotten_gpus=forgotten.remember(
            forgotten_gpus,
            lost_gpus.rename({"power_limit_mw": "power_limit_mw_0"}),
            state.gpu_index,
            GPU_KEY,
            edges.edge_ms,
        ),
        gone_gpus=gone_gpus,
        open_gpus=still_open(pl.concat([state.open_gpus, gpu_intervals]), edges),
        engines=kept_engines,
        forgotten_engines=forgotten.remember(
            forgotten_engines, lost_engines, state.engine_index, ENGINE_KEY, edges.edge_ms
        ),
        gone_engines=gone_engines,
        open_engines=still_open(pl.concat([state.open_engines, engine_intervals]), edges),
        gpu_gaps=gpu_gaps,
        engine_gaps=engine_gaps,
        segments=segments,
        minutes=open_minutes,
        samples=learned.samples,
        histogram=learned.histogram,
        pairs=learned.pairs,
        yields=learned.yields,
        history=rolling.extend(
            state.history,
            _on_time(power, edges),
            _on_time(token_rows, edges),
            activity.unread_gpus(holding),
            activity.unloaded(engine_index, engines.last),
            edges.edge_ms,
        ),
        power_totals=power_totals,
        available_totals=available_totals,
        token_totals=totals.add_tokens(state.token_totals, token_rows),
        measured_totals=totals.add_measured(state.measured_totals, gpu_intervals, state.gpu_index),
        booked=totals.last_booked(state.booked, edges.edge_ms, power, token_rows),
        pending_gpus=gpus.pending,
        # segments are kept for an hour: until then no other engine may have the id that stands in them
        engine_index=_known(
            engine_index, kept_engines, engines, engine_gaps, gone_engines, segments.select_seq(id="model")
        ),
        pending_engines=engines.pending,
        latest_power=where(power, power["window_start_ms"] == edges.edge_ms - edges.window_ms),
        offenders=_offenders(gpu_windows, state.gpu_index, edges, config),
        holding=holding,
    )
    dropped = {("gpu", reason): n for reason, n in gpus.dropped.items()}
    dropped |= {("engine", reason): n for reason, n in engines.dropped.items()}
    return _without_gone(after, edges.edge_ms), Closing(power, token_rows, minutes, dropped)


def _without_gone(state: MeterState, edge_ms: int) -> MeterState:
    gone = totals.gone(state.booked, edge_ms)
    return state if gone.is_empty() else replace(state, **frames_of_others(gone, state, _COUNTED))


def _parted(last: pl.DataFrame, since_ms: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Those that were read since, and those that are forgotten."""
    kept = last["ts_ms"] > since_ms
    return where(last, kept), where(last, ~kept)


def _pieces(
    opened: pl.DataFrame,
    intervals: pl.DataFrame,
    silent: pl.DataFrame,
    step: Advance,
    edges: Edges,
    counters: tuple[str, ...],
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """What was read and what was silent, cut at the windows; and the long gaps, which are booked later."""
    now, from_edge, gaps = put_off(_both(intervals, silent), edges, step.new)
    return split(_both(opened, from_edge), now, edges, counters, step.new), gaps


def _gpu_silence(gpus: Advance, edges: Edges, config: MeterConfig) -> pl.DataFrame:
    silent = silence(gpus, edges, config.forget_ms, ENERGY, _JUDGED_BY)
    return silent.with_columns_seq(estimated=pl.lit(False))


def _both(rows: pl.DataFrame, seldom: pl.DataFrame) -> pl.DataFrame:
    return pl.concat([rows, seldom.select_seq(rows.columns)]) if seldom.height else rows


def _on_time(rows: pl.DataFrame, edges: Edges) -> pl.DataFrame:
    return where(rows, rows["window_start_ms"] >= edges.previous_ms)


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
    silent, _, later = put_off(_gpu_silence(came, closed, config), edges, gpus.new)
    pieces = [
        rows.select_seq("id", "window_start_ms", "from_ms", "to_ms", "power_limit_mw_0")
        for rows in (late, split(silent.clear(), silent, closed, ENERGY, gpus.new))
    ]
    return waterfall.limit_changes(pl.concat(pieces), booked), later


def gpu_minutes(
    state: MeterState, gpu_windows: pl.DataFrame, edge_ms: int
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """GPU rows per minute: the ledger rows of minutes that are over, and what is to be kept."""
    minute = (pl.col("window_start_ms") // MINUTE_MS * MINUTE_MS).alias("minute_start_ms")
    new = gpu_windows.select_seq("id", minute, "state", "gpu_ms", "draw_mj", "headroom_mj")
    rows = pl.concat([state.minutes, new], rechunk=True)
    states = rows["state"].cast(waterfall.STATE).to_physical().cast(pl.Int64)
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


def _offenders(
    gpu_windows: pl.DataFrame, gpus: pl.DataFrame, edges: Edges, config: MeterConfig
) -> pl.DataFrame:
    last_window = pl.col("window_start_ms") == edges.edge_ms - edges.window_ms
    wasted = (
        gpu_windows.filter(last_window & pl.col("state").is_in(waterfall.IDLE) & (pl.col("draw_mj") > 0))
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


def _read_again(gone: pl.DataFrame, step: Advance) -> pl.DataFrame:
    """Of readings that are gone, those whose message is read again after a restart: it is not older than all that wait."""
    rows = pl.concat([gone, step.gone]) if step.gone.height else gone
    if rows.is_empty():
        return rows
    oldest = step.pending["src"].min()
    return where(rows, rows["src"] >= oldest) if isinstance(oldest, int) else rows.clear()


def _known(index: pl.DataFrame, kept: pl.DataFrame, step: Advance, *unfinished: pl.DataFrame) -> pl.DataFrame:
    """The index without entities that are forgotten, have nothing waiting and nothing unfinished."""
    if kept.height == index.height:
        return index
    alive = pl.concat([frame.select_seq("id") for frame in (kept, step.pending, *unfinished)]).unique()
    return index.join(alive, on="id", how="semi", maintain_order="left")
