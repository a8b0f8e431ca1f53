"""The economy's rolling figures: ratios of sums over the windows of the last minute, five minutes, hour.

A figure is absent where any of its windows lacks what it stands on.
"""

from collections.abc import Iterator, Mapping
from typing import Final

import polars as pl

from idlewatt.processors.at_once import at_once
from idlewatt.processors.economy.book import MICRO, Book
from idlewatt.processors.economy.config import EconomyConfig
from idlewatt.processors.economy.pricing import BENCHMARK_CURRENCY, HOUR_MS
from idlewatt.processors.economy.rolling import POOL
from idlewatt.processors.economy.state import EconomyState
from idlewatt.processors.families import Family, family
from idlewatt.stream import metric_names as names

_LOSSES_OVER: Final = {"1m": 60_000, "5m": 300_000, "1h": HOUR_MS}
_HOUR: Final = "1h"
_YEAR_MS: Final = 8760 * HOUR_MS
# micro-units per millijoule to units per gigawatt-year: 10^9 W x 31,536,000 s x 10^3 mJ / 10^6
PER_GIGAWATT_YEAR: Final = 1e9 * 31_536_000 * 1e3 / 1e6
# micro-units per millisecond to units per hour
_PER_HOUR: Final = 3.6
# what a gigawatt costs to build, the mission's benchmark
BENCHMARK_CAPITAL: Final = 100e9


def rolling_families(state: EconomyState, book: Book, config: EconomyConfig) -> Iterator[Family]:
    """Families of rolling figures of one partition."""
    sums = _sums(state)
    lost, benchmark = [], []
    for window in _LOSSES_OVER:
        rate = _ratio(f"lost_micro_{window}", f"lost_ms_{window}") * _PER_HOUR
        lost.append(_figures(sums, rate, window=window, currency=state.currency))
        rate = _ratio(f"benchmark_micro_{window}", f"window_ms_{window}") * _PER_HOUR
        benchmark.append(_figures(sums, rate, window=window, currency=BENCHMARK_CURRENCY))
    yield family(names.LOST_REVENUE_PER_HOUR, pl.concat(lost))
    yield family(names.BENCHMARK_LOST_REVENUE_PER_HOUR, pl.concat(benchmark))
    # what is mostly dark tells nothing of cost or yield
    lit = pl.col("gpu_ms") - pl.col("dark_ms")
    hour = sums.filter((pl.col("gpu_ms") > 0) & (lit >= config.coverage_floor * pl.col("gpu_ms")))
    made = hour.filter(pl.col("output_tokens") >= config.min_tokens)
    yield family(names.COST_PER_MILLION_TOKENS, pl.concat(_costs(made, state.currency, book)))
    yield family(
        names.TOKENS_PER_CURRENCY_UNIT,
        _figures(
            made,
            _where(_is_known("energy", "capital"), pl.col("output_tokens") * MICRO / _cost()),
            window=_HOUR,
            origin=_origin("capital"),
            currency=state.currency,
        ),
    )
    # micrograms per token are grams per million tokens
    carbon = _where(_is_known("carbon"), _ratio("carbon_ug", "output_tokens"))
    yield family(names.CARBON_PER_MILLION_TOKENS, _figures(made, carbon, window=_HOUR))
    yield from _yields(hour.filter(pl.col("unpriced_tokens") == 0), state.currency)
    yield family(names.RECOVERABLE_GPUS, recoverable(state.packing, state.windows))


def _sums(state: EconomyState) -> pl.DataFrame:
    """Sums of the trailing hour by pool, and those that losses are told by over each window (`lost_micro_5m`)."""
    start, end = pl.col("window_start_ms"), pl.col("end_ms")
    over = [
        pl.when(start >= end - length_ms).then(amount).otherwise(0).alias(f"{amount}_{window}")
        for window, length_ms in _LOSSES_OVER.items()
        for amount in ("window_ms", "lost_micro", "lost_ms", "benchmark_micro")
    ]
    return at_once(
        state.rolling.lazy()
        .join(state.windows.lazy(), on=list(POOL))
        .filter(start >= end - HOUR_MS)
        .with_columns(over)
        .drop("window_start_ms", "end_ms")
        .group_by(*POOL)
        .agg(pl.all().sum())
        .sort(*POOL)
    )


