"""Money does not depend on which ledger messages are read together."""

import os
import resource
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import polars as pl
import pytest

from idlewatt.processors.economy.book import Book
from idlewatt.processors.economy.book_file import parse_book
from idlewatt.processors.economy.config import EconomyConfig
from idlewatt.processors.economy.pricing import MIX_COLUMNS, idle_losses
from idlewatt.processors.economy.stage import EconomyStage
from idlewatt.processors.stage import Batch
from idlewatt.stream import records, topics
from idlewatt.stream.decoding import decode
from idlewatt.stream.encoding import encode_rows
from idlewatt.stream.frames import empty_frame
from idlewatt.stream.records import POWER, TOKENS, USAGE, PowerRow, TokenRow

START_MS = 1_700_000_000_000
BOOK = parse_book(
    b"""
[cost]
use_published = false
[[price]]
model = "*"
output = 0.35
input = 0.1
""",
    "book",
)
Messages = Sequence[TokenRow | PowerRow]


def sold(window: int, tokens: int, engine: str = "e", inputs: int = 3) -> TokenRow:
    return TokenRow(
        site="s",
        pool="p",
        window_start_ms=START_MS + window * 10_000,
        window_ms=10_000,
        node="n",
        engine=engine,
        model_name="m",
        advance="step",
        output_tokens=tokens,
        input_tokens=inputs * tokens,
        cached_input_tokens=0,
        serving_mj=0,
        measured_ms=10_000,
        silent_ms=0,
    )


def idle(window: int, lost: int) -> PowerRow:
    return PowerRow(
        site="s",
        pool="p",
        window_start_ms=START_MS + window * 10_000,
        window_ms=10_000,
        product="H100",
        model_name="m",
        state="idle_loaded",
        demand="none",
        gpu_ms=10_000,
        draw_mj=lost * 500,
        headroom_mj=0,
        estimated_mj=0,
        lost_tokens_draw=lost,
        lost_tokens_headroom=0,
    )


def booked(messages: Messages, sizes: Sequence[int], book: Book = BOOK) -> dict[tuple[str, int], int]:
    """Micro-units by kind and window, of one-row messages folded in batches of the sizes."""
    stage = EconomyStage(lambda: book, EconomyConfig())
    state, total, at = stage.empty(), Counter[tuple[str, int]](), 0
    for size in sizes:
        frames = {
            schema.name: pl.concat(
                [empty_frame(schema).with_columns(pl.lit(None, pl.Int64).alias("src"))]
                + [
                    decode(encode_rows(schema, [row]))[1].with_columns(pl.lit(at + i, pl.Int64).alias("src"))
                    for i, row in enumerate(messages[at : at + size])
                    if isinstance(row, schema.row)
                ]
            )
            for schema in (POWER, TOKENS, USAGE)
        }
        folded = stage.fold(state, Batch(frames, START_MS, frozenset({topics.LEDGER})))
        # as after a restart
        state = stage.restore(stage.snapshot(folded.state))
        for record in folded.records:
            schema, frame = decode(record.value)
            assert schema is records.MONEY
            for row in frame.to_dicts():
                total[row["kind"], row["window_start_ms"]] += row["amount_micro"]
        at += size
    assert at == len(messages)
    return dict(total)


@pytest.mark.parametrize("sizes", [[6], [2, 4], [3, 3], [5, 1], [4, 1, 1]], ids=str)
def test_money_is_the_same_however_the_ledger_is_read(sizes: list[int]) -> None:
    """Neither roundings nor an amendment that comes later depend on what else is in the batch."""
    messages = [
        *(sold(0, 1), sold(0, 1, "other"), idle(0, 1_000_001), sold(1, 7)),
        # an amendment of the window whose loss is priced already
        *(sold(0, 10_001, inputs=7), idle(1, 333_333)),
    ]
    assert booked(messages, sizes) == booked(messages, [1] * 6)


