"""The mission's arithmetic: a gigawatt at benchmark prices brings 150 bn USD a year, and what each idle percent costs.

One minute of 600,000 GPUs with 1 GW of available power, folded by the economy as ledger rows of 60 sites, and scaled to a
year of 525,600 such minutes.
"""

import functools

import pytest
from stage_driver import Driver, Message

from idlewatt.processors.economy.book_file import parse_book
from idlewatt.processors.economy.config import EconomyConfig
from idlewatt.processors.economy.stage import EconomyStage
from idlewatt.processors.economy.state import EconomyState
from idlewatt.stream import metric_names as names
from idlewatt.stream import topics
from idlewatt.stream.metric_names import Metric
from idlewatt.stream.records import POWER, TOKENS, PowerRow, TokenRow

START_MS = 1_760_000_040_000
MINUTE_MS = 60_000
MINUTES_A_YEAR = 365 * 24 * 60
SITES = 60
GPUS_PER_SITE = 10_000
# 1 GW / 600,000, in millijoules a minute
AVAILABLE_MJ = 10**9 * 60 * 1000 // SITES
TOKENS_PER_JOULE = 5
# 150 bn USD / (1 GW x 31,536,000 s x 5 tokens/J) per token: 0.951294 USD per million, which six decimals round
BOOK = parse_book(
    b"""
[[price]]
model = "m"
input = 0
output = 0.951294
[tariff]
per_kwh = 0.05
[cost]
use_published = false
""",
    "book",
)


def power(site: int, state: str, percent: int) -> PowerRow:
    """So many percent of a site's GPUs in a state, at their full power while they serve and at 15 % while idle."""
    available = AVAILABLE_MJ * percent // 100
    drawn = available if state == "serving" else available * 15 // 100
    lost = 0 if state == "serving" else TOKENS_PER_JOULE
    return PowerRow(
        site=f"hall-{site}",
        pool="p",
        window_start_ms=START_MS,
        window_ms=MINUTE_MS,
        product="GPU",
        model_name="m",
        state=state,
        demand="none",
        gpu_ms=GPUS_PER_SITE * percent * MINUTE_MS // 100,
        draw_mj=drawn,
        headroom_mj=available - drawn,
        estimated_mj=0,
        lost_tokens_draw=drawn // 1000 * lost,
        lost_tokens_headroom=(available - drawn) // 1000 * lost,
    )


def tokens(site: int, percent: int) -> TokenRow:
    return TokenRow(
        site=f"hall-{site}",
        pool="p",
        window_start_ms=START_MS,
        window_ms=MINUTE_MS,
        node="n",
        engine="e",
        model_name="m",
        advance="step",
        output_tokens=AVAILABLE_MJ * percent // 100 // 1000 * TOKENS_PER_JOULE,
        input_tokens=0,
        cached_input_tokens=0,
        serving_mj=AVAILABLE_MJ * percent // 100,
        measured_ms=MINUTE_MS,
        silent_ms=0,
    )


@functools.cache
def gigawatt(idle_percent: int) -> dict[Metric, list[float]]:
    """The economy's series after a minute in which so many percent of the gigawatt were idle."""
    driver: Driver[EconomyState] = Driver(EconomyStage(lambda: BOOK, EconomyConfig()))
    driver.append(
        [Message(topics.LEDGER, TOKENS, [tokens(site, 100 - idle_percent) for site in range(SITES)])]
    )
    states = [("serving", 100 - idle_percent)] + [("idle_loaded", idle_percent)] * bool(idle_percent)
    driver.append([Message(topics.LEDGER, POWER, [power(s, *at) for s in range(SITES) for at in states])])
    driver.fold(START_MS + MINUTE_MS)
    return {
        family.metric: [sample.value for sample in family.samples]
        for family in driver.stage.families([driver.state])
    }


def of_a_year(metric: Metric, idle_percent: int) -> float:
    return sum(gigawatt(idle_percent)[metric]) * MINUTES_A_YEAR


# the price has six decimals: half of the last is one part in two million
ROUNDING = 1e-6


def test_a_gigawatt_at_benchmark_prices_brings_150_bn_a_year() -> None:
    """Every available watt makes tokens, tokens fetch the benchmark's price, and nothing is lost."""
    assert of_a_year(names.REVENUE, 0) == pytest.approx(150e9, rel=ROUNDING)
    assert sum(gigawatt(0)[names.LOST_REVENUE]) == sum(gigawatt(0)[names.BENCHMARK_LOST_REVENUE]) == 0
    per_gw = gigawatt(0)[names.REVENUE_PER_GIGAWATT_YEAR]
    # of each site, at the boards: without PUE or a published product nobody knows what the utility delivers
    assert per_gw == pytest.approx([150e9] * SITES, rel=ROUNDING)


def test_100_bn_are_paid_back_by_150_bn_a_year_less_the_electricity() -> None:
    """A gigawatt draws 8.76 TWh a year: 0.438 bn at 0.05 per kWh; 100 bn / 149.562 bn is two thirds of a year."""
    assert of_a_year(names.ENERGY_COST, 0) == pytest.approx(0.438e9, rel=ROUNDING)
    assert gigawatt(0)[names.PAYBACK_YEARS] == pytest.approx([100 / 149.562] * SITES, rel=ROUNDING)


@pytest.mark.parametrize("percent", [1, 2, 10, 37, 99])
def test_each_idle_percent_costs_a_hundredth_of_the_150_bn(percent: int) -> None:
    """Lost revenue and the benchmark loss are 1.5 bn a percent, and with the revenue they make up the 150 bn."""
    lost = of_a_year(names.LOST_REVENUE, percent)
    assert lost == pytest.approx(1.5e9 * percent, rel=ROUNDING)
    assert of_a_year(names.BENCHMARK_LOST_REVENUE, percent) == pytest.approx(1.5e9 * percent, rel=ROUNDING)
    assert of_a_year(names.REVENUE, percent) + lost == pytest.approx(150e9, rel=ROUNDING)


def test_a_gigawatt_that_only_idles_loses_all_of_it() -> None:
    """Where nothing is sold the list price of output counts."""
    assert of_a_year(names.LOST_REVENUE, 100) == pytest.approx(150e9, rel=ROUNDING)
    assert of_a_year(names.REVENUE, 100) == 0
