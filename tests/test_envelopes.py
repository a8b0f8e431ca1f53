"""Envelopes hold what their consumers used in each local day, week and month, once, and nothing that is not known."""

import datetime as dt
import gc
import itertools
import random
import time
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from idlewatt.cli.book_sample import SAMPLE_BOOK
from idlewatt.processors.economy import envelopes
from idlewatt.processors.economy.book import CONSUMER_KINDS, MICRO, Book
from idlewatt.processors.economy.book_file import parse_book
from idlewatt.processors.economy.envelope_figures import envelope_figures, midnight_ms, period_bounds
from idlewatt.processors.economy.envelopes import BURN_WINDOWS, EnvelopeState
from idlewatt.processors.snapshot import read_snapshot, write_snapshot
from idlewatt.stream import records
from idlewatt.stream.frames import frame_schema
from idlewatt.stream.globs import matches
from idlewatt.stream.records import ConsumerRow

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS
# a Monday, and the first day of a month
START_MS = 1_780_272_000_000
BERLIN = ZoneInfo("Europe/Berlin")


def book(*tables: dict[str, Any], time_zone: str = "UTC", currency: str = "USD") -> Book:
    """A book of envelopes; what a table leaves out is each engineer's 100 USD a day."""
    lines = [f'time_zone = "{time_zone}"', f'currency = "{currency}"']
    for table in tables:
        whole = {
            "name": "e",
            "kind": "engineer",
            "match": "*",
            "limit": 100,
            "unit": currency,
            "period": "day",
        } | table
        lines.append("[[envelope]]")
        lines += [f"{key} = {str(v).lower() if isinstance(v, bool) else repr(v)}" for key, v in whole.items()]
    return parse_book("\n".join(lines).encode(), "book")


def row(at_ms: int, spend: float | None = 1, tokens: int = 10, **names: str) -> ConsumerRow:
    """Tokens of one minute, for so many dollars."""
    known = (
        dict.fromkeys(CONSUMER_KINDS, "") | {"engineer": "kim"} | {"site": "hall", "currency": "USD"} | names
    )
    return ConsumerRow(
        window_start_ms=at_ms // MINUTE_MS * MINUTE_MS,
        window_ms=MINUTE_MS,
        source="gateway",
        model_name="m",
        tier="standard",
        output_tokens=tokens - tokens // 2 - tokens // 4,
        input_tokens=tokens // 2,
        cached_input_tokens=tokens // 4,
        spend_micro=None if spend is None else round(spend * MICRO),
        **known,
    )


def frame(rows: Sequence[ConsumerRow]) -> pl.DataFrame:
    schema = frame_schema(records.CONSUMER)
    return pl.DataFrame(
        [[getattr(one, name) for name in schema] for one in rows], schema=schema, orient="row"
    )


def restarted(state: EnvelopeState) -> EnvelopeState:
    return EnvelopeState.of(read_snapshot("test/1", write_snapshot("test/1", {}, state.frames()))[1])


def state_of(*batches: Sequence[ConsumerRow], end_ms: int | None, zone: str = "UTC") -> EnvelopeState:
    """Batches read one after the other, with a restart between them; `end_ms`: when the last one was."""
    state, newest = EnvelopeState.empty(), dict[str, int]()
    for number, batch in enumerate(batches, 1):
        for one in batch:
            newest[one.site] = max(one.window_start_ms, newest.get(one.site, 0))
        sites = pl.DataFrame(
            sorted(newest.items()), schema={"site": pl.String, "newest_ms": pl.Int64}, orient="row"
        )
        at_ms = end_ms if number == len(batches) else None
        state = restarted(envelopes.used(state, frame(batch), sites, zone, at_ms))
    return state


def figures(
    terms: Book, rows: Sequence[ConsumerRow], end_ms: int | None
) -> dict[tuple[str, str], dict[str, Any]]:
    """Figures by envelope and consumer, of one site that is watched from its earliest row on."""
    rows = sorted(rows, key=lambda one: one.window_start_ms)
    batches = [batch for batch in (rows[:1], rows[1:]) if batch]
    found = envelope_figures(state_of(*batches, end_ms=end_ms, zone=terms.time_zone), terms)
    return {(one["envelope"], one["consumer"]): one for one in found.to_dicts()}


@dataclass(frozen=True)
class Local:
    """Local times of a zone as Unix milliseconds."""

    zone: ZoneInfo = BERLIN

    def __call__(self, text: str) -> int:
        return round(dt.datetime.fromisoformat(text).replace(tzinfo=self.zone).timestamp()) * 1000


