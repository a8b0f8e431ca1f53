"""The economy's Prometheus families, from the committed states of its partitions."""

from collections.abc import Iterator, Sequence
from typing import Final

import polars as pl

from idlewatt.processors.economy.state import EconomyState
from idlewatt.processors.families import Family, family
from idlewatt.stream import metric_names as names

_POOL: Final = ("site", "pool")
_ROLLING_MS: Final = {"1m": 60_000, "5m": 300_000, "1h": 3_600_000}
# tiers come with usage rows; until then every token is sold at the standard price
_TIER: Final = "standard"
Samples = Iterator[tuple[tuple[str, ...], float]]


def families(states: Sequence[EconomyState]) -> list[Family]:
    """Everything design names for the economy. A site lives in one partition, so no label set comes twice."""
    if not states:
        return []
    totals = pl.concat([state.totals for state in states])
    losses = pl.concat([state.losses for state in states])
    windows = pl.concat([state.windows for state in states])
    unpriced = pl.concat([state.unpriced for state in states])
    return [
        family(names.REVENUE, _revenue(totals)),
        family(
            names.LOST_REVENUE,
            _totals(totals, "lost_revenue", (*_POOL, "state", "part", "demand", "currency")),
        ),
        family(
            names.BENCHMARK_LOST_REVENUE,
            _totals(totals, "benchmark_lost_revenue", (*_POOL, "state", "part", "currency")),
        ),
        family(names.LOST_REVENUE_PER_HOUR, _per_hour(losses, windows, "lost_revenue")),
        family(names.BENCHMARK_LOST_REVENUE_PER_HOUR, _per_hour(losses, windows, "benchmark_lost_revenue")),
        family(
            names.UNPRICED_TOKENS,
            (((site, pool, model), float(tokens)) for site, pool, model, tokens in unpriced.iter_rows()),
        ),
    ]


def _totals(totals: pl.DataFrame, kind: str, labels: Sequence[str]) -> Samples:
    rows = (
        totals.filter(pl.col("kind") == kind)
        .group_by(*labels)
        .agg(pl.col("amount_micro").sum())
        .sort(*labels)
    )
    for *values, micro in rows.iter_rows():
        yield tuple(values), micro / 1_000_000


def _revenue(totals: pl.DataFrame) -> Samples:
    for (site, pool, model, currency), amount in _totals(
        totals, "revenue", (*_POOL, "model_name", "currency")
    ):
        yield (site, pool, model, _TIER, currency), amount


def _per_hour(losses: pl.DataFrame, windows: pl.DataFrame, kind: str) -> Samples:
    """Losses per hour over the windows of the rolling interval that could be priced."""
    rows = losses.filter(pl.col("kind") == kind).join(windows, on=_POOL)
    for name, length_ms in _ROLLING_MS.items():
        recent = rows.filter(pl.col("window_start_ms") >= pl.col("end_ms") - length_ms)
        # micro-units per ms x 3.6 = units per hour
        rates = (
            recent.group_by(*_POOL, "currency")
            .agg(pl.col("amount_micro").sum() * 3.6 / pl.col("window_ms").sum())
            .sort(*_POOL, "currency")
        )
        for site, pool, currency, per_hour in rates.iter_rows():
            yield (site, pool, name, currency), per_hour
