"""The economy from its topics to its rows and series: money conserved however it is read, absent while unknown."""

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import polars as pl
import pytest
from chaos_money import money
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from stage_driver import Driver, Message, sums
from structlog.testing import capture_logs

from idlewatt.processors.economy.book import Book
from idlewatt.processors.economy.book_file import parse_book
from idlewatt.processors.economy.config import EconomyConfig
from idlewatt.processors.economy.stage import EconomyStage
from idlewatt.processors.economy.state import EconomyState
from idlewatt.processors.families import in_units
from idlewatt.stream import metric_names as names
from idlewatt.stream import topics
from idlewatt.stream.decoding import decode
from idlewatt.stream.metric_names import Metric
from idlewatt.stream.records import CONSUMER, MONEY, POWER, TOKENS, USAGE, PowerRow, TokenRow, UsageRow

START_MS = 1_760_000_040_000
WINDOW_MS = 10_000
BOOK = """
[[tier]]
name = "standard"
[[tier]]
name = "free"
sold = false
[[tier]]
name = "premium"
[[price]]
model = "m"
input = 0.1
output = 0.35
steps = [{ above_mtok = 0.5, output = 0.2 }]
[[price]]
model = "m"
tier = "premium"
input = 0.3
output = 0.9
[tariff]
per_kwh = 0.12
[cost]
use_published = false
[[capital]]
product = "H100"
per_gpu_hour = 2
"""


def driver_of(book: str = BOOK) -> Driver[EconomyState]:
    parsed = parse_book(book.encode(), "book")
    return Driver(EconomyStage(lambda: parsed, EconomyConfig()))


def sold(window: int, output: int, model: str = "m", pool: str = "p") -> TokenRow:
    return TokenRow(
        site="s",
        pool=pool,
        window_start_ms=START_MS + window * WINDOW_MS,
        window_ms=WINDOW_MS,
        node="n",
        engine="e",
        model_name=model,
        advance="step",
        output_tokens=output,
        input_tokens=2 * output,
        cached_input_tokens=output // 2,
        serving_mj=1,
        measured_ms=WINDOW_MS,
        silent_ms=0,
    )


def power(
    window: int, state: str = "serving", gpus: int = 8, product: str = "H100", lost: int | None = None
) -> PowerRow:
    return PowerRow(
        site="s",
        pool="p",
        window_start_ms=START_MS + window * WINDOW_MS,
        window_ms=WINDOW_MS,
        product=product,
        model_name="m",
        state=state,
        demand="none",
        gpu_ms=gpus * WINDOW_MS,
        draw_mj=gpus * 3_333_333,
        headroom_mj=gpus * 777_777,
        estimated_mj=0,
        lost_tokens_draw=lost,
        lost_tokens_headroom=lost,
    )


def taken_back(window: int, gpus: int) -> PowerRow:
    """Time that was booked as dark and turned out to have been measured."""
    return dataclasses.replace(power(window, "dark", -gpus), draw_mj=0)


def used(number: int, output: int, team: str = "t", tier: str | None = None, model: str = "m") -> UsageRow:
    return UsageRow(
        ts_ms=START_MS,
        site="s",
        source="gateway",
        event_id=f"{number}",
        team=team,
        engineer="ada",
        model_name=model,
        tier=tier,
        output_tokens=output,
        input_tokens=output,
    )


def ledger(*rows: TokenRow | PowerRow) -> list[Message]:
    return [Message(topics.LEDGER, TOKENS if isinstance(row, TokenRow) else POWER, [row]) for row in rows]


def usage(*rows: UsageRow) -> list[Message]:
    return [Message(topics.USAGE, USAGE, [row]) for row in rows]


def shown(driver: Driver[EconomyState], metric: Metric, **labels: str) -> float | None:
    """The sum of the series with these labels; None where there is none."""
    found = [
        sample.value
        for family in driver.stage.families([driver.state])
        if family.metric is metric
        for sample in family.samples
        if labels.items() <= sample.labels.items()
    ]
    return sum(found) if found else None


def written(driver: Driver[EconomyState], schema: Any) -> list[dict[str, Any]]:
    decoded = [decode(record.value) for record in driver.records]
    return [row for found, frame in decoded if found is schema for row in frame.to_dicts()]


KEY = ("pool", "window_start_ms", "model_name", "kind", "state", "part", "currency", "tier", "origin")
MESSAGES = st.lists(
    st.one_of(
        st.builds(
            sold,
            st.integers(0, 20),
            st.integers(0, 10**6),
            st.sampled_from(["m", "x"]),
            st.sampled_from("pq"),
        ),
        st.builds(
            power,
            st.integers(0, 20),
            st.sampled_from(["serving", "idle_loaded", "idle_free", "other", "dark"]),
            st.integers(0, 8),
            st.sampled_from(["H100", "B200"]),
            st.none() | st.integers(0, 10**6),
        ),
        st.builds(taken_back, st.integers(0, 20), st.integers(1, 8)),
    ),
    min_size=1,
    max_size=14,
)


@examples(8)
@given(st.lists(st.integers(0, 10**6), max_size=4), MESSAGES, st.data())
def test_money_is_conserved_under_any_batches_and_restarts(
    told_of: list[int], rows: list[TokenRow | PowerRow], data: st.DataObject
) -> None:
    """The same money rows for any cut of the ledger, a restart after each; counters are their sums.

    But for what dark time cost: where it is taken back, its counter stands.
    """

    def booked(sizes: Sequence[int]) -> tuple[Counter[Any], dict[str, float], float]:
        driver = driver_of()
        tiers = ["free", "premium", None, "unknown"]
        driver.append(ledger(sold(0, 10**6, pool="q")))
        driver.fold(START_MS)
        driver.append(usage(*(used(at, tokens, tier=tiers[at]) for at, tokens in enumerate(told_of))))
        driver.fold(START_MS)
        driver.append(ledger(*rows))
        for size in sizes:
            driver.fold(START_MS, {topics.LEDGER: size, topics.USAGE: 0})
            driver.state = driver.stage.restore(driver.stage.snapshot(driver.state))
        total: Counter[Any] = Counter()
        for row in written(driver, MONEY):
            total[tuple(row[name] for name in KEY)] += row["amount_micro"]
        metrics = (
            names.REVENUE,
            names.ACQUISITION_COST,
            names.ENERGY_COST,
            names.CAPITAL_COST,
            names.LOST_REVENUE,
        )
        counters = {metric.name: shown(driver, metric) or 0.0 for metric in metrics}
        dark = shown(driver, names.CAPITAL_COST, state="dark") or 0.0
        counters[names.CAPITAL_COST.name] -= dark
        return total, counters, dark

    def micro(kind: str, dark: bool) -> int:
        return sum(amount for key, amount in total.items() if key[3] == kind and (key[4] == "dark") is dark)

    sizes, left = [], len(rows)
    while left:
        sizes.append(data.draw(st.integers(1, left)))
        left -= sizes[-1]
    total, counters, dark = booked(sizes)
    at_once, same, _ = booked([len(rows)])
    assert total == at_once
    assert counters == pytest.approx(same, abs=1e-9)
    for name, value in counters.items():
        kind = name.removeprefix("idlewatt_").removesuffix("_total")
        told = micro(kind, False) + (micro(kind, True) if kind != "capital_cost" else 0)
        assert value * 1_000_000 == pytest.approx(told, abs=1e-3)
    assert dark * 1_000_000 >= micro("capital_cost", True) - 1e-3


