"""`make bench`: all parts and docs/performance.md, or one part with BENCH=name; GPUS=n sets the size where there is one."""

import os
import sys
import time
from collections.abc import Callable
from typing import Final

from bench import catch_up, collector, guard, latency, metrics_page, processor
from bench.peers import compare
from bench.performance_page import write_page
from bench.report import Part

_PARTS: Final[dict[str, Callable[[int | None], Part]]] = {
    "processor": lambda gpus: processor.run([gpus] if gpus else [10_000, 100_000, 600_000]),
    "peers": lambda gpus: compare.run(gpus or 10_000),
    "latency": lambda _: latency.run(),
    "metrics_page": lambda _: metrics_page.run(),
    "collector": lambda _: collector.run(),
    "catch_up": lambda gpus: catch_up.run(gpus or 10_000),
}


def main() -> int:
    # the processor's figures are those of one core
    os.environ.setdefault("POLARS_MAX_THREADS", "1")
    name = os.environ.get("BENCH") or "all"
    digits = os.environ.get("GPUS", "").replace(",", "").replace("_", "")
    if name == "guard":
        print(guard.run())
    elif name in _PARTS and (digits.isdecimal() or not digits):
        print(_PARTS[name](int(digits) if digits else None))
    elif name == "all" and not digits:
        _all()
    else:
        names = ", ".join([*_PARTS, "guard"])
        print(
            f"BENCH is one of {names}, or left out for all; GPUS is a number and needs BENCH", file=sys.stderr
        )
        return 2
    return 0


def _all() -> None:
    began = time.monotonic()
    parts = []
    for name, run in _PARTS.items():
        print(f"{name} ...", flush=True)
        parts.append(run(None))
        print(parts[-1], flush=True)
    page = write_page(parts, time.monotonic() - began)
    print(f"\nwritten: {page}")


if __name__ == "__main__":
    sys.exit(main())
