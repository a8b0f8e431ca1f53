"""Every Prometheus metric Idlewatt exports: names are a public interface, renaming one is a breaking change."""

from dataclasses import dataclass
from typing import Final, Literal


@dataclass(frozen=True, slots=True)
class Metric:
    """One family. `name` is what PromQL sees, with `_total` for counters."""

    name: str
    kind: Literal["counter", "gauge"]
    labels: tuple[str, ...]
    help: str
    stage: Literal["meter", "economy", "pipeline", "collector"]


def _meter(name: str, kind: Literal["counter", "gauge"], labels: str, text: str) -> Metric:
    return Metric(name, kind, ("site", "pool", *labels.split()), text, "meter")


def _economy(name: str, kind: Literal["counter", "gauge"], labels: str, text: str) -> Metric:
    return Metric(name, kind, ("site", "pool", *labels.split()), text, "economy")


TOKENS: Final = _meter(
    "idlewatt_tokens_total",
    "counter",
    "model_name kind",
    "Tokens by model; kind is output, input (computed) or cached_input.",
)
ENERGY: Final = _meter(
    "idlewatt_energy_joules_total",
    "counter",
    "state scope",
    "Energy drawn by GPUs, by what they were doing; scope is it (the boards) or facility (times PUE).",
)
HEADROOM: Final = _meter(
    "idlewatt_headroom_joules_total",
    "counter",
    "state",
    "Energy that was available and not drawn, by what the GPUs were doing.",
)
AVAILABLE: Final = _meter(
    "idlewatt_available_joules_total", "counter", "", "Energy that the enforced power limits made available."
)
GPU_SECONDS: Final = _meter(
    "idlewatt_gpu_seconds_total", "counter", "state product", "GPU time by what the GPUs were doing."
)
LOST_TOKENS: Final = _meter(
    "idlewatt_lost_tokens_total",
    "counter",
    "state part demand",
    "Output tokens that the idle joules would have made at the yardstick's yield.",
)
POWER: Final = _meter(
    "idlewatt_power_watts",
    "gauge",
    "state part",
    "Mean watts in the last closed window; part is draw or headroom. All of them add up to the available watts.",
)
GPUS: Final = _meter(
    "idlewatt_gpus",
    "gauge",
    "state product",
    "GPUs by what they were doing in the last closed window, as a mean over the window.",
)
TOKENS_PER_JOULE: Final = _meter(
    "idlewatt_tokens_per_joule",
    "gauge",
    "window kind",
    "Rolling tokens per joule of board energy (tokens/s per watt); absent while coverage or tokens are too low.",
)
COVERAGE: Final = _meter(
    "idlewatt_coverage_ratio",
    "gauge",
    "window of",
    "Share of the interval for which the watts or tokens of the entities known to be there were measured.",
)
YARDSTICK: Final = _meter(
    "idlewatt_yardstick_tokens_per_joule",
    "gauge",
    "product model_name origin",
    "Yield an idle joule is held against, and where it comes from.",
)
GPU_WASTED_WATTS: Final = _meter(
    "idlewatt_gpu_wasted_watts",
    "gauge",
    "node gpu_uuid product state",
    "Watts burnt by a GPU while idle, in the last closed window; the worst offenders only.",
)
UNACCOUNTED: Final = _meter(
    "idlewatt_unaccounted_joules_total",
    "counter",
    "",
    "Joules measured less joules accounted for. Anything but 0 is a bug.",
)
WINDOW_END: Final = _meter(
    "idlewatt_window_end_timestamp_seconds",
    "gauge",
    "",
    "End of the pool's last closed window, Unix seconds.",
)

