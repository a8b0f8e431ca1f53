"""Usage rows to the tokens that each consumer spent in each minute: what counters gained, and events once each.

Counters and events both arrive in idlewatt.usage. What a counter gained between two readings is split over the
minutes between them in proportion to time, so that sums over minutes are counter differences exactly. An event
counts in the minute it names, once, however often it is sent: within EVENT_HORIZON_MS by its id, and what is older than
that is refused, since nobody remembers any more whether it was counted.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final, Self

import polars as pl

from idlewatt.processors.economy.book import CONSUMER_KINDS
from idlewatt.processors.economy.consumers import OTHER
from idlewatt.processors.economy.usage_gains import ENTITY, FORGET_MS, LATE_MS, gains, without
from idlewatt.processors.economy.usage_minutes import GAIN_COLUMNS, MINUTE_COLUMNS, NAMES, split
from idlewatt.processors.meter.intake import LARGEST_COUNTER, clock_faults, too_long_name
from idlewatt.stream.clock import MINUTE_MS
from idlewatt.stream.records import TOKEN_COUNTS
from idlewatt.stream.topics import EVENT_HORIZON_MS

# how far another's clock may be ahead of ours
AHEAD_MS: Final = 15_000
# Beyond it the oldest are forgotten, and what is as old as they are is refused.
MAX_EVENTS: Final = 500_000


@dataclass(frozen=True, slots=True)
class UsageState:
    """What is remembered of one partition's usage between two folds."""

    # the last reading of each counter: ENTITY, ts_ms, epoch_ms, TOKEN_COUNTS
    counters: pl.DataFrame
    # events that were counted: digest of (site, source, event_id), site, ts_ms
    events: pl.DataFrame
    # newest_ms: newest row; floor_ms: events up to it are refused, for their ids may be forgotten
    sites: pl.DataFrame

    @classmethod
    def empty(cls) -> Self:
        return cls(**{name: pl.DataFrame(schema=schema) for name, schema in _FRAMES.items()})

    def frames(self) -> dict[str, pl.DataFrame]:
        """For a snapshot, by names that begin with usage_."""
        return {f"usage_{name}": getattr(self, name) for name in _FRAMES}

    @classmethod
    def of(cls, frames: Mapping[str, pl.DataFrame]) -> Self:
        """From what frames() gave; other frames may be among them."""
        return cls(**{name: frames[f"usage_{name}"] for name in _FRAMES})


_FRAMES: Final[dict[str, Any]] = {
    "counters": {
        **dict.fromkeys(ENTITY, pl.String),
        "ts_ms": pl.Int64,
        "epoch_ms": pl.Int64,
        **dict.fromkeys(TOKEN_COUNTS, pl.Int64),
    },
    "events": {"digest": pl.UInt64, "site": pl.String, "ts_ms": pl.Int64},
    "sites": {"site": pl.String, "newest_ms": pl.Int64, "floor_ms": pl.Int64},
}


@dataclass(frozen=True, slots=True)
class Usage:
    """What a fold made of the rows."""

    state: UsageState
    # MINUTE_COLUMNS, at least one of TOKEN_COUNTS not 0; a name or tier that nobody told is empty. One row per counter,
    # pair of readings and minute, or per event: never merged, so that what is rounded per row is the same however
    # the rows were read together; and in the order in which the (newer) readings and the events were read, so that
    # volume steps are too. window_ms is 60,000 but for long gaps.
    minutes: pl.DataFrame
    # reason -> rows that were left out
    rejected: Mapping[str, int]


def fold_usage(state: UsageState, rows: pl.DataFrame, now_ms: int) -> Usage:
    """Take usage rows (records.USAGE, and `src` where they came in several messages) in, in any order within the batch.

    Rows further than AHEAD_MS ahead of `now_ms` are refused; nothing else depends on the clock.
    """
    if rows.is_empty():
        return Usage(state, pl.DataFrame(schema=MINUTE_COLUMNS), {})
    rejected: Counter[str] = Counter()
    rows = _plausible(_as_read(rows), now_ms + AHEAD_MS, rejected)
    is_event = pl.col("event_id").is_not_null()
    in_time = without(rows, _too_old(state.sites, rows), "too_old", rejected)
    new_events = _unseen(state.events, in_time.filter(is_event), rejected)
    counters, gained = gains(state.counters, in_time.filter(~is_event), rejected)
    sites = _moved_on(state.sites, rows)
    counters = counters.join(sites.select("site", "newest_ms"), on="site", how="left", maintain_order="left")
    events = state.events
    if new_events.height:
        events, sites = _bounded(pl.concat([events, new_events.select(*_FRAMES["events"])]), sites)
    return Usage(
        UsageState(
            counters.filter(pl.col("ts_ms") > pl.col("newest_ms") - FORGET_MS - LATE_MS).drop("newest_ms"),
            events,
            sites,
        ),
        split(pl.concat([gained, _spent_at_once(new_events)])),
        {reason: count for reason, count in sorted(rejected.items()) if count},
    )