def test_after_an_outage_tokens_are_sold_on_the_tiers_they_were_asked_for() -> None:
    """A fifth is premium all the time. An hour's usage is read at once, and then the ledger as the meter catches up."""

    def told(minute: int) -> list[Message]:
        row = used(minute, 200_000, tier="premium")
        return usage(dataclasses.replace(row, ts_ms=START_MS + 60_000 * minute, input_tokens=0))

    def made(minute: int) -> list[Message]:
        return ledger(dataclasses.replace(sold(6 * minute, 1_000_000), input_tokens=0, cached_input_tokens=0))

    live, cautious, late = driver_of(), driver_of(), driver_of()
    for minute in range(66):
        for driver in (live, cautious, late) if minute < 6 else (live,):
            driver.append([*told(minute), *made(minute)])
            driver.fold(START_MS + 60_000 * minute)
    for driver, at_once in ((cautious, 5), (late, 60)):
        driver.append([row for minute in range(6, 66) for row in told(minute)])
        driver.fold(START_MS + 3_960_000)
        for minute in range(6, 66, at_once):
            driver.append([row for after in range(minute, minute + at_once) for row in made(after)])
            driver.fold(START_MS + 3_960_000)
        for tier in ("premium", "standard"):
            revenue = shown(live, names.REVENUE, tier=tier)
            assert revenue is not None
            assert shown(driver, names.REVENUE, tier=tier) == pytest.approx(revenue, rel=0.001)


def test_what_a_backlog_brings_hardly_depends_on_how_much_is_read_at_once() -> None:
    """All is premium for half an hour and free from then on; the processor was away for the hour and a half after, or is
    started only then."""

    def booked(at_once: int, usage_first: bool, read_live: int = 30) -> list[float | None]:
        driver = driver_of()
        for minute in range(120):
            tier = "premium" if minute < 30 else "free"
            row = dataclasses.replace(used(minute, 60_000, tier=tier), input_tokens=0)
            driver.append(usage(dataclasses.replace(row, ts_ms=START_MS + 60_000 * minute)))
            made = dataclasses.replace(sold(6 * minute, 60_000), input_tokens=0, cached_input_tokens=0)
            driver.append(ledger(made))
        now_ms = START_MS + 120 * 60_000
        driver.fold(now_ms, dict.fromkeys((topics.USAGE, topics.LEDGER), read_live))
        if usage_first:
            driver.fold(now_ms, {topics.USAGE: 120 - read_live, topics.LEDGER: 0})
        while driver.behind(topics.LEDGER):
            driver.fold(now_ms, dict.fromkeys((topics.USAGE, topics.LEDGER), at_once))
        sums = ((names.REVENUE, "premium"), (names.ACQUISITION_COST, "free"))
        return [shown(driver, metric, tier=tier) for metric, tier in sums]

    in_time = booked(2, False)
    for at_once, usage_first in ((7, False), (90, False), (7, True), (90, True)):
        assert booked(at_once, usage_first) == pytest.approx(in_time, rel=0.05)
    for at_once, usage_first in ((90, False), (7, True)):
        assert booked(at_once, usage_first, read_live=0) == pytest.approx(in_time, rel=0.05)


def test_what_another_site_is_read_in_changes_no_tier_of_this_one() -> None:
    """Of the neighbour's ledger more than five minutes are read at once, by and by."""

    def sold_on(neighbour: bool) -> list[float | None]:
        driver = driver_of()
        for minute in range(50):
            now_ms = START_MS + 60_000 * minute
            if minute % 10 == 0:
                for ahead in range(minute, minute + 10):
                    told = used(ahead, 60_000, tier="premium" if ahead < 30 else "free")
                    driver.append(usage(dataclasses.replace(told, ts_ms=START_MS + 60_000 * ahead)))
                driver.fold(now_ms + 1_200_000)
            driver.append(ledger(sold(6 * minute, 60_000)))
            if neighbour and minute >= 30:
                for late in (minute - 30, minute - 20):
                    driver.append(ledger(dataclasses.replace(sold(6 * late, 60_000), site="other")))
            driver.fold(now_ms + 1_200_000)
        sums = ((names.REVENUE, "premium"), (names.REVENUE, "standard"), (names.ACQUISITION_COST, "free"))
        return [shown(driver, metric, site="s", tier=tier) for metric, tier in sums]

    assert sold_on(True) == sold_on(False)


def test_usage_claims_nothing_that_was_made_before_it_began() -> None:
    """A processor that is started late reads hours of engines that had no gateway, and the one of the last half hour."""
    driver = driver_of()
    for minute in range(180):
        if minute >= 150:
            row = dataclasses.replace(used(minute, 60_000, tier="premium"), input_tokens=0)
            driver.append(usage(dataclasses.replace(row, ts_ms=START_MS + 60_000 * minute)))
        made = dataclasses.replace(sold(6 * minute, 60_000), input_tokens=0, cached_input_tokens=0)
        driver.append(ledger(made))
    driver.fold(START_MS + 180 * 60_000)
    premium = shown(driver, names.REVENUE, tier="premium")
    assert premium is not None
    assert 0 < premium <= 30 * 0.06 * 0.9


