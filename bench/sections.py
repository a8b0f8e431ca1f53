"""Where the CPU time of a processor goes, by what it was doing.

Time is that of the stage's own thread and of polars' pool, which works for it while it waits; not so in sections
that wait for Kafka, when the pool works for the other stage. Sections nest: each shows its own time without that
of the sections inside it.
"""

import functools
import importlib
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

# (what it is called, module, function or Class.method); what is no longer there is said and left out
_SECTIONS: Final = (
    ("consume", "idlewatt.stream.kafka_log", "KafkaStageLog.poll"),
    ("consume: kafka-python poll", "kafka", "KafkaConsumer.poll"),
    ("commit (transaction)", "idlewatt.stream.kafka_log", "KafkaStageLog.commit"),
    ("decode", "idlewatt.processors.gathering", "Gathering.take"),
    ("fold: rest", "idlewatt.processors.meter.stage", "MeterStage.fold"),
    ("fold: take in", "idlewatt.processors.meter.arrivals", "take_in"),
    ("fold: names to ids", "idlewatt.processors.meter.arrivals", "with_ids"),
    ("fold: close windows", "idlewatt.processors.meter.stage", "close"),
    ("fold: encode ledger rows", "idlewatt.processors.meter.stage", "_ledger_records"),
    ("snapshot", "idlewatt.processors.meter.stage", "MeterStage.snapshot"),
    ("families", "idlewatt.processors.meter.stage", "MeterStage.families"),
    ("render", "idlewatt.processors.page", "Page.put"),
    ("put the page together", "idlewatt.processors.page", "Page.text"),
    ("economy: fold", "idlewatt.processors.economy.stage", "EconomyStage.fold"),
    ("economy: snapshot", "idlewatt.processors.economy.stage", "EconomyStage.snapshot"),
    ("economy: families", "idlewatt.processors.economy.stage", "EconomyStage.families"),
    ("runner: rest", "idlewatt.processors.runner", "Runner.step"),
)
_WAITING: Final = ("consume", "commit")


class Sections:
    """Wraps the functions above; from then on their time is kept."""

    def __init__(self) -> None:
        self._own_ns: defaultdict[str, int] = defaultdict(int)
        self._calls: defaultdict[str, int] = defaultdict(int)
        self._local = threading.local()
        self._missing: list[str] = []
        self._threads_before: dict[str, int] = {}
        for name, module, path in _SECTIONS:
            self._wrap(name, module, path)

    def threads(self) -> list[tuple[str, float]]:
        """CPU seconds by thread."""
        before = self._threads_before
        return sorted(
            ((name, (ns - before.get(name, 0)) / 1e9) for name, ns in _threads_ns().items()),
            key=lambda thread: -thread[1],
        )

    def table(self, total_s: float, threads: list[tuple[str, float]]) -> str:
        lines = [f"{'section':<28}{'CPU s':>9}{'share':>8}{'calls':>9}{'us/call':>11}"]
        for name, ns in sorted(self._own_ns.items(), key=lambda section: -section[1]):
            calls = self._calls[name]
            lines.append(
                f"{name:<28}{ns / 1e9:>9.3f}{ns / 1e9 / total_s:>8.1%}{calls:>9,}{ns / 1e3 / calls:>11.1f}"
            )
        rest = total_s - sum(self._own_ns.values()) / 1e9
        lines.append(f"{'all else (kafka IO threads)':<28}{rest:>9.3f}{rest / total_s:>8.1%}")
        lines += ["", f"{'thread':<28}{'CPU s':>9}"]
        lines += [f"{name[:27]:<28}{used:>9.3f}" for name, used in threads if used >= 0.005]
        lines += [f"no longer there: {name}" for name in self._missing]
        return "\n".join(lines)

    def _wrap(self, name: str, module: str, path: str) -> None:
        try:
            owner: Any = importlib.import_module(module)
            *classes, last = path.split(".")
            for part in classes:
                owner = getattr(owner, part)
            setattr(owner, last, self._timed(name, getattr(owner, last)))
        except (ImportError, AttributeError):
            self._missing.append(f"{module}.{path}")

    def _timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        local = self._local
        waits = name.startswith(_WAITING)

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            outer = getattr(local, "inner_ns", (0, 0))
            local.inner_ns = (0, 0)
            thread_ns, pool_ns = time.thread_time_ns(), _pool_ns()
            try:
                return function(*args, **kwargs)
            finally:
                thread_ns, pool_ns = time.thread_time_ns() - thread_ns, _pool_ns() - pool_ns
                own_ns = thread_ns - local.inner_ns[0]
                self._own_ns[name] += own_ns if waits else own_ns + pool_ns - local.inner_ns[1]
                self._calls[name] += 1
                local.inner_ns = (outer[0] + thread_ns, outer[1] + pool_ns)

        return timed


def _pool_ns() -> int:
    return sum(int(os.pread(file, 64, 0).split()[0]) for file in _polars_schedstats())


# kept open: they are read twice in each section
@functools.cache
def _polars_schedstats() -> tuple[int, ...]:
    import polars as pl

    # starts the pool
    pl.DataFrame({"a": [1, 2]}).group_by("a").len()
    tasks = Path("/proc/self/task").iterdir()
    return tuple(
        os.open(task / "schedstat", os.O_RDONLY)
        for task in tasks
        if (task / "comm").read_text().startswith(("polars", "pool-"))
    )


def _threads_ns() -> dict[str, int]:
    names = {str(thread.native_id): thread.name for thread in threading.enumerate()}
    found: defaultdict[str, int] = defaultdict(int)
    for task in Path("/proc/self/task").iterdir():
        name = names.get(task.name) or f"({(task / 'comm').read_text().strip()})"
        found[name] += int((task / "schedstat").read_text().split()[0])
    return found
