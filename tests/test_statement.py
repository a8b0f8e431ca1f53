"""Chargeback statements: what they say adds up, and nothing on them is taken for HTML."""

import html.parser
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from examples import examples
from hypothesis import given
from idlewatt_command import idlewatt
from report_ledgers import (
    BOOK,
    CONFIG,
    EVENT_LISTS,
    GIVING_BOOK,
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

from idlewatt.cli.report_formats import shown
from idlewatt.processors.reports.cells import cells
from idlewatt.processors.reports.figures import CENTS, figures
from idlewatt.processors.reports.report import grouped
from idlewatt.processors.reports.statement import statement
from idlewatt.stream.errors import ConfigError
from idlewatt.stream.opening import prepare
from idlewatt.stream.settings import Settings

EVIL = "<script>alert('&')</script>"
BOOK_FILE = """
currency = "EUR"
time_zone = "Europe/Berlin"
[[price]]
model = "*"
input = 0
output = 0.333333
[tariff]
per_kwh = 0.12
[[capital]]
product = "*"
per_gpu_hour = 1.80
"""
NOVEMBER_MS = 1_604_185_200_000  # 2020-11-01T00:00+01:00


class Page(html.parser.HTMLParser):
    """The tables of a page, and the tags in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self._cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        match tag:
            case "table":
                self.tables.append([])
            case "tr":
                self.tables[-1].append([])
            case "td" | "th":
                self._cell = True
                self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._cell = self._cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._cell:
            self.tables[-1][-1][-1] += data


def number(cell: str) -> Decimal:
    return Decimal(cell.replace(",", ""))


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """A log with a month's usage of three teams, and a book."""
    path = tmp_path / "log.db"
    settings = Settings.model_validate({"log": {"path": str(path)}})
    prepare(settings)
    times = [NOVEMBER_MS + n * MINUTE_MS for n in range(-1, 4)]
    booked = Booked(
        [power(window_start_ms=ms) for ms in times],
        [tokens(window_start_ms=ms, model_name=model) for ms in times for model in ("llama", EVIL)],
        [
            {
                "ts_ms": ms,
                "team": team,
                "engineer": f"{team}-{n}",
                "model_name": model,
                "output_tokens": 7_001 + n,
            }
            for n, ms in enumerate(times)
            for team in (EVIL, "growth", "sales")
            for model in ("llama", EVIL)
        ],
    )
    write_ledger(settings, booked)
    (tmp_path / "book.toml").write_text(BOOK_FILE)
    return {"IDLEWATT_LOG__PATH": str(path), "IDLEWATT_ECONOMY__BOOK": str(tmp_path / "book.toml")}


def test_a_statement_adds_up_and_escapes_names(env: dict[str, str], tmp_path: Path) -> None:
    """Rows add up to their total to the cent in every table, and names from others are text."""
    out = tmp_path / "statement.html"
    result = idlewatt("report", "--statement", EVIL, "--month", "2020-11", "--out", str(out), env=env)
    assert (result.returncode, result.stderr) == (0, "")
    text = out.read_text(encoding="utf-8")
    page = Page(text)
    assert EVIL not in text
    known = "html head meta title style body h1 h2 p table thead tbody tfoot tr th td"
    assert {tag for tag, _ in page.tags} <= set(known.split())
    # it loads nothing from anywhere
    assert not any({"src", "href", "style"} & attributes.keys() for _, attributes in page.tags)
    assert "@media print" in text
    owed, by_engineer, taken = page.tables
    assert [row[1] for row in owed[1:-1]] == [EVIL, "llama"]
    assert [row[0] for row in by_engineer[1:-1]] == [f"{EVIL}-{n}" for n in range(1, 5)]
    for table, names in ((owed, 3), (by_engineer, 1), (taken, 3)):
        for column in range(names, len(table[0])):
            cells_ = [row[column] for row in table[1:-1]]
            if "-" not in cells_:
                assert sum(map(number, cells_)) == number(table[-1][column]), table[0][column]
    # four minutes of November; the one before is October's
    spent = sum(7_001 + n for n in range(1, 5))
    assert [number(row[3]) for row in owed[1:]] == [spent, spent, 2 * spent]
    assert number(owed[-1][-1]) == number(by_engineer[-1][-1]) == Decimal("0.02")


def test_each_line_of_what_it_took_is_of_a_site(env: dict[str, str]) -> None:
    """A model that a team used at two sites has two lines in each table, and one can tell them apart."""
    settings = Settings.model_validate({"log": {"path": env["IDLEWATT_LOG__PATH"]}})
    used = [{"ts_ms": NOVEMBER_MS, "site": "annex", "team": "growth", "output_tokens": 7_001}]
    write_ledger(settings, Booked([], [], used))
    text = idlewatt("report", "--statement", "growth", "--month", "2020-11", env=env).stdout
    owed, _, taken = Page(text).tables
    assert [row[:3] for row in taken] == [row[:3] for row in owed]
    assert [row[:2] for row in taken[1:-1]] == [["annex", "llama"], ["hall", EVIL], ["hall", "llama"]]
    # nothing of the annex but usage is in the ledger
    assert [set(row[3:]) == {"-"} for row in taken[1:-1]] == [True, False, False]
    assert "that of annex has nothing of this interval but usage up to 2020-11-01T00:01+01:00" in text


def test_what_has_no_price_is_not_known_to_be_nothing(env: dict[str, str]) -> None:
    """In every table what is owed for it is withheld; where a part has a price, that part is owed, as in reports."""
    book = Path(env["IDLEWATT_ECONOMY__BOOK"])
    settings = Settings.model_validate({"log": {"path": env["IDLEWATT_LOG__PATH"]}})
    used = {"ts_ms": NOVEMBER_MS, "team": "growth", "engineer": "growth-2", "output_tokens": 30_000}
    write_ledger(settings, Booked([], [], [used | {"model_name": "other"}]))

    def owed(model: str) -> list[list[str]]:
        book.write_text(BOOK_FILE.replace('"*"', f'"{model}"', 1))
        text = idlewatt("report", "--statement", "growth", "--month", "2020-11", env=env).stdout
        return [[row[-1] for row in table[1:]] for table in Page(text).tables[:2]]

    assert owed("unsold") == [["-"] * 4, ["-"] * 5]
    assert owed("other") == [["-", "-", "0.01", "0.01"], ["-", "0.01", "-", "-", "0.01"]]


@pytest.mark.parametrize(
    ("sold", "given_away", "due"),
    [
        # model and its tokens on a tier that is sold, tokens of it that are given away
        ([("new", 5_000_000)], 1, "-"),
        ([("new", 5_000_000)], 3_000_000, "-"),
        ([("new", 5_000_000)], 0, "-"),
        ([("nothing", 5_000_000)], 1, "0.00"),
        # a price of nothing is a price: of a part it is known what is due
        ([("new", 5_000_000), ("nothing", 1)], 1, "0.00"),
        ([("new", 5_000_000), ("cheap", 500_000)], 1, "0.50"),
        ([], 7, "0.00"),
    ],
)
def test_what_is_given_away_says_nothing_of_what_is_due_for_the_rest(
    sold: list[tuple[str, int]], given_away: int, due: str
) -> None:
    """Where all that is sold has no price nobody knows what is due, in statements as in reports; not so of a price of 0."""
    used = [(model, "standard", count) for model, count in sold]
    used += [(model, "free", given_away) for model in [model for model, _ in sold] or ["new"] if given_away]
    made = [
        tokens(model_name=model, output_tokens=count, input_tokens=0, cached_input_tokens=0)
        for model, _, count in used
    ]
    events = [
        {"team": "t", "engineer": "kim", "model_name": model, "tier": tier, "output_tokens": count}
        for model, tier, count in used
    ]
    found = cells(Booked([power()], made, events, book=GIVING_BOOK).ledger, GIVING_BOOK, CONFIG, WHOLE)
    told = statement(found, GIVING_BOOK, "t", 0.9)
    owed = [told.lines.total["revenue"], *(share.owed for share in told.shares["engineer"])]
    totals = [
        figures(grouped(found, by), GIVING_BOOK, CENTS, 0.9).total["revenue"]
        for by in ((), ("team",), ("pool",))
    ]
    assert {shown(amount) for amount in (*owed, *totals)} == {due}


@given(powers=POWER_LISTS, token_rows=TOKEN_LISTS, events=EVENT_LISTS)
@examples(8)
def test_statements_add_up_to_what_all_owe(powers: Any, token_rows: Any, events: Any) -> None:
    """The statements of all consumers, before rounding, are what was booked; each share list adds up to its page."""
    booked = Booked(powers, token_rows, events)
    found = cells(booked.ledger, BOOK, CONFIG, WHOLE)
    owed = Decimal(0)
    for team in ("a", "b", "<i>c"):
        try:
            page = statement(found, BOOK, team, 0.9)
        except ConfigError:
            continue
        total = page.lines.total["revenue"]
        owed += Decimal(str(total or 0))
        for shares in page.shares.values():
            assert sum(share.owed or 0 for share in shares) == Decimal(str(total or 0))
    named = (
        booked.spent.filter(team="a")
        .vstack(booked.spent.filter(team="b"))
        .vstack(booked.spent.filter(team="<i>c"))
    )
    assert abs(owed - Decimal(int(named.get_column("spend_micro").sum())).scaleb(-6)) <= Decimal("0.015")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--statement", "grwth", "--month", "2020-11"), "there are growth"),
        (("--statement", "growth"), "--statement needs --month"),
        (("--statement", "growth", "--month", "2020-13"), "write it as 2026-11"),
        (("--statement", "growth", "--month", "2020-11", "--by", "pool"), "leave --by out"),
        (("--month", "2020-11"), "--month is for --statement"),
        (("--by", "pool"), "--from is missing"),
    ],
)
def test_wrong_arguments_exit_2(env: dict[str, str], arguments: tuple[str, ...], said: str) -> None:
    """One line says what would be right."""
    result = idlewatt("report", *arguments, env=env)
    assert result.returncode == 2
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_nobody_has_a_statement_in_a_month_before(env: dict[str, str]) -> None:
    """An empty month is told, not printed as a bill over nothing."""
    result = idlewatt("report", "--statement", "growth", "--month", "2020-09", env=env)
    assert result.returncode == 2
    assert "no team 'growth' spent anything in this month" in result.stderr
    assert START_MS > NOVEMBER_MS
