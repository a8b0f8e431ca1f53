"""`make bench`: all parts, or one with BENCH=name; GPUS=n sets the size of those that have one."""

import os
import sys

from bench.report import Part


def main() -> int:
    os.environ.setdefault("POLARS_MAX_THREADS", "1")
    name = os.environ.get("BENCH", "")
    gpus = os.environ.get("GPUS", "").replace(",", "").replace("_", "")
    part = run(name, int(gpus) if gpus else None)
    show(part)
    return 0


def run(name: str, gpus: int | None) -> Part:
    if name == "peers":
        from bench.peers import compare

        return compare.run(gpus or 10_000)
    if name == "latency":
        from bench import latency

        return latency.run()
    from bench import processor

    return processor.run([gpus] if gpus else [10_000, 100_000, 600_000])


def show(part: Part) -> None:
    print(f"\n## {part.name}\n")
    for table in part.tables:
        print(table, end="\n\n")
    for note in part.notes:
        print(note)
    for name, value in reversed(part.values.items()):
        print(f"{name}={value}")


if __name__ == "__main__":
    sys.exit(main())
