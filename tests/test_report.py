"""Reports: whatever is asked for adds up, in any order, and to what the economy booked."""

import datetime as dt
import itertools
from collections.abc import Sequence
from decimal import Decimal
from typing import Any
from unittest.mock import patch
from zoneinfo import ZoneInfo

import polars as pl
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from report_ledgers import (
    BOOK,
    CONFIG,
    EVENT_LISTS,
    GIVING_BOOK,
    HOUR_MS,
    MINUTE_MS,
    MINUTES,
    POWER_LISTS,
    START_MS,
    TOKEN_LISTS,
    WHOLE,
    Booked,
    frame,
    power,
    tokens,
)

from idlewatt.cli.report_formats import notes
from idlewatt.processors.economy.book import CONSUMER_KINDS, Book
from idlewatt.processors.economy.book_file import parse_book
from idlewatt.processors.reports.cells import KEY, MEASURES, Cells, cells, priced_usage
from idlewatt.processors.reports.figures import ADDED, CENTS, COLUMNS, EXACT, RATIOS, Figures, figures
from idlewatt.processors.reports.ledger import Interval, Ledger
from idlewatt.processors.reports.report import DIMENSIONS, dimensions, grouped
from idlewatt.processors.reports.rounding import rounded_parts
from idlewatt.stream.errors import ConfigError
from idlewatt.stream.records import CONSUMER, POWER, STATES, TOKENS

ANY_LEDGER = given(powers=POWER_LISTS, token_rows=TOKEN_LISTS, events=EVENT_LISTS)
FEW = examples(5)
# late by up to forty hours, over the edge of a month, of few names, and small enough to reach the step in between
LATE_EVENTS = st.lists(
    st.fixed_dictionaries(
        {
            "ts_ms": st.integers(0, 40 * 60 - 1).map(lambda n: START_MS + n * MINUTE_MS),
            "team": st.sampled_from((None, "a", "b")),
            "model_name": st.sampled_from(("llama", "qwen")),
            "output_tokens": st.integers(0, 999),
            "input_tokens": st.integers(0, 999),
        }
    ),
    min_size=12,
    max_size=25,
)
GROUPINGS: tuple[tuple[str, ...], ...] = (
    (),
    ("pool", "model"),
    ("site", "tier"),
    ("tier", "pool", "site", "model"),
    ("consumer",),
    ("engineer", "tier"),
    ("site", "model", "tier", "team"),
)


def of(ledger: Ledger, book: Book = BOOK, interval: Interval = WHOLE) -> Cells:
    return cells(ledger, book, CONFIG, interval)


def report(found: Cells, by: Sequence[str], book: Book = BOOK) -> Figures:
    return figures(grouped(found, dimensions(by, book)), book, EXACT, 0.9)


def booked(money: pl.DataFrame, kind: str, **where: str) -> int:
    return int(money.filter(kind=kind, **where).get_column("amount_micro").sum())


def measured(found: Cells) -> dict[str, int]:
    return {name: int(found.cells.get_column(name).sum()) for name in MEASURES}


@ANY_LEDGER
@FEW
def test_any_grouping_adds_up_to_the_same(powers: Any, token_rows: Any, events: Any) -> None:
    """Rows of any grouping add up to the same total, in every quantity and money."""
    found = of(Booked(powers, token_rows, events).ledger)
    whole = measured(found)
    for by in GROUPINGS:
        rows = grouped(found, dimensions(by, BOOK))
        assert {name: rows.total(name) for name in MEASURES} == whole, by


@ANY_LEDGER
@FEW
def test_shown_rows_add_up_to_the_shown_total(powers: Any, token_rows: Any, events: Any) -> None:
    """To the cent, along columns and along rows, and each total is the exact one rounded."""
    found = of(Booked(powers, token_rows, events).ledger)
    totals = []
    for by in GROUPINGS:
        for decimals in (CENTS, EXACT):
            shown = figures(grouped(found, dimensions(by, BOOK)), BOOK, decimals, 0.9)
            for name in COLUMNS:
                if name in (*RATIOS, "withheld") or shown.total[name] is None:
                    continue
                column = [row[name] for row in shown.rows if row[name] is not None]
                if name in ADDED and len(column) < len(shown.rows):
                    # a consumer's unpriced tokens that no engine made: withheld in its row, and none of the total
                    continue
                assert sum(map(Decimal, column)) == shown.total[name], name  # type: ignore[arg-type]
            if (hours := shown.total["gpu_hours"]) is not None:
                exact = Decimal(sum(found.cells.get_column("gpu_ms"))) / 3_600_000
                assert 2 * abs(Decimal(hours) - exact) <= Decimal(1).scaleb(-decimals.hours)
            for line in (*shown.rows, shown.total):
                kwh = [line[f"{state}_kwh"] for state in STATES]
                if line["available_kwh"] is None:
                    # of a site without GPUs
                    assert set(kwh) == {None}
                else:
                    assert sum(map(Decimal, kwh)) == line["available_kwh"]  # type: ignore[arg-type]
                if line["cost_allocation"] is not None:
                    assert line["cost_usage"] + line["cost_not_serving"] == line["cost_allocation"]  # type: ignore[operator]
        totals.append(shown.total)
    assert all(total == totals[0] for total in totals)


