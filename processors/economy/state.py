"""All that the economy remembers of one partition's sites between two folds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

import polars as pl

from idlewatt.processors.amounts import SUM
from idlewatt.processors.economy.consumers import CONSUMER_TOTAL_COLUMNS
from idlewatt.processors.economy.envelopes import EnvelopeState
from idlewatt.processors.economy.prices import VOLUME_COLUMNS
from idlewatt.processors.economy.pricing import MIX_COLUMNS
from idlewatt.processors.economy.rests import REST_COLUMNS
from idlewatt.processors.economy.rolling import PACKING_COLUMNS, ROLLING_COLUMNS
from idlewatt.processors.economy.tiers import (
    COMPARED_COLUMNS,
    ENGINE_COLUMNS,
    SHARE_COLUMNS,
    TIER_COLUMNS,
)
from idlewatt.processors.economy.usage import UsageState
from idlewatt.processors.gone_pools import BOOKED_COLUMNS
from idlewatt.processors.snapshot import read_snapshot, write_snapshot
from idlewatt.stream.records import TOKEN_COUNTS

LAYOUT: Final = "economy/4"
TOTAL_KEY: Final = (
    *("site", "pool", "model_name", "kind", "state", "part", "demand", "currency", "tier", "origin"),
)
UNPRICED_KEY: Final = ("site", "pool", "model_name", "tier")
UNCOSTED_KEY: Final = ("site", "pool", "product")
UNATTRIBUTED_KEY: Final = ("site", "model_name")
_STRING: Final = pl.String


@dataclass(frozen=True, slots=True)
class EconomyState:
    """Frames of one partition; a fold makes a new one."""

    usage: UsageState
    envelopes: EnvelopeState
    currency: str  # of mix, rolling, tiers and shares; empty before the first fold
    mix: pl.DataFrame  # what was sold lately, for the realised price
    totals: pl.DataFrame  # money ever booked: TOTAL_KEY, amount_micro, shown_micro
    unpriced: pl.DataFrame  # tokens without a price: UNPRICED_KEY
    uncosted: pl.DataFrame  # GPU time without a price: UNCOSTED_KEY, gpu_ms, shown_gpu_ms
    carbon: pl.DataFrame  # site, pool, state, carbon_ug
    windows: pl.DataFrame  # site, pool, end_ms: how far each pool's windows go
    rolling: pl.DataFrame  # each pool's windows of the last hour
    packing: pl.DataFrame  # how many GPUs each model was held by and needed, in the last hour
    tiers: pl.DataFrame  # usage by tier in the last hour
    engines: pl.DataFrame  # the engines' tokens in the last hour
    shares: pl.DataFrame  # the tiers' shares of the engines' tokens
    compared: pl.DataFrame  # how far the engines had told of them then
    unattributed: pl.DataFrame  # engines' tokens that no usage covers: UNATTRIBUTED_KEY
    volumes: pl.DataFrame  # what billed consumers have spent in this month and the one before
    rests: pl.DataFrame  # what rounding left of what consumers owe
    consumers: pl.DataFrame  # what consumers ever spent
    booked: pl.DataFrame  # when each pool was booked last; its counters end when it is gone
    # site -> how far the usage went that was read last, and when that was, Unix ms. Not in the snapshot.
    used: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def empty(cls) -> Self:
        frames: dict[str, Any] = {name: pl.DataFrame(schema=schema) for name, schema in _FRAMES.items()}
        return cls(UsageState.empty(), EnvelopeState.empty(), "", **frames)

    def snapshot(self) -> bytes:
        own = {name: getattr(self, name) for name in _FRAMES}
        frames = own | self.usage.frames() | self.envelopes.frames()
        return write_snapshot(LAYOUT, {"currency": self.currency}, frames)

    @classmethod
    def restore(cls, snapshot: bytes) -> Self:
        """Raises SnapshotError where another version wrote it."""
        scalars, frames = read_snapshot(LAYOUT, snapshot)
        own: dict[str, Any] = {name: frames[name] for name in _FRAMES}
        return cls(UsageState.of(frames), EnvelopeState.of(frames), scalars["currency"], **own)


_FRAMES: Final[dict[str, Any]] = {
    "mix": MIX_COLUMNS,
    "totals": {**dict.fromkeys(TOTAL_KEY, _STRING), "amount_micro": SUM, "shown_micro": SUM},
    "unpriced": {**dict.fromkeys(UNPRICED_KEY, _STRING), **dict.fromkeys(TOKEN_COUNTS, SUM)},
    "uncosted": {**dict.fromkeys(UNCOSTED_KEY, _STRING), "gpu_ms": pl.Int64, "shown_gpu_ms": pl.Int64},
    "carbon": {**dict.fromkeys(("site", "pool", "state"), _STRING), "carbon_ug": SUM},
    "windows": {"site": _STRING, "pool": _STRING, "end_ms": pl.Int64},
    "rolling": ROLLING_COLUMNS,
    "packing": PACKING_COLUMNS,
    "tiers": TIER_COLUMNS,
    "engines": ENGINE_COLUMNS,
    "shares": SHARE_COLUMNS,
    "compared": COMPARED_COLUMNS,
    "unattributed": {**dict.fromkeys(UNATTRIBUTED_KEY, _STRING), **dict.fromkeys(TOKEN_COUNTS, SUM)},
    "volumes": VOLUME_COLUMNS,
    "rests": REST_COLUMNS,
    "consumers": CONSUMER_TOTAL_COLUMNS,
    "booked": BOOKED_COLUMNS,
}
