"""Joules per GPU and window with Bytewax, from one row per message or from the collectors' messages."""

import subprocess
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import bytewax.operators as op
import bytewax.operators.windowing as win
import orjson
from arrow_readings import readings
from bytewax.connectors.kafka import KafkaSink, KafkaSinkMessage, KafkaSource
from bytewax.dataflow import Dataflow
from bytewax.recovery import RecoveryConfig
from bytewax.testing import cluster_main
from confluent_kafka import OFFSET_BEGINNING
from progress import Progress

WINDOW_MS, GRACE_MS = 10_000, 15_000
WINDOW, GRACE = timedelta(milliseconds=WINDOW_MS), timedelta(milliseconds=GRACE_MS)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def flow(brokers: str, mode: str, topic: str, output: str, total: int) -> Dataflow:
    progress = Progress(total)
    graph = Dataflow("joules")
    batch = 1_000 if mode == "rows" else 200
    source = KafkaSource([brokers], [topic], tail=True, starting_offset=OFFSET_BEGINNING, batch_size=batch)
    messages = op.input("kafka", graph, source)
    found = rows(messages, progress) if mode == "rows" else batches(messages, progress)
    op.output("results", op.map("encode", found, encode), KafkaSink([brokers], output))
    return graph


def rows(messages, progress):
    """Its own windows."""

    def parse(message):
        row = orjson.loads(message.value)
        return row["gpu_uuid"], (row["ts_ms"], row["energy_mj"])

    def increment(last, row):
        progress.add(1)
        ts_ms, energy_mj = row
        return energy_mj, (ts_ms, 0 if last is None else energy_mj - last)

    increments = op.stateful_map("increment", op.map("parse", messages, parse), increment)
    clock = win.EventClock(
        lambda row: EPOCH + timedelta(milliseconds=row[0]),
        wait_for_system_duration=GRACE,
        # by default it takes a row for late that it reads more than the grace after those before
        now_getter=lambda: EPOCH,
        to_system_utc=lambda _: None,
    )
    windows = win.fold_window(
        "window",
        increments,
        clock,
        win.TumblingWindower(length=WINDOW, align_to=EPOCH),
        builder=int,
        folder=lambda sum_mj, row: sum_mj + row[1],
        merger=int.__add__,
    )
    return op.map("start", windows.down, lambda closed: (closed[0], closed[1][0] * WINDOW_MS, closed[1][1]))


def batches(messages, progress):
    """One stateful step per pool: windowing by GPU would hand every row through one by one."""

    def closed(state, message):
        last, windows, newest = state or ({}, {}, 0)
        batch = readings(message)
        progress.add(len(batch))
        for ts_ms, gpu, energy_mj in batch:
            newest = max(newest, ts_ms)
            window = windows.setdefault(ts_ms // WINDOW_MS * WINDOW_MS, {})
            window[gpu] = window.get(gpu, 0) + energy_mj - last.get(gpu, energy_mj)
            last[gpu] = energy_mj
        over = [start for start in windows if start + WINDOW_MS + GRACE_MS <= newest]
        found = [(gpu, start, mj) for start in over for gpu, mj in windows.pop(start).items()]
        return (last, windows, newest), found

    by_pool = op.map("key", messages, lambda message: (message.key.decode(), message.value))
    return op.map("drop_key", op.stateful_flat_map("windows", by_pool, closed), lambda keyed: keyed[1])


def encode(closed):
    gpu, start_ms, energy_mj = closed
    return KafkaSinkMessage(
        gpu.encode(), orjson.dumps({"gpu": gpu, "start_ms": start_ms, "energy_mj": energy_mj})
    )


if __name__ == "__main__":
    recovery = Path(tempfile.mkdtemp())
    subprocess.run([sys.executable, "-m", "bytewax.recovery", str(recovery), "1"], check=True)
    graph = flow(*sys.argv[1:5], int(sys.argv[5]))
    cluster_main(
        graph,
        [],
        0,
        epoch_interval=timedelta(seconds=10),
        recovery_config=RecoveryConfig(recovery),
        worker_count_per_proc=1,
    )