@ANY_LEDGER
@FEW
@pytest.mark.parametrize("batch", [1, 7])
def test_a_report_is_what_the_economy_booked(batch: int, powers: Any, token_rows: Any, events: Any) -> None:
    """With the book unchanged, money is that of the rows that were booked, whatever came in one batch."""
    alone = Booked(powers, token_rows, [], batch)
    rows = of(alone.ledger).cells
    for (site, pool, model), part in rows.group_by("site", "pool", "model_name"):
        where = {"site": site, "pool": pool, "model_name": model}
        sums = part.select(pl.col(*MEASURES).sum()).row(0, named=True)
        assert sums["revenue_micro"] == booked(alone.money, "revenue", **where)
        assert sums["acquisition_micro"] == booked(alone.money, "acquisition_cost", **where)
        assert sums["lost_micro"] == booked(alone.money, "lost_revenue", **where)
        assert sums["benchmark_micro"] == booked(alone.money, "benchmark_lost_revenue", **where)
        for state in STATES:
            for kind in ("energy", "capital"):
                amount = booked(alone.money, f"{kind}_cost", state=state, **where)
                assert sums[f"{kind}_{state}_micro"] == amount
    # what consumers owe, volume steps included, is what they were told
    spent = Booked(powers, token_rows, events, batch)
    owed = of(spent.ledger).consumed.get_column("revenue_micro").sum()
    assert owed == spent.spent.get_column("spend_micro").sum()


def test_no_row_is_of_nothing() -> None:
    """Half an hour all of which was given away, of an hour half of which was: of that the tiers are, and of nobody else."""
    model = {"model_name": "nothing"}
    minutes = [START_MS + n * MINUTE_MS for n in range(60)]
    made = [
        tokens(window_start_ms=ms, output_tokens=100, input_tokens=0, cached_input_tokens=0, **model)
        for ms in minutes
    ]
    used = [
        {"ts_ms": ms, "team": "t", "tier": "free" if n < 30 else "standard", "output_tokens": 100, **model}
        for n, ms in enumerate(minutes)
    ]
    ledger = Booked(
        [power(window_start_ms=ms, **model) for ms in minutes], made, used, book=GIVING_BOOK
    ).ledger
    found = report(
        of(ledger, GIVING_BOOK, Interval(START_MS, START_MS + 30 * MINUTE_MS)), ("team",), GIVING_BOOK
    )
    assert [(row["team"], row["output_tokens"]) for row in found.rows] == [("t", 3000)]


def test_tiers_are_what_the_economy_booked_where_the_mix_is_steady() -> None:
    """Where each minute has the same mix, tiers and money are those of the live economy."""
    minutes = [START_MS + n * MINUTE_MS for n in range(120)]
    rows = [
        tokens(window_start_ms=ms, output_tokens=1000, input_tokens=500, cached_input_tokens=100)
        for ms in minutes
    ]
    mix = [
        {"tier": tier, "output_tokens": 10 * part, "input_tokens": 5 * part, "cached_input_tokens": part}
        for tier, part in (("premium", 41), ("free", 59))
    ]
    told = [{"ts_ms": ms, **row} for ms in minutes for row in mix]
    idle = power(window_start_ms=minutes[90], state="idle_loaded", lost_tokens_draw=77)
    # engines make themselves known by the tokens of the first minute
    live = Booked([idle], rows, told, before_usage=1)
    found = of(live.ledger, interval=Interval(minutes[1], minutes[-1] + MINUTE_MS)).cells
    for kind, name in (("revenue", "revenue_micro"), ("acquisition_cost", "acquisition_micro")):
        for tier in ("premium", "free"):
            amount = found.filter(tier=tier).get_column(name).sum()
            assert amount == booked(live.money, kind, tier=tier)
            assert (amount > 0) is (tier == ("premium" if kind == "revenue" else "free"))
    assert found.get_column("lost_micro").sum() == booked(live.money, "lost_revenue") > 0


@pytest.mark.parametrize("count", [1, 20, 25, 26, 74])
def test_a_lightly_used_model_brings_what_its_tokens_come_to(count: int) -> None:
    """0.02 to 1.48 micro-units a window and tier: an hour of them comes to their sum in money rows, rolling and in reports."""
    tiers = '[[tier]]\nname = "standard"\n[[tier]]\nname = "free"\nsold = false\n'
    cheap = parse_book(f'{tiers}[[price]]\nmodel = "*"\ninput = 0.02\noutput = 0\n'.encode(), "book")
    few = {"output_tokens": 0, "cached_input_tokens": 0}
    windows = [START_MS + n * 10_000 for n in range(360)]
    rows = [tokens(window_start_ms=ms, input_tokens=2 * count, **few) for ms in windows]
    told = [
        {"ts_ms": ms, "tier": tier, "input_tokens": 6 * count, **few}
        for ms in windows[::6]
        for tier in ("standard", "free")
    ]
    live = Booked([], rows, told, book=cheap, before_usage=1)
    truth = 360 * count * 0.02
    # the window that makes the engine known is sold before usage is told
    later = live.money.filter(pl.col("window_start_ms") >= windows[1])
    found = of(live.ledger, cheap, Interval(windows[1], windows[-1] + 10_000)).cells
    for kind, name in (("revenue", "revenue_micro"), ("acquisition_cost", "acquisition_micro")):
        assert found.get_column(name).sum() == booked(later, kind)
        assert booked(live.money, kind) == pytest.approx(truth, abs=4)
    assert live.driver.state.rolling.get_column("revenue_micro").sum() == booked(live.money, "revenue")


@ANY_LEDGER
@FEW
@pytest.mark.parametrize("seed", [1, 2])
def test_any_order_of_the_ledger_gives_the_same(seed: int, powers: Any, token_rows: Any, events: Any) -> None:
    """A report does not depend on the order in which watts and tokens came."""
    ledger = Booked(powers, token_rows, events).ledger
    mixed = Ledger(
        ledger.power.sample(fraction=1, shuffle=True, seed=seed),
        ledger.tokens.sample(fraction=1, shuffle=True, seed=seed),
        ledger.usage,
    )
    assert_frame_equal(of(mixed).cells, of(ledger).cells)


