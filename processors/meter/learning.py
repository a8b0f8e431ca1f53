"""Minute by minute: what a pool's idle watts would have made, by what was known of its yields until then."""

import itertools
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
    known = Learned(state.histogram, pl.concat([state.samples, samples]), state.pairs, state.yields)
    learns_at = sorted({*_hours(known, edges), *_ends_of_minutes(known.samples, edges)})
    cuts = [edges.previous_ms, *(at for at in learns_at if at > edges.previous_ms), edges.edge_ms]
    rows = []
    for since_ms, until_ms in itertools.pairwise(cuts):
        started_ms = windows["window_start_ms"]
        part = started_ms < until_ms
        if since_ms > edges.previous_ms:
            part &= started_ms >= since_ms
        some = where(windows, part)
        known = _with_yields(known, some, since_ms, config, learns=since_ms in learns_at)
        rows.append(waterfall.power_rows(some, demand, known.yields, edges.window_ms))
    return pl.concat(rows), known


def _hours(known: Learned, edges: Edges) -> range:
    """Those that begin within the step, until everything is forgotten: it may be a step of years."""
    learned = pl.concat([known.histogram["hour"], known.samples["window_start_ms"] // HOUR_MS]).max()
    if not isinstance(learned, int):
        return range(0)
    until_ms = min(edges.edge_ms, (learned + TRAILING_HOURS + 1) * HOUR_MS)
    return range(-(-edges.previous_ms // HOUR_MS) * HOUR_MS, until_ms, HOUR_MS)


def _ends_of_minutes(samples: pl.DataFrame, edges: Edges) -> list[int]:
    """When there is something to learn within the step."""
    first_ms = -(-edges.previous_ms // MINUTE_MS) * MINUTE_MS
    ends_ms = (samples["window_start_ms"] // MINUTE_MS + 1) * MINUTE_MS
    return [ms for ms in ends_ms.clip(lower_bound=first_ms).unique().sort().to_list() if ms < edges.edge_ms]


def _with_yields(
    known: Learned, windows: pl.DataFrame, since_ms: int, config: MeterConfig, *, learns: bool
) -> Learned:
    """With the yields of the windows' pools, as they are known at `since_ms`."""
    histogram, samples = known.histogram, known.samples
    if learns:
        over = samples["window_start_ms"] < since_ms
        histogram = yardstick.learn(histogram, where(samples, over), config.min_tokens, since_ms)
        samples = where(samples, ~over)
    pairs = windows.select_seq(*yardstick.PAIR).unique().sort(*yardstick.PAIR)
    yields = known.yields
    if learns or not pairs.equals(known.pairs):
        yields = yardstick.yields(histogram, pairs, config)
    return Learned(histogram, samples, pairs, yields)
