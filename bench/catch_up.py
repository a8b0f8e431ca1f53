"""A processor that was away: from its start to the moment when it has read and committed all there is."""

from typing import Final

from bench.processor import measure
from bench.report import Part, Table

_HOUR_S: Final = 3600


def run(gpus: int) -> Part:
    """The run of bench/processor.py over some minutes, and how long an hour takes at that pace."""
    fleet, found = measure(gpus, "nodes", profile=False)
    pace = fleet.seconds / found["wall_s"]
    table = Table(
        "GPUs", "in the log", "seconds until live", "times real time", "an hour would take", "peak memory MiB"
    )
    table.add(
        f"{fleet.gpu_count:,}",
        f"{fleet.seconds} s",
        f"{found['wall_s']:.1f}",
        f"{pace:.0f}",
        f"{_HOUR_S / pace:.0f} s",
        f"{found['peak_mib']:,.0f}",
    )
    note = f"Measured over {fleet.seconds} s of rows, a factor of {_HOUR_S / fleet.seconds:.1f} below the hour; the hour is that pace going on."
    return Part("catch_up", [table], {"catch_up_seconds_per_hour": round(_HOUR_S / pace, 1)}, [note])
