"""How a process that runs stages uses a core and memory. Nothing here may import polars, which reads it when loaded."""

import gc
import os
from typing import Final

# A partition's frames are too small to be worth sharing out: one thread does the same with less time in all. The
# allocator keeps for seconds what a fold gives back, in huge pages: the next fold takes as much, and a third of
# the time went into pages that the kernel had to clear anew.
ENVIRONMENT: Final = {
    "POLARS_MAX_THREADS": "1",
    "_RJEM_MALLOC_CONF": "thp:always,dirty_decay_ms:10000,muzzy_decay_ms:10000",
}
# Messages come as hundreds of thousands of small objects that hold no cycles.
_GC_ALLOCATIONS: Final = 100_000


def tune() -> None:
    """Set what the environment does not; to be called before polars is imported."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    gc.set_threshold(_GC_ALLOCATIONS)
