"""CPU and memory of processes, and what this machine is."""

import os
import platform
import resource
import socket
import time
from dataclasses import dataclass
from pathlib import Path

import polars as pl

TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU seconds (user and system), those of them in the kernel, and wall time of a process so far."""

    cpu_s: float
    kernel_s: float
    wall_s: float

    def __sub__(self, earlier: "Usage") -> "Usage":
        return Usage(
            self.cpu_s - earlier.cpu_s, self.kernel_s - earlier.kernel_s, self.wall_s - earlier.wall_s
        )


def on_one_core() -> None:
    """Keep this process, and what it starts, to the last core it may use: threads that share one hand over cheaply."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def own_usage() -> Usage:
    """Of this process, all its threads, none of its children."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return Usage(used.ru_utime + used.ru_stime, used.ru_stime, time.monotonic())


def usage_of(pid: int) -> Usage:
    """Of another process; to a hundredth of a second."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    user_s, kernel_s = (int(ticks) * TICK_S for ticks in fields[11:13])
    return Usage(user_s + kernel_s, kernel_s, time.monotonic())


def memory_mib(pid: int | str, which: str) -> float:
    """VmHWM: the most it ever had resident; VmRSS: now. `pid` may be "self"."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{which}:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"process {pid} has no {which}")


def calibration_s() -> float:
    """CPU seconds of a fixed load, half Python and half polars, the best of seven: how fast a core is right now."""
    rows = pl.DataFrame({"key": range(400_000)}).with_columns(
        key=pl.col("key") * 7919 % 10_007, value=pl.col("key")
    )
    return min(_load_s(rows) for _ in range(7))


def _load_s(rows: pl.DataFrame) -> float:
    began = time.process_time()
    table: dict[int, int] = {}
    value = 1
    for _ in range(200_000):
        value = value * 1_103_515_245 + 12_345 & 0x7FFFFFFF
        table[value & 4095] = value
    rows.sort("key", "value").group_by("key").agg(pl.col("value").sum())
    return time.process_time() - began


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def machine() -> str:
    """One line: cores, processor, memory, operating system."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    release = platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    kernel = ".".join(platform.release().split(".")[:2])
    return f"{os.cpu_count()} cores ({cpu}), {memory_gib:.0f} GiB, {release}, Linux {kernel}, Python {platform.python_version()}"
