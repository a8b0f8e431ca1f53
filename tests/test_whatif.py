"""What an interval would have been at another yield, price, PUE or tariff; and what its highest power costs."""

import json
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from examples import examples
from hypothesis import given
from idlewatt_command import idlewatt
from polars.testing import assert_frame_equal
from report_ledgers import (
    BOOK,
    CONFIG,
    EVENT_LISTS,
    HOUR_MS,
    MINUTE_MS,
    POWER_LISTS,
    START_MS,
    TOKEN_LISTS,
    WHOLE,
    Booked,
    power,
    tokens,
    write_ledger,
)

from idlewatt.processors.economy.book_file import parse_book
from idlewatt.processors.reports.cells import cells
from idlewatt.processors.reports.demand import peaks
from idlewatt.processors.reports.ledger import Interval
from idlewatt.processors.reports.whatif import Changes, changed_book, changed_ledger
from idlewatt.stream.opening import prepare
from idlewatt.stream.settings import Settings

BOOK_FILE = """
time_zone = "Europe/Berlin"
[[price]]
model = "*"
input = 0
output = 0.50
steps = [{ above_mtok = 1000, output = 0.25 }]
[tariff]
per_kwh = 0.12
pue = 1.25
[[capital]]
product = "*"
per_gpu_hour = 1.80
"""


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """A minute of 36 kWh that serve and 7.2 kWh that idle, a million output tokens, and a book."""
    path = tmp_path / "log.db"
    settings = Settings.model_validate({"log": {"path": str(path)}})
    prepare(settings)
    booked = Booked(
        [
            power(draw_mj=36 * 3_600_000_000, headroom_mj=0),
            power(
                draw_mj=7 * 3_600_000_000,
                headroom_mj=3_600_000_000,
                state="idle_loaded",
                lost_tokens_draw=100_000,
                lost_tokens_headroom=100_000,
            ),
        ],
        [tokens(output_tokens=1_000_000, input_tokens=0)],
        [],
    )
    write_ledger(settings, booked)
    (tmp_path / "book.toml").write_text(BOOK_FILE)
    return {"IDLEWATT_LOG__PATH": str(path), "IDLEWATT_ECONOMY__BOOK": str(tmp_path / "book.toml")}


def whatif(env: dict[str, str], *changes: str) -> tuple[dict[str, Decimal], dict[str, Decimal], list[str]]:
    """Both columns of the figures, and what is assumed."""
    result = idlewatt(
        "whatif", "--from", "2020-11-01", "--to", "2020-11-02", *changes, "--format", "json", env=env
    )
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout)
    was, would_be = ({k: Decimal(v) for k, v in told[name].items()} for name in ("as_it_was", "what_if"))
    return was, would_be, told["assumed"]


def test_more_tokens_per_joule_are_more_tokens_from_the_same_watts(env: dict[str, str]) -> None:
    """Costs stay, revenue and what idle watts lost grow alike; the assumption is told."""
    was, would_be, assumed = whatif(env, "--tokens-per-joule", "+10%")
    assert (was["revenue"], would_be["revenue"]) == (Decimal("0.5"), Decimal("0.55"))
    assert (was["lost_revenue"], would_be["lost_revenue"]) == (Decimal("0.1"), Decimal("0.11"))
    assert would_be["tokens_per_joule"] / was["tokens_per_joule"] == pytest.approx(
        Decimal("1.1"), rel=Decimal("1e-4")
    )
    for name in ("drawn_kwh", "energy_cost", "capital_cost", "cost_allocation"):
        assert was[name] == would_be[name] > 0
    assert "same watts" in assumed[0]


def test_prices_pue_and_tariff(env: dict[str, str]) -> None:
    """Each changes what it is of, and all together are the product."""
    was, would_be, _ = whatif(env, "--price", "-20%")
    assert (would_be["revenue"], would_be["lost_revenue"]) == (Decimal("0.4"), Decimal("0.08"))
    assert would_be["cost_allocation"] == was["cost_allocation"]
    energy = Decimal(43) * Decimal("1.25") * Decimal("0.12")
    assert was["energy_cost"] == energy
    assert whatif(env, "--pue", "1.15")[1]["energy_cost"] == energy / Decimal("1.25") * Decimal("1.15")
    assert whatif(env, "--tariff", "0.06")[1]["energy_cost"] == energy / 2
    assert whatif(env, "--tariff", "-25%")[1]["energy_cost"] == energy * Decimal("0.75")
    both = whatif(env, "--pue=1", "--tariff=+100%", "--price=+1.5%")[1]
    assert both["energy_cost"] == Decimal(43) * Decimal("0.24")
    assert both["revenue"] == Decimal("0.5075")


