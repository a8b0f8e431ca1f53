"""Each envelope of the book against what was used: limit, used, burn rates, and when it will be exhausted.

All of it is of the moment to which usage is known (as_of_ms), so that it is the same whoever computes it.
"""

import datetime as dt
import re
from collections.abc import Iterator
from typing import Any, Final
from weakref import WeakKeyDictionary
from zoneinfo import ZoneInfo

import polars as pl

from idlewatt.processors.amounts import SUM
from idlewatt.processors.at_once import at_once
from idlewatt.processors.economy.book import TOKENS, Book, Envelope
from idlewatt.processors.economy.envelopes import (
    BURN_WINDOWS,
    NAMED,
    EnvelopeState,
    folded_into,
    kept_apart,
)

ENVELOPE_KEY: Final = ("site", "envelope", "consumer")
FIGURE_COLUMNS: Final[dict[str, Any]] = {
    # consumer: a name where the envelope is each consumer's own, else the glob; empty for whoever has used nothing yet
    **dict.fromkeys((*ENVELOPE_KEY, "consumer_kind", "unit", "period"), pl.String),
    **dict.fromkeys(("start_ms", "end_ms", "as_of_ms", "since_ms"), pl.Int64),
    # tokens, or micro-units; used is null where some of it has no price in the unit, or may be OTHER's
    "limit": pl.Int64,
    "used": SUM,
    "unpriced_tokens": SUM,
    # multiples of the even rate, which uses the limit up just at the period's end; null where not known
    **dict.fromkeys((f"burn_{window}" for window in BURN_WINDOWS), pl.Float64),
    # null unless it comes before the period's end
    "exhaustion_ms": pl.Int64,
    # some of what was used in the period that is running is or may be OTHER's
    "is_folded": pl.Boolean,
}
# what is projected is the rate of this window: a twentieth of the period or so
_PROJECTED_BY: Final = {"day": "1h", "week": "6h", "month": "3d"}
# burn windows -> the periods by which it is known whether somebody's use in them is or may be OTHER's
_FOLDED_BY: Final = {"5m": "day", "1h": "day", "6h": "day", "3d": "week"}
_MEMBER: Final = (*NAMED, "envelope", "consumer")
_FOLD: Final[dict[str, Any]] = {
    **dict.fromkeys((*ENVELOPE_KEY, "period"), pl.String),
    "period_start": pl.Date,
}
_NOTHING: Final = {
    "used": pl.lit(0, SUM),
    "unpriced_tokens": pl.lit(0, SUM),
    "used_before": pl.lit(0, SUM),
    "unpriced_before": pl.lit(0, SUM),
}


def period_bounds(period: str, at_ms: int, time_zone: str) -> tuple[dt.date, dt.date, dt.date]:
    """First days of the period that a moment lies in, of the one before it and of the one after it."""
    day = dt.datetime.fromtimestamp(at_ms / 1000, ZoneInfo(time_zone)).date()
    if period == "day":
        return day, day - dt.timedelta(1), day + dt.timedelta(1)
    if period == "week":
        monday = day - dt.timedelta(day.weekday())
        return monday, monday - dt.timedelta(7), monday + dt.timedelta(7)
    first = day.replace(day=1)
    return first, (first - dt.timedelta(1)).replace(day=1), (first + dt.timedelta(31)).replace(day=1)


def midnight_ms(day: dt.date, time_zone: str) -> int:
    """When a day begins. Where midnight does not exist or comes twice: at the change, or the first time."""
    return round(dt.datetime.combine(day, dt.time(), ZoneInfo(time_zone)).timestamp()) * 1000


# /metrics and answers ask for the same; a state that nobody holds any more takes its figures with it
_computed: Final[WeakKeyDictionary[EnvelopeState, tuple[Book, pl.DataFrame]]] = WeakKeyDictionary()


def envelope_figures(state: EnvelopeState, book: Book) -> pl.DataFrame:
    """FIGURE_COLUMNS of every envelope at every site whose usage is known."""
    by_book, figures = _computed.get(state, (None, None))
    if figures is None or by_book is not book:
        figures = _figures(state, book)
        _computed[state] = (book, figures)
    return figures


