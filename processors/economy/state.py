"""All that the economy remembers of one partition's sites between two folds."""

from dataclasses import dataclass
from typing import Any, Final, Self

import polars as pl

from idlewatt.processors.economy.pricing import MIX_COLUMNS, WINDOW_LOSS_COLUMNS
from idlewatt.processors.snapshot import read_snapshot, write_snapshot

LAYOUT: Final = "economy/1"
TOTAL_KEY: Final = ("site", "pool", "model_name", "kind", "state", "part", "demand", "currency")
_STRING: Final = pl.String


@dataclass(frozen=True, slots=True)
class EconomyState:
    """Frames of one partition; a fold makes a new one."""

    mix: pl.DataFrame  # token rows of the last hour, for the realised price
    totals: pl.DataFrame  # money ever booked: TOTAL_KEY, amount_micro
    unpriced: pl.DataFrame  # site, pool, model_name, output_tokens
    losses: pl.DataFrame  # what each pool lost in each window of the last hour
    windows: pl.DataFrame  # site, pool, end_ms: how far each pool's windows go

    @classmethod
    def empty(cls) -> Self:
        return cls(**{name: pl.DataFrame(schema=schema) for name, schema in _FRAMES.items()})

    def snapshot(self) -> bytes:
        return write_snapshot(LAYOUT, {}, {name: getattr(self, name) for name in _FRAMES})

    @classmethod
    def restore(cls, snapshot: bytes) -> Self:
        """Raises SnapshotError where another version wrote it."""
        return cls(**read_snapshot(LAYOUT, snapshot)[1])


_FRAMES: Final[dict[str, Any]] = {
    "mix": MIX_COLUMNS,
    "totals": {**dict.fromkeys(TOTAL_KEY, _STRING), "amount_micro": pl.Int64},
    "unpriced": {"site": _STRING, "pool": _STRING, "model_name": _STRING, "output_tokens": pl.Int64},
    "losses": WINDOW_LOSS_COLUMNS,
    "windows": {"site": _STRING, "pool": _STRING, "end_ms": pl.Int64},
}