def test_the_table_shows_both_and_the_difference(env: dict[str, str]) -> None:
    """People see what changed and by how much."""
    result = idlewatt("whatif", "--from", "2020-11-01", "--to", "2020-11-02", "--price", "-20%", env=env)
    line = next(line for line in result.stdout.splitlines() if line.startswith("revenue"))
    assert line.split() == ["revenue", "0.50", "0.40", "-0.10", "-20.0"]
    assert "assumed: every price" in result.stdout


def test_percents_are_of_exact_figures(env: dict[str, str]) -> None:
    """Cents are for reading: a percent or a difference of what was rounded would be another change than was asked for."""
    settings = Settings.model_validate({"log": {"path": env["IDLEWATT_LOG__PATH"]}})
    small = power(window_start_ms=START_MS + HOUR_MS, draw_mj=360_000_000)
    # 0.03 of tokens, and 0.1 kWh x 1.25 x 0.12 of energy
    write_ledger(
        settings, Booked([small], [tokens(window_start_ms=START_MS + HOUR_MS, output_tokens=60_000)], [])
    )
    hour = ("--from", "2020-11-01T03:00", "--to", "2020-11-01T04:00")
    for change, name, line in (
        (("--price", "-25%"), "revenue", ["0.03", "0.02", "-0.01", "-25.0"]),
        (("--pue", "1.4375"), "energy_cost", ["0.02", "0.02", "+0.00", "+15.0"]),
        (("--tariff", "0.12"), "energy_cost", ["0.02", "0.02", "0.00", "+0.0"]),
    ):
        table = idlewatt("whatif", *hour, *change, env=env).stdout.splitlines()
        assert next(row for row in table if row.startswith(name)).split()[1:] == line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "nothing is changed"),
        (("--price", "20"), "write it such as +10% or -20%"),
        (("--price", "-120%"), "is no change"),
        (("--price", "80%"), "write it such as +10% or -20%"),
        (("--price", "+10.0000001%"), "write it such as +10% or -20%"),
        (("--pue", "0.9"), "is no PUE"),
        (("--tariff", "nan"), "is no plain number"),
    ],
)
def test_wrong_changes_exit_2(env: dict[str, str], arguments: tuple[str, ...], said: str) -> None:
    """Each is told with how it is written."""
    result = idlewatt("whatif", "--from", "2020-11-01", "--to", "2020-11-02", *arguments, env=env)
    assert result.returncode == 2
    assert said in result.stderr
    assert "Traceback" not in result.stderr


@given(powers=POWER_LISTS, token_rows=TOKEN_LISTS, events=EVENT_LISTS)
@examples(8)
def test_a_change_and_its_reverse_change_nothing(powers: Any, token_rows: Any, events: Any) -> None:
    """Doubling and halving again gives the ledger and the book that were there."""
    ledger = Booked(powers, token_rows, events).ledger
    up = Changes(tokens_per_joule=Fraction(2), price=Fraction(2), tariff=Fraction(2))
    down = Changes(tokens_per_joule=Fraction(1, 2), price=Fraction(1, 2), tariff=Fraction(1, 2))
    book = changed_book(changed_book(BOOK, up), down)
    assert book == BOOK
    again = changed_ledger(changed_ledger(ledger, up, WHOLE), down, WHOLE)
    assert_frame_equal(cells(again, book, CONFIG, WHOLE).cells, cells(ledger, BOOK, CONFIG, WHOLE).cells)


