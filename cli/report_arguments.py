"""The arguments of the commands that read the ledger back. Light: the command line is parsed before anything is loaded."""

import argparse
import contextlib
import re
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

from idlewatt.stream import topics

_REPORT: Final = """\
examples:
  idlewatt report --from 2026-11-01 --to 2026-12-01
  idlewatt report --from 2026-11-23T07:00 --by site,pool
  idlewatt report --from 2026-11-01 --by team,model --format csv --out november.csv
  idlewatt report --statement growth --month 2026-11 --out growth.html

Times are in the book's time zone unless they name an offset; --from is in the interval, --to is not. Money is
computed from the ledger's quantities with the book as it is now. Tables are rounded so that they add up;
csv, json and parquet have six decimals.
"""
_TAIL: Final = """\
examples:
  idlewatt tail ledger
  idlewatt tail idlewatt.money --format json --follow
"""
_WHATIF: Final = """\
examples:
  idlewatt whatif --from 2026-11-01 --to 2026-12-01 --tokens-per-joule +10%
  idlewatt whatif --from 2026-11-01 --price -20% --pue 1.15 --tariff 0.08

More tokens per joule are more tokens from the same watts, not fewer watts for the same tokens.
"""
_PERCENT: Final = re.compile(r"[+-][0-9]+(\.[0-9]{1,6})?%")
_CONFIG_HELP: Final = "settings in TOML; IDLEWATT_CONFIG if left out, else defaults"


def add_commands(commands: Any) -> None:
    """Add report, whatif and tail to the subparsers."""
    report = _command(commands, "report", "what an interval cost, brought and lost, from the ledger", _REPORT)
    _interval(report)
    report.add_argument(
        "--by",
        type=_names,
        metavar="NAMES",
        help="rows by site, pool, model, tier and one of consumer, team, function, agent_family, engineer, "
        "separated by commas; pool,model if left out",
    )
    report.add_argument("--format", choices=("table", "csv", "json", "parquet"), help="table if left out")
    report.add_argument(
        "--statement",
        metavar="NAME",
        help="a page in HTML of what this team owes, or whoever the book bills; with --month",
    )
    report.add_argument("--month", metavar="YYYY-MM", help="calendar month of the statement")
    report.add_argument("--out", type=Path, metavar="FILE", help="file to write to, else stdout")

    whatif = _command(commands, "whatif", "a past interval at another yield, price, PUE or tariff", _WHATIF)
    _interval(whatif)
    whatif.add_argument(
        "--tokens-per-joule", type=_factor, default=Fraction(1), metavar="PERCENT", help="such as +10%%"
    )
    whatif.add_argument(
        "--price", type=_factor, default=Fraction(1), metavar="PERCENT", help="of all tokens, such as -20%%"
    )
    whatif.add_argument("--pue", type=_pue, metavar="PUE", help="facility watts per IT watt, such as 1.15")
    whatif.add_argument(
        "--tariff",
        type=_tariff,
        default=(None, Fraction(1)),
        metavar="PRICE",
        help="price of a kWh at any time, such as 0.08, or a change, such as -10%%",
    )
    whatif.add_argument("--format", choices=("table", "json"), default="table")

    tail = _command(commands, "tail", "show the newest rows of a topic, decoded", _TAIL)
    tail.add_argument("topic", type=_topic, help="topic, with or without the idlewatt. before it")
    tail.add_argument("--rows", type=_rows, default=20, help="how many; 20 if left out")
    tail.add_argument("--format", choices=("table", "json"), default="table")
    tail.add_argument("--follow", action="store_true", help="and those that come, until Ctrl-C")


def _command(commands: Any, name: str, help_text: str, examples: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=help_text,
        description=f"{help_text[0].upper()}{help_text[1:]}.",
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help=_CONFIG_HELP)
    return parser


def _interval(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--from", dest="from_", metavar="TIME", help="ISO 8601: a date, or a time")
    parser.add_argument("--to", metavar="TIME", help="ISO 8601; now if left out")


def with_joined_percents(argv: Sequence[str]) -> list[str]:
    """argparse takes -20% for an option of its own: `--price -20%` as `--price=-20%`."""
    joined: list[str] = []
    for word in argv:
        if word.startswith("-") and _PERCENT.fullmatch(word) and joined and joined[-1].startswith("--"):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _names(text: str) -> tuple[str, ...]:
    found = tuple(word.strip() for word in text.split(","))
    if not all(found):
        raise argparse.ArgumentTypeError(f"{text!r} has an empty name between commas")
    return found


def _factor(text: str) -> Fraction:
    """+10% is 11/10."""
    if not _PERCENT.fullmatch(text) or (factor := 1 + Fraction(text[:-1]) / 100) < 0 or factor > 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is no change; write it such as +10% or -20%")
    return factor


def _millionths(text: str) -> int:
    with contextlib.suppress(ArithmeticError, ValueError):
        amount = Decimal(text) * 10**6
        if amount == int(amount) and 0 <= amount <= 10**15:
            return int(amount)
    raise argparse.ArgumentTypeError(f"{text!r} is no plain number of at most six decimals")


def _pue(text: str) -> int:
    pue = _millionths(text)
    if 10**6 <= pue <= 5 * 10**6:
        return pue
    raise argparse.ArgumentTypeError(f"{text!r} is no PUE; it is 1 to 5")


def _tariff(text: str) -> tuple[int | None, Fraction]:
    return (None, _factor(text)) if text.endswith("%") else (_millionths(text), Fraction(1))


def _topic(text: str) -> str:
    topic = text if text.startswith("idlewatt.") else f"idlewatt.{text}"
    known = [name for name in topics.ALL if name != topics.STATE]
    if topic == topics.STATE:
        raise argparse.ArgumentTypeError(f"{topic} holds snapshots, not rows; choose of {', '.join(known)}")
    if topic not in known:
        raise argparse.ArgumentTypeError(f"there is no topic {text!r}; choose of {', '.join(known)}")
    return topic


def _rows(text: str) -> int:
    if text.isascii() and text.isdecimal() and int(text) <= 1_000_000:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no number of rows")
