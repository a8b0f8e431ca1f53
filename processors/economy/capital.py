"""What an hour of each GPU product costs: from the book, else from published figures."""

from collections.abc import Iterable
from decimal import Decimal
from typing import Final

import polars as pl

from idlewatt.processors.economy.book import MICRO, Book, Capital
from idlewatt.processors.published import CURRENCY, published
from idlewatt.stream.globs import matches

CAPITAL_COLUMNS: Final = {
    "product": pl.String,
    # micro-units; null where nobody says
    "per_gpu_hour": pl.Int64,
    # book | published
    "origin": pl.String,
    # what a GPU was bought for, in micro-units; null where the book has only its hour
    "bought_for": pl.Int64,
    # all-in watts from the utility per GPU, published; null where nobody says
    "utility_w": pl.Int64,
}
_HOURS_A_YEAR: Final = 8760


def capital_frame(book: Book, products: Iterable[str]) -> pl.DataFrame:
    """CAPITAL_COLUMNS, one row for each product. The first entry that matches counts.

    Published figures serve a product without an entry, where the book allows it and counts in their currency.
    """
    rows: list[tuple[str, int | None, str | None, int | None, int | None]] = []
    for product in sorted(set(products)):
        own = next((c for c in book.capital if matches(product, c.product)), None)
        known = published(product) if book.cost.use_published else None
        utility_w = known.utility_w if known else None
        if own is not None:
            rows.append((product, hourly_micro(own), "book", own.price, utility_w))
        elif known is not None and book.currency == CURRENCY:
            rows.append((product, known.per_gpu_hour, "published", None, utility_w))
        else:
            rows.append((product, None, None, None, utility_w))
    return pl.DataFrame(rows, schema=CAPITAL_COLUMNS, orient="row")


def hourly_micro(capital: Capital) -> int:
    """Micro-units per GPU-hour: as given, or the annuity that pays the price off in its life, per hour of 365 days."""
    if capital.per_gpu_hour is not None:
        return capital.per_gpu_hour
    assert capital.price is not None
    assert capital.life_years is not None
    years = Decimal(capital.life_years) / MICRO
    rate = Decimal(capital.interest) / MICRO
    yearly = capital.price / years if rate == 0 else capital.price * rate / (1 - (1 + rate) ** -years)
    return round(yearly / _HOURS_A_YEAR)
