"""What one consumer owes for a month: by model and tier, and by whom else its tokens name."""

import difflib
from dataclasses import dataclass
from decimal import Decimal

import polars as pl

from idlewatt.processors.economy.book import CONSUMER_KINDS, MICRO, Book
from idlewatt.processors.reports.attribution import by_consumer
from idlewatt.processors.reports.cells import MEASURES, Cells
from idlewatt.processors.reports.figures import CENTS, Figures, figures, has_no_price
from idlewatt.processors.reports.report import Grouped
from idlewatt.processors.reports.rounding import rounded_parts
from idlewatt.stream.errors import ConfigError
from idlewatt.stream.records import TOKEN_COUNTS

_KEY = ("site", "model_name", "tier")


@dataclass(frozen=True, slots=True)
class Share:
    """A part of the consumer's tokens: who spent it, and what is owed for it; None if the book has no price for any."""

    name: str
    tokens: int
    owed: Decimal | None


@dataclass(frozen=True, slots=True)
class Statement:
    """A consumer's month. Lines add up to their total, and so do the shares of each kind."""

    kind: str
    consumer: str
    # by site, model and tier; their watts are attributed by output tokens
    lines: Figures
    # other kind of consumer -> its names; "" is nobody
    shares: dict[str, list[Share]]


def statement(found: Cells, book: Book, consumer: str, coverage_floor: float) -> Statement:
    """The consumer's statement; of the kind that the book bills. Raises ConfigError if it spent nothing."""
    kind = book.billed
    own = found.consumed.filter(pl.col(kind) == consumer)
    if own.is_empty() or not consumer:
        raise ConfigError(_nobody(consumer, kind, found.consumed.get_column(kind).unique().to_list()))
    rows = by_consumer(found, kind, _KEY).filter(pl.col("consumer") == consumer)
    named = rows.select("site", pl.col("model_name").alias("model"), "tier", *MEASURES, found.is_read)
    lines = figures(Grouped(("site", "model", "tier"), named), book, CENTS, coverage_floor)
    shares = {other: _shares(own, other) for other in CONSUMER_KINDS if other != kind}
    return Statement(kind, consumer, lines, shares)


def _shares(own: pl.DataFrame, kind: str) -> list[Share]:
    tokens = pl.sum_horizontal(pl.col(*TOKEN_COUNTS).sum())
    sums = tokens.alias("tokens"), pl.col("given_tokens", "unpriced_tokens", "revenue_micro").sum()
    rows = own.group_by(kind).agg(*sums).sort(kind)
    places = CENTS.money
    owed = rounded_parts(rows.get_column("revenue_micro").to_list(), MICRO // 10**places)
    return [
        Share(name, count, None if has_no_price(count, *priced) else Decimal(part).scaleb(-places))
        for (name, count, *priced), part in zip(rows.iter_rows(), owed, strict=True)
    ]


def _nobody(consumer: str, kind: str, known: list[str]) -> str:
    names = sorted(name for name in known if name)
    near = difflib.get_close_matches(consumer, names, 1) or names[:5]
    hint = f"; there are {', '.join(near)}" if near else ""
    return f"--statement: no {kind} {consumer!r} spent anything in this month{hint}"