@pytest.mark.parametrize(("late", "priced_at"), [(40, 20), (300, 0)])
def test_late_losses_have_a_whole_hours_price(late: int, priced_at: int) -> None:
    """Told minutes late, by the hour up to their window; hours late, by the hour up to one before the newest.

    However the ledger is read. `late`, and when the price's hour begins: minutes after the first window.
    """
    # the price of output falls minute by minute; the newest window ends at the second hour's end
    minutes = [replace(sold(6 * minute, 1000), input_tokens=30_000 - 10 * minute) for minute in range(120)]
    messages = [
        row for told in minutes for row in (told, replace(idle(0, 0), window_start_ms=told.window_start_ms))
    ]
    newest = messages[-1].window_start_ms + 10_000
    lost = replace(idle(0, 10**6), window_start_ms=newest - late * 60_000)
    within = range(priced_at, priced_at + 60)
    found = [booked([*messages, lost], sizes) for sizes in ([241], [120, 1, 120], [60, 61, 60, 60])]
    mean = 30 - sum(within) / 6000
    assert found[0] == found[1] == found[2]
    assert found[0]["lost_revenue", lost.window_start_ms] == 350_000 + 100_000 * mean


@pytest.mark.parametrize(("first", "price"), [(0, 650), (1, 850)])
def test_a_loss_is_priced_by_the_hour_up_to_its_window(first: int, price: int) -> None:
    """What the window an hour before it sold counts no more."""
    # at 1.05 and 0.65 micro-units per output token
    messages = [sold(first, 1000, inputs=7), sold(360, 1000), idle(360, 1000)]
    assert booked(messages, [3])["lost_revenue", START_MS + 3_600_000] == price


def test_a_loss_is_priced_by_what_the_ledger_had_told() -> None:
    """The realised price of a window counts its own tokens and none that were booked after its loss."""
    # 0.35 + 3 x 0.1 micro-units per output token
    assert (
        booked([sold(0, 1000), idle(0, 1000), sold(0, 10**6, inputs=7)], [3])["lost_revenue", START_MS] == 650
    )


@pytest.mark.parametrize(
    ("made", "inputs", "price"),
    [
        *((1, 25, 350), (99, 25, 350), (100, 25, 2850), (100, 31, 3450)),
        *((10**7, 32, 3450), (10**7, 100, 1183), (10**7, 347, 350), (10**7, 1000, 350)),
    ],
)
def test_no_price_is_made_of_a_few_tokens_or_of_prompts(made: int, inputs: int, price: int) -> None:
    """Not of a long prompt whose answer has only begun; beyond ten times the list price ever less, without a leap."""
    messages = [sold(0, made, inputs=inputs), idle(0, 1000)]
    assert booked(messages, [2])["lost_revenue", START_MS] == price


def test_free_gpus_are_valued_by_the_models_that_live_by_output() -> None:
    """An embedding model in the pool, or one that was hardly used, makes no watt of free GPUs dearer."""
    messages = [
        sold(0, 1000),
        replace(sold(0, 0, "embeds"), model_name="embedding", input_tokens=10**9),
        replace(sold(0, 200, "sorts"), model_name="classifier", input_tokens=10**9),
        replace(sold(0, 10, "sleeps"), model_name="rare", input_tokens=10**6),
        replace(idle(0, 1000), model_name="", state="idle_free"),
    ]
    assert booked(messages, [5])["lost_revenue", START_MS] == (1000 * 650 + 200 * 350) / 1200


def named(*prices: str, tiers: str = "") -> Book:
    lines = ", ".join(f"{{ {price} }}" for price in prices)
    return parse_book(f"price = [{lines}]\ntier = [{tiers}]\ncost.use_published = false".encode(), "book")


@pytest.mark.parametrize(
    ("yardstick_model", "lost"), [("m", 350), ("other", 3000), (None, 200), ("no price", None)]
)
def test_free_gpus_of_a_quiet_pool_are_valued_by_the_model_whose_yield_they_would_have(
    yardstick_model: str | None, lost: int | None
) -> None:
    """By its list price, although no line of the book is for all models; where nobody knows it, by the least that is one.

    One that has no price has none of another's, for that goes with another yield.
    """
    book = named(
        'model = "m", input = 0.1, output = 0.35',
        'model = "other", input = 0.1, output = 3',
        'model = "other", input = 0.1, output = 0.01, effective_from = 2100-01-01',
        'model = "small", input = 0.1, output = 0.2',
        'model = "embeds", input = 0.1, output = 0',
    )
    free = replace(idle(0, 1000), model_name="", state="idle_free", yardstick_model=yardstick_model)
    assert booked([free], [1], book).get(("lost_revenue", START_MS)) == lost


