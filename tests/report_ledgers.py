"""Random ledgers for reports, and what the economy stage itself makes of them."""

from typing import Any

import polars as pl
from hypothesis import strategies as st
from stage_driver import Driver, Message

from idlewatt.processors.booking import messages
from idlewatt.processors.economy.book import Book
from idlewatt.processors.economy.book_file import parse_book
from idlewatt.processors.economy.config import EconomyConfig
from idlewatt.processors.economy.stage import EconomyStage
from idlewatt.processors.economy.state import EconomyState
from idlewatt.processors.reports.ledger import Interval, Ledger
from idlewatt.stream import records, topics
from idlewatt.stream.frames import frame_schema
from idlewatt.stream.opening import open_appender
from idlewatt.stream.records import CONSUMER, MONEY, POWER, TOKENS, USAGE, PowerRow, TokenRow, UsageRow
from idlewatt.stream.settings import Settings

MINUTE_MS = 60_000
HOUR_MS = 3_600_000
# 2020-10-31T21:00 in New York: three hours of October, then a day of 25 hours
START_MS = 1_604_192_400_000
STATES = ("serving", "idle_loaded", "idle_free", "other", "dark")
CONFIG = EconomyConfig()
BOOK = parse_book(
    b"""
currency = "EUR"
time_zone = "America/New_York"
[[tier]]
name = "standard"
[[tier]]
name = "premium"
[[tier]]
name = "free"
sold = false
[[price]]
model = "llama*"
input = 0.11
cached_input = 0.023
output = 0.57
steps = [{ above_mtok = 0.004, input = 0.05, output = 0.31 }]
[[price]]
model = "llama*"
tier = "premium"
input = 0.40
output = 1.20
[[price]]
model = "qwen"
input = 0.1
output = 0.3
[tariff]
pue = 1.17
[[tariff.period]]
begins = "22:00"
ends = "06:00"
per_kwh = 0.071
[[tariff.period]]
begins = "06:00"
ends = "22:00"
per_kwh = 0.133
[[capital]]
product = "NVIDIA H100*"
per_gpu_hour = 1.93
""",
    "book",
)

# what is given away, free of charge and cheap
GIVING_BOOK = parse_book(
    b"""
currency = "EUR"
[[tier]]
name = "standard"
[[tier]]
name = "free"
sold = false
[[price]]
model = "nothing"
input = 0
output = 0
[[price]]
model = "cheap"
input = 1
output = 1
""",
    "book",
)


def power(**given: Any) -> PowerRow:
    return PowerRow(
        **{
            "site": "hall",
            "pool": "chat",
            "window_start_ms": START_MS,
            "window_ms": 10_000,
            "product": "NVIDIA H100 80GB HBM3",
            "model_name": "llama",
            "state": "serving",
            "demand": "none",
            "gpu_ms": 10_000,
            "draw_mj": 5_000_000,
            "headroom_mj": 2_000_000,
            "estimated_mj": 0,
            "lost_tokens_draw": 0,
            "lost_tokens_headroom": 0,
        }
        | given
    )


def tokens(**given: Any) -> TokenRow:
    return TokenRow(
        **{
            "site": "hall",
            "pool": "chat",
            "window_start_ms": START_MS,
            "window_ms": 10_000,
            "node": "n",
            "engine": "e",
            "model_name": "llama",
            "advance": "step",
            "output_tokens": 20_000,
            "input_tokens": 40_000,
            "cached_input_tokens": 10_000,
            "serving_mj": 1,
            "measured_ms": 10_000,
            "silent_ms": 0,
        }
        | given
    )


def usage(number: int, **given: Any) -> UsageRow:
    return UsageRow(
        **{
            "ts_ms": START_MS,
            "site": "hall",
            "source": "gateway",
            "event_id": str(number),
            "team": "search",
            "model_name": "llama",
            "output_tokens": 100,
        }
        | given
    )


