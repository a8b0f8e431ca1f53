"""The economy's rolling figures: ratios of sums over the windows of the last minute, five minutes, hour.

A figure is absent where any of its windows lacks what it stands on.
"""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

import polars as pl

from idlewatt.processors.at_once import at_once
from idlewatt.processors.blind_nodes import UNMETERED_REVENUE, UNMETERED_TOKENS, metered
from idlewatt.processors.economy.book import MICRO, Book
from idlewatt.processors.economy.config import EconomyConfig
from idlewatt.processors.economy.pricing import BENCHMARK_CURRENCY
from idlewatt.processors.economy.rolling import HAS_GPU_TIME
from idlewatt.processors.economy.state import EconomyState
from idlewatt.processors.families import Family, family
from idlewatt.processors.meter.rolling import ROLLING_MS
from idlewatt.stream import metric_names as names
from idlewatt.stream.clock import HOUR_MS, MINUTE_MS
from idlewatt.stream.metric_names import Metric
from idlewatt.stream.records import POOL

_HOUR: Final = "1h"
_YEAR_MS: Final = 8760 * HOUR_MS
# micro-units per millijoule to units per gigawatt-year: 10^9 W x 31,536,000 s x 10^3 mJ / 10^6
PER_GIGAWATT_YEAR: Final = 1e9 * 31_536_000 * 1e3 / 1e6
# micro-units per millisecond to units per hour
_PER_HOUR: Final = 3.6
# what a gigawatt costs to build, the mission's benchmark
BENCHMARK_CAPITAL: Final = 100e9

# Expressions are made once: these take longer to make than to evaluate.
_AGE_MS: Final = pl.col("end_ms") - pl.col("window_start_ms")
_LOST: Final = ("window_ms", "lost_micro", "lost_ms", "benchmark_micro")
_LOSSES: Final = tuple(
    pl.when(_AGE_MS.le(length_ms)).then(amount).otherwise(0).alias(f"{amount}_{window}")
    for window, length_ms in ROLLING_MS.items()
    if window != _HOUR
    for amount in _LOST
)

_Among = Literal["all", "made", "sold"]


@dataclass(frozen=True, slots=True)
class _Figure:
    """A figure of each pool among some of the pools; null is absent."""

    metric: Metric
    among: _Among
    columns: tuple[pl.Expr, ...]


def rolling_families(state: EconomyState, book: Book, config: EconomyConfig) -> Iterator[Family]:
    """Families of rolling figures of one partition."""
    ends = _current(state.windows)
    pools = _among(_sums(state.rolling, ends), config)
    parts: dict[Metric, list[pl.DataFrame]] = {}
    for figure in _figures(state.currency, book):
        parts.setdefault(figure.metric, []).append(pools[figure.among].select_seq(figure.columns))
    for metric, frames in parts.items():
        yield family(metric, pl.concat(frames))
    yield family(names.RECOVERABLE_GPUS, recoverable(state.packing, ends))
    # also of pools that are behind the others: what else would tell
    yield family(names.MONEY_END, state.windows.with_columns(value=pl.col("end_ms") / 1000))


def _current(ends: pl.DataFrame) -> pl.DataFrame:
    """Of pools that have windows: without those that were taken out longer than an hour before the site's newest."""
    return ends.filter(pl.col("end_ms") > pl.col("end_ms").max().over("site") - HOUR_MS)


def _sums(rolling: pl.DataFrame, ends: pl.DataFrame) -> pl.DataFrame:
    """Sums of the trailing hour by pool, and those that losses are told by over each window (`lost_micro_5m`)."""
    return at_once(
        rolling.lazy()
        .join(ends.lazy(), on=list(POOL))
        .filter(_AGE_MS.le(HOUR_MS))
        .filter(HAS_GPU_TIME)
        .with_columns(_LOSSES)
        .drop("window_start_ms", "end_ms")
        .group_by(*POOL)
        .agg(pl.all().sum())
        .sort(*POOL)
        .with_columns(pl.col(_LOST).name.suffix(f"_{_HOUR}"))
    )


