"""What a kilowatt-hour costs when: the tariff's periods by local time, daylight saving included."""

import functools
import itertools
from collections.abc import Iterator
from typing import Final

import polars as pl

from idlewatt.processors.economy.book import Book, Period, Tariff

DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_QUARTERS: Final = 96
_QUARTER: Final = 15
TARIFF_COLUMNS: Final = {"window_start_ms": pl.Int64, "per_kwh": pl.Int64}


def has_price(tariff: Tariff) -> bool:
    return tariff.per_kwh is not None or bool(tariff.period)


def per_kwh(book: Book, starts_ms: pl.Series) -> pl.DataFrame:
    """TARIFF_COLUMNS of the distinct window starts: micro-units per kWh. No row where the book has no tariff.

    A window lies in one minute and a period begins on a quarter of an hour, so that the start decides.
    """
    starts = starts_ms.unique().rename("window_start_ms")
    if not has_price(book.tariff):
        return pl.DataFrame(schema=TARIFF_COLUMNS)
    local = pl.from_epoch("window_start_ms", time_unit="ms").dt.convert_time_zone(book.time_zone)
    quarter = local.dt.hour().cast(pl.Int32) * 4 + local.dt.minute() // _QUARTER
    cell = ((local.dt.month().cast(pl.Int32) - 1) * 7 + local.dt.weekday() - 1) * _QUARTERS + quarter
    prices = pl.Series(_prices(book.tariff), dtype=pl.Int64)
    return starts.to_frame().with_columns(per_kwh=pl.lit(prices).gather(cell))


@functools.lru_cache(maxsize=8)
def _prices(tariff: Tariff) -> tuple[int, ...]:
    """The price of each quarter of an hour of each weekday of each month; the tariff has no faults."""
    if tariff.per_kwh is not None:
        return (tariff.per_kwh,) * (12 * 7 * _QUARTERS)
    return tuple(tariff.period[owners[0]].per_kwh for owners in _owners(tariff))


def tariff_faults(tariff: Tariff) -> Iterator[str]:
    """The first time of the year that no period covers, and the first that two do."""
    if tariff.per_kwh is not None and tariff.period:
        yield "[tariff] has per_kwh and [[tariff.period]]: keep one of them"
    if not tariff.period:
        return
    owners = _owners(tariff)
    has_nights = any(_quarters(period)[1] and len(set(period.days)) < len(DAYS) for period in tariff.period)
    hint = "; what goes round midnight is of the days on which it begins" if has_nights else ""
    for at in [at for at, found in enumerate(owners) if not found][:1]:
        yield f"[[tariff.period]] leaves a gap: no period covers {_moment(at)}{hint}"
    for at, found in [(at, found) for at, found in enumerate(owners) if len(found) > 1][:1]:
        yield (
            f"[[tariff.period]] number {found[0] + 1} and number {found[1] + 1} overlap: "
            f"both cover {_moment(at)}{hint}"
        )


def _owners(tariff: Tariff) -> list[list[int]]:
    """The periods that cover each quarter of an hour of each weekday of each month.

    A night is of the weekday on which it begins; its hours after midnight are of the month that they lie in, so that a
    season ends with its last day.
    """
    owners: list[list[int]] = [[] for _ in range(12 * 7 * _QUARTERS)]
    for number, period in enumerate(tariff.period):
        days = {DAYS.index(day) for day in period.days}
        for month, day in itertools.product(set(period.months), days):
            for later, quarters in enumerate(_quarters(period)):
                first = ((month - 1) * 7 + (day + later) % 7) * _QUARTERS
                for quarter in quarters:
                    owners[first + quarter].append(number)
    return owners


def _quarters(period: Period) -> tuple[range, range]:
    """The quarters of an hour that it has of a day on which it begins, and of the one after: it may go round midnight."""
    begin, end = period.begins // _QUARTER, period.ends // _QUARTER
    return (range(begin, end), range(0)) if begin < end else (range(begin, _QUARTERS), range(end))


def _moment(cell: int) -> str:
    day, quarter = divmod(cell, _QUARTERS)
    month, weekday = divmod(day, 7)
    return f"month {month + 1}, {DAYS[weekday]}, {quarter // 4:02d}:{quarter % 4 * _QUARTER:02d}"
