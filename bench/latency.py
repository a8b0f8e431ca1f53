"""From a row's event time to the closed window in /metrics: what `idlewatt process` shows, and how late.

Each pool draws a constant power, so that its energy counter says up to which moment its windows are closed. Rows
come through a real Kafka from two kinds of collectors, which send each second or each ten seconds; two processors,
with the default settings and with the demo's, read the same rows.
"""

import os
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Final

from kafka.partitioner.default import murmur2

from bench import ROOT
from bench.recorded import empty_broker
from bench.report import Part, Table
from idlewatt.stream import records, topics
from idlewatt.stream.encoding import encode_rows
from idlewatt.stream.kafka_appender import KafkaAppender
from idlewatt.stream.kafka_topics import create_topics
from idlewatt.stream.log import Record
from idlewatt.stream.records import GpuRow
from idlewatt.stream.settings import Log

_PARTITIONS: Final = 4
_SITE: Final = "hall"
_POOLS_PER_BATCH: Final = 4
_BATCHES_S: Final = (1, 10)
# window and grace in seconds, as environment
_SETTINGS: Final = {
    "default (10 s windows, 15 s grace)": {},
    "demo (2 s windows, 3 s grace)": {"IDLEWATT_PROCESS__WINDOW_S": "2", "IDLEWATT_PROCESS__GRACE_S": "3.0"},
}
_POWER_W: Final = 4_000
_WARM_UP_S: Final = 40.0
_MEASURED_S: Final = 60.0
_SCRAPE_S: Final = 0.05
_ENERGY: Final = re.compile(
    rb'^idlewatt_energy_joules_total\{[^}]*pool="([^"]+)"[^}]*\} (\S+)$', re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class _Pool:
    name: str
    batch_s: int
    # when in its batch it sends, and reads
    phase_s: float


def run() -> Part:
    table = Table("processor", "collectors send each", "rows", "p50 s", "p99 s", "largest s")
    pools = list(_pools())
    with empty_broker("latency") as broker:
        log = Log(kind="kafka", bootstrap_servers=broker.bootstrap_servers, partitions=_PARTITIONS)
        create_topics(log)
        collectors = _Collectors(log, pools)
        with ExitStack() as stack:
            urls = [stack.enter_context(_processor(log, name, n)) for n, name in enumerate(_SETTINGS)]
            collectors.start()
            watches = [_Watch(url, collectors) for url in urls]
            for watch in watches:
                watch.start()
            for watch in watches:
                watch.join()
            collectors.stop()
    values = {}
    for name, watch in zip(_SETTINGS, watches, strict=True):
        for batch_s in _BATCHES_S:
            late_s = [s for pool in pools if pool.batch_s == batch_s for s in watch.latencies[pool.name]]
            if len(late_s) < 20:
                raise RuntimeError(
                    f"latency: only {len(late_s)} rows were seen of collectors that send each {batch_s} s"
                )
            p99 = quantiles(late_s, n=100)[98]
            table.add(
                name,
                f"{batch_s} s",
                str(len(late_s)),
                f"{median(late_s):.1f}",
                f"{p99:.1f}",
                f"{max(late_s):.1f}",
            )
            short = f"{name.split()[0]}_{batch_s}s"
            values[f"latency_p50_{short}"], values[f"latency_p99_{short}"] = (
                round(median(late_s), 2),
                round(p99, 2),
            )
    return Part(
        "latency", [table], {"latency_p99_seconds": values["latency_p99_default_1s"]} | values, _NOTES
    )


_NOTES: Final = [
    "The least that is possible is the grace, and half a window on the average: a window closes when the newest reading "
    "is a grace past its end. Prometheus adds up to its own scrape interval."
]


def _pools() -> Iterator[_Pool]:
    """Those that send each second and those that send each ten never share a partition, where one would wait for the other."""
    for kind, batch_s in enumerate(_BATCHES_S):
        names = (f"pool-{n}" for n in range(1000))
        wanted = [
            n for n in names if (murmur2(topics.pool_key(_SITE, n)) & 0x7FFFFFFF) % _PARTITIONS % 2 == kind
        ]
        for n, name in enumerate(wanted[:_POOLS_PER_BATCH]):
            yield _Pool(name, batch_s, n / _POOLS_PER_BATCH * batch_s)


class _Collectors:
    """Reads all pools each second and sends each pool's rows at the end of its batch."""

    def __init__(self, log: Log, pools: list[_Pool]) -> None:
        self._appender = KafkaAppender(log, "bench-latency")
        self._pools = pools
        self.began = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="collectors")

    def start(self) -> None:
        self.began = time.time()
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        self._appender.close()

    def first_s(self, pool: str) -> float:
        """Unix time of a pool's first reading."""
        return self.began + next(p.phase_s for p in self._pools if p.name == pool) % 1

    def _run(self) -> None:
        waiting: dict[str, list[GpuRow]] = defaultdict(list)
        second = 0
        while not self._stop.is_set():
            for pool in sorted(self._pools, key=lambda pool: pool.phase_s % 1):
                at = self.began + second + pool.phase_s % 1
                self._stop.wait(max(at - time.time(), 0))
                waiting[pool.name].append(self._row(pool, at))
                if (second - int(pool.phase_s)) % pool.batch_s == pool.batch_s - 1:
                    value = encode_rows(records.GPU, waiting.pop(pool.name))
                    self._appender.append([Record(topics.GPU, topics.pool_key(_SITE, pool.name), value)])
            second += 1

    def _row(self, pool: _Pool, at: float) -> GpuRow:
        return GpuRow(
            ts_ms=round(at * 1000),
            site=_SITE,
            pool=pool.name,
            node=pool.name,
            gpu_uuid=f"GPU-{pool.name}",
            product="NVIDIA H100 80GB HBM3",
            energy_mj=round((at - self.began) * _POWER_W * 1000),
            power_mw=_POWER_W * 1000,
            power_limit_mw=2 * _POWER_W * 1000,
            epoch_ms=round(self.began * 1000) - 60_000,
            has_process=False,
            power_scope="gpu",
        )