@pytest.mark.parametrize("neighbour", [False, True])
def test_who_posts_usage_once_an_hour_claims_all_that_is_made_until_the_next_post(neighbour: bool) -> None:
    """The shares of its hour hold, although ever less of it can be compared, and another site tells all the time."""
    driver = driver_of()
    posted, unattributed = [], {}
    for minute in range(3 * 60):
        row = dataclasses.replace(used(minute, 60_000, tier="premium"), input_tokens=0)
        # half of the minute's, which is whole in the ledger
        for half, second in (("a", 10), ("b", 40)):
            ts_ms = START_MS + 60_000 * minute + 1000 * second
            posted.append(
                dataclasses.replace(row, event_id=f"{minute}{half}", ts_ms=ts_ms, output_tokens=30_000)
            )
        if neighbour and minute % 10 == 0:
            other = {"site": "t", "event_id": f"t{minute}", "ts_ms": START_MS + 60_000 * minute}
            driver.append(usage(dataclasses.replace(row, **other)))
        if minute % 60 == 0:
            driver.append(usage(*posted[:-1]))
            posted = posted[-1:]
        made = dataclasses.replace(sold(6 * (minute - 1), 60_000), input_tokens=0, cached_input_tokens=0)
        driver.append(ledger(made))
        # one by one around a post
        if minute % 6 == 0 or abs(minute % 60 - 30) > 26:
            driver.fold(START_MS + 60_000 * (minute + 1))
            unattributed[minute] = shown(driver, names.UNATTRIBUTED_TOKENS, kind="output")
    assert unattributed[179] == unattributed[120]


def test_what_dark_time_cost_never_falls() -> None:
    """A spool comes, and the time is another state's: Prometheus would add up the whole counter again."""
    driver = driver_of()
    seen = []
    for rows in ([power(0, "dark", 8)], [taken_back(0, 6), power(0, "serving", 6)], [power(1, "dark", 5)]):
        driver.append(ledger(*rows))
        driver.fold(START_MS)
        driver.state = driver.stage.restore(driver.stage.snapshot(driver.state))
        seen.append(shown(driver, names.CAPITAL_COST, state="dark"))
    assert seen == [pytest.approx(gpus * 10 / 3600 * 2, abs=1e-6) for gpus in (8, 8, 8)]
    driver.append(ledger(power(2, "dark", 2)))
    driver.fold(START_MS)
    assert shown(driver, names.CAPITAL_COST, state="dark") == pytest.approx(9 * 10 / 3600 * 2, abs=1e-6)


def test_usage_decides_tiers_and_is_billed() -> None:
    """A quarter premium, a quarter free, half unattributed; consumers' rows and counters say what they owe."""
    driver = driver_of()
    driver.append(ledger(sold(0, 100_000)))
    driver.fold(START_MS)
    driver.append(usage(used(1, 25_000, tier="premium"), used(2, 25_000, team="u", tier="free")))
    driver.fold(START_MS)
    driver.append(ledger(sold(1, 100_000)))
    driver.fold(START_MS)
    # of 200,000 input tokens usage told of an eighth for each tier
    premium = 0.025 * 0.9 + 0.025 * 0.3 + 0 * 0.3
    assert shown(driver, names.REVENUE, tier="premium") == pytest.approx(premium)
    list_value = 0.025 * 0.35 + 0.025 * 0.1
    assert shown(driver, names.ACQUISITION_COST, tier="free") == pytest.approx(list_value)
    assert shown(driver, names.UNATTRIBUTED_TOKENS, kind="output") == 150_000
    assert shown(driver, names.UNATTRIBUTED_TOKENS, kind="input") == 350_000
    assert shown(driver, names.CONSUMER_SPEND, consumer_kind="team", consumer="t") == pytest.approx(0.03)
    assert shown(driver, names.CONSUMER_SPEND, consumer_kind="team", consumer="u") == 0
    # the same tokens once more, as those of a person
    assert shown(driver, names.CONSUMER_SPEND, consumer_kind="engineer", consumer="ada") == pytest.approx(
        0.03
    )
    assert shown(driver, names.CONSUMER_TOKENS, consumer_kind="engineer", kind="output") == 50_000
    rows = written(driver, CONSUMER)
    assert [(row["team"], row["tier"], row["spend_micro"]) for row in rows] == [
        ("t", "premium", 30_000),
        ("u", "free", 0),
    ]


def test_a_model_that_is_seldom_used_is_sold_on_the_tier_it_was_asked_for() -> None:
    """Tier free, less than once an hour; another model is used all the time."""
    driver = driver_of(BOOK.replace('model = "m"', 'model = "*"'))
    for minute in range(0, 150, 5):
        models = ["m", "seldom"] if minute in (50, 140) else ["m"]
        at_ms = START_MS + minute * 60_000
        rows = [used(minute, 1000, model=model, tier="free") for model in models]
        driver.append(
            usage(
                *(
                    dataclasses.replace(row, ts_ms=at_ms, event_id=f"{row.model_name} {minute}")
                    for row in rows
                )
            )
        )
        driver.fold(at_ms)
        made = [sold(minute * 6, 1000, model) for model in models]
        driver.append(
            ledger(*(dataclasses.replace(row, input_tokens=1000, cached_input_tokens=0) for row in made))
        )
        driver.fold(at_ms + 25_000)
    lines = [line for line in written(driver, MONEY) if line["model_name"] == "seldom"]
    assert [line["tier"] for line in lines] == ["free", "free"]
    assert shown(driver, names.UNATTRIBUTED_TOKENS, model_name="seldom") is None