def test_a_percent_of_small_rows_is_a_percent() -> None:
    """Of rows of 30 tokens one in three or four has one token more; and nothing before the interval changes."""
    rows = [tokens(window_start_ms=START_MS + n * 10_000, output_tokens=30) for n in range(1000)]
    ledger = Booked([], rows, []).ledger
    changed = changed_ledger(ledger, Changes(tokens_per_joule=Fraction(101, 100)), WHOLE).tokens
    assert changed["output_tokens"].sum() == 30_300
    later = Interval(START_MS + 2 * HOUR_MS, START_MS + 3 * HOUR_MS)
    changed = changed_ledger(ledger, Changes(tokens_per_joule=Fraction(2)), later).tokens
    before = pl.col("window_start_ms") < START_MS + HOUR_MS
    assert changed.filter(before).equals(ledger.tokens.filter(before))
    assert changed.filter(~before)["output_tokens"].unique().to_list() == [60]


def test_the_demand_charge_is_of_the_highest_quarter_of_an_hour() -> None:
    """Per site and calendar month of the book's time zone, with PUE; the mean of a quarter, not of a window."""
    book = parse_book(
        b"time_zone = 'America/New_York'\n[tariff]\nper_kwh = 0.1\npue = 1.25\ndemand_charge_per_kw_month = 10\n",
        "book",
    )
    # 900 kJ in the last quarter of October, 3600 kJ spread over a quarter of November
    drawn = {179: 900_000_000, **dict.fromkeys(range(240, 245), 720_000_000), 300: 1_000_000_000}
    minutes = [
        power(window_start_ms=START_MS + n * MINUTE_MS, window_ms=MINUTE_MS, draw_mj=drawn.get(n, 0))
        for n in range(360)
    ]
    ledger = Booked(minutes, [], []).ledger
    interval = type(WHOLE)(START_MS, START_MS + 6 * HOUR_MS)
    october, november = peaks(ledger.power, book, interval, 0.9)
    assert (october.month, october.kw, october.charge) == ("2020-10", Decimal("1.25"), Decimal("12.5"))
    assert (november.month, november.kw, november.charge) == ("2020-11", 5, 50)
    assert november.start_ms == START_MS + 4 * HOUR_MS
    assert peaks(ledger.power, BOOK, interval, 0.9) == []


@pytest.mark.parametrize(
    ("begins", "ends", "kw"),
    [(0, 120, 100), (7, 10, None), (7, 22, None), (10, 20, None), (7, 30, 100), (53, 130, 100)],
)
def test_a_part_of_a_quarter_of_an_hour_is_no_demand(begins: int, ends: int, kw: int | None) -> None:
    """100 kW for two hours are 100 kW in each whole quarter of an hour, and unknown where interval or ledger has none."""
    book = parse_book(b"[tariff]\nper_kwh = 0.1\ndemand_charge_per_kw_month = 10\n", "book")
    minutes = [
        power(window_start_ms=START_MS + n * MINUTE_MS, window_ms=MINUTE_MS, draw_mj=6_000_000_000)
        for n in range(120)
    ]
    interval = Interval(START_MS + begins * MINUTE_MS, START_MS + ends * MINUTE_MS)
    ledger = Booked(minutes, [], []).ledger
    assert [peak.kw for peak in peaks(ledger.power, book, interval, 0.9)] == [kw]
    # of a site whose ledger begins and ends within one quarter, no interval has a whole one
    short = ledger.power.filter(pl.col("window_start_ms") < START_MS + 14 * MINUTE_MS)
    assert [(peak.month, peak.kw, peak.charge, peak.start_ms) for peak in peaks(short, book, WHOLE, 0.9)] == [
        ("2020-11", None, None, None)
    ]


@pytest.mark.parametrize(
    ("dark_gpus", "from_minute", "kw", "unseen_quarters"),
    [(0, 0, 100, 0), (10, 0, 90, 0), (60, 0, None, 8), (60, 65, 100, 4), (100, 0, None, 8)],
)
def test_a_quarter_of_an_hour_that_was_hardly_seen_is_no_demand(
    dark_gpus: int, from_minute: int, kw: int | None, unseen_quarters: int
) -> None:
    """100 GPUs draw 1 kW each for two hours. Of a quarter in which too many are dark nobody knows what they drew."""
    book = parse_book(b"[tariff]\nper_kwh = 0.1\ndemand_charge_per_kw_month = 10\n", "book")
    rows = []
    for n in range(120):
        dark = dark_gpus if n >= from_minute else 0
        minute = {"window_start_ms": START_MS + n * MINUTE_MS, "window_ms": MINUTE_MS}
        seen = {"gpu_ms": (100 - dark) * MINUTE_MS, "draw_mj": (100 - dark) * 60_000_000}
        rows.append(power(**minute, **seen))
        rows.append(power(**minute, state="dark", model_name="", gpu_ms=dark * MINUTE_MS, draw_mj=0))
    ledger = Booked(rows, [], []).ledger
    (peak,) = peaks(ledger.power, book, Interval(START_MS, START_MS + 2 * HOUR_MS), 0.9)
    assert (peak.kw, peak.charge) == ((None, None) if kw is None else (kw, 10 * kw))
    assert peak.unseen_quarters == unseen_quarters


