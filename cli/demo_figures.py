"""What the demo shows, computed from two scrapes of /metrics and nothing else, as Prometheus would."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from idlewatt.stream import metric_names as names
from idlewatt.stream.metric_names import Metric
from idlewatt.stream.records import IDLE_STATES, STATES

PARTS: Final = ("draw", "headroom")
_ROLLING: Final = "1m"
_JOULES_PER_KWH: Final = 3_600_000


class Scrape:
    """The samples of one exposition text."""

    def __init__(self, text: str) -> None:
        self._samples: dict[str, list[tuple[dict[str, str], float]]] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                self._samples.setdefault(sample.name, []).append((sample.labels, sample.value))

    def select(self, metric: Metric, **labels: str) -> Iterator[tuple[Mapping[str, str], float]]:
        """The series of a metric that carry these labels."""
        for series, value in self._samples.get(metric.name, ()):
            if labels.items() <= series.items():
                yield series, value

    def sum(self, metric: Metric, **labels: str) -> float:
        return sum(value for _, value in self.select(metric, **labels))

    def one(self, metric: Metric, **labels: str) -> float | None:
        """The sum, or None where there is no series: withheld is not zero."""
        values = [value for _, value in self.select(metric, **labels)]
        return sum(values) if values else None

    def by(self, metric: Metric, label: str, **labels: str) -> dict[str, float]:
        """The sums by one label."""
        sums: dict[str, float] = {}
        for series, value in self.select(metric, **labels):
            sums[series[label]] = sums.get(series[label], 0.0) + value
        return sums

    @property
    def window_ends(self) -> dict[str, float]:
        """Event time up to which each pool is counted, Unix seconds."""
        return self.by(names.WINDOW_END, "pool")


@dataclass(frozen=True, slots=True)
class PoolFigures:
    """One pool; None is withheld or not known yet."""

    name: str
    gpus: Mapping[str, float]  # by state
    tokens_per_s: float | None
    watts: float | None
    tokens_per_joule: float | None
    lost_per_hour: float | None


@dataclass(frozen=True, slots=True)
class SiteFigures:
    """All pools together; what one pool withholds, the site does."""

    pools: tuple[PoolFigures, ...]
    waterfall: Mapping[tuple[str, str], float]  # (state, part) -> watts of the last closed window
    tokens_per_s: float | None
    watts: float | None
    lost_per_hour: float | None
    benchmark_per_hour: float | None
    currency: str

    @property
    def available_watts(self) -> float:
        return sum(self.waterfall.values())

    @property
    def tokens_per_joule(self) -> float | None:
        """Of the same interval, sums first."""
        return _yield(self.tokens_per_s, self.watts)


def site_figures(older: Scrape, newer: Scrape) -> SiteFigures:
    """Rates between two scrapes, gauges of the newer. A rate needs a window that closed between them."""
    began, ended = older.window_ends, newer.window_ends
    pools = tuple(
        _pool(older, newer, pool, ended[pool] - began.get(pool, ended[pool])) for pool in sorted(ended)
    )
    return SiteFigures(
        pools=pools,
        waterfall={
            (state, part): newer.sum(names.POWER, state=state, part=part)
            for state in STATES
            for part in PARTS
        },
        tokens_per_s=_sum(pool.tokens_per_s for pool in pools),
        watts=_sum(pool.watts for pool in pools),
        lost_per_hour=_sum(pool.lost_per_hour for pool in pools),
        benchmark_per_hour=_sum(
            newer.one(names.BENCHMARK_LOST_REVENUE_PER_HOUR, pool=pool.name, window=_ROLLING)
            for pool in pools
        ),
        currency=_currency(newer),
    )


def _sum(values: Iterable[float | None]) -> float | None:
    """None where one is unknown, or where there is none."""
    known = list(values)
    return sum(value or 0.0 for value in known) if known and None not in known else None


def _yield(tokens_per_s: float | None, watts: float | None) -> float | None:
    return tokens_per_s / watts if tokens_per_s and watts else None


def _pool(older: Scrape, newer: Scrape, pool: str, seconds: float) -> PoolFigures:
    def rate(metric: Metric, **labels: str) -> float | None:
        if seconds <= 0:
            return None
        return (newer.sum(metric, pool=pool, **labels) - older.sum(metric, pool=pool, **labels)) / seconds

    tokens_per_s, watts = rate(names.TOKENS, kind="output"), rate(names.ENERGY, scope="it")
    # the meter's own is of a minute, but it knows what to withhold
    is_withheld = newer.one(names.TOKENS_PER_JOULE, pool=pool, window=_ROLLING, kind="output") is None
    return PoolFigures(
        name=pool,
        gpus=newer.by(names.GPUS, "state", pool=pool),
        tokens_per_s=tokens_per_s,
        watts=watts,
        tokens_per_joule=None if is_withheld else _yield(tokens_per_s, watts),
        lost_per_hour=newer.one(names.LOST_REVENUE_PER_HOUR, pool=pool, window=_ROLLING),
    )


def _currency(scrape: Scrape) -> str:
    return next((series["currency"] for series, _ in scrape.select(names.LOST_REVENUE_PER_HOUR)), "USD")


@dataclass(frozen=True, slots=True)
class Sums:
    """Everything counted so far."""

    output_tokens: float
    kwh: float
    wasted_share: float | None  # of the joules drawn
    tokens_per_joule: float | None
    revenue: float
    cost: float  # energy and capital of all states
    idle_energy_cost: float
    idle_capital_cost: float
    lost_revenue: float
    unpriced_pools: tuple[str, ...]  # some of whose idle watts are not in lost_revenue
    benchmark_loss: float
    currency: str


def sums(scrape: Scrape) -> Sums:
    """The counters of one scrape, which began at zero with the demo."""
    joules = scrape.by(names.ENERGY, "state", scope="it")
    drawn = sum(joules.values())
    tokens = scrape.sum(names.TOKENS, kind="output")
    priced = scrape.by(names.LOST_REVENUE_PER_HOUR, "pool", window=_ROLLING)
    return Sums(
        output_tokens=tokens,
        kwh=drawn / _JOULES_PER_KWH,
        wasted_share=sum(joules.get(state, 0.0) for state in IDLE_STATES) / drawn if drawn > 0 else None,
        tokens_per_joule=tokens / drawn if drawn > 0 else None,
        revenue=scrape.sum(names.REVENUE),
        cost=scrape.sum(names.ENERGY_COST) + scrape.sum(names.CAPITAL_COST),
        idle_energy_cost=sum(scrape.sum(names.ENERGY_COST, state=state) for state in IDLE_STATES),
        idle_capital_cost=sum(scrape.sum(names.CAPITAL_COST, state=state) for state in IDLE_STATES),
        lost_revenue=scrape.sum(names.LOST_REVENUE),
        unpriced_pools=tuple(sorted(scrape.window_ends.keys() - priced.keys())),
        benchmark_loss=scrape.sum(names.BENCHMARK_LOST_REVENUE),
        currency=_currency(scrape),
    )
