"""Cumulative readings to intervals between them: what a counter gained, and whether it was measured.

One timeline serves GPUs (energy) and engines (tokens). It moves from one window edge to the next:

    readings -> advance() -> intervals between consecutive readings -> split() -> pieces within windows

A reading counts once, in event-time order. At an edge each entity's first reading at or after it is taken
too (if it comes within the lookahead), so that the interval that spans the edge can be cut there; what is
left of that interval stays open for the next window. Windows are cut from whole intervals, always from the
same two readings, so sums do not depend on how many windows close at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import polars as pl

from idlewatt.processors.meter.rows import TIME_BITS, by_id, highest, where

# A counter that restarted this long before its first reading still brings its whole value: a model server
# answers only after its model is loaded, and counts from its start.
RESTART_GAP_MS: Final = 3_600_000
NEVER_MS: Final = -(1 << 62)
# the last reading that the step before took waits no more
_IS_LAST: Final = pl.col("eff_ms") == NEVER_MS


@dataclass(frozen=True, slots=True)
class Edges:
    """From the last closed edge to the one that closes now. All in Unix milliseconds; edges are multiples of the window."""

    previous_ms: int
    edge_ms: int
    window_ms: int
    # Readings further apart than this leave the time between them dark; what the counter gained still counts.
    hold_ms: int
    # An entity that was silent for so long begins anew.
    forget_ms: int


@dataclass(frozen=True, slots=True)
class Steady:
    """Where nobody asks what was gained from one reading to the next, only what was gained over the window."""

    # id, window_start_ms
    windows: pl.DataFrame
    # columns that say the same in all of the window's readings, or each reading counts
    gauges: Sequence[str]


@dataclass(frozen=True, slots=True)
class Advance:
    """What the step to the next edge took from the readings."""

    # one row per interval: id, t0_ms, start_ms, end_ms, inc_<counter>, measured, <carried>_0
    intervals: pl.DataFrame
    last: pl.DataFrame
    pending: pl.DataFrame
    # ids of entities that no step before had a reading of: nothing was booked for them yet, not even silence
    new: pl.Series
    dropped: dict[str, int]


def advance(
    last: pl.DataFrame,
    pending: pl.DataFrame,
    edges: Edges,
    counters: Sequence[str],
    carry: Sequence[str],
    ceiling: pl.Expr | None = None,
    steady: Steady | None = None,
) -> Advance:
    """Take the readings that the edge needs and pair them up.

    `last`: each entity's last taken reading. `pending`: readings with id, eff_ms (when they may be taken) and
    the columns of `last`. `carry`: columns whose value at an interval's start goes with it as <name>_0.
    `ceiling`: the most a counter can have gained over an interval, for resets of counters without an epoch.
    """
    dropped: dict[str, int] = {}
    within, later = _within_reach(pending, edges)
    rows = _without_bad(_in_order(last, within, dropped), edges, counters, dropped)
    if any(count for reason, count in dropped.items() if reason != "repeat"):
        # the first reading after the edge may be a bad one: then the next is needed
        within, later = _within_reach(pending, edges, first_only=False)
        rows = _without_bad(_in_order(last, within, dropped), edges, counters, dropped)
    same = pl.col("id") == pl.col("id").shift(1)
    some_late = (rows["eff_ms"] > rows["ts_ms"]).any()
    if some_late:
        # a reading may not be taken before an earlier one of its entity that still waits
        rows = rows.with_columns_seq(pl.col("eff_ms").cum_max().over("id"))
    elif steady is not None and edges.window_ms <= edges.hold_ms:
        rows = _without_between(rows, edges, counters, steady)
    reach = (pl.col("ts_ms").shift(1) < edges.edge_ms) & (pl.col("eff_ms") <= edges.edge_ms + edges.hold_ms)
    rows = rows.with_columns_seq(
        taken=_IS_LAST | (pl.col("eff_ms") <= edges.edge_ms) | (same & reach).fill_null(False)
    )
    if some_late:
        # late ones wait until the hold after the edge, so that all that came with them is there
        in_time = (pl.col("ts_ms") < edges.edge_ms) & (pl.col("eff_ms") <= edges.edge_ms + edges.hold_ms)
        rows = rows.with_columns_seq(taken=pl.col("taken") | in_time)
        # within reach of one that is not taken itself, an entity's late first reading, is not within reach
        rows = rows.with_columns_seq(pl.col("taken").cast(pl.Int8).cum_min().over("id").cast(pl.Boolean))
    taken = where(rows, rows["taken"])
    left = where(rows, ~rows["taken"]).select_seq(pending.columns)
    paired = taken.with_columns_seq(
        pl.col("ts_ms").shift(1).alias("t0_ms"),
        *(pl.col(name).shift(1).alias(f"{name}_0") for name in {*counters, *carry, "epoch_ms"}),
    ).filter(same & ~_IS_LAST)
    newest = taken.select_seq(last.columns).filter(_last_of_each(taken["id"]))
    return Advance(
        intervals=_gains(paired, edges, counters, ceiling),
        last=newest,
        # those within reach first: a repeat that came late must stay behind the reading it repeats
        pending=pl.concat([left, later]) if left.height else later,
        new=_without_last(newest, last),
        dropped={reason: count for reason, count in dropped.items() if count},
    )


def _within_reach(
    pending: pl.DataFrame, edges: Edges, *, first_only: bool = True
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """What the step can take, and what needs no sorting yet: all but each entity's first reading after the edge."""
    after = pending["ts_ms"] > edges.edge_ms
    near = after & (pending["eff_ms"] <= edges.edge_ms + edges.hold_ms)
    if not first_only:
        within = ~after | near
        return where(pending, within), where(pending, ~within)
    first = pending.select_seq("id", "ts_ms").filter(near).group_by("id").agg(pl.col("ts_ms").min())
    first_ms = by_id(pending["id"], first["id"], first["ts_ms"], default=NEVER_MS)
    within = ~after | (near & (pending["ts_ms"] == first_ms))
    return where(pending, within), where(pending, ~within)


