"""All that the meter remembers of one partition between two folds."""

from dataclasses import dataclass
from typing import Any, Final, Self

import polars as pl

from idlewatt.processors.gone_pools import BOOKED_COLUMNS
from idlewatt.processors.meter.activity import SEGMENT_COLUMNS, Holding
from idlewatt.processors.meter.gaps import GAP_COLUMNS
from idlewatt.processors.meter.ids import Ids
from idlewatt.processors.meter.renames import GPU_ATTRIBUTES, RENAME_COLUMNS
from idlewatt.processors.meter.rolling import HISTORY_COLUMNS
from idlewatt.processors.meter.timeline import GONE_COLUMNS
from idlewatt.processors.meter.totals import (
    AVAILABLE_COLUMNS,
    MEASURED_COLUMNS,
    POWER_COLUMNS,
    TOKEN_COLUMNS,
)
from idlewatt.processors.meter.yardstick import HISTOGRAM_COLUMNS, PAIR, YIELD_COLUMNS
from idlewatt.processors.snapshot import read_snapshot, write_snapshot
from idlewatt.stream import records
from idlewatt.stream.frames import empty_frame
from idlewatt.stream.records import TOKEN_COUNTS

LAYOUT: Final = "meter/5"
GPU_KEY: Final = ("site", "pool", "gpu_uuid")
# with the node: engines of two nodes may call themselves alike
ENGINE_KEY: Final = ("site", "pool", "node", "engine", "model_name")
# gpus: the UUIDs it names, one a line
ENGINE_ATTRIBUTES: Final = ("advance", "gpus")
GPU_CARRY: Final = ("power_mw", "power_limit_mw", "has_process")
ENGINE_CARRY: Final = ("requests_running", "requests_waiting")

GPU_READING: Final[dict[str, Any]] = {
    "ts_ms": pl.Int64,
    "energy_mj": pl.Int64,
    "power_mw": pl.Int64,
    "power_limit_mw": pl.Int64,
    "epoch_ms": pl.Int64,
    "has_process": pl.Boolean,
    "id": pl.Int64,
}
ENGINE_READING: Final[dict[str, Any]] = {
    "ts_ms": pl.Int64,
    **dict.fromkeys(TOKEN_COUNTS, pl.Int64),
    "requests_running": pl.Int64,
    "requests_waiting": pl.Int64,
    "epoch_ms": pl.Int64,
    "id": pl.Int64,
}
_WAITING: Final[dict[str, Any]] = {"src": pl.Int64, "eff_ms": pl.Int64}
_INTERVAL: Final[dict[str, Any]] = {
    "id": pl.Int64,
    "t0_ms": pl.Int64,
    "start_ms": pl.Int64,
    "end_ms": pl.Int64,
    "measured": pl.Boolean,
}
GPU_INTERVAL: Final[dict[str, Any]] = {
    **_INTERVAL,
    "inc_energy_mj": pl.Int64,
    "estimated": pl.Boolean,
    "power_limit_mw_0": pl.Int64,
    "has_process_0": pl.Boolean,
}
ENGINE_INTERVAL: Final[dict[str, Any]] = {**_INTERVAL, **{f"inc_{kind}": pl.Int64 for kind in TOKEN_COUNTS}}
# see gaps.py; booked_limit_mw is what silence was booked with
GPU_GAP: Final = {**GPU_INTERVAL, "booked_limit_mw": pl.Int64, **GAP_COLUMNS}
ENGINE_GAP: Final = {**ENGINE_INTERVAL, **GAP_COLUMNS}
SAMPLE_COLUMNS: Final = {
    "site": pl.String,
    "pool": pl.String,
    "product": pl.String,
    "model_name": pl.String,
    "window_start_ms": pl.Int64,
    "output_tokens": pl.Int64,
    "serving_mj": pl.Int64,
}
OFFENDER_COLUMNS: Final = {
    "site": pl.String,
    "pool": pl.String,
    "node": pl.String,
    "gpu_uuid": pl.String,
    "product": pl.String,
    "state": pl.String,
    "wasted_mj": pl.Int64,
}


