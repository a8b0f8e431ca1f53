"""`idlewatt report`: what an interval came to, at the book's prices as they are now."""

import argparse
import io
import sys
from collections.abc import Mapping
from typing import Final

import polars as pl

from idlewatt.cli import report_formats
from idlewatt.cli.config import load_settings
from idlewatt.cli.exit_codes import ExitCode
from idlewatt.cli.ledger_reading import book_of, read_ledger, tell_faults
from idlewatt.cli.moments import interval_of
from idlewatt.cli.statement import write_statement
from idlewatt.cli.writing_out import write_bytes, write_text
from idlewatt.processors.economy.config import EconomyConfig
from idlewatt.processors.reports.cells import cells
from idlewatt.processors.reports.demand import peaks
from idlewatt.processors.reports.figures import CENTS, EXACT, figures
from idlewatt.processors.reports.report import dimensions, grouped
from idlewatt.stream.errors import ConfigError

_BY: Final = ("pool", "model")


def report(arguments: argparse.Namespace, environ: Mapping[str, str]) -> ExitCode:
    """Print it, or write it to --out. Raises ConfigError, LogUnavailableError."""
    settings = load_settings(arguments.config, environ)
    book = book_of(settings)
    if arguments.statement is not None:
        write_statement(arguments, settings, book)
        return ExitCode.OK
    if arguments.month is not None:
        raise ConfigError("--month is for --statement; for a report give --from and --to")
    by = dimensions(arguments.by or _BY, book)
    interval = interval_of(arguments.from_, arguments.to, book.time_zone)
    reading = read_ledger(settings, book, interval)
    tell_faults(reading)
    config = EconomyConfig.of(settings)
    found = cells(reading.ledger, book, config, interval)
    highest = peaks(reading.ledger.power, book, interval, config.coverage_floor)
    heading = report_formats.Heading.now(interval, book, reading.ledger)
    is_table = arguments.format in (None, "table")
    decimals = CENTS if is_table else EXACT
    totals = figures(grouped(found, by), book, decimals, config.coverage_floor, config.min_tokens)
    shown = heading.known(totals)
    if not shown.rows:
        print("idlewatt: the ledger has nothing of this interval", file=sys.stderr)
    if is_table:
        write_text(arguments.out, "\n".join(report_formats.table(heading, shown, highest)) + "\n")
    elif arguments.format == "json":
        write_text(arguments.out, report_formats.as_json(heading, shown, highest, len(reading.faults)) + "\n")
    else:
        _write_frame(arguments, report_formats.frame(heading, shown))
        lines = report_formats.reconciliation_lines(shown)
        for line in (*lines, *heading.notes, *report_formats.notes(shown)):
            print(line, file=sys.stderr)
    return ExitCode.OK


def _write_frame(arguments: argparse.Namespace, rows: pl.DataFrame) -> None:
    if arguments.format == "csv":
        write_text(arguments.out, rows.write_csv())
        return
    if arguments.out is None and sys.stdout.isatty():
        raise ConfigError("--format parquet is no text for a terminal; name a file with --out, or pipe it on")
    # polars would not tell a pipe whose reader went away from a fault
    whole = io.BytesIO()
    rows.write_parquet(whole)
    write_bytes(arguments.out, whole.getvalue())
