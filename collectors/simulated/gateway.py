"""The gateway before the simulated engines."""

from collections.abc import Mapping
from typing import Final

from idlewatt.collectors.simulated.clocked import ClockedFactory
from idlewatt.collectors.simulated.consumers import UNKNOWN, SimulatedConsumer
from idlewatt.collectors.source import Reading
from idlewatt.stream.records import UsageRow

SOURCE: Final = "simulated-gateway"


class SimulatedGateway:
    """Reads what the simulated consumers spent, as a gateway would tell it; what is unknown went past it."""

    def __init__(self, clocked: ClockedFactory, *, interval_s: float) -> None:
        self._clocked = clocked
        self._interval_s = interval_s

    @property
    def name(self) -> str:
        return SOURCE

    @property
    def interval_s(self) -> float:
        return self._interval_s

    def read(self) -> Reading:
        with self._clocked.now() as now_ms:
            factory = self._clocked.factory
            spent: Mapping[tuple[str, ...], list[int]] = factory.truth.usage
            return Reading(
                [
                    UsageRow(
                        ts_ms=now_ms,
                        site=factory.site,
                        source=SOURCE,
                        **dict(zip(SimulatedConsumer._fields, (name or None for name in who), strict=True)),
                        model_name=model_name,
                        output_tokens=output,
                        input_tokens=computed,
                        cached_input_tokens=cached,
                        epoch_ms=factory.start_ms,
                    )
                    for (*who, model_name), (output, computed, cached) in spent.items()
                    if tuple(who) != UNKNOWN
                ]
            )

    def close(self) -> None:
        """Nothing is held."""
