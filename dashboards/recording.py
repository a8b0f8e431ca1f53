"""Recording rules as data."""

from dataclasses import dataclass
from typing import Final

from idlewatt.dashboards import queries as q

OUTPUT_TOKENS_RATE: Final = "pool:idlewatt_output_tokens:rate5m"
ENERGY_RATE: Final = "pool:idlewatt_energy_joules:rate5m"
COVERED_TOKENS_RATE: Final = "pool:idlewatt_covered_output_tokens:rate5m"
COVERED_ENERGY_RATE: Final = "pool:idlewatt_covered_energy_joules:rate5m"
WASTED_ENERGY_RATE: Final = "pool:idlewatt_wasted_energy_joules:rate5m"
WASTED_SHARE: Final = "pool:idlewatt_wasted_energy:ratio_rate5m"
TOKENS_PER_JOULE: Final = "pool:idlewatt_tokens_per_joule:ratio_rate5m"
TOKENS_PER_JOULE_DAY: Final = "pool:idlewatt_tokens_per_joule:ratio_rate1d"
RECORDED_CLOCKS: Final = {clock: f"pool:{clock.name}:max" for clock in q.CLOCKS.values()}
IDLE_SHARE_HOUR: Final = "pool:idlewatt_idle_available_energy:ratio_rate1h"
BUSY_SHARE_HOUR: Final = "pool:idlewatt_busy_available_energy:ratio_rate1h"
UNREAD_SHARE_HOUR: Final = "pool:idlewatt_unread_tokens:ratio_rate1h"


@dataclass(frozen=True, slots=True)
class RecordingRule:
    """A figure worth keeping, named level:metric:operation."""

    record: str
    expr: str


RECORDING: Final = (
    RecordingRule(OUTPUT_TOKENS_RATE, q.output_tokens_rate(q.EVERYWHERE, q.POOL, q.ROLLING)),
    RecordingRule(ENERGY_RATE, q.energy_rate(q.EVERYWHERE, q.POOL, q.ROLLING)),
    # what the meter withholds the yield of is in neither sum of the day's
    RecordingRule(COVERED_TOKENS_RATE, q.covered_throughout(OUTPUT_TOKENS_RATE, q.ROLLING)),
    RecordingRule(COVERED_ENERGY_RATE, q.covered_throughout(ENERGY_RATE, q.ROLLING)),
    RecordingRule(WASTED_ENERGY_RATE, q.wasted_energy_rate(q.EVERYWHERE, q.POOL, q.ROLLING)),
    RecordingRule(WASTED_SHARE, q.ratio(WASTED_ENERGY_RATE, ENERGY_RATE)),
    RecordingRule(TOKENS_PER_JOULE, q.pool_tokens_per_joule(q.EVERYWHERE)),
)

# A day of raw counters, and three of clocks, would be read over and over. Sums of the recorded rates, not their means:
# joules are counted before a pool has its first engine.
RECORDING_DAY: Final = (
    RecordingRule(
        TOKENS_PER_JOULE_DAY,
        q.ratio(f"sum_over_time({COVERED_TOKENS_RATE}[1d])", f"sum_over_time({COVERED_ENERGY_RATE}[1d])"),
    ),
    # held against a day of itself
    RecordingRule(IDLE_SHARE_HOUR, q.idle_share_of_seen(q.EVERYWHERE, q.POOL, "1h")),
    RecordingRule(BUSY_SHARE_HOUR, q.busy_share_of_available(q.EVERYWHERE, q.POOL, "1h")),
    # against an hour of itself
    RecordingRule(UNREAD_SHARE_HOUR, q.unread_share(q.EVERYWHERE, "tokens", "1h")),
    *(
        RecordingRule(record, f"max by (site, pool) ({q.series(clock)})")
        for clock, record in RECORDED_CLOCKS.items()
    ),
)