def _costs(sums: pl.DataFrame, currency: str, book: Book) -> Iterator[pl.DataFrame]:
    """Micro-units per token are units per million tokens."""
    always: Mapping[str, str] = {"window": _HOUR, "currency": currency}
    origin = _origin("capital")
    for cost_basis in ("usage", "allocation"):
        labels = {**always, "cost_basis": cost_basis, "kind": "output"}
        energy = _where(_is_known("energy"), _cost("energy", cost_basis) / pl.col("output_tokens"))
        yield _figures(sums, energy, **labels, basis="energy", origin="book")
        all_in = _cost("energy", cost_basis) + _cost("capital", cost_basis)
        all_in = _where(_is_known("energy", "capital"), all_in / pl.col("output_tokens"))
        yield _figures(sums, all_in, **labels, basis="all_in", origin=origin)
    # in the cost of an input token
    weight, cached = book.cost.output_weight / MICRO, book.cost.cached_input_weight / MICRO
    borne = pl.col("output_tokens") * weight + pl.col("input_tokens") + pl.col("cached_input_tokens") * cached
    for kind, times in (("output_share", weight), ("input_share", 1.0)):
        share = _where(_is_known("energy", "capital"), _cost() * times / borne)
        labels = {**always, "basis": "all_in", "cost_basis": "allocation", "kind": kind}
        yield _figures(sums, share, **labels, origin=origin)


def _yields(sums: pl.DataFrame, currency: str) -> Iterator[Family]:
    """What watts bring; all tokens of `sums` have a price."""
    revenue = pl.col("revenue_micro")
    net = _where(_is_known("energy"), revenue - pl.col("energy_micro"))
    margin = _where(_is_known("capital"), (net - pl.col("capital_micro")) * _PER_HOUR / pl.col("window_ms"))
    yield family(
        names.MARGIN_PER_HOUR,
        _figures(sums, margin, window=_HOUR, origin=_origin("capital"), currency=currency),
    )
    per_gw = [
        _figures(
            sums,
            _where(known & (pl.col(energy) > 0), revenue / pl.col(energy) * PER_GIGAWATT_YEAR),
            window=_HOUR,
            scope=scope,
            origin=origin,
            currency=currency,
        )
        for scope, energy, known, origin in (
            ("it", "available_mj", pl.lit(True), pl.lit("book")),
            ("facility", "facility_mj", _is_known("facility"), _origin("facility")),
        )
    ]
    yield family(names.REVENUE_PER_GIGAWATT_YEAR, pl.concat(per_gw))
    net_per_gw = net / pl.col("available_mj") * PER_GIGAWATT_YEAR
    comparable = (net > 0) & (pl.col("available_mj") > 0) & pl.lit(currency == BENCHMARK_CURRENCY)
    # invested is units x ms
    own = pl.col("invested") / (net / MICRO) / _YEAR_MS
    bought = (net > 0) & (pl.col("invested") > 0) & _is_known("invested")
    payback = [
        _figures(sums, _where(comparable, BENCHMARK_CAPITAL / net_per_gw), window=_HOUR, capital="benchmark"),
        _figures(sums, _where(bought, own), window=_HOUR, capital="book"),
    ]
    yield family(names.PAYBACK_YEARS, pl.concat(payback))


def recoverable(packing: pl.DataFrame, ends: pl.DataFrame) -> pl.DataFrame:
    """site, pool, model_name, value: whole GPUs that held the model all the hour and that no window needed."""
    # an hour that does not begin with a minute has 59 whole ones
    is_whole = (pl.col("minutes") >= 59) & (pl.col("first_ms") < pl.col("end_ms") - HOUR_MS + 60_000)
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


def _figures(sums: pl.DataFrame, value: pl.Expr, **labels: pl.Expr | str) -> pl.DataFrame:
    """The figure of each pool, with these labels in the order of their names; null is absent."""
    columns = [
        (pl.lit(label) if isinstance(label, str) else label).alias(name)
        for name, label in sorted(labels.items())
    ]
    return sums.select_seq(*POOL, *columns, value.cast(pl.Float64).alias("value"))


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
