"""What really happened in the simulated hall, kept apart from what can be read there."""

from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from idlewatt.collectors.simulated.outages import Outage
from idlewatt.stream.clock import HOUR_MS

BUCKET_MS: Final = 1000
HISTORY_MS: Final = 2 * HOUR_MS

PowerKey = tuple[str, str, str, str]  # pool, product, model_name, state
TokenKey = tuple[str, str, str, str]  # pool, node, engine, model_name
UsageKey = tuple[
    str, ...
]  # function, team, agent_family, engineer, tier, model_name; empty where nobody knows it


@dataclass(frozen=True, slots=True)
class PowerTruth:
    """One pool's GPUs in one state during one window."""

    site: str
    pool: str
    window_start_ms: int
    product: str
    model_name: str  # empty unless serving or idle_loaded
    state: str  # serving | idle_loaded | idle_free | other | dark
    gpu_ms: int
    draw_mj: int
    available_mj: int  # enforced power limit times time


@dataclass(frozen=True, slots=True)
class TokenTruth:
    """One engine's tokens in one window; the kinds do not overlap."""

    site: str
    pool: str
    window_start_ms: int
    node: str
    engine: str
    model_name: str
    output_tokens: int
    input_tokens: int
    cached_input_tokens: int


@dataclass(frozen=True, slots=True)
class UsageTruth:
    """What one set of consumers spent in one window; all names are empty for what went past the gateway."""

    site: str
    window_start_ms: int
    function: str
    team: str
    agent_family: str
    engineer: str
    tier: str
    model_name: str
    output_tokens: int
    input_tokens: int
    cached_input_tokens: int


@dataclass(frozen=True, slots=True)
class WaitingTruth:
    """How long some engine of a pool had a queue during one window."""

    site: str
    pool: str
    window_start_ms: int
    waiting_ms: int


class _Sums:
    """Sums by key: for ever, and by second for the last two hours."""

    def __init__(self, width: int) -> None:
        self._width = width
        self.totals: dict[tuple[str, ...], list[int]] = {}
        self._seconds: deque[tuple[int, dict[tuple[str, ...], list[int]]]] = deque()
        self._forgotten_to_ms = 0

    def add(self, ts_ms: int, key: tuple[str, ...], *amounts: int) -> None:
        start_ms = ts_ms - ts_ms % BUCKET_MS
        if not self._seconds or self._seconds[-1][0] != start_ms:
            self._seconds.append((start_ms, {}))
            while self._seconds[0][0] < start_ms - HISTORY_MS:
                self._forgotten_to_ms = self._seconds.popleft()[0] + BUCKET_MS
        for sums in (self.totals, self._seconds[-1][1]):
            row = sums.get(key)
            if row is None:
                row = sums[key] = [0] * self._width
            for i, amount in enumerate(amounts):
                row[i] += amount

    def windows(self, window_ms: int) -> list[tuple[int, tuple[str, ...], list[int]]]:
        """(window_start_ms, key, sums) of every window of which no part is forgotten."""
        if window_ms <= 0 or window_ms % BUCKET_MS:
            raise ValueError(f"window_ms must be a multiple of {BUCKET_MS}, not {window_ms}")
        folded: dict[tuple[int, tuple[str, ...]], list[int]] = defaultdict(lambda: [0] * self._width)
        for second_ms, sums in self._seconds:
            window_start_ms = second_ms - second_ms % window_ms
            if window_start_ms >= self._forgotten_to_ms:
                for key, amounts in sums.items():
                    row = folded[window_start_ms, key]
                    for i, amount in enumerate(amounts):
                        row[i] += amount
        return [(start, key, row) for (start, key), row in sorted(folded.items())]


class Truth:
    """Sums of what the factory's ticks really did, by the definitions of the meter.

    A tick belongs to the window it lies in. GPU states per tick: `serving` (requests run on its engine),
    `idle_loaded` (its engine's process is up, nothing runs), `idle_free` (no process), `other` (a process that is
    no engine), `dark` (its readings are away). Joules a GPU draws while dark are booked under dark, in the tick
    they are drawn; its counter shows them when it answers again. Dark time has no model. An engine whose page is
    away goes on working, and so do its tokens and states here.

    Whoever reads at least every `outages.STALL_MS` can know every token, since a process stalls before it ends.
    One thing nobody can know: the joules between the last reading before a driver is reloaded and the reload.
    """

    def __init__(self, site: str) -> None:
        self.site = site
        self.outages: deque[Outage] = deque(maxlen=10_000)
        self._power = _Sums(3)
        self._tokens = _Sums(3)
        self._usage = _Sums(3)
        self._waiting = _Sums(1)

    def add_power(self, ts_ms: int, key: PowerKey, gpu_ms: int, draw_mj: int, available_mj: int) -> None:
        self._power.add(ts_ms, key, gpu_ms, draw_mj, available_mj)

    def add_tokens(self, ts_ms: int, key: TokenKey, output: int, computed: int, cached: int) -> None:
        self._tokens.add(ts_ms, key, output, computed, cached)

    def add_usage(self, ts_ms: int, key: UsageKey, output: int, computed: int, cached: int) -> None:
        self._usage.add(ts_ms, key, output, computed, cached)

    def add_waiting(self, ts_ms: int, pool: str, waiting_ms: int) -> None:
        self._waiting.add(ts_ms, (pool,), waiting_ms)

    @property
    def power(self) -> Mapping[tuple[str, ...], list[int]]:
        """(pool, product, model_name, state) -> [gpu_ms, draw_mj, available_mj] since the start."""
        return self._power.totals

    @property
    def tokens(self) -> Mapping[tuple[str, ...], list[int]]:
        """(pool, node, engine, model_name) -> [output, input, cached input tokens] since the start."""
        return self._tokens.totals

    @property
    def usage(self) -> Mapping[tuple[str, ...], list[int]]:
        """UsageKey -> [output, input, cached input tokens] since the start; they add up to the engines' tokens."""
        return self._usage.totals

    @property
    def waiting_ms(self) -> dict[str, int]:
        """Pool -> time for which some engine of it had a queue, since the start."""
        return {key[0]: row[0] for key, row in self._waiting.totals.items()}

    def rows(self, window_ms: int) -> list[PowerTruth]:
        """Power by window of the last two hours; `window_ms` is a multiple of 1000."""
        return [
            PowerTruth(self.site, pool, start, product, model, state, *amounts)
            for start, (pool, product, model, state), amounts in self._power.windows(window_ms)
        ]

    def token_rows(self, window_ms: int) -> list[TokenTruth]:
        """Tokens by window of the last two hours."""
        return [
            TokenTruth(self.site, pool, start, node, engine, model, *amounts)
            for start, (pool, node, engine, model), amounts in self._tokens.windows(window_ms)
        ]

    def usage_rows(self, window_ms: int) -> list[UsageTruth]:
        """What consumers spent by window of the last two hours."""
        return [
            UsageTruth(self.site, start, *key, *amounts)  # type: ignore[arg-type]
            for start, key, amounts in self._usage.windows(window_ms)
        ]

    def waiting_rows(self, window_ms: int) -> list[WaitingTruth]:
        """Queues by window of the last two hours; no row where nobody waited."""
        return [
            WaitingTruth(self.site, pool, start, *amounts)
            for start, (pool,), amounts in self._waiting.windows(window_ms)
        ]
