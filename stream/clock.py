"""The wall clock, in the unit of every row, and lengths in it. Passed in where time matters, so that tests can set it."""

import time
from collections.abc import Callable
from typing import Final

Clock = Callable[[], int]

MINUTE_MS: Final = 60_000
HOUR_MS: Final = 3_600_000
DAY_MS: Final = 24 * HOUR_MS


def unix_ms() -> int:
    """Now, in Unix milliseconds."""
    return time.time_ns() // 1_000_000