SITES = st.sampled_from(("hall", "annex"))
POOLS = st.sampled_from(("chat", "code"))
MODELS = st.sampled_from(("llama", "qwen", "nobody-prices-it"))
COUNT = st.integers(0, 90_000)
# windows of three hours
WINDOWS = st.integers(0, 3 * 360 - 1).map(lambda n: START_MS + n * 10_000)
POWERS = st.builds(
    lambda state, model, lost, rest: power(
        state=state,
        model_name=model if state in ("serving", "idle_loaded") else "",
        lost_tokens_draw=None if lost is None else lost * state.startswith("idle"),
        lost_tokens_headroom=None if lost is None else 3 * lost * state.startswith("idle"),
        **rest,
    ),
    st.sampled_from(STATES),
    MODELS,
    st.none() | COUNT,
    st.fixed_dictionaries(
        {
            "site": SITES,
            "pool": POOLS,
            "window_start_ms": WINDOWS,
            "product": st.sampled_from(("NVIDIA H100 80GB HBM3", "NVIDIA B200", "unheard of")),
            "gpu_ms": st.integers(-1000, 80_000),
            "draw_mj": st.integers(-1000, 60_000_000),
            "headroom_mj": st.integers(-1000, 60_000_000),
        }
    ),
)
TOKEN_ROWS = st.builds(
    tokens,
    site=SITES,
    pool=POOLS,
    window_start_ms=WINDOWS,
    model_name=MODELS,
    # also fewer than a price is made of
    output_tokens=COUNT | st.integers(0, 200),
    input_tokens=COUNT,
    cached_input_tokens=COUNT,
)
NAMES = st.none() | st.sampled_from(("a", "b", "<i>c"))
EVENTS = st.builds(
    lambda start_ms, row: {"ts_ms": start_ms} | row,
    WINDOWS,
    st.fixed_dictionaries(
        {
            "site": SITES,
            "team": NAMES,
            "engineer": NAMES,
            "model_name": MODELS,
            "tier": st.none() | st.sampled_from(("free", "premium", "unheard of")),
            "output_tokens": COUNT,
            "input_tokens": COUNT,
            "cached_input_tokens": COUNT,
        }
    ),
)
POWER_LISTS = st.lists(POWERS, min_size=1, max_size=25)
TOKEN_LISTS = st.lists(TOKEN_ROWS, max_size=20)
EVENT_LISTS = st.lists(EVENTS, max_size=15)
MINUTES = st.integers(0, 180).map(lambda n: START_MS + n * MINUTE_MS)
WHOLE = Interval(START_MS, START_MS + 3 * HOUR_MS)


def frame(schema: records.Schema, rows: list[Any]) -> pl.DataFrame:
    columns = frame_schema(schema)
    return pl.DataFrame({name: [getattr(row, name) for row in rows] for name in columns}, schema=columns)


class Booked:
    """A ledger folded by the stage that books money, and the ledger as a report finds it."""

    def __init__(
        self,
        powers: list[PowerRow],
        token_rows: list[TokenRow],
        events: list[dict[str, Any]],
        batch: int = 1000,
        book: Book = BOOK,
        before_usage: int = 0,
    ) -> None:
        stage = EconomyStage(lambda: book, CONFIG)
        self.driver: Driver[EconomyState] = Driver(stage)
        self.driver.append(
            Message(topics.USAGE, USAGE, [usage(n, **event)]) for n, event in enumerate(events)
        )
        # as the meter writes: window by window, tokens first
        for start_ms in sorted({row.window_start_ms for row in (*powers, *token_rows)}):
            here = ([row for row in rows if row.window_start_ms == start_ms] for rows in (token_rows, powers))
            for schema, rows in zip((TOKENS, POWER), here, strict=True):
                self.driver.append([Message(topics.LEDGER, schema, rows)] if rows else [])
        now_ms = max((START_MS + 4 * HOUR_MS, *(event.get("ts_ms", START_MS) for event in events)))
        self.driver.fold(now_ms, {topics.LEDGER: before_usage, topics.USAGE: 0})
        while any(map(self.driver.behind, stage.inputs)):
            self.driver.fold(now_ms, dict.fromkeys(stage.inputs, batch))
        self.money = pl.DataFrame(self.driver.rows(MONEY), schema=frame_schema(MONEY))
        self.spent = pl.DataFrame(self.driver.rows(CONSUMER), schema=frame_schema(CONSUMER))
        self.ledger = Ledger(frame(POWER, powers), frame(TOKENS, token_rows), self.spent)


def write_ledger(settings: Settings, booked: Booked) -> None:
    """The rows into a log, as the stages write them."""
    appender = open_appender(settings, "test")
    appender.append(
        [
            *messages(topics.LEDGER, TOKENS, booked.ledger.tokens),
            *messages(topics.LEDGER, POWER, booked.ledger.power),
            *messages(topics.MONEY, CONSUMER, booked.ledger.usage),
        ]
    )
    appender.close()
