"""GPU samples per CPU-second, end to end: a real Kafka to closed windows, ledger rows and a rendered /metrics.

The log is full when the processor starts, so that it works as fast as it can; in live operation it does the same
work and waits in between. Both stages run, over 12 partitions. Counted is all CPU time of the process from its start
of reading until it has read everything, closed all windows and committed: 1,200 s of rows at 10,000 GPUs (600 s where
a message holds 1 s), 240 s at 100,000, and 180 s at 600,000. There is an engine to every 8 GPUs, of which a fifth is
idle at any time; its rows are read too and not counted as samples.
"""

import functools
import json
import os
import subprocess
import sys
from typing import Any, Final

from bench import ROOT
from bench.fleet import Fleet, Shape
from bench.measuring import calibration_s, on_one_core
from bench.recorded import fresh_outputs, recorded
from bench.report import Part, Table
from idlewatt.processors.tuning import ENVIRONMENT
from idlewatt.stream.settings import Settings

PARTITIONS: Final = 12
_TIMEOUT_S: Final = 900


def recorded_s(gpus: int, shape: Shape = "nodes") -> int:
    """Half minutes of event time, from three minutes to twenty, between them for twenty-four million samples at most.

    With half of that, what a process does once, above all touching its memory for the first time, was an eighth of it,
    and a quarter of 90 s at 600,000 GPUs.
    """
    half_minutes = min(max(24_000_000 // gpus // 30, 6), 40)
    # nine times as many messages take twice as long to write and to read
    return half_minutes * 30 if shape == "nodes" else half_minutes * 15


def run(sizes: list[int]) -> Part:
    """Every size with one message per node of 8 GPUs and 10 s; the smallest with 72 GPUs and 1 s too."""
    one = sizes[0] if len(sizes) == 1 else None
    runs: list[tuple[int, Shape]] = [(gpus, "nodes") for gpus in sizes]
    if one is None:
        runs.insert(1, (sizes[0], "racks"))
    elif os.environ.get("SHAPE") == "racks":
        runs = [(one, "racks")]
    table = Table(
        "GPUs",
        "a message holds",
        "samples",
        "CPU s",
        "of it in the kernel",
        "wall s",
        "samples per CPU-s",
        "fixed load ms",
        "cores at 1 Hz",
        "peak memory MiB",
        "checkpoint MiB",
        "read back s",
    )
    rates: dict[tuple[int, Shape], list[float]] = {}
    profile = ""
    profiled = sizes[len(sizes) // 2] if one is None or os.environ.get("PROFILE") == "1" else None
    if one is None:
        # the smallest before and after the largest: the speed of a core moves by more than what is compared
        runs.append(runs[0])
    for gpus, shape in runs:
        before = rates.setdefault((gpus, shape), [])
        fleet, found = measure(gpus, shape, profile=gpus == profiled, run=len(before))
        profile = profile or found["profile"]
        rate = found["samples"] / found["cpu_s"]
        before.append(rate)
        table.add(
            f"{fleet.gpu_count:,}",
            "8 GPUs x 10 s" if shape == "nodes" else "72 GPUs x 1 s",
            f"{found['samples']:,}",
            f"{found['cpu_s']:.2f}",
            f"{found['kernel_s']:.2f}",
            f"{found['wall_s']:.1f}",
            f"{rate:,.0f}",
            f"{found['load_s'] * 1000:.0f}",
            f"{fleet.gpu_count / rate:.2f}",
            f"{found['peak_mib']:,.0f}",
            f"{found['checkpoint_bytes'] / 2**20:.1f}",
            f"{found['checkpoint_read_s']:.1f}",
        )
    if one is not None:
        tables = [table, profile] if profile else [table]
        return Part("processor", tables, {"samples_per_cpu_second": round(rate)})
    return _whole(table, sizes, {size: _mean(found) for size, found in rates.items()}, profile)


def _mean(rates: list[float]) -> float:
    """Samples per CPU-second of several runs over the same samples."""
    return len(rates) / sum(1 / rate for rate in rates)


def _whole(table: Table, sizes: list[int], rates: dict[tuple[int, Shape], float], profile: str) -> Part:
    """With the growth of cost from the smallest to the largest fleet, and where the time goes at the size in the middle."""
    middle, largest = sizes[len(sizes) // 2], sizes[-1]
    growth = rates[sizes[0], "nodes"] / rates[largest, "nodes"] - 1
    values = {
        "samples_per_cpu_second": round(rates[largest, "nodes"]),
        "cost_growth_percent": round(growth * 100, 1),
    }
    values |= {f"samples_per_cpu_second_{gpus}_{shape}": round(rate) for (gpus, shape), rate in rates.items()}
    cores = largest / rates[largest, "nodes"]
    notes = [
        "The fixed load, the same in each run, half Python and half polars, says how fast a core was just then: where "
        "it takes longer, so does everything else. On machines of this size it has taken from 60 to 188 ms.",
        "What is in the kernel is above all the memory of its peak, given once: where the host of a virtual machine has "
        "to find a page first, that was seen to take 2 to 12 µs, so up to 13 s for 4 GiB.",
        f"{largest:,} GPUs at one reading a second take {cores:.1f} cores; the goal is half a core.",
        f"A sample costs {abs(growth):.0%} {'more' if growth > 0 else 'less'} at {largest:,} GPUs than at {sizes[0]:,}, of "
        "which there is a run before and one after it.",
        f"Where the time goes at {middle:,} GPUs (that run was measured so):\n\n```\n{profile}\n```",
    ]
    return Part("processor", [table], values, notes)


@functools.cache
def measure(gpus: int, shape: Shape, *, profile: bool, run: int = 0) -> tuple[Fleet, dict[str, Any]]:
    """The fleet, and what bench/processor_run.py found; and `load_s`, what calibration_s() took beside it.

    Each run takes place once, however often it is asked for.
    """
    with recorded(gpus, shape, recorded_s(gpus, shape), PARTITIONS) as (broker, fleet):
        settings = fresh_outputs(broker, PARTITIONS)
        before_s = calibration_s()
        found = measured(settings, fleet, profile=profile)
        return fleet, found | {"load_s": min(before_s, calibration_s())}


def measured(
    settings: Settings, fleet: Fleet, *, page: bool = False, profile: bool = False
) -> dict[str, Any]:
    """What bench/processor_run.py found; `page`: of the page of /metrics too."""
    task = {
        "settings": settings.model_dump_json(),
        # who has read all there is follows the clock a grace behind it, and closes windows a grace after their end
        "now_ms": fleet.end_ms + round(2 * settings.process.grace_s * 1000),
        "gpu_rows": fleet.gpu_rows,
        "engine_rows": fleet.engine_rows,
        "page": page,
        "profile": profile,
    }
    # as `idlewatt process` has it; polars has put settings of its own into this process's when it was loaded
    environment = {**os.environ, **ENVIRONMENT}
    done = subprocess.run(
        [sys.executable, "-m", "bench.processor_run", json.dumps(task)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
        preexec_fn=None if page else on_one_core,
    )
    if done.returncode:
        raise RuntimeError(f"the processor of {fleet.gpu_count} GPUs failed; what it said stands above")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