@given(
    powers=POWER_LISTS,
    token_rows=TOKEN_LISTS,
    events=EVENT_LISTS,
    cut_ms=MINUTES.filter(lambda ms: WHOLE.from_ms < ms < WHOLE.to_ms),
)
@FEW
def test_intervals_add_up(powers: Any, token_rows: Any, events: Any, cut_ms: int) -> None:
    """Two intervals that meet come to what both together come to: each window counts in exactly one."""
    ledger = Booked(powers, token_rows, events).ledger
    whole = of(ledger)
    parts = [
        of(ledger, interval=Interval(*edges)) for edges in ((WHOLE.from_ms, cut_ms), (cut_ms, WHOLE.to_ms))
    ]
    sums = pl.concat([part.cells for part in parts]).group_by(KEY).agg(pl.col(*MEASURES).sum()).sort(KEY)
    assert_frame_equal(sums, whole.cells)
    assert (
        sum(part.consumed.get_column("revenue_micro").sum() for part in parts)
        == whole.consumed.get_column("revenue_micro").sum()
    )


@given(
    token_rows=TOKEN_LISTS,
    events=LATE_EVENTS,
    cuts=st.lists(st.integers(1, 60 * 40 - 1), min_size=1, max_size=4, unique=True),
    batch=st.sampled_from([1, 7, 1000]),
)
@FEW
def test_parts_of_a_month_add_up_however_late_usage_was_read(
    token_rows: Any, events: Any, cuts: list[int], batch: int
) -> None:
    """Each part of an interval is what was booked of it, by consumer, and parts are the whole to the micro-unit.

    Volume steps and rests go by the order in which usage was read, whatever it is dated.
    """
    ledger = Booked([], token_rows, events, batch).ledger
    edges = [START_MS, *(START_MS + cut * MINUTE_MS for cut in sorted(cuts)), START_MS + 40 * HOUR_MS]
    parts = [Interval(*pair) for pair in itertools.pairwise(edges)]
    found = [of(ledger, interval=part) for part in parts]
    for part, of_part in zip(parts, found, strict=True):
        assert owed(of_part) == spent(ledger.usage.filter(part.has()))
    whole = of(ledger, interval=Interval(edges[0], edges[-1]))
    assert owed(*found) == owed(whole)
    sums = pl.concat([part.cells for part in found]).group_by(KEY).agg(pl.col(*MEASURES).sum()).sort(KEY)
    assert_frame_equal(sums, whole.cells)


def owed(*found: Cells) -> dict[tuple[Any, ...], int]:
    """What each consumer owes, by all its names and model."""
    return added(pl.concat([each.consumed for each in found]), "revenue_micro")


def spent(booked_usage: pl.DataFrame) -> dict[tuple[Any, ...], int]:
    return added(booked_usage.with_columns(pl.col("spend_micro").fill_null(0)), "spend_micro")


def added(rows: pl.DataFrame, amount: str) -> dict[tuple[Any, ...], int]:
    names = ("site", *CONSUMER_KINDS, "model_name")
    sums = rows.group_by(names).agg(pl.col(amount).cast(pl.Int128).sum())
    return {tuple(name): owes for *name, owes in sums.iter_rows() if owes}


def priced(ledger: Ledger, interval: Interval) -> int:
    """How many rows of usage a report of the interval prices."""
    with patch("idlewatt.processors.reports.cells.priced_usage", wraps=priced_usage) as pricing:
        of(ledger, interval=interval)
    return int(pricing.call_args.args[0].height)


def test_what_is_read_after_an_interval_changes_nothing_of_it() -> None:
    """Usage that is dated later and read later comes after it in volumes and rests, also on the last day of a month."""
    events = [{"ts_ms": START_MS + n * 12 * MINUTE_MS, "output_tokens": 999 + n} for n in range(9)]
    before = Booked([], [], events[:5]).ledger
    later = Booked([], [], events).ledger
    interval = Interval(START_MS, START_MS + HOUR_MS)
    assert_frame_equal(of(later, interval=interval).consumed, of(before, interval=interval).consumed)
    # nor is it priced again: a day of a month that is over takes no longer than of one that is not
    assert priced(later, interval) == priced(before, interval) == 5
    read_first = Booked([], [], [*events[5:], *events[:5]]).ledger
    assert owed(of(read_first, interval=interval)) != owed(of(before, interval=interval))


def test_the_borders_of_an_interval() -> None:
    """A window that begins at --from is in it, one that begins at --to is not; a day may have 25 hours."""
    zone = ZoneInfo(BOOK.time_zone)
    first, next_day = (round(dt.datetime(2020, 11, day, tzinfo=zone).timestamp() * 1000) for day in (1, 2))
    assert next_day - first == 25 * HOUR_MS
    rows = [
        power(window_start_ms=start_ms, draw_mj=1, headroom_mj=0)
        for start_ms in (first - 10_000, *range(first, next_day, HOUR_MS), next_day - 10_000, next_day)
    ]
    found = of(
        Ledger(frame(POWER, rows), frame(TOKENS, []), frame(CONSUMER, [])), interval=Interval(first, next_day)
    )
    assert found.cells.get_column("draw_serving_mj").sum() == 26


def test_volume_steps_begin_anew_with_the_month() -> None:
    """The steps of a month count from its first minute in the book's time zone, also for a report that begins later."""
    zone = ZoneInfo(BOOK.time_zone)
    month_ms = round(dt.datetime(2020, 11, 1, tzinfo=zone).timestamp() * 1000)
    events = [
        {"ts_ms": at_ms, "output_tokens": count}
        for at_ms, count in (
            (month_ms - MINUTE_MS, 50_000),
            (month_ms, 4_000),
            (month_ms + 2 * MINUTE_MS, 1_000_000),
        )
    ]
    ledger = Booked([], [], events).ledger
    spent = [
        int(of(ledger, interval=Interval(*edges)).consumed.get_column("revenue_micro").sum())
        for edges in (
            (month_ms - MINUTE_MS, month_ms),
            (month_ms, month_ms + MINUTE_MS),
            (month_ms + 2 * MINUTE_MS, month_ms + 3 * MINUTE_MS),
        )
    ]
    # the step is at 4,000 tokens
    assert spent == [
        4_000 * 570_000 // 10**6 + 46_000 * 310_000 // 10**6,
        4_000 * 57 // 100,
        1_000_000 * 31 // 100,
    ]


