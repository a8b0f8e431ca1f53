"""The tiers that a model's tokens are sold on, by the site's usage rows, as engines know of none.

A tier's share of a model's tokens of each kind is its tokens over the trailing hour, divided by the engines' tokens of
the same time, or by all usage where that is more. The rest is unattributed and sold on the default tier.
"""

from typing import Any, Final

import polars as pl

from idlewatt.processors.amounts import SUM
from idlewatt.processors.at_once import at_once
from idlewatt.stream.clock import HOUR_MS, MINUTE_MS
from idlewatt.stream.records import TOKEN_COUNTS, TOKEN_KINDS

# usage is told at once, tokens when their window is closed
LEAD_MS: Final = 300_000
# engines that are so far behind their site's usage are gone: usage waits in Kafka for three days
_MOST_BEHIND_MS: Final = 73 * HOUR_MS
# Fifty models on three tiers in each minute of the hour are a twentieth of it.
MAX_ROWS: Final = 200_000
_MODEL: Final = ("site", "model_name")
# tokens of the trailing hour: on each tier of usage, and of the engines
TIER_COLUMNS: Final[dict[str, Any]] = {
    **dict.fromkeys((*_MODEL, "tier"), pl.String),
    "window_start_ms": pl.Int64,
    **dict.fromkeys(TOKEN_COUNTS, SUM),
    # micro-units x 10^6: what those owe that were sold, and would owe without volume steps; null where the book has no
    # price
    "owed": SUM,
    "listed": SUM,
}
ENGINE_COLUMNS: Final[dict[str, Any]] = {
    **dict.fromkeys(_MODEL, pl.String),
    "window_start_ms": pl.Int64,
    **dict.fromkeys(TOKEN_COUNTS, SUM),
}
SHARE_COLUMNS: Final[dict[str, Any]] = {
    **dict.fromkeys((*_MODEL, "tier"), pl.String),
    # shares hold for windows before it
    "until_ms": pl.Int64,
    # of each kind: where the tier's share begins and ends, out of `whole`
    **{f"{part}_{kind}": SUM for kind in TOKEN_KINDS for part in ("begin", "end", "whole")},
    # as in TIER_COLUMNS, in a unit in which both are small enough to be multiplied
    "owed": SUM,
    "listed": SUM,
}
COMPARED_COLUMNS: Final[dict[str, Any]] = {
    "site": pl.String,
    # how far the engines had told when shares were computed: a minute; where usage begins, if they have told nothing yet
    "made_ms": pl.Int64,
}
_MOST_LISTED: Final = 1 << 60


def recent(minutes: pl.DataFrame, more: pl.DataFrame, behind: pl.DataFrame | None = None) -> pl.DataFrame:
    """Both together, a row for each key and minute, of the hour up to each site's newest.

    Of sites that are older in `behind` (COMPARED_COLUMNS), of the time since the hour before that, unless they are gone.
    """
    names = [name for name in minutes.columns if minutes.schema[name] == pl.String]
    both = pl.concat([minutes, more[minutes.columns].cast(minutes.schema)]).lazy()
    minute, newest_ms = pl.col("window_start_ms"), pl.col("newest_ms")
    newest = both.group_by("site").agg(newest_ms=minute.max())
    if behind is not None:
        waits = pl.col("made_ms").is_between(newest_ms - _MOST_BEHIND_MS, newest_ms)
        newest = newest.join(behind.lazy(), on="site", how="left").select(
            "site", newest_ms=pl.when(waits).then("made_ms").otherwise(newest_ms)
        )
    return at_once(
        both.group_by(*names, "window_start_ms", maintain_order=True)
        .agg(pl.col(name).sum() for name in minutes.columns if name not in (*names, "window_start_ms"))
        .join(newest, on="site", maintain_order="left")
        .filter(minute > pl.col("newest_ms") - HOUR_MS)
        .drop("newest_ms")
    )


def told(
    usage: pl.DataFrame, more: pl.DataFrame, engines: pl.DataFrame, compared: pl.DataFrame
) -> pl.DataFrame:
    """TIER_COLUMNS of both, as recent() keeps them, whether or not engines have told of these models.

    Of a flood of models that nobody serves nothing is sold: beyond MAX_ROWS only those are kept that engines told of, and
    of sites whose engines have told nothing yet the earliest, which is asked for first.
    """
    found = recent(usage, more, updated(compared, reached(engines)))
    if found.height <= MAX_ROWS:
        return found
    served = found.join(engines, on=list(_MODEL), how="semi")
    waiting = found.join(engines, on="site", how="anti").sort("window_start_ms", *_MODEL, "tier")
    return pl.concat([served, waiting.head(max(0, MAX_ROWS - served.height))])