def test_each_consumer_has_an_envelope_of_its_own() -> None:
    """An envelope with `each` is one limit a consumer; without it, one limit for all that match."""
    terms = book(
        {"name": "own", "each": True}, {"name": "all", "match": "k*", "unit": "tokens", "limit": 1000}
    )
    rows = [row(START_MS, 3, 7), row(START_MS, 4, 20, engineer="kai"), row(START_MS, 9, 9, engineer="ann")]
    found = figures(terms, rows, START_MS + HOUR_MS)
    used = {key: (one["used"], one["limit"]) for key, one in found.items()}
    assert used == {
        ("own", "kim"): (3 * MICRO, 100 * MICRO),
        ("own", "kai"): (4 * MICRO, 100 * MICRO),
        ("own", "ann"): (9 * MICRO, 100 * MICRO),
        # of whoever comes next
        ("own", ""): (0, 100 * MICRO),
        ("all", "k*"): (27, 1000),
    }


def test_a_name_that_nobody_told_matches_nothing() -> None:
    """Usage without an engineer is in no engineer's envelope, although * matches everything."""
    terms = book({"name": "own", "each": True}, {"name": "all"})
    found = figures(terms, [row(START_MS, 3, engineer="", team="search")], START_MS + HOUR_MS)
    assert {key: one["used"] for key, one in found.items()} == {("own", ""): 0, ("all", "*"): 0}


def test_only_star_and_question_mark_are_special() -> None:
    """Everything else in a glob stands for itself, and a glob is for the whole name."""
    names = ["a.b", "aXb", "a[x]", "ax", "a+", "a b", "a\nb"]
    for glob, matched in {
        "a.b": ["a.b"],
        "a?b": ["a.b", "aXb", "a b", "a\nb"],
        "a[x]": ["a[x]"],
        "a+": ["a+"],
    }.items():
        terms = book({"match": glob, "each": True})
        found = figures(terms, [row(START_MS, engineer=name) for name in names], START_MS)
        assert {consumer for _, consumer in found} == {"", *matched}


def test_a_name_matches_in_an_answer_as_it_does_in_figures() -> None:
    """A glob means the same to a request and to what is counted, whatever stands in the name."""
    names = [
        "kim",
        "kim\n",
        "\nkim",
        "kai",
        "a-b-x",
        "a--x",
        "-x",
        "x-x-x",
        "a.b",
        "[x]",
        "ö",
        "(?>x)",
        "a b",
    ]
    globs = [
        "kim",
        "k*",
        "*m",
        "*-*-x",
        "**x",
        "?",
        "k?m*",
        "*k?m*",
        "*x*-*x",
        "[x]",
        "(?>x)",
        "a?*b",
        "*i*i*",
    ]
    for glob in globs:
        terms = book({"match": glob, "each": True})
        found = figures(terms, [row(START_MS, engineer=name) for name in names], START_MS)
        counted = {consumer for _, consumer in found} - {""}
        assert counted == {name for name in names if matches(name, glob)}, glob
        assert counted == {name for name in names if fnmatchcase(name, glob.replace("[", "[[]"))}, glob


def test_a_long_name_costs_a_request_no_more() -> None:
    """However many stars a glob has, the time to match a name grows no faster than the name."""
    begin_s = time.monotonic()
    assert not matches("-" * 20_000, "*-*-*-*-*-*-x")
    assert matches("-" * 20_000 + "x", "*-*-*-*-*-*-x")
    assert time.monotonic() - begin_s < 5


def test_an_outer_envelope_counts_each_row_once() -> None:
    """A row counts for an envelope that it matches or that an inner one lies in, however many of them match."""
    terms = book(
        {"name": "research", "kind": "function", "match": "research", "period": "month"},
        {"name": "search", "kind": "team", "match": "search", "within": "research"},
        {"name": "people", "match": "k*", "within": "search"},
        {"name": "each", "match": "*", "each": True, "within": "people"},
    )
    rows = [
        row(START_MS, 1, function="research", team="search"),
        row(START_MS, 2, team="search", engineer="ann"),
        row(START_MS, 4, engineer="kai"),
        row(START_MS, 8, function="research", engineer=""),
        row(START_MS, 16, function="sales", team="crm", engineer=""),
    ]
    found = figures(terms, rows, START_MS + HOUR_MS)
    assert {key: one["used"] // MICRO for key, one in found.items()} == {
        ("research", "research"): 15,
        ("search", "search"): 7,
        # ann's are in it, for they are in each engineer's, which lies within
        ("people", "k*"): 7,
        ("each", "kim"): 1,
        ("each", "ann"): 2,
        ("each", "kai"): 4,
        ("each", ""): 0,
    }


