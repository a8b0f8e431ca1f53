"""The meter's Prometheus families, from the committed states of its partitions."""

from collections.abc import Iterable, Sequence
from typing import Final

import polars as pl

from idlewatt.processors.amounts import SUM
from idlewatt.processors.at_once import at_once
from idlewatt.processors.families import KINDS, Family, family, in_units, long
from idlewatt.processors.meter.config import MeterConfig
from idlewatt.processors.meter.cutting import product_bits, share
from idlewatt.processors.meter.rolling import LONGEST, rolling
from idlewatt.processors.meter.rows import with_names
from idlewatt.processors.meter.state import MeterState
from idlewatt.processors.meter.totals import known_sum
from idlewatt.stream import metric_names as names
from idlewatt.stream.records import POOL

_PARTS: Final = ("draw", "headroom")


def families(states: Sequence[MeterState], config: MeterConfig) -> list[Family]:
    """Everything design names for the meter. A pool lives in one partition, so no label set comes twice."""
    states = [state for state in states if state.edge_ms is not None]
    if not states:
        return []
    power = pl.concat([state.power_totals for state in states])
    tokens = pl.concat([state.token_totals for state in states])
    available = pl.concat([state.available_totals for state in states])
    by_state = _sums(power, (*POOL, "state"), "draw_mj", "facility_mj", "shown_headroom_mj")
    latest = pl.concat([state.latest_power for state in states])
    # mJ / ms = W, and GPU ms / ms = GPUs
    means = latest.with_columns_seq(pl.col("draw_mj", "headroom_mj", "gpu_ms") / pl.col("window_ms"))
    watts = _sums(means, (*POOL, "state"), "draw_mj", "headroom_mj")
    lost = _sums(power, (*POOL, "state", "demand"), *(f"lost_tokens_{part}" for part in _PARTS))
    edges = [(state, state.edge_ms) for state in states if state.edge_ms is not None]
    figures = [(rolling(state.history, edge_ms, config), edge_ms) for state, edge_ms in edges]
    ratios = pl.concat([found for found, _ in figures])
    return [
        family(names.TOKENS, long(tokens, names.TOKENS.labels[:-1], "kind", KINDS)),
        family(names.ENERGY, _energy(by_state)),
        family(names.HEADROOM, by_state.with_columns(value=in_units(pl.col("shown_headroom_mj"), 1000))),
        family(
            names.AVAILABLE,
            available.with_columns(value=in_units(pl.col("shown_available_mj"), 1000)),
        ),
        family(
            names.GPU_SECONDS,
            _sums(power, (*POOL, "state", "product"), "shown_gpu_ms").with_columns(
                value=in_units(pl.col("shown_gpu_ms"), 1000)
            ),
        ),
        family(
            names.LOST_TOKENS,
            long(lost, (*POOL, "state", "demand"), "part", {f"lost_tokens_{part}": part for part in _PARTS}),
        ),
        family(names.UNACCOUNTED, pl.concat([_unaccounted(state) for state in states])),
        family(names.POWER, long(watts, (*POOL, "state"), "part", {f"{part}_mj": part for part in _PARTS})),
        family(
            names.GPUS,
            _sums(means, (*POOL, "state", "product"), "gpu_ms").rename({"gpu_ms": "value"}),
        ),
        # the page shows the worst of all partitions
        family(
            names.GPU_WASTED_WATTS,
            pl.concat([state.offenders for state in states]).with_columns(
                value=pl.col("wasted_mj") / config.window_ms
            ),
        ),
        family(names.YARDSTICK, _yardsticks(states)),
        family(names.WINDOW_END, _window_ends(figures)),
        family(names.TOKENS_PER_JOULE, long(ratios, (*POOL, "window"), "kind", KINDS)),
        family(
            names.COVERAGE,
            long(ratios, (*POOL, "window"), "of", {f"coverage_{of}": of for of in ("watts", "tokens")}),
        ),
    ]


def _sums(frame: pl.DataFrame, by: Sequence[str], *columns: str) -> pl.DataFrame:
    """Sums by labels; a sum of which every part is null is null."""
    return at_once(frame.lazy().group_by(*by, maintain_order=True).agg(map(known_sum, columns)))


def _energy(by_state: pl.DataFrame) -> pl.DataFrame:
    scopes = {"it": "draw_mj", "facility": "facility_mj"}
    return pl.concat(
        by_state.filter(pl.col(column).is_not_null()).with_columns(
            scope=pl.lit(scope), value=in_units(pl.col(column), 1000)
        )
        for scope, column in scopes.items()
    )


def _unaccounted(state: MeterState) -> pl.DataFrame:
    """Of pools in which something was measured: that, less what is booked, less what still waits to be."""
    inc_mj = pl.col("inc_energy_mj")
    bits = product_bits(state.open_gpus, ["energy_mj"])
    opened = state.open_gpus.select("id", rest_mj=_gained(pl.lit(state.edge_ms), bits) - inc_mj)
    gaps = state.gpu_gaps.select("id", rest_mj=_gained("next_ms") - _gained("until_ms"))
    waiting = with_names(pl.concat([opened, gaps]), state.gpu_index, *POOL)
    parts = [
        state.measured_totals.lazy().select(*POOL, rest_mj="measured_mj", measured=True),
        # polars has no minus for 128 bits
        state.power_totals.lazy().select(*POOL, rest_mj=pl.lit(0, SUM) - pl.col("draw_mj"), measured=False),
        waiting.lazy().select(*POOL, pl.col("rest_mj").cast(SUM), measured=False),
    ]
    sums = (
        pl.concat(parts)
        .group_by(POOL, maintain_order=True)
        .agg(pl.col("rest_mj").sum(), pl.col("measured").any())
    )
    return at_once(sums.filter("measured").select(*POOL, value=pl.col("rest_mj") / 1000))


def _gained(moment: str | pl.Expr, bits: type[pl.Int64] | type[pl.Int128] = pl.Int128) -> pl.Expr:
    """What of an interval had been gained by the moment, which may be before it."""
    return share("inc_energy_mj", pl.max_horizontal(moment, "start_ms"), bits).cast(pl.Int64)


def _yardsticks(states: Iterable[MeterState]) -> pl.DataFrame:
    return pl.concat([state.yields for state in states]).with_columns(value=pl.col("yield_utpj") / 1_000_000)


def _window_ends(figures: Iterable[tuple[pl.DataFrame, int]]) -> pl.DataFrame:
    """Of rolling figures and the edge that they are of."""
    pools = [
        found.filter(pl.col("window") == LONGEST).with_columns(value=pl.lit(edge_ms) / 1000)
        for found, edge_ms in figures
    ]
    return pl.concat(pools)
