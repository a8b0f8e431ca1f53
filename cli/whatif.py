"""`idlewatt whatif`: a past interval beside the same at another yield, price, PUE or tariff."""

import argparse
import json
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Final

from idlewatt.cli.config import load_settings
from idlewatt.cli.exit_codes import ExitCode
from idlewatt.cli.ledger_reading import book_of, read_ledger, tell_faults
from idlewatt.cli.moments import interval_of
from idlewatt.cli.report_formats import Heading, notes, shown, too_few
from idlewatt.cli.text_table import text_table
from idlewatt.cli.writing_out import write_text
from idlewatt.processors.economy.config import EconomyConfig
from idlewatt.processors.economy.tariff import has_price
from idlewatt.processors.reports.cells import cells
from idlewatt.processors.reports.figures import CENTS, EXACT, Value, figures
from idlewatt.processors.reports.report import grouped
from idlewatt.processors.reports.whatif import Changes, changed_book, changed_ledger
from idlewatt.stream.errors import ConfigError

_SHOWN: Final = (
    "output_tokens",
    "drawn_kwh",
    "tokens_per_joule",
    "revenue",
    "energy_cost",
    "capital_cost",
    "cost_usage",
    "cost_not_serving",
    "cost_allocation",
    "margin",
    "cost_per_mtok_usage",
    "cost_per_mtok_allocation",
    "lost_tokens",
    "lost_revenue",
)


def whatif(arguments: argparse.Namespace, environ: Mapping[str, str]) -> ExitCode:
    """Print both side by side. Raises ConfigError, LogUnavailableError."""
    settings = load_settings(arguments.config, environ)
    book = book_of(settings)
    interval = interval_of(arguments.from_, arguments.to, book.time_zone)
    per_kwh, tariff = arguments.tariff
    changes = Changes(arguments.tokens_per_joule, arguments.price, arguments.pue, per_kwh, tariff)
    if changes == Changes():
        raise ConfigError("whatif: nothing is changed; give --tokens-per-joule, --price, --pue or --tariff")
    if tariff != 1 and not has_price(book.tariff):
        raise ConfigError(
            "--tariff: the book has no tariff to change in proportion; give a price, such as 0.10"
        )
    reading = read_ledger(settings, book, interval)
    tell_faults(reading)
    heading = Heading.now(interval, book, reading.ledger)
    config = EconomyConfig.of(settings)
    both = [
        (grouped(cells(ledger, prices, config, interval), ()), prices)
        for ledger, prices in (
            (reading.ledger, book),
            (changed_ledger(reading.ledger, changes, interval), changed_book(book, changes)),
        )
    ]
    in_cents, exact = (
        [
            heading.known(figures(found, prices, decimals, config.coverage_floor, config.min_tokens))
            for found, prices in both
        ]
        for decimals in (CENTS, EXACT)
    )
    was, would_be = (each.total for each in exact)
    assumed = list(assumptions(changes))
    if arguments.format == "json":
        told = {
            **heading.columns,
            "assumed": assumed,
            "as_it_was": {name: was[name] for name in _SHOWN},
            "what_if": {name: would_be[name] for name in _SHOWN},
            "notes": [*heading.notes, *too_few(*exact), *notes(exact[0])],
        }
        write_text(None, json.dumps(told, default=str, ensure_ascii=False, indent=2) + "\n")
        return ExitCode.OK
    head = heading.columns
    lines = [
        f"{head['from']} to {head['to']} ({book.time_zone}), money in {book.currency}",
        "",
        *text_table(
            ["", "as it was", "what if", "difference", "%"],
            [_row(name, *(each.total[name] for each in (*in_cents, *exact))) for name in _SHOWN],
            1,
        ),
        "",
        *(f"assumed: {line}" for line in assumed),
        *heading.notes,
        *too_few(*in_cents),
        *notes(in_cents[0]),
    ]
    write_text(None, "\n".join(lines) + "\n")
    return ExitCode.OK


def assumptions(changes: Changes) -> Iterator[str]:
    """What the figures of whatif rest on, besides the ledger."""
    if changes.tokens_per_joule != 1:
        yield (
            "the same watts and GPU-hours made tokens in that proportion, everybody's alike, and somebody paid for "
            "them; idle watts would have made as many more"
        )
    if changes.price != 1:
        yield "every price of the book is in that proportion, and as many tokens were asked for"
    if changes.pue is not None:
        yield "electricity is bought for the IT watts times that PUE; kWh here are of IT"
    if changes.per_kwh is not None or changes.tariff != 1:
        yield "the watts were drawn when they were drawn; the demand charge is left out"


def _row(name: str, shown_was: Value, shown_would_be: Value, was: Value, would_be: Value) -> list[str]:
    """The difference has the places of what is shown; it and the percent are of the exact figures."""
    difference, percent = "-", "-"
    if isinstance(was, int | Decimal) and isinstance(would_be, int | Decimal):
        more = Decimal(would_be) - Decimal(was)
        difference = ("+" if more > 0 else "") + shown(more.quantize(Decimal(str(shown_was))))
        if was:
            percent = f"{100 * more / abs(Decimal(was)):+.1f}"
    return [name, shown(shown_was), shown(shown_would_be), difference, percent]
