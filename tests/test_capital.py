"""What GPU-hours and energy cost: by hand, and never by a figure that somebody else published unless it says so."""

from dataclasses import replace

import polars as pl
import pytest

from idlewatt.processors.economy.book import Book
from idlewatt.processors.economy.book_file import parse_book
from idlewatt.processors.economy.capital import capital_frame
from idlewatt.processors.economy.costs import cost_rows, costed
from idlewatt.stream.decoding import decode
from idlewatt.stream.encoding import encode_rows
from idlewatt.stream.records import POWER, PowerRow

H100 = "NVIDIA H100 80GB HBM3"
START_MS = 1_760_000_040_000


def book_of(text: str) -> Book:
    return parse_book(text.encode(), "book") if text else Book()


def power(
    state: str = "serving", product: str = H100, gpu_ms: int = 80_000, draw_mj: int = 36_000_000
) -> PowerRow:
    return PowerRow(
        site="s",
        pool="p",
        window_start_ms=START_MS,
        window_ms=10_000,
        product=product,
        model_name="m",
        state=state,
        demand="none",
        gpu_ms=gpu_ms,
        draw_mj=draw_mj,
        headroom_mj=4_000_000,
        estimated_mj=0,
        lost_tokens_draw=None,
        lost_tokens_headroom=None,
    )


def test_what_is_constant_for_a_day_costs_what_it_costs() -> None:
    """A GPU that draws 13 W makes 3.61 micro-dollars a window; 4 in each would be a tenth too much."""
    book = book_of('currency = "USD"\n[tariff]\nper_kwh = 0.1\npue = 1\ncarbon_g_per_kwh = 400\n')
    starts = range(START_MS, START_MS + 86_400_000, 10_000)
    for watts in (1, 13, 16, 70, 560):
        day = [replace(power(gpu_ms=10_000, draw_mj=watts * 10_000), window_start_ms=ms) for ms in starts]
        costs = costed(rows_of(*day), book)
        assert abs(costs["energy_micro"].sum() - watts * 24 * 100) < 10
        assert abs(costs["carbon_ug"].sum() - watts * 24 * 400_000) < 10
        # what is taken back leaves nothing
        back = [replace(row, draw_mj=-row.draw_mj, gpu_ms=-row.gpu_ms) for row in day]
        assert costed(rows_of(*back), book)["energy_micro"].sum() == -costs["energy_micro"].sum()


def rows_of(*rows: PowerRow) -> pl.DataFrame:
    return decode(encode_rows(POWER, rows))[1]


def test_a_price_life_and_interest_become_an_hour() -> None:
    """30,000 over 5 years at 8 % is an annuity of 7,513.69 a year, 0.857728 an hour; without interest 0.684932."""
    text = '[[capital]]\nproduct = "*H100*"\nprice = 30000\nlife_years = 5\ninterest = 0.08\n'
    assert capital_frame(book_of(text), [H100]).row(0)[1:4] == (857_728, "book", 30_000 * 1_000_000)
    plain = capital_frame(book_of(text.replace("0.08", "0")), [H100])
    assert plain.item(0, "per_gpu_hour") == 684_932


@pytest.mark.parametrize("price", ["1999.99", "0.9"])
def test_what_a_gpu_was_bought_for_keeps_its_cents(price: str) -> None:
    """Payback is by the price in the book, not by its whole units."""
    book = book_of(f'[[capital]]\nproduct = "*"\nprice = {price}\nlife_years = 3\n')
    assert costed(rows_of(power(gpu_ms=10_000)), book)["invested"].to_list() == [float(price) * 10_000]


def test_published_figures_serve_only_where_the_book_says_nothing() -> None:
    """The operator's price wins; a published one is labelled; it can be switched off and does not change currency."""
    own = '[[capital]]\nproduct = "NVIDIA H1*"\nper_gpu_hour = 3.5\n'
    products = [H100, "NVIDIA B200", "NVIDIA GH200 480GB"]

    def origins(text: str) -> dict[str, tuple[int | None, str | None]]:
        frame = capital_frame(book_of(text), products)
        return {row[0]: (row[1], row[2]) for row in frame.iter_rows()}

    assert origins(own) == {
        H100: (3_500_000, "book"),
        "NVIDIA B200": (2_340_000, "published"),
        "NVIDIA GH200 480GB": (None, None),
    }
    assert origins("")[H100] == (1_690_000, "published")
    assert origins(own + "[cost]\nuse_published = false")["NVIDIA B200"] == (None, None)
    # dollars are not euros
    assert origins('currency = "EUR"')["NVIDIA B200"] == (None, None)


def test_costs_are_those_of_a_calculation_by_hand() -> None:
    """36 kJ are 0.01 kWh; times PUE 1.25 and 0.12 a kWh that is 0.0015; 80 GPU-seconds at 1.80 an hour are 0.04."""
    book = book_of(
        '[tariff]\nper_kwh = 0.12\npue = 1.25\ncarbon_g_per_kwh = 400\n[[capital]]\nproduct = "*"\nper_gpu_hour = 1.8\n'
    )
    rows = costed(rows_of(power(), power("idle_loaded", draw_mj=3_600_000)), book)
    assert rows.get_column("energy_micro").to_list() == [1_500, 150]
    assert rows.get_column("capital_micro").to_list() == [40_000, 40_000]
    assert rows.get_column("carbon_ug").to_list() == [5_000_000, 500_000]
    assert rows.get_column("facility_mj").to_list() == [50_000_000, 9_500_000]
    money = cost_rows(rows, book).select("kind", "state", "amount_micro", "currency", "origin", "tier").rows()
    assert money == [
        ("energy_cost", "serving", 1_500, "USD", None, None),
        ("energy_cost", "idle_loaded", 150, "USD", None, None),
        ("capital_cost", "serving", 40_000, "USD", "book", None),
        ("capital_cost", "idle_loaded", 40_000, "USD", "book", None),
    ]


def test_what_nobody_prices_has_no_cost() -> None:
    """Without tariff and without an entry the amounts are null and no money is booked: not 0."""
    book = book_of("[cost]\nuse_published = false")
    rows = costed(rows_of(power()), book)
    assert rows.select("energy_micro", "capital_micro", "carbon_ug", "facility_mj").row(0) == (None,) * 4
    assert cost_rows(rows, book).is_empty()


@pytest.mark.parametrize("parts", [1, 3, 7])
def test_dark_time_that_is_taken_back_takes_its_cost_back(parts: int) -> None:
    """A row of negative time has the negative of the cost, to the micro-unit where the parts are whole."""
    book = book_of('[[capital]]\nproduct = "*"\nper_gpu_hour = 3.6\n')
    dark = [power("dark", gpu_ms=10_000, draw_mj=0)] * parts
    back = [power("dark", gpu_ms=-10_000, draw_mj=0)] * parts
    assert costed(rows_of(*dark, *back), book).get_column("capital_micro").sum() == 0