class _Watch(threading.Thread):
    """Scrapes one processor; notes for each reading when the counter had come past it."""

    def __init__(self, url: str, collectors: _Collectors) -> None:
        super().__init__(daemon=True)
        self._url = url
        self._start_s = collectors.began + _WARM_UP_S
        self._end_s = self._start_s + _MEASURED_S
        self._collectors = collectors
        self.latencies: dict[str, list[float]] = defaultdict(list)

    def run(self) -> None:
        shown: dict[str, int] = {}
        while (now := time.time()) < self._end_s:
            with urllib.request.urlopen(self._url, timeout=5) as answer:
                page = answer.read()
            joules: dict[str, float] = defaultdict(float)
            for pool, value in _ENERGY.findall(page):
                joules[pool.decode()] += float(value)
            for pool, sum_j in joules.items():
                # readings are a second apart
                passed = int(sum_j / _POWER_W + 1e-6)
                for reading in range(shown.get(pool, 0) + 1, passed + 1):
                    if now >= self._start_s:
                        self.latencies[pool].append(now - self._collectors.first_s(pool) - reading)
                shown[pool] = passed
            time.sleep(_SCRAPE_S)


@contextmanager
def _processor(log: Log, name: str, number: int) -> Iterator[str]:
    """`idlewatt process` with some settings; the address of its page."""
    environment = {
        **os.environ,
        **_SETTINGS[name],
        "IDLEWATT_LOG__KIND": "kafka",
        "IDLEWATT_LOG__BOOTSTRAP_SERVERS": log.bootstrap_servers,
        "IDLEWATT_LOG__PARTITIONS": str(log.partitions),
        "IDLEWATT_PROCESS__GROUP": f"latency-{number}",
        "IDLEWATT_PORT": "0",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "idlewatt.cli.main", "process"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield _url(process)
    finally:
        process.terminate()
        process.wait(20)


def _url(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        found = re.search(r"http://\S+/metrics", line)
        if found:
            # what it says from now on has to go somewhere
            threading.Thread(target=process.stdout.read, daemon=True).start()
            return found[0]
    raise RuntimeError(f"idlewatt process ended with {process.wait()}")
