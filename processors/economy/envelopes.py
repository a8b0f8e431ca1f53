"""What the consumers of a site have used, by local day, week and month and by the buckets of burn rates.

Kept by the four names of a row and without regard to the book's envelopes: a changed envelope is right at once.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Self

import polars as pl

from idlewatt.processors.amounts import SUM
from idlewatt.processors.economy.book import CONSUMER_KINDS
from idlewatt.processors.economy.consumers import OTHER
from idlewatt.stream.clock import DAY_MS, HOUR_MS, MINUTE_MS
from idlewatt.stream.records import TOKEN_COUNTS

NAMED: Final = ("site", *CONSUMER_KINDS)
# tokens of all kinds; those without a price, and money, in the currency of the book they were priced by
AMOUNTS: Final[dict[str, Any]] = dict.fromkeys(("tokens", "unpriced_tokens", "spend_micro"), SUM)
# burn windows -> their length and the width of the buckets they are made of
BURN_WINDOWS: Final[Mapping[str, tuple[int, int]]] = {
    "5m": (5 * MINUTE_MS, 5 * MINUTE_MS),
    "1h": (HOUR_MS, 5 * MINUTE_MS),
    "6h": (6 * HOUR_MS, 30 * MINUTE_MS),
    "3d": (3 * DAY_MS, 6 * HOUR_MS),
}
# Sets of names that are kept apart; beyond it new ones are counted together, as OTHER, which no row of usage can say.
MAX_CONSUMERS: Final = 50_000
_LENGTH_BY_WIDTH: Final = {width: length for length, width in BURN_WINDOWS.values()}
_PERIOD_KEY: Final = (*NAMED, "currency", "period", "period_start")
_BUCKET_KEY: Final = (*NAMED, "currency", "width_ms", "bucket_start_ms")
_CONSUMER: Final = ("site", "kind", "consumer")
_PLACE: Final = ("site", "kind", "period", "period_start")
_FRAMES: Final[dict[str, dict[str, Any]]] = {
    "periods": {
        **dict.fromkeys((*NAMED, "currency", "period"), pl.String),
        "period_start": pl.Date,
        **AMOUNTS,
    },
    "buckets": {
        **dict.fromkeys((*NAMED, "currency"), pl.String),
        **dict.fromkeys(("width_ms", "bucket_start_ms"), pl.Int64),
        **AMOUNTS,
    },
    "sites": {"site": pl.String, "since_ms": pl.Int64, "as_of_ms": pl.Int64},
    "folded": {**dict.fromkeys((*_CONSUMER, "period"), pl.String), "period_start": pl.Date},
}


# compared by identity: what is computed of a state is kept as long as the state is
@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class EnvelopeState:
    """What is remembered of one partition's sites between two folds."""

    # the newest period of each length and the one before it, local dates
    periods: pl.DataFrame
    # as far back as each burn window reaches
    buckets: pl.DataFrame
    # since_ms: the newest usage when the site was first heard of; what came from before it is not all there was.
    # as_of_ms: up to when; null until all of the log was read once, for until then everybody seems to have used less
    # than he has.
    sites: pl.DataFrame
    # consumers that are kept apart, and the periods in which some of their use is or may be OTHER's
    folded: pl.DataFrame

    @classmethod
    def empty(cls) -> Self:
        return cls(**{name: pl.DataFrame(schema=schema) for name, schema in _FRAMES.items()})

    def frames(self) -> dict[str, pl.DataFrame]:
        """For a snapshot, by names that begin with envelope_."""
        return {f"envelope_{name}": getattr(self, name) for name in _FRAMES}

    @classmethod
    def of(cls, frames: Mapping[str, pl.DataFrame]) -> Self:
        """From what frames() gave; other frames may be among them."""
        return cls(**{name: frames[f"envelope_{name}"] for name in _FRAMES})


