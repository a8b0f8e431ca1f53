"""Reads what a report needs out of the log."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import polars as pl

from idlewatt.cli.text_table import printable
from idlewatt.processors.economy.book import Book
from idlewatt.processors.economy.book_file import read_book
from idlewatt.processors.reports.ledger import (
    END_COLUMNS,
    Interval,
    Ledger,
    ends_before,
    ledger_span,
    usage_span,
)
from idlewatt.stream import records, topics
from idlewatt.stream.clock import DAY_MS
from idlewatt.stream.frames import empty_frame
from idlewatt.stream.reading import Fault, read_rows
from idlewatt.stream.records import Schema
from idlewatt.stream.settings import Settings

# Rows are written after what they tell of; clocks may differ by the grace, and a day is easily read.
_CLOCKS_MS: Final = DAY_MS


@dataclass(frozen=True, slots=True)
class Reading:
    """The ledger as it is now, and the messages of it that could not be read."""

    ledger: Ledger
    faults: list[Fault]


def book_of(settings: Settings) -> Book:
    """The book as it is now; an empty one without economy.book. Raises ConfigError."""
    return read_book(Path(settings.economy.book)) if settings.economy.book else Book()


def read_ledger(settings: Settings, book: Book, interval: Interval) -> Reading:
    """Raises ConfigError, LogUnavailableError."""
    watts, usage = ledger_span(interval), usage_span(interval, book)
    faults: list[Fault] = []
    before = [pl.DataFrame(schema=END_COLUMNS)]
    # first: while a processor writes, none of it lacks the tokens that it claims
    frames = _rows(settings, topics.MONEY, (records.CONSUMER,), usage, faults, before)
    frames |= _rows(settings, topics.LEDGER, (records.POWER, records.TOKENS), watts, faults, before)
    power, tokens, used = (frames[schema] for schema in (records.POWER, records.TOKENS, records.CONSUMER))
    return Reading(Ledger(power, tokens, used, pl.concat(before)), faults)


def _rows(
    settings: Settings,
    topic: str,
    schemas: tuple[Schema, ...],
    span: Interval,
    faults: list[Fault],
    before: list[pl.DataFrame],
) -> dict[Schema, pl.DataFrame]:
    parts = {schema: [empty_frame(schema)] for schema in schemas}
    for found in read_rows(settings, topic, schemas, max(0, span.from_ms - _CLOCKS_MS)):
        if isinstance(found, Fault):
            faults.append(found)
        else:
            schema, rows = found
            parts[schema].append(rows.filter(span.has()))
            before.append(ends_before(span.from_ms, rows))
    return {schema: pl.concat(rows) for schema, rows in parts.items()}


def tell_faults(reading: Reading) -> None:
    """Figures that stand on less than the whole ledger say so."""
    for fault in reading.faults:
        print(
            f"idlewatt: {fault.topic}, partition {fault.partition}, offset {fault.offset} is not in these figures: "
            f"{printable(str(fault.error))}",
            file=sys.stderr,
        )
