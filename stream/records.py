"""The rows that travel through the log, and the Arrow schema of each.

A row is a frozen dataclass; the unit stands in the field's name and its meaning in the annotation.
Quantities that accumulate travel as cumulative counters with the epoch that last reset them, never as
rates: a lost, late or repeated row then costs resolution, not truth.
"""

import dataclasses
import functools
import types
import typing
from dataclasses import dataclass
from typing import Annotated, Final

import pyarrow as pa

from idlewatt.stream.clock import HOUR_MS

# A counter that restarted this long before its first reading still brings its whole value: a model server
# answers only after its model is loaded, and counts from its start.
RESTART_GAP_MS: Final = HOUR_MS
# what tells pools apart, in rows and in series
POOL: Final = ("site", "pool")
# what a GPU's time is; in some it does nothing and could
STATES: Final = ("serving", "idle_loaded", "idle_free", "other", "dark")
IDLE_STATES: Final = ("idle_loaded", "idle_free")


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuRow:
    """One reading of one GPU."""

    ts_ms: Annotated[int, "event time, Unix milliseconds"]
    site: Annotated[str, "power budget with an address"]
    pool: Annotated[str, "the GPUs that serve together"]
    node: Annotated[str, "host name"]
    gpu_uuid: Annotated[str, "NVML UUID, never an index"]
    product: Annotated[str, "product name as the driver tells it"]
    energy_mj: Annotated[int | None, "cumulative energy, millijoules; null where the GPU has no counter"] = (
        None
    )
    power_mw: Annotated[int | None, "board power, milliwatts"] = None
    power_limit_mw: Annotated[int | None, "enforced power limit, milliwatts"] = None
    epoch_ms: Annotated[
        int | None,
        "when the energy counter started, Unix ms; null if unknown. Without energy_mj: since when it is not believed",
    ] = None
    sm_activity: Annotated[float | None, "share of the period with a kernel running, 0..1"] = None
    memory_used_bytes: Annotated[int | None, "device memory in use"] = None
    clocks_event_reasons: Annotated[int | None, "NVML clocks-event bit mask"] = None
    has_process: Annotated[bool | None, "a compute process holds the GPU; null if that could not be read"] = (
        None
    )
    power_scope: Annotated[str | None, "what the power figures cover: gpu | module"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRow:
    """One reading of one model on one inference server. The three token kinds do not overlap."""

    ts_ms: Annotated[int, "event time, Unix milliseconds"]
    site: Annotated[str, "power budget with an address"]
    pool: Annotated[str, "the GPUs that serve together"]
    node: Annotated[str, "host the engine runs on"]
    engine: Annotated[str, "endpoint of the inference server, unique in its pool"]
    server: Annotated[str, "server kind: vllm, ..."]
    server_version: Annotated[str | None, "version the server tells of itself"] = None
    model_name: Annotated[str, "model as the server names it"]
    output_tokens: Annotated[int, "cumulative generated tokens"]
    input_tokens: Annotated[int | None, "cumulative prompt tokens computed, without cached ones"] = None
    cached_input_tokens: Annotated[int | None, "cumulative prompt tokens answered from a local cache"] = None
    advance: Annotated[str, "when the output counter moves: step | prefill_end | request_end"]
    requests_running: Annotated[int | None, "requests in execution now"] = None
    requests_waiting: Annotated[int | None, "requests queued now"] = None
    kv_cache_ratio: Annotated[float | None, "KV cache in use, 0..1"] = None
    epoch_ms: Annotated[int | None, "start of the counting process, Unix ms; null if unknown"] = None
    gpus: Annotated[list[str] | None, "UUIDs of the GPUs it holds; empty or null if unknown"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageRow:
    """Tokens that somebody spent, as a gateway or an agent tells it.

    Without an event_id the quantities are cumulative counters, as in EngineRow, and what they gain is spent by those
    whom the newest row names; with one they are what this event alone spent. One row names everybody who spent the
    same tokens, so that they count once in each kind of consumer.
    """

    ts_ms: Annotated[int, "event time, Unix milliseconds"]
    site: Annotated[str, "power budget with an address"]
    source: Annotated[str, "who tells: the gateway's name in the settings, or the sender of POST /v1/usage"]
    event_id: Annotated[str | None, "unique among its source's events; null for cumulative counters"] = None
    counter: Annotated[
        str | None, "tells the cumulative counters of one source apart; null: the names here do"
    ] = None
    function: Annotated[str | None, "business function that spent the tokens"] = None
    team: Annotated[str | None, "team that spent them"] = None
    agent_family: Annotated[str | None, "family of agents that spent them"] = None
    engineer: Annotated[str | None, "person who spent them"] = None
    model_name: Annotated[str, "model as the engines name it"]
    tier: Annotated[str | None, "tier they were sold at; null: the book's default"] = None
    output_tokens: Annotated[int, "generated tokens"]
    input_tokens: Annotated[int, "prompt tokens, without cached ones"] = 0
    cached_input_tokens: Annotated[int, "prompt tokens answered from cache"] = 0
    epoch_ms: Annotated[int | None, "start of the counting process, Unix ms; null if unknown"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerRow:
    """Ledger: one pool's watts in one window, by state. Rows add up; a late row amends its window."""

    site: Annotated[str, "power budget with an address"]
    pool: Annotated[str, "the GPUs that serve together"]
    window_start_ms: Annotated[int, "start of the window, Unix milliseconds"]
    window_ms: Annotated[int, "length of the window, milliseconds"]
    product: Annotated[str, "GPU product"]
    model_name: Annotated[str, "model that held the GPUs; empty if none or unknown"]
    state: Annotated[str, "serving | idle_loaded | idle_free | other | dark"]
    demand: Annotated[str, "waiting | none | unknown: did any engine of the pool have a queue"]
    gpu_ms: Annotated[int, "GPU time, milliseconds"]
    draw_mj: Annotated[int, "energy drawn, millijoules"]
    headroom_mj: Annotated[int, "available less drawn, millijoules"]
    estimated_mj: Annotated[int, "part of draw_mj integrated from power samples"]
    lost_tokens_draw: Annotated[int | None, "output tokens the idle draw would have made; null: no yardstick"]
    lost_tokens_headroom: Annotated[int | None, "the same for the idle headroom"]
    yardstick_model: Annotated[
        str | None, "model whose yield they were counted by; null: model_name, or no yardstick"
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRow:
    """Ledger: one engine's tokens of one model in one window. Rows add up."""

    site: Annotated[str, "power budget with an address"]
    pool: Annotated[str, "the GPUs that serve together"]
    window_start_ms: Annotated[int, "start of the window, Unix milliseconds"]
    window_ms: Annotated[int, "length of the window, milliseconds"]
    node: Annotated[str, "host the engine runs on"]
    engine: Annotated[str, "endpoint of the inference server"]
    model_name: Annotated[str, "model as the server names it"]
    advance: Annotated[str, "step | prefill_end | request_end"]
    output_tokens: Annotated[int, "generated tokens"]
    input_tokens: Annotated[int, "prompt tokens computed"]
    cached_input_tokens: Annotated[int, "prompt tokens from cache"]
    serving_mj: Annotated[int, "its share of the serving energy, millijoules"]
    measured_ms: Annotated[int, "time for which its counters were really read"]
    silent_ms: Annotated[int, "time for which they should have been and were not"]
    unread_gpus: Annotated[
        int | None, "GPUs that it names and nobody has read in its pool; rows do not add up"
    ] = None
    stopped: Annotated[
        bool | None, "silent, and none of its GPUs had a process: nobody misses it; rows do not add up"
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuMinuteRow:
    """Ledger: one GPU's minute in one state. Rows add up."""

    site: Annotated[str, "power budget with an address"]
    pool: Annotated[str, "the GPUs that serve together"]
    node: Annotated[str, "host name"]
    gpu_uuid: Annotated[str, "NVML UUID"]
    product: Annotated[str, "GPU product"]
    minute_start_ms: Annotated[int, "start of the minute, Unix milliseconds"]
    state: Annotated[str, "serving | idle_loaded | idle_free | other | dark"]
    gpu_ms: Annotated[int, "time in that state, milliseconds"]
    draw_mj: Annotated[int, "energy drawn, millijoules"]
    headroom_mj: Annotated[int, "available less drawn, millijoules"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MoneyRow:
    """Money of one pool, model and window. Rows add up within one currency."""

    site: Annotated[str, "power budget with an address"]
    pool: Annotated[str, "the GPUs that serve together"]
    window_start_ms: Annotated[int, "start of the window, Unix milliseconds"]
    window_ms: Annotated[int, "length of the window, milliseconds"]
    model_name: Annotated[str, "model; empty where no model is known"]
    kind: Annotated[
        str,
        "revenue | acquisition_cost | energy_cost | capital_cost | lost_revenue | benchmark_lost_revenue",
    ]
    state: Annotated[str, "state of the GPUs; empty for revenue"]
    part: Annotated[str, "draw | headroom; empty for revenue"]
    demand: Annotated[str, "waiting | none | unknown; empty for revenue"]
    currency: Annotated[str, "ISO 4217 code"]
    amount_micro: Annotated[int, "micro-units of the currency"]
    tier: Annotated[str | None, "tier of revenue and acquisition cost; null for the rest"] = None
    origin: Annotated[str | None, "whose price it is: book | published; null where there is no other"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerRow:
    """Tokens of one set of consumers in one minute, and what they owe for them. Rows add up within one currency."""

    site: Annotated[str, "power budget with an address"]
    window_start_ms: Annotated[int, "start of the minute, Unix milliseconds"]
    window_ms: Annotated[int, "length of the window, milliseconds"]
    source: Annotated[str, "who told"]
    function: Annotated[str, "business function; empty if unknown"]
    team: Annotated[str, "team; empty if unknown"]
    agent_family: Annotated[str, "family of agents; empty if unknown"]
    engineer: Annotated[str, "person; empty if unknown"]
    model_name: Annotated[str, "model as the engines name it"]
    tier: Annotated[str, "tier the tokens were sold at"]
    output_tokens: Annotated[int, "generated tokens"]
    input_tokens: Annotated[int, "prompt tokens, without cached ones"]
    cached_input_tokens: Annotated[int, "prompt tokens answered from cache"]
    currency: Annotated[str, "ISO 4217 code"]
    spend_micro: Annotated[int | None, "micro-units of the currency; null: the book has no price"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectedRow:
    """What could not be read, and why."""

    ts_ms: Annotated[int, "when it was rejected, Unix milliseconds"]
    topic: Annotated[str, "topic it was read from"]
    partition: Annotated[int, "partition it was read from"]
    offset: Annotated[int, "its offset"]
    reason: Annotated[str, "short reason, the same as the metric's label"]
    detail: Annotated[str, "one sentence"]


# by identity: comparing Arrow schemas is slow, and there is one object of each
@dataclass(frozen=True, eq=False)
class Schema:
    """A kind of row as it stands on the wire. A higher minor version only adds optional columns."""

    name: str
    row: type
    arrow: pa.Schema
    major: int = 1

    @functools.cached_property
    def required(self) -> tuple[str, ...]:
        return tuple(field.name for field in self.arrow if not field.nullable)

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """What tells whom a row is about: its texts and lists of texts."""
        return tuple(field.name for field in self.arrow if field.type in _NAMES)


_ARROW_TYPES: Final[dict[object, pa.DataType]] = {
    int: pa.int64(),
    float: pa.float64(),
    str: pa.large_string(),
    bool: pa.bool_(),
    list[str]: pa.large_list(pa.large_string()),
}

_NAMES: Final = (pa.large_string(), pa.large_list(pa.large_string()))

# What engine, usage and ledger rows count: each token is of one kind.
TOKEN_KINDS: Final = ("output", "input", "cached_input")
TOKEN_COUNTS: Final = tuple(f"{kind}_tokens" for kind in TOKEN_KINDS)

# Keys in the Arrow schema's metadata.
NAME_KEY: Final = b"idlewatt.schema"
VERSION_KEY: Final = b"idlewatt.version"


def _schema(name: str, row: type) -> Schema:
    hints = typing.get_type_hints(row)
    fields = []
    for field in dataclasses.fields(row):
        hint = hints[field.name]
        nullable = typing.get_origin(hint) is types.UnionType
        kind = typing.get_args(hint)[0] if nullable else hint
        fields.append(pa.field(field.name, _ARROW_TYPES[kind], nullable=nullable))
    metadata = {NAME_KEY: name.encode(), VERSION_KEY: b"1.0"}
    return Schema(name, row, pa.schema(fields, metadata=metadata))


GPU: Final = _schema("gpu", GpuRow)
ENGINE: Final = _schema("engine", EngineRow)
USAGE: Final = _schema("usage", UsageRow)
POWER: Final = _schema("ledger.power", PowerRow)
TOKENS: Final = _schema("ledger.tokens", TokenRow)
GPU_MINUTE: Final = _schema("ledger.gpu_minute", GpuMinuteRow)
MONEY: Final = _schema("money", MoneyRow)
CONSUMER: Final = _schema("consumer", ConsumerRow)
REJECTED: Final = _schema("rejected", RejectedRow)

SCHEMAS: Final = {
    s.name: s for s in (GPU, ENGINE, USAGE, POWER, TOKENS, GPU_MINUTE, MONEY, CONSUMER, REJECTED)
}