def used(
    state: EnvelopeState, rows: pl.DataFrame, newest: pl.DataFrame, time_zone: str, end_ms: int | None
) -> EnvelopeState:
    """The state with these rows (records.CONSUMER) in it. A row counts in the periods that its window begins in.

    `newest`: site and newest_ms, the newest usage read of each. `end_ms`: now, where the log is read to its end.
    """
    tokens = pl.sum_horizontal(pl.col(*TOKEN_COUNTS).cast(SUM))
    # there is a row for each counter and part of its gap
    amounts = rows.group_by(*NAMED, "currency", "window_start_ms", maintain_order=True).agg(
        tokens=tokens.sum(),
        unpriced_tokens=tokens.filter(pl.col("spend_micro").is_null()).sum(),
        spend_micro=pl.col("spend_micro").cast(SUM).sum(),
    )
    # what is over makes room for new names
    before, told = _recent(state.periods, _by_period(amounts, time_zone))
    counted, folded = told, state.folded
    known = before.select(NAMED).unique()
    if pl.concat([known, told.select(NAMED)]).unique().height > MAX_CONSUMERS:
        amounts, counted = _bounded(known, amounts), _bounded(known, told)
        folded = pl.concat([folded, *_folded(told, counted)])
    periods = _merged(before, counted, _PERIOD_KEY, ("period", "period_start"))
    return EnvelopeState(
        periods,
        _buckets(state.buckets, amounts),
        _as_of(state.sites, newest, end_ms),
        _not_apart(folded, state.periods, periods),
    )


def kept_apart(periods: pl.DataFrame) -> pl.DataFrame:
    """Each site, kind and consumer that is counted under its own name."""
    return _by_kind(periods.select(NAMED)).filter(~pl.col("consumer").is_in(["", OTHER])).unique()


def folded_into(periods: pl.DataFrame) -> pl.DataFrame:
    """Each site, kind and period in which some names are OTHER: who is not kept apart may have used some of that."""
    slots = periods.select(*NAMED, "period", "period_start")
    slots = slots.filter(pl.any_horizontal(pl.col(*CONSUMER_KINDS) == OTHER))
    return _by_kind(slots).filter(pl.col("consumer") == OTHER).select(_PLACE).unique()


def _by_kind(rows: pl.DataFrame) -> pl.DataFrame:
    return pl.concat(
        rows.drop(set(CONSUMER_KINDS) - {kind}).select(
            pl.lit(kind).alias("kind"), pl.col(kind).alias("consumer"), pl.exclude(kind)
        )
        for kind in CONSUMER_KINDS
    )


