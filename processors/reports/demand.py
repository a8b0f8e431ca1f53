"""The demand charge: what the month's highest power costs. It is nobody's row: it comes with one quarter of an hour."""

from dataclasses import dataclass
from decimal import Decimal
from typing import Final

import polars as pl

from idlewatt.processors.economy.book import MICRO, Book
from idlewatt.processors.reports.ledger import Interval
from idlewatt.processors.reports.rounding import rounded

# utilities bill the mean power of a quarter of an hour
_QUARTER_MS: Final = 900_000
# millijoules of a quarter of an hour at one kilowatt
_MJ_PER_KW: Final = _QUARTER_MS * 1000


@dataclass(frozen=True, slots=True)
class Peak:
    """A site's highest quarter of an hour in a calendar month, of those that are whole in interval and ledger and were seen."""

    site: str
    month: str
    # all None if none is
    start_ms: int | None
    # drawn, times PUE where the book has one
    kw: Decimal | None
    charge: Decimal | None
    # whole ones that were not seen, and may have been higher
    unseen_quarters: int


def peaks(power: pl.DataFrame, book: Book, interval: Interval, coverage_floor: float) -> list[Peak]:
    """By site and month; none where the book has no demand charge.

    `power` has records.POWER of ledger_span(), which tells whether a site's ledger began before the interval. A quarter of
    an hour was seen if at least `coverage_floor` of its GPU time is not dark.
    """
    price = book.tariff.demand_charge_per_kw_month
    if price is None:
        return []
    pue = MICRO if book.tariff.pue is None else book.tariff.pue
    local = pl.from_epoch("start_ms", time_unit="ms").dt.convert_time_zone(book.time_zone)
    quarter = (pl.col("window_start_ms") // _QUARTER_MS * _QUARTER_MS).alias("start_ms")
    rows = power.filter(interval.has())
    drawn = rows.group_by("site", quarter).agg(
        pl.col("draw_mj", "gpu_ms").sum(),
        dark_gpu_ms=pl.col("gpu_ms").filter(pl.col("state") == "dark").sum(),
    )
    windows = rows.unique(["site", "window_start_ms"]).group_by("site", quarter)
    is_whole = pl.col("is_whole").fill_null(False)
    is_seen = (pl.col("gpu_ms") - pl.col("dark_gpu_ms") >= coverage_floor * pl.col("gpu_ms")) & (
        pl.col("window_ms") >= coverage_floor * _QUARTER_MS
    )
    is_seen = is_seen.fill_null(False)
    highest = (
        drawn.join(windows.agg(pl.col("window_ms").sum()), on=["site", "start_ms"])
        .join(_whole(power, interval), on=["site", "start_ms"], how="full", coalesce=True)
        .with_columns(month=local.dt.strftime("%Y-%m"))
        .with_columns(
            draw_mj=pl.when(is_whole & is_seen).then("draw_mj"),
            unseen_quarters=(is_whole & ~is_seen).sum().over("site", "month"),
        )
        .sort(
            "site",
            "month",
            "draw_mj",
            "start_ms",
            descending=[False, False, True, False],
            nulls_last=True,
        )
        .unique(["site", "month"], keep="first", maintain_order=True)
    )
    return [
        Peak(row["site"], row["month"], None, None, None, row["unseen_quarters"])
        if row["draw_mj"] is None
        else Peak(
            row["site"],
            row["month"],
            row["start_ms"],
            Decimal(rounded(row["draw_mj"] * pue, _MJ_PER_KW * MICRO // 1000)).scaleb(-3),
            Decimal(rounded(row["draw_mj"] * pue * price, _MJ_PER_KW * MICRO)).scaleb(-6),
            row["unseen_quarters"],
        )
        for row in highest.to_dicts()
    ]


def _whole(power: pl.DataFrame, interval: Interval) -> pl.DataFrame:
    """(site, start_ms, is_whole) of the quarters of an hour that lie within interval and ledger, seen or not."""
    begin_ms, end_ms = pl.col("window_start_ms"), pl.col("window_start_ms") + pl.col("window_ms")
    sites = power.group_by("site").agg(
        first=-(-begin_ms.min().clip(interval.from_ms) // _QUARTER_MS),
        end=end_ms.max().clip(upper_bound=interval.to_ms) // _QUARTER_MS,
    )
    starts = sites.filter(pl.col("first") < pl.col("end")).select(
        "site", start_ms=pl.int_ranges("first", "end")
    )
    return starts.explode("start_ms").with_columns(pl.col("start_ms") * _QUARTER_MS, is_whole=pl.lit(True))