@pytest.mark.parametrize(
    ("told_minutes", "kw", "unseen_quarters"),
    [([*range(5), *range(115, 120)], None, 8), ([*range(30), *range(70, 120)], 100, 3)],
)
def test_a_quarter_of_an_hour_that_the_ledger_lacks_is_no_demand(
    told_minutes: list[int], kw: int | None, unseen_quarters: int
) -> None:
    """Of 100 kW nobody knows while nothing is booked, and of what is left of a quarter of an hour it is less."""
    book = parse_book(b"[tariff]\nper_kwh = 0.1\ndemand_charge_per_kw_month = 10\n", "book")
    rows = [
        power(window_start_ms=START_MS + n * MINUTE_MS, window_ms=MINUTE_MS, draw_mj=6_000_000_000)
        for n in told_minutes
    ]
    (peak,) = peaks(Booked(rows, [], []).ledger.power, book, Interval(START_MS, START_MS + 2 * HOUR_MS), 0.9)
    assert (peak.kw, peak.unseen_quarters) == (kw, unseen_quarters)


def test_a_demand_charge_that_is_unknown_is_told(env: dict[str, str]) -> None:
    """The ledger has one minute: neither 0 nor a fifteenth of it stands below the table."""
    book = Path(env["IDLEWATT_ECONOMY__BOOK"])
    book.write_text(BOOK_FILE.replace("pue = 1.25", "demand_charge_per_kw_month = 10"))
    day = ("report", "--from", "2020-11-01", "--to", "2020-11-02")
    table = idlewatt(*day, env=env).stdout
    assert (
        "demand charge of hall, 2020-11: -; the ledger has no whole quarter of an hour of it in this interval"
        in table
    )
    (charge,) = json.loads(idlewatt(*day, "--format", "json", env=env).stdout)["demand_charges"]
    assert (charge["site"], charge["month"]) == ("hall", "2020-11")
    assert {charge[name] for name in ("kw", "charge", "from")} == {None}


@pytest.mark.parametrize(
    ("dark_minutes", "told"),
    [
        (
            15,
            "1,000.00 for 100.000 kW in the quarter of an hour from 2020-11-01T02:15+01:00; it is in no cost above",
        ),
        (30, "-"),
    ],
)
def test_a_demand_charge_tells_what_was_not_seen(env: dict[str, str], dark_minutes: int, told: str) -> None:
    """How many quarters of an hour are left out stands with the charge of the others, or alone."""
    book = Path(env["IDLEWATT_ECONOMY__BOOK"])
    book.write_text(BOOK_FILE.replace("pue = 1.25", "demand_charge_per_kw_month = 10"))
    minutes = [{"window_start_ms": START_MS + n * MINUTE_MS, "window_ms": MINUTE_MS} for n in range(30)]
    dark = [power(**minute, state="dark", model_name="", draw_mj=0) for minute in minutes[:dark_minutes]]
    seen = [power(**minute, draw_mj=6_000_000_000) for minute in minutes[dark_minutes:]]
    settings = Settings.model_validate({"log": {"path": env["IDLEWATT_LOG__PATH"]}})
    write_ledger(settings, Booked([*dark, *seen], [], []))
    day = ("report", "--from", "2020-11-01", "--to", "2020-11-02")
    unseen = dark_minutes // 15
    left_out = f"; quarters left out for GPU time without telemetry: {unseen}"
    assert f"demand charge of hall, 2020-11: {told}{left_out}\n" in idlewatt(*day, env=env).stdout
    (charge,) = json.loads(idlewatt(*day, "--format", "json", env=env).stdout)["demand_charges"]
    assert charge["unseen_quarters"] == unseen
