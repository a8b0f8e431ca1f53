"""The meter's Prometheus families, from the committed states of its partitions."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import polars as pl

from idlewatt.processors.families import Family, family
from idlewatt.processors.meter.config import MeterConfig
from idlewatt.processors.meter.rolling import rolling
from idlewatt.processors.meter.state import MeterState
from idlewatt.processors.meter.tokens import TOKEN_KINDS
from idlewatt.stream import metric_names as names

_KINDS: Final = {kind: kind.removesuffix("_tokens") for kind in TOKEN_KINDS}
_POOL: Final = ("site", "pool")
_PARTS: Final = ("draw", "headroom")


def families(states: Sequence[MeterState], config: MeterConfig) -> list[Family]:
    """Everything design names for the meter. A pool lives in one partition, so no label set comes twice."""
    states = [state for state in states if state.edge_ms is not None]
    if not states:
        return []
    power = pl.concat([state.power_totals for state in states])
    tokens = pl.concat([state.token_totals for state in states])
    by_state = _sums(power, (*_POOL, "state"), "draw_mj", "headroom_mj", "shown_headroom_mj")
    latest = pl.concat([state.latest_power for state in states])
    # mJ / ms = W, and GPU ms / ms = GPUs
    means = latest.with_columns(pl.col("draw_mj", "headroom_mj", "gpu_ms") / pl.col("window_ms"))
    watts = _sums(means, (*_POOL, "state"), "draw_mj", "headroom_mj")
    lost = _sums(power, (*_POOL, "state", "demand"), *(f"lost_tokens_{part}" for part in _PARTS))
    ratios = pl.concat(
        [rolling(state.history, state.edge_ms, config) for state in states if state.edge_ms is not None]
    )
    return [
        family(names.TOKENS, _long(tokens, "kind", _KINDS)),
        family(names.ENERGY, _energy(by_state, config.pue)),
        family(names.HEADROOM, by_state.with_columns(value=pl.col("shown_headroom_mj") / 1000)),
        family(
            names.AVAILABLE,
            _sums(by_state, _POOL, "draw_mj", "headroom_mj").with_columns(
                value=(pl.col("draw_mj") + pl.col("headroom_mj")) / 1000
            ),
        ),
        family(
            names.GPU_SECONDS,
            _sums(power, (*_POOL, "state", "product"), "shown_gpu_ms").with_columns(
                value=pl.col("shown_gpu_ms") / 1000
            ),
        ),
        family(names.LOST_TOKENS, _long(lost, "part", {f"lost_tokens_{part}": part for part in _PARTS})),
        family(names.UNACCOUNTED, pl.concat([_unaccounted(state) for state in states])),
        family(names.POWER, _long(watts, "part", {f"{part}_mj": part for part in _PARTS})),
        family(
            names.GPUS,
            _sums(means, (*_POOL, "state", "product"), "gpu_ms").rename({"gpu_ms": "value"}),
        ),
        family(names.GPU_WASTED_WATTS, _offenders(states, config)),
        family(names.YARDSTICK, _yardsticks(states)),
        family(names.WINDOW_END, _window_ends(states)),
        family(names.TOKENS_PER_JOULE, _long(ratios, "kind", _KINDS)),
        family(names.COVERAGE, _long(ratios, "of", {f"coverage_{of}": of for of in ("watts", "tokens")})),
    ]


def _sums(frame: pl.DataFrame, by: Sequence[str], *columns: str) -> pl.DataFrame:
    """Sums by labels; a sum of which every part is null is null."""
    known = (pl.when(pl.col(c).count() > 0).then(pl.col(c).sum()).alias(c) for c in columns)
    return frame.group_by(*by).agg(*known).sort(*by)


def _long(frame: pl.DataFrame, label: str, columns: Mapping[str, str]) -> pl.DataFrame:
    """A column for each value of a label to a row for each."""
    return pl.concat(
        [
            frame.with_columns(pl.lit(value).alias(label), pl.col(column).cast(pl.Float64).alias("value"))
            for column, value in columns.items()
        ]
    )


def _energy(by_state: pl.DataFrame, pue: float | None) -> pl.DataFrame:
    it = by_state.with_columns(scope=pl.lit("it"), value=pl.col("draw_mj") / 1000)
    if pue is None:
        return it
    return pl.concat([it, it.with_columns(scope=pl.lit("facility"), value=pl.col("value") * pue)])


def _unaccounted(state: MeterState) -> pl.DataFrame:
    booked = state.power_totals.group_by(_POOL).agg(pl.col("draw_mj").sum())
    opened = state.open_gpus.select("id", left_mj=_gained("end_ms") - _gained(pl.lit(state.edge_ms)))
    gaps = state.gpu_gaps.select("id", left_mj=_gained("until_ms") - _gained("next_ms"))
    waiting = (
        pl.concat([opened, gaps])
        .join(state.gpu_index.select("id", *_POOL), on="id")
        .group_by(_POOL)
        .agg(pl.col("left_mj").sum())
    )
    books = state.measured_totals.join(booked, on=_POOL, how="left").join(waiting, on=_POOL, how="left")
    rest_mj = pl.col("measured_mj") - pl.col("draw_mj").fill_null(0) - pl.col("left_mj").fill_null(0)
    return books.select(*_POOL, value=rest_mj / 1000).sort(_POOL)


def _gained(moment: str | pl.Expr) -> pl.Expr:
    """What of an interval had been gained by the moment."""
    at = pl.col(moment) if isinstance(moment, str) else moment
    passed = pl.max_horizontal(at - pl.col("start_ms"), pl.lit(0)).cast(pl.Int128)
    length = (pl.col("end_ms") - pl.col("start_ms")).cast(pl.Int128)
    return (passed * pl.col("inc_energy_mj").cast(pl.Int128) // length).cast(pl.Int64)


def _offenders(states: Iterable[MeterState], config: MeterConfig) -> pl.DataFrame:
    worst = pl.concat([state.offenders for state in states])
    worst = worst.sort("wasted_mj", "gpu_uuid", descending=[True, False]).head(config.worst_offenders)
    return worst.with_columns(value=pl.col("wasted_mj") / config.window_ms)


def _yardsticks(states: Iterable[MeterState]) -> pl.DataFrame:
    return pl.concat([state.yields for state in states]).with_columns(value=pl.col("yield_utpj") / 1_000_000)


def _window_ends(states: Iterable[MeterState]) -> pl.DataFrame:
    return pl.concat(
        [
            state.history.select(_POOL).unique().sort(_POOL).with_columns(value=pl.lit(state.edge_ms) / 1000)
            for state in states
        ]
    )
