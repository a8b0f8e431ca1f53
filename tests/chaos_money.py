"""Money a second time: docs/metering.md, "Money", in plain Python over the rows of the ledger."""

import fnmatch
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, Final

from idlewatt.processors.economy.book import Book, Price
from idlewatt.stream import records

HOUR_MS: Final = 3_600_000
MICRO: Final = 1_000_000
# 150 bn USD a year of 1 GW, in micro-dollars per millijoule
BENCHMARK: Final = (25, 5256)
IDLE_PARTS: Final = ("idle_loaded.draw", "idle_loaded.headroom", "idle_free.draw", "idle_free.headroom")
MJ_PER_KWH: Final = 3_600_000_000
Row = Mapping[str, Any]
# site, pool, window, model, kind, state, part, demand, currency
Key = tuple[str, str, int, str, str, str, str, str, str]


def money(ledger: Iterable[tuple[str, Row]], book: Book, min_tokens: int) -> dict[Key, int]:
    """Micro-units by window, of ledger rows in the order in which they were written."""
    total: dict[Key, int] = defaultdict(int)
    # (site, pool) -> (window, model, output tokens, worth in micro-units x 10^6) of what was sold
    sold: dict[tuple[str, str], list[tuple[int, str, int, int]]] = defaultdict(list)
    for name, row in ledger:
        if name == records.TOKENS.name:
            _sell(total, sold, row, book)
        elif name == records.POWER.name:
            _lose(total, sold[row["site"], row["pool"]], row, book, min_tokens)
            _cost(total, row, book)
    return {key: amount for key, amount in total.items() if amount}


def _sell(total: dict[Key, int], sold: Any, row: Row, book: Book) -> None:
    price = _price(row["model_name"], book)
    if price is None:
        return
    worth = sum(
        row[f"{kind}_tokens"] * amount
        for kind, amount in (
            ("output", price.output),
            ("input", price.input),
            ("cached_input", price.input if price.cached_input is None else price.cached_input),
        )
    )
    site, pool, window, model = row["site"], row["pool"], row["window_start_ms"], row["model_name"]
    total[site, pool, window, model, "revenue", "", "", "", book.currency] += _by_turns(worth, MICRO, window)
    sold[site, pool].append((window, model, row["output_tokens"], worth))


def _lose(
    total: dict[Key, int], sold: list[tuple[int, str, int, int]], row: Row, book: Book, min_tokens: int
) -> None:
    window, model = row["window_start_ms"], row["model_name"]
    for counted in IDLE_PARTS:
        state, _, part = counted.partition(".")
        if row["state"] != state:
            continue
        where = (row["site"], row["pool"], window, model)
        how = (state, part, row["demand"])
        benchmark = _by_turns(row[f"{part}_mj"] * BENCHMARK[0], BENCHMARK[1], window)
        total[*where, "benchmark_lost_revenue", *how, "USD"] += benchmark
        yardstick_model = row["yardstick_model"]
        priced = model if yardstick_model is None else yardstick_model
        price = _realised(sold, window, priced, min_tokens, book)
        if price is None and (listed := _price(priced, book)) is not None:
            price = listed.output
        if price is None and not priced:
            price = min((price.output for price in book.price if price.output), default=None)
        tokens = row[f"lost_tokens_{part}"]
        if tokens is not None and price is not None:
            total[*where, "lost_revenue", *how, book.currency] += _by_turns(tokens * price, MICRO, window)


def _cost(total: dict[Key, int], row: Row, book: Book) -> None:
    """A tariff of one price, and GPU-hours of the book's own."""
    tariff = book.tariff
    assert tariff.per_kwh is not None
    assert tariff.pue is not None
    assert not book.cost.use_published
    where = (row["site"], row["pool"], row["window_start_ms"], row["model_name"])
    window = row["window_start_ms"]
    energy = _by_turns(row["draw_mj"] * tariff.pue * tariff.per_kwh, MJ_PER_KWH * MICRO, window)
    total[*where, "energy_cost", row["state"], "", row["demand"], book.currency] += energy
    for capital in book.capital:
        if fnmatch.fnmatchcase(row["product"], capital.product):
            assert capital.per_gpu_hour is not None
            hours = _by_turns(row["gpu_ms"] * capital.per_gpu_hour, HOUR_MS, window)
            total[*where, "capital_cost", row["state"], "", row["demand"], book.currency] += hours


def _realised(
    sold: list[tuple[int, str, int, int]], window: int, model: str, min_tokens: int, book: Book
) -> int | None:
    """Micro-units per million output tokens over the hour up to the window; of all models where there is none.

    Of what made enough output; what brought more than ten times the list price of it counts for ever less.
    """
    output = worth = 0
    hour = [s for s in sold if window - HOUR_MS < s[0] <= window]
    for name in {s[1] for s in hour if not model or s[1] == model}:
        made, brought = (sum(s[i] for s in hour if s[1] == name) for i in (2, 3))
        price = _price(name, book)
        if made >= min_tokens:
            listed = brought if price is None else made * price.output
            if brought > 10 * listed:
                brought = max(listed, 100_000 * listed // (1000 * brought // listed)) if listed else 0
            output, worth = output + made, worth + brought
    return _rounded(worth, output) if output else None


def _price(model: str, book: Book) -> Price | None:
    return next((price for price in book.price if fnmatch.fnmatchcase(model, price.model)), None)


def _rounded(numerator: int, denominator: int) -> int:
    return (2 * numerator + denominator) // (2 * denominator)


def _by_turns(numerator: int, denominator: int, window: int) -> int:
    """Up in as many windows as the fraction says; what is taken back as it was booked."""
    if numerator < 0:
        return -_by_turns(-numerator, denominator, window)
    turn = window // 1000 * 618_034 % 1_000_000
    return (numerator + turn * denominator // 1_000_000) // denominator