def test_ratios_of_too_few_tokens_are_withheld() -> None:
    """As on /metrics, and by the same setting: of a pool that made none, and of one that made one less than it asks for."""
    made = {"chat": 100, "code": 99, "idle": 0}
    ledger = Booked(
        [power(pool=pool, state="serving" if count else "idle_loaded") for pool, count in made.items()],
        [tokens(pool=pool, output_tokens=count) for pool, count in made.items() if count],
        [],
    ).ledger
    found = figures(grouped(of(ledger), ("pool",)), BOOK, EXACT, 0.9, min_tokens=100)
    rows = {str(row["pool"]): row for row in found.rows}
    assert [name for name in RATIOS if rows["chat"][name] is None] == []
    assert found.total["tokens_per_joule"] == Decimal("0.013267")
    for pool in ("code", "idle"):
        assert {rows[pool][name] for name in RATIOS} == {None}
        assert "too few tokens" in str(rows[pool]["withheld"])
        assert rows[pool]["cost_allocation"] is not None
    # unless it is asked for, one token is enough
    found = figures(grouped(of(ledger), ("pool",)), BOOK, EXACT, 0.9)
    assert [row["tokens_per_joule"] is None for row in found.rows] == [False, False, True]


def test_ratios_of_gpus_that_were_not_seen_are_withheld() -> None:
    """Their engines' tokens stand beside the watts of the others: the sums do, with what was not seen, and no ratio."""
    dark = {"state": "dark", "model_name": "", "draw_mj": 0}
    rows = [
        power(
            window_start_ms=START_MS + 10_000 * window,
            pool=pool,
            **(dark if pool == "chat" and window >= 30 else {}),
        )
        for window in range(60)
        for pool in ("chat", "code")
    ]
    made = [tokens(window_start_ms=row.window_start_ms, pool=row.pool) for row in rows]
    found = of(Booked(rows, made, []).ledger)
    by_pool = {row["pool"]: row for row in report(found, ("pool",)).rows}
    ratios = ("tokens_per_joule", "cost_per_mtok_usage", "energy_cost_per_mtok_allocation")
    assert [by_pool["chat"][name] for name in ratios] == [None, None, None]
    assert by_pool["chat"]["withheld"] == "GPU time without telemetry"
    assert (by_pool["chat"]["gpu_hours"], by_pool["chat"]["dark_gpu_hours"]) == (
        Decimal("0.166667"),
        Decimal("0.083333"),
    )
    assert None not in [by_pool["code"][name] for name in ratios]
    # what is dark has no model: the pool tells, else the whole
    by_both = report(found, ("pool", "model")).rows
    assert [(row["pool"], row["tokens_per_joule"] is None) for row in by_both if row["output_tokens"]] == [
        ("chat", True),
        ("code", False),
    ]
    assert [row["tokens_per_joule"] for row in report(found, ("model",)).rows] == [None, None]
    assert by_pool["chat"]["output_tokens"] == by_pool["code"]["output_tokens"]


