"""A fleet whose rows are known at every second: who its collectors are and what each of them sends.

Pools of 72 GPUs, nine engines of 8 GPUs in each, one reading a second of both. An engine serves for 188 s and
is idle for 47 s, each at a phase of its own, so that a fifth of the fleet is idle and some engine changes over
in each window. Counters are closed formulas of the second: any message can be made without the ones before it.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

import polars as pl
import pyarrow as pa
from kafka.partitioner.default import murmur2
from pyarrow import ipc

from idlewatt.stream import records, topics
from idlewatt.stream.decoding import decode_all
from idlewatt.stream.encoding import SEAL_BYTES, encode_named, sealed
from idlewatt.stream.frames import empty_frame, frame_schema
from idlewatt.stream.records import Schema

Shape = Literal["nodes", "racks"]
# from the second and the fleet's start in Unix ms to what changes in a row: numbers of 8 bytes, never null
_Readings = Callable[[pl.Expr, int], dict[str, pl.Expr]]

GPUS_PER_POOL: Final = 72
GPUS_PER_ENGINE: Final = 8
POOLS_PER_SITE: Final = 200
_SERVING_S: Final = 188
_CYCLE_S: Final = 235
_DAY_MS: Final = 86_400_000
_PRODUCTS: Final = ("NVIDIA H100 80GB HBM3", "NVIDIA H200", "NVIDIA B200")
_MODELS: Final = ("meta-llama/Llama-3.3-70B-Instruct", "Qwen/Qwen3-32B", "openai/gpt-oss-120b")


@dataclass(frozen=True, slots=True)
class Message:
    """One message of one collector."""

    topic: str
    key: bytes
    value: bytes
    sent_ms: int


@dataclass(frozen=True, slots=True)
class Fleet:
    """`gpus` is rounded up to whole pools; `seconds` to whole messages.

    shape "nodes": a collector for 8 GPUs and their engine that sends every 10 s (80 GPU rows, 10 engine rows).
    shape "racks": a collector for 72 GPUs and their nine engines that sends every second (72 and 9 rows).
    """

    gpus: int
    shape: Shape
    start_ms: int
    seconds: int
    partitions: int

    @property
    def pools(self) -> int:
        return -(-self.gpus // GPUS_PER_POOL)

    @property
    def gpu_count(self) -> int:
        return self.pools * GPUS_PER_POOL

    @property
    def batch_s(self) -> int:
        """Seconds of readings in one message."""
        return 10 if self.shape == "nodes" else 1

    @property
    def gpu_rows(self) -> int:
        return self.gpu_count * self.seconds

    @property
    def engine_rows(self) -> int:
        return self.gpu_rows // GPUS_PER_ENGINE

    @property
    def end_ms(self) -> int:
        return self.start_ms + self.seconds * 1000

    def messages(self, partition: int) -> Iterator[Message]:
        """All messages of one partition, in the order they are sent."""
        part = _Part(self, partition)
        for step in range(self.seconds // self.batch_s):
            yield from part.messages(step)

    def energy(self, partition: int) -> pl.DataFrame:
        """ts_ms, gpu_uuid and energy_mj of all GPU rows of one partition, in the order they are sent."""
        columns = ["ts_ms", "gpu_uuid", "energy_mj"]
        messages = [m.value for m in self.messages(partition) if m.topic == topics.GPU]
        found, _ = decode_all(messages, {records.GPU: columns})
        return found[records.GPU].frame if messages else empty_frame(records.GPU).select(columns)


def pool_name(pool: int) -> tuple[str, str]:
    """Site and pool."""
    return f"hall-{pool // POOLS_PER_SITE:02d}", f"rack-{pool:05d}"


class _Part:
    """The collectors of one partition."""

    def __init__(self, fleet: Fleet, partition: int) -> None:
        self._fleet = fleet
        nodes = GPUS_PER_POOL // GPUS_PER_ENGINE if fleet.shape == "nodes" else 1
        pools = [
            pool
            for pool in range(fleet.pools)
            if (murmur2(topics.pool_key(*pool_name(pool))) & 0x7FFFFFFF) % fleet.partitions == partition
        ]
        # collectors do not send all at once; those that are further on in their ten seconds send first
        self._collectors = sorted(
            ((pool, node, (pool * nodes + node) % fleet.batch_s) for pool in pools for node in range(nodes)),
            key=lambda collector: -collector[2],
        )
        self._gpu = _Kind(records.GPU, fleet, self._gpus(), _gpu_readings)
        self._engine = _Kind(records.ENGINE, fleet, self._engines(), _engine_readings)

    def messages(self, step: int) -> Iterator[Message]:
        fleet = self._fleet
        if not self._collectors:
            return
        engines = self._engine.encoded(step)
        gpus = self._gpu.encoded(step)
        for pool, _, phase in self._collectors:
            key = topics.pool_key(*pool_name(pool))
            sent_ms = fleet.start_ms + ((step + 1) * fleet.batch_s - phase) * 1000
            yield Message(topics.ENGINE, key, next(engines), sent_ms)
            yield Message(topics.GPU, key, next(gpus), sent_ms)

    def _gpus(self) -> list[dict[str, object]]:
        return [
            row | {"entity": entity, "gpu_uuid": _uuid(entity), "product": _PRODUCTS[row["of_pool"] % 3]}
            for row, first, last in self._places()
            for entity in range(first, last)
        ]

    def _engines(self) -> list[dict[str, object]]:
        return [
            row
            | {
                "entity": first // GPUS_PER_ENGINE,
                "engine": f"10.{row['of_pool'] >> 8}.{row['of_pool'] & 255}.{first // GPUS_PER_ENGINE % 9}:8000",
                "model_name": _MODELS[row["of_pool"] % 3],
                "gpus": [_uuid(gpu) for gpu in range(first, first + GPUS_PER_ENGINE)],
            }
            for row, start, last in self._places()
            for first in range(start, last, GPUS_PER_ENGINE)
        ]

    def _places(self) -> Iterator[tuple[dict[str, object], int, int]]:
        """Names and phase of each collector, and the GPUs it reads: from, to."""
        per_collector = GPUS_PER_ENGINE if self._fleet.shape == "nodes" else GPUS_PER_POOL
        for pool, node, phase in self._collectors:
            site, name = pool_name(pool)
            first = pool * GPUS_PER_POOL + node * per_collector
            names = {"site": site, "pool": name, "node": f"{name}-n{node}", "of_pool": pool, "phase": phase}
            yield names, first, first + per_collector


class _Kind:
    """Rows of one kind of all collectors of a partition. From one message of a collector to the next only readings change."""

    def __init__(
        self, schema: Schema, fleet: Fleet, entities: list[dict[str, object]], readings: _Readings
    ) -> None:
        self._fleet = fleet
        self._readings = readings
        self._messages: list[_Message] = []
        frame = pl.DataFrame(entities, infer_schema_length=None)
        if not frame.height:
            return
        frame = frame.with_columns(collector=pl.struct("pool", "node").rle_id())
        seconds = pl.DataFrame({"second": range(fleet.batch_s)})
        rows = frame.join(seconds, how="cross").sort("collector", "second", maintain_order=True)
        self._moving = rows.select("entity", "second", "phase", "of_pool")
        moved = self._moved(0)
        columns = _arrays(_conform(schema, rows, fleet).drop(schema.names).with_columns(moved))
        names = _arrays(_conform(schema, frame, fleet).select(schema.names))
        of_each = len(frame) // (1 + int(frame["collector"][-1]))
        places = pa.array([*range(of_each)] * fleet.batch_s, pa.int32())
        for collector in range(len(frame) // of_each):
            message = encode_named(
                schema,
                _part(columns, collector, len(places)),
                # copied: slices are written with an offset each
                {name: pa.concat_arrays([texts]) for name, texts in _part(names, collector, of_each).items()},
                places,
            )
            self._messages.append(_message(message, moved.columns))

    def encoded(self, step: int) -> Iterator[bytes]:
        """The message of each collector in one step."""
        if not self._messages:
            return
        moved = [memoryview(column.buffers()[1]).cast("B") for column in _arrays(self._moved(step)).values()]
        for place, message in enumerate(self._messages):
            for values, new in zip(message.moving, moved, strict=True):
                values[:] = new[place * len(values) : (place + 1) * len(values)]
            yield sealed(bytes(message.stream), message.batch_at)

    def _moved(self, step: int) -> pl.DataFrame:
        at_s = pl.col("second") + step * self._fleet.batch_s - pl.col("phase")
        return self._moving.select(**self._readings(at_s, self._fleet.start_ms))


def _arrays(rows: pl.DataFrame) -> dict[str, pa.Array]:
    table = rows.to_arrow().combine_chunks()
    return {name: table[name].chunk(0) for name in rows.columns}


def _part(columns: dict[str, pa.Array], number: int, rows: int) -> dict[str, pa.Array]:
    return {name: column.slice(number * rows, rows) for name, column in columns.items()}


@dataclass(frozen=True, slots=True)
class _Message:
    """One that is made anew where it stands, but for its seal."""

    stream: bytearray
    batch_at: int
    # the bytes of each column that changes, in the stream
    moving: list[memoryview]


def _message(encoded: bytes, moving: list[str]) -> _Message:
    stream = bytearray(encoded[:-SEAL_BYTES])
    batch_at = int.from_bytes(encoded[-SEAL_BYTES:][:4], "little")
    buffer = pa.py_buffer(stream)
    batch = ipc.open_stream(buffer).read_next_batch()
    starts = [batch.column(name).buffers()[1].address - buffer.address for name in moving]
    size = batch.num_rows * 8
    return _Message(stream, batch_at, [memoryview(stream)[start : start + size] for start in starts])


def _conform(schema: Schema, rows: pl.DataFrame, fleet: Fleet) -> pl.DataFrame:
    constants = {
        "power_limit_mw": 700_000,
        "epoch_ms": fleet.start_ms - 30 * _DAY_MS,
        "memory_used_bytes": 68_719_476_736,
        "clocks_event_reasons": 0,
        "has_process": True,
        "power_scope": "gpu",
        "server": "vllm",
        "server_version": "0.11.1",
        "advance": "step",
    }
    # what is in neither is a reading, which each step puts in
    return rows.select(
        (pl.col(name) if name in rows.columns else pl.lit(constants.get(name))).cast(dtype).alias(name)
        for name, dtype in frame_schema(schema).items()
    )


def _serving_s(engine: pl.Expr, at_s: pl.Expr) -> tuple[pl.Expr, pl.Expr, pl.Expr]:
    """Seconds served and idled up to a second, and whether the engine serves in it."""
    lived_s = at_s + engine * 97 % _CYCLE_S + 100 * _CYCLE_S
    served_s = lived_s // _CYCLE_S * _SERVING_S + pl.min_horizontal(lived_s % _CYCLE_S, _SERVING_S)
    return served_s, lived_s - served_s, lived_s % _CYCLE_S < _SERVING_S


def _ts_ms(at_s: pl.Expr, start_ms: int) -> pl.Expr:
    # each collector reads at its own moment of the second
    return start_ms + at_s * 1000 + pl.col("of_pool") * 37 % 1000


def _gpu_readings(at_s: pl.Expr, start_ms: int) -> dict[str, pl.Expr]:
    served_s, idled_s, serving = _serving_s(pl.col("entity") // GPUS_PER_ENGINE, at_s)
    serving_mw = 560_000 + pl.col("entity") * 7919 % 90_000
    idle_mw = 95_000 + pl.col("entity") * 104_729 % 30_000
    return {
        "ts_ms": _ts_ms(at_s, start_ms),
        "energy_mj": served_s * serving_mw + idled_s * idle_mw,
        "power_mw": pl.when(serving).then(serving_mw).otherwise(idle_mw),
        "sm_activity": pl.when(serving).then(0.93).otherwise(0.0),
    }


def _engine_readings(at_s: pl.Expr, start_ms: int) -> dict[str, pl.Expr]:
    served_s, _, serving = _serving_s(pl.col("entity"), at_s)
    rate = 3_000 + pl.col("entity") * 613 % 2_000
    return {
        "ts_ms": _ts_ms(at_s, start_ms),
        "output_tokens": served_s * rate,
        "input_tokens": served_s * rate * 3,
        "cached_input_tokens": served_s * rate,
        "requests_running": pl.when(serving).then(48).otherwise(0).cast(pl.Int64),
        "requests_waiting": pl.when(serving & (pl.col("entity") % 7 == 0))
        .then(3)
        .otherwise(0)
        .cast(pl.Int64),
        "kv_cache_ratio": pl.when(serving).then(0.6).otherwise(0.0),
    }


def _uuid(gpu: int) -> str:
    digits = hashlib.blake2b(gpu.to_bytes(8, "little"), digest_size=16).hexdigest()
    return f"GPU-{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
