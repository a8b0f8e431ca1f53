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

from idlewatt.processors.meter.going_on import without_bad
from idlewatt.processors.meter.rows import TIME_BITS, among, at, by_id, highest, where
from idlewatt.stream.records import RESTART_GAP_MS

NEVER_MS: Final = -(1 << 62)
# When an entity is forgotten, its last reading may stand in a message that is read again after a restart, because others
# of that message wait: then it has to be known as a repeat. `src`: the message's offset.
GONE_COLUMNS: Final = {"id": pl.Int64, "ts_ms": pl.Int64, "src": pl.Int64}
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
class Bounds:
    """The most that a counter can have gained over an interval from t0_ms to ts_ms."""

    # per second: what is more was not gained, and this reading or the one before is false; None: no gain is too large
    per_s: int | None
    # for resets that no epoch tells of
    after_reset: pl.Expr


@dataclass(frozen=True, slots=True)
class Steady:
    """Where nobody asks what was gained from one reading to the next, only what was gained over the window."""

    # id, window_start_ms; None: everywhere
    windows: pl.DataFrame | None
    # what says the same in all of the window's readings, or each reading counts
    gauges: Sequence[pl.Expr]


@dataclass(frozen=True, slots=True)
class Advance:
    """What the step to the next edge took from the readings."""

    # one row per interval: id, t0_ms, start_ms, end_ms, inc_<counter>, measured, <carried>_0
    intervals: pl.DataFrame
    last: pl.DataFrame
    pending: pl.DataFrame
    # ids of entities that no step before had a reading of: nothing was booked for them yet, not even silence
    new: pl.Series
    # GONE_COLUMNS of readings that were taken, and whose entities are forgotten by the edge
    gone: pl.DataFrame
    dropped: dict[str, int]


def advance(
    last: pl.DataFrame,
    pending: pl.DataFrame,
    edges: Edges,
    counters: Sequence[str],
    carry: Sequence[str],
    gone: pl.DataFrame,
    bounds: Bounds,
    steady: Steady | None = None,
) -> Advance:
    """Take the readings that the edge needs and pair them up.

    `last`: each entity's last taken reading. `pending`: readings with id, eff_ms (when they may be taken) and
    the columns of `last`. `gone`: GONE_COLUMNS of entities that are forgotten. `carry`: columns whose value at an
    interval's start goes with it as <name>_0.
    """
    dropped: dict[str, int] = {}
    anchors = last.with_columns_seq(eff_ms=pl.lit(NEVER_MS), src=pl.lit(None, pl.Int64))
    # what is gathered from a column of a few pieces takes three times as long
    known = pl.concat([anchors.select_seq(pending.columns), pending], rechunk=True)
    gauges = steady.gauges if steady is not None else ()
    shown = (name for gauge in gauges for name in gauge.meta.root_names())
    judged_by = dict.fromkeys(("id", "ts_ms", "epoch_ms", *counters, *shown))
    for first_only in (True, False):
        within = _within_reach(known, edges, first_only)
        ordered = _in_order(known.select_seq(*judged_by), within, last, gone, dropped)
        ordered = without_bad(ordered, counters, edges.forget_ms, dropped)
        # the first reading after the edge may be a bad one: then the next is needed
        if not any(count for reason, count in dropped.items() if reason != "repeat"):
            break
    some_late = (within & (known["eff_ms"] > known["ts_ms"])).any()
    if not some_late and steady is not None and edges.window_ms <= min(edges.hold_ms, edges.forget_ms):
        ordered = _without_between(ordered, edges, counters, bounds, steady)
    rest = [name for name in pending.columns if name not in judged_by and name != "src"]
    rows = ordered.hstack(at(known.select_seq(rest), ordered["place"]))
    if some_late:
        # a reading may not be taken before an earlier one of its entity that still waits
        rows = rows.with_columns_seq(pl.col("eff_ms").cum_max().over("id"))
    same = pl.col("id") == pl.col("id").shift(1)
    reach = (pl.col("ts_ms").shift(1) < edges.edge_ms) & (pl.col("eff_ms") <= edges.edge_ms + edges.hold_ms)
    rows = rows.with_columns_seq(
        taken=_IS_LAST | (pl.col("eff_ms") <= edges.edge_ms) | (same & reach).fill_null(False)
    )
    if some_late:
        # late ones wait until the hold after the edge, so that all that came with them is there
        in_time = (pl.col("ts_ms") < edges.edge_ms) & (pl.col("eff_ms") <= edges.edge_ms + edges.hold_ms)
        rows = rows.with_columns_seq(taken=pl.col("taken") | in_time)
        # what comes after a reading of its entity that is not taken yet, such as a late first one, is not taken either
        rows = rows.with_columns_seq(pl.col("taken").cast(pl.Int8).cum_min().over("id").cast(pl.Boolean))
    taken = where(rows, rows["taken"])
    left = where(rows, ~rows["taken"])
    left = at(known, left["place"]).with_columns_seq(left["eff_ms"])
    later = where(known, ~within)
    paired = taken.with_columns_seq(
        pl.col("ts_ms").shift(1).alias("t0_ms"),
        *(pl.col(name).shift(1).alias(f"{name}_0") for name in {*counters, *carry, "epoch_ms"}),
    ).filter(same & ~_IS_LAST)
    is_newest = _last_of_each(taken["id"])
    newest = taken.select_seq(last.columns).filter(is_newest)
    is_old = taken["ts_ms"] <= edges.edge_ms - edges.forget_ms
    old = at(known.select_seq(*GONE_COLUMNS), taken["place"].filter(is_newest & is_old))
    return Advance(
        intervals=gains(paired, edges.hold_ms, edges.forget_ms, counters, bounds),
        last=newest,
        # those within reach first: a repeat that came late must stay behind the reading it repeats
        pending=pl.concat([left, later]) if left.height else later,
        new=_without_last(newest, last),
        gone=old.drop_nulls("src"),
        dropped={reason: count for reason, count in dropped.items() if count},
    )


