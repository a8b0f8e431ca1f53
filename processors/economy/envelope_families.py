"""Envelopes as Prometheus families. What is not known has no series."""

from collections.abc import Iterator
from typing import Final

import polars as pl

from idlewatt.processors.economy.book import MICRO, TOKENS, Book
from idlewatt.processors.economy.envelope_figures import envelope_figures
from idlewatt.processors.economy.envelopes import BURN_WINDOWS, EnvelopeState
from idlewatt.processors.families import Family, absent, family, long
from idlewatt.stream import metric_names as names

_METRICS: Final = (
    names.ENVELOPE_LIMIT,
    names.ENVELOPE_USED,
    names.ENVELOPE_EXHAUSTION,
    names.ENVELOPE_BURN_RATE,
)
_PER_UNIT: Final = pl.when(pl.col("unit") == TOKENS).then(1).otherwise(MICRO)


def envelope_families(state: EnvelopeState, book: Book) -> Iterator[Family]:
    """Families of one partition's sites."""
    figures = envelope_figures(state, book)
    if figures.is_empty():
        yield from map(absent, _METRICS)
        return
    figures = figures.filter(pl.col("consumer") != "")
    for metric, value in (
        (names.ENVELOPE_LIMIT, pl.col("limit") / _PER_UNIT),
        (names.ENVELOPE_USED, pl.col("used") / _PER_UNIT),
        (names.ENVELOPE_EXHAUSTION, pl.col("exhaustion_ms") / 1000),
    ):
        yield family(metric, figures.with_columns(value=value))
    burns = {f"burn_{window}": window for window in BURN_WINDOWS}
    labels = names.ENVELOPE_BURN_RATE.labels[:-1]
    yield family(names.ENVELOPE_BURN_RATE, long(figures, labels, "window", burns))