def test_a_million_names_cost_others_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound new names are booked together, known ones go on, and unknown tiers are one."""
    monkeypatch.setattr("idlewatt.processors.economy.consumers.MAX_SERIES", 4)
    driver = driver_of()
    driver.append(ledger(sold(0, 1000)) + usage(used(0, 10, team="a")))
    driver.fold(START_MS)
    flood = (used(n, 1, team=f"team-{n}", tier=f"tier-{n}") for n in range(1, 51))
    driver.append(usage(*flood, used(99, 5, team="a")))
    driver.fold(START_MS)
    assert driver.state.consumers.height <= 8
    spent = {"consumer_kind": "team", "kind": "output"}
    assert shown(driver, names.CONSUMER_TOKENS, consumer="a", **spent) == 15
    assert shown(driver, names.CONSUMER_TOKENS, consumer="(other)", **spent) == 50
    assert set(driver.state.shares.get_column("tier")) == {"standard", "(unknown)"}
    assert driver.state.volumes.height <= 4
    monkeypatch.setattr("idlewatt.processors.economy.tiers.MAX_ROWS", 4)
    driver.append(usage(*(used(n, 1, model=f"model-{n}") for n in range(100, 150))))
    driver.fold(START_MS)
    assert set(driver.state.tiers.get_column("model_name")) == {"m"}


def test_what_has_no_price_is_counted_and_withholds_what_needs_it() -> None:
    """An unpriced model is never free: its tokens are counted, and margin and yield are absent, not too low."""
    driver = driver_of()
    driver.append(ledger(sold(0, 1000), power(0)))
    driver.fold(START_MS)
    assert shown(driver, names.MARGIN_PER_HOUR) is not None
    assert shown(driver, names.REVENUE_PER_GIGAWATT_YEAR, scope="it") is not None
    assert shown(driver, names.UNPRICED_TOKENS) is None
    driver.append(ledger(sold(1, 500, model="x"), power(1)) + usage(used(1, 7, model="x")))
    with capture_logs() as logs:
        driver.fold(START_MS)
        driver.append(ledger(sold(2, 0, model="x")))
        driver.fold(START_MS)
    assert [(line["event"], line["model"]) for line in logs] == [("tokens_without_price", "x")]
    assert shown(driver, names.UNPRICED_TOKENS, model_name="x", tier="standard", kind="output") == 500
    assert shown(driver, names.CONSUMER_UNPRICED_TOKENS, consumer_kind="team", consumer="t") == 7 + 7
    assert shown(driver, names.MARGIN_PER_HOUR) is None
    assert shown(driver, names.REVENUE_PER_GIGAWATT_YEAR) is None
    # what it cost is known all the same
    assert shown(driver, names.COST_PER_MILLION_TOKENS, basis="all_in", cost_basis="usage") is not None


def test_a_tier_that_is_not_sold_needs_no_price() -> None:
    """Whoever asks for it owes nothing and it brings nothing, of whatever model: both are known."""
    driver = driver_of()
    row = dataclasses.replace(sold(0, 1000, model="x"), input_tokens=1000, cached_input_tokens=0)
    driver.append(ledger(sold(0, 1000), row))
    driver.fold(START_MS)
    driver.append(usage(used(1, 1000, tier="free", model="x")))
    driver.fold(START_MS)
    assert [line["spend_micro"] for line in written(driver, CONSUMER)] == [0]
    assert shown(driver, names.CONSUMER_UNPRICED_TOKENS) is None
    later_ms = START_MS + 2 * 3_600_000
    driver.append(usage(dataclasses.replace(used(2, 1000, tier="free", model="x"), ts_ms=later_ms)))
    rows = (dataclasses.replace(row, window_start_ms=later_ms), sold(720, 1000), power(720))
    driver.fold(later_ms)
    driver.append(ledger(*rows))
    driver.fold(later_ms)
    assert shown(driver, names.MARGIN_PER_HOUR) is not None


def test_amounts_beyond_all_bounds_cost_others_nothing() -> None:
    """Counters that jump, at a price of 10,000 per million tokens: such a row has no amount, all others have theirs."""
    driver = driver_of(BOOK.replace("output = 0.35", "output = 10_000").replace("steps =", "# steps ="))
    # in one message
    tokens = [sold(0, 1000), dataclasses.replace(sold(0, 2**52, pool="q"), input_tokens=2**52)]
    idle = power(0, "idle_loaded", lost=1000)
    watts = [
        idle,
        dataclasses.replace(
            idle, pool="q", draw_mj=2**60, lost_tokens_draw=2**60, lost_tokens_headroom=2**60
        ),
    ]
    driver.append([Message(topics.LEDGER, TOKENS, tokens), Message(topics.LEDGER, POWER, watts)])
    driver.fold(START_MS)
    driver.append(usage(used(0, 1000), used(1, 2**52, team="u")))
    driver.fold(START_MS)
    amounts = sums(written(driver, MONEY), ("pool", "kind"), ("amount_micro",))
    # output, input and cached input; twice 1000 tokens lost at what 1000 tokens of output brought with their input
    assert amounts["p", "revenue"] == (10_000_000 + 200 + 50,)
    assert amounts["p", "lost_revenue"] == (2 * (10_000_000 + 200 + 50),)
    assert ("q", "revenue") not in amounts
    assert ("q", "lost_revenue") not in amounts
    assert shown(driver, names.UNPRICED_TOKENS, pool="q", kind="output") == 2**52
    owed = {row["team"]: row["spend_micro"] for row in written(driver, CONSUMER)}
    assert owed == {"t": 10_000_100, "u": None}


@pytest.mark.parametrize("steps", ["", "steps = [{ above_mtok = 1000, output = 200 }]"])
def test_usage_beyond_all_bounds_takes_nothing_from_what_others_bring(steps: str) -> None:
    """What engines' tokens bring goes by what usage of their tier owes: a row that owes what nobody knows is none of it."""
    book = BOOK.replace("output = 0.35", "output = 250_000").replace(
        "steps = [{ above_mtok = 0.5, output = 0.2 }]", steps
    )
    brought = []
    for more in ([], [dataclasses.replace(used(2, 2**52, team="u"), input_tokens=0)]):
        driver = driver_of('currency = "VND"\n' + book)
        driver.append(ledger(sold(0, 100_000)))
        driver.fold(START_MS)
        driver.append(usage(used(1, 10_000), *more))
        driver.fold(START_MS)
        driver.append(ledger(sold(1, 100_000)))
        driver.fold(START_MS)
        assert [row["spend_micro"] is None for row in written(driver, CONSUMER)] == [
            False,
            *(True for _ in more),
        ]
        brought.append(shown(driver, names.REVENUE))
    assert brought[0] == brought[1]


def test_what_tokens_bring_needs_no_more_than_128_bits() -> None:
    """The largest amounts that fit, at what usage of them owes."""
    book = BOOK.replace("output = 0.35", "output = 900").replace("steps =", "# steps =")
    driver = driver_of(book)
    rows = [dataclasses.replace(sold(w, 2**52), input_tokens=0, cached_input_tokens=0) for w in (0, 1)]
    driver.append(ledger(rows[0]))
    driver.fold(START_MS)
    driver.append(usage(dataclasses.replace(used(1, 2**53 - 1), input_tokens=0)))
    driver.fold(START_MS)
    driver.append(ledger(rows[1]))
    driver.fold(START_MS)
    amounts = [row["amount_micro"] for row in written(driver, MONEY) if row["kind"] == "revenue"]
    assert amounts == [900 * 2**52] * 2


