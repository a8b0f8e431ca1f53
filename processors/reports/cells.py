"""Rows of the ledger to what they come to, by site, pool, model and tier, at the prices of the book as it is now.

Money is made by the very functions that price the ledger as it comes, row by row, so that nothing is computed in two
ways. They differ in what they know: a report knows all of an interval's usage and amendments, in whatever order they
came. Tiers are those of each clock hour, and the realised price of a window is that of all tokens of the hour up to it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import polars as pl

from idlewatt.processors.amounts import SUM, nearest
from idlewatt.processors.blind_nodes import UNMETERED, UNMETERED_TOKENS, blind, with_blind
from idlewatt.processors.economy import costs, pricing, tiers
from idlewatt.processors.economy.book import CONSUMER_KINDS, MICRO, Book
from idlewatt.processors.economy.config import EconomyConfig
from idlewatt.processors.economy.consumers import spend, tier_rows, with_known_tiers
from idlewatt.processors.economy.prices import EXACT, VOLUME_COLUMNS, month_of
from idlewatt.processors.economy.rests import REST_COLUMNS
from idlewatt.processors.meter.cutting import share
from idlewatt.processors.meter.rows import by_window
from idlewatt.processors.reports.ledger import Interval, Ledger, ledger_span, usage_span
from idlewatt.stream.clock import HOUR_MS
from idlewatt.stream.records import STATES, TOKEN_COUNTS

KEY: Final = ("site", "pool", "model_name", "tier")
# of tokens: what they are, bring, or would have brought; unpriced are those of all kinds without a price, unlisted
# those that are given away without one, given all that are given away, unmetered those that nobody read the watts of and
# what they bring, unattributed those of output that no usage claims, unmade those of output that usage claims beyond what
# engines made
TOKEN_MEASURES: Final = (
    *TOKEN_COUNTS,
    "unpriced_tokens",
    "unlisted_tokens",
    "given_tokens",
    *UNMETERED.values(),
    "unattributed_tokens",
    "unmade_tokens",
    "revenue_micro",
    "acquisition_micro",
)
ALL_KINDS: Final = pl.sum_horizontal(TOKEN_COUNTS)
_COSTS: Final = tuple(f"{kind}_{state}_micro" for kind in ("energy", "capital") for state in STATES)
# of watts: they have no tier and no consumer
WATT_MEASURES: Final = (
    *(f"{part}_{state}_mj" for part in ("draw", "headroom") for state in STATES),
    "gpu_ms",
    # of it, that of GPUs without telemetry
    "dark_gpu_ms",
    *_COSTS,
    # capital cost at published prices; GPU time without a price
    "published_micro",
    "uncosted_gpu_ms",
    # idle energy that has no yardstick, and lost tokens that have no price
    "lost_tokens",
    "unmeasured_mj",
    "unvalued_lost_tokens",
    "lost_micro",
    "benchmark_micro",
)
MEASURES: Final = (*TOKEN_MEASURES, *WATT_MEASURES)
CELL_COLUMNS: Final = {**dict.fromkeys(KEY, pl.String), **dict.fromkeys(MEASURES, SUM)}
CONSUMED_COLUMNS: Final = {
    **dict.fromkeys(("site", *CONSUMER_KINDS, "model_name", "tier"), pl.String),
    **dict.fromkeys(TOKEN_MEASURES, SUM),
}


@dataclass(frozen=True, slots=True)
class Cells:
    """An interval in integers that add up."""

    # CELL_COLUMNS; tier is empty for watts
    cells: pl.DataFrame
    # CONSUMED_COLUMNS: what consumers spent, by all their names
    consumed: pl.DataFrame

    @property
    def is_read(self) -> pl.Expr:
        """Whether a row is of a site whose GPUs the ledger has in the interval."""
        sites = self.cells.filter(pl.any_horizontal(pl.col(*WATT_MEASURES) != 0)).get_column("site")
        return pl.col("site").is_in(sites.unique().to_list()).alias("is_read")


def cells(ledger: Ledger, book: Book, config: EconomyConfig, interval: Interval) -> Cells:
    """What the interval comes to. `ledger` has the rows of ledger_span() and usage_span()."""
    span = ledger_span(interval)
    usage = ledger.usage.filter(usage_span(interval, book).has())
    spent = priced_usage(_read_in_time(usage, span.to_ms), book)
    power = _by_hour(ledger.power.filter(span.has()).with_columns(src=pl.lit(0, pl.Int64)))
    # what any row tells counts for every row: -1 comes before 0
    tokens = _by_hour(ledger.tokens.filter(span.has()).with_columns(src=pl.lit(-1, pl.Int64)))
    used = _by_hour(tier_rows(book, _within_hours(spent)).filter(span.has()))
    no_tokens, no_power = (
        frame.clear().with_columns(src=pl.lit(0, pl.Int64)) for frame in (ledger.tokens, ledger.power)
    )
    none_used = pl.DataFrame(schema=tiers.TIER_COLUMNS)
    before = pl.DataFrame(schema={**pricing.MIX_COLUMNS, "src": pl.Int64})
    found = [pl.DataFrame(schema=CELL_COLUMNS)]
    for hour_ms in sorted({*power, *tokens}):
        made = tokens.get(hour_ms, no_tokens)
        priced = pricing.priced_tokens(made, _shares(used.get(hour_ms, none_used), made, hour_ms), book)
        mix = pricing.mix_rows(priced)
        read = power.get(hour_ms, no_power)
        watts = read.filter(interval.has())
        losses = pricing.idle_losses(watts, pl.concat([before, mix]), book, config)
        before = mix
        in_time = priced.filter(interval.has())
        found += [
            *_token_cells(in_time, book),
            *_watt_cells(watts, losses, book),
            *_unmetered_cells(in_time, made, read, book),
        ]
    return Cells(_summed(found, KEY), _consumed(spent.filter(interval.has()), book))


def _read_in_time(usage: pl.DataFrame, end_ms: int) -> pl.DataFrame:
    """Without what was read of a site after all its usage that begins before `end_ms`: of that it changes nothing."""
    last = pl.col("place").filter(pl.col("window_start_ms") < end_ms).max().over("site")
    return usage.with_row_index("place").filter(pl.col("place") <= last).drop("place")


def priced_usage(usage: pl.DataFrame, book: Book) -> pl.DataFrame:
    """Rows of records.CONSUMER and EXACT at the book's prices; volume steps and rests count from each month's first row on."""
    told = usage.drop("currency", "spend_micro").with_columns(month=month_of(book))
    none = pl.DataFrame(schema=VOLUME_COLUMNS), pl.DataFrame(schema=REST_COLUMNS)
    months = told.partition_by("month", maintain_order=True, include_key=False) or [told.drop("month")]
    # a month at a time: there is room for the volumes of one and the month before
    return with_known_tiers(book, pl.concat([spend(book, month, *none).rows for month in months]))


def _within_hours(spent: pl.DataFrame) -> pl.DataFrame:
    """Rows of long gaps of a counter cut at clock hours, which tiers are told by."""
    if not (spent["window_ms"] > HOUR_MS).any():
        return spent
    end_ms = pl.col("window_start_ms") + pl.col("window_ms")
    whole = spent.with_columns(
        start_ms="window_start_ms", end_ms=end_ms, from_ms="window_start_ms", to_ms=end_ms
    )
    return by_window(whole, "from_ms", "to_ms", HOUR_MS).with_columns(
        pl.col("from_ms").alias("window_start_ms"),
        *(
            (share(name, pl.col("to_ms"), SUM) - share(name, pl.col("from_ms"), SUM)).alias(name)
            for name in (*TOKEN_COUNTS, *EXACT)
        ),
    )


def _by_hour(rows: pl.DataFrame) -> dict[int, pl.DataFrame]:
    hour = pl.col("window_start_ms") // HOUR_MS * HOUR_MS
    parts = rows.with_columns(hour_ms=hour).partition_by(
        "hour_ms", as_dict=True, include_key=False, maintain_order=True
    )
    return {int(hour_ms): part for (hour_ms,), part in parts.items()}


def _shares(usage: pl.DataFrame, made: pl.DataFrame, hour_ms: int) -> pl.DataFrame:
    """The tiers' shares of the tokens of a clock hour, as if it were one minute."""
    at = pl.lit(hour_ms, pl.Int64).alias("window_start_ms")
    # of models that no engine makes nothing is sold
    told = usage.join(made, on=["site", "model_name"], how="semi").with_columns(at)
    return tiers.shares(told, made.with_columns(at).select(*tiers.ENGINE_COLUMNS))


