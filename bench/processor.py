"""GPU samples per CPU-second, end to end: a real Kafka to closed windows, ledger rows and a rendered /metrics.

The log is full when the processor starts, so that it works as fast as it can; in live operation it does the same
work and waits in between. Counted is what follows the first 30 s of event time, by when windows close.
"""

import json
import os
import subprocess
import sys
from typing import Any, Final

from bench import ROOT
from bench.fleet import Fleet, Shape
from bench.recorded import WARM_UP_S, fresh_outputs, recorded
from bench.report import Part, Table
from idlewatt.stream.settings import Settings

PARTITIONS: Final = 12
# GPUs -> seconds of event time that are measured
_MEASURED_S: Final = {10_000: 300, 100_000: 60, 600_000: 30}
_TIMEOUT_S: Final = 900


def measured_s(gpus: int) -> int:
    """About six million samples, and never less than 30 s."""
    return _MEASURED_S.get(gpus) or min(max(6_000_000 // gpus // 60 * 60, 30), 300)


def run(sizes: list[int]) -> Part:
    """Every size with one message per node of 8 GPUs and 10 s; the smallest with 72 GPUs and 1 s too."""
    shapes: list[tuple[int, Shape]] = [(gpus, "nodes") for gpus in sizes]
    if len(sizes) > 1:
        shapes.insert(1, (sizes[0], "racks"))
    elif os.environ.get("SHAPE") == "racks":
        shapes = [(sizes[0], "racks")]
    table = Table(
        "GPUs",
        "message",
        "samples",
        "CPU s",
        "wall s",
        "samples per CPU-s",
        "cores at 1 Hz",
        "peak memory MiB",
        "checkpoint MiB",
        "read back s",
        "/metrics MiB",
    )
    rates = {}
    for gpus, shape in shapes:
        fleet, found = measure(gpus, shape)
        rate = found["samples"] / found["cpu_s"]
        rates[gpus, shape] = rate
        table.add(
            f"{fleet.gpu_count:,}",
            "8 GPUs x 10 s" if shape == "nodes" else "72 GPUs x 1 s",
            f"{found['samples']:,}",
            f"{found['cpu_s']:.2f}",
            f"{found['wall_s']:.1f}",
            f"{rate:,.0f}",
            f"{fleet.gpu_count / rate:.2f}",
            f"{found['peak_mib']:,.0f}",
            f"{found['checkpoint_bytes'] / 2**20:.1f}",
            f"{found['checkpoint_read_s']:.1f}",
            f"{found['page_bytes'] / 2**20:.1f}",
        )
        if found["profile"]:
            print(found["profile"], flush=True)
    largest = max(rates, key=lambda at: at[0])
    return Part("processor", [table], {"samples_per_cpu_second": round(rates[largest])})


def measure(gpus: int, shape: Shape) -> tuple[Fleet, dict[str, Any]]:
    with recorded(gpus, shape, measured_s(gpus), PARTITIONS) as (broker, fleet):
        settings = fresh_outputs(broker, PARTITIONS)
        return fleet, measured(settings, fleet)


def measured(settings: Settings, fleet: Fleet) -> dict[str, Any]:
    """What bench/processor_run.py found."""
    task = {
        "settings": settings.model_dump_json(),
        "now_ms": fleet.end_ms + 1_000,
        "warm_rows": fleet.gpu_count * WARM_UP_S,
        "gpu_rows": fleet.gpu_rows,
        "engine_rows": fleet.engine_rows,
        "profile": os.environ.get("PROFILE") == "1",
    }
    environment = {"POLARS_MAX_THREADS": "1"} | dict(os.environ)
    done = subprocess.run(
        [sys.executable, "-m", "bench.processor_run", json.dumps(task)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the processor of {fleet.gpu_count} GPUs failed; what it said stands above")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
