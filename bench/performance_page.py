"""docs/performance.md, from what all parts found."""

import inspect
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Final

from kafka_broker import KAFKA_VERSION

from bench import ROOT, catch_up, collector, latency, metrics_page, processor
from bench.measuring import machine
from bench.peers import compare
from bench.report import Part

_PAGE: Final = ROOT / "docs" / "performance.md"
_MODULES: Final[dict[str, tuple[str, ModuleType]]] = {
    "processor": ("Processor", processor),
    "peers": ("Beside stream processors and Prometheus", compare),
    "latency": ("Latency", latency),
    "metrics_page": ("/metrics", metrics_page),
    "collector": ("Collector", collector),
    "catch_up": ("Catching up", catch_up),
}
_PACKAGES: Final = ("polars", "pyarrow", "kafka-python", "prometheus-client", "zstandard")


def write_page(parts: Sequence[Part], took_s: float) -> Path:
    """Returns where it stands."""
    _PAGE.write_text("\n".join(_lines(parts, took_s)) + "\n")
    return _PAGE.relative_to(ROOT)


def _lines(parts: Sequence[Part], took_s: float) -> Iterator[str]:
    versions = ", ".join(f"{package} {version(package)}" for package in _PACKAGES)
    yield "<!-- Written by `make bench`. -->"
    yield "# Performance"
    yield ""
    yield f"Measured by `make bench` in {took_s / 60:.0f} minutes, everything on one machine: {machine()}."
    yield f"Idlewatt {version('idlewatt')} with {versions}; Apache Kafka {KAFKA_VERSION} on the same machine."
    yield "Figures of the processor are CPU time of its process alone, user and system. It and its peers have one core"
    yield "each, as `taskset -c 1 idlewatt process` or a container's `cpuset` gives: threads that hand over to one another"
    yield "on one core take less time than on several."
    yield ""
    yield "`make bench BENCH=processor GPUS=100000` runs one part; PROFILE=1 says where its time goes."
    yield ""
    yield "## Where others are better"
    yield ""
    yield from _losses(parts)
    for part in parts:
        title, module = _MODULES[part.name]
        yield from ("", f"## {title}", "")
        yield inspect.getdoc(module) or ""
        for table in part.tables:
            yield from ("", str(table))
        for note in part.notes:
            yield from ("", note)
        yield from ("", f"`make bench BENCH={part.name}`")


def _losses(parts: Sequence[Part]) -> Iterator[str]:
    found = [loss for part in parts for loss in part.losses]
    yield from (f"- {loss}" for loss in found) if found else ("Nowhere in what is measured here.",)
