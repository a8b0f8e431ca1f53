"""The wall clock, in the unit of every row. Passed in where time matters, so that tests can set it."""

import time
from collections.abc import Callable

Clock = Callable[[], int]


def unix_ms() -> int:
    """Now, in Unix milliseconds."""
    return time.time_ns() // 1_000_000
