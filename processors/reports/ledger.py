"""What a report reads of the log: which rows, and from when on."""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final
from zoneinfo import ZoneInfo

import polars as pl

from idlewatt.processors.economy.book import Book
from idlewatt.processors.economy.usage_minutes import LONGEST_MS
from idlewatt.stream import records
from idlewatt.stream.clock import HOUR_MS
from idlewatt.stream.frames import empty_frame

# The ledger follows the clock by half a minute; a site of which nothing comes may be so for a while.
LAG_MS: Final = 600_000
END_COLUMNS: Final = {"site": pl.String, "to_ms": pl.Int64}


@dataclass(frozen=True, slots=True)
class Reach:
    """From when to when the ledger has watts or tokens of a site, Unix milliseconds."""

    site: str
    from_ms: int
    to_ms: int
    # the end of its newest usage before the interval's end, if there is any in the month
    used_ms: int | None
    # where it has none for over LAG_MS in between, from when to when
    gaps: Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Ledger:
    """Rows of the interval's span; each frame in the order in which the log has a site's rows."""

    # records.POWER
    power: pl.DataFrame
    # records.TOKENS
    tokens: pl.DataFrame
    # records.CONSUMER; what they owed when they were booked is not looked at
    usage: pl.DataFrame
    # END_COLUMNS: of sites with older rows when these end, as far as they were read
    before: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=END_COLUMNS))

    @classmethod
    def empty(cls) -> "Ledger":
        return cls(*(empty_frame(schema) for schema in (records.POWER, records.TOKENS, records.CONSUMER)))

    def ended(self, interval: "Interval") -> list[tuple[str, int]]:
        """Of each site that has nothing in the interval, by name, when what was read of it before ends."""
        told = (self.power, self.tokens, self.usage)
        ends = pl.concat([self.before, *(ends_before(interval.from_ms, rows) for rows in told)])
        there = pl.concat([rows.filter(interval.has()).select("site") for rows in told])
        gone = ends.join(there, on="site", how="anti").group_by("site").agg(pl.col("to_ms").max())
        return list(gone.sort("site").iter_rows())

    def reach(self, interval: "Interval") -> list[Reach]:
        """Of each site that has watts or tokens in the interval, by name."""
        used_ms = dict(ends_before(interval.to_ms, self.usage).iter_rows())
        windows = pl.concat(
            frame.filter(interval.has()).select(
                "site", from_ms="window_start_ms", to_ms=pl.col("window_start_ms") + pl.col("window_ms")
            )
            for frame in (self.power, self.tokens)
        )
        windows = windows.unique().sort("site", "from_ms")
        told_ms = pl.col("to_ms").cum_max().shift()
        gap = pl.struct(told_ms.alias("from_ms"), pl.col("from_ms").alias("to_ms"))
        sites = windows.group_by("site", maintain_order=True).agg(
            from_ms=pl.col("from_ms").first(),
            to_ms=pl.col("to_ms").max(),
            gaps=gap.filter(pl.col("from_ms") - told_ms > LAG_MS),
        )
        return [
            Reach(site, from_ms, to_ms, used_ms.get(site), [(one["from_ms"], one["to_ms"]) for one in gaps])
            for site, from_ms, to_ms, gaps in sites.iter_rows()
        ]

    def used_alone(self, interval: "Interval") -> list[tuple[str, int]]:
        """Of each site that has usage and nothing else in the interval, by name, when its newest usage ends."""
        power, tokens, usage = (
            frame.filter(interval.has()) for frame in (self.power, self.tokens, self.usage)
        )
        metered = pl.concat([power.select("site"), tokens.select("site")])
        alone = ends_before(interval.to_ms, usage.join(metered, on="site", how="anti"))
        return list(alone.sort("site").iter_rows())


@dataclass(frozen=True, slots=True)
class Interval:
    """From a moment to just before another, Unix milliseconds on whole minutes: no window spans their edge."""

    from_ms: int
    to_ms: int

    def has(self) -> pl.Expr:
        return pl.col("window_start_ms").is_between(self.from_ms, self.to_ms, closed="left")


def ends_before(moment_ms: int, rows: pl.DataFrame) -> pl.DataFrame:
    """END_COLUMNS of those rows of the ledger or of usage that begin before the moment."""
    end_ms = pl.col("window_start_ms") + pl.col("window_ms")
    # not those of a clock gone wild, which are of no year
    older = rows.filter(Interval(0, moment_ms).has())
    return older.group_by("site").agg(end_ms.max().alias("to_ms"))


def ledger_span(interval: Interval) -> Interval:
    """What is needed of power and tokens: whole hours, for tiers are told by the hour, and the hour before.

    The realised price of a window is that of the hour up to it.
    """
    begin = (interval.from_ms - HOUR_MS) // HOUR_MS * HOUR_MS
    return Interval(begin, -(-interval.to_ms // HOUR_MS) * HOUR_MS)


def usage_span(interval: Interval, book: Book) -> Interval:
    """What is needed of usage: whole calendar months, for volume steps and rests go by the order in which it was read.

    What is dated after the interval may have been read before what is in it; what begins before the span may reach into it.
    """
    span = ledger_span(interval)
    edges_ms = (span.from_ms - LONGEST_MS, span.to_ms - 1)
    first, last = (calendar_month(moment_ms, book.time_zone) for moment_ms in edges_ms)
    return Interval(first.from_ms, last.to_ms)


def calendar_month(moment_ms: int, time_zone: str) -> Interval:
    """The month that the moment lies in."""
    zone = ZoneInfo(time_zone)
    local = dt.datetime.fromtimestamp(moment_ms / 1000, zone)
    begin = dt.datetime(local.year, local.month, 1, tzinfo=zone)
    end = dt.datetime(local.year + local.month // 12, local.month % 12 + 1, 1, tzinfo=zone)
    return Interval(*(round(edge.timestamp()) * 1000 for edge in (begin, end)))
