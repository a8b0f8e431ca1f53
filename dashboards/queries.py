"""Every PromQL expression Idlewatt ships, as functions of the metric constants.

Four rules hold for all of them. A ratio is a ratio of sums, never a mean of ratios. Gauges of withheld
figures stay absent: nothing here turns "not known" into 0. Meter and economy series carry no `instance`
(provisioning.py drops it), so they are summed by site and pool and never by who served them. Figures of now are of pools
whose figures are not old (fresh()).
"""

from collections.abc import Mapping
from typing import Final

from idlewatt.stream import metric_names as names
from idlewatt.stream.metric_names import Metric
from idlewatt.stream.records import POOL as POOL
from idlewatt.stream.settings import Process

Where = Mapping[str, str]

EVERYWHERE: Final[Where] = {}
SELECTED: Final[Where] = {"site": "~$site", "pool": "~$pool"}
ENVELOPE: Final = names.ENVELOPE_LIMIT.labels
RATE_INTERVAL: Final = "$__rate_interval"
RANGE: Final = "$__range"
ROLLING: Final = "5m"
WASTED: Final = "~idle_loaded|idle_free"
BUSY: Final = "~serving|other"
SEEN: Final = "!dark"
# of what is available: rows from a spool count when they come, and bring what others did at other times
TOO_MUCH_SEEN: Final = 1.1
# window, grace and scrape make about 45 s in the default settings; figures that are older than this are none of now
CLOCK_LIMIT_S: Final = 120
# seconds of windows closed per second, beyond which a rate is so many times too high: windows and scrapes that do not fit
# make up to 1.6 of it, where windows of a minute are scraped each 15 s
CLOCK_PACE_LIMIT: Final = 1.7
# when the figures of a stage are of
CLOCKS: Final = {"meter": names.WINDOW_END, "economy": names.MONEY_END}
# A clock that is not there is looked for this long: with each commit that fails a processor's page is empty for a moment, in
# which its counters still have a rate.
_CLOCK_SEEN: Final = "1h"
# what gauges were is looked up this often; windows are of 10 s
_STEP: Final = "15s"
# job of every Idlewatt process in prometheus.yml
JOB: Final = "idlewatt"

COVERAGE_FLOOR: Final[float] = Process.model_fields["coverage_floor"].default


def series(metric: Metric, where: Where = EVERYWHERE) -> str:
    """Selector of a metric; a value that begins with ~ is a regular expression, with ! or !~ what it must not be.

    Raises ValueError for a label that the metric does not carry.
    """
    _refuse_unknown_labels(metric, where)
    operators = {"!~": "!~", "~": "=~", "!": "!=", "": "="}
    marks = {label: next(filter(value.startswith, operators)) for label, value in where.items()}
    matchers = (
        f'{label}{operators[marks[label]]}"{value.removeprefix(marks[label])}"'
        for label, value in where.items()
    )
    return f"{metric.name}{{{','.join(matchers)}}}" if where else metric.name


def fresh(metric: Metric, expression: str, window: str | None = None) -> str:
    """The expression, made of this metric and with its labels, without pools (or sites) whose figures are old.

    A stage that cannot commit goes on showing its last state: gauges stay, and counters that stand still have a rate of 0.
    One that catches up counts at once what was drawn in an hour: a rate over `window` is left out while its clock leaps.
    What has no clock is kept: pools without a GPU have none for their money, and what consumers use has another.
    """
    clock = CLOCKS.get(metric.stage)
    if clock is None or "consumer" in metric.labels:
        return expression
    by = ", ".join(label for label in POOL if label in metric.labels)
    clock_by = f"max by ({by}) ({last_seen(clock)})"
    leaps = f" unless on ({by}) deriv({clock.name}[{window}]) > {CLOCK_PACE_LIMIT}" if window else ""
    return f"({expression} unless on ({by}) (time() - {clock_by} >= {CLOCK_LIMIT_S}){leaps})"


def counted_without_clock() -> str:
    """Pools whose GPUs and engines are all forgotten: the meter goes on showing their counters for days."""
    counted = " or ".join(series(metric) for metric in (names.AVAILABLE, names.TOKENS))
    return f"({counted}) unless on ({', '.join(POOL)}) {series(names.WINDOW_END)}"


def meter_age(where: Where) -> str:
    """Seconds since the end of the last closed window, of the site for which that is longest ago: all its pools stand still."""
    return f"max(time() - max by (site) ({last_seen(names.WINDOW_END, where)}))"


def money_age(where: Where) -> str:
    """The same of the last window that was priced. A site without GPUs has none to be priced."""
    gpus = last_seen(names.GPUS, where)
    return f"max(time() - max by (site) ({last_seen(names.MONEY_END, where)} and on (site) {gpus}))"