def test_a_product_without_a_price_withholds_all_in_cost() -> None:
    """Half of the GPUs' cost is no cost: energy stays, all that needs capital is absent, the time is counted."""
    driver = driver_of()
    driver.append(ledger(sold(0, 1000), power(0), power(0, product="B200")))
    driver.fold(START_MS)
    assert shown(driver, names.UNCOSTED_GPU_SECONDS, product="B200") == 80
    assert shown(driver, names.COST_PER_MILLION_TOKENS, basis="energy") is not None
    assert shown(driver, names.COST_PER_MILLION_TOKENS, basis="all_in") is None
    assert shown(driver, names.TOKENS_PER_CURRENCY_UNIT) is None
    assert shown(driver, names.MARGIN_PER_HOUR) is None


def test_of_what_costs_nothing_a_currency_unit_buys_no_number_of_tokens() -> None:
    """A book may have prices of 0; whatever is shown then is finite, and a cost of 0 is told."""
    prices = '[[price]]\nmodel = "m"\ninput = 0\noutput = 0\n[tariff]\nper_kwh = 0\n'
    driver = driver_of(prices + '[[capital]]\nproduct = "H100"\nper_gpu_hour = 0\n')
    driver.append(ledger(sold(0, 1000), power(0), power(0, "idle_loaded", lost=100)))
    driver.fold(START_MS)
    assert shown(driver, names.TOKENS_PER_CURRENCY_UNIT) is None
    assert shown(driver, names.COST_PER_MILLION_TOKENS) == 0
    samples = [s for family in driver.stage.families([driver.state]) for s in family.samples]
    assert [s.name for s in samples if not math.isfinite(s.value)] == []


def test_published_prices_are_labelled_wherever_they_show() -> None:
    """Whoever reads a figure that stands on another's price is told so."""
    product = "NVIDIA H100 80GB HBM3"
    driver = driver_of(BOOK.replace("use_published = false", ""))
    driver.append(ledger(sold(0, 1000), power(0, product=product)))
    driver.fold(START_MS)
    assert shown(driver, names.CAPITAL_COST, origin="published") == pytest.approx(
        8 * 10 / 3600 * 1.69, abs=1e-6
    )
    for metric in (names.MARGIN_PER_HOUR, names.TOKENS_PER_CURRENCY_UNIT):
        assert shown(driver, metric, origin="published") == shown(driver, metric)
    assert shown(driver, names.COST_PER_MILLION_TOKENS, basis="all_in", origin="book") is None
    # without a PUE: 8 GPUs of 1.73 kW instead of their limits
    per_gw = shown(driver, names.REVENUE_PER_GIGAWATT_YEAR, scope="facility", origin="published")
    revenue = shown(driver, names.REVENUE)
    assert revenue is not None
    assert per_gw == pytest.approx(revenue / (8 * 1730 * 10) * 1e9 * 31_536_000)


def test_little_telemetry_withholds_ratios() -> None:
    """A pool that is mostly dark says nothing about the cost of its tokens."""
    driver = driver_of()
    driver.append(ledger(sold(0, 1000), power(0), power(0, state="dark", gpus=2)))
    driver.fold(START_MS)
    assert shown(driver, names.COST_PER_MILLION_TOKENS) is None
    assert shown(driver, names.MARGIN_PER_HOUR) is None
    assert shown(driver, names.CAPITAL_COST, state="dark") == pytest.approx(2 * 10 / 3600 * 2, abs=1e-6)


def test_recoverable_gpus_are_those_that_not_even_the_busiest_window_needed() -> None:
    """12.5 GPUs hold the model for an hour; at most 5.5 served in any window: 6 could be free. Unknown before."""
    driver = driver_of()
    for window in range(361):
        busy = power(window, gpus=4)
        if window == 100:
            busy = power(window, gpus=5)
            half = {name: getattr(busy, name) for name in busy.__slots__} | {"gpu_ms": 55_000}
            busy = PowerRow(**half)
        idle_ms = 125_000 - busy.gpu_ms
        idle = {name: getattr(busy, name) for name in busy.__slots__} | {
            "state": "idle_loaded",
            "gpu_ms": idle_ms,
        }
        driver.append([Message(topics.LEDGER, POWER, [busy, PowerRow(**idle)])])
        if window % 50 == 0:
            driver.fold(START_MS)
            assert shown(driver, names.RECOVERABLE_GPUS) is None
    driver.fold(START_MS)
    assert shown(driver, names.RECOVERABLE_GPUS, model_name="m") == 6


def test_nothing_is_said_to_be_recoverable_where_minutes_of_the_hour_are_missing() -> None:
    """Nobody knows what a pool needed while it had no windows."""
    driver = driver_of()
    told = [*range(12), *range(24, 361)]
    rows = [power(window, state, gpus=2) for window in told for state in ("serving", "idle_loaded")]
    driver.append([Message(topics.LEDGER, POWER, rows)])
    driver.fold(START_MS)
    assert shown(driver, names.RECOVERABLE_GPUS) is None


def test_nothing_is_recoverable_of_a_model_that_nothing_held_for_a_while() -> None:
    """The fewest GPUs that held it in the hour are none, however few served; also where windows are read together."""
    # alone where it is lost and found again
    for borders in ((0, 50, *range(98, 106), 150, 361), (*range(0, 361, 50), 361)):
        driver = driver_of()
        for first, next_ in pairwise(borders):
            rows = []
            for window in range(first, next_):
                idle = power(window, "idle_free", gpus=8)
                rows += (
                    [dataclasses.replace(idle, model_name="")]
                    if 100 <= window < 103
                    else [power(window, gpus=2), power(window, "idle_loaded", gpus=6)]
                )
            driver.append([Message(topics.LEDGER, POWER, rows)])
            driver.fold(START_MS)
        assert shown(driver, names.RECOVERABLE_GPUS, model_name="m") == 0


def test_a_pool_that_is_gone_shows_nothing_of_its_last_hour() -> None:
    """Its counters stay; what is a figure of the trailing hour is one of the site's."""
    driver = driver_of()
    driver.append(ledger(sold(0, 1000), power(0), power(0, "idle_loaded", lost=100)))
    driver.fold(START_MS)
    figures = (names.MARGIN_PER_HOUR, names.LOST_REVENUE_PER_HOUR, names.COST_PER_MILLION_TOKENS)
    assert all(shown(driver, figure, pool="p") is not None for figure in figures)
    driver.append(ledger(dataclasses.replace(power(361), pool="q")))
    driver.fold(START_MS)
    assert all(shown(driver, figure, pool="p") is None for figure in figures)
    assert shown(driver, names.REVENUE, pool="p") is not None