def _token_cells(priced: pl.DataFrame, book: Book) -> Iterator[pl.DataFrame]:
    output = pl.col("output_tokens")
    yield _cells(
        priced,
        {
            **{name: pl.col(name).sum() for name in TOKEN_COUNTS},
            "unpriced_tokens": ALL_KINDS.filter(pl.col("earned").is_null()).sum(),
            "unlisted_tokens": ALL_KINDS.filter(
                pl.col("earned").is_not_null() & pl.col("worth").is_null()
            ).sum(),
            "given_tokens": ALL_KINDS.filter(pl.col("tier").is_in(book.unsold)).sum(),
            "unattributed_tokens": output.filter(~pl.col("attributed")).sum(),
        },
    )
    money = pricing.revenue_rows(priced, book)
    yield _cells(
        money, {"revenue_micro": _amount("revenue"), "acquisition_micro": _amount("acquisition_cost")}
    )


def _watt_cells(power: pl.DataFrame, losses: pl.DataFrame, book: Book) -> Iterator[pl.DataFrame]:
    costed = costs.costed(power, book)
    in_state = {state: pl.col("state") == state for state in STATES}
    yield _cells(
        costed,
        {
            **{
                f"{part}_{state}_mj": pl.col(f"{part}_mj").filter(held).sum()
                for part in ("draw", "headroom")
                for state, held in in_state.items()
            },
            "gpu_ms": pl.col("gpu_ms").sum(),
            "dark_gpu_ms": pl.col("gpu_ms").filter(in_state["dark"]).sum(),
            "uncosted_gpu_ms": pl.col("gpu_ms").filter(pl.col("capital_micro").is_null()).sum(),
        },
    )
    yield _cells(
        costs.cost_rows(costed, book),
        {
            **{
                f"{kind}_{state}_micro": _amount(f"{kind}_cost", held)
                for kind in ("energy", "capital")
                for state, held in in_state.items()
            },
            "published_micro": _amount("capital_cost", pl.col("origin") == "published"),
        },
    )
    yield _cells(
        losses,
        {
            "lost_tokens": pl.col("lost_tokens").sum(),
            "unmeasured_mj": pl.col("energy_mj").filter(pl.col("lost_tokens").is_null()).sum(),
            "unvalued_lost_tokens": pl.col("lost_tokens").filter(pl.col("lost_micro").is_null()).sum(),
        },
    )
    yield _cells(
        pricing.loss_rows(losses, book),
        {"lost_micro": _amount("lost_revenue"), "benchmark_micro": _amount("benchmark_lost_revenue")},
    )


