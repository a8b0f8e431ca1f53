"""The economy's counters as Prometheus families, from the committed states of its partitions."""

from collections.abc import Iterator, Sequence
from typing import Final

import polars as pl

from idlewatt.processors.at_once import at_once
from idlewatt.processors.economy.book import MICRO, Book
from idlewatt.processors.economy.config import EconomyConfig
from idlewatt.processors.economy.envelope_families import envelope_families
from idlewatt.processors.economy.rolling_families import rolling_families
from idlewatt.processors.economy.state import UNATTRIBUTED_KEY, UNPRICED_KEY, EconomyState
from idlewatt.processors.families import KINDS, Family, absent, family, in_units, long
from idlewatt.stream import metric_names as names
from idlewatt.stream.metric_names import Metric

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
    return [Family(metric, pl.concat(frames)) for metric, frames in parts.items()]


def _counters(state: EconomyState) -> Iterator[Family]:
    yield from _booked(state.totals)
    yield family(names.UNPRICED_TOKENS, long(state.unpriced, UNPRICED_KEY, "kind", KINDS))
    yield _counter(names.UNCOSTED_GPU_SECONDS, state.uncosted, "shown_gpu_ms", per=1000)
    yield _counter(names.CARBON, state.carbon, "carbon_ug", per=MICRO)
    yield family(names.UNATTRIBUTED_TOKENS, long(state.unattributed, UNATTRIBUTED_KEY, "kind", KINDS))
    yield from _consumers(state.consumers)


def _booked(totals: pl.DataFrame) -> Iterator[Family]:
    """One sum for all kinds of money: of each kind, over what its labels do not tell apart."""
    labels = dict.fromkeys(label for metric in _BOOKED.values() for label in metric.labels)
    own = [
        pl.when(pl.col("kind").is_in([kind for kind, metric in _BOOKED.items() if label in metric.labels]))
        .then(label)
        .alias(label)
        for label in labels
        if any(label not in metric.labels for metric in _BOOKED.values())
    ]
    sums = at_once(
        totals.lazy()
        .with_columns(own)
        .group_by("kind", *labels, maintain_order=True)
        .agg(value=in_units(pl.col("shown_micro").sum(), MICRO))
    )
    by_kind = sums.partition_by("kind", as_dict=True)
    for kind, metric in _BOOKED.items():
        yield family(metric, by_kind.get((kind,), sums.clear()))


def _consumers(totals: pl.DataFrame) -> Iterator[Family]:
    if totals.is_empty():
        yield from map(absent, (names.CONSUMER_TOKENS, names.CONSUMER_SPEND, names.CONSUMER_UNPRICED_TOKENS))
        return
    *key, _ = names.CONSUMER_TOKENS.labels
    # beside these there is the currency
    sums = totals.group_by(key, maintain_order=True).agg(pl.col(*KINDS, "unpriced_tokens").sum())
    yield family(names.CONSUMER_TOKENS, long(sums, key, "kind", KINDS))
    yield _counter(names.CONSUMER_SPEND, totals, "spend_micro", per=MICRO)
    unpriced = sums.filter(pl.col("unpriced_tokens") != 0)
    yield _counter(names.CONSUMER_UNPRICED_TOKENS, unpriced, "unpriced_tokens")


def _counter(metric: Metric, rows: pl.DataFrame, amount: str, per: int = 1) -> Family:
    """Of rows that the metric's labels tell apart."""
    return family(metric, rows.with_columns(value=in_units(pl.col(amount), per)))