def reached(engines: pl.DataFrame, following: pl.DataFrame | None = None) -> pl.DataFrame:
    """COMPARED_COLUMNS of ENGINE_COLUMNS; up to the minute before those that follow on them, if there was nothing."""
    minute = pl.col("window_start_ms")
    made = engines.group_by("site").agg(made_ms=minute.max())
    if following is None:
        return made
    before = following.group_by("site").agg(made_ms=minute.min() - MINUTE_MS)
    return pl.concat([made, before]).group_by("site").agg(pl.col("made_ms").max())


def begun(compared: pl.DataFrame, rows: pl.DataFrame, known: pl.DataFrame) -> pl.DataFrame:
    """COMPARED_COLUMNS where sites of these rows that are not `known` stand where the rows begin."""
    new = rows.join(known, on="site", how="anti")
    if new.is_empty():
        return compared
    return updated(compared, new.group_by("site").agg(made_ms=pl.col("window_start_ms").min()))


def updated(compared: pl.DataFrame, newer: pl.DataFrame) -> pl.DataFrame:
    """COMPARED_COLUMNS of both; of a site that is in both, the newer."""
    return pl.concat([newer, compared.join(newer, on="site", how="anti")])


def anew(compared: pl.DataFrame, usage: pl.DataFrame, before: pl.DataFrame) -> pl.DataFrame:
    """COMPARED_COLUMNS of sites of which usage has told a whole minute after `before`, the same of when shares were made.

    Of others less and less could be compared: who tells usage once an hour has told of all of it.
    """
    told = usage.group_by("site").agg(told_ms=pl.col("window_start_ms").max())
    known = compared.join(before.rename({"made_ms": "before_ms"}), on="site", how="left").join(
        told, on="site"
    )
    has_more = (pl.col("told_ms") - MINUTE_MS > pl.col("before_ms")).fill_null(True)
    return known.filter(has_more).select(*COMPARED_COLUMNS)