def last_seen(metric: Metric, where: Where = EVERYWHERE) -> str:
    return f"last_over_time({series(metric, where)}[{_CLOCK_SEEN}])"


def level(metric: Metric, where: Where = EVERYWHERE, by: tuple[str, ...] = ()) -> str:
    """Sum of a gauge as it is now, or of what a counter came to."""
    return _aggregated("sum", metric, by, _as_it_is(metric, where))


def highest(metric: Metric, where: Where = EVERYWHERE, by: tuple[str, ...] = ()) -> str:
    """Largest value of a gauge."""
    return _aggregated("max", metric, by, _as_it_is(metric, where))


def rate(
    metric: Metric, where: Where = EVERYWHERE, by: tuple[str, ...] = (), window: str = RATE_INTERVAL
) -> str:
    """Growth of a counter per second, summed."""
    return _aggregated("sum", metric, by, fresh(metric, f"rate({series(metric, where)}[{window}])", window))


def increase(metric: Metric, where: Where = EVERYWHERE, by: tuple[str, ...] = (), window: str = RANGE) -> str:
    """Growth of a counter over a window, summed. An estimate: the ledger is what to bill by."""
    return _aggregated("sum", metric, by, f"increase({series(metric, where)}[{window}])")


def ratio(numerator: str, denominator: str) -> str:
    """Ratio of two sums, absent where the denominator is 0."""
    return f"({numerator}) / ({denominator} > 0)"


def zero_while(expression: str, alive: str) -> str:
    """The expression, or 0 where it has no series although `alive` has: nothing happened, and we looked."""
    return f"{expression} or 0 * {alive}"


def output_tokens_rate(where: Where, by: tuple[str, ...] = (), window: str = RATE_INTERVAL) -> str:
    """Output tokens per second."""
    return rate(names.TOKENS, {**where, "kind": "output"}, by, window)


def energy_rate(where: Where, by: tuple[str, ...] = (), window: str = RATE_INTERVAL) -> str:
    """Board energy drawn per second: watts, by counters."""
    return rate(names.ENERGY, {**where, "scope": "it"}, by, window)


def wasted_energy_rate(where: Where, by: tuple[str, ...] = (), window: str = RATE_INTERVAL) -> str:
    """Board energy that idle GPUs drew, per second; 0 for a pool that drew energy and wasted none."""
    wasted = energy_rate({**where, "state": WASTED}, by, window)
    return zero_while(wasted, energy_rate(where, by, window))


def idle_share_of_seen(where: Where, by: tuple[str, ...], window: str) -> str:
    """Share of the available energy that idle GPUs drew or had to spare, of what was seen; absent where most was not, or
    TOO_MUCH_SEEN."""
    available = rate(names.AVAILABLE, where, by, window)
    seen = _drawn_or_spare(where, SEEN, by, window)
    return f"({_drawn_or_spare(where, WASTED, by, window)}) / ({seen} > 0.5 * {available} < {TOO_MUCH_SEEN} * {available})"


def busy_share_of_available(where: Where, by: tuple[str, ...], window: str) -> str:
    """Share of the available energy that GPUs at work were seen to draw or to have to spare; absent where TOO_MUCH_SEEN."""
    available = rate(names.AVAILABLE, where, by, window)
    busy = f"({_drawn_or_spare(where, BUSY, by, window)} or 0 * {available})"
    return f"{busy} / {available} unless {_drawn_or_spare(where, SEEN, by, window)} >= {TOO_MUCH_SEEN} * {available}"


def _drawn_or_spare(where: Where, states: str, by: tuple[str, ...], window: str) -> str:
    draw = energy_rate({**where, "state": states}, by, window)
    return f"{draw} + {rate(names.HEADROOM, {**where, 'state': states}, by, window)}"


def drawn_watts(where: Where, by: tuple[str, ...] = ()) -> str:
    """Watts drawn in the last closed window."""
    return level(names.POWER, {**where, "part": "draw"}, by)


def wasted_watts_share(where: Where) -> str:
    """Share of the drawn watts that went into idle GPUs, in the last closed window."""
    wasted = level(names.POWER, {**where, "state": WASTED, "part": "draw"}, POOL)
    drawn = drawn_watts(where, POOL)
    return ratio(zero_while(wasted, drawn), drawn)


def coverage(where: Where, of: str) -> str:
    """Coverage of several pools: each pool's, weighted by its GPUs."""
    pools = highest(names.COVERAGE, {**where, "window": ROLLING, "of": of}, POOL)
    gpus = level(names.GPUS, where, POOL)
    return ratio(f"sum({pools} * {gpus})", f"sum({gpus} and {pools})")


