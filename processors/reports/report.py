"""An interval's cells grouped as asked, and their totals."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import polars as pl

from idlewatt.processors.economy.book import CONSUMER_KINDS, Book
from idlewatt.processors.reports.attribution import by_consumer, with_tiers
from idlewatt.processors.reports.cells import MEASURES, Cells
from idlewatt.stream.errors import ConfigError

BILLED: Final = "consumer"
DIMENSIONS: Final = ("site", "pool", "model", "tier", BILLED, *CONSUMER_KINDS)


@dataclass(frozen=True, slots=True)
class Grouped:
    """Rows of an interval: a column for each dimension, MEASURES, and is_read. Any two groupings add up to the same.

    is_read: whether GPUs of any site that it is of are in the ledger.
    """

    by: tuple[str, ...]
    rows: pl.DataFrame

    def total(self, measure: str) -> int:
        return int(self.rows.get_column(measure).sum())


def dimensions(names: Sequence[str], book: Book) -> tuple[str, ...]:
    """The dimensions that are asked for, each once; `consumer` is the kind that the book bills. Raises ConfigError."""
    by = tuple(dict.fromkeys(book.billed if name == BILLED else name for name in names))
    for name in by:
        if name not in DIMENSIONS:
            raise ConfigError(f"--by: there is no {name!r}; choose of {', '.join(DIMENSIONS)}")
    kinds = [name for name in by if name in CONSUMER_KINDS]
    if len(kinds) > 1:
        raise ConfigError(
            f"--by: {' and '.join(kinds)} are the same tokens told twice; ask for one kind of consumer at a time"
        )
    if kinds and "pool" in by:
        raise ConfigError(
            f"--by: usage does not tell in which pool it was served; leave out pool or {kinds[0]}"
        )
    return by


def grouped(found: Cells, by: Sequence[str]) -> Grouped:
    """Rows by what dimensions() gave, in alphabetical order; "" stands for what has no such name."""
    names = {"model": "model_name"} | dict.fromkeys(CONSUMER_KINDS, "consumer")
    columns = [names.get(name, name) for name in by]
    kind = next((name for name in by if name in CONSUMER_KINDS), None)
    if kind is not None:
        key = dict.fromkeys(name for name in ("site", *columns) if name != "consumer")
        rows = by_consumer(found, kind, list(key))
    else:
        rows = with_tiers(found.cells) if "tier" in by else found.cells
    rows = rows.with_columns(found.is_read)
    sums = pl.col(*MEASURES).sum(), pl.col("is_read").any()
    rows = rows.group_by(columns).agg(sums).sort(columns) if columns else rows.select(sums)
    # what was given away is part of the tokens; of tiers that are estimated, some may be left where no token is
    shown = (pl.col(name) != 0 for name in MEASURES if name != "given_tokens")
    rows = rows.filter(pl.any_horizontal(shown))
    return Grouped(
        tuple(by),
        rows.select(
            *(pl.col(c).alias(name) for c, name in zip(columns, by, strict=True)), *MEASURES, "is_read"
        ),
    )
