"""A node's collector beside other readers of NVML, all over the tests' shim: what they cost the node.

The shim answers at once, so that what is measured is the program and not the driver, which costs all of them the
same per call.
"""

import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

from nvml_library import SHIM

from bench import CACHE, ROOT
from bench.environments import python_with
from bench.measuring import free_port, memory_mib, usage_of
from bench.recorded import empty_broker
from bench.report import Part, Table
from idlewatt.stream.kafka_topics import create_topics
from idlewatt.stream.settings import Log

_SIZES: Final = (8, 72)
_WARM_UP_S: Final = 6.0
_MEASURED_S: Final = 15.0
_CYCLE: Final = re.compile(
    rb'^idlewatt_scrape_duration_seconds\{[^}]*source="nvml"[^}]*\} (\S+)$', re.MULTILINE
)
_SENT: Final = re.compile(rb'^idlewatt_sent_rows_total\{topic="idlewatt.gpu"\} (\S+)$', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class _Program:
    name: str
    short: str
    command: list[str]
    environment: dict[str, str]
    port: int | None
    # pages that are made at a scrape are asked for as often as their figures change
    scrape_every_s: float


def run() -> Part:
    table = Table("program", "GPUs", "% of a core", "memory MiB", "ms per cycle, median")
    values: dict[str, float] = {}
    losses: list[str] = []
    with empty_broker("collector") as broker, tempfile.TemporaryDirectory(dir=CACHE) as name:
        log = Log(kind="kafka", bootstrap_servers=broker.bootstrap_servers, partitions=4)
        create_topics(log)
        folder = Path(name)
        _build_shim(folder)
        for gpus in _SIZES:
            _write_script(folder / "script", gpus)
            for program in _programs(log, gpus):
                percent, memory, cycle_ms = _measure(program, folder, gpus)
                table.add(
                    program.name,
                    str(gpus),
                    f"{percent:.2f}",
                    f"{memory:.0f}",
                    "" if cycle_ms is None else f"{cycle_ms:.2f}",
                )
                values[f"{program.short}_{gpus}_gpus_percent"] = round(percent, 3)
                values[f"{program.short}_{gpus}_gpus_mib"] = round(memory, 1)
                if program.short != "idlewatt":
                    losses += _losses(program, gpus, values)
    return Part(
        "collector",
        [table],
        {"collector_percent_of_a_core": values["idlewatt_8_gpus_percent"]} | values,
        _NOTES,
        losses,
    )


_NOTES: Final = [
    "All read at 1 Hz. Idlewatt sends every reading to a real Kafka, 15 columns a GPU, and is scraped for its own health "
    "each 5 s. nvitop-exporter keeps 22 series a GPU and some of the host; the least exporter is 25 lines with "
    "nvidia-ml-py and prometheus_client that keep the same 7 readings as Idlewatt and handle no failure. Both are scraped "
    "each second, without which their readings go nowhere. Exporters that need DCGM or a real driver are not here.",
]


def _programs(log: Log, gpus: int) -> Iterator[_Program]:
    idlewatt = {
        "IDLEWATT_LOG__KIND": "kafka",
        "IDLEWATT_LOG__BOOTSTRAP_SERVERS": log.bootstrap_servers,
        "IDLEWATT_LOG__PARTITIONS": str(log.partitions),
        "IDLEWATT_COLLECT__NODE": f"node-{gpus}",
    }
    port = free_port()
    yield _Program(
        "Idlewatt collect",
        "idlewatt",
        [sys.executable, "-m", "idlewatt.cli.main", "collect"],
        idlewatt | {"IDLEWATT_PORT": str(port)},
        port,
        5.0,
    )
    nvitop = python_with("nvitop-exporter", "nvitop-exporter==1.7.2").parent / "nvitop-exporter"
    port = free_port()
    arguments = ["--bind-address", "127.0.0.1", "--port", str(port), "--interval", "1.0"]
    yield _Program("nvitop-exporter 1.7.2", "nvitop_exporter", [str(nvitop), *arguments], {}, port, 1.0)
    port = free_port()
    least = [str(nvitop.parent / "python"), str(ROOT / "bench" / "least_exporter.py"), str(port)]
    yield _Program("the least exporter", "least_exporter", least, {}, port, 1.0)


def _losses(program: _Program, gpus: int, values: dict[str, float]) -> Iterator[str]:
    for value, what in (("percent", "CPU time"), ("mib", "memory")):
        theirs, ours = values[f"{program.short}_{gpus}_gpus_{value}"], values[f"idlewatt_{gpus}_gpus_{value}"]
        if theirs < ours:
            yield f"{program.name} takes {theirs / ours:.0%} of the {what} of Idlewatt's collector for {gpus} GPUs."


def _measure(program: _Program, folder: Path, gpus: int) -> tuple[float, float, float | None]:
    """Percent of a core, resident memory in MiB, and milliseconds per reading of all GPUs where it says so."""
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(folder),
        "NVML_SHIM_SCRIPT": str(folder / "script"),
        **program.environment,
    }
    said = CACHE / f"{program.short}.log"
    with said.open("w") as output:
        process = subprocess.Popen(
            program.command,
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
        )
    try:
        with _scraped(program) as pages:
            time.sleep(_WARM_UP_S)
            before = usage_of(process.pid)
            time.sleep(_MEASURED_S)
            used = usage_of(process.pid) - before
            memory = memory_mib(process.pid, "VmRSS")
        cycles = _cycles_ms(program, pages)
        sent = max((float(value) for page in pages for value in _SENT.findall(page)), default=0.0)
        if program.short == "idlewatt" and sent < gpus * _MEASURED_S * 0.9:
            raise RuntimeError(f"{program.name} has sent only {sent:.0f} rows; see {said}")
        if process.poll() is not None or (program.port is not None and not pages):
            raise RuntimeError(f"{program.name} does not run; see {said}")
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        process.wait()
    return used.cpu_s / used.wall_s * 100, memory, cycles