def tokens_per_joule(where: Where) -> str:
    """Output tokens per joule of several pools together, over the last 5 minutes: their tokens over their joules.

    Of each pool that is covered, the yield that the meter shows by the watts it drew meanwhile: counters jump by what was
    booked late when one GPU or engine of many comes back. One whose yield is withheld for want of tokens or of an engine
    drew joules nevertheless. Where the others held more of the available watts, as last known of each, than the floor
    allows, the figure would not be that of all.
    """
    watts, tokens = (
        highest(names.COVERAGE, {**where, "window": ROLLING, "of": of}, POOL) for of in ("watts", "tokens")
    )
    draw, available = (
        _aggregated("sum", names.POWER, POOL, series(names.POWER, parts))
        for parts in ({**where, "part": "draw"}, where)
    )
    drawn = f"({_covered(f'avg_over_time({draw}[{ROLLING}:{_STEP}])', watts, tokens)})"
    known = f"last_over_time({available}[{_CLOCK_SEEN}:{_STEP}])"
    made = f"sum({pool_tokens_per_joule(where)} * {drawn})"
    counted = ratio(f"sum({known} and {drawn})", f"sum({known})")
    return f"{ratio(made, f'sum({drawn})')} and on () ({counted} >= {COVERAGE_FLOOR})"


def covered_throughout(rate_by_pool: str, window: str) -> str:
    """A rate over a window, of pools that were covered all through it.

    When readings come back, coverage is well again before the leap of the counters has left the window.
    """
    return _covered(rate_by_pool, least_covered("watts", window), least_covered("tokens", window))


def least_covered(of: str, window: str) -> str:
    """The least coverage of each pool's last 5 minutes at any moment of a window."""
    least = f"min_over_time({series(names.COVERAGE, {'window': ROLLING, 'of': of})}[{window}])"
    return _aggregated("max", names.COVERAGE, POOL, least)


def _covered(figures: str, watts: str, tokens: str) -> str:
    """Those of pools that are covered, by these coverages; a pool without an engine has none of tokens."""
    return f"{figures} and {watts} >= {COVERAGE_FLOOR} unless {tokens} < {COVERAGE_FLOOR}"


def tokens_per_second_per_megawatt(where: Where) -> str:
    """The same figure in the unit that sites are compared by."""
    return f"1e6 * ({tokens_per_joule(where)})"


def pool_tokens_per_joule(where: Where) -> str:
    """The meter's rolling output tokens per joule of each pool; absent where the meter withholds it."""
    return highest(names.TOKENS_PER_JOULE, {**where, "kind": "output", "window": ROLLING}, POOL)


def lost_revenue_per_hour(where: Where, by: tuple[str, ...] = ("currency",)) -> str:
    """Revenue lost to idle watts, per hour, by the price book."""
    return level(names.LOST_REVENUE_PER_HOUR, {**where, "window": ROLLING}, by)


def benchmark_lost_revenue_per_hour(where: Where) -> str:
    """Idle kWh at the benchmark, per hour. Never added to the other."""
    return level(names.BENCHMARK_LOST_REVENUE_PER_HOUR, {**where, "window": ROLLING}, ("currency",))


def money_per_hour(metric: Metric, where: Where, by: tuple[str, ...] = ("currency",)) -> str:
    """A counter of money, per hour."""
    return f"3600 * {rate(metric, where, by)}"


def all_in_cost_per_hour(where: Where) -> str:
    """Energy and capital cost of all states, per hour; absent where some of it is not known."""
    by = ("currency",)
    cost = f"3600 * ({rate(names.ENERGY_COST, where, by)} + {rate(names.CAPITAL_COST, where, by)})"
    return f"{cost} unless on () {rate(names.UNCOSTED_GPU_SECONDS, where)} > 0"


def trailing_hour(metric: Metric, where: Where, by: tuple[str, ...]) -> str:
    """The economy's figure of each pool over the trailing hour; absent where it withholds it."""
    return highest(metric, {**where, "window": "1h"}, by)


def unpriced_tokens_rate(where: Where, by: tuple[str, ...]) -> str:
    """Tokens per second that the book has no price for; 0 while windows are priced and all have one."""
    priced = fresh(names.MONEY_END, series(names.MONEY_END, where), RATE_INTERVAL)
    return zero_while(rate(names.UNPRICED_TOKENS, where, by), f"max({priced})")


def unattributed_share(where: Where) -> str:
    """Share of the engines' output tokens that no usage covers, by model."""
    by = ("model_name",)
    rest = rate(names.UNATTRIBUTED_TOKENS, {**where, "kind": "output"}, by)
    return ratio(rest, output_tokens_rate(where, by))


def top_spenders(where: Where, kind: str, most: int) -> str:
    """The consumers of a kind that owe the most for the range."""
    by = ("consumer", "currency")
    return f"topk({most}, {increase(names.CONSUMER_SPEND, {**where, 'consumer_kind': kind}, by)})"