def _among(sums: pl.DataFrame, config: EconomyConfig) -> Mapping[_Among, pl.DataFrame]:
    # what is mostly dark tells nothing of cost or yield
    is_lit = pl.col("gpu_ms") - pl.col("dark_ms") >= config.coverage_floor * pl.col("gpu_ms")
    # nor does what its engines made while they were not read, which stands in no rolling figure when it comes
    is_read = pl.col("read_ms") >= config.coverage_floor * (pl.col("read_ms") + pl.col("unread_ms"))
    # nor what they made on GPUs that nobody reads
    is_metered = metered(UNMETERED_TOKENS, config.min_tokens) >= config.coverage_floor
    lit = sums.filter((pl.col("gpu_ms") > 0) & is_lit & is_read & is_metered)
    return {
        "all": sums,
        "made": lit.filter(pl.col("output_tokens") >= config.min_tokens),
        # all tokens of these have a price, and what they bring has costs
        "sold": lit.filter(
            pl.col("unpriced_tokens") == 0, metered(UNMETERED_REVENUE, 1) >= config.coverage_floor
        ),
    }


@functools.lru_cache(maxsize=4)
def _figures(currency: str, book: Book) -> tuple[_Figure, ...]:
    return (*_losses(currency), *_costs(currency, book), *_yields(currency))


def _losses(currency: str) -> Iterator[_Figure]:
    for window in ROLLING_MS:
        # where idle watts cannot be priced, the other windows are those that lost less
        is_known = pl.col(f"lost_ms_{window}") == pl.col(f"window_ms_{window}")
        rate = _where(is_known, _ratio(f"lost_micro_{window}", f"window_ms_{window}")) * _PER_HOUR
        yield _figure(names.LOST_REVENUE_PER_HOUR, "all", rate, window=window, currency=currency)
    for window in ROLLING_MS:
        rate = _ratio(f"benchmark_micro_{window}", f"window_ms_{window}") * _PER_HOUR
        labels = {"window": window, "currency": BENCHMARK_CURRENCY}
        yield _figure(names.BENCHMARK_LOST_REVENUE_PER_HOUR, "all", rate, **labels)


def _costs(currency: str, book: Book) -> Iterator[_Figure]:
    """Micro-units per token are units per million tokens."""
    metric = names.COST_PER_MILLION_TOKENS
    always: Mapping[str, str] = {"window": _HOUR, "currency": currency}
    origin = _origin("capital")
    for cost_basis in ("usage", "allocation"):
        labels = {**always, "cost_basis": cost_basis, "kind": "output"}
        energy = _where(_is_known("energy"), _cost("energy", cost_basis) / pl.col("output_tokens"))
        yield _figure(metric, "made", energy, **labels, basis="energy", origin="book")
        all_in = _cost("energy", cost_basis) + _cost("capital", cost_basis)
        all_in = _where(_is_known("energy", "capital"), all_in / pl.col("output_tokens"))
        yield _figure(metric, "made", all_in, **labels, basis="all_in", origin=origin)
    # in the cost of an input token
    weight, cached = book.cost.output_weight / MICRO, book.cost.cached_input_weight / MICRO
    borne = pl.col("output_tokens") * weight + pl.col("input_tokens") + pl.col("cached_input_tokens") * cached
    for kind, times in (("output_share", weight), ("input_share", 1.0)):
        share = _where(_is_known("energy", "capital"), _cost() * times / borne)
        labels = {**always, "basis": "all_in", "cost_basis": "allocation", "kind": kind}
        yield _figure(metric, "made", share, **labels, origin=origin)
    # a book may have prices of 0
    has_cost = _is_known("energy", "capital") & (_cost() > 0)
    per_unit = _where(has_cost, pl.col("output_tokens") * MICRO / _cost())
    yield _figure(names.TOKENS_PER_CURRENCY_UNIT, "made", per_unit, **always, origin=origin)
    # micrograms per token are grams per million tokens
    carbon = _where(_is_known("carbon"), _ratio("carbon_ug", "output_tokens"))
    yield _figure(names.CARBON_PER_MILLION_TOKENS, "made", carbon, window=_HOUR)