def slices(tokens: pl.DataFrame, compared: pl.DataFrame) -> list[tuple[int, pl.DataFrame]]:
    """Token rows a few minutes at a time, with how many times so long after `compared` (see begun()) they begin.

    What is older than that is in the earliest; there is always one.
    """
    start = pl.col("window_start_ms")
    newest_ms, oldest_ms = tokens.get_column("window_start_ms").max(), compared.get_column("made_ms").min()
    # as nearly always
    if isinstance(newest_ms, int) and isinstance(oldest_ms, int) and newest_ms < oldest_ms + LEAD_MS:
        return [(0, tokens)]
    at = (
        tokens.lazy()
        .select("site", start)
        .join(compared.lazy(), on="site", how="left", maintain_order="left")
    )
    number = at_once(at.select(((start - pl.col("made_ms")) // LEAD_MS).clip(0))).to_series()
    numbers = number.unique().sort().to_list() or [0]
    return [(first, tokens.filter(number == first) if numbers[1:] else tokens) for first in numbers]


def shares(
    usage: pl.DataFrame,
    engines: pl.DataFrame,
    before: pl.DataFrame | None = None,
    compared: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """SHARE_COLUMNS of the trailing hour; usage has TIER_COLUMNS, engines ENGINE_COLUMNS, both as recent() keeps them.

    `compared`: COMPARED_COLUMNS, how far the engines have told, if not up to their newest minute.

    Only time that both have told of is compared: after an outage usage is read at once, and the ledger as the meter
    catches up. Where there is none, the shares of `before` go on that still hold. Of a model that nobody has used for an
    hour, usage tells first: there that counts which leads the engines by a little.
    """
    minute = pl.col("window_start_ms")
    reach = (
        usage.group_by("site")
        .agg(told_ms=minute.max())
        .join(reached(engines) if compared is None else compared, on="site")
        .with_columns(
            # the last minute that usage tells of may be told in part, and made whole
            newest_ms=pl.when(pl.col("told_ms") < pl.col("made_ms"))
            .then(pl.col("told_ms") - MINUTE_MS)
            .otherwise("made_ms"),
            after_ms=pl.col("made_ms") - HOUR_MS,
            until_ms=pl.min_horizontal("told_ms", "made_ms") + HOUR_MS,
        )
    )
    told_of = usage.join(reach, on="site").filter(minute > pl.col("after_ms"))
    on_time = told_of.filter(minute <= pl.col("newest_ms"))
    kept = _going_on(before, reach.join(on_time, on="site", how="anti"))
    ahead = told_of.filter(minute <= pl.col("made_ms") + LEAD_MS)
    for known in (on_time, kept):
        ahead = ahead.join(known, on=list(_MODEL), how="anti")
    sold = (
        pl.concat([on_time, ahead])
        .group_by(*_MODEL, "tier")
        .agg(pl.col(*TOKEN_COUNTS, "owed", "listed").sum())
        .with_columns(unit=pl.col("listed") // _MOST_LISTED + 1)
        .with_columns(pl.col("owed", "listed") // pl.col("unit"))
    )
    made = (
        engines.join(reach, on="site")
        .filter(minute > pl.col("after_ms"), minute <= pl.col("newest_ms"))
        .group_by(*_MODEL)
        .agg(pl.col(*TOKEN_COUNTS).sum().name.prefix("engine_"))
    )
    rows = sold.join(reach, on="site").join(made, on=list(_MODEL), how="left").sort(*_MODEL, "tier")
    found = rows.with_columns(
        expression
        for kind in TOKEN_KINDS
        for expression in (
            (pl.col(f"{kind}_tokens").cum_sum().over(_MODEL) - pl.col(f"{kind}_tokens")).alias(
                f"begin_{kind}"
            ),
            pl.col(f"{kind}_tokens").cum_sum().over(_MODEL).alias(f"end_{kind}"),
            pl.max_horizontal(
                pl.col(f"{kind}_tokens").sum().over(_MODEL), pl.col(f"engine_{kind}_tokens").fill_null(0)
            ).alias(f"whole_{kind}"),
        )
    ).select(*SHARE_COLUMNS)
    return pl.concat([found, kept])


def _going_on(before: pl.DataFrame | None, sites: pl.DataFrame) -> pl.DataFrame:
    """The shares of these sites that still hold for what engines make next."""
    if before is None:
        return pl.DataFrame(schema=SHARE_COLUMNS)
    known = before.join(sites.select("site", "made_ms"), on="site")
    return known.filter(pl.col("until_ms") > pl.col("made_ms")).select(*SHARE_COLUMNS)


def split(tokens: pl.DataFrame, shares: pl.DataFrame, default_tier: str) -> pl.DataFrame:
    """Token rows by tier: parts add up to the rows. Adds `tier`, `attributed`, owed and listed.

    What no usage covers is a row of the default tier with attributed = false.
    """
    nobody = {"owed": pl.lit(None, SUM), "listed": pl.lit(None, SUM)}
    whole = tokens.with_columns(tier=pl.lit(default_tier), attributed=pl.lit(False), **nobody)
    if shares.is_empty():
        return whole
    parts = (
        tokens.with_row_index("row")
        .join(shares, on=list(_MODEL))
        .filter(pl.col("window_start_ms") < pl.col("until_ms"))
        .with_columns(
            (_by(kind, "end") - _by(kind, "begin")).cast(pl.Int64).alias(f"{kind}_tokens")
            for kind in TOKEN_KINDS
        )
        .with_columns(attributed=pl.lit(True))
    )
    told = parts.group_by("row").agg(pl.col(*TOKEN_COUNTS).sum().name.prefix("told_"))
    rest = (
        whole.with_row_index("row")
        .join(told, on="row", how="left", maintain_order="left")
        .with_columns(pl.col(name) - pl.col(f"told_{name}").fill_null(0) for name in TOKEN_COUNTS)
    )
    rows = pl.concat([parts.select(whole.columns), rest.select(whole.columns)])
    return rows.filter(pl.any_horizontal(pl.col(name) != 0 for name in TOKEN_COUNTS))


def _by(kind: str, edge: str) -> pl.Expr:
    whole = pl.col(f"whole_{kind}")
    tokens = pl.col(f"{kind}_tokens").cast(SUM)
    return tokens * pl.col(f"{edge}_{kind}") // pl.when(whole > 0).then(whole).otherwise(1)
