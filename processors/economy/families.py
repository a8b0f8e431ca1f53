"""The economy's counters as Prometheus families, from the committed states of its partitions."""

from collections.abc import Iterator, Sequence
from typing import Final

import polars as pl

from idlewatt.processors.economy.book import MICRO, Book
from idlewatt.processors.economy.config import EconomyConfig
from idlewatt.processors.economy.envelope_families import envelope_families
from idlewatt.processors.economy.rolling_families import rolling_families
from idlewatt.processors.economy.state import UNATTRIBUTED_KEY, EconomyState
from idlewatt.processors.families import Family, family
from idlewatt.stream import metric_names as names
from idlewatt.stream.metric_names import Metric

_KINDS: Final = {
    "output_tokens": "output",
    "input_tokens": "input",
    "cached_input_tokens": "cached_input",
}
_BOOKED: Final = {
    "revenue": names.REVENUE,
    "acquisition_cost": names.ACQUISITION_COST,
    "energy_cost": names.ENERGY_COST,
    "capital_cost": names.CAPITAL_COST,
    "lost_revenue": names.LOST_REVENUE,
    "benchmark_lost_revenue": names.BENCHMARK_LOST_REVENUE,
}


def families(states: Sequence[EconomyState], book: Book, config: EconomyConfig) -> list[Family]:
    """Everything design names for the economy. A site lives in one partition, so no label set comes twice."""
    parts: dict[Metric, list[pl.DataFrame]] = {}
    for state in states:
        for found in (
            *_counters(state),
            *rolling_families(state, book, config),
            *envelope_families(state.envelopes, book),
        ):
            parts.setdefault(found.metric, []).append(found.frame)
    return [family(metric, pl.concat(frames)) for metric, frames in parts.items()]


def _counters(state: EconomyState) -> Iterator[Family]:
    for kind, metric in _BOOKED.items():
        yield _counter(metric, state.totals.filter(pl.col("kind") == kind), "amount_micro", per=MICRO)
    yield _counter(names.UNPRICED_TOKENS, state.unpriced, "output_tokens")
    yield _counter(names.UNCOSTED_GPU_SECONDS, state.uncosted, "gpu_ms", per=1000)
    yield _counter(names.CARBON, state.carbon, "carbon_ug", per=MICRO)
    yield _by_kind(names.UNATTRIBUTED_TOKENS, state.unattributed, UNATTRIBUTED_KEY)
    consumers = state.consumers
    yield _by_kind(names.CONSUMER_TOKENS, consumers, names.CONSUMER_TOKENS.labels[:-1])
    yield _counter(names.CONSUMER_SPEND, consumers, "spend_micro", per=MICRO)
    unpriced = consumers.filter(pl.col("unpriced_tokens") != 0)
    yield _counter(names.CONSUMER_UNPRICED_TOKENS, unpriced, "unpriced_tokens")


def _counter(metric: Metric, rows: pl.DataFrame, amount: str, per: int = 1) -> Family:
    sums = rows.group_by(*metric.labels).agg((pl.col(amount).sum() / per).alias("value"))
    return family(metric, sums.sort(*metric.labels))


def _by_kind(metric: Metric, rows: pl.DataFrame, key: Sequence[str]) -> Family:
    parts = [
        rows.group_by(*key).agg(pl.lit(kind).alias("kind"), pl.col(tokens).sum().alias("value")).sort(*key)
        for tokens, kind in _KINDS.items()
    ]
    return family(metric, pl.concat(parts))
