"""What the meter needs of the settings, in its own units."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from idlewatt.stream.clock import DAY_MS
from idlewatt.stream.globs import matches
from idlewatt.stream.settings import Settings, Yardstick


@dataclass(frozen=True, slots=True)
class MeterConfig:
    """Milliseconds and milliwatts throughout."""

    window_ms: int = 10_000
    grace_ms: int = 15_000
    forget_ms: int = DAY_MS
    coverage_floor: float = 0.9
    min_tokens: int = 100
    worst_offenders: int = 50
    pue: float | None = None
    yardsticks: tuple[Yardstick, ...] = ()
    # published yields serve where nothing is configured or learned
    use_published: bool = True
    # pool -> milliwatts set aside for each of its GPUs
    provisioned_mw: Mapping[str, int] = field(default_factory=dict)

    @property
    def hold_ms(self) -> int:
        """Longest time between two readings that still counts as measured.

        Two thirds of the grace: at the edge, the reading after it is then known, and a third of the grace is
        left for rows that come out of order.
        """
        return self.grace_ms * 2 // 3

    def configured_yield(self, product: str, model_name: str) -> float | None:
        """Output tokens per joule of the first entry that matches."""
        for entry in self.yardsticks:
            if matches(product, entry.product) and matches(model_name, entry.model):
                return entry.tokens_per_joule
        return None

    @classmethod
    def of(cls, settings: Settings, pue: float | None) -> "MeterConfig":
        """`pue` is the book's; it holds until the next start."""
        process = settings.process
        return cls(
            window_ms=process.window_s * 1000,
            grace_ms=round(process.grace_s * 1000),
            forget_ms=round(process.forget_after_s * 1000),
            coverage_floor=process.coverage_floor,
            min_tokens=process.min_tokens,
            worst_offenders=process.worst_offenders,
            pue=pue,
            yardsticks=process.yardstick,
            use_published=process.published_yardsticks,
            provisioned_mw={
                name: round(pool.provisioned_watts_per_gpu * 1000)
                for name, pool in process.pool.items()
                if pool.provisioned_watts_per_gpu is not None
            },
        )