def _bounded(known: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    """New engineers of known functions, teams and agent families lose only their own name; nobody stays nobody."""
    around = NAMED[:-1]
    return (
        rows.join(known.with_columns(is_known=True), on=NAMED, how="left", maintain_order="left")
        .join(
            known.select(around).unique().with_columns(is_around=True),
            on=around,
            how="left",
            maintain_order="left",
        )
        .with_columns(
            pl.when(pl.col("is_known") | (pl.col("is_around") & (name != NAMED[-1])) | (pl.col(name) == ""))
            .then(name)
            .otherwise(pl.lit(OTHER))
            .alias(name)
            for name in CONSUMER_KINDS
        )
        .select(rows.columns)
    )


def _folded(told: pl.DataFrame, counted: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Whose rows are counted as OTHER, and in which periods; both frames have the same rows."""
    for kind in CONSUMER_KINDS:
        others = told.filter(counted.get_column(kind) == OTHER)
        yield others.select(
            "site", pl.lit(kind).alias("kind"), consumer=kind, period="period", period_start="period_start"
        ).unique()


def _not_apart(folded: pl.DataFrame, before: pl.DataFrame, periods: pl.DataFrame) -> pl.DataFrame:
    """Of consumers that are kept apart: where they were folded, or may have been before they were kept apart."""
    places = folded_into(periods)
    if places.is_empty():
        return folded.clear()
    apart = kept_apart(periods)
    new = apart.join(kept_apart(before), on=_CONSUMER, how="anti").join(places, on=["site", "kind"])
    every = pl.concat([folded, new.select(folded.columns)]).unique(maintain_order=True)
    return every.join(apart, on=_CONSUMER, how="semi").join(places, on=_PLACE, how="semi")


def passed(state: EnvelopeState, newest: pl.DataFrame, end_ms: int | None) -> EnvelopeState:
    """The state when nothing was read meanwhile; the same one until a minute has passed."""
    if newest.is_empty() and state.sites.is_empty():
        return state
    sites = _as_of(state.sites, newest, end_ms)
    minute = pl.col("as_of_ms") // MINUTE_MS
    if sites.with_columns(minute).equals(state.sites.with_columns(minute)):
        return state
    return replace(state, sites=sites)


def _as_of(sites: pl.DataFrame, newest: pl.DataFrame, end_ms: int | None) -> pl.DataFrame:
    now = pl.lit(end_ms, pl.Int64).fill_null(pl.col("as_of_ms"))
    return (
        newest.select("site", "newest_ms")
        .join(sites, on="site", how="left", maintain_order="left")
        .select(
            "site",
            pl.col("since_ms").fill_null(pl.col("newest_ms")),
            as_of_ms=pl.when(now.is_not_null()).then(pl.max_horizontal(now, "newest_ms")),
        )
    )


def _by_period(amounts: pl.DataFrame, time_zone: str) -> pl.DataFrame:
    """Each row once for each period that it lies in."""
    moment = pl.from_epoch("window_start_ms", time_unit="ms").dt.replace_time_zone("UTC")
    dated = amounts.with_columns(day=moment.dt.convert_time_zone(time_zone).dt.date())
    starts = {
        "day": pl.col("day"),
        "week": pl.col("day").dt.truncate("1w"),
        "month": pl.col("day").dt.month_start(),
    }
    return pl.concat(
        dated.with_columns(period=pl.lit(period), period_start=start).select(*_FRAMES["periods"])
        for period, start in starts.items()
    )


def _recent(before: pl.DataFrame, told: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Both without what is older than the period before the newest of either."""
    slot = ("site", "period", "period_start")
    start = pl.col("period_start")
    oldest = (
        pl.concat([before.select(slot).unique(), told.select(slot).unique()])
        .group_by("site", "period")
        .agg(start.max())
        .select(
            "site",
            "period",
            oldest=pl.when(pl.col("period") == "month")
            .then(start.dt.offset_by("-1mo"))
            .when(pl.col("period") == "week")
            .then(start.dt.offset_by("-7d"))
            .otherwise(start.dt.offset_by("-1d")),
        )
    )

    def recent(rows: pl.DataFrame) -> pl.DataFrame:
        dated = rows.join(oldest, on=["site", "period"], how="left", maintain_order="left")
        return dated.filter(start >= pl.col("oldest")).drop("oldest")

    return recent(before), recent(told)


def _buckets(before: pl.DataFrame, amounts: pl.DataFrame) -> pl.DataFrame:
    more = [
        amounts.with_columns(
            width_ms=pl.lit(width, pl.Int64), bucket_start_ms=pl.col("window_start_ms") // width * width
        ).select(before.columns)
        for width in _LENGTH_BY_WIDTH
    ]
    reach_ms = pl.col("width_ms").replace_strict(_LENGTH_BY_WIDTH, return_dtype=pl.Int64)
    oldest_ms = pl.col("bucket_start_ms").max().over("site", "width_ms") - reach_ms - pl.col("width_ms")
    both = _merged(before, pl.concat(more), _BUCKET_KEY, ("width_ms", "bucket_start_ms"))
    return both.filter(pl.col("bucket_start_ms") >= oldest_ms)


def _merged(
    before: pl.DataFrame, more: pl.DataFrame, key: tuple[str, ...], slot: tuple[str, ...]
) -> pl.DataFrame:
    """Both together, summed by key. Most slots of time are over: only those that more came for are gone through."""
    slots = more.select(slot).unique()
    untouched = before.join(slots, on=slot, how="anti", maintain_order="left")
    touched = pl.concat([before.join(slots, on=slot, how="semi", maintain_order="left"), more])
    summed = touched.group_by(key, maintain_order=True).agg(pl.col(*AMOUNTS).sum()).select(before.columns)
    return pl.concat([untouched, summed], rechunk=True)
