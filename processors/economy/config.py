"""What the economy needs of the settings; money itself stands in the book."""

from dataclasses import dataclass
from typing import Final, get_args

from idlewatt.stream.settings import IdlePart, Settings

EVERY_IDLE_PART: Final[tuple[str, ...]] = get_args(IdlePart)


@dataclass(frozen=True, slots=True)
class EconomyConfig:
    """Which idle watts are lost revenue (state.part), and on how little a ratio may stand."""

    lost_revenue_counts: tuple[str, ...] = EVERY_IDLE_PART
    coverage_floor: float = 0.9
    min_tokens: int = 100

    @classmethod
    def of(cls, settings: Settings) -> "EconomyConfig":
        process = settings.process
        return cls(settings.economy.lost_revenue_counts, process.coverage_floor, process.min_tokens)
