"""CPU and memory of processes, and what this machine is."""

import os
import platform
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU seconds (user and system) and wall time of a process so far."""

    cpu_s: float
    wall_s: float

    def __sub__(self, earlier: "Usage") -> "Usage":
        return Usage(self.cpu_s - earlier.cpu_s, self.wall_s - earlier.wall_s)


def own_usage() -> Usage:
    """Of this process, all its threads, none of its children."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return Usage(used.ru_utime + used.ru_stime, time.monotonic())


def usage_of(pid: int) -> Usage:
    """Of another process; to a hundredth of a second."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return Usage((int(fields[11]) + int(fields[12])) * TICK_S, time.monotonic())


def memory_mib(pid: int | str, which: str) -> float:
    """VmHWM: the most it ever had resident; VmRSS: now. `pid` may be "self"."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{which}:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"process {pid} has no {which}")


def calibration_s() -> float:
    """CPU seconds of a fixed loop of dictionary and integer work, the best of five: how fast a core is right now."""
    return min(_loop_s() for _ in range(5))


def _loop_s() -> float:
    began = time.process_time()
    table: dict[int, int] = {}
    value = 1
    for _ in range(400_000):
        value = value * 1_103_515_245 + 12_345 & 0x7FFFFFFF
        table[value & 4095] = value
    return time.process_time() - began


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float, every_s: float = 0.1) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"within {timeout_s:.0f} s it did not come true that {what}")
        time.sleep(every_s)


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
