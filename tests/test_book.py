"""The book: exact amounts, faults that say how to mend them, and a reload that never takes a bad one."""

import os
from pathlib import Path

import polars as pl
import pytest

from idlewatt.cli.book_sample import SAMPLE_BOOK
from idlewatt.processors.economy import book_file
from idlewatt.processors.economy.book import Book
from idlewatt.processors.economy.book_file import BookFile, parse_book
from idlewatt.processors.economy.currencies import CURRENCIES
from idlewatt.stream.errors import ConfigError

GOOD = """
currency = "EUR"
time_zone = "Europe/Berlin"
default_tier = "standard"

[[tier]]
name = "standard"
[[tier]]
name = "free"
sold = false

[[price]]
model = "llama*"
input = 0.07
output = 0.6
effective_from = 2026-01-01
steps = [{above_mtok = 100, output = 0.5}, {above_mtok = 1000.5, output = 0.4}]

[tariff]
pue = 1.2
[[tariff.period]]
begins = "07:00"
ends = "21:30"
per_kwh = 0.14
[[tariff.period]]
begins = "21:30"
ends = "07:00"
per_kwh = 0.0861

[[capital]]
product = "*H100*"
price = 30_000
life_years = 5
interest = 0.08

[[envelope]]
name = "all"
kind = "team"
match = "*"
limit = 1e9
unit = "tokens"
period = "month"

[[envelope]]
name = "engineers"
kind = "engineer"
match = "*"
each = true
limit = 100.5
unit = "EUR"
period = "day"
within = "all"
"""


def changed(*changes: tuple[str, str]) -> str:
    text = GOOD
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    return text


def test_amounts_are_exact_integers() -> None:
    """A decimal of the file becomes micro-units without passing through a float."""
    book = parse_book(GOOD.encode(), "book")
    assert (book.price[0].input, book.price[0].output) == (70_000, 600_000)
    assert [step.above_tokens for step in book.price[0].steps] == [100_000_000, 1_000_500_000]
    assert book.tariff.period[1].per_kwh == 86_100
    assert book.tariff.pue == 1_200_000
    assert [envelope.limit_amount for envelope in book.envelope] == [1_000_000_000, 100_500_000]
    assert book.tiers == ("standard", "free")
    assert (book.is_sold("standard"), book.is_sold("free")) == (True, False)


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ('"EUR"', '"EUX"', "currency must be a code of ISO 4217, such as USD; it is EUX"),
        ("Berlin", "Berln", "time_zone Europe/Berln is not known: did you mean Europe/Berlin?"),
        ("0.6\n", "-0.6\n", "[[price]] number 1 output must be 0 to 1000000000; it is -0.6"),
        ("0.6\n", "0.0000001\n", "[[price]] number 1 output can have at most six decimals; it is 1E-7"),
        ("0.6\n", "nan\n", "[[price]] number 1 output must be 0 to 1000000000; it is NaN"),
        ("0.6\n", '"0.6"\n', "[[price]] number 1 output must be a plain number, without quotes or unit"),
        (
            "output = 0.5}",
            "output = -1}",
            "[[price]] number 1 [[price.steps]] number 1 output must be 0 to 1000000000; it is -1",
        ),
        (
            "1000.5",
            "99",
            "[[price]] number 1 steps overlap: above_mtok 99 stands after 100; write them in rising order",
        ),
        ("input = 0.07\n", "", "[[price]] number 1 needs input (price per million input tokens computed)"),
        ("output = 0.6", "outptu = 0.6", "[[price]] number 1 has no key outptu; did you mean output?"),
        ("[[envelope]]", "[[envelop]]", "the book has no key envelop; did you mean envelope?"),
        ("2026-01-01", '"2026-01-01"', "effective_from must be a date, or a date and time, without quotes"),
        ("2026-01-01", "2026-01-01T00:00:30", "effective_from must be a whole minute"),
        (
            '"llama*"\n',
            '"llama*"\ntier = "fre"\n',
            "[[price]] number 1 has the unknown tier fre: did you mean free?",
        ),
        (
            "[tariff]\n",
            '[[price]]\nmodel="llama*"\ninput=1\noutput=1\neffective_from=2025-12-31T23:00:00Z\n[tariff]\n',
            "[[price]] number 1 and number 2 are for the same model, tier and time",
        ),
        ('"standard"\n\n', '"standrad"\n\n', "default_tier standrad has no [[tier]]: did you mean standard?"),
        (
            '"standard"\n\n',
            '"free"\n\n',
            "default_tier free is not sold: what nobody claims would earn nothing",
        ),
        ("sold = false", "sold = 0", "[[tier]] number 2 sold must be a valid boolean; it is 0"),
        ("pue = 1.2", "pue = 0.9", "[tariff] pue must be 1 to 5"),
        ("pue = 1.2", "per_kwh = 0.1", "[tariff] has per_kwh and [[tariff.period]]: keep one of them"),
        (
            '"21:30"\nends',
            '"21:45"\nends',
            "[[tariff.period]] leaves a gap: no period covers month 1, mon, 21:30",
        ),
        (
            '"21:30"\nends',
            '"21:00"\nends',
            "[[tariff.period]] number 1 and number 2 overlap: both cover month 1, mon, 21:00",
        ),
        ('"07:00"\nends', '"07:10"\nends', "must be a quarter of an hour"),
        ("life_years = 5\n", "", "[[capital]] number 1 needs either per_gpu_hour, or price and life_years"),
        ("price = 30_000\n", "per_gpu_hour = 2\n", "[[capital]] number 1 needs either per_gpu_hour"),
        ("interest = 0.08", "interest = 8", "[[capital]] number 1 interest must be a fraction"),
        (
            'within = "all"',
            'within = "al"',
            "engineers lies within the unknown envelope al: did you mean all?",
        ),
        ('"month"', '"month"\nwithin = "engineers"', "all within engineers within all: a circle"),
        ('unit = "EUR"', 'unit = "USD"', 'unit must be "tokens" or the book\'s currency "EUR"; it is "USD"'),
        ("limit = 1e9", "limit = 0", "[[envelope]] number 1 limit must be above 0"),
        ('"engineers"', '"all"', "[[envelope]] all stands there twice"),
        ('kind = "team"', 'kind = "teams"', "[[envelope]] number 1 kind must be 'function', 'team'"),
        ("[[capital]]", "[capital]", "capital must be a table: write [[capital]] on a line of its own"),
        ("[tariff]", "[tariff", "not valid TOML"),
    ],
)
def test_faults_name_the_place_and_the_remedy(old: str, new: str, fault: str) -> None:
    """Each fault of a book is told with its table, its key and what it must be, and the book is refused."""
    with pytest.raises(ConfigError) as caught:
        parse_book(changed((old, new)).encode(), "book.toml")
    assert fault in str(caught.value)
    assert str(caught.value).startswith("book.toml: ")


