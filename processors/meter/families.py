"""The meter's Prometheus families, from the committed states of its partitions."""

from collections.abc import Iterable, Iterator, Sequence

import polars as pl
from prometheus_client import Metric

from idlewatt.processors.families import family
from idlewatt.processors.meter.config import MeterConfig
from idlewatt.processors.meter.rolling import rolling
from idlewatt.processors.meter.state import MeterState
from idlewatt.processors.meter.tokens import TOKEN_KINDS
from idlewatt.stream import metric_names as names

_KINDS = {"output_tokens": "output", "input_tokens": "input", "cached_input_tokens": "cached_input"}
_POOL = ("site", "pool")
Samples = Iterator[tuple[tuple[str, ...], float]]


def families(states: Sequence[MeterState], config: MeterConfig) -> list[Metric]:
    """Everything design names for the meter. A pool lives in one partition, so no label set comes twice."""
    states = [state for state in states if state.edge_ms is not None]
    if not states:
        return []
    power = pl.concat([state.power_totals for state in states])
    latest = pl.concat([state.latest_power for state in states])
    return [
        family(names.TOKENS, _tokens(pl.concat([state.token_totals for state in states]))),
        family(names.ENERGY, _energy(power, config.pue)),
        family(names.HEADROOM, _sums(power, (*_POOL, "state"), "shown_headroom_mj", 1000)),
        family(
            names.AVAILABLE,
            _sums(power.with_columns(a=pl.col("draw_mj") + pl.col("headroom_mj")), _POOL, "a", 1000),
        ),
        family(names.GPU_SECONDS, _sums(power, (*_POOL, "state", "product"), "shown_gpu_ms", 1000)),
        family(names.LOST_TOKENS, _lost_tokens(power)),
        family(names.UNACCOUNTED, _unaccounted(states)),
        family(names.POWER, _power(latest)),
        family(names.GPUS, _sums(_mean(latest, "gpu_ms"), (*_POOL, "state", "product"), "mean", 1)),
        family(names.GPU_WASTED_WATTS, _offenders(states, config)),
        family(names.YARDSTICK, _yardsticks(states)),
        family(names.WINDOW_END, _window_ends(states)),
        *_rolling(states, config),
    ]


def _sums(frame: pl.DataFrame, labels: Sequence[str], value: str, divisor: int) -> Samples:
    rows = frame.group_by(*labels).agg(pl.col(value).sum()).sort(*labels)
    for *values, amount in rows.iter_rows():
        yield tuple(values), amount / divisor


def _tokens(totals: pl.DataFrame) -> Samples:
    for site, pool, model, *counts in totals.select(*_POOL, "model_name", *TOKEN_KINDS).iter_rows():
        for kind, count in zip(_KINDS.values(), counts, strict=True):
            yield (site, pool, model, kind), count


def _energy(power: pl.DataFrame, pue: float | None) -> Samples:
    for labels, joules in _sums(power, (*_POOL, "state"), "draw_mj", 1000):
        yield (*labels, "it"), joules
        if pue is not None:
            yield (*labels, "facility"), joules * pue


def _lost_tokens(power: pl.DataFrame) -> Samples:
    for part in ("draw", "headroom"):
        known = power.filter(pl.col(f"lost_tokens_{part}").is_not_null())
        for (site, pool, state, demand), lost in _sums(
            known, (*_POOL, "state", "demand"), f"lost_tokens_{part}", 1
        ):
            yield (site, pool, state, part, demand), lost


def _unaccounted(states: Iterable[MeterState]) -> Samples:
    for state in states:
        booked = state.power_totals.group_by(_POOL).agg(pl.col("draw_mj").sum())
        waiting = state.open_gpus.with_columns(left_mj=_not_yet_split(state.edge_ms))
        waiting = (
            waiting.join(state.gpu_index.select("id", *_POOL), on="id")
            .group_by(_POOL)
            .agg(pl.col("left_mj").sum())
        )
        books = state.measured_totals.join(booked, on=_POOL, how="left").join(waiting, on=_POOL, how="left")
        rest = pl.col("measured_mj") - pl.col("draw_mj").fill_null(0) - pl.col("left_mj").fill_null(0)
        for site, pool, rest_mj in books.select(*_POOL, rest).sort(_POOL).iter_rows():
            yield (site, pool), rest_mj / 1000


def _not_yet_split(edge_ms: int | None) -> pl.Expr:
    """What of an open interval lies past the edge."""
    passed = pl.max_horizontal(pl.lit(edge_ms, pl.Int64) - pl.col("start_ms"), pl.lit(0)).cast(pl.Int128)
    taken = (
        passed
        * pl.col("inc_energy_mj").cast(pl.Int128)
        // (pl.col("end_ms") - pl.col("start_ms")).cast(pl.Int128)
    )
    return pl.col("inc_energy_mj") - taken.cast(pl.Int64)


def _mean(latest: pl.DataFrame, column: str) -> pl.DataFrame:
    return latest.with_columns(mean=pl.col(column) / pl.col("window_ms"))


def _power(latest: pl.DataFrame) -> Samples:
    for part in ("draw", "headroom"):
        # mJ / ms = W
        for (site, pool, state), watts in _sums(_mean(latest, f"{part}_mj"), (*_POOL, "state"), "mean", 1):
            yield (site, pool, state, part), watts


def _offenders(states: Iterable[MeterState], config: MeterConfig) -> Samples:
    worst = pl.concat([state.offenders for state in states])
    worst = worst.sort("wasted_mj", "gpu_uuid", descending=[True, False]).head(config.worst_offenders)
    columns = (*_POOL, "node", "gpu_uuid", "product", "state")
    for *labels, wasted_mj in worst.select(*columns, "wasted_mj").iter_rows():
        yield tuple(labels), wasted_mj / config.window_ms


def _yardsticks(states: Iterable[MeterState]) -> Samples:
    for state in states:
        for *labels, origin, utpj in state.yields.select(
            *_POOL, "product", "model_name", "origin", "yield_utpj"
        ).iter_rows():
            yield (*labels, origin), utpj / 1_000_000


def _window_ends(states: Iterable[MeterState]) -> Samples:
    for state in states:
        assert state.edge_ms is not None
        for labels in state.history.select(_POOL).unique().sort(_POOL).iter_rows():
            yield labels, state.edge_ms / 1000


def _rolling(states: Iterable[MeterState], config: MeterConfig) -> list[Metric]:
    rows = pl.concat(
        [rolling(state.history, state.edge_ms, config) for state in states if state.edge_ms is not None]
    )
    ratios: list[tuple[tuple[str, ...], float]] = []
    coverage: list[tuple[tuple[str, ...], float]] = []
    for row in rows.iter_rows(named=True):
        where = (row["site"], row["pool"], row["window"])
        ratios += [
            ((*where, kind), row[column]) for column, kind in _KINDS.items() if row[column] is not None
        ]
        coverage += [
            ((*where, of), row[f"coverage_{of}"])
            for of in ("watts", "tokens")
            if row[f"coverage_{of}"] is not None
        ]
    return [family(names.TOKENS_PER_JOULE, ratios), family(names.COVERAGE, coverage)]
