"""Pools that are gone: nodes come with a new name each, and each would be remembered and shown for ever."""

from collections.abc import Iterable
from typing import Any, Final

import polars as pl

from idlewatt.stream.clock import DAY_MS
from idlewatt.stream.records import POOL

# The meter takes darkness back for so long after a last reading: longer than raw rows are kept, and than a spool is likely
# to hold them. No counter may end before.
TAKEN_BACK_MS: Final = 7 * DAY_MS
# when anything of the pool was booked last, by the clock of its stage
BOOKED_COLUMNS: Final = {"site": pl.String, "pool": pl.String, "booked_ms": pl.Int64}


def of_others(pools: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    """Rows of other pools than these."""
    return rows if pools.is_empty() else rows.join(pools, on=POOL, how="anti", maintain_order="left")


def frames_of_others(pools: pl.DataFrame, state: Any, names: Iterable[str]) -> dict[str, Any]:
    """Those frames of the state, without these pools."""
    return {name: of_others(pools, getattr(state, name)) for name in names}