def _figures(state: EnvelopeState, book: Book) -> pl.DataFrame:
    calendar = _calendar(state.sites, book)
    if calendar.is_empty():
        return pl.DataFrame(schema=FIGURE_COLUMNS)
    members = _members(state, book)
    folds = _folds(state, book)
    figures = _amounts(calendar, members, folds, state)
    for window in BURN_WINDOWS:
        unknown = _folded_in(window, calendar, folds, book.time_zone)
        figures = _with_burn(figures, calendar, members, unknown, state, window)
    figures = figures.with_columns(exhaustion_ms=_exhaustion()).select(*FIGURE_COLUMNS)
    return at_once(figures.sort(ENVELOPE_KEY))


def _calendar(sites: pl.DataFrame, book: Book) -> pl.DataFrame:
    """Each envelope at each site: the period that is running there, and the terms of the envelope."""
    rows = []
    for site, since_ms, as_of_ms in sites.filter(pl.col("as_of_ms").is_not_null()).iter_rows():
        for envelope in book.envelope:
            start, before, after = period_bounds(envelope.period, as_of_ms, book.time_zone)
            bounds_ms = [midnight_ms(day, book.time_zone) for day in (before, start, after)]
            # what was left is known of a period that was seen from its beginning
            carries = envelope.roll_over and since_ms is not None and since_ms <= bounds_ms[0]
            shared_by = "" if envelope.each else envelope.match
            names = (site, envelope.name, envelope.kind, envelope.unit, envelope.period, shared_by)
            days = (before, start, *bounds_ms[1:], as_of_ms, since_ms)
            rows.append((*names, envelope.limit_amount, carries, *days))
    return pl.DataFrame(
        rows,
        schema={
            **dict.fromkeys(("site", "envelope", "consumer_kind", "unit", "period", "shared_by"), pl.String),
            "granted": pl.Int64,
            "carries": pl.Boolean,
            **dict.fromkeys(("before", "start"), pl.Date),
            **dict.fromkeys(("start_ms", "end_ms", "as_of_ms", "since_ms"), pl.Int64),
        },
        orient="row",
    )


def _members(state: EnvelopeState, book: Book) -> pl.DataFrame:
    """_MEMBER: whose rows each envelope counts, and for which consumer; each row at most once for an envelope.

    An envelope counts what matches it or one that lies within it. One that is each consumer's own counts what names
    such a consumer, and nothing else.
    """
    names = state.periods[list(NAMED)].unique().lazy()
    parts = [pl.LazyFrame(schema=dict.fromkeys(_MEMBER, pl.String))]
    for envelope in book.envelope:
        counted = [envelope] if envelope.each else list(_with_inner(envelope, book))
        rows = names.filter(pl.any_horizontal(_matches(one) for one in counted))
        consumer = pl.col(envelope.kind) if envelope.each else pl.lit(envelope.match)
        parts.append(rows.select(*NAMED, pl.lit(envelope.name).alias("envelope"), consumer.alias("consumer")))
    return at_once(pl.concat(parts))


def _with_inner(envelope: Envelope, book: Book) -> Iterator[Envelope]:
    yield envelope
    for inner in book.envelope:
        if inner.within == envelope.name:
            yield from _with_inner(inner, book)


def _matches(envelope: Envelope) -> pl.Expr:
    # as globs.matches() does; polars' $ is the end of the name
    name = pl.col(envelope.kind)
    parts = ({"*": ".*", "?": "."}.get(character, re.escape(character)) for character in envelope.match)
    return (name != "") & name.str.contains(f"(?s)^{''.join(parts)}$")


def _folds(state: EnvelopeState, book: Book) -> pl.DataFrame:
    """_FOLD: in which periods some of what an envelope counts is or may be OTHER's, which does not match it."""
    places = folded_into(state.periods)
    parts = [pl.DataFrame(schema=_FOLD)]
    if not places.is_empty():
        apart = kept_apart(state.periods)
        for envelope in book.envelope:
            folds = _folds_of_each if envelope.each else _folds_of_shared
            found = folds(envelope, book, places, apart, state.folded)
            parts.append(found.select(pl.lit(envelope.name).alias("envelope"), pl.all()).select(*_FOLD))
    return pl.concat(parts).unique()


def _folds_of_each(
    envelope: Envelope, book: Book, places: pl.DataFrame, apart: pl.DataFrame, folded: pl.DataFrame
) -> pl.DataFrame:
    """Of consumers that are kept apart, and, under the empty name, of all others."""
    of_kind = pl.col("kind") == envelope.kind
    others = places.filter(of_kind).with_columns(consumer=pl.lit(""))
    return pl.concat([others, folded.filter(of_kind)], how="diagonal")


