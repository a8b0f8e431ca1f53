"""The arguments of the commands that read the ledger back. Light: the command line is parsed before anything is loaded."""

import argparse
from pathlib import Path
from typing import Any, Final

from idlewatt.cli.moments import names
from idlewatt.stream import topics

_REPORT: Final = """\
examples:
  idlewatt report --from 2026-11-01 --to 2026-12-01
  idlewatt report --from 2026-11-23T07:00 --by site,pool
  idlewatt report --from 2026-11-01 --by team,model --format csv --out november.csv

Times are in the book's time zone unless they name an offset; --from is in the interval, --to is not. Money is
computed from the ledger's quantities with the book as it is now. Tables are rounded so that they add up;
csv, json and parquet have six decimals.
"""
_TAIL: Final = """\
examples:
  idlewatt tail ledger
  idlewatt tail idlewatt.money --format json --follow
"""
_CONFIG_HELP: Final = "settings in TOML; IDLEWATT_CONFIG if left out, else defaults"


def add_commands(commands: Any) -> None:
    """Add report and tail to the subparsers."""
    report = _command(commands, "report", "what an interval cost, brought and lost, from the ledger", _REPORT)
    _interval(report)
    report.add_argument(
        "--by",
        type=names,
        default=("pool", "model"),
        metavar="NAMES",
        help="rows by site, pool, model, tier and one of consumer, team, function, agent_family, engineer, "
        "separated by commas; pool,model if left out",
    )
    report.add_argument("--format", choices=("table", "csv", "json", "parquet"), default="table")
    report.add_argument("--out", type=Path, metavar="FILE", help="file to write to, else stdout")

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
    parser.add_argument(
        "--from", dest="from_", required=True, metavar="TIME", help="ISO 8601: a date, or a time"
    )
    parser.add_argument("--to", metavar="TIME", help="ISO 8601; now if left out")


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
