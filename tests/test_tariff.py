"""What a kilowatt-hour costs when, by the clock on the wall, and what energy costs by it."""

import datetime as dt
from zoneinfo import ZoneInfo

import polars as pl
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from idlewatt.processors.economy.book import Book
from idlewatt.processors.economy.book_file import parse_book
from idlewatt.processors.economy.tariff import per_kwh

SEASONS = """
time_zone = "{zone}"
[[tariff.period]]
months = [6, 7, 8]
days = ["mon", "tue", "wed", "thu", "fri"]
begins = "14:00"
ends = "19:30"
per_kwh = 0.3
[[tariff.period]]
months = [6, 7, 8]
days = ["mon", "tue", "wed", "thu", "fri"]
begins = "19:30"
ends = "14:00"
per_kwh = 0.2
[[tariff.period]]
months = [6, 7, 8]
days = ["sat", "sun"]
per_kwh = 0.1
[[tariff.period]]
months = [1, 2, 3, 4, 5, 9, 10, 11, 12]
begins = "02:00"
ends = "03:00"
per_kwh = 0.05
[[tariff.period]]
months = [1, 2, 3, 4, 5, 9, 10, 11, 12]
begins = "03:00"
ends = "02:00"
per_kwh = 0.15
"""


def book(zone: str) -> Book:
    return parse_book(SEASONS.format(zone=zone).encode(), "book")


def prices(zone: str, *starts_ms: int) -> list[int]:
    found = dict(per_kwh(book(zone), pl.Series(starts_ms, dtype=pl.Int64)).iter_rows())
    return [found[start] for start in starts_ms]


def by_definition(zone: str, at_ms: int) -> int:
    local = dt.datetime.fromtimestamp(at_ms / 1000, ZoneInfo(zone))
    hour = local.hour + local.minute / 60
    if local.month not in (6, 7, 8):
        return 50_000 if 2 <= hour < 3 else 150_000
    if local.weekday() >= 5:
        return 100_000
    return 300_000 if 14 <= hour < 19.5 else 200_000


@examples(200)
@given(
    st.sampled_from(
        [
            "UTC",
            "Europe/Berlin",
            "America/New_York",
            "Asia/Kathmandu",
            "Australia/Lord_Howe",
            "America/St_Johns",
        ]
    ),
    st.integers(1_735_689_600, 1_830_297_600),
)
def test_the_price_is_that_of_the_clock_on_the_wall(zone: str, at_s: int) -> None:
    """For any moment of three years and zones with odd offsets, the period is the one of local time."""
    start_ms = at_s // 10 * 10_000
    assert prices(zone, start_ms) == [by_definition(zone, start_ms)]


def test_an_hour_that_is_skipped_costs_nothing_and_one_that_comes_twice_costs_twice() -> None:
    """Daylight saving: no minute of the day it begins lies in the period from 2 to 3, and 120 of the day it ends do."""
    zone = ZoneInfo("Europe/Berlin")
    for day, minutes in ((dt.date(2026, 3, 29), 0), (dt.date(2026, 3, 30), 60), (dt.date(2026, 10, 25), 120)):
        begin = round(dt.datetime.combine(day, dt.time(), zone).timestamp()) * 1000
        end = round(dt.datetime.combine(day + dt.timedelta(1), dt.time(), zone).timestamp()) * 1000
        of_day = prices("Europe/Berlin", *range(begin, end, 60_000))
        assert of_day.count(50_000) == minutes
        assert len(of_day) == (end - begin) // 60_000


@pytest.mark.parametrize(
    ("local", "price"),
    [
        ("2026-06-05T13:59:50", 200_000),
        ("2026-06-05T14:00:00", 300_000),
        ("2026-06-05T19:29:50", 300_000),
        ("2026-06-05T19:30:00", 200_000),
        ("2026-06-05T23:59:50", 200_000),
        ("2026-06-06T00:00:00", 100_000),
        ("2026-08-31T23:59:50", 200_000),
        ("2026-09-01T00:00:00", 150_000),
    ],
)
def test_periods_begin_and_end_on_their_edges(local: str, price: int) -> None:
    """The window that ends at an edge has the old price, the one that begins there the new."""
    start = dt.datetime.fromisoformat(local).replace(tzinfo=ZoneInfo("America/New_York"))
    assert prices("America/New_York", round(start.timestamp()) * 1000) == [price]


def test_without_a_tariff_nothing_has_a_price() -> None:
    """No row is better than a price of 0."""
    assert per_kwh(Book(), pl.Series([0])).is_empty()
    flat = parse_book(b"[tariff]\nper_kwh = 0.12", "book")
    assert per_kwh(flat, pl.Series([7])).rows() == [(7, 120_000)]
