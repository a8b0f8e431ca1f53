"""Whatever way readings and ledger rows travel, what was sold is the truth's tokens at their price."""

import random
from types import SimpleNamespace
from typing import Any

from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from meter_fleets import Fleet, delivery, fleets
from stage_driver import Driver, Message, sums
from truth import truth

from idlewatt.processors.economy.book_file import parse_book
from idlewatt.processors.economy.config import EconomyConfig
from idlewatt.processors.economy.stage import EconomyStage
from idlewatt.processors.meter.stage import MeterStage
from idlewatt.stream import records, topics
from idlewatt.stream.decoding import decode

MINUTE_MS = 60_000
# whole micro-units per token, so that rounding row by row loses nothing
OUTPUT, INPUT, CACHED = 5, 3, 1
BOOK = f"""
[[price]]
model = "*"
output = {OUTPUT}
input = {INPUT}
cached_input = {CACHED}
"""
KEY = ("site", "pool", "window_start_ms", "model_name")


def ledger_of(fleet: Fleet, rng: random.Random) -> tuple[list[Message], int]:
    """The meter's rows for a fleet whose readings travel at random, and the end of what they tell."""
    meter: Driver[Any] = Driver(MeterStage(fleet.config))
    for arrival in delivery(fleet, rng):
        meter.append(arrival.messages)
        meter.fold(arrival.now_ms)
    edge_ms = -(-arrival.now_ms // MINUTE_MS) * MINUTE_MS
    meter.fold(edge_ms + 2 * fleet.config.grace_ms + fleet.config.window_ms // 2)
    decoded = [decode(record.value) for record in meter.records]
    rows = [(schema, SimpleNamespace(**row)) for schema, frame in decoded for row in frame.to_dicts()]
    return [Message(topics.LEDGER, schema, [row]) for schema, row in rows], edge_ms


@examples(6)
@given(fleets(), st.integers(0, 10**6))
def test_revenue_is_what_was_made_at_its_price(fleet: Fleet, seed: int) -> None:
    """Shuffled, cut anywhere, done again after crashes: every window's revenue is that of the truth's tokens."""
    rng = random.Random(seed)
    messages, edge_ms = ledger_of(fleet, rng)
    rng.shuffle(messages)
    book = parse_book(BOOK.encode(), "book")
    driver = Driver(EconomyStage(lambda: book, EconomyConfig()))
    driver.append(messages)
    driver.commit()
    crashes = 3
    while driver.behind(topics.LEDGER):
        driver.fold(edge_ms, counts={topics.LEDGER: rng.randint(1, 200), topics.USAGE: 0})
        if rng.random() < 0.5:
            driver.commit()
        elif crashes:
            crashes -= 1
            driver.crash()
    sold = [row for row in driver.rows(records.MONEY) if row["kind"] == "revenue"]
    config = fleet.config
    expected = truth(
        fleet.gpu_rows,
        fleet.engine_rows,
        window_ms=config.window_ms,
        grace_ms=config.grace_ms,
        forget_ms=config.forget_ms,
        edge_ms=edge_ms,
        provisioned_mw=config.provisioned_mw,
    )
    made = [
        {
            **dict(zip(KEY, (site, pool, window, model), strict=True)),
            "amount_micro": output * OUTPUT + uncached * INPUT + cached * CACHED,
        }
        for (site, pool, window, _, _, model), (output, uncached, cached, *_) in expected.tokens.items()
    ]
    assert sums(sold, KEY, ("amount_micro",)) == sums(made, KEY, ("amount_micro",))