def _unmetered_cells(
    priced: pl.DataFrame, made: pl.DataFrame, power: pl.DataFrame, book: Book
) -> Iterator[pl.DataFrame]:
    """Of the tokens those of windows in which none of their pool's or node's GPUs, or not all of their engine's, were read.

    `made`, `power`: all rows of these windows.
    """
    window = ["site", "pool", "window_start_ms"]
    read = power.group_by(window).agg(pl.col("gpu_ms").sum()).filter(pl.col("gpu_ms") > 0)
    marked = with_blind(priced, blind(made)).join(read, on=window, how="left")
    unmetered = marked.filter(pl.col("blind") | pl.col("gpu_ms").is_null())
    yield _cells(unmetered, {to: pl.col(name).sum() for name, to in UNMETERED_TOKENS.items()})
    money = pricing.revenue_rows(unmetered, book)
    yield _cells(money, {UNMETERED["revenue_micro"]: _amount("revenue")})


def _amount(kind: str, condition: pl.Expr | None = None) -> pl.Expr:
    of_kind = pl.col("kind") == kind
    amounts = pl.col("amount_micro").filter(of_kind if condition is None else of_kind & condition)
    return amounts.cast(SUM).sum()


def _cells(rows: pl.DataFrame, measures: dict[str, pl.Expr]) -> pl.DataFrame:
    """CELL_COLUMNS with these measures, the others 0."""
    if "tier" not in rows.columns:
        rows = rows.with_columns(tier=pl.lit(""))
    rows = rows.with_columns(pl.col("tier").fill_null(""))
    zero = pl.lit(0, pl.Int64)
    return rows.group_by(KEY).agg(measures.get(name, zero).cast(SUM).alias(name) for name in MEASURES)


def _summed(frames: Sequence[pl.DataFrame], key: Sequence[str]) -> pl.DataFrame:
    return pl.concat(frames).group_by(key).agg(pl.col(*MEASURES).sum()).sort(key)


def _consumed(usage: pl.DataFrame, book: Book) -> pl.DataFrame:
    unsold = pl.col("tier").is_in(book.unsold)
    priced = usage.with_columns(
        unpriced_tokens=pl.when(pl.col("spend_micro").is_null()).then(ALL_KINDS).otherwise(0),
        unlisted_tokens=pl.when(pl.col("spend_micro").is_not_null() & pl.col("worth").is_null())
        .then(ALL_KINDS)
        .otherwise(0),
        given_tokens=pl.when(unsold).then(ALL_KINDS).otherwise(0),
        unattributed_tokens=pl.lit(0, pl.Int64),
        unmade_tokens=pl.lit(0, pl.Int64),
        **{name: pl.lit(0, pl.Int64) for name in UNMETERED.values()},
        revenue_micro=pl.col("spend_micro").fill_null(0),
        acquisition_micro=pl.when(unsold).then(pl.col("worth").fill_null(0)).otherwise(0),
    )
    key = ("site", *CONSUMER_KINDS, "model_name", "tier")
    sums = priced.group_by(key).agg(pl.col(*TOKEN_MEASURES).cast(SUM).sum()).sort(key)
    return sums.with_columns(nearest(pl.col("acquisition_micro"), MICRO)).select(*CONSUMED_COLUMNS)
