"""An interval as it would have been at other yields and prices. Nothing but what is changed is changed."""

from dataclasses import dataclass
from fractions import Fraction

import polars as pl

from idlewatt.processors.economy.book import Amount, Book
from idlewatt.processors.reports.ledger import Ledger
from idlewatt.stream.records import TOKEN_COUNTS

_ONE = Fraction(1)


@dataclass(frozen=True, slots=True)
class Changes:
    """What would have been otherwise; factors are exact."""

    # more tokens from the same watts and GPU-hours, everybody's alike; idle watts would have made more as well
    tokens_per_joule: Fraction = _ONE
    # of all tokens, on all tiers and steps
    price: Fraction = _ONE
    # millionths
    pue: Amount | None = None
    # micro-units per kWh at any time, or a factor of what it was
    per_kwh: Amount | None = None
    tariff: Fraction = _ONE


def changed_ledger(ledger: Ledger, changes: Changes) -> Ledger:
    """The same watts with the other tokens."""
    factor = changes.tokens_per_joule
    if factor == _ONE:
        return ledger
    lost = ("lost_tokens_draw", "lost_tokens_headroom")
    return Ledger(
        ledger.power.with_columns(_scaled(name, factor) for name in lost),
        ledger.tokens.with_columns(_scaled(name, factor) for name in TOKEN_COUNTS),
        ledger.usage.with_columns(_scaled(name, factor) for name in TOKEN_COUNTS),
    )


def changed_book(book: Book, changes: Changes) -> Book:
    """The book with the other prices. Steps stay at their volumes."""
    prices = tuple(
        price.model_copy(
            update={
                **_scaled_amounts(price, changes.price),
                "steps": tuple(
                    step.model_copy(update=_scaled_amounts(step, changes.price)) for step in price.steps
                ),
            }
        )
        for price in book.price
    )
    update: dict[str, object] = {}
    if changes.pue is not None:
        update["pue"] = changes.pue
    if changes.per_kwh is not None:
        update |= {"per_kwh": changes.per_kwh, "period": ()}
    elif changes.tariff != _ONE:
        update["per_kwh"] = _times(book.tariff.per_kwh, changes.tariff)
        update["period"] = tuple(
            period.model_copy(update={"per_kwh": _times(period.per_kwh, changes.tariff)})
            for period in book.tariff.period
        )
    tariff = book.tariff.model_copy(update=update)
    return book.model_copy(update={"price": prices, "tariff": tariff})


def _scaled_amounts(priced: object, factor: Fraction) -> dict[str, int | None]:
    return {name: _times(getattr(priced, name), factor) for name in ("output", "input", "cached_input")}


def _times(amount: int | None, factor: Fraction) -> int | None:
    return None if amount is None else round(amount * factor)


def _scaled(name: str, factor: Fraction) -> pl.Expr:
    over, under = (pl.lit(number, pl.Int128) for number in factor.as_integer_ratio())
    return ((2 * pl.col(name).cast(pl.Int128) * over + under) // (2 * under)).cast(pl.Int64).alias(name)
