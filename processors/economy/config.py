"""What the economy needs of the settings, in micro-units of the currency."""

import fnmatch
from dataclasses import dataclass
from typing import Final

import polars as pl

from idlewatt.stream.settings import Price, Settings

MICRO: Final = 1_000_000
DEFAULT_COUNTS: Final = ("idle_loaded.draw", "idle_loaded.headroom", "idle_free.draw", "idle_free.headroom")
PRICE_COLUMNS: Final = {
    "model_name": pl.String,
    "price_output": pl.Int64,
    "price_input": pl.Int64,
    "price_cached_input": pl.Int64,
}


@dataclass(frozen=True, slots=True)
class EconomyConfig:
    """Prices, and which idle watts count as lost revenue (state.part)."""

    currency: str = "USD"
    prices: tuple[Price, ...] = ()
    lost_revenue_counts: tuple[str, ...] = DEFAULT_COUNTS

    def price_of(self, model_name: str) -> Price | None:
        """The first entry that matches; None: the price book does not name the model."""
        return next((price for price in self.prices if fnmatch.fnmatchcase(model_name, price.model)), None)

    def price_frame(self, models: list[str]) -> pl.DataFrame:
        """PRICE_COLUMNS of the priced ones among the models, in micro-units per million tokens."""
        rows = [
            (name, *(round(amount * MICRO) for amount in (price.output, price.input, price.cached_input)))
            for name in models
            if (price := self.price_of(name)) is not None
        ]
        return pl.DataFrame(rows, schema=PRICE_COLUMNS, orient="row")

    @classmethod
    def of(cls, settings: Settings) -> "EconomyConfig":
        economy = settings.economy
        return cls(economy.currency, economy.price, economy.lost_revenue_counts)