def _in_order(last: pl.DataFrame, pending: pl.DataFrame, dropped: dict[str, int]) -> pl.DataFrame:
    """Last and pending readings by entity and time, each moment once, nothing older than the last."""
    last_ms = by_id(pending["id"], last["id"], last["ts_ms"], default=NEVER_MS)
    fresh = where(pending, pending["ts_ms"] > last_ms)
    anchors = last.with_columns_seq(eff_ms=pl.lit(NEVER_MS), src=pl.lit(None, pl.Int64))
    rows = _by_entity_and_time(pl.concat([anchors.select_seq(fresh.columns), fresh], rechunk=True))
    repeat = (pl.col("id") == pl.col("id").shift(1)) & (pl.col("ts_ms") == pl.col("ts_ms").shift(1))
    rows = where(rows, ~rows.select_seq(repeat.fill_null(False)).to_series())
    dropped["repeat"] = last.height + pending.height - rows.height
    return rows


def _by_entity_and_time(rows: pl.DataFrame) -> pl.DataFrame:
    """Sort; of equals the first comes first.

    One integer sorts several times faster than two columns, and with the row's place in it, nothing need move along.
    """
    passed_ms = rows["ts_ms"] - (rows["ts_ms"].min() or 0)
    most_ms = passed_ms.max()
    place_bits = rows.height.bit_length()
    if isinstance(most_ms, int) and (highest(rows["id"]) + 1) * (most_ms + 1) << place_bits < 1 << 63:
        order = (rows["id"] * (most_ms + 1) + passed_ms) * (1 << place_bits)
        order += pl.int_range(rows.height, eager=True)
        return rows[order.sort() & ((1 << place_bits) - 1)]
    return rows.sort(rows["id"] * (1 << TIME_BITS) + passed_ms, maintain_order=True)


def _without_last(newest: pl.DataFrame, last: pl.DataFrame) -> pl.Series:
    """Ids of `newest`, which has those of `last` and maybe more."""
    if newest.height == last.height:
        return newest["id"].clear()
    is_new = by_id(newest["id"], last["id"], False, pl.Boolean, default=True)
    return newest["id"].filter(is_new)


def _last_of_each(ids: pl.Series) -> pl.Series:
    """Where the last of several equal ids in a row stands."""
    return (ids != ids.shift(-1)).fill_null(True)


