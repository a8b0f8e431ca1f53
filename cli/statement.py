"""`idlewatt report --statement`: a consumer's month as a page."""

import argparse

from idlewatt.cli.ledger_reading import read_ledger, tell_faults
from idlewatt.cli.moments import month_of, written
from idlewatt.cli.report_formats import Heading
from idlewatt.cli.statement_page import page
from idlewatt.cli.writing_out import write_text
from idlewatt.processors.economy.book import Book
from idlewatt.processors.economy.config import EconomyConfig
from idlewatt.processors.reports.cells import cells
from idlewatt.processors.reports.statement import statement
from idlewatt.stream.errors import ConfigError
from idlewatt.stream.settings import Settings


def write_statement(arguments: argparse.Namespace, settings: Settings, book: Book) -> None:
    """To --out, or to stdout. Raises ConfigError, LogUnavailableError."""
    if arguments.month is None:
        raise ConfigError("--statement needs --month, such as --month 2026-11")
    for option, value in (("--from", arguments.from_), ("--to", arguments.to), ("--by", arguments.by)):
        if value is not None:
            raise ConfigError(f"--statement is of a month: leave {option} out")
    if arguments.format is not None:
        raise ConfigError("--statement is an HTML page: leave --format out")
    interval = month_of(arguments.month, book.time_zone)
    reading = read_ledger(settings, book, interval)
    tell_faults(reading)
    config = EconomyConfig.of(settings)
    found = cells(reading.ledger, book, config, interval)
    heading = Heading.now(interval, book, reading.ledger)
    begin, end = (written(ms, book.time_zone) for ms in (interval.from_ms, interval.to_ms))
    text = page(
        statement(found, book, arguments.statement, config.coverage_floor),
        book.currency,
        arguments.month,
        f"{begin} to {end} ({book.time_zone})",
        None if heading.as_of_ms is None else written(heading.as_of_ms, book.time_zone),
        list(heading.notes),
    )
    write_text(arguments.out, text)