def test_figures_are_withheld_while_engines_were_not_read() -> None:
    """What they made meanwhile stands in no figure of the hour, also when it comes; a model that was unloaded is no gap, nor
    an engine that has stopped.
    """
    figures = (names.MARGIN_PER_HOUR, names.COST_PER_MILLION_TOKENS, names.REVENUE_PER_GIGAWATT_YEAR)
    for unread, models, stopped, is_shown in (
        *((60, 1, None, False), (60, 1, False, False), (20, 1, False, True), (360, 2, False, True)),
        (60, 1, True, True),
    ):
        rows: list[Any] = []
        for window in range(360):
            silent = dataclasses.replace(sold(window, 0), measured_ms=0, silent_ms=WINDOW_MS, stopped=stopped)
            rows += [silent if window < unread else sold(window, 1000)]
            rows += [dataclasses.replace(sold(window, 1000), model_name="other")] if models == 2 else []
            rows.append(power(window))
        driver = driver_of(BOOK.replace('model = "m"', 'model = "*"'))
        driver.append(ledger(*rows))
        driver.fold(START_MS)
        assert [shown(driver, figure, pool="p") is not None for figure in figures] == [is_shown] * 3


def test_figures_are_withheld_where_engines_make_their_tokens_on_gpus_that_nobody_reads() -> None:
    """The costs of one node would stand over the tokens of ten. Beside others on a node it is not known whose GPUs served."""
    figures = (names.MARGIN_PER_HOUR, names.COST_PER_MILLION_TOKENS, names.REVENUE_PER_GIGAWATT_YEAR)
    blind = dataclasses.replace(sold(0, 1000), node="other", serving_mj=0)
    # of its GPUs some are read
    partly = dataclasses.replace(sold(0, 1000), unread_gpus=4)
    embeds = dataclasses.replace(blind, output_tokens=0)
    for read, others, row, is_shown in (
        *((1, 9, blind, False), (9, 1, blind, True), (1, 9, partly, False), (9, 1, partly, True)),
        *((1, 9, embeds, False), (1, 9, dataclasses.replace(embeds, node="n"), True)),
        (1, 9, dataclasses.replace(blind, node="n"), True),
    ):
        engines = [dataclasses.replace(sold(0, 1000), engine=f"read {n}") for n in range(read)]
        engines += [dataclasses.replace(row, engine=f"other {n}") for n in range(others)]
        driver = driver_of()
        driver.append(ledger(power(0), *engines))
        driver.fold(START_MS)
        assert [shown(driver, figure) is not None for figure in figures] == [is_shown] * 3


@pytest.mark.parametrize(
    ("output", "measured_ms", "is_shown"), [(1000, 10_000, True), (90_000, 10_000, False), (90_000, 0, True)]
)
def test_one_engine_of_many_may_make_most_of_what_nobody_reads_the_watts_of(
    output: int, measured_ms: int, is_shown: bool
) -> None:
    """One of eleven, with nine tokens of ten; what is known to have been made in a gap was made by GPUs that were read."""
    read = [dataclasses.replace(sold(0, 1000), engine=f"read {n}") for n in range(10)]
    large = dataclasses.replace(
        sold(0, output), engine="large", node="other", serving_mj=0, measured_ms=measured_ms
    )
    driver = driver_of()
    driver.append(ledger(power(0), *read, large))
    driver.fold(START_MS)
    for figure in (names.MARGIN_PER_HOUR, names.COST_PER_MILLION_TOKENS, names.REVENUE_PER_GIGAWATT_YEAR):
        assert (shown(driver, figure) is not None) is is_shown


@pytest.mark.parametrize("unread", [{"node": "other", "serving_mj": 0}, {"unread_gpus": 1}])
def test_what_is_made_on_gpus_that_nobody_reads_is_weighed_by_kind_and_margin_by_revenue_too(
    unread: dict[str, Any],
) -> None:
    """Tokens of another kind or of less worth, which others make many of, would hide that output and revenue have no costs."""
    embeds = {"output_tokens": 0, "input_tokens": 400_000, "cached_input_tokens": 0}
    dear = (
        BOOK
        + """
    [[price]]
    model = "dear"
    input = 100
    output = 100
    """
    )
    for book, model, read, costs_are_known, revenue_has_costs in (
        (BOOK, "m", embeds, False, False),
        (BOOK, "m", {}, True, True),
        (dear, "dear", {}, True, False),
    ):
        rows = [dataclasses.replace(sold(0, 40_000), engine=f"read {n}", **read) for n in range(19)]
        rows.append(dataclasses.replace(sold(0, 40_000, model), engine="unread", **unread))
        driver = driver_of(book)
        driver.append(ledger(power(0), *rows))
        driver.fold(START_MS)
        cost, *money = (
            shown(driver, figure) is not None
            for figure in (
                names.COST_PER_MILLION_TOKENS,
                names.MARGIN_PER_HOUR,
                names.REVENUE_PER_GIGAWATT_YEAR,
            )
        )
        assert (cost, money) == (costs_are_known, [revenue_has_costs] * 2)


def test_who_was_taken_for_stopped_and_comes_late_hides_nobodys_silence() -> None:
    """A server that runs without a process on its GPU was read after all; another one was silent for half the hour."""
    rows: list[Any] = []
    for window in range(360):
        gone = dataclasses.replace(sold(window, 0), engine="gone", measured_ms=0, silent_ms=WINDOW_MS)
        rows += [
            dataclasses.replace(gone, stopped=True),
            dataclasses.replace(sold(window, 1000), engine="read"),
        ]
        rows.append(dataclasses.replace(gone, measured_ms=WINDOW_MS, silent_ms=-WINDOW_MS))
        if window % 2:
            rows.append(dataclasses.replace(gone, engine="silent"))
        rows.append(power(window))
    driver = driver_of()
    driver.append(ledger(*rows))
    driver.fold(START_MS)
    assert shown(driver, names.MARGIN_PER_HOUR, pool="p") is None


