"""A process that runs stages keeps to one core, unless it is told otherwise."""

import os
import subprocess
import sys

import pytest

from idlewatt.processors.tuning import ENVIRONMENT

SCRIPT = """
import os
from idlewatt.processors.tuning import tune
tune()
import polars as pl
print(pl.thread_pool_size(), os.environ["_RJEM_MALLOC_CONF"])
"""


@pytest.mark.parametrize(("asked", "threads"), [(None, "1"), ("2", "2")])
def test_polars_takes_one_thread_unless_told_otherwise(asked: str | None, threads: str) -> None:
    """The settings reach polars, also its allocator without a complaint, and what the environment says comes first."""
    # polars has set some in this process, when it was loaded
    environment = {name: value for name, value in os.environ.items() if name not in ENVIRONMENT}
    if asked is not None:
        environment["POLARS_MAX_THREADS"] = asked
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    told, allocator = done.stdout.split()
    assert told == threads
    # after polars' own: of two that say the same the last one counts
    assert allocator.endswith("," + ENVIRONMENT["_RJEM_MALLOC_CONF"])
    # jemalloc says here what it does not understand
    assert done.stderr == ""
