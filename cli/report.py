"""`idlewatt report`: what an interval came to, at the book's prices as they are now."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from idlewatt.cli import report_formats
from idlewatt.cli.config import load_settings
from idlewatt.cli.exit_codes import ExitCode
from idlewatt.cli.ledger_reading import Reading, book_of, read_ledger
from idlewatt.cli.moments import moment_ms
from idlewatt.processors.economy.book import Book
from idlewatt.processors.reports.cells import cells
from idlewatt.processors.reports.figures import CENTS, EXACT, figures
from idlewatt.processors.reports.ledger import Interval
from idlewatt.processors.reports.report import dimensions, grouped
from idlewatt.stream.clock import unix_ms
from idlewatt.stream.errors import ConfigError


def report(arguments: argparse.Namespace, environ: Mapping[str, str]) -> ExitCode:
    """Print it, or write it to --out. Raises ConfigError, LogUnavailableError."""
    settings = load_settings(arguments.config, environ)
    book = book_of(settings)
    by = dimensions(arguments.by, book)
    interval = interval_of(arguments.from_, arguments.to, book)
    reading = read_ledger(settings, book, interval)
    tell_faults(reading)
    found = cells(reading.ledger, book, settings.economy.lost_revenue_counts, interval)
    heading = report_formats.Heading(interval, book)
    shown = figures(grouped(found, by), book, CENTS if arguments.format == "table" else EXACT)
    if not shown.rows:
        print("idlewatt: the ledger has nothing of this interval", file=sys.stderr)
    match arguments.format:
        case "table":
            write_text(arguments.out, "\n".join(report_formats.table(heading, shown)) + "\n")
        case "json":
            more = {"unreadable_messages": len(reading.faults)}
            write_text(arguments.out, report_formats.as_json(heading, shown, more) + "\n")
        case _:
            _write_frame(arguments, report_formats.frame(heading, shown))
            for line in (*report_formats.reconciliation_lines(shown), *report_formats.notes(shown)):
                print(line, file=sys.stderr)
    return ExitCode.OK


def interval_of(begin: str, end: str | None, book: Book) -> Interval:
    """Without an end until now. Raises ConfigError."""
    from_ms = moment_ms("--from", begin, book.time_zone)
    to_ms = unix_ms() // 60_000 * 60_000 if end is None else moment_ms("--to", end, book.time_zone)
    if from_ms >= to_ms:
        raise ConfigError(f"--from {begin} is not before --to {end or 'now'}: the interval is empty")
    return Interval(from_ms, to_ms)


def tell_faults(reading: Reading) -> None:
    """Figures that stand on less than the whole ledger say so."""
    for fault in reading.faults:
        print(
            f"idlewatt: {fault.topic}, partition {fault.partition}, offset {fault.offset} is not in these figures: "
            f"{fault.error}",
            file=sys.stderr,
        )


def write_text(out: Path | None, text: str) -> None:
    """To a file, or to stdout. Raises ConfigError."""
    if out is None:
        print(text, end="", flush=True)
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--out: cannot write {out}: {error.strerror}") from None


def _write_frame(arguments: argparse.Namespace, rows: pl.DataFrame) -> None:
    if arguments.format == "csv":
        write_text(arguments.out, rows.write_csv())
        return
    if arguments.out is None and sys.stdout.isatty():
        raise ConfigError("--format parquet is no text for a terminal; name a file with --out, or pipe it on")
    try:
        rows.write_parquet(arguments.out if arguments.out is not None else sys.stdout.buffer)
    except OSError as error:
        raise ConfigError(f"--out: cannot write {arguments.out}: {error}") from None