@pytest.mark.parametrize("read_at_once", [True, False])
def test_what_was_made_while_no_gpu_was_read_stands_over_no_cost(read_at_once: bool) -> None:
    """An hour of tokens before a pool's GPUs are read changes no figure of the minutes after, and stays in the counters."""
    figures = (
        names.MARGIN_PER_HOUR,
        names.COST_PER_MILLION_TOKENS,
        names.TOKENS_PER_CURRENCY_UNIT,
        names.REVENUE_PER_GIGAWATT_YEAR,
        names.PAYBACK_YEARS,
    )
    alone, after = driver_of(), driver_of()
    # from second 50 of a minute on
    first = 365
    after.append(ledger(*(sold(window, 1_000_000) for window in range(first))))
    if not read_at_once:
        after.fold(START_MS)
    # while its windows are kept as they are, and when they are kept by the minute
    for begin, until in ((first, first + 12), (first + 12, first + 42)):
        metered = [row for window in range(begin, until) for row in (sold(window, 1_000_000), power(window))]
        for driver in (alone, after):
            driver.append(ledger(*metered))
            driver.fold(START_MS)
        for figure in figures:
            assert shown(alone, figure) is not None
            assert shown(after, figure) == pytest.approx(shown(alone, figure))
        sold_alone = shown(alone, names.REVENUE) or 0
        assert shown(after, names.REVENUE) == pytest.approx(until / (until - first) * sold_alone)


def test_what_came_late_is_taken_back_from_its_own_engine() -> None:
    """Whether its window is read with it or before: another engine was not read at all."""
    for at_once in (True, False):
        driver = driver_of(BOOK.replace('model = "m"', 'model = "*"'))
        rows: list[Any] = []
        for window in range(360):
            silent = dataclasses.replace(sold(window, 0), measured_ms=0, silent_ms=WINDOW_MS)
            cut = [dataclasses.replace(silent, engine=engine) for engine in ("e", "f")]
            rows += (
                cut
                if window < 100
                else [dataclasses.replace(sold(window, 1000), engine=x) for x in ("e", "f")]
            )
            rows.append(power(window))
        late = [dataclasses.replace(sold(window, 1000), silent_ms=-WINDOW_MS) for window in range(100)]
        driver.append(ledger(*rows, *(late if at_once else ())))
        driver.fold(START_MS)
        driver.append(ledger(*(() if at_once else late)))
        driver.fold(START_MS)
        assert shown(driver, names.MARGIN_PER_HOUR, pool="p") is None


def test_a_pool_that_is_hours_behind_tells_how_far_it_is_priced() -> None:
    """Its meter's partition catches up while another's is there: whoever sees no clock takes its money for that of now."""
    driver = driver_of()
    driver.append(ledger(power(0), dataclasses.replace(power(1080), pool="q")))
    driver.fold(START_MS)
    ends_s = [shown(driver, names.MONEY_END, pool=pool) for pool in ("p", "q")]
    assert ends_s == [START_MS / 1000 + 10, START_MS / 1000 + 10_810]


def test_a_pool_without_gpus_grows_no_state() -> None:
    """Engines whose pool has no watts, such as one that is written wrongly: what is kept goes by its newest window."""
    driver = driver_of()
    for window in range(0, 1500, 30):
        driver.append(ledger(*(sold(w, 1000) for w in range(window, window + 30))))
        driver.fold(START_MS)
    assert driver.state.mix.height < 800
    assert driver.state.rolling.height < 500
    assert shown(driver, names.REVENUE) is not None


def test_a_namesake_of_another_kind_has_volumes_of_its_own() -> None:
    """Teams are billed first, then families of agents."""
    books = [parse_book(f'billed = "{kind}"\n{BOOK}'.encode(), "book") for kind in ("team", "agent_family")]
    now = books[0]
    driver: Driver[EconomyState] = Driver(EconomyStage(lambda: now, EconomyConfig()))
    names_of: dict[str, Any] = {"team": "t", "agent_family": "t", "engineer": None}

    def spent(number: int) -> int:
        row = dataclasses.replace(used(number, 500_000), input_tokens=0, **names_of)
        driver.append(usage(row))
        driver.fold(START_MS)
        amount = written(driver, CONSUMER)[-1]["spend_micro"]
        assert isinstance(amount, int)
        return amount

    assert spent(1) == 175_000
    assert spent(2) == 100_000
    now = books[1]
    assert [spent(3), spent(4)] == [175_000, 100_000]
    now = books[0]
    assert spent(5) == 100_000


def test_pools_that_are_gone_are_forgotten() -> None:
    """Nodes that come with a new name each are pools of their own: what is kept goes by those that are there."""
    driver = driver_of()
    sizes, counters = [], []
    for half_day in range(20):
        window = half_day * 4320
        # B200 has no price, nor has x
        rows = (power(window), power(window, product="B200"), sold(window, 1000), sold(window, 7, model="x"))
        without_gpus = sold(window, 1000, pool=f"engines-{half_day}")
        driver.append(
            ledger(without_gpus, *(dataclasses.replace(row, pool=f"node-{half_day}") for row in rows))
        )
        driver.fold(START_MS)
        state = driver.state
        sizes.append([frame.height for frame in (state.windows, state.mix, state.rolling, state.packing)])
        kept = (state.totals, state.unpriced, state.uncosted, state.booked)
        counters.append([frame["pool"].n_unique() for frame in kept])
    assert sizes[-1] == sizes[-2] == [3, 6, 6, 3]
    # those of eight days
    assert counters[-1] == counters[-2] == [34, 17, 17, 34]
    assert shown(driver, names.REVENUE, pool="node-2") is None
    assert shown(driver, names.REVENUE, pool="node-3") == pytest.approx(1000 * 0.35e-6, rel=0.9)


def test_a_pool_whose_gpus_are_forgotten_has_no_clock() -> None:
    """Its engines go on: what is kept of them is an hour, and no clock that stands still hides what they bring in."""
    driver = driver_of()
    driver.append(ledger(sold(0, 1000), power(0)))
    driver.fold(START_MS)
    kept = []
    for hour in range(1, 28):
        driver.append(ledger(*(sold(window, 1000) for window in range(360 * hour, 360 * (hour + 1), 60))))
        driver.fold(START_MS)
        kept.append(driver.state.rolling.height + driver.state.mix.height)
        assert (shown(driver, names.MONEY_END, pool="p") is not None) == (hour < 24)
    assert kept[-1] == kept[-2] < 30 < max(kept)
    driver.append(ledger(power(360 * 28)))
    driver.fold(START_MS)
    assert shown(driver, names.MONEY_END, pool="p") is not None


