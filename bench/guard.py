"""Has the processor become slower? Compares with bench/baseline.json by ratio to a fixed load in the same run.

By hand, on a machine that does nothing else: `make bench BENCH=guard`; with UPDATE=1 it writes the baseline.
"""

import json
import os
import sys
from pathlib import Path
from typing import Final

from bench.measuring import machine
from bench.processor import measure
from bench.report import Part, Table

_BASELINE: Final = Path(__file__).parent / "baseline.json"
_GPUS: Final = 10_000
# value -> by how much it may be worse before it counts; the second says that more is better
_ALLOWED: Final = {
    "samples_per_load": (0.15, True),
    "checkpoint_bytes": (0.10, False),
    "peak_mib": (0.20, False),
}


def run() -> Part:
    """Exits with 1 if a value is worse than the baseline by more than is allowed."""
    found = _measured()
    if os.environ.get("UPDATE") == "1":
        _BASELINE.write_text(json.dumps({"machine": machine(), "gpus": _GPUS, **found}, indent=2) + "\n")
    baseline = json.loads(_BASELINE.read_text())
    table = Table("value", "baseline", "now", "change", "allowed")
    worse = []
    for name, (allowed, more_is_better) in _ALLOWED.items():
        change = found[name] / baseline[name] - 1
        table.add(
            name,
            f"{baseline[name]:,.0f}",
            f"{found[name]:,.0f}",
            f"{change:+.1%}",
            f"{-allowed if more_is_better else allowed:+.0%}",
        )
        if (-change if more_is_better else change) > allowed:
            worse.append(name)
    part = Part(
        "guard",
        [table],
        {"worse_than_baseline": len(worse)},
        [f"Worse: {', '.join(worse)}."] if worse else [],
    )
    if worse:
        print(part)
        sys.exit(1)
    return part


def _measured() -> dict[str, float]:
    _, found = measure(_GPUS, "nodes", profile=False)
    return {
        "samples_per_load": found["samples"] / found["cpu_s"] * found["load_s"],
        "checkpoint_bytes": found["checkpoint_bytes"],
        "peak_mib": found["peak_mib"],
    }