@dataclass(frozen=True, slots=True)
class MeterState:
    """Frames and clocks of one partition; a fold makes a new one."""

    # Unix ms; windows before edge_ms are closed. None: nothing was read yet.
    edge_ms: int | None
    newest_gpu_ms: int
    newest_engine_ms: int
    newest_ms: int

    gpu_index: pl.DataFrame  # names of each GPU: GPU_KEY, GPU_ATTRIBUTES, id, first_ms
    gpu_renames: pl.DataFrame  # what GPUs were called while windows were closed; see renames.py
    gpus: pl.DataFrame  # last reading of each GPU
    forgotten_gpus: pl.DataFrame  # see forgotten.py
    gone_gpus: pl.DataFrame  # GONE_COLUMNS of those that are forgotten and may be read again
    open_gpus: pl.DataFrame  # intervals that reach past the edge
    # names of each engine and model: ENGINE_KEY, ENGINE_ATTRIBUTES, id, server, first_ms
    engine_index: pl.DataFrame
    engines: pl.DataFrame  # last reading of each engine and model
    forgotten_engines: pl.DataFrame
    gone_engines: pl.DataFrame
    open_engines: pl.DataFrame
    gpu_gaps: pl.DataFrame  # long gaps before the edge, not booked yet
    engine_gaps: pl.DataFrame
    segments: pl.DataFrame  # what engines did lately
    minutes: pl.DataFrame  # GPU time and energy by state of minutes that are not over
    samples: pl.DataFrame  # yields of this minute's windows, learned when it is over
    histogram: pl.DataFrame
    history: pl.DataFrame  # closed windows of the last hour
    power_totals: pl.DataFrame
    available_totals: pl.DataFrame
    token_totals: pl.DataFrame
    measured_totals: pl.DataFrame
    booked: pl.DataFrame  # when each pool was booked last; the totals of those that are gone go

    # Not in the snapshot: rows that wait are read again after a restart, the rest is shown until the next window.
    gpu_ids: Ids | None
    pending_gpus: pl.DataFrame
    engine_ids: Ids | None
    pending_engines: pl.DataFrame
    latest_power: pl.DataFrame
    offenders: pl.DataFrame
    pairs: pl.DataFrame  # those that the yields were looked up for
    yields: pl.DataFrame
    holding: Holding | None

    @classmethod
    def empty(cls) -> Self:
        return cls._of(None, {name: pl.DataFrame(schema=schema) for name, schema in _FRAMES.items()})

    def snapshot(self) -> bytes:
        frames = {name: getattr(self, name) for name in _FRAMES}
        return write_snapshot(LAYOUT, {"edge_ms": self.edge_ms}, frames)

    @classmethod
    def restore(cls, snapshot: bytes) -> Self:
        """Raises SnapshotError where another version wrote it."""
        scalars, frames = read_snapshot(LAYOUT, snapshot)
        return cls._of(scalars["edge_ms"], frames)

    @classmethod
    def _of(cls, edge_ms: int | None, frames: dict[str, Any]) -> Self:
        # Rows that waited are read again: until they are, no topic has got as far as it had.
        return cls(edge_ms, 0, 0, edge_ms or 0, **frames, **_volatile())


_FRAMES: Final[dict[str, Any]] = {
    "gpu_index": {
        **dict.fromkeys((*GPU_KEY, *GPU_ATTRIBUTES), pl.String),
        "id": pl.Int64,
        "first_ms": pl.Int64,
    },
    "gpu_renames": RENAME_COLUMNS,
    "gpus": GPU_READING,
    "forgotten_gpus": {
        **dict.fromkeys(GPU_KEY, pl.String),
        "until_ms": pl.Int64,
        "power_limit_mw_0": pl.Int64,
    },
    "gone_gpus": GONE_COLUMNS,
    "open_gpus": GPU_INTERVAL,
    "engine_index": {
        **dict.fromkeys((*ENGINE_KEY, *ENGINE_ATTRIBUTES), pl.String),
        "id": pl.Int64,
        "server": pl.Int64,
        "first_ms": pl.Int64,
    },
    "engines": ENGINE_READING,
    "forgotten_engines": {**dict.fromkeys(ENGINE_KEY, pl.String), "until_ms": pl.Int64},
    "gone_engines": GONE_COLUMNS,
    "open_engines": ENGINE_INTERVAL,
    "gpu_gaps": GPU_GAP,
    "engine_gaps": ENGINE_GAP,
    "segments": SEGMENT_COLUMNS,
    "minutes": {
        "id": pl.Int64,
        "minute_start_ms": pl.Int64,
        "state": pl.String,
        "gpu_ms": pl.Int64,
        "draw_mj": pl.Int64,
        "headroom_mj": pl.Int64,
    },
    "samples": SAMPLE_COLUMNS,
    "histogram": HISTOGRAM_COLUMNS,
    "history": HISTORY_COLUMNS,
    "power_totals": POWER_COLUMNS,
    "available_totals": AVAILABLE_COLUMNS,
    "token_totals": TOKEN_COLUMNS,
    "measured_totals": MEASURED_COLUMNS,
    "booked": BOOKED_COLUMNS,
}


def _volatile() -> dict[str, Any]:
    return {
        "gpu_ids": None,
        "engine_ids": None,
        "pending_gpus": pl.DataFrame(schema={**GPU_READING, **_WAITING}),
        "pending_engines": pl.DataFrame(schema={**ENGINE_READING, **_WAITING}),
        "latest_power": empty_frame(records.POWER),
        "offenders": pl.DataFrame(schema=OFFENDER_COLUMNS),
        "pairs": pl.DataFrame(schema=dict.fromkeys(PAIR, pl.String)),
        "yields": pl.DataFrame(schema=YIELD_COLUMNS),
        "holding": None,
    }