def test_all_faults_are_told_at_once() -> None:
    """Nobody mends a book one start at a time, or takes one with faults of form for mended when these are."""
    with pytest.raises(ConfigError) as caught:
        parse_book(changed(('"EUR"', '"EUX"'), ("1000.5", "99"), ("pue = 1.2", "pue = 9")).encode(), "b")
    # the envelope's unit is no longer the book's currency either
    assert len(str(caught.value).splitlines()) == 4
    with pytest.raises(ConfigError) as caught:
        parse_book(changed(('"EUR"', '"EUX"'), ("0.6\n", "-0.6\n"), ("1e9", "0")).encode(), "b")
    *faults, last = str(caught.value).splitlines()
    assert (len(faults), last.endswith("is checked once this is mended")) == (2, True)


def test_a_book_that_changed_is_read_again_and_a_bad_one_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prices change without a restart; a bad file changes nothing and is said; a mended one counts at once."""
    monkeypatch.setattr(book_file, "_LOOK_INTERVAL_S", 0.0)
    path = tmp_path / "book.toml"
    path.write_text(GOOD)
    told: list[str] = []
    file = BookFile(path, lambda result, _: told.append(result))
    assert file.current().price[0].output == 600_000
    assert told == []
    # put there as editors and Kubernetes do it: another file under the same name
    for text, price, heard in (
        (changed(("0.6\n", "0.7\n")), 700_000, ["accepted"]),
        (changed(("0.6\n", "-0.7\n")), 700_000, ["accepted", "refused"]),
        (changed(("0.6\n", "0.8\n")), 800_000, ["accepted", "refused", "accepted"]),
        (GOOD + "\nx = " + 2000 * "[" + 2000 * "]", 800_000, ["accepted", "refused", "accepted", "refused"]),
    ):
        (tmp_path / "new").write_text(text)
        os.replace(tmp_path / "new", path)
        assert file.current().price[0].output == price
        assert told == heard
    path.unlink()
    assert file.current().price[0].output == 800_000
    assert told[4:] == ["refused"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        ("\ufeff", "is empty"),
        ("# " + GOOD.replace("\n", "\n# "), "has nothing but comments"),
        ("\ufeff# nothing", "has nothing but comments"),
    ],
)
def test_an_emptied_book_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    """A full disk or a failed edit leaves nothing in it: prices and budgets stay what they were, and a start says so."""
    monkeypatch.setattr(book_file, "_LOOK_INTERVAL_S", 0.0)
    path = tmp_path / "book.toml"
    path.write_text(GOOD)
    told: list[str] = []
    file = BookFile(path, lambda result, _: told.append(result))
    before = file.current()
    path.write_text(text)
    assert file.current() == before
    assert told == ["refused"]
    with pytest.raises(ConfigError, match=rf"book\.toml: the file {said}; .* leave economy\.book out"):
        BookFile(path, lambda *_: None)


def test_one_key_makes_a_book(tmp_path: Path) -> None:
    """Who names a time zone for reports, or costs and no prices, has a book; so has who takes the sample as it is."""
    for text in ('time_zone = "Europe/Berlin"', "[tariff]", "[cost]\nuse_published = false", SAMPLE_BOOK):
        (tmp_path / "book.toml").write_text(text)
        BookFile(tmp_path / "book.toml", lambda *_: None)


def test_a_bad_book_is_refused_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no book before it to go on with; one that is not there is told with where it was looked for, and its remedy."""
    (tmp_path / "book.toml").write_text(changed(("0.6\n", "-1\n")))
    with pytest.raises(ConfigError, match="output must be 0"):
        BookFile(tmp_path / "book.toml", lambda *_: None)
    with pytest.raises(ConfigError, match=r"idlewatt config --book > none\.toml"):
        BookFile(tmp_path / "none.toml", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=rf"^{tmp_path}/none\.toml: there is no such file"):
        BookFile(Path("none.toml"), lambda *_: None)


def test_without_a_file_the_book_is_empty() -> None:
    """No price is assumed."""
    assert BookFile(None, lambda *_: None).current() == Book()
    assert Book().price == ()


def test_every_currency_is_three_letters() -> None:
    """The list is one of codes."""
    codes = pl.Series(sorted(CURRENCIES))
    assert codes.str.contains("^[A-Z]{3}$").all()
    assert {"USD", "EUR", "JPY", "CNY", "INR", "GBP"} <= CURRENCIES
