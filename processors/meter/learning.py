"""Minute by minute: what a pool's idle watts would have made, by what was known of its yields until then."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from idlewatt.processors.meter import waterfall, yardstick
from idlewatt.processors.meter.config import MeterConfig
from idlewatt.processors.meter.rows import where
from idlewatt.processors.meter.state import MeterState
from idlewatt.processors.meter.timeline import Edges
from idlewatt.processors.meter.yardstick import TRAILING_HOURS
from idlewatt.stream.clock import HOUR_MS, MINUTE_MS


@dataclass(frozen=True, slots=True)
class Learned:
    """What a step has learned of yields; see MeterState."""

    histogram: pl.DataFrame
    samples: pl.DataFrame
    pairs: pl.DataFrame
    yields: pl.DataFrame


def power_rows(
    state: MeterState,
    windows: pl.DataFrame,
    demand: pl.DataFrame,
    samples: pl.DataFrame,
    edges: Edges,
    config: MeterConfig,
) -> tuple[pl.DataFrame, Learned]:
    """The ledger rows of what pool_windows() gave, and what is known then.

    `samples`: yields of the step's windows. They are learned when their minute is over, and the oldest hour is forgotten
    when one begins, so that the yardstick of a window depends neither on how many close at once nor on other pools.
    Rows of windows that were closed before are held against what was known when the step began.
    """
    samples = _with_learned_ms(pl.concat([state.samples, samples]), edges)
    is_learned = samples["learned_ms"] < edges.edge_ms
    learns_at = {*_hours(state.histogram, samples, edges), *samples["learned_ms"].filter(is_learned).unique()}
    moments = sorted({edges.previous_ms, *learns_at})
    known_ms = _last_until(windows["window_start_ms"], moments).alias("known_ms")
    windows = windows.with_columns_seq(known_ms)
    pairs = windows.select_seq("known_ms", *yardstick.PAIR).unique().sort("known_ms", *yardstick.PAIR)
    in_the_end = pl.col("known_ms") == moments[-1]
    now = pairs.filter(in_the_end).drop("known_ms")
    if learns_at or not now.equals(state.pairs):
        new = yardstick.counted(where(samples, is_learned), config.min_tokens)
        histogram, yields = _learned(state.histogram, new, pairs, moments, config)
    else:
        histogram, yields = state.histogram, state.yields.with_columns_seq(known_ms=pl.lit(moments[-1]))
    windows = windows.join(yields, on=["known_ms", *yardstick.PAIR], how="left")
    return waterfall.power_rows(windows, demand, edges.window_ms), Learned(
        histogram,
        where(samples, ~is_learned).drop("learned_ms"),
        now,
        yields.filter(in_the_end).drop("known_ms"),
    )


def _learned(
    histogram: pl.DataFrame,
    new: pl.DataFrame,
    pairs: pl.DataFrame,
    moments: Sequence[int],
    config: MeterConfig,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The histogram after all moments, and the yields of `pairs`; hour by hour, as within one nothing is forgotten."""
    yields = [yardstick.NO_YIELDS]
    for _, hour in itertools.groupby(moments, lambda ms: ms // HOUR_MS):
        first_ms, *later = hour
        until_first = new["learned_ms"] <= first_ms
        histogram = yardstick.learn(histogram, where(new, until_first), first_ms)
        new = where(new, ~until_first)
        asked = where(pairs, pairs["known_ms"].is_in([first_ms, *later]))
        if asked.height:
            yields.append(yardstick.yields(histogram, new, asked, config))
    if new.height:
        histogram = yardstick.learn(histogram, new, moments[-1])
    return histogram, pl.concat(yields)


def _with_learned_ms(samples: pl.DataFrame, edges: Edges) -> pl.DataFrame:
    """Add learned_ms: the end of their minute, or the begin of the first that ends within the step."""
    first_ms = -(-edges.previous_ms // MINUTE_MS) * MINUTE_MS
    end_ms = (samples["window_start_ms"] // MINUTE_MS + 1) * MINUTE_MS
    return samples.with_columns_seq(end_ms.clip(lower_bound=first_ms).alias("learned_ms"))


def _hours(histogram: pl.DataFrame, samples: pl.DataFrame, edges: Edges) -> range:
    """Those that begin within the step, until everything is forgotten: it may be a step of years."""
    learned = pl.concat([histogram["hour"], samples["window_start_ms"] // HOUR_MS]).max()
    if not isinstance(learned, int):
        return range(0)
    until_ms = min(edges.edge_ms, (learned + TRAILING_HOURS + 1) * HOUR_MS)
    return range(-(-edges.previous_ms // HOUR_MS) * HOUR_MS, until_ms, HOUR_MS)


def _last_until(times_ms: pl.Series, moments: Sequence[int]) -> pl.Series:
    """Of each time the last of the moments until then; of times before them the first one."""
    starts = pl.Series(moments, dtype=pl.Int64)
    place = starts.search_sorted(times_ms, side="right").cast(pl.Int64) - 1
    return starts.gather(place.clip(lower_bound=0))