def test_counters_of_a_pool_that_returns_while_they_are_kept_go_on() -> None:
    """Its spool of a week ago is booked before what it reads now: the days count from what was booked last."""
    driver = driver_of()
    driver.append(ledger(sold(0, 1000), power(0)))
    driver.fold(START_MS)
    eight_days = 8 * 8640
    driver.append(ledger(dataclasses.replace(power(eight_days), pool="q")))
    driver.fold(START_MS)
    before = shown(driver, names.REVENUE, pool="p")
    driver.append(ledger(sold(1, 1000), power(1)))
    driver.fold(START_MS)
    driver.append(ledger(dataclasses.replace(power(eight_days + 4000), pool="q")))
    driver.fold(START_MS)
    assert before is not None
    assert shown(driver, names.REVENUE, pool="p") == pytest.approx(2 * before)


def test_counts_of_a_broken_engine_are_no_less_than_they_were() -> None:
    """Each is what a counter may tell; their sum is more than 64 bits hold, and is that of all the site's pools."""
    driver = driver_of()
    rows = [
        dataclasses.replace(sold(0, 0, model="x"), output_tokens=2**53 - 1, engine=f"{n}")
        for n in range(1100)
    ]
    driver.append([Message(topics.LEDGER, TOKENS, rows)])
    driver.fold(START_MS)
    counted = 1100 * (2**53 - 1)
    assert shown(driver, names.UNPRICED_TOKENS, model_name="x", kind="output") == pytest.approx(counted)
    assert shown(driver, names.UNATTRIBUTED_TOKENS, kind="output") == pytest.approx(counted)


def test_a_model_without_output_is_not_free() -> None:
    """What embeds or ranks has input alone: without a price, no figure that needs its revenue is shown."""
    driver = driver_of()
    embedding = dataclasses.replace(sold(0, 0, model="x"), input_tokens=1000)
    driver.append(ledger(sold(0, 1000), power(0), embedding))
    driver.fold(START_MS)
    for figure in (names.MARGIN_PER_HOUR, names.REVENUE_PER_GIGAWATT_YEAR, names.PAYBACK_YEARS):
        assert shown(driver, figure) is None


def test_a_counter_stays_when_others_join_it() -> None:
    """To Prometheus a counter that is one bit less counts all over again."""
    amounts = [43_262_000_011, *(10**9 + 977 * n for n in range(200))]
    for amount in amounts:
        alone = pl.DataFrame({"amount": [amount]}).select(in_units(pl.col("amount"), 1_000_000)).item()
        many = pl.DataFrame({"amount": [amount, 1]}).select(in_units(pl.col("amount"), 1_000_000))
        assert alone == many.item(0, 0)


def test_amendments_stay_out_of_rolling_figures_and_in_the_counters() -> None:
    """A late row is money, and no news."""
    driver = driver_of()
    driver.append(ledger(sold(5, 1000), power(5)))
    driver.fold(START_MS)
    margin, revenue = shown(driver, names.MARGIN_PER_HOUR), shown(driver, names.REVENUE)
    driver.append(ledger(sold(2, 500_000), power(2)))
    driver.fold(START_MS)
    assert shown(driver, names.MARGIN_PER_HOUR) == margin
    assert shown(driver, names.REVENUE) == pytest.approx((revenue or 0) * 501)


def test_a_new_currency_mixes_with_no_old_one() -> None:
    """After the book's currency changes, counters go on beside the old ones and rolling figures begin anew."""
    books = [parse_book(text.encode(), "book") for text in (BOOK, 'currency = "EUR"\n' + BOOK)]
    now: list[Book] = books[:1]
    driver = Driver(EconomyStage(lambda: now[0], EconomyConfig()))
    driver.append(ledger(sold(0, 1000), power(0)))
    driver.fold(START_MS)
    dollars = shown(driver, names.REVENUE, currency="USD")
    now[0] = books[1]
    driver.append(ledger(sold(1, 3000), power(1)))
    driver.fold(START_MS)
    assert shown(driver, names.REVENUE, currency="USD") == dollars
    assert shown(driver, names.REVENUE, currency="EUR") == pytest.approx((dollars or 0) * 3)
    assert shown(driver, names.MARGIN_PER_HOUR, currency="USD") is None
    seconds = driver.state.rolling.select(pl.col("window_ms").sum()).item()
    assert seconds == WINDOW_MS


def test_a_new_currency_begins_with_the_list_price() -> None:
    """What tiers owed before says nothing of steps in another one, although the usage of the hour is compared."""
    dear = BOOK.replace("output = 0.35", "output = 35").replace("output = 0.2 ", "output = 0.0 ")
    books = [parse_book(text.encode(), "book") for text in ('currency = "JPY"\n' + dear, BOOK)]
    now = books[0]
    driver: Driver[EconomyState] = Driver(EconomyStage(lambda: now, EconomyConfig()))

    def brought(number: int) -> list[tuple[str, int]]:
        row = dataclasses.replace(used(number, 500_000), input_tokens=0)
        made = dataclasses.replace(sold(6 * number, 500_000), input_tokens=0, cached_input_tokens=0)
        driver.append([*usage(dataclasses.replace(row, ts_ms=made.window_start_ms)), *ledger(made)])
        driver.fold(made.window_start_ms)
        rows = [line for line in written(driver, MONEY) if line["window_start_ms"] == made.window_start_ms]
        return [(line["currency"], line["amount_micro"]) for line in rows]

    assert [brought(number) for number in range(3)] == [
        [("JPY", 17_500_000)],
        [("JPY", 17_500_000)],
        # the half of two minutes' usage that was above the step is given away
        [("JPY", 8_750_000)],
    ]
    now = books[1]
    assert brought(3) == [("USD", 175_000)]
    # 0.2 instead of 0.35
    assert brought(4) == [("USD", 100_000)]


@examples(8)
@given(MESSAGES)
def test_money_is_that_of_the_second_computation(rows: list[TokenRow | PowerRow]) -> None:
    """Without usage every micro-unit is what docs/metering.md, computed in plain Python, gives."""
    text = BOOK.replace("[tariff]", "[tariff]\npue = 1.17").replace("steps =", "# steps =")
    driver = driver_of(text)
    driver.append(ledger(*rows))
    driver.fold(START_MS)
    key = ("site", "pool", "window_start_ms", "model_name", "kind", "state", "part", "demand", "currency")
    booked: Counter[Any] = Counter()
    for row in written(driver, MONEY):
        booked[tuple(row[name] for name in key)] += row["amount_micro"]
    told = [
        ("ledger.tokens" if isinstance(r, TokenRow) else "ledger.power", dataclasses.asdict(r)) for r in rows
    ]
    expected = money(told, parse_book(text.encode(), "book"), EconomyConfig().min_tokens)
    assert {k: amount for k, amount in booked.items() if amount} == expected