def _without_bad(
    rows: pl.DataFrame, edges: Edges, counters: Sequence[str], dropped: dict[str, int]
) -> pl.DataFrame:
    """Drop readings of an epoch older than one seen, without a counter they had, or falling within a known epoch."""
    same = pl.col("id") == pl.col("id").shift(1)
    suspects = rows.select_seq(
        stale=(same & (pl.col("epoch_ms") < pl.col("epoch_ms").shift(1))).any(),
        falls=pl.any_horizontal(
            (
                same & (pl.col("epoch_ms") == pl.col("epoch_ms").shift(1)) & (pl.col(c) < pl.col(c).shift(1))
            ).any()
            for c in counters
        ),
        missing=pl.any_horizontal(
            (same & pl.col(c).is_null() & pl.col(c).shift(1).is_not_null()).any() for c in counters
        ),
    ).row(0)
    if not any(suspects):
        return rows
    forgotten = pl.col("ts_ms") - pl.col("ts_ms").shift(1) >= edges.forget_ms
    rows = rows.with_columns_seq(life=(~same | forgotten).fill_null(True).cum_sum())
    whole = rows.filter(
        pl.all_horizontal(
            pl.col(c).is_not_null() | ~pl.col(c).is_not_null().cum_max().over("life") for c in counters
        )
    )
    dropped["counter_missing"] = rows.height - whole.height
    kept = whole.filter(
        (pl.col("epoch_ms") >= pl.col("epoch_ms").forward_fill().cum_max().over("life")).fill_null(True)
    )
    dropped["stale_epoch"] = whole.height - kept.height
    rising = kept.filter(
        pl.col("epoch_ms").is_null()
        | pl.all_horizontal(
            (pl.col(c) >= pl.col(c).cum_max().over("life", "epoch_ms")).fill_null(True) for c in counters
        )
    )
    dropped["counter_decrease"] = kept.height - rising.height
    return rising.drop("life")


def _without_between(
    rows: pl.DataFrame, edges: Edges, counters: Sequence[str], steady: Steady
) -> pl.DataFrame:
    """Leave out readings that say no more than the ones before and after them in their window say together.

    Most readings do: nothing was reset, no gauge changed, and a window is not longer than the hold.
    """
    windows = (edges.edge_ms - edges.previous_ms) // edges.window_ms
    entities = 1 + highest(rows["id"])
    known = pl.col("id") < entities
    window = (pl.col("window_start_ms") - edges.previous_ms) // edges.window_ms
    places = steady.windows.filter(known & window.is_between(0, windows - 1)).select_seq(
        pl.col("id") * windows + window
    )
    window = (pl.col("ts_ms") - edges.previous_ms) // edges.window_ms
    joined_to_last = pl.all_horizontal(
        pl.col("id") == pl.col("id").shift(1),
        window == window.shift(1),
        *(pl.col(c).eq_missing(pl.col(c).shift(1)) for c in ("epoch_ms", *steady.gauges)),
        *(pl.col(c) >= pl.col(c).shift(1) for c in counters),
    ).fill_null(False)
    between = rows.select_seq(
        between=joined_to_last
        & joined_to_last.shift(-1, fill_value=False)
        & ~_IS_LAST
        & window.is_between(0, windows - 1),
        place=pl.col("id") * windows + window.clip(0, windows - 1),
    )
    is_steady = by_id(between["place"], places["id"], True, pl.Boolean, default=False)
    return rows.filter(~(between["between"] & is_steady))


def _gains(
    paired: pl.DataFrame, edges: Edges, counters: Sequence[str], ceiling: pl.Expr | None
) -> pl.DataFrame:
    """What each counter gained over each interval, and whether the interval was measured."""
    elapsed_ms = pl.col("ts_ms") - pl.col("t0_ms")
    restarted = (pl.col("epoch_ms") != pl.col("epoch_ms_0")).fill_null(False)
    forgotten = elapsed_ms >= edges.forget_ms
    start_known = ~forgotten & restarted & (pl.col("ts_ms") - pl.col("epoch_ms") <= RESTART_GAP_MS)
    # a counter without an epoch that fell was reset within the interval: its value is what it gained since
    fell = ~restarted & pl.any_horizontal((pl.col(c) < pl.col(f"{c}_0")).fill_null(False) for c in counters)
    believable = elapsed_ms <= edges.hold_ms
    if ceiling is not None:
        believable &= pl.all_horizontal((pl.col(c) <= ceiling).fill_null(True) for c in counters)
    counts_from_zero = start_known | (fell & believable)
    unknown = forgotten | (restarted & ~start_known) | (fell & ~believable)
    gained = paired.with_columns_seq(
        *(
            pl.when(unknown)
            .then(0)
            .when(counts_from_zero)
            .then(c)
            .otherwise(pl.col(c) - pl.col(f"{c}_0"))
            .alias(f"inc_{c}")
            for c in counters
        ),
        # clocks of a host and its process differ a little: what was gained takes at least a millisecond
        start_ms=pl.when(start_known)
        .then(pl.min_horizontal(pl.max_horizontal("t0_ms", "epoch_ms"), pl.col("ts_ms") - 1))
        .otherwise("t0_ms"),
        # nobody knew it to be there for longer
        end_ms=pl.min_horizontal("ts_ms", pl.col("t0_ms") + edges.forget_ms),
        known=~unknown,
    )
    return gained.with_columns_seq(
        measured=pl.col("known") & (pl.col("end_ms") - pl.col("start_ms") <= edges.hold_ms)
    )