def _folds_of_shared(
    envelope: Envelope, book: Book, places: pl.DataFrame, apart: pl.DataFrame, folded: pl.DataFrame
) -> pl.DataFrame:
    """Of a glob that is one name where that is not kept apart, of * never, of any other always."""
    counted = list(_with_inner(envelope, book))
    whole = {one.kind for one in counted if set(one.match) == {"*"}}
    parts = [places.clear()]
    for one in counted:
        if one.kind in whole:
            continue
        here = places.filter(pl.col("kind") == one.kind)
        if not set(one.match) & set("*?"):
            is_it = (pl.col("kind") == one.kind) & (pl.col("consumer") == one.match)
            parts.append(folded.filter(is_it).select(places.columns))
            here = here.join(apart.filter(is_it), on="site", how="anti")
        parts.append(here)
    return pl.concat(parts).with_columns(consumer=pl.lit(envelope.match))


def _folded_in(window: str, calendar: pl.DataFrame, folds: pl.DataFrame, time_zone: str) -> pl.LazyFrame:
    """ENVELOPE_KEY of those whose use in a burn window is not known for what is or may be OTHER's."""
    period = _FOLDED_BY[window]
    day = pl.from_epoch(_first_ms(window), time_unit="ms").dt.replace_time_zone("UTC")
    day = day.dt.convert_time_zone(time_zone).dt.date()
    first = calendar.lazy().select(
        "site", "envelope", first=day.dt.truncate("1w") if period == "week" else day
    )
    return (
        folds.lazy()
        .filter(pl.col("period") == period)
        .join(first, on=["site", "envelope"])
        .filter(pl.col("period_start") >= pl.col("first"))
        .select(ENVELOPE_KEY)
        .unique()
    )


def _first_ms(window: str) -> pl.Expr:
    """When a burn window begins: with a bucket."""
    length_ms, width_ms = BURN_WINDOWS[window]
    return (pl.col("as_of_ms") - length_ms) // width_ms * width_ms


def _amounts(
    calendar: pl.DataFrame, members: pl.DataFrame, folds: pl.DataFrame, state: EnvelopeState
) -> pl.LazyFrame:
    """FIGURE_COLUMNS up to `used`: the period that is running, and the limit with what was left of the one before."""
    now, before = pl.col("period_start") == pl.col("start"), pl.col("period_start") == pl.col("before")
    sums = (
        members.lazy()
        .join(calendar.lazy(), on=["site", "envelope"])
        .join(state.periods.lazy(), on=[*NAMED, "period"])
        .group_by(ENVELOPE_KEY)
        .agg(
            used=_used().filter(now).sum(),
            unpriced_tokens=_unpriced().filter(now).sum(),
            used_before=_used().filter(before).sum(),
            unpriced_before=_unpriced().filter(before).sum(),
        )
    )
    dated = folds.lazy().join(
        calendar.lazy().select("site", "envelope", "period", "start", "before"),
        on=["site", "envelope", "period"],
    )
    folded = dated.group_by(ENVELOPE_KEY).agg(is_folded=now.any(), was_folded=before.any())
    # who has used nothing has a row as well: 0 is known, of each who is kept apart where others are not
    unused = calendar.lazy().select("site", "envelope", consumer="shared_by", **_NOTHING)
    others = folded.filter((pl.col("consumer") == "") & pl.col("is_folded")).select("site", "envelope")
    apart = members.lazy().join(others, on=["site", "envelope"]).select(*ENVELOPE_KEY, **_NOTHING)
    whole = pl.concat([sums, unused, apart]).group_by(ENVELOPE_KEY).agg(pl.col(*_NOTHING).sum())
    left = pl.max_horizontal(pl.col("granted") - pl.col("used_before"), 0).cast(pl.Int64)
    is_known_before = (pl.col("unpriced_before") == 0) & ~pl.col("was_folded")
    carried = pl.when(pl.col("carries") & is_known_before).then(left).otherwise(0)
    # where what has a price is more than the limit already, it does not matter what has none
    is_known = ~pl.col("is_folded") & ((pl.col("unpriced_tokens") == 0) | (pl.col("used") >= pl.col("limit")))
    return (
        whole.join(calendar.lazy(), on=["site", "envelope"])
        .join(folded, on=list(ENVELOPE_KEY), how="left")
        .with_columns(pl.col("is_folded", "was_folded").fill_null(False))
        .with_columns(limit=pl.col("granted") + carried)
        .with_columns(used=pl.when(is_known).then("used"))
    )