def _yields(currency: str) -> Iterator[_Figure]:
    """What watts bring."""
    always: Mapping[str, str] = {"window": _HOUR, "currency": currency}
    revenue = pl.col("revenue_micro")
    net = _where(_is_known("energy"), revenue - pl.col("energy_micro"))
    margin = _where(_is_known("capital"), (net - pl.col("capital_micro")) * _PER_HOUR / pl.col("window_ms"))
    yield _figure(names.MARGIN_PER_HOUR, "sold", margin, **always, origin=_origin("capital"))
    for scope, energy, known, origin in (
        ("it", "available_mj", pl.lit(True), pl.lit("book")),
        ("facility", "facility_mj", _is_known("facility"), _origin("facility")),
    ):
        per_gw = _where(known & (pl.col(energy) > 0), revenue / pl.col(energy) * PER_GIGAWATT_YEAR)
        yield _figure(names.REVENUE_PER_GIGAWATT_YEAR, "sold", per_gw, **always, scope=scope, origin=origin)
    net_per_gw = net / pl.col("available_mj") * PER_GIGAWATT_YEAR
    comparable = (net > 0) & (pl.col("available_mj") > 0) & pl.lit(currency == BENCHMARK_CURRENCY)
    years = _where(comparable, BENCHMARK_CAPITAL / net_per_gw)
    yield _figure(names.PAYBACK_YEARS, "sold", years, window=_HOUR, capital="benchmark")
    # invested is units x ms
    own = pl.col("invested") / (net / MICRO) / _YEAR_MS
    bought = (net > 0) & (pl.col("invested") > 0) & _is_known("invested")
    yield _figure(names.PAYBACK_YEARS, "sold", _where(bought, own), window=_HOUR, capital="book")


def recoverable(packing: pl.DataFrame, ends: pl.DataFrame) -> pl.DataFrame:
    """site, pool, model_name, value: whole GPUs that held the model all the hour and that no window needed."""
    # an hour that does not begin with a minute has 59 whole ones
    is_whole = (pl.col("minutes") >= 59) & (pl.col("first_ms") < pl.col("end_ms") - HOUR_MS + MINUTE_MS)
    spare = pl.col("held") // 1000 + (-pl.col("served")) // 1000
    return at_once(
        packing.lazy()
        .join(ends.lazy(), on=list(POOL))
        .filter(pl.col("minute_start_ms") >= pl.col("end_ms") - HOUR_MS)
        .group_by(*POOL, "model_name")
        .agg(
            pl.col("held").min(),
            pl.col("served").max(),
            minutes=pl.col("minute_start_ms").n_unique(),
            first_ms=pl.col("minute_start_ms").min(),
            end_ms=pl.col("end_ms").first(),
        )
        .filter(is_whole)
        .select(*POOL, "model_name", pl.max_horizontal(spare, 0).alias("value"))
    )


def _figure(
    metric: Metric,
    among: _Among,
    value: pl.Expr,
    **labels: pl.Expr | str,
) -> _Figure:
    """With these labels in the order of their names."""
    columns = [
        (pl.lit(label) if isinstance(label, str) else label).alias(name)
        for name, label in sorted(labels.items())
    ]
    pool = [pl.col(name) for name in POOL]
    return _Figure(metric, among, (*pool, *columns, value.cast(pl.Float64).alias("value")))


def _cost(of: str = "", cost_basis: str = "allocation") -> pl.Expr:
    """Micro-units: energy, capital, or both."""
    serving = "_serving" if cost_basis == "usage" else ""
    return pl.sum_horizontal(
        pl.col(f"{part}{serving}_micro") for part in ([of] if of else ["energy", "capital"])
    )


def _ratio(over: str, under: str) -> pl.Expr:
    return pl.when(pl.col(under) != 0).then(pl.col(over) / pl.col(under))


def _where(condition: pl.Expr, value: pl.Expr) -> pl.Expr:
    return pl.when(condition).then(value)


def _is_known(*parts: str) -> pl.Expr:
    known = [(pl.col(f"{part}_ms") == pl.col("window_ms")) & (pl.col("window_ms") > 0) for part in parts]
    return pl.all_horizontal(known)


def _origin(part: str) -> pl.Expr:
    return pl.when(pl.col(f"{part}_published_ms") > 0).then(pl.lit("published")).otherwise(pl.lit("book"))