@pytest.mark.parametrize("gpus", [10, 20, 40, 100])
def test_ratios_are_shown_at_the_floor(gpus: int) -> None:
    """One GPU in ten without telemetry leaves what a floor of 0.9 asks for, as on /metrics; one more does not."""
    for dark, is_shown in ((gpus // 10, True), (gpus // 10 + 1, False)):
        rows = [
            power(gpu_ms=10_000 * (gpus - dark)),
            power(state="dark", model_name="", draw_mj=0, gpu_ms=10_000 * dark),
        ]
        total = report(of(Booked(rows, [tokens()], []).ledger), ()).total
        assert (total["tokens_per_joule"] is not None) is is_shown
        assert (total["withheld"] == "") is is_shown


def test_tokens_of_gpus_that_nobody_reads_have_no_ratio() -> None:
    """Nobody knows what they took: neither they nor what they are added to or shared with has a ratio or a margin."""
    used = [{"team": "a", "output_tokens": 5_000}]
    made = [tokens(), tokens(pool="blind"), tokens(site="annex", pool="blind")]
    seen = [power(), power(site="annex", pool="blind")]
    found = of(Booked(seen, made, used).ledger)
    withheld = (*RATIOS, "margin")
    for by in (("site", "pool"), ("site", "tier"), ("site", "team"), ("site", "model"), ()):
        shown = report(found, by)
        for row in (*shown.rows, shown.total):
            is_known = row.get("site") == "annex" or row.get("pool") == "chat"
            assert [name for name in withheld if (row[name] is not None) is not is_known] == [], by
            assert row["withheld"] == ("" if is_known else "tokens without telemetry of their GPUs")
            # sums are shown, with what is not known beside them
            assert (row["revenue"] is None, row["cost_allocation"] is None) == (False, False)
        assert shown.total["unmetered_tokens"] == 70_000
        assert [note for note in notes(shown) if note.startswith("unmetered: 70,000 tokens ")]


def test_a_few_tokens_of_gpus_that_nobody_reads_withhold_nothing() -> None:
    """As on /metrics, where a pool whose readings began an hour late does not hide what a month made."""
    for output, is_shown in ((2_000, True), (3_000, False)):
        blind = tokens(pool="blind", output_tokens=output, input_tokens=0, cached_input_tokens=0)
        total = report(of(Booked([power()], [tokens(), blind], []).ledger), ()).total
        assert total["unmetered_tokens"] == output
        assert (total["tokens_per_joule"] is not None, total["margin"] is not None) == (is_shown, is_shown)


def test_other_kinds_of_tokens_hide_no_output_of_gpus_that_nobody_reads() -> None:
    """Half a pool's output stands over no joules, and a pool that embeds beside it makes most of their site's tokens."""
    made = [
        tokens(),
        tokens(node="other", serving_mj=0),
        tokens(pool="embeds", output_tokens=0, input_tokens=10**6, cached_input_tokens=0),
    ]
    found = of(Booked([power(), power(pool="embeds")], made, []).ledger)
    for by in (("site",), ()):
        shown = report(found, by)
        for row in (*shown.rows, shown.total):
            assert {row[name] for name in (*RATIOS, "margin")} == {None}
            assert row["withheld"] == "tokens without telemetry of their GPUs"


def test_margin_is_withheld_where_gpus_that_nobody_reads_make_the_revenue() -> None:
    """Of the dear tokens of a small engine it would have the revenue and no costs; what all its tokens took is nearly known."""
    book = parse_book(
        b"""
        price = [{ model = "llama", input = 1, output = 1 }, { model = "dear", input = 9, output = 9 }]
        tariff = { per_kwh = 0.1 }
        capital = [{ product = "*", per_gpu_hour = 2 }]
        """,
        "book",
    )
    small = {"output_tokens": 1_000, "input_tokens": 2_000, "cached_input_tokens": 500}
    for model, is_shown in (("llama", True), ("dear", False)):
        blind = tokens(node="other", serving_mj=0, model_name=model, **small)
        total = report(of(Booked([power()], [tokens(), blind], []).ledger, book), (), book).total
        assert (total["margin"] is not None, total["withheld"] == "") == (is_shown, is_shown)
        assert {total[name] for name in RATIOS}.isdisjoint({None})


def test_engines_whose_gpus_nobody_reads_are_not_metered_by_those_of_other_nodes() -> None:
    """Nothing on their node is known to have served in that window; beside others on a node it is not known whose GPUs did."""

    def unmetered(*made: Any) -> int:
        total = report(of(Booked([power()], [tokens(), *made], []).ledger), ()).total
        assert (total["tokens_per_joule"] is None) == (total["unmetered_tokens"] > 0)
        return int(total["unmetered_tokens"])

    blind = tokens(node="other", serving_mj=0)
    embeds = tokens(node="other", engine="embeds", output_tokens=0, serving_mj=0)
    assert unmetered(blind) == 70_000
    assert unmetered(embeds) == 50_000
    assert unmetered(blind, embeds) == 120_000
    assert unmetered(embeds, tokens(node="other")) == 0
    # told late, it takes back
    assert unmetered(blind, tokens(node="other", output_tokens=0, input_tokens=0, cached_input_tokens=0)) == 0
    # of a gap in its readings
    assert unmetered(tokens(node="other", serving_mj=0, measured_ms=0)) == 0
    # of its GPUs some are read
    assert unmetered(tokens(node="other", unread_gpus=4)) == 70_000
    assert unmetered(tokens(node="other", unread_gpus=0)) == 0


def test_what_was_made_before_a_pools_gpus_were_read_is_not_metered() -> None:
    """Nor by the rest of its clock hour, or its watts would be a few seconds' and its tokens those of most of the hour."""
    last_ms = START_MS + HOUR_MS - 10_000
    rows = Booked([power(window_start_ms=last_ms)], [tokens(), tokens(window_start_ms=last_ms)], []).ledger
    cut = Interval(START_MS, START_MS + MINUTE_MS)
    for interval in (WHOLE, cut):
        assert report(of(rows, interval=interval), ()).total["unmetered_tokens"] == 70_000


def test_tokens_that_no_engine_made_are_in_no_ratio() -> None:
    """A gateway tells of a bought model, too: who used it has no yield and no cost per token, whoever did not has both."""
    used = [
        {"team": "both", "output_tokens": 12_000},
        {"team": "both", "model_name": "bought", "output_tokens": 108_000},
        {"team": "own", "output_tokens": 8_000},
    ]
    ledger = Booked([power(draw_mj=5_000_000)], [tokens(output_tokens=20_000)], used).ledger
    shown = report(of(ledger), ("team",))
    rows = {row["team"]: row for row in shown.rows}
    for row in (rows["both"], rows[""]):
        assert {row[name] for name in RATIOS} == {None}
        assert "tokens that no engine made" in str(row["withheld"])
    assert rows["own"]["tokens_per_joule"] == shown.total["tokens_per_joule"] == 4
    # micro-units of a small row are rounded
    cost = Decimal(str(shown.total["cost_per_mtok_usage"]))
    assert rows["own"]["cost_per_mtok_usage"] == pytest.approx(cost, rel=Decimal("0.01"))
    assert [rows[team]["unmade_tokens"] for team in ("both", "own", "")] == [108_000, 0, -108_000]
    assert shown.total["unmade_tokens"] == 0
    by_both = {(row["team"], row["model"]): row for row in report(of(ledger), ("team", "model")).rows}
    assert by_both["both", "llama"]["tokens_per_joule"] == 4
    assert by_both["both", "bought"]["cost_per_mtok_allocation"] is None


@pytest.mark.parametrize(("told", "is_shown"), [(20_000, True), (22_222, True), (22_223, False)])
def test_counters_that_nearly_agree_have_ratios(told: int, is_shown: bool) -> None:
    """A gateway counts a little more than the engines: ratios stand while engines made as much as the floor asks for."""
    ledger = Booked([power()], [tokens()], [{"team": "a", "output_tokens": told}]).ledger
    row = next(row for row in report(of(ledger), ("team",)).rows if row["team"] == "a")
    assert row["unmade_tokens"] == told - 20_000
    assert (row["tokens_per_joule"] is not None) is is_shown


def test_what_is_bought_has_no_margin() -> None:
    """What it was bought for is not known."""
    used = [
        {"team": "a", "model_name": "qwen", "output_tokens": 108_000},
        {"team": "b", "output_tokens": 8_000},
    ]
    rows = {
        row["team"]: row for row in report(of(Booked([power()], [tokens()], used).ledger), ("team",)).rows
    }
    assert {team: row["margin"] is None for team, row in rows.items()} == {"a": True, "b": False, "": False}


def test_tokens_were_made_on_whatever_tier_they_were_sold() -> None:
    """An engine's tiers are an estimate by clock hour: who used all of half an hour of it, used what it made."""
    every = range(60)
    at = [{"window_start_ms": START_MS + n * MINUTE_MS, "window_ms": MINUTE_MS} for n in every]
    made = [tokens(**place, output_tokens=1_000) for place in at]
    used = [
        {"ts_ms": START_MS + n * MINUTE_MS, "team": "a", "tier": "premium", "output_tokens": 1_000}
        for n in every[30:]
    ]
    half = Interval(START_MS + 30 * MINUTE_MS, START_MS + 60 * MINUTE_MS)
    found = of(Booked([power(**place) for place in at], made, used).ledger, interval=half)
    row = next(row for row in report(found, ("team", "tier")).rows if row["team"] == "a")
    assert (row["output_tokens"], row["unmade_tokens"]) == (30_000, 0)
    assert row["tokens_per_joule"] is not None


def test_tokens_of_gpus_that_nobody_reads_are_those_of_who_used_them() -> None:
    """By tokens of each kind: what only reads, embeds or ranks makes few or none of output."""
    made = [tokens(pool="blind", output_tokens=10_100, input_tokens=100_100, cached_input_tokens=0)]
    used = [
        {"team": "writes", "output_tokens": 10_000, "input_tokens": 100, "cached_input_tokens": 0},
        {"team": "reads", "output_tokens": 100, "input_tokens": 90_000, "cached_input_tokens": 0},
        {"team": "embeds", "output_tokens": 0, "input_tokens": 10_000, "cached_input_tokens": 0},
    ]
    rows = {row["team"]: row for row in report(of(Booked([], made, used).ledger), ("team",)).rows}
    unmetered = {team: row["unmetered_tokens"] for team, row in rows.items()}
    assert unmetered == {"writes": 10_100, "reads": 90_100, "embeds": 10_000}
    assert {rows[team]["margin"] for team in ("writes", "reads", "embeds")} == {None}
    assert [row["margin"] for row in report(of(Booked([], made, used).ledger), ("tier",)).rows] == [None]
    # output of the one pool, input of the other
    none = {"output_tokens": 0, "input_tokens": 0, "cached_input_tokens": 0}
    made = [
        tokens(pool="blind", **none | {"output_tokens": 10_000}),
        tokens(**none | {"input_tokens": 10**6}),
    ]
    used = [
        {"team": "writes", **none, "output_tokens": 10_000},
        {"team": "reads", **none, "input_tokens": 10**6},
    ]
    rows = {row["team"]: row for row in report(of(Booked([power()], made, used).ledger), ("team",)).rows}
    assert {team: row["unmetered_tokens"] for team, row in rows.items()} == {"writes": 10_000, "reads": 0}
    assert {team: row["margin"] is None for team, row in rows.items()} == {"writes": True, "reads": False}


def test_shares_of_what_nobody_reads_the_watts_of_leave_nothing_to_nobody() -> None:
    """Where usage claims all input, rounding would make tokens of it that are nobody's, and none of them metered."""
    made = [
        tokens(output_tokens=20_000),
        tokens(pool="blind", output_tokens=1_000, input_tokens=2_000, cached_input_tokens=0),
    ]
    used = [{"team": f"{n}", "output_tokens": 2_500, "input_tokens": 6_000} for n in range(7)]
    rows = {row["team"]: row for row in report(of(Booked([power()], made, used).ledger), ("team",)).rows}
    assert (rows[""]["output_tokens"], rows[""]["input_tokens"]) == (3_500, 0)
    assert rows[""]["margin"] is not None


def test_notes_tell_of_what_the_total_takes_away() -> None:
    """What has no price is told where it stands in a row, though no engine made it and the total has none of it."""
    used = [{"team": "a", "model_name": "bought", "output_tokens": 1_000}]
    ledger = Booked([power()], [tokens()], used).ledger
    shown = report(of(ledger), ("team",))
    assert shown.total["unpriced_tokens"] == 0
    told = [note.split(" of all")[0] for note in notes(shown)]
    assert told[:2] == [
        "unattributed: 20,000 output tokens are in no usage: they are on the default tier",
        "unpriced: 1,000 tokens",
    ]
    assert [note for note in notes(shown) if note.startswith("unmade: 1,000 output tokens ")]
    assert not [note for note in notes(report(of(ledger), ("model",))) if "unpriced" in note]


def test_a_back_dated_price_shows_in_a_report() -> None:
    """The past is computed again with the book as it is now."""
    ledger = Booked([], [tokens(input_tokens=0, cached_input_tokens=0, output_tokens=10**6)], []).ledger
    dearer = parse_book(
        b"[[price]]\nmodel = '*'\ninput = 0\noutput = 2.5\neffective_from = 2020-10-01\n", "book"
    )
    assert report(of(ledger), ()).total["revenue"] == Decimal("0.57")
    assert report(of(ledger, dearer), (), dearer).total["revenue"] == Decimal("2.5")


def test_watts_go_to_consumers_by_their_share_of_output_tokens() -> None:
    """Joules, idle and lost watts follow a model's output tokens; what nobody claims is a row of its own."""
    ledger = Booked(
        [
            power(draw_mj=36_000_000_000, headroom_mj=0),
            power(draw_mj=3_600_000_000, headroom_mj=0, state="idle_loaded", lost_tokens_draw=1000),
            power(draw_mj=1_800_000_000, headroom_mj=0, state="idle_free", model_name=""),
        ],
        [tokens(output_tokens=1000)],
        [{"team": "a", "output_tokens": 600}, {"team": "b", "output_tokens": 300}],
    ).ledger
    rows = {row["team"]: row for row in report(of(ledger), ("team",)).rows}
    assert [rows[team]["serving_kwh"] for team in ("a", "b", "")] == [6, 3, 1]
    assert [rows[team]["idle_loaded_kwh"] for team in ("a", "b", "")] == [
        Decimal("0.6"),
        Decimal("0.3"),
        Decimal("0.1"),
    ]
    assert [rows[team]["idle_free_kwh"] for team in ("a", "b", "")] == [0, 0, Decimal("0.5")]
    assert [rows[team]["lost_tokens"] for team in ("a", "b", "")] == [600, 300, 100]
    assert [rows[team]["output_tokens"] for team in ("a", "b", "")] == [600, 300, 100]
    assert [rows[team]["unattributed_tokens"] for team in ("a", "b", "")] == [0, 0, 100]


def test_a_sites_watts_are_its_own_consumers() -> None:
    """Whether or not sites are told apart: who is alone at a small site pays nothing of a large one."""
    watts = [power(site="hall", gpu_ms=100 * HOUR_MS), power(site="annex", gpu_ms=HOUR_MS)]
    made = [tokens(site=site) for site in ("hall", "annex")]
    used = [
        {"site": site, "team": team, "output_tokens": 20_000}
        for site, team in (("hall", "a"), ("annex", "b"))
    ]
    found = of(Booked(watts, made, used).ledger)
    for by in (("team",), ("site", "team")):
        hours = {row["team"]: row["gpu_hours"] for row in report(found, by).rows}
        assert (hours["a"], hours["b"]) == (100, 1)


def test_a_tier_that_the_book_lacks_is_one_with_the_engines_rows() -> None:
    """Whoever asked for it has its tokens and its watts under one name."""
    ledger = Booked([power()], [tokens()], [{"team": "a", "tier": "gold", "output_tokens": 20_000}]).ledger
    rows = {
        (row["tier"], row["team"]): row["output_tokens"] for row in report(of(ledger), ("tier", "team")).rows
    }
    assert rows["(unknown)", "a"] == 20_000
    assert "gold" not in {tier for tier, _ in rows}


@pytest.mark.parametrize(("from_minute", "to_minute"), [(0, 360), (54, 360), (0, 195)])
def test_a_gateway_that_was_away_for_long_told_of_every_hour(from_minute: int, to_minute: int) -> None:
    """Usage of a gap stands in parts of up to six hours; tiers are told by the clock hour."""
    begin_ms = START_MS // (6 * HOUR_MS) * 6 * HOUR_MS
    hours = [sum(from_minute <= m < to_minute for m in range(60 * n, 60 * n + 60)) for n in range(6)]
    made = [
        tokens(window_start_ms=begin_ms + n * HOUR_MS, input_tokens=0, output_tokens=1000 * minutes)
        for n, minutes in enumerate(hours)
    ]
    told = {"ts_ms": begin_ms, "tier": "premium", "output_tokens": 1000 * sum(hours)}
    rows = Booked([], [], [told]).ledger.usage
    gap = rows.with_columns(
        window_start_ms=pl.lit(begin_ms + 60_000 * from_minute), window_ms=pl.lit(60_000 * sum(hours))
    )
    ledger = Ledger(frame(POWER, []), frame(TOKENS, made), gap.cast(rows.schema))  # type: ignore[arg-type]
    total = report(of(ledger, interval=Interval(begin_ms, begin_ms + 6 * HOUR_MS)), ()).total
    assert (total["output_tokens"], total["unattributed_tokens"]) == (1000 * sum(hours), 0)


@pytest.mark.parametrize("hours", range(9))
def test_a_gap_over_the_edge_of_a_month_is_told_of_on_both_sides(hours: int) -> None:
    """Its part that began in the month before has the tiers of hours of this one, whenever a report begins."""
    zone = ZoneInfo(BOOK.time_zone)
    month_ms = round(dt.datetime(2021, 7, 1, tzinfo=zone).timestamp() * 1000)
    made = [tokens(window_start_ms=month_ms + n * HOUR_MS, input_tokens=0) for n in range(-6, 12)]
    counter = {"event_id": None, "counter": "c", "tier": "premium", "epoch_ms": month_ms - 48 * HOUR_MS}
    readings = [
        {"ts_ms": month_ms - 6 * HOUR_MS, "output_tokens": 0},
        {"ts_ms": month_ms + 12 * HOUR_MS, "output_tokens": 18 * 20_000},
    ]
    ledger = Booked([], made, [counter | reading for reading in readings]).ledger
    begin_ms = month_ms + hours * HOUR_MS
    total = report(of(ledger, interval=Interval(begin_ms, begin_ms + HOUR_MS)), ()).total
    assert (total["output_tokens"], total["unattributed_tokens"]) == (20_000, 0)


def test_months_have_their_own_volumes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A report of many months knows the steps of each, as the stage does that sees one after the other."""
    monkeypatch.setattr("idlewatt.processors.economy.consumers.MAX_SERIES", 8)
    events = [{"ts_ms": START_MS, "team": team, "output_tokens": 9000} for team in "abc"]
    rows = Booked([], [], events).ledger.usage
    months = [START_MS + n * 31 * 24 * HOUR_MS for n in range(6)]
    told = pl.concat([rows.with_columns(window_start_ms=pl.lit(ms, pl.Int64)) for ms in months])
    ledger = Ledger(frame(POWER, []), frame(TOKENS, []), told)

    def owed(begin_ms: int, end_ms: int) -> Any:
        found = report(of(ledger, interval=Interval(begin_ms, end_ms)), ("team",))
        return next(row["revenue"] for row in found.rows if row["team"] == "a")

    alone = [owed(ms, ms + HOUR_MS) for ms in months]
    assert len(set(alone)) == 1
    assert owed(months[0], months[-1] + HOUR_MS) == sum(alone)


def test_more_than_64_bits_hold_add_up() -> None:
    """A gigawatt's millijoules after four months: rows that fit add up to what does not."""
    watts = [power(pool=f"p{n}", draw_mj=2**60, headroom_mj=2**60) for n in range(16)]
    total = report(of(Booked(watts, [], []).ledger), ()).total
    assert total["available_kwh"] == pytest.approx(Decimal(2**65) / 3_600_000_000)
    assert total["available_kwh"] == sum(
        Decimal(str(row["available_kwh"])) for row in report(of(Booked(watts, [], []).ledger), ("pool",)).rows
    )


def test_input_that_has_no_price_is_not_free() -> None:
    """A model that makes no output, as of embeddings: nobody knows what it brings."""
    embedded = tokens(model_name="other", output_tokens=0, input_tokens=9, cached_input_tokens=0)
    total = report(of(Booked([power()], [embedded], []).ledger), ()).total
    assert (total["unpriced_tokens"], total["revenue"], total["margin"]) == (9, None, None)


def test_what_has_no_price_is_not_free() -> None:
    """Figures that would need a price or tariff that is not there are withheld, and the row says what it lacks."""
    ledger = Booked(
        [power(product="unheard of", state="idle_loaded", lost_tokens_draw=5)],
        [tokens(model_name="other")],
        [],
    ).ledger
    book = Book()
    total = report(of(ledger, book), (), book).total
    for name in (
        "revenue",
        "energy_cost",
        "capital_cost",
        "cost_usage",
        "cost_allocation",
        "margin",
        "lost_revenue",
        "cost_per_mtok_allocation",
    ):
        assert total[name] is None, name
    # of all kinds
    assert total["unpriced_tokens"] == 70_000
    for reason in (
        "no tariff",
        "tokens without a price",
        "GPU-hours without a price",
        "lost tokens without a price",
    ):
        assert reason in str(total["withheld"])
    no_yardstick = Booked([power(state="idle_free", lost_tokens_draw=None)], [], []).ledger
    assert report(of(no_yardstick), ()).total["lost_tokens"] is None


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("gpu",), "there is no 'gpu'; choose of site, pool"),
        (("team", "engineer"), "the same tokens told twice"),
        (("pool", "team"), "in which pool it was served"),
    ],
)
def test_groupings_that_make_no_sense_are_refused(names: tuple[str, ...], said: str) -> None:
    """The error says what would."""
    with pytest.raises(ConfigError, match=said):
        dimensions(names, BOOK)
    assert set(DIMENSIONS) >= {"site", "pool", "model", "tier", "consumer"}


