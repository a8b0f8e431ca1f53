"""Idlewatt beside stream processors: rows per CPU-second over the same rows of the same Kafka."""

import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Final

import polars as pl

from bench.environments import java_class_path, python_with
from bench.fleet import Fleet
from bench.measuring import Usage
from bench.peers import prometheus
from bench.peers.running import Peer, measure, truth_of
from bench.processor import PARTITIONS, measured
from bench.recorded import KeptBroker, fresh_outputs, recorded
from bench.report import Part, Table

# of event time. What is fast reads 240 s of rows: the JVM takes a while until it is warm. What is slow reads 60 s of
# half the GPUs.
_FAST_S: Final = 240
_SLOW_S: Final = 60
_PROGRAMS: Final = Path(__file__).parent


def run(gpus: int) -> Part:
    rows = _Rows()
    with recorded(gpus, "nodes", _FAST_S, PARTITIONS, rows=True) as (broker, fleet):
        found = measured(fresh_outputs(broker, PARTITIONS), fleet)
        used = Usage(found["cpu_s"], found["kernel_s"], found["wall_s"])
        rows.add(
            "Idlewatt, all it does",
            "messages",
            "exactly once, 0.5 s",
            found["samples"],
            used,
            found["peak_mib"],
        )
        truth = truth_of(fleet)
        rows.add_peer(_polars_script(), ("messages",), broker, fleet, truth)
        rows.add_peer(_kafka_streams(), ("messages", "rows"), broker, fleet, truth)
    with recorded(gpus // 2, "nodes", _SLOW_S, PARTITIONS, rows=True) as (broker, short_fleet):
        truth = truth_of(short_fleet)
        for peer in (_bytewax(), _quix_streams()):
            rows.add_peer(peer, ("messages", "rows"), broker, short_fleet, truth)
    if prometheus.version():
        rows.add(f"Prometheus {prometheus.version()}", "pages", "best effort", *prometheus.measure(gpus))
    return Part(
        "peers",
        [rows.table],
        {"times_the_fastest_peer": min(rows.values.values())} | rows.values,
        _NOTES,
        rows.losses,
    )


_NOTES: Final = [
    "All read the rows of the same GPUs at 1 Hz from the same Kafka (Bytewax and Quix Streams, which take minutes by row, "
    "those of half of them) and compute joules per GPU and 10 s window from the cumulative counter; every window of every "
    "stream processor is compared with the truth. Idlewatt does all of its work meanwhile: engines, states, waterfall, "
    "yardsticks, ledger, money and /metrics, from rows of 15 columns.",
    "`messages`: the program reads the collectors' Arrow messages of 80 rows, each a record batch of its own. `rows`: "
    "it reads one JSON row of three fields a message, as such programs are commonly fed, in record batches of 500.",
    "The Polars script is what Idlewatt is made of, kafka-python, pyarrow and polars, each used plainly: it sorts, takes "
    "differences and sums, keeps its state in memory, commits nothing, and writes its windows many to a message.",
    "By row each uses its own windows: Kafka Streams its DSL (one thread, stores in memory with changelogs, windows "
    "emitted on close, 200 MiB of caches), Bytewax fold_window (one worker, recovery on), Quix Streams tumbling "
    "windows. By message, where those would hand on each row by itself, each has one stateful step per pool that "
    "decodes the message and sums by hand: the least that the task can cost there, and no more than the task.",
    "Prometheus: one series per GPU, scraped each second from pages of 72, and increase([10s]) recorded each 10 s, an "
    "estimate that is checked to a tenth only.",
]


def _polars_script() -> Peer:
    command = [sys.executable, str(_PROGRAMS / "polars_script.py")]
    return Peer(f"Polars script {version('polars')}", "none", command)


def _kafka_streams() -> Peer:
    options = [
        "-Xmx2g",
        "--add-opens=java.base/java.nio=ALL-UNNAMED",
        "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    ]
    command = ["java", *options, "-cp", java_class_path(_PROGRAMS / "kafka_streams"), "joules.Joules"]
    return Peer("Kafka Streams 4.1.0", "exactly once, 1 s", command)


def _bytewax() -> Peer:
    python = python_with("bytewax", "bytewax[kafka]==0.21.1", "pyarrow", "orjson")
    return Peer("Bytewax 0.21.1", "at least once, 10 s", [str(python), str(_PROGRAMS / "bytewax_flow.py")])


def _quix_streams() -> Peer:
    python = python_with("quixstreams", "quixstreams==3.28.1", "pyarrow")
    return Peer("Quix Streams 3.28.1", "exactly once, 5 s", [str(python), str(_PROGRAMS / "quix_streams.py")])


class _Rows:
    """The table; its first row is Idlewatt's, which the others are held against."""

    def __init__(self) -> None:
        self.table = Table(
            "program",
            "reads",
            "delivery, commits",
            "rows",
            "CPU s",
            "rows per CPU-s",
            "Idlewatt is",
            "peak memory MiB",
        )
        self.values: dict[str, float] = {}
        self.losses: list[str] = []
        self._ours = 0.0

    def add_peer(
        self, peer: Peer, modes: Sequence[str], broker: KeptBroker, fleet: Fleet, truth: pl.DataFrame
    ) -> None:
        for mode in modes:
            self.add(peer.name, mode, peer.guarantee, *measure(peer, mode, broker, fleet, truth))

    def add(self, name: str, mode: str, guarantee: str, rows: int, used: Usage, memory_mib: float) -> None:
        rate = rows / used.cpu_s
        verdict = ""
        if self._ours:
            ratio = self._ours / rate
            verdict = f"{ratio:.1f} times as fast" if ratio >= 1 else f"{1 / ratio:.1f} times slower"
            if ratio < 1:
                self.losses.append(
                    f"{name} ({mode}) sums the joules alone with {ratio:.0%} of the CPU time that Idlewatt takes for all."
                )
            self.values[f"times_{'_'.join(name.lower().split()[:-1])}_{mode}"] = round(ratio, 2)
        else:
            self._ours = rate
        self.table.add(
            name,
            mode,
            guarantee,
            f"{rows:,}",
            f"{used.cpu_s:.2f}",
            f"{rate:,.0f}",
            verdict,
            f"{memory_mib:,.0f}",
        )