def test_what_another_models_yield_would_have_made_is_sold_at_that_models_price() -> None:
    """A large model that is hardly used has the yield of the small one beside it, and so its price."""
    book = named('model = "m", input = 0.1, output = 0.05', 'model = "large", input = 0.1, output = 3')
    messages = [
        *(sold(0, 1000, inputs=0), replace(sold(0, 1000, "large", inputs=0), model_name="large")),
        replace(idle(0, 1000), model_name="large", yardstick_model="m"),
    ]
    assert booked(messages, [3], book)["lost_revenue", START_MS] == 50


def test_a_price_that_falls_takes_a_loss_down_with_it() -> None:
    """What was sold before it was halved is now at 14 times its list price: that digs no hole, nor leaves the loss as it was."""
    book = named(
        'model = "m", input = 0.1, output = 0.4',
        'model = "m", input = 0.05, output = 0.2, effective_from = 2023-11-14T22:43:00Z',
    )
    minutes = [row for n in range(0, 720, 6) for row in (sold(n, 1000, inputs=24), idle(n, 1000))]
    found = booked(minutes, [len(minutes)], book)
    lost = [found["lost_revenue", START_MS + n * 60_000] for n in range(120)]
    assert {lost[n] for n in range(30)} == {2800}
    assert all(1400 <= amount <= 2000 for amount in lost[30:])
    assert lost[-1] == 1400


def test_a_default_tier_that_costs_nothing_does_not_value_what_others_pay_for() -> None:
    """What nobody claims is on the tier of the house, which has no price; all is sold on the other."""
    book = named(
        'model = "m", input = 0.5, output = 0',
        'model = "m", input = 0.5, output = 3, tier = "paid"',
        tiers='{ name = "standard" }, { name = "paid" }',
    )
    mix = pl.DataFrame(
        [("s", "p", "m", START_MS, 1000, 4_500_000_000, -1)],
        schema={**MIX_COLUMNS, "src": pl.Int64},
        orient="row",
    )
    power = decode(encode_rows(POWER, [idle(0, 1000)]))[1].with_columns(src=pl.lit(0, pl.Int64))
    assert idle_losses(power, mix, book, EconomyConfig())["lost_micro"].to_list() == [4500, 0]


def test_the_benchmark_of_any_energy_has_its_sign() -> None:
    """The most joules that a window may hold, at 17.12 USD per kWh."""
    row = replace(idle(0, 0), draw_mj=2**60)
    found = booked([row], [1])
    assert found["benchmark_lost_revenue", START_MS] == round(Fraction(2**60 * 150_000, 3600 * 8760))


def fold_a_day() -> None:
    """A day of one pool's windows in one batch; prints the peak of memory it took, in MiB."""
    windows = pl.DataFrame({"window_start_ms": [START_MS + 10_000 * window for window in range(8640)]})
    windows = windows.with_row_index("src").with_columns(pl.col("src").cast(pl.Int64))
    frames = {
        schema.name: decode(encode_rows(schema, [row]))[1].drop("window_start_ms").join(windows, how="cross")
        for schema, row in ((TOKENS, sold(0, 1000)), (POWER, idle(0, 1000)))
    }
    frames[USAGE.name] = empty_frame(USAGE).with_columns(src=pl.lit(None, pl.Int64))
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    stage = EconomyStage(lambda: BOOK, EconomyConfig())
    stage.fold(stage.empty(), Batch(frames, START_MS, frozenset({topics.LEDGER})))
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib) // 1024)


def test_a_ledger_of_a_day_that_waited_fits_in_memory() -> None:
    """After an outage of the economy all of it comes at once; what is a day apart is not held against each other."""
    command = [sys.executable, "-c", f"import {__name__}; {__name__}.fold_a_day()"]
    tests = str(Path(__file__).parent)
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": tests},
    )
    assert int(done.stdout.splitlines()[-1]) < 600
