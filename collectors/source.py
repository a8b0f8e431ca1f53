"""What the scheduler asks of anything that can be read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from idlewatt.stream.records import EngineRow, GpuRow, UsageRow


@dataclass(frozen=True, slots=True)
class Reading:
    """What one scrape brought."""

    rows: Sequence[GpuRow | EngineRow | UsageRow]
    # reason -> readings left out of an otherwise good scrape (idlewatt_sample_errors_total)
    left_out: Mapping[str, int] = field(default_factory=dict)


class Source(Protocol):
    """One GPU driver, engine or gateway. Read from one thread at a time."""

    @property
    def name(self) -> str:
        """Label in the metrics, unique on the node."""

    @property
    def interval_s(self) -> float:
        """Seconds between readings."""

    def read(self) -> Reading:
        """Read now and stamp the rows with the moment of reading. Raises SourceError."""

    def close(self) -> None:
        """Let go of sockets and libraries."""
