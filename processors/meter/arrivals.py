"""Rows that have come and wait for their window: how long, and what the partition's clock says."""

from dataclasses import replace

import polars as pl

from idlewatt.processors.meter import intake
from idlewatt.processors.meter.activity import with_servers
from idlewatt.processors.meter.config import MeterConfig
from idlewatt.processors.meter.ids import ids_of, with_ids
from idlewatt.processors.meter.renames import GPU_ATTRIBUTES, renamed
from idlewatt.processors.meter.state import (
    ENGINE_ATTRIBUTES,
    ENGINE_KEY,
    GPU_KEY,
    MeterState,
)
from idlewatt.processors.stage import Batch
from idlewatt.stream import records, topics

Counts = dict[tuple[str, str], int]


def take_in(
    state: MeterState, batch: Batch, config: MeterConfig
) -> tuple[MeterState, Counts, dict[str, int]]:
    """Add a batch to what waits. Also returns rows left out by (schema, reason), and late rows by schema."""
    named_gpus, named_engines = (batch.entities[schema.name] for schema in (records.GPU, records.ENGINE))
    gpu_ids = ids_of(named_gpus, state.gpu_index, GPU_KEY, GPU_ATTRIBUTES, state.gpu_ids)
    engine_ids = ids_of(named_engines, state.engine_index, ENGINE_KEY, ENGINE_ATTRIBUTES, state.engine_ids)
    gpus, bad_gpus = intake.gpu_rows(
        batch.frames[records.GPU.name],
        named_gpus,
        gpu_ids.too_long,
        batch.now_ms,
        config.grace_ms,
        config.provisioned_mw,
    )
    engines, bad_engines = intake.engine_rows(
        batch.frames[records.ENGINE.name], named_engines, engine_ids.too_long, batch.now_ms, config.grace_ms
    )
    # what the clock said before these rows; after a restart it has been a grace past the edge at least
    before_ms = max(state.newest_ms, (state.edge_ms or 0) + config.grace_ms)
    state = replace(
        state,
        newest_gpu_ms=max(state.newest_gpu_ms, _extreme(gpus.get_column("ts_ms").max(), 0)),
        newest_engine_ms=max(state.newest_engine_ms, _extreme(engines.get_column("ts_ms").max(), 0)),
    )
    state = replace(state, newest_ms=_newest_ms(state, batch, config))
    if _extreme(gpus.get_column("ts_ms").max(), 0) < state.newest_ms:
        # no row says when the late ones came, and what was known of it before is lost with a restart
        before_ms = max(before_ms, state.newest_ms)
    if state.edge_ms is None and (gpus.height or engines.height):
        far_ms = 1 << 62
        first_ms = min(_extreme(frame.get_column("ts_ms").min(), far_ms) for frame in (gpus, engines))
        # of a clock that was set to its maker's day, nobody is known any more; closing all windows since takes hours
        first_ms = max(first_ms, max(state.newest_gpu_ms, state.newest_engine_ms) - config.forget_ms)
        # others of the same time may still be under way
        state = replace(state, edge_ms=(first_ms - config.grace_ms) // config.window_ms * config.window_ms)
    late = {}
    if gpus.height:
        gpus, late[records.GPU.name] = _waiting(gpus, state, config, before_ms)
        gpus, index = with_ids(gpu_ids, gpus, GPU_KEY, GPU_ATTRIBUTES, (state.gpus, state.pending_gpus))
        renames, index = renamed(state.gpu_renames, state.gpu_index, index, state.edge_ms)
        waiting = pl.concat([state.pending_gpus, gpus.select_seq(state.pending_gpus.columns)])
        state = replace(state, gpu_index=index, gpu_renames=renames, gpu_ids=gpu_ids, pending_gpus=waiting)
    if engines.height:
        # what engines did must be known before the GPU rows of the same time are judged: these do not wait
        engines, late[records.ENGINE.name] = _waiting(engines, state, config, None)
        before = state.engines, state.pending_engines
        engines, index = with_ids(engine_ids, engines, ENGINE_KEY, ENGINE_ATTRIBUTES, before)
        waiting = pl.concat([state.pending_engines, engines.select_seq(state.pending_engines.columns)])
        index = with_servers(index)
        state = replace(state, engine_index=index, engine_ids=engine_ids, pending_engines=waiting)
    left_out = {("gpu", reason): count for reason, count in bad_gpus.items()}
    left_out |= {("engine", reason): count for reason, count in bad_engines.items()}
    return state, left_out, {schema: count for schema, count in late.items() if count}


def _waiting(
    rows: pl.DataFrame, state: MeterState, config: MeterConfig, before_ms: int | None
) -> tuple[pl.DataFrame, int]:
    """Add eff_ms: a row for a closed window waits like a live one, for what else comes late with it.

    It is taken a grace after it has come, as one that comes in time is. When it came, and what was closed then, is
    what would be so if rows came one by one, so that nothing depends on how many are read at once. `before_ms`: the
    clock before these rows; None where they need not wait.
    """
    newest_ms = pl.col("ts_ms").cum_max()
    closed_ms = (newest_ms - config.grace_ms) // config.window_ms * config.window_ms
    is_late = pl.col("ts_ms") < pl.max_horizontal(closed_ms, pl.lit(state.edge_ms, pl.Int64))
    late = rows.select_seq(is_late).to_series()
    if before_ms is None or not late.any():
        # one column under two names takes no memory for the second
        return rows.hstack([rows["ts_ms"].alias("eff_ms")]), int(late.sum())
    until = pl.max_horizontal(newest_ms, pl.lit(before_ms)) + config.hold_ms
    return rows.with_columns_seq(eff_ms=pl.when(late).then(until).otherwise("ts_ms")), int(late.sum())


def _newest_ms(state: MeterState, batch: Batch, config: MeterConfig) -> int:
    """The event time this partition has reached.

    While one topic is behind, the other must not run ahead of it: its rows would be judged without it. A
    partition that has read all there is follows the clock, so that a dead rack goes dark while nobody looks.
    """
    newest = {topics.GPU: state.newest_gpu_ms, topics.ENGINE: state.newest_engine_ms}
    behind = [ms for topic, ms in newest.items() if topic not in batch.at_end]
    reached = min(behind) if behind else max(newest.values())
    if not behind and state.edge_ms is not None:
        reached = max(reached, batch.now_ms - config.grace_ms)
    return max(state.newest_ms, reached)


def _extreme(found: object, otherwise: int) -> int:
    return found if isinstance(found, int) else otherwise