MONEY_END: Final = _economy(
    "idlewatt_money_window_end_timestamp_seconds",
    "gauge",
    "",
    "End of the pool's last window that was priced, Unix seconds.",
)
LOST_REVENUE: Final = _economy(
    "idlewatt_lost_revenue_total",
    "counter",
    "state part demand currency",
    "Revenue that the lost tokens would have brought at the realised blended price.",
)
BENCHMARK_LOST_REVENUE: Final = _economy(
    "idlewatt_benchmark_lost_revenue_total",
    "counter",
    "state part currency",
    "Idle kWh at the benchmark of 150 bn USD per gigawatt-year (17.12 USD/kWh). Never add it to idlewatt_lost_revenue_total.",
)
REVENUE: Final = _economy(
    "idlewatt_revenue_total",
    "counter",
    "model_name tier currency",
    "Tokens made, at the book's prices; tiers by the site's usage, what it does not cover on the default tier.",
)
ACQUISITION_COST: Final = _economy(
    "idlewatt_acquisition_cost_total",
    "counter",
    "model_name tier currency",
    "List value of the tokens of tiers that are not sold. They brought no revenue.",
)
ENERGY_COST: Final = _economy(
    "idlewatt_energy_cost_total",
    "counter",
    "model_name state currency",
    "Energy drawn, times PUE where the book has one, at the tariff. State serving: usage basis; all states: allocation basis.",
)
CAPITAL_COST: Final = _economy(
    "idlewatt_capital_cost_total",
    "counter",
    "model_name state origin currency",
    "GPU-hours at their price, used or not; origin is book or published.",
)
UNCOSTED_GPU_SECONDS: Final = _economy(
    "idlewatt_uncosted_gpu_seconds_total",
    "counter",
    "product",
    "GPU time of products whose hour has no price: no capital cost is booked for it and none is assumed.",
)
CARBON: Final = _economy(
    "idlewatt_carbon_grams_total", "counter", "state", "CO2 of the energy drawn, at the book's intensity."
)
UNATTRIBUTED_TOKENS: Final = Metric(
    "idlewatt_unattributed_tokens_total",
    "counter",
    ("site", "model_name", "kind"),
    "Engines' tokens that no usage covers; they are priced on the default tier.",
    "economy",
)
CONSUMER_TOKENS: Final = Metric(
    "idlewatt_consumer_tokens_total",
    "counter",
    ("site", "consumer_kind", "consumer", "model_name", "tier", "kind"),
    "Tokens that consumers spent. The same tokens count in each kind of consumer: never add kinds.",
    "economy",
)
CONSUMER_SPEND: Final = Metric(
    "idlewatt_consumer_spend_total",
    "counter",
    ("site", "consumer_kind", "consumer", "model_name", "tier", "currency"),
    "What consumers owe for their tokens at the book's prices, volume steps included.",
    "economy",
)
CONSUMER_UNPRICED_TOKENS: Final = Metric(
    "idlewatt_consumer_unpriced_tokens_total",
    "counter",
    ("site", "consumer_kind", "consumer", "model_name", "tier"),
    "Tokens of all kinds of consumers that the book has no price for: they owe nothing here and are not free.",
    "economy",
)
_ENVELOPE: Final = ("site", "envelope", "consumer_kind", "consumer", "unit")
ENVELOPE_LIMIT: Final = Metric(
    "idlewatt_envelope_limit",
    "gauge",
    _ENVELOPE,
    "What may be used in the period that is running, with what was left of the one before where it rolls over. unit is "
    "tokens or a currency.",
    "economy",
)
ENVELOPE_USED: Final = Metric(
    "idlewatt_envelope_used",
    "gauge",
    _ENVELOPE,
    "What was used in the period that is running; absent where tokens without a price are among it.",
    "economy",
)
ENVELOPE_BURN_RATE: Final = Metric(
    "idlewatt_envelope_burn_rate",
    "gauge",
    (*_ENVELOPE, "window"),
    "Use of the period over the last 5m, 1h, 6h, 3d as a multiple of the even rate, which uses the limit up just at the period's end.",
    "economy",
)
ENVELOPE_EXHAUSTION: Final = Metric(
    "idlewatt_envelope_exhaustion_timestamp_seconds",
    "gauge",
    _ENVELOPE,
    "When the envelope will be used up at the rate of the last 1h (a week's: 6h, a month's: 3d); absent if not before "
    "its period ends.",
    "economy",
)
LOST_REVENUE_PER_HOUR: Final = _economy(
    "idlewatt_lost_revenue_per_hour", "gauge", "window currency", "Rolling lost revenue, per hour."
)
BENCHMARK_LOST_REVENUE_PER_HOUR: Final = _economy(
    "idlewatt_benchmark_lost_revenue_per_hour",
    "gauge",
    "window currency",
    "Rolling benchmark loss, per hour.",
)
UNPRICED_TOKENS: Final = _economy(
    "idlewatt_unpriced_tokens_total",
    "counter",
    "model_name tier kind",
    "Tokens of models and tiers that the book has no price for: they brought no revenue here and none is assumed.",
)
COST_PER_MILLION_TOKENS: Final = _economy(
    "idlewatt_cost_per_million_tokens",
    "gauge",
    "window basis cost_basis kind origin currency",
    "Rolling cost per million tokens; basis is energy or all_in (with capital), cost_basis usage (serving only) or "
    "allocation (idle included). kind output: all of the cost over output tokens; output_share and input_share: "
    "the cost divided between the two by the book's weights.",
)
TOKENS_PER_CURRENCY_UNIT: Final = _economy(
    "idlewatt_tokens_per_currency_unit",
    "gauge",
    "window origin currency",
    "Rolling output tokens for one unit of all-in cost, idle included.",
)
MARGIN_PER_HOUR: Final = _economy(
    "idlewatt_margin_per_hour",
    "gauge",
    "window origin currency",
    "Rolling revenue less energy and capital cost of all states, per hour.",
)
REVENUE_PER_GIGAWATT_YEAR: Final = _economy(
    "idlewatt_revenue_per_gigawatt_year",
    "gauge",
    "window scope origin currency",
    "Rolling revenue scaled to a year of one gigawatt of available power; scope is it (board limits) or facility (times "
    "the book's PUE, else published all-in watts per GPU). The benchmark is 150 bn USD.",
)
PAYBACK_YEARS: Final = _economy(
    "idlewatt_payback_years",
    "gauge",
    "window capital",
    "Years in which revenue less energy cost pays the capital back; capital is benchmark (100 bn USD per gigawatt of "
    "available power) or book (what the GPUs were bought for). Absent while they do not.",
)
CARBON_PER_MILLION_TOKENS: Final = _economy(
    "idlewatt_carbon_grams_per_million_tokens",
    "gauge",
    "window",
    "Rolling CO2 of all energy drawn per million output tokens.",
)
RECOVERABLE_GPUS: Final = _economy(
    "idlewatt_recoverable_gpus",
    "gauge",
    "model_name",
    "GPUs that held the model for all of the last hour and that even its busiest window did not need, at the batches as they "
    "were. Absent until an hour is known.",
)