def _with_burn(
    figures: pl.LazyFrame,
    calendar: pl.DataFrame,
    members: pl.DataFrame,
    unknown: pl.LazyFrame,
    state: EnvelopeState,
    window: str,
) -> pl.LazyFrame:
    """The figures with `burn_*` of the window, and what was used in it (`sum_*`, over `span_*` milliseconds).

    A window begins with a bucket, so it is up to a bucket longer than its name says; rates are over what it really is.
    One that reaches back beyond its period begins with that, which buckets may not; a rate is over no less than what is
    projected by, for one request after midnight is no rate.
    """
    first_ms, length_ms = _first_ms(window), BURN_WINDOWS[window][0]
    is_cut = first_ms < pl.col("start_ms")
    least_ms = pl.col("period").replace_strict(
        {period: min(length_ms, BURN_WINDOWS[by][0]) for period, by in _PROJECTED_BY.items()},
        return_dtype=pl.Int64,
    )
    terms = calendar.lazy().select("site", "envelope", "unit", first_ms.alias("first_ms"))
    buckets = state.buckets.lazy().filter(pl.col("width_ms") == BURN_WINDOWS[window][1])
    sums = (
        members.lazy()
        .join(terms, on=["site", "envelope"])
        .join(buckets, on=list(NAMED))
        .filter(pl.col("bucket_start_ms") >= pl.col("first_ms"))
        .group_by(ENVELOPE_KEY)
        .agg(_used().sum().alias(f"sum_{window}"), _unpriced().sum().alias("unpriced_in_window"))
    )
    amount, span_ms = pl.col(f"sum_{window}"), pl.col(f"span_{window}")
    is_seen = pl.col("since_ms") <= pl.max_horizontal(first_ms, "start_ms")
    is_known = is_seen & (pl.col("unpriced_in_window").fill_null(0) == 0) & pl.col("is_unknown").is_null()
    is_known_cut = is_seen & (pl.col("unpriced_tokens") == 0)
    return (
        figures.join(sums, on=list(ENVELOPE_KEY), how="left")
        .join(unknown.with_columns(is_unknown=True), on=list(ENVELOPE_KEY), how="left")
        .with_columns(
            pl.when(is_cut)
            .then(pl.when(is_known_cut).then("used"))
            .otherwise(pl.when(is_known).then(amount.fill_null(0)))
            .alias(amount.meta.output_name()),
            pl.when(is_cut)
            .then(pl.max_horizontal(pl.col("as_of_ms") - pl.col("start_ms"), least_ms))
            .otherwise(pl.col("as_of_ms") - first_ms)
            .alias(span_ms.meta.output_name()),
        )
        .with_columns(
            (amount / span_ms * ((pl.col("end_ms") - pl.col("start_ms")) / pl.col("limit"))).alias(
                f"burn_{window}"
            )
        )
        .drop("unpriced_in_window", "is_unknown")
    )


def _exhaustion() -> pl.Expr:
    """When the limit is reached at the rate of the window that fits the period."""
    moments = []
    for period, window in _PROJECTED_BY.items():
        left = pl.col("limit") - pl.col("used")
        wait_ms = left * pl.col(f"span_{window}") // pl.col(f"sum_{window}")
        comes = (pl.col("period") == period) & (pl.col(f"sum_{window}") > 0) & (left > 0)
        comes &= wait_ms < pl.col("end_ms") - pl.col("as_of_ms")
        moments.append(pl.when(comes).then(pl.col("as_of_ms") + wait_ms).cast(pl.Int64))
    return pl.coalesce(moments)


def _used() -> pl.Expr:
    """Tokens, or money that is in the envelope's currency."""
    money = pl.when(pl.col("currency") == pl.col("unit")).then("spend_micro").otherwise(0)
    return pl.when(pl.col("unit") == TOKENS).then(pl.col("tokens").cast(SUM)).otherwise(money)


def _unpriced() -> pl.Expr:
    """Tokens that have no price in the envelope's currency: without one at all, or of a book in another currency."""
    lacking = pl.when(pl.col("currency") == pl.col("unit")).then("unpriced_tokens").otherwise("tokens")
    return pl.when(pl.col("unit") == TOKENS).then(0).otherwise(lacking)