@contextmanager
def _scraped(program: _Program) -> Iterator[list[bytes]]:
    """Asks for its page meanwhile."""
    pages: list[bytes] = []
    stop = threading.Event()

    def scrape() -> None:
        while not stop.wait(program.scrape_every_s):
            with (
                suppress(OSError),
                urllib.request.urlopen(f"http://127.0.0.1:{program.port}/metrics", timeout=5) as page,
            ):
                pages.append(page.read())

    scraper = threading.Thread(target=scrape, daemon=True)
    if program.port is not None:
        scraper.start()
    try:
        yield pages
    finally:
        stop.set()
        if program.port is not None:
            scraper.join()


def _cycles_ms(program: _Program, pages: list[bytes]) -> float | None:
    found = [float(value) * 1e3 for page in pages for value in _CYCLE.findall(page)]
    return median(found) if found else None


def _build_shim(folder: Path) -> None:
    source = (SHIM / "nvml.c").read_text()
    few = "MAX_GPUS = 32"
    if few not in source:
        raise RuntimeError(f"{SHIM}/nvml.c no longer says {few}")
    (folder / "nvml.c").write_text(source.replace(few, f"MAX_GPUS = {max(_SIZES)}"))
    command = ["cc", "-O1", "-shared", "-fPIC", "-pthread", "-Wl,-soname,libnvidia-ml.so.1"]
    sources = [str(folder / "nvml.c"), str(ROOT / "bench" / "nvml_more.c")]
    subprocess.run([*command, "-o", str(folder / "libnvidia-ml.so.1"), *sources], check=True)


def _write_script(path: Path, gpus: int) -> None:
    lines = ["driver 580.95.05", f"gpus {gpus}"]
    for n in range(gpus):
        lines += [f"{n} uuid GPU-{n:08x}-0000-0000-0000-000000000000", f"{n} name NVIDIA H100 80GB HBM3"]
        lines += [
            f"{n} energy {10**9 + n} 600000",
            f"{n} power 600000",
            f"{n} limit 700000",
            f"{n} max_limit 700000",
        ]
        lines += [f"{n} utilization 93", f"{n} memory 68719476736", f"{n} reasons 0", f"{n} processes 1"]
    path.write_text("\n".join(lines) + "\n")
