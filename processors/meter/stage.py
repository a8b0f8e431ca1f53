"""The meter: raw rows of a partition's pools to its ledger of joules and tokens. No money here."""

import math
from collections.abc import Mapping, Sequence
from typing import Final

from idlewatt.processors.booking import messages
from idlewatt.processors.families import Family
from idlewatt.processors.meter import arrivals, backlog
from idlewatt.processors.meter.closing import Closing, close
from idlewatt.processors.meter.config import MeterConfig
from idlewatt.processors.meter.families import families
from idlewatt.processors.meter.intake import ENGINE_COLUMNS, GPU_COLUMNS
from idlewatt.processors.meter.state import MeterState
from idlewatt.processors.meter.timeline import Edges
from idlewatt.processors.stage import Batch, Folded
from idlewatt.stream import metric_names, records, topics
from idlewatt.stream.log import Record

# One fold books at most about so many windows of GPUs and engines: after hours of silence it catches up with
# the clock in several, each committed before the next.
_WINDOWS_PER_FOLD: Final = 2_000_000


class MeterStage:
    """Stage over idlewatt.gpu and idlewatt.engine."""

    name: Final = "meter"
    inputs: Final = (topics.GPU, topics.ENGINE)
    # rows wait in the state for those of the other topic
    first: Final[frozenset[str]] = frozenset()
    columns: Final = {records.GPU: GPU_COLUMNS, records.ENGINE: ENGINE_COLUMNS}
    names_apart: Final = frozenset({records.GPU, records.ENGINE})
    gather_s: Final = 0.5

    def __init__(self, config: MeterConfig) -> None:
        self._config = config
        self.at_most: Final = {metric_names.GPU_WASTED_WATTS.name: config.worst_offenders}

    def empty(self) -> MeterState:
        return MeterState.empty()

    def snapshot(self, state: MeterState) -> bytes:
        return state.snapshot()

    def restore(self, snapshot: bytes) -> MeterState:
        return MeterState.restore(snapshot)

    def families(self, states: Sequence[MeterState]) -> list[Family]:
        return families(states, self._config)

    def waits(self, state: MeterState, batch: Batch) -> bool:
        return False

    def fold(self, state: MeterState, batch: Batch) -> Folded[MeterState]:
        """Take the batch in, and close every window whose time has come."""
        state, rejected, late = arrivals.take_in(state, batch, self._config)
        closings: list[Closing] = []
        target_ms = self._closable_ms(state)
        room = _WINDOWS_PER_FOLD
        while state.edge_ms is not None and state.edge_ms < target_ms and room > 0:
            next_ms = self._next_edge(state, target_ms, room)
            edges = Edges(
                state.edge_ms,
                next_ms,
                # until then of one that was begun in another length
                math.gcd(state.edge_ms, self._config.window_ms),
                self._config.hold_ms,
                self._config.forget_ms,
            )
            state, closing = close(state, edges, self._config)
            closings.append(closing)
            room -= _entities(state) * (edges.edge_ms - edges.previous_ms) // edges.window_ms
        while backlog.waits(state) and room > 0:
            state, closing, booked = backlog.book(state, room, self._config)
            closings.append(closing)
            room -= booked
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

    def _closable_ms(self, state: MeterState) -> int:
        window_ms = self._config.window_ms
        return (state.newest_ms - self._config.grace_ms) // window_ms * window_ms

    def _next_edge(self, state: MeterState, target_ms: int, room: int) -> int:
        """As far as there is room for, and one window at least; but only to where the next begins, if windows were shorter before."""
        assert state.edge_ms is not None
        window_ms = self._config.window_ms
        begun_ms = state.edge_ms % window_ms
        windows = 1 if begun_ms else max(room // max(_entities(state), 1), 1)
        return min(target_ms, state.edge_ms - begun_ms + windows * window_ms)


def _entities(state: MeterState) -> int:
    """Those that were read, and those whose first readings wait."""
    return state.gpu_index.height + state.engine_index.height


def _needed(state: MeterState) -> Mapping[str, int]:
    """Rows that wait are not in the snapshot: they are read again. What was taken already then counts as a repeat."""
    waiting = {topics.GPU: state.pending_gpus, topics.ENGINE: state.pending_engines}
    return {
        topic: int(frame.get_column("src").min())  # type: ignore[arg-type]
        for topic, frame in waiting.items()
        if frame.height
    }


def _ledger_records(closing: Closing) -> list[Record]:
    return [
        # tokens first: the economy prices a window's lost tokens by the mix up to that window
        # an engine's models together: one alone may have been unloaded
        *messages(topics.LEDGER, records.TOKENS, closing.tokens, together=("pool", "window_start_ms")),
        # what comes after a part of its window was read would be late, and in no figure of the last hour
        *messages(topics.LEDGER, records.POWER, closing.power, together=("pool", "window_start_ms")),
        *messages(topics.LEDGER, records.GPU_MINUTE, closing.minutes),
    ]
