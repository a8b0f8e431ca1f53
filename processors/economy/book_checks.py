"""What a book of the right shape can still have wrong: names that do not exist, times and steps that collide."""

import datetime as dt
import difflib
import itertools
import zoneinfo
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from zoneinfo import ZoneInfo

import polars as pl

from idlewatt.processors.economy.book import MICRO, TOKENS, Book, Price
from idlewatt.processors.economy.currencies import CURRENCIES
from idlewatt.processors.economy.prices import effective_from_ms
from idlewatt.processors.economy.tariff import tariff_faults


def faults(book: Book) -> Iterator[str]:
    """One line for each fault."""
    if book.currency not in CURRENCIES:
        yield f"currency must be a code of ISO 4217, such as USD; it is {book.currency}"
    if not _is_zone(book.time_zone):
        hint = _near(book.time_zone, zoneinfo.available_timezones()) or ", such as Europe/Berlin"
        yield f"time_zone {book.time_zone} is not known{hint}"
    yield from _tier_faults(book)
    yield from _price_faults(book)
    yield from tariff_faults(book.tariff)
    if book.tariff.pue is not None and not MICRO <= book.tariff.pue <= 5 * MICRO:
        yield "[tariff] pue must be 1 to 5"
    yield from _capital_faults(book)
    yield from _envelope_faults(book)


def _is_zone(name: str) -> bool:
    try:
        ZoneInfo(name)
        pl.Series([0]).cast(pl.Datetime("ms", "UTC")).dt.convert_time_zone(name)
    except (ValueError, OSError, zoneinfo.ZoneInfoNotFoundError, pl.exceptions.PolarsError):
        return False
    return True


def _near(name: str, known: Iterable[str]) -> str:
    found = difflib.get_close_matches(name, list(known), n=1)
    return f": did you mean {found[0]}?" if found else ""


def _repeated(values: Iterable[Hashable]) -> list[Hashable]:
    return [value for value, count in Counter(values).items() if count > 1]


def _tier_faults(book: Book) -> Iterator[str]:
    for name in _repeated(tier.name for tier in book.tier):
        yield f"[[tier]] {name} stands there twice"
    names = [tier.name for tier in book.tier]
    if names and book.default_tier not in names:
        yield f"default_tier {book.default_tier} has no [[tier]]{_near(book.default_tier, names)}"
    if not book.is_sold(book.default_tier):
        yield f"default_tier {book.default_tier} is not sold: what nobody claims would earn nothing"


def _price_faults(book: Book) -> Iterator[str]:
    for number, price in enumerate(book.price, 1):
        place = f"[[price]] number {number}"
        if price.tier is not None and price.tier not in book.tiers:
            hint = _near(price.tier, book.tiers) or f"; tiers: {', '.join(book.tiers)}"
            yield f"{place} has the unknown tier {price.tier}{hint}"
        yield from (f"{place} {fault}" for fault in _step_faults(price))
        moment = price.effective_from
        if isinstance(moment, dt.datetime) and (moment.second or moment.microsecond):
            yield f"{place} effective_from must be a whole minute; it is {moment}"
    zone = book.time_zone if _is_zone(book.time_zone) else "UTC"
    numbers: dict[Hashable, int] = {}
    for number, price in enumerate(book.price, 1):
        line = (price.model, price.tier or book.default_tier, effective_from_ms(price, zone))
        if (first := numbers.setdefault(line, number)) != number:
            yield f"[[price]] number {first} and number {number} are for the same model, tier and time"


def _step_faults(price: Price) -> Iterator[str]:
    edges = [step.above_tokens for step in price.steps]
    for lower, upper in itertools.pairwise(edges):
        if upper <= lower:
            yield f"steps overlap: above_mtok {upper / MICRO:g} stands after {lower / MICRO:g}; write them in rising order"


def _capital_faults(book: Book) -> Iterator[str]:
    for product in _repeated(capital.product for capital in book.capital):
        yield f"[[capital]] {product} stands there twice"
    for number, capital in enumerate(book.capital, 1):
        place = f"[[capital]] number {number}"
        bought = capital.price is not None and capital.life_years is not None
        if (capital.per_gpu_hour is not None) == bought or (capital.price is None) != (
            capital.life_years is None
        ):
            yield f"{place} needs either per_gpu_hour, or price and life_years"
        elif capital.interest and not bought:
            yield f"{place} has interest and no price: a per_gpu_hour holds it already"
        elif capital.interest > MICRO:
            yield f"{place} interest must be a fraction such as 0.08, at most 1"


def _envelope_faults(book: Book) -> Iterator[str]:
    names = [envelope.name for envelope in book.envelope]
    for name in _repeated(names):
        yield f"[[envelope]] {name} stands there twice"
    parents = {envelope.name: envelope.within for envelope in book.envelope}
    for envelope in book.envelope:
        place = f"[[envelope]] {envelope.name}"
        if envelope.unit not in (TOKENS, book.currency):
            yield f'{place} unit must be "{TOKENS}" or the book\'s currency "{book.currency}"; it is "{envelope.unit}"'
        elif envelope.unit == TOKENS and envelope.limit != int(envelope.limit):
            yield f"{place} limit must be a whole number of tokens; it is {envelope.limit}"
        elif envelope.unit != TOKENS and (envelope.limit > 10**12 or envelope.limit * MICRO % 1):
            yield f"{place} limit must be at most 10^12, with at most six decimals; it is {envelope.limit}"
        if envelope.within is not None and envelope.within not in parents:
            yield f"{place} lies within the unknown envelope {envelope.within}{_near(envelope.within, names)}"
    told: set[str] = set()
    for name in names:
        circle = _circle(name, parents)
        if circle and told.isdisjoint(circle):
            told.update(circle)
            yield f"[[envelope]] {' within '.join((*circle, circle[0]))}: a circle; take one `within` out"


def _circle(name: str, parents: dict[str, str | None]) -> list[str]:
    """The envelopes from this one round to itself; empty where the way up ends."""
    way = [name]
    while (above := parents.get(way[-1])) is not None and above not in way:
        way.append(above)
    return way if above == name else []