@pytest.mark.parametrize(
    ("period", "before", "first", "last", "after"),
    [
        # clocks go forward at 2 on the 29th, a day of 23 hours, and back at 3 on October 25th, one of 25
        ("day", "2026-03-28T23:59", "2026-03-29T00:00", "2026-03-29T23:59", "2026-03-30T00:00"),
        ("day", "2026-10-24T23:59", "2026-10-25T00:00", "2026-10-25T23:59", "2026-10-26T00:00"),
        ("week", "2026-10-18T23:59", "2026-10-19T00:00", "2026-10-25T23:59", "2026-10-26T00:00"),
        ("month", "2026-02-28T23:59", "2026-03-01T00:00", "2026-03-31T23:59", "2026-04-01T00:00"),
        ("month", "2026-12-31T23:59", "2027-01-01T00:00", "2027-01-31T23:59", "2027-02-01T00:00"),
    ],
)
def test_periods_are_those_of_the_local_calendar(
    period: str, before: str, first: str, last: str, after: str
) -> None:
    """Periods begin at local midnight, weeks on Monday, and are as long as daylight saving makes them."""
    at = Local()
    terms = book({"period": period, "each": True}, time_zone="Europe/Berlin")
    rows = [row(at(before), 1), row(at(first), 2), row(at(last), 4), row(at(after), 8)]
    found = figures(terms, rows[:3], at(last) + 1000)["e", "kim"]
    assert (found["start_ms"], found["end_ms"]) == (at(first), at(after))
    assert found["used"] == 6 * MICRO
    # read before the first minute of the next period was, and after
    assert figures(terms, rows, at(after) + 1000)["e", "kim"]["used"] == 8 * MICRO


def test_days_that_have_no_midnight_begin_at_the_change() -> None:
    """Where clocks go forward at midnight the day begins at one o'clock, and no minute is in two days or none."""
    zone = "Africa/Cairo"
    day = dt.date(2026, 4, 24)
    start_ms = midnight_ms(day, zone)
    assert (
        dt.datetime.fromtimestamp(start_ms / 1000, ZoneInfo(zone)).isoformat() == "2026-04-24T01:00:00+03:00"
    )
    assert period_bounds("day", start_ms, zone)[0] == day
    assert period_bounds("day", start_ms - 1, zone)[0] == day - dt.timedelta(1)
    terms = book({"each": True}, time_zone=zone)
    found = figures(terms, [row(start_ms - MINUTE_MS, 1), row(start_ms, 2)], start_ms + MINUTE_MS)
    assert found["e", "kim"]["used"] == 2 * MICRO


def test_a_period_ends_although_nobody_uses_anything() -> None:
    """Whoever was at the limit yesterday is told of 0 today without a row of today."""
    terms = book({"each": True})
    state = state_of([row(START_MS, 100)], end_ms=START_MS + DAY_MS - 1)
    newest = pl.DataFrame({"site": ["hall"], "newest_ms": [START_MS]})
    same = envelopes.passed(state, newest, START_MS + DAY_MS - 1)
    assert same is state
    after = envelopes.passed(state, newest, START_MS + DAY_MS)
    used = [
        envelope_figures(found, terms).filter(pl.col("consumer") == "kim").get_column("used").item()
        for found in (state, after)
    ]
    assert used == [100 * MICRO, 0]


def test_late_rows_count_where_they_belong() -> None:
    """What comes a day late is yesterday's use: not today's, and taken off what was left."""
    terms = book({"each": True, "roll_over": True})
    begun = row(START_MS, 0, engineer="ann")
    late = row(START_MS + HOUR_MS, 30)
    today = row(START_MS + DAY_MS + HOUR_MS, 5)
    end_ms = START_MS + DAY_MS + 2 * HOUR_MS
    before = figures(terms, [begun, today], end_ms)["e", "kim"]
    assert (before["used"], before["limit"]) == (5 * MICRO, 200 * MICRO)
    state = state_of([begun], [today], [late], end_ms=end_ms)
    after = envelope_figures(state, terms).filter(pl.col("consumer") == "kim").row(0, named=True)
    assert (after["used"], after["limit"]) == (5 * MICRO, 170 * MICRO)


@pytest.mark.parametrize(
    ("spent", "limit"),
    [
        ((0, 40, 0), 160),
        # overdrawn is not taken off the next one
        ((0, 140, 0), 100),
        # what was left two days ago is gone, and what rolled over into yesterday does not roll on
        ((0, 0, 0), 200),
        ((100, 150, 0), 100),
    ],
)
def test_what_was_left_rolls_over_once(spent: tuple[int, int, int], limit: int) -> None:
    """The limit is what the book says and what was left of that in the period before; nothing of earlier ones."""
    rows = [row(START_MS + day * DAY_MS, dollars) for day, dollars in enumerate(spent)]
    found = figures(book({"each": True, "roll_over": True}), rows, START_MS + 2 * DAY_MS + HOUR_MS)
    assert found["e", "kim"]["limit"] == limit * MICRO


def test_nothing_rolls_over_from_a_period_that_was_not_seen_whole() -> None:
    """What nobody measured was not left over: the first whole period is the first to roll over."""
    terms = book({"each": True, "roll_over": True})
    rows = [row(START_MS + HOUR_MS, 1), row(START_MS + DAY_MS, 0)]
    assert figures(terms, rows, START_MS + DAY_MS + HOUR_MS)["e", "kim"]["limit"] == 100 * MICRO
    rows.append(row(START_MS + 2 * DAY_MS, 0))
    assert figures(terms, rows, START_MS + 2 * DAY_MS + HOUR_MS)["e", "kim"]["limit"] == 200 * MICRO


