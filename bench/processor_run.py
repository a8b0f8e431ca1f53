"""The measured process: the real Processing over a recorded log, until it has read all there is.

Started by bench/processor.py with its task as JSON; prints what it found as one line of JSON.
"""

import json
import os
import sys
import time
from dataclasses import dataclass
from typing import Any, Final

import structlog

from bench.measuring import Usage, memory_mib, own_usage
from bench.page_cost import page_cost
from bench.sections import Sections
from idlewatt.processors.processing import Processing
from idlewatt.processors.tuning import tune
from idlewatt.stream import metric_names as names
from idlewatt.stream import topics
from idlewatt.stream.kafka_snapshots import SnapshotRestore
from idlewatt.stream.settings import Settings

_SAMPLE_S: Final = 1.0
_QUIET_S: Final = 2.0
# of a core, with nothing to read; rows are counted before they are folded, and windows close after both
_IDLE_SHARE: Final = 0.1
_STALLED_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class _Sample:
    """How far the process had come, and what it had used."""

    rows: dict[str, int]
    # (topic, partition) -> messages still to be read
    behind: dict[tuple[str, ...], float]
    # bytes that were read and are not folded
    gathered: int
    rewinds: int
    usage: Usage

    def gpu_rows(self) -> int:
        return self.rows.get(topics.GPU, 0)


def _look(processing: Processing) -> _Sample:
    # as they are kept, not as figures for /metrics: looking counts as the process's time
    figures = processing._figures
    rows = {topic: count for (topic,), count in figures._counters[names.ROWS].items()}
    behind = dict(figures._gauges[names.BEHIND])
    rewinds = sum(figures._counters[names.REWINDS].values())
    gathered = sum(
        gathering.size_bytes
        for runner in processing._runners.values()
        for gathering in [*runner._gathering.values()]
    )
    return _Sample(rows, behind, gathered, rewinds, own_usage())


def main(task: dict[str, Any]) -> dict[str, Any]:
    tune()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    settings = Settings.model_validate_json(task["settings"])
    sections = Sections() if task["profile"] else None
    # all rows are of the past, and the clock stands still
    processing = Processing(settings, lambda: int(task["now_ms"]))
    idle_mib = memory_mib("self", "VmRSS")
    began = own_usage()
    processing.start()
    # gpu, engine and ledger
    inputs = 3 * settings.log.partitions
    done = _wait(processing, inputs, task["gpu_rows"], task["engine_rows"])
    threads = sections.threads() if sections is not None else []
    page = processing.metrics_body()
    cost = page_cost(processing) if task["page"] else None
    peak_mib = memory_mib("self", "VmHWM")
    if not processing.stop(20):
        raise RuntimeError("the stages did not stop")
    used = done.usage - began
    restore_s, checkpoint_bytes = _checkpoint(settings)
    return {
        "samples": done.gpu_rows(),
        "cpu_s": used.cpu_s,
        "kernel_s": used.kernel_s,
        "wall_s": used.wall_s,
        "peak_mib": peak_mib,
        "idle_mib": idle_mib,
        "checkpoint_bytes": checkpoint_bytes,
        "checkpoint_read_s": restore_s,
        "page_bytes": len(page),
        "page_series": sum(1 for line in page.splitlines() if not line.startswith(b"#")),
        "page": cost,
        "ledger_rows": done.rows.get(topics.LEDGER, 0),
        "profile": sections.table(used.cpu_s, threads) if sections is not None else "",
    }


def _wait(processing: Processing, inputs: int, gpu_rows: int, engine_rows: int) -> _Sample:
    """The end of the last second in which it worked: all is read then, folded and committed."""
    worked = last = _look(processing)
    while True:
        time.sleep(_SAMPLE_S)
        if processing.failure is not None:
            raise processing.failure
        now = _look(processing)
        if now.rewinds:
            raise RuntimeError("a commit failed and rows were read twice: run it again on a quieter machine")
        passed = now.usage - last.usage
        if now.rows != last.rows or passed.cpu_s > _IDLE_SHARE * passed.wall_s:
            worked = now
        last = now
        missing = gpu_rows - now.gpu_rows(), engine_rows - now.rows.get(topics.ENGINE, 0)
        waited_s = (now.usage - worked.usage).wall_s
        if any(missing) or len(now.behind) < inputs or any(now.behind.values()) or now.gathered:
            if waited_s > _STALLED_S:
                raise TimeoutError(f"nothing moves, and rows are missing: {missing}, {now}")
        elif waited_s > _QUIET_S:
            return worked


def _checkpoint(settings: Settings) -> tuple[float, int]:
    """Seconds to read the newest snapshots of all meter partitions from Kafka, and their bytes."""
    began = time.monotonic()
    partitions = frozenset(range(settings.log.partitions))
    restore = SnapshotRestore(settings.log, "bench-restore", f"{settings.process.group}-meter", partitions)
    size = 0
    while not restore.done:
        size += sum(len(s.state) for s in restore.step(0.25).values() if s is not None)
    restore.close()
    return time.monotonic() - began, size


if __name__ == "__main__":
    found = main(json.loads(sys.argv[1]))
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()
    # kafka-python's threads may still linger
    os._exit(0)