@given(st.lists(st.integers(-(10**15), 10**15), max_size=30), st.integers(1, 10**7))
def test_rounding_adds_up(amounts: list[int], unit: int) -> None:
    """Parts are within a unit of the truth, and add up to the total to the nearest unit."""
    parts = rounded_parts(amounts, unit)
    assert abs(2 * (sum(parts) * unit - sum(amounts))) <= unit
    assert all(abs(part * unit - amount) < unit for part, amount in zip(parts, amounts, strict=True))


def test_every_sum_is_made_of_columns() -> None:
    """What figures are added from stands among the columns."""
    assert {name for plus, minus in ADDED.values() for name in (*plus, *minus)} <= set(COLUMNS)


def test_what_is_given_away_without_a_price_is_told() -> None:
    """A part of the acquisition cost is not the whole: what is missing stands beside it."""
    events = [
        {"ts_ms": START_MS, "model_name": model, "tier": "free", "output_tokens": 20_000}
        for model in ("llama", "without a price")
    ]
    made = [
        tokens(model_name=event["model_name"], output_tokens=20_000, input_tokens=0, cached_input_tokens=0)
        for event in events
    ]
    ledger = Booked([power()], made, events).ledger
    found = figures(grouped(cells(ledger, BOOK, CONFIG, WHOLE), ()), BOOK, EXACT, 0.9)
    assert (found.total["unlisted_tokens"], found.total["unpriced_tokens"]) == (20_000, 0)
    assert found.total["acquisition_cost"] == Decimal("0.0114")
    assert found.total["withheld"] == "given away without a price"
    assert [note for note in notes(found) if note.startswith("unlisted: 20,000 ")]


def test_sums_of_a_model_are_not_wrapped() -> None:
    """Amounts that each fit, together do not: a report adds them up, and a row of money that cannot hold them is none."""
    text = 'currency = "VND"\n[[tier]]\nname = "standard"\n[[price]]\nmodel = "llama"\ninput = 0\noutput = 100_000\n'
    dear = parse_book(text.encode(), "book")
    much = {"output_tokens": 80_000_000_000_000, "input_tokens": 0, "cached_input_tokens": 0}
    windows = [tokens(window_start_ms=START_MS + at, **much) for at in (0, 10_000)]
    booked_ = Booked([power()], windows, [], book=dear)
    found = cells(booked_.ledger, dear, CONFIG, WHOLE).cells["revenue_micro"].sum()
    assert found == 16 * 10**18
    engines = [tokens(engine=engine, **much) for engine in "ab"]
    assert booked(Booked([power()], engines, [], book=dear).money, "revenue") == 0