def test_usage_dated_back_makes_no_period_seen_whole() -> None:
    """A row of two days ago says nothing of what else was used then: no roll-over and no burn rate for it."""
    terms = book({"each": True, "roll_over": True})
    now_ms = START_MS + DAY_MS + HOUR_MS
    today, dated_back = row(now_ms, 1), row(START_MS - HOUR_MS, 0.000001, engineer="ann")
    for batches in ([[today], [dated_back]], [[today, dated_back]], [[dated_back, today]]):
        found = envelope_figures(state_of(*batches, end_ms=now_ms + HOUR_MS), terms)
        kim = found.filter(pl.col("consumer") == "kim").row(0, named=True)
        assert (kim["since_ms"], kim["limit"], kim["burn_6h"]) == (now_ms, 100 * MICRO, None)


def test_nothing_is_known_until_the_log_was_read_to_its_end() -> None:
    """While the past is still being read everybody seems to have used less than he has: no figure at all."""
    terms = book({"each": True})
    assert not figures(terms, [row(START_MS, 40)], None)
    assert figures(terms, [row(START_MS, 40)], START_MS + MINUTE_MS)["e", "kim"]["used"] == 40 * MICRO
    assert envelope_figures(EnvelopeState.empty(), terms).is_empty()


def test_after_a_restart_figures_go_on_from_where_they_were() -> None:
    """A processor that takes over behind shows what was committed, and then more; never 0 in between."""
    terms = book({"each": True})
    state = state_of([row(START_MS + HOUR_MS, 40)], end_ms=START_MS + 2 * HOUR_MS)
    newest = pl.DataFrame({"site": ["hall"], "newest_ms": [START_MS + 3 * HOUR_MS]})
    more = envelopes.used(restarted(state), frame([row(START_MS + 3 * HOUR_MS, 5)]), newest, "UTC", None)
    for found, used in ((restarted(state), 40), (more, 45)):
        by_consumer = {one["consumer"]: one for one in envelope_figures(found, terms).to_dicts()}
        assert by_consumer["kim"]["used"] == used * MICRO
    assert by_consumer["kim"]["as_of_ms"] == START_MS + 3 * HOUR_MS


def test_a_gigawatts_money_in_dong_is_more_than_64_bits_hold() -> None:
    """What was used goes on rising."""
    terms = book({"period": "month", "limit": 10**12}, currency="VND")
    spent = [row(START_MS + hour * HOUR_MS, 5e12, currency="VND") for hour in range(3)]
    found = figures(terms, spent, START_MS + 4 * HOUR_MS)["e", "*"]
    assert found["used"] == 15 * 10**12 * MICRO
    assert found["exhaustion_ms"] is None


def test_money_is_withheld_where_tokens_have_no_price() -> None:
    """An envelope in money with unpriced tokens in it has no use, no burn rate, no forecast; in tokens it has all."""
    terms = book(
        {"name": "money", "each": True}, {"name": "tokens", "unit": "tokens", "limit": 100, "each": True}
    )
    rows = [row(START_MS, 0), row(START_MS + 4 * HOUR_MS, 5), row(START_MS + 4 * HOUR_MS, None, 33)]
    found = figures(terms, [*rows, row(START_MS, 7, engineer="ann")], START_MS + 5 * HOUR_MS)
    money, tokens = found["money", "kim"], found["tokens", "kim"]
    assert (money["used"], money["unpriced_tokens"], money["limit"]) == (None, 33, 100 * MICRO)
    assert (money["burn_1h"], money["exhaustion_ms"]) == (None, None)
    assert (tokens["used"], tokens["unpriced_tokens"]) == (53, 0)
    assert tokens["burn_1h"] > 0
    assert found["money", "ann"]["used"] == 7 * MICRO
    # the next day is known again, and what was left of the unknown one is not
    next_day = figures(book({"each": True, "roll_over": True}), rows, START_MS + DAY_MS + HOUR_MS)["e", "kim"]
    assert (next_day["used"], next_day["limit"]) == (0, 100 * MICRO)


def test_an_envelope_that_is_used_up_stays_so_when_something_has_no_price() -> None:
    """A new model without a price may not give a consumer his budget back until the month is over."""
    spent = row(START_MS + HOUR_MS, 120)
    for limit, used in ((100, 120 * MICRO), (130, None)):
        terms = book({"each": True, "period": "month", "limit": limit})
        found = figures(terms, [spent, row(START_MS + HOUR_MS, None, 33)], START_MS + 5 * HOUR_MS)["e", "kim"]
        assert (found["used"], found["unpriced_tokens"]) == (used, 33)


