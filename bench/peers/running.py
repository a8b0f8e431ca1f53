"""Runs one peer's program over a topic, takes its CPU time, and holds its output against the truth."""

import json
import os
import subprocess
import threading
import time
from dataclasses import dataclass
from typing import Any, Final

import polars as pl

from bench import CACHE, ROOT
from bench.fleet import Fleet
from bench.measuring import Usage, memory_mib, on_one_core, usage_of
from bench.recorded import KeptBroker
from bench.segments import ROWS
from idlewatt.stream import topics
from idlewatt.stream.kafka_clients import TopicPartition, open_reader
from idlewatt.stream.kafka_reading import read_messages
from idlewatt.stream.settings import Log

_WINDOW_MS: Final = 10_000
# longer than any of them takes from one commit to the next
_QUIET_S: Final = 6.0
# what uses more meanwhile is still at work
_BUSY_S: Final = 1.0
_TIMEOUT_S: Final = 420


@dataclass(frozen=True, slots=True)
class Peer:
    """A program that takes the brokers, "rows" or "messages", a topic, an output topic and the number of rows."""

    name: str
    guarantee: str
    command: list[str]

    @property
    def short(self) -> str:
        return "_".join(self.name.lower().split()[:-1])


def measure(
    peer: Peer, mode: str, broker: KeptBroker, fleet: Fleet, truth: pl.DataFrame
) -> tuple[int, Usage, float]:
    """Rows and usage after the warm-up, and peak memory."""
    output = f"bench.{peer.short}.{mode}.{int(time.time())}"
    log = Log(kind="kafka", bootstrap_servers=broker.bootstrap_servers, partitions=fleet.partitions)
    with broker.admin() as admin:
        admin.create_topics({output: {"num_partitions": fleet.partitions, "replication_factor": 1}})
    topic = ROWS if mode == "rows" else topics.GPU
    arguments = [broker.bootstrap_servers, mode, topic, output, str(fleet.gpu_rows)]
    said = CACHE / f"{peer.short}.log"
    with said.open("w") as errors:
        process = subprocess.Popen(
            [*peer.command, *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=_environment(),
            preexec_fn=on_one_core,
        )
    try:
        marks = _marks(process)
        used = _used(log, output, process, marks)
        memory = memory_mib(process.pid, "VmHWM")
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    _check(peer.name, mode, read_messages(log, output), truth, fleet)
    with broker.admin() as admin:
        admin.delete_topics(
            [name for name in admin.list_topics() if name.startswith((output, f"changelog__{output}"))]
        )
    return marks["done"][0] - marks["warm"][0], used, memory


def _environment() -> dict[str, str]:
    return {**os.environ, "POLARS_MAX_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def _marks(process: subprocess.Popen[str]) -> dict[str, tuple[int, Usage]]:
    """Filled as the program says how far it is."""
    marks: dict[str, tuple[int, Usage]] = {}

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            name, _, rows = line.strip().partition(" ")
            if name in ("warm", "done"):
                marks[name] = int(rows), usage_of(process.pid)

    threading.Thread(target=read, daemon=True).start()
    return marks


def _used(log: Log, output: str, process: subprocess.Popen[str], marks: dict[str, Any]) -> Usage:
    """From the warm-up until all is read and the output grows no more."""
    reader = open_reader(log, "bench-output")
    partitions = [TopicPartition(output, n) for n in range(log.partitions)]
    deadline = time.monotonic() + _TIMEOUT_S
    size, reached = -1, None
    try:
        while reached is None or time.monotonic() - reached.wall_s < _QUIET_S:
            if process.poll() is not None:
                raise RuntimeError(
                    f"{output}: the program ended with {process.returncode}; see {CACHE}/*.log"
                )
            if time.monotonic() > deadline:
                raise TimeoutError(f"{output}: not done within {_TIMEOUT_S} s, at {marks}")
            time.sleep(0.1)
            if "done" not in marks:
                continue
            now = usage_of(process.pid)
            ends = sum(reader.end_offsets(partitions, timeout_ms=5_000).values())
            if reached is None or ends != size or now.cpu_s - reached.cpu_s > _BUSY_S:
                size, reached = ends, now
    finally:
        reader.close(timeout_ms=2_000)
    assert reached is not None
    used: Usage = reached - marks["warm"][1]
    return used


def truth_of(fleet: Fleet) -> pl.DataFrame:
    """gpu, start_ms, energy_mj: each increment counted in the window of the later reading."""
    rows = pl.concat(fleet.energy(partition) for partition in range(fleet.partitions))
    rows = rows.sort("gpu_uuid", "ts_ms")
    return (
        rows.with_columns(
            start_ms=pl.col("ts_ms") // _WINDOW_MS * _WINDOW_MS,
            increment=pl.col("energy_mj").diff().over("gpu_uuid").fill_null(0),
        )
        .group_by(gpu="gpu_uuid", start_ms="start_ms")
        .agg(energy_mj=pl.col("increment").sum())
    )


def _check(name: str, mode: str, messages: Any, truth: pl.DataFrame, fleet: Fleet) -> None:
    """Raise unless every window in the output is right, and all that must be closed are there."""
    lines = [line for message in messages for line in message.value.splitlines()]
    found = pl.DataFrame([json.loads(line) for line in lines])
    joined = found.join(truth, on=["gpu", "start_ms"], suffix="_true")
    wrong = found.height - joined.filter(pl.col("energy_mj") == pl.col("energy_mj_true")).height
    # At the end some windows of each GPU are open, or not yet in the topic: Kafka Streams looks once in a second of
    # its own time for windows to close, in which it reads some forty of ours.
    least = truth.height - fleet.gpu_count * 9
    if wrong or not least <= found.height <= truth.height:
        raise RuntimeError(
            f"{name} ({mode}): of {found.height} windows {wrong} are wrong; {least} must be there"
        )
