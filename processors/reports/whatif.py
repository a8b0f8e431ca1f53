"""An interval as it would have been at other yields and prices. Nothing but what is changed is changed."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import polars as pl

from idlewatt.processors.economy.book import CONSUMER_KINDS, Amount, Book
from idlewatt.processors.reports.ledger import Interval, Ledger, ledger_span
from idlewatt.stream.records import TOKEN_COUNTS

_ONE = Fraction(1)
_POWER = ("site", "pool", "product", "model_name", "state", "demand")
_ENGINE = ("site", "pool", "node", "engine", "model_name")
_CONSUMER = ("site", "source", *CONSUMER_KINDS, "model_name", "tier")


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


def changed_ledger(ledger: Ledger, changes: Changes, interval: Interval) -> Ledger:
    """The same watts with the other tokens, in the hours of the interval and the one before; not what else steps count.

    Sums of what one engine, consumer or state told are scaled, and not each row, to which a percent may be no token.
    """
    factor = changes.tokens_per_joule
    if factor == _ONE:
        return ledger
    lost = ("lost_tokens_draw", "lost_tokens_headroom")
    inside = ledger_span(interval).has()
    return Ledger(
        ledger.power.with_columns(_scaled(name, factor, inside, _POWER) for name in lost),
        ledger.tokens.with_columns(_scaled(name, factor, inside, _ENGINE) for name in TOKEN_COUNTS),
        ledger.usage.with_columns(_scaled(name, factor, inside, _CONSUMER) for name in TOKEN_COUNTS),
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


def _scaled(name: str, factor: Fraction, inside: pl.Expr, series: Sequence[str]) -> pl.Expr:
    over, under = (pl.lit(number, pl.Int128) for number in factor.as_integer_ratio())
    amount = pl.when(inside).then(pl.col(name).cast(pl.Int128))
    upto = amount.cum_sum().over(series)

    def scaled(sums: pl.Expr) -> pl.Expr:
        return (2 * sums * over + under) // (2 * under)

    more = (scaled(upto) - scaled(upto - amount)).cast(pl.Int64)
    return pl.when(inside).then(more).otherwise(name).alias(name)