def _as_read(rows: pl.DataFrame) -> pl.DataFrame:
    """In the order in which they were read, and with their `place` in it."""
    if "src" in rows.columns:
        rows = rows.sort("src", maintain_order=True)
    return rows.with_columns(place=pl.int_range(pl.len(), dtype=pl.Int64))


def _too_old(sites: pl.DataFrame, rows: pl.DataFrame) -> pl.Series:
    """Whether a row comes LATE_MS or more after one of its site that was read before it, in this batch or any; an event:
    EVENT_HORIZON_MS, or when its id may be forgotten.
    """
    known = rows.join(sites, on="site", how="left", maintain_order="left")
    newest_ms = pl.max_horizontal("newest_ms", pl.col("ts_ms").cum_max().over("site"))
    floor_ms = pl.max_horizontal("floor_ms", newest_ms - EVENT_HORIZON_MS)
    is_event = pl.col("event_id").is_not_null()
    oldest_ms = pl.when(is_event).then(floor_ms).otherwise(newest_ms - LATE_MS)
    return known.select(pl.col("ts_ms") <= oldest_ms).to_series()


def _plausible(rows: pl.DataFrame, latest_ms: int, rejected: Counter[str]) -> pl.DataFrame:
    """Without rows that cannot be true; names that are null become empty, a counter without a name gets its names."""
    text = ("site", "source", "event_id", "counter", *NAMES)
    faults = {
        **clock_faults(latest_ms),
        "negative": pl.any_horizontal(pl.col(*TOKEN_COUNTS) < 0),
        "implausible": pl.any_horizontal(pl.col(*TOKEN_COUNTS) >= LARGEST_COUNTER),
        "name_too_long": too_long_name(text),
        "reserved_name": pl.any_horizontal((pl.col(*CONSUMER_KINDS) == OTHER).fill_null(False)),
    }
    for reason, fault in faults.items():
        rows = without(rows, fault, reason, rejected)
    rows = rows.with_columns(pl.col(*NAMES).fill_null(""))
    return rows.with_columns(pl.col("counter").fill_null(pl.concat_str(*NAMES, separator="\x1f")))


def _moved_on(sites: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    seen = rows.select(
        "site", pl.col("ts_ms").alias("newest_ms"), (pl.col("ts_ms") - EVENT_HORIZON_MS).alias("floor_ms")
    )
    return pl.concat([sites, seen]).group_by("site").agg(pl.all().max()).sort("site")


def _unseen(known: pl.DataFrame, events: pl.DataFrame, rejected: Counter[str]) -> pl.DataFrame:
    """Events that were not counted yet, each once, with their digest."""
    digests = [
        int.from_bytes(blake2b("\x1f".join(key).encode(), digest_size=8).digest())
        for key in events.select("site", "source", "event_id").iter_rows()
    ]
    events = events.with_columns(pl.Series("digest", digests, pl.UInt64))
    unseen = events.unique("digest", keep="first", maintain_order=True).join(
        known, on="digest", how="anti", maintain_order="left"
    )
    rejected["repeat"] += events.height - unseen.height
    return unseen


def _bounded(events: pl.DataFrame, sites: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Forget events up to their site's floor, and the oldest beyond MAX_EVENTS, whose time becomes the floor."""
    known = (
        events.join(sites.select("site", "floor_ms"), on="site", how="left")
        .filter(pl.col("ts_ms") > pl.col("floor_ms"))
        .drop("floor_ms")
        .sort("ts_ms", "digest")
    )
    if known.height <= MAX_EVENTS:
        return known, sites
    forgotten = known.head(known.height - MAX_EVENTS).select("site", pl.col("ts_ms").alias("floor_ms"))
    floors = pl.concat([sites.select("site", "floor_ms"), forgotten]).group_by("site").agg(pl.all().max())
    return known.tail(MAX_EVENTS), sites.drop("floor_ms").join(floors, on="site").sort("site")


def _spent_at_once(events: pl.DataFrame) -> pl.DataFrame:
    """Events as GAIN_COLUMNS that begin and end with their minute."""
    minute_ms = pl.col("ts_ms") // MINUTE_MS * MINUTE_MS
    return events.with_columns(start_ms=minute_ms, end_ms=minute_ms + MINUTE_MS).select(*GAIN_COLUMNS)