def _pipeline(name: str, kind: Literal["counter", "gauge"], labels: str, text: str) -> Metric:
    return Metric(name, kind, tuple(labels.split()), text, "pipeline")


MESSAGES: Final = _pipeline("idlewatt_messages_total", "counter", "topic partition", "Messages read.")
REJECTED_MESSAGES: Final = _pipeline(
    "idlewatt_rejected_messages_total", "counter", "topic reason", "Messages that could not be read."
)
ROWS: Final = _pipeline("idlewatt_rows_total", "counter", "topic", "Rows read.")
REJECTED_ROWS: Final = _pipeline(
    "idlewatt_rejected_rows_total", "counter", "topic reason", "Rows that were read and cannot be true."
)
LATE_ROWS: Final = _pipeline(
    "idlewatt_late_rows_total",
    "counter",
    "topic",
    "Rows for windows that were closed already; they amend them.",
)
EVENT_TIME_LAG: Final = _pipeline(
    "idlewatt_event_time_lag_seconds", "gauge", "stage partition", "Now less the newest event time read."
)
BEHIND: Final = _pipeline(
    "idlewatt_behind_messages", "gauge", "topic partition", "Messages in the log that are still to be read."
)
CATCH_UP: Final = _pipeline(
    "idlewatt_catch_up_seconds",
    "gauge",
    "stage partition",
    "How long until what waits is read, at the speed of the last half minute; 0 when caught up, absent while it gets "
    "no nearer.",
)
CHECKPOINT_SECONDS: Final = _pipeline(
    "idlewatt_checkpoint_seconds", "gauge", "stage", "Duration of the last commit."
)
CHECKPOINT_BYTES: Final = _pipeline(
    "idlewatt_checkpoint_bytes", "gauge", "stage", "Size of the snapshots in the last commit."
)
REWINDS: Final = _pipeline(
    "idlewatt_rewinds_total",
    "counter",
    "stage",
    "Commits that did not happen; the work since the one before was done again.",
)

BOOK_VALID: Final = _pipeline(
    "idlewatt_book_valid",
    "gauge",
    "",
    "1 if the book is in force as it stands in its file, 0 if it was refused and the one before is kept.",
)
BOOK_PRICES: Final = _pipeline(
    "idlewatt_book_prices",
    "gauge",
    "",
    "Prices of tokens in the book that is in force; 0 where money is reckoned without what tokens bring.",
)
BOOK_READS: Final = _pipeline(
    "idlewatt_book_reads_total",
    "counter",
    "result",
    "Times that a changed book was read; result is accepted or refused.",
)


def _collector(name: str, kind: Literal["counter", "gauge"], labels: str, text: str) -> Metric:
    return Metric(name, kind, tuple(labels.split()), text, "collector")


SCRAPE_SUCCESS: Final = _collector(
    "idlewatt_scrape_success",
    "gauge",
    "source",
    "1 if the last scrape of the source brought rows, 0 if it failed or hangs.",
)
SCRAPE_DURATION: Final = _collector(
    "idlewatt_scrape_duration_seconds",
    "gauge",
    "source",
    "Duration of the last scrape; while one hangs, how long it has.",
)
SCRAPE_ERRORS: Final = _collector(
    "idlewatt_scrape_errors_total", "counter", "source reason", "Failed scrapes, by reason."
)
SAMPLE_ERRORS: Final = _collector(
    "idlewatt_sample_errors_total",
    "counter",
    "source reason",
    "What was left out of an otherwise good scrape, by reason. Also rows that could not be encoded (source sink), damaged "
    "records and failures of the spool (spool) and posts of usage that were refused (usage_post).",
)
SENT_ROWS: Final = _collector("idlewatt_sent_rows_total", "counter", "topic", "Rows the log has taken.")
DROPPED_ROWS: Final = _collector(
    "idlewatt_spool_dropped_rows_total",
    "counter",
    "topic",
    "Rows lost before the log had them: it was away for longer than the spool holds, a file of the spool was damaged, or "
    "Kafka refuses a message for good.",
)
SPOOL_BYTES: Final = _collector(
    "idlewatt_spool_bytes", "gauge", "", "Bytes that wait for the log, most of them in the spool on disk."
)
SPOOL_LIMIT: Final = _collector(
    "idlewatt_spool_limit_bytes",
    "gauge",
    "",
    "Bytes that the spool holds at most (collect.spool_max_bytes); beyond it rows are lost. Absent without a spool.",
)

METRICS: Final = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