def first_readings(step: Advance) -> pl.DataFrame:
    """(id, first_ms) of the entities that are new."""
    taken = [step.intervals.select_seq("id", first_ms="t0_ms"), step.last.select_seq("id", first_ms="ts_ms")]
    if step.new.is_empty():
        return taken[0].clear()
    new = [where(rows, rows["id"].is_in(step.new.implode())) for rows in taken]
    return pl.concat(new).group_by("id").agg(pl.col("first_ms").min())


def known_since(step: Advance, forget_ms: int) -> pl.DataFrame:
    """(id, first_ms) of the entities that are new, or were forgotten within the step and came back."""
    back = _back(step, forget_ms).select_seq("id", first_ms="ts_ms")
    return pl.concat([first_readings(step), back]).group_by("id").agg(pl.col("first_ms").max())


def last_readings(step: Advance, forget_ms: int) -> pl.DataFrame:
    """(id, last_ms, back_ms): the last reading of each, and those after which it was forgotten until it came back."""
    return pl.concat(
        [
            step.last.select_seq("id", last_ms="ts_ms", back_ms=pl.lit(None, pl.Int64)),
            _back(step, forget_ms).select_seq("id", last_ms="t0_ms", back_ms="ts_ms"),
        ]
    )


def _back(step: Advance, forget_ms: int) -> pl.DataFrame:
    """Intervals of those that were forgotten and came back within the step."""
    return where(step.intervals, step.intervals["ts_ms"] - step.intervals["t0_ms"] >= forget_ms)