def test_money_of_another_currency_is_never_added() -> None:
    """When the book's currency changes, what was spent before is unknown in the new one, until the next period."""
    terms = book({"each": True, "unit": "EUR"}, currency="EUR")
    rows = [row(START_MS, 5), row(START_MS + HOUR_MS, 3, currency="EUR")]
    found = figures(terms, rows, START_MS + 2 * HOUR_MS)["e", "kim"]
    assert (found["used"], found["unpriced_tokens"]) == (None, 10)
    rows.append(row(START_MS + DAY_MS, 4, currency="EUR"))
    assert figures(terms, rows, START_MS + DAY_MS + HOUR_MS)["e", "kim"]["used"] == 4 * MICRO


def test_burn_rates_are_multiples_of_the_even_rate() -> None:
    """24 USD a day is 1 an hour: who spent 6 in the last hour burns 6 times as fast, and has none left in an hour."""
    terms = book({"each": True, "limit": 24})
    rows = [row(START_MS, 0), *(row(START_MS + minute * MINUTE_MS, 0.1) for minute in range(600, 660))]
    found = figures(terms, rows, START_MS + 11 * HOUR_MS)["e", "kim"]
    assert found["used"] == 6 * MICRO
    assert {window: found[f"burn_{window}"] for window in BURN_WINDOWS} == {
        "5m": pytest.approx(6),
        "1h": pytest.approx(6),
        "6h": pytest.approx(1),
        # since midnight
        "3d": pytest.approx(6 / 11),
    }
    assert found["exhaustion_ms"] == START_MS + 14 * HOUR_MS


def test_a_burn_window_is_divided_by_its_real_length() -> None:
    """A window begins with a bucket: at 00:03 past the hour "1h" is 63 minutes, and the rate is over 63."""
    terms = book({"each": True, "limit": 24})
    rows = [row(START_MS + minute * MINUTE_MS, 0.1) for minute in range(300)]
    found = figures(terms, rows, START_MS + 183 * MINUTE_MS)
    # rows from the future of this moment are none: the newest row moves the moment
    assert found["e", "kim"]["as_of_ms"] == START_MS + 299 * MINUTE_MS
    found = figures(terms, rows[:183], START_MS + 183 * MINUTE_MS)
    assert found["e", "kim"]["burn_1h"] == pytest.approx(6)
    # since midnight
    assert found["e", "kim"]["burn_6h"] == pytest.approx(18.3 / 3.05)
    # nobody has watched for so long
    late = figures(terms, [one for one in rows if one.window_start_ms > START_MS], START_MS + 6 * HOUR_MS)
    assert (late["e", "kim"]["burn_6h"], late["e", "kim"]["burn_3d"]) == (None, None)


@pytest.mark.parametrize("period", ["day", "week", "month"])
@pytest.mark.parametrize("zone", ["UTC", "Asia/Kathmandu", "America/New_York"])
def test_what_was_used_before_the_period_burns_nothing_of_it(period: str, zone: str) -> None:
    """Who has stopped before midnight is at rest after it, also where midnight lies within a bucket."""
    terms = book({"each": True, "limit": 24, "period": period}, time_zone=zone)
    # a Monday and a month's first
    midnight_ms = Local(ZoneInfo(zone))("2026-06-01T00:00")
    rows = [row(midnight_ms - minute * MINUTE_MS, 0.5) for minute in (6000, *range(1, 300))]
    for minute in (0, 3, 59, 200, 400, 1439):
        found = figures(terms, rows, midnight_ms + minute * MINUTE_MS)["e", "kim"]
        assert {found[f"burn_{window}"] for window in BURN_WINDOWS} == {0}
        assert (found["used"], found["exhaustion_ms"]) == (0, None)


@pytest.mark.parametrize("before", [0, 0.05])
def test_after_midnight_a_burst_burns_and_one_request_does_not(before: float) -> None:
    """Rates are over no less than an hour of a day, whatever was used the day before: not over one minute of it."""
    terms = book({"each": True, "limit": 24})
    midnight_ms = START_MS + DAY_MS
    past = [row(midnight_ms - minute * MINUTE_MS, before) for minute in range(1, 1441)]
    for spent, burn_1h in ((1, 1), (15, 15)):
        rows = [*past, row(midnight_ms + MINUTE_MS, spent)]
        found = figures(terms, rows, midnight_ms + 2 * MINUTE_MS)["e", "kim"]
        burns = [found[f"burn_{window}"] for window in BURN_WINDOWS]
        assert burns == pytest.approx([12 * burn_1h, *[burn_1h] * 3])
    assert found["exhaustion_ms"] == midnight_ms + 2 * MINUTE_MS + 36 * MINUTE_MS