def unread_share(where: Where, of: str, window: str) -> str:
    """Share of the window's GPU time that nobody read, also of GPUs that engines name and nobody ever read (`watts`).

    Or of its engine time or tokens of a kind (`tokens`), also of engines that make tokens on GPUs that nobody reads.
    """
    return f"1 - {highest(names.COVERAGE, {**where, 'window': window, 'of': of}, POOL)}"


def unaccounted_joules(where: Where) -> str:
    """Joules that are in no state, of all pools; one pool's surplus does not cover another's want."""
    return f"sum(abs({series(names.UNACCOUNTED, where)}))"


def worst_offenders(where: Where, most: int) -> str:
    """The GPUs that waste the most watts."""
    labels = names.GPU_WASTED_WATTS.labels
    return f"topk({most}, {level(names.GPU_WASTED_WATTS, where, labels)})"


def envelope_burn(window: str, where: Where = EVERYWHERE) -> str:
    """Use of each envelope over a window, as a multiple of the even rate."""
    return highest(names.ENVELOPE_BURN_RATE, {**where, "window": window}, ENVELOPE)


def envelope_used_share(where: Where = EVERYWHERE) -> str:
    """What of each envelope's limit is used."""
    return (
        f"{highest(names.ENVELOPE_USED, where, ENVELOPE)} / {highest(names.ENVELOPE_LIMIT, where, ENVELOPE)}"
    )


def envelopes_unknown() -> str:
    """Of each envelope how many limits nobody can hold anything against."""
    limit, used = series(names.ENVELOPE_LIMIT), series(names.ENVELOPE_USED)
    return _aggregated("count", names.ENVELOPE_LIMIT, ("site", "envelope"), f"{limit} unless {used}")


def envelope_exhaustion(where: Where = EVERYWHERE) -> str:
    """When each envelope will be used up; absent where that is not before its period ends."""
    return highest(names.ENVELOPE_EXHAUSTION, where, ENVELOPE)


def behind_messages() -> str:
    """Messages still to be read, by topic. While a partition changes hands two may tell it: the larger counts.

    The logs of several boxes have partitions of the same number: of these, the box that is furthest behind.
    """
    return f"sum by (topic) ({highest(names.BEHIND, by=('topic', 'partition'))})"


def behind_seconds() -> str:
    """How long the rest would take at the speed of late; +Inf for a partition that does not move.

    By instance: the logs of several boxes have partitions of the same number.
    """
    by = ("instance", "topic", "partition")
    speed = zero_while(rate(names.MESSAGES, by=by, window=ROLLING), highest(names.BEHIND, by=by))
    return f"{highest(names.BEHIND, by=by)} / ({speed})"


def scrape_success_share() -> str:
    """Share of the collectors' sources that answered their last scrape, by collector."""
    by = ("instance",)
    return ratio(level(names.SCRAPE_SUCCESS, by=by), f"count by (instance) ({names.SCRAPE_SUCCESS.name})")


def new_events(metric: Metric, by: tuple[str, ...], window: str, where: Where = EVERYWHERE) -> str:
    """Growth of a counter of things that should never happen, where there was any.

    A counter that is born at its first event has no increase() yet: a series that was not there in the hour before
    the window counts with its whole value. Less than an hour, and one that Prometheus could not scrape for a while
    would be born anew; and none is born where in all that hour Prometheus was away, or the process that has it was.
    """
    selector = series(metric, where)
    scraped = f'max_over_time(up{{job="{JOB}"}}[1h] offset {window})'
    born = (
        f"({selector} > 0 unless max_over_time({selector}[1h] offset {window}) "
        f"unless on (instance) {scraped} == 0 and on () group({scraped}))"
    )
    return _aggregated("sum", metric, by, f"{born} or increase({selector}[{window}]) > 0")


def _as_it_is(metric: Metric, where: Where) -> str:
    selector = series(metric, where)
    # what a counter came to is no figure of now
    return fresh(metric, selector) if metric.kind == "gauge" else selector


def _aggregated(operator: str, metric: Metric, by: tuple[str, ...], expression: str) -> str:
    _refuse_unknown_labels(metric, by)
    return f"{operator} by ({', '.join(by)}) ({expression})" if by else f"{operator}({expression})"


def _refuse_unknown_labels(metric: Metric, labels: Mapping[str, str] | tuple[str, ...]) -> None:
    carried = {*metric.labels}
    if metric.stage in ("pipeline", "collector"):
        carried.add("instance")
    for label in labels:
        if label not in carried:
            raise ValueError(f"{metric.name} carries no label {label}; it has {', '.join(sorted(carried))}")