def _within_reach(known: pl.DataFrame, edges: Edges, first_only: bool) -> pl.Series:
    """Whether the step can take a reading, or took it before.

    `first_only`: what lies behind an entity's first reading after the edge needs no sorting yet.
    """
    ids, ts_ms, eff_ms = known["id"], known["ts_ms"], known["eff_ms"]
    due = (ts_ms <= edges.edge_ms) | (eff_ms == NEVER_MS)
    near = ~due & (eff_ms <= edges.edge_ms + edges.hold_ms)
    if not first_only:
        return due | near
    # nearly every entity has its first within the usual time from reading to reading and a little
    usual_ms = edges.hold_ms * (highest(ids) + 1) // max(near.sum(), 1)
    soon = near & (ts_ms <= edges.edge_ms + usual_ms * 5 // 4)
    behind = (near & ~soon).arg_true()
    has_soon = among(ids[behind], ids.filter(soon))
    places = pl.concat([soon.arg_true(), behind.filter(~has_soon)])
    readings = at(known.select_seq("id", "ts_ms"), places)
    first = readings.group_by("id").agg(pl.col("ts_ms").min())
    is_first = readings["ts_ms"] == by_id(readings["id"], first["id"], first["ts_ms"])
    return due.scatter(places.filter(is_first), True)


def _in_order(
    known: pl.DataFrame, within: pl.Series, last: pl.DataFrame, gone: pl.DataFrame, dropped: dict[str, int]
) -> pl.DataFrame:
    """What is `within`, by entity and time, each moment once, nothing older than the last or gone; adds its `place`.

    `known` begins with `last`.
    """
    place, ids, ts_ms = within.arg_true(), known["id"].filter(within), known["ts_ms"].filter(within)
    count = place.len()
    taken = pl.concat([rows.select_seq("id", "ts_ms") for rows in (gone, last)]) if gone.height else last
    fresh = ts_ms > by_id(ids, taken["id"], taken["ts_ms"], default=NEVER_MS)
    fresh = fresh.scatter(pl.int_range(last.height, eager=True), True)
    if not fresh.all():
        place, ids, ts_ms = place.filter(fresh), ids.filter(fresh), ts_ms.filter(fresh)
    place = place[_by_entity_and_time(ids, ts_ms)]
    rows = at(known, place).hstack([place.alias("place")])
    repeat = (pl.col("id") == pl.col("id").shift(1)) & (pl.col("ts_ms") == pl.col("ts_ms").shift(1))
    rows = where(rows, ~rows.select_seq(repeat.fill_null(False)).to_series())
    dropped["repeat"] = count - rows.height
    return rows


def _by_entity_and_time(ids: pl.Series, ts_ms: pl.Series) -> pl.Series:
    """Where the first in order stands, the second and so on; of equals the first comes first.

    Rows of one entity nearly always stand in the order of their time: to gather those of each takes a third of the time of
    sorting them all.
    """
    by_entity = ids.to_frame("id").with_row_index("place").group_by("id").agg("place").sort("id")
    places = by_entity["place"].explode()
    there, then_ms = ids[places], ts_ms[places]
    if ((then_ms >= then_ms.shift(1)) | (there != there.shift(1))).all():
        return places
    # one integer sorts several times faster than two columns
    key = (ids * (1 << TIME_BITS) + (ts_ms - (ts_ms.min() or 0))).alias("key")
    return key.to_frame().with_row_index("place").sort("key", maintain_order=True)["place"]


def _without_last(newest: pl.DataFrame, last: pl.DataFrame) -> pl.Series:
    """Ids of `newest`, which has those of `last` and maybe more."""
    if newest.height == last.height:
        return newest["id"].clear()
    is_new = by_id(newest["id"], last["id"], False, pl.Boolean, default=True)
    return newest["id"].filter(is_new)


def _last_of_each(ids: pl.Series) -> pl.Series:
    """Where the last of several equal ids in a row stands."""
    return (ids != ids.shift(-1)).fill_null(True)


def _without_between(
    rows: pl.DataFrame, edges: Edges, counters: Sequence[str], bounds: Bounds, steady: Steady
) -> pl.DataFrame:
    """Leave out readings that say no more than the ones before and after them in their window say together.

    Most readings do: nothing was reset, no gauge changed, and a window is longer neither than the hold nor than an entity is
    remembered.
    """
    windows = (edges.edge_ms - edges.previous_ms) // edges.window_ms
    rows = rows.with_columns_seq(window=(pl.col("ts_ms") - edges.previous_ms) // edges.window_ms)
    joined_to_last = (pl.col("id") == pl.col("id").shift(1)) & (pl.col("window") == pl.col("window").shift(1))
    for gauge in (pl.col("epoch_ms"), *steady.gauges):
        joined_to_last &= gauge.eq_missing(gauge.shift(1))
    for name in counters:
        before = pl.col(name).shift(1)
        # what is not counted gains nothing
        joined_to_last &= (pl.col(name) >= before).fill_null(pl.col(name).is_null() & before.is_null())
        elapsed_ms = pl.col("ts_ms") - pl.col("ts_ms").shift(1)
        joined_to_last &= ~_leaps(name, before, elapsed_ms, bounds)
    joined, place = rows.select_seq(
        joined=joined_to_last.fill_null(False) & pl.col("window").is_between(0, windows - 1),
        place=pl.col("id") * windows + pl.col("window").clip(0, windows - 1),
    )
    between = joined & joined.shift(-1, fill_value=False)
    if steady.windows is not None:
        window = (pl.col("window_start_ms") - edges.previous_ms) // edges.window_ms
        known = (pl.col("id") <= highest(rows["id"])) & window.is_between(0, windows - 1)
        steady_places = steady.windows.filter(known).select_seq(pl.col("id") * windows + window)
        between &= among(place, steady_places["id"])
    return rows.drop("window").filter(~between)


def gains(
    paired: pl.DataFrame, hold_ms: int, forget_ms: int, counters: Sequence[str], bounds: Bounds
) -> pl.DataFrame:
    """What each counter gained over each interval, and whether the interval was measured.

    `paired`: readings that go on, with t0_ms, epoch_ms_0 and <counter>_0 of the one before.
    """
    if not paired.select_seq(_breaks(forget_ms, counters, bounds).any()).item():
        return paired.with_columns_seq(
            *((pl.col(c) - pl.col(f"{c}_0")).alias(f"inc_{c}") for c in counters),
            start_ms="t0_ms",
            end_ms="ts_ms",
            measured=pl.col("ts_ms") - pl.col("t0_ms") <= hold_ms,
        )
    elapsed_ms = pl.col("ts_ms") - pl.col("t0_ms")
    forgotten = elapsed_ms >= forget_ms
    less = pl.any_horizontal((pl.col(c) < pl.col(f"{c}_0")).fill_null(False) for c in counters)
    young = pl.col("ts_ms") - pl.col("epoch_ms") <= RESTART_GAP_MS
    # A process that was there at the reading before, and has no less than it had then, is the same one: another of its
    # series tells the epoch now.
    retold = young & (pl.col("epoch_ms") <= pl.col("t0_ms")) & ~less
    # an epoch is that of counters: where there are none, nothing is known to have begun with it
    counted = pl.any_horizontal(pl.col(c).is_not_null() & pl.col(f"{c}_0").is_not_null() for c in counters)
    restarted = (counted & (pl.col("epoch_ms") != pl.col("epoch_ms_0"))).fill_null(False) & ~retold
    start_known = ~forgotten & restarted & young
    # a counter without an epoch that fell was reset within the interval: its value is what it gained since
    fell = ~restarted & less
    believable = (elapsed_ms <= hold_ms) & pl.all_horizontal(
        pl.col(c).is_null() | (pl.col(c) <= bounds.after_reset).fill_null(False) for c in counters
    )
    unknown = forgotten | (restarted & ~start_known)
    leaps = pl.any_horizontal(_leaps(c, pl.col(f"{c}_0"), elapsed_ms, bounds) for c in counters)
    unknown |= ~restarted & leaps.fill_null(False)
    counts_from_zero = start_known | (fell & believable)
    unknown |= fell & ~believable
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
        end_ms=pl.min_horizontal("ts_ms", pl.col("t0_ms") + forget_ms),
        known=~unknown,
    )
    return gained.with_columns_seq(
        measured=pl.col("known") & (pl.col("end_ms") - pl.col("start_ms") <= hold_ms)
    )


def _leaps(counter: str, before: pl.Expr, elapsed_ms: pl.Expr, bounds: Bounds) -> pl.Expr:
    """Whether it gained more than it can have."""
    if bounds.per_s is None:
        return pl.lit(False)
    return (pl.col(counter) - before) > elapsed_ms * bounds.per_s // 1000


def _breaks(forget_ms: int, counters: Sequence[str], bounds: Bounds) -> pl.Expr:
    """Where a counter did not simply go on from the reading before; seldom."""
    elapsed_ms = pl.col("ts_ms") - pl.col("t0_ms")
    return pl.any_horizontal(
        *(_leaps(c, pl.col(f"{c}_0"), elapsed_ms, bounds) for c in counters),
        elapsed_ms >= forget_ms,
        pl.col("epoch_ms") != pl.col("epoch_ms_0"),
        *(pl.col(c) < pl.col(f"{c}_0") for c in counters),
    ).fill_null(False)
