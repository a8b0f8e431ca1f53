"""The meter: raw rows of a partition's pools to its ledger of joules and tokens. No money here."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import polars as pl
from prometheus_client import Metric

from idlewatt.processors.meter import intake
from idlewatt.processors.meter.activity import with_servers
from idlewatt.processors.meter.closing import MINUTE_MS, Closing, close
from idlewatt.processors.meter.config import MeterConfig
from idlewatt.processors.meter.families import families
from idlewatt.processors.meter.state import ENGINE_ATTRIBUTES, ENGINE_KEY, GPU_ATTRIBUTES, GPU_KEY, MeterState
from idlewatt.processors.meter.timeline import Edges, with_ids
from idlewatt.processors.stage import Batch, Folded
from idlewatt.stream import records, topics
from idlewatt.stream.encoding import encode_table
from idlewatt.stream.log import Record
from idlewatt.stream.records import Schema


class MeterStage:
    """Stage over idlewatt.gpu and idlewatt.engine."""

    name: Final = "meter"
    inputs: Final = (topics.GPU, topics.ENGINE)
    schemas: Final = (records.GPU, records.ENGINE)

    def __init__(self, config: MeterConfig) -> None:
        self._config = config

    def empty(self) -> MeterState:
        return MeterState.empty()

    def snapshot(self, state: MeterState) -> bytes:
        return state.snapshot()

    def restore(self, snapshot: bytes) -> MeterState:
        return MeterState.restore(snapshot)

    def families(self, states: Sequence[MeterState]) -> list[Metric]:
        return families(states, self._config)

    def fold(self, state: MeterState, batch: Batch) -> Folded[MeterState]:
        """Take the batch in, and close every window whose time has come."""
        state, rejected, late = self._take_in(state, batch)
        closings: list[Closing] = []
        target_ms = self._closable_ms(state)
        while state.edge_ms is not None and state.edge_ms < target_ms:
            edges = Edges(
                state.edge_ms, self._next_edge(state, target_ms), self._config.window_ms, self._config.hold_ms
            )
            state, closing = close(state, edges, self._config)
            closings.append(closing)
        for closing in closings:
            for key, count in closing.dropped.items():
                rejected[key] = rejected.get(key, 0) + count
        return Folded(
            state=state,
            records=[record for closing in closings for record in _ledger_records(closing)],
            needed=_needed(state),
            rejected=rejected,
            late=late,
            event_ms=max(state.newest_gpu_ms, state.newest_engine_ms) or None,
            moved=bool(closings),
        )

    def _take_in(
        self, state: MeterState, batch: Batch
    ) -> tuple[MeterState, dict[tuple[str, str], int], dict[str, int]]:
        config = self._config
        rejected: dict[tuple[str, str], int] = {}
        late: dict[str, int] = {}
        gpus, left_out = intake.gpu_rows(
            _frame(batch, records.GPU), batch.now_ms, config.grace_ms, config.provisioned_mw
        )
        rejected |= {("gpu", reason): count for reason, count in left_out.items()}
        engines, left_out = intake.engine_rows(_frame(batch, records.ENGINE), batch.now_ms, config.grace_ms)
        rejected |= {("engine", reason): count for reason, count in left_out.items()}

        state = replace(
            state,
            newest_gpu_ms=_newest(gpus, state.newest_gpu_ms),
            newest_engine_ms=_newest(engines, state.newest_engine_ms),
        )
        state = replace(state, newest_ms=self._newest_ms(state, batch))
        if state.edge_ms is None:
            firsts = [int(frame.get_column("ts_ms").min()) for frame in (gpus, engines) if frame.height]  # type: ignore[arg-type]
            if firsts:
                state = replace(state, edge_ms=min(firsts) // config.window_ms * config.window_ms)
        if gpus.height:
            gpus = self._waiting(gpus, state, 0, late, records.GPU)
            gpus, index = with_ids(state.gpu_index, gpus, GPU_KEY, GPU_ATTRIBUTES)
            state = replace(
                state,
                gpu_index=index,
                pending_gpus=pl.concat([state.pending_gpus, _like(gpus, state.pending_gpus)]),
            )
        if engines.height:
            # what engines did must be known before the GPU rows of the same time are judged
            engines = self._waiting(engines, state, config.hold_ms, late, records.ENGINE)
            engines, index = with_ids(state.engine_index, engines, ENGINE_KEY, ENGINE_ATTRIBUTES)
            pending = pl.concat([state.pending_engines, _like(engines, state.pending_engines)])
            state = replace(state, engine_index=with_servers(index), pending_engines=pending)
        return state, rejected, late

    def _waiting(
        self, rows: pl.DataFrame, state: MeterState, ahead_ms: int, late: dict[str, int], schema: Schema
    ) -> pl.DataFrame:
        """Add eff_ms: a row for a closed window waits like a live one, for what else comes late with it."""
        is_late = pl.col("ts_ms") < pl.lit(state.edge_ms, pl.Int64)
        waits_until = pl.max_horizontal("ts_ms", pl.lit(state.newest_ms - ahead_ms))
        rows = rows.with_columns(eff_ms=pl.when(is_late).then(waits_until).otherwise("ts_ms"))
        count = rows.select((pl.col("eff_ms") > pl.col("ts_ms")).sum()).item()
        if count:
            late[schema.name] = int(count)
        return rows

    def _newest_ms(self, state: MeterState, batch: Batch) -> int:
        """The event time this partition has reached.

        While one topic is behind, the other must not run ahead of it: its rows would be judged without it. A
        partition that has read all there is follows the clock, so that a dead rack goes dark while nobody looks.
        """
        newest = {topics.GPU: state.newest_gpu_ms, topics.ENGINE: state.newest_engine_ms}
        behind = [ms for topic, ms in newest.items() if topic not in batch.at_end]
        reached = min(behind) if behind else max(newest.values())
        if not behind and state.edge_ms is not None:
            reached = max(reached, batch.now_ms - self._config.grace_ms)
        return max(state.newest_ms, reached)

    def _closable_ms(self, state: MeterState) -> int:
        window_ms = self._config.window_ms
        return (state.newest_ms - self._config.grace_ms) // window_ms * window_ms

    def _next_edge(self, state: MeterState, target_ms: int) -> int:
        """Minute by minute while there is something to read, for the yardstick moves by minutes; silence at one go."""
        assert state.edge_ms is not None
        waiting = [
            int(frame.get_column("eff_ms").min())  # type: ignore[arg-type]
            for frame in (state.pending_gpus, state.pending_engines)
            if frame.height
        ]
        minute_ms = max(state.edge_ms, min(waiting, default=target_ms)) // MINUTE_MS * MINUTE_MS
        return min(target_ms, minute_ms if minute_ms > state.edge_ms else minute_ms + MINUTE_MS)


def _frame(batch: Batch, schema: Schema) -> pl.DataFrame:
    return batch.frames[schema.name]


def _like(rows: pl.DataFrame, other: pl.DataFrame) -> pl.DataFrame:
    return rows.select(other.columns)


def _newest(rows: pl.DataFrame, known_ms: int) -> int:
    return max(known_ms, int(rows.get_column("ts_ms").max())) if rows.height else known_ms  # type: ignore[arg-type]


def _needed(state: MeterState) -> Mapping[str, int]:
    """Rows that wait are not in the snapshot: they are read again. What was taken already then counts as a repeat."""
    waiting = {topics.GPU: state.pending_gpus, topics.ENGINE: state.pending_engines}
    return {
        topic: int(frame.get_column("src").min())  # type: ignore[arg-type]
        for topic, frame in waiting.items()
        if frame.height
    }


def _ledger_records(closing: Closing) -> list[Record]:
    found: list[Record] = []
    for schema, rows in (
        # tokens first: the economy prices a window's lost tokens by the mix up to that window
        (records.TOKENS, closing.tokens),
        (records.POWER, closing.power),
        (records.GPU_MINUTE, closing.minutes),
    ):
        for (site,), part in rows.partition_by("site", as_dict=True, maintain_order=True).items():
            found.append(
                Record(topics.LEDGER, topics.site_key(str(site)), encode_table(schema, part.to_arrow()))
            )
    return found
