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
from idlewatt.stream.errors import ConfigError

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
per_kwh = 0.2
[[tariff.period]]
months = [6, 7, 8]
days = ["mon", "tue", "wed", "thu", "fri"]
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
NIGHTS = """
time_zone = "{zone}"
[[tariff.period]]
days = ["sun", "mon", "tue", "wed", "thu"]
begins = "22:00"
ends = "06:00"
per_kwh = 0.1
[[tariff.period]]
days = ["fri", "sat"]
begins = "22:00"
ends = "06:00"
per_kwh = 0.02
[[tariff.period]]
begins = "06:00"
ends = "22:00"
per_kwh = 0.3
"""
ZONES = st.sampled_from(
    [
        "UTC",
        "Europe/Berlin",
        "America/New_York",
        "Asia/Kathmandu",
        "Australia/Lord_Howe",
        "America/St_Johns",
        # clocks go back to before midnight, or over it
        "America/Havana",
        "Africa/Cairo",
    ]
)


def prices(zone: str, *starts_ms: int, text: str = SEASONS) -> list[int]:
    book = parse_book(text.format(zone=zone).encode(), "book")
    found = dict(per_kwh(book, pl.Series(starts_ms, dtype=pl.Int64)).iter_rows())
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
@given(ZONES, st.integers(1_735_689_600, 1_830_297_600))
def test_the_price_is_that_of_the_clock_on_the_wall(zone: str, at_s: int) -> None:
    """For any moment of three years and zones with odd offsets, the period is the one of local time."""
    start_ms = at_s // 10 * 10_000
    assert prices(zone, start_ms) == [by_definition(zone, start_ms)]


@examples(200)
@given(ZONES, st.integers(1_735_689_600, 1_830_297_600))
def test_a_night_is_of_the_day_on_which_it_begins(zone: str, at_s: int) -> None:
    """From 22 to 6 one price holds, whatever midnight and daylight saving do: that of the evening's day."""
    start_ms = at_s // 10 * 10_000
    local = dt.datetime.fromtimestamp(start_ms / 1000, ZoneInfo(zone))
    evening = local.date() - dt.timedelta(local.hour < 6)
    night = 20_000 if evening.strftime("%a") in ("Fri", "Sat") else 100_000
    assert prices(zone, start_ms, text=NIGHTS) == [300_000 if 6 <= local.hour < 22 else night]


def test_a_season_begins_and_ends_at_midnight() -> None:
    """What goes round midnight is of the month that each of its hours lies in, so that seasons need no more periods."""
    text = """
time_zone = "{zone}"
[[tariff.period]]
months = [6]
begins = "22:00"
ends = "06:00"
per_kwh = 0.1
[[tariff.period]]
months = [6]
begins = "06:00"
ends = "22:00"
per_kwh = 0.3
[[tariff.period]]
months = [1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12]
per_kwh = 0.2
"""
    for local, price in (
        ("2026-05-31T23:59:50", 200_000),
        ("2026-06-01T00:00:00", 100_000),
        ("2026-06-30T23:59:50", 100_000),
        ("2026-07-01T00:00:00", 200_000),
    ):
        start = dt.datetime.fromisoformat(local).replace(tzinfo=ZoneInfo("Europe/Berlin"))
        assert prices("Europe/Berlin", round(start.timestamp()) * 1000, text=text) == [price]


def test_nights_of_named_days_cover_the_week_once() -> None:
    """Working days' nights end on Saturday morning, and Monday's begins on Sunday: a book that forgets it is refused."""
    text = """
[[tariff.period]]
days = ["mon", "tue", "wed", "thu", "fri"]
begins = "14:00"
ends = "19:00"
per_kwh = 0.3
[[tariff.period]]
days = ["mon", "tue", "wed", "thu", "fri"]
begins = "19:00"
ends = "14:00"
per_kwh = 0.2
[[tariff.period]]
days = ["sat", "sun"]
per_kwh = 0.1
"""
    with pytest.raises(ConfigError) as caught:
        parse_book(text.encode(), "book")
    hint = "; what goes round midnight is of the days on which it begins"
    told = str(caught.value)
    assert f"leaves a gap: no period covers month 1, mon, 00:00{hint}" in told
    assert f"number 2 and number 3 overlap: both cover month 1, sat, 00:00{hint}" in told
    weekend = '["sat", "sun"]\nbegins = "14:00"\nends = "14:00"'
    parse_book(text.replace('["sat", "sun"]', weekend).encode(), "book")


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
