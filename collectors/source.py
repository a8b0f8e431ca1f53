"""What the scheduler asks of anything that can be read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from idlewatt.stream.records import EngineRow, GpuRow, UsageRow

# Clocks that are kept step by less. After more, what was read before is refused as ahead by processors whose clock is
# right, or was, if that step was the wrong one, for hours: to wait for it would be to stay blind.
_MOST_SET_BACK_MS: Final = 60_000


def is_set_back(ts_ms: int, newest_ms: int | None) -> bool:
    """Whether what is read at `ts_ms` is to be left out, as older than the newest that was passed on, if any was.

    The meter orders readings by their time: between those before the step a counter would fall, and rise again.
    """
    return newest_ms is not None and newest_ms - _MOST_SET_BACK_MS <= ts_ms < newest_ms


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
        """Read now and stamp the rows with the moment of reading. Raises SourceError.

        A source that remembers what it has passed on leaves out by itself what is_set_back(), as clock_set_back.
        """

    def close(self) -> None:
        """Let go of sockets and libraries."""