@pytest.mark.parametrize(
    ("spends", "why"),
    [
        ({600: 0}, "nobody burns anything"),
        ({600: 0.01}, "it lasts until midnight"),
        ({600: 24}, "it is exhausted already"),
        ({100: 20}, "nothing was used in the last hour"),
        ({hour * 60: 1 for hour in range(11)}, "it lasts just until midnight"),
    ],
)
def test_exhaustion_is_absent_unless_it_comes(spends: dict[int, float], why: str) -> None:
    """A forecast is a moment before the period's end, or nothing: never infinity, never the past."""
    terms = book({"each": True, "limit": 24})
    rows = [
        row(START_MS, 0),
        *(row(START_MS + minute * MINUTE_MS, dollars) for minute, dollars in spends.items()),
    ]
    assert figures(terms, rows, START_MS + 11 * HOUR_MS)["e", "kim"]["exhaustion_ms"] is None, why


def test_a_changed_envelope_is_right_at_once() -> None:
    """A new envelope counts what was used before it stood in the book, for sums are kept by consumer."""
    state = state_of([row(START_MS, 3)], [row(START_MS + DAY_MS, 4)], end_ms=START_MS + DAY_MS)
    for period, used in (("day", 4), ("week", 7), ("month", 7)):
        terms = book({"name": "new", "period": period, "match": "k*"})
        assert envelope_figures(state, terms).get_column("used").to_list() == [used * MICRO]


