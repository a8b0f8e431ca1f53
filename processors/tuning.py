"""How a process that runs stages uses a core and memory. Nothing here may import polars, which reads it when loaded."""

import contextlib
import ctypes
import gc
import os
from typing import Final

# A partition's frames are too small to be worth sharing out: one thread does the same with less time in all. The
# allocators of polars and pyarrow, each with a jemalloc of its own, keep for minutes what a fold gives back: the next
# fold takes as much, and a third of the time went into pages that the kernel had to clear anew. pyarrow's usual
# mimalloc gives them back whatever it is told, and several arenas of polars each find theirs anew. Whether pages are
# huge is left to the kernel: to ask for it gained nothing, and on a virtual machine whose host had still to find the
# memory it took several times as long.
_KEEP: Final = "dirty_decay_ms:300000,muzzy_decay_ms:300000"
ENVIRONMENT: Final = {
    "POLARS_MAX_THREADS": "1",
    "_RJEM_MALLOC_CONF": f"{_KEEP},narenas:1",
    "ARROW_DEFAULT_MEMORY_POOL": "jemalloc",
    "JE_ARROW_MALLOC_CONF": _KEEP,
}
# What polars does not allocate is glibc's. It would give each answer of a broker, 6 MB and copied five times, pages of
# its own, and give them back: half of what reading a message costs. Numbers of mallopt() stand in glibc's malloc.h.
_MIB: Final = 1 << 20
_GLIBC_OPTIONS: Final = {
    "M_ARENA_MAX": (-8, 1),
    "M_MMAP_THRESHOLD": (-3, 32 * _MIB),
    "M_TRIM_THRESHOLD": (-1, 768 * _MIB),
}
# Messages come as hundreds of thousands of small objects that hold no cycles.
_GC_ALLOCATIONS: Final = 100_000


def tune() -> None:
    """Set what the environment does not; to be called before polars is imported."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    gc.set_threshold(_GC_ALLOCATIONS)
    with contextlib.suppress(AttributeError, OSError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        for option, setting in _GLIBC_OPTIONS.values():
            mallopt(option, setting)
