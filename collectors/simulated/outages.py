"""What goes wrong in the simulated hall, and when."""

import random
from dataclasses import dataclass
from typing import Final

ENGINE_CRASH: Final = "engine_crash"  # stalls, ends, and a new process counts from zero
PAGE_REFUSES: Final = "page_refuses"  # the engine works, its page drops connections
PAGE_HANGS: Final = "page_hangs"  # ... takes connections and answers nothing
PAGE_MISSING: Final = "page_missing"  # ... answers 404
GPUS_DARK: Final = "gpus_dark"  # a node's GPUs cannot be read; they work on
DRIVER_RELOAD: Final = "driver_reload"  # a node's engines end, its energy counters start at zero
ALL_OUTAGES: Final = frozenset(
    {ENGINE_CRASH, PAGE_REFUSES, PAGE_HANGS, PAGE_MISSING, GPUS_DARK, DRIVER_RELOAD}
)
ON_AN_ENGINE: Final = frozenset({ENGINE_CRASH, PAGE_REFUSES, PAGE_HANGS, PAGE_MISSING})

# A process that is about to end makes no tokens for this long: whoever reads its page this often has seen all.
STALL_MS: Final = 3000
_LENGTH_S: Final = (15, 40)


@dataclass(frozen=True, slots=True)
class Outage:
    """One outage; a crash or reload begins when the process ends, after its stall."""

    kind: str
    node: str
    engine: str | None
    start_ms: int
    end_ms: int


class OutagePlan:
    """Draws outages of the given kinds at random times, each kind as often as the others."""

    def __init__(self, kinds: frozenset[str], every_ms: int, start_ms: int, rng: random.Random) -> None:
        unknown = kinds - ALL_OUTAGES
        if unknown:
            raise ValueError(
                f"no outage is called {sorted(unknown)}; known: {', '.join(sorted(ALL_OUTAGES))}"
            )
        self._kinds = sorted(kinds)
        self._every_ms = every_ms
        self._rng = rng
        self._coming: list[str] = []
        self._next_ms = self._after(start_ms)

    def _after(self, now_ms: int) -> int:
        return now_ms + int(self._rng.expovariate(1 / self._every_ms))

    def due(self, now_ms: int) -> str | None:
        """The kind of the outage that is to begin now, if one is."""
        if not self._kinds or now_ms < self._next_ms:
            return None
        self._next_ms = self._after(now_ms)
        if not self._coming:
            self._coming = self._rng.sample(self._kinds, len(self._kinds))
        return self._coming.pop()

    def length_ms(self) -> int:
        """How long an outage lasts: whole seconds, so that it ends when a tick does."""
        return self._rng.randint(*_LENGTH_S) * 1000