def test_the_sample_book_has_an_engineer_s_default_envelope() -> None:
    """`idlewatt config --book` holds every engineer to 1,000 USD a day, new ones to 100, and all within their function."""
    terms = parse_book(SAMPLE_BOOK.encode(), "sample")
    rows = [
        row(START_MS, 3),
        row(START_MS, 4, engineer="new-bo"),
        row(START_MS, 5, engineer="", function="engineering"),
    ]
    found = figures(terms, rows, START_MS + HOUR_MS)
    held = {
        key: (one["limit"] // MICRO, one["used"] // MICRO)
        for key, one in found.items()
        if one["unit"] == "USD"
    }
    assert held == {
        ("engineering", "engineering"): (250_000, 12),
        ("engineers", "kim"): (1000, 3),
        ("engineers", "new-bo"): (1000, 4),
        ("engineers", ""): (1000, 0),
        ("new engineers", "new-bo"): (100, 4),
        ("new engineers", ""): (100, 0),
    }


def test_a_state_that_is_gone_takes_its_figures_with_it() -> None:
    """Every commit makes a state, and nothing that was computed of it outlives it."""
    terms = book({"each": True})
    states = [state_of([row(START_MS + day * DAY_MS)], end_ms=START_MS + day * DAY_MS) for day in range(5)]
    for state in states:
        assert envelope_figures(state, terms) is envelope_figures(state, terms)
    kept = [weakref.ref(envelope_figures(state, terms)) for state in states]
    gone = [weakref.ref(state) for state in states]
    del states[:-1]
    state = states[0]
    gc.collect()
    assert [one() is None for one in gone] == [one() is None for one in kept] == [True] * 4 + [False]
    # of a book that was in force before, nothing is kept either
    envelope_figures(state, book({"each": True, "limit": 7}))
    gc.collect()
    assert kept[-1]() is None


def test_use_that_may_stand_under_another_name_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound a name whose new rows are counted as (other) has no use, burn or forecast, rather than too little."""
    monkeypatch.setattr(envelopes, "MAX_CONSUMERS", 4)
    terms = book(
        {"name": "own", "each": True},
        {"name": "team", "kind": "team", "match": "search", "roll_over": True},
        {"name": "some", "match": "k*"},
        {"name": "all", "match": "*"},
    )
    first = [
        row(START_MS, 1, team="search", agent_family="chat"),
        *(row(START_MS, 2, engineer=name) for name in ("kai", "ann", "bo")),
    ]
    second = [
        row(START_MS + HOUR_MS, 70, team="search", agent_family="coder"),
        row(START_MS + HOUR_MS, 5, engineer="kai"),
    ]

    def told(state: EnvelopeState) -> dict[tuple[str, str], tuple[int | None, bool]]:
        found = envelope_figures(state, terms).to_dicts()
        assert all((one["burn_1h"] is None) >= one["is_folded"] for one in found)
        return {
            (one["envelope"], one["consumer"]): (
                one["used"] and one["used"] // MICRO,
                one["exhaustion_ms"] is None,
            )
            for one in found
            if one["consumer"] != "(other)"
        }

    state = state_of(first, second, end_ms=START_MS + 2 * HOUR_MS)
    assert told(state) == {
        ("own", "kim"): (None, True),
        ("own", "kai"): (7, False),
        ("own", "ann"): (2, True),
        ("own", "bo"): (2, True),
        # a stranger may be in it
        ("own", ""): (None, True),
        ("team", "search"): (None, True),
        ("some", "k*"): (None, True),
        ("all", "*"): (82, False),
    }
    # the next day all is known again, but for what was left of this one
    newest = pl.DataFrame({"site": ["hall"], "newest_ms": [START_MS + HOUR_MS]})
    for hour in (1, 7):
        state = envelopes.passed(restarted(state), newest, START_MS + DAY_MS + hour * HOUR_MS)
        found = {(one["envelope"], one["consumer"]): one for one in envelope_figures(state, terms).to_dicts()}
        kim, search = found["own", "kim"], found["team", "search"]
        assert (kim["used"], search["used"], search["limit"]) == (0, 0, 100 * MICRO)
        assert (kim["burn_1h"], kim["burn_6h"], kim["burn_3d"]) == (0, 0, 0)


def test_what_is_over_makes_room_for_new_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first row of a month comes after what is two months old is forgotten: its name is kept apart from then on."""
    monkeypatch.setattr(envelopes, "MAX_CONSUMERS", 4)
    july_ms = START_MS + 30 * DAY_MS
    terms = book({"each": True, "period": "month"})
    april = [row(START_MS - 40 * DAY_MS, 0, 1, engineer=f"e{i}") for i in range(4)]
    july = [row(july_ms + MINUTE_MS, 60)]
    state = state_of(april, july, [row(july_ms + 2 * HOUR_MS, 5)], end_ms=july_ms + 3 * HOUR_MS)
    found = {one["consumer"]: one["used"] for one in envelope_figures(state, terms).to_dicts()}
    assert found == {"": 0, "kim": 65 * MICRO}


def test_who_is_kept_apart_late_may_have_been_folded_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that finds room while others of the period are counted as (other) is known from the next period on."""
    monkeypatch.setattr(envelopes, "MAX_CONSUMERS", 3)
    terms = book({"each": True})
    first = [row(START_MS - 40 * DAY_MS, 0, 1, engineer=f"e{i}", site="moon") for i in range(3)]
    folded, room = [row(START_MS, 60)], [row(START_MS + HOUR_MS, 0, 1, engineer="e0", site="moon")]
    later = [row(START_MS + 2 * HOUR_MS, 5)]
    state = state_of(first, folded, room, later, end_ms=START_MS + 3 * HOUR_MS)
    kim = envelope_figures(state, terms).filter(pl.col("consumer") == "kim")
    assert kim.get_column("used").to_list() == [None]
    state = state_of(
        first, folded, room, later, [row(START_MS + DAY_MS, 7)], end_ms=START_MS + DAY_MS + HOUR_MS
    )
    kim = envelope_figures(state, terms).filter(pl.col("consumer") == "kim")
    assert kim.get_column("used").to_list() == [7 * MICRO]


def test_state_is_bounded() -> None:
    """A year of usage leaves two periods of each length and no more buckets than the windows need."""
    days = [[row(START_MS + day * DAY_MS + hour * HOUR_MS, 1) for hour in range(24)] for day in range(100)]
    state = state_of(*days, end_ms=None)
    assert state.periods.height == 6
    assert state.buckets.height <= sum(2 + length // width for length, width in BURN_WINDOWS.values())


SPENT = st.tuples(
    st.integers(0, 70 * 24 * 60),
    st.one_of(st.none(), st.integers(0, 10**13)),
    st.integers(1, 10**12),
    st.sampled_from(["", "research", "sales"]),
    st.sampled_from(["", "search", "crm"]),
    st.sampled_from(["", "kim", "kai", "ann"]),
)
NESTED = (
    {"name": "research", "kind": "function", "match": "res*", "period": "month", "unit": "tokens"},
    {"name": "teams", "kind": "team", "match": "*", "period": "week", "within": "research"},
    {"name": "own", "match": "k*", "each": True, "within": "teams", "unit": "tokens"},
    {"name": "month", "match": "*", "each": True, "period": "month", "roll_over": True},
)


def expected(terms: Book, rows: Iterable[ConsumerRow], at_ms: int) -> dict[tuple[str, str], int | None]:
    """What each envelope holds at a moment, added up row by row by the local calendar.

    Not known where something has no price, unless the rest is the limit already.
    """
    zone = ZoneInfo(terms.time_zone)

    def period(name: str, ms: int) -> tuple[int, ...]:
        day = dt.datetime.fromtimestamp(ms / 1000, zone).date()
        return {"day": (day.toordinal(),), "week": day.isocalendar()[:2], "month": (day.year, day.month)}[
            name
        ]

    def counts(one: ConsumerRow, name: str) -> bool:
        envelope = next(e for e in terms.envelope if e.name == name)
        consumer = getattr(one, envelope.kind)
        if consumer and fnmatchcase(consumer, envelope.match):
            return True
        inner = (e.name for e in terms.envelope if e.within == name)
        return not envelope.each and any(counts(one, e) for e in inner)

    sums = {(e.name, "" if e.each else e.match): 0 for e in terms.envelope}
    unpriced: set[tuple[str, str]] = set()
    for one, envelope in itertools.product(rows, terms.envelope):
        if not counts(one, envelope.name):
            continue
        key = (envelope.name, getattr(one, envelope.kind) if envelope.each else envelope.match)
        sums.setdefault(key, 0)
        if period(envelope.period, one.window_start_ms) != period(envelope.period, at_ms):
            continue
        tokens = one.output_tokens + one.input_tokens + one.cached_input_tokens
        amount = tokens if envelope.unit == "tokens" else one.spend_micro
        sums[key] += amount or 0
        if amount is None:
            unpriced.add(key)
    limits = {e.name: int(e.limit * (1 if e.unit == "tokens" else MICRO)) for e in terms.envelope}
    return {key: None if key in unpriced and used < limits[key[0]] else used for key, used in sums.items()}


@examples(20)
@given(
    st.lists(SPENT, min_size=1, max_size=25),
    st.sampled_from(["UTC", "Europe/Berlin", "America/St_Johns", "Pacific/Apia", "Africa/Cairo"]),
    st.randoms(use_true_random=False),
)
def test_money_and_tokens_are_conserved(
    spent: list[tuple[int, int | None, int, str, str, str]], zone: str, chance: random.Random
) -> None:
    """Each envelope is the sum of its rows of the period, however they are ordered, batched and restarted between."""
    # around the change to winter time
    start_ms = 1_791_000_000_000 // MINUTE_MS * MINUTE_MS
    begun = row(start_ms, 0, 0, engineer="")
    rows = [
        row(
            start_ms + minute * MINUTE_MS,
            None if micro is None else micro / MICRO,
            tokens,
            function=f,
            team=t,
            engineer=e,
        )
        for minute, micro, tokens, f, t, e in spent
    ]
    terms = book(*NESTED, time_zone=zone)
    newest_ms = max(one.window_start_ms for one in rows)
    end_ms = newest_ms + chance.randrange(0, 3 * HOUR_MS)
    whole = envelope_figures(state_of([begun], rows, end_ms=end_ms, zone=zone), terms)
    kept = {(one["envelope"], one["consumer"]): one["used"] for one in whole.to_dicts()}
    # who has used nothing for two months may be forgotten: it is 0 of his envelope
    truth = expected(terms, rows, end_ms)
    assert {key: used for key, used in truth.items() if used != 0 or key in kept} == kept
    shuffled = chance.sample(rows, len(rows))
    cuts = sorted(chance.sample(range(len(rows) + 1), min(3, len(rows))))
    batches = [shuffled[a:b] for a, b in itertools.pairwise([0, *cuts, len(rows)])]
    again = envelope_figures(state_of([begun], *batches, end_ms=end_ms, zone=zone), terms)
    assert again.equals(whole)


@examples(20)
@given(st.lists(SPENT, min_size=1, max_size=25), st.integers(1, 4), st.randoms(use_true_random=False))
def test_beyond_the_bound_a_figure_is_true_or_absent(
    spent: list[tuple[int, int | None, int, str, str, str]], most: int, chance: random.Random
) -> None:
    """With room for few names each use and burn rate that is shown is what it would be with room for all."""
    start_ms = 1_791_000_000_000 // MINUTE_MS * MINUTE_MS
    # close together, for (other) to stand in the periods of some and not of others
    rows = [
        row(start_ms + minute // 8 * MINUTE_MS, (micro or 0) / MICRO, tokens, function=f, team=t, engineer=e)
        for minute, micro, tokens, f, t, e in spent
    ]
    terms = book(*NESTED, {"name": "crm", "kind": "team", "match": "crm"})
    chance.shuffle(rows)
    cuts = sorted(chance.sample(range(1, len(rows) + 1), min(6, len(rows))))
    batches = [rows[a:b] for a, b in itertools.pairwise([0, *cuts, len(rows)]) if a < b]
    end_ms = max(one.window_start_ms for one in rows) + chance.randrange(0, 30 * HOUR_MS)
    true = {
        (one["envelope"], one["consumer"]): one
        for one in envelope_figures(state_of(*batches, end_ms=end_ms), terms).to_dicts()
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(envelopes, "MAX_CONSUMERS", most)
        found = envelope_figures(state_of(*batches, end_ms=end_ms), terms).to_dicts()
    for one in found:
        if one["consumer"] in ("", "(other)"):
            continue
        all_of_it = true.get((one["envelope"], one["consumer"]))
        if all_of_it is None:
            # of who was active lately alone, where all are kept apart
            assert one["used"] in (None, 0)
            continue
        for name in ("used", *(f"burn_{window}" for window in BURN_WINDOWS)):
            assert one[name] in (None, all_of_it[name]), name
        assert one["limit"] <= all_of_it["limit"]
    # whoever is told what nobody has used has used nothing
    told = {(one["envelope"], one["consumer"]): one["used"] for one in found}
    for (envelope, consumer), one in true.items():
        if (envelope, consumer) not in told:
            assert told[envelope, ""] is None or one["used"] == 0
