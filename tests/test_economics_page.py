"""docs/economics.md: its example, computed from its own numbers by the code that prices ledgers."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from stage_driver import Driver, Message

from idlewatt.processors.economy.book_file import parse_book
from idlewatt.processors.economy.capital import capital_frame
from idlewatt.processors.economy.config import EconomyConfig
from idlewatt.processors.economy.stage import EconomyStage
from idlewatt.processors.economy.state import EconomyState
from idlewatt.processors.published import TABLE
from idlewatt.stream import topics
from idlewatt.stream.records import POWER, TOKENS, USAGE, PowerRow, TokenRow, UsageRow

PAGE = (Path(__file__).parent.parent / "docs" / "economics.md").read_text(encoding="utf-8")
BOOK = parse_book(PAGE.partition("```toml\n")[2].partition("```")[0].encode(), "docs/economics.md")
H100 = "NVIDIA H100 80GB HBM3"
MINUTE_MS = 60_000
HOUR_BEFORE_MS = 1_760_000_040_000 - 30 * MINUTE_MS
START_MS = 1_760_000_040_000
KINDS = ("output_tokens", "input_tokens", "cached_input_tokens")


def table(title: str) -> list[list[str]]:
    """The rows of the page's table whose heading begins with `title`."""
    lines = PAGE.partition(f"| {title} |")[2].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def whole(text: str) -> int:
    return int(text.replace(",", ""))


def printed(figure: Sequence[str]) -> Any:
    """The value, to half of its last digit."""
    text = figure[2].replace(",", "")
    return pytest.approx(float(text), rel=0, abs=0.51 * 10 ** -len(text.partition(".")[2]))


FIGURES = table("figure")


def tokens(pool: str, counts: Sequence[int], at_ms: int) -> TokenRow:
    return TokenRow(
        site="hall",
        pool=pool,
        window_start_ms=at_ms,
        window_ms=MINUTE_MS,
        node="n",
        engine="e",
        model_name="llama",
        advance="step",
        serving_mj=216_000_000,
        measured_ms=MINUTE_MS,
        silent_ms=0,
        **dict(zip(KINDS, counts, strict=True)),
    )


def power(state: str, cells: Sequence[str]) -> PowerRow:
    seconds, drawn, headroom, lost_draw, lost_headroom = (whole(cell) for cell in cells)
    return PowerRow(
        site="hall",
        pool="chat",
        window_start_ms=START_MS,
        window_ms=MINUTE_MS,
        product=H100,
        model_name="llama",
        state=state,
        demand="none",
        gpu_ms=seconds * 1000,
        draw_mj=drawn * 1000,
        headroom_mj=headroom * 1000,
        estimated_mj=0,
        lost_tokens_draw=lost_draw,
        lost_tokens_headroom=lost_headroom,
    )


@pytest.fixture(scope="module")
def series() -> dict[str, list[tuple[dict[str, str], float]]]:
    """What /metrics would show after the page's hour and minute."""
    driver: Driver[EconomyState] = Driver(EconomyStage(lambda: BOOK, EconomyConfig()))
    (engines, *teams) = table("whose, in the hour before")
    # another pool of the site, so that the minute is all that this one knows
    driver.append(
        [Message(topics.LEDGER, TOKENS, [tokens("other", [whole(c) for c in engines[2:]], HOUR_BEFORE_MS)])]
    )
    driver.fold(START_MS)
    usage: list[Any] = [
        UsageRow(
            ts_ms=HOUR_BEFORE_MS,
            site="hall",
            source="gateway",
            event_id=who,
            team=who.removeprefix("team "),
            model_name="llama",
            tier=tier,
            **dict(zip(KINDS, map(whole, counts), strict=True)),
        )
        for who, tier, *counts in teams
    ]
    driver.append([Message(topics.USAGE, USAGE, usage)])
    driver.fold(START_MS)
    made = re.search(r"made ([\d,]+) output tokens from ([\d,]+) input tokens and ([\d,]+) cached", PAGE)
    assert made
    driver.append(
        [
            Message(topics.LEDGER, TOKENS, [tokens("chat", [whole(n) for n in made.groups()], START_MS)]),
            Message(topics.LEDGER, POWER, [power(state, cells) for state, *cells in table("in the minute")]),
        ]
    )
    driver.fold(START_MS + MINUTE_MS)
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in driver.stage.families([driver.state]):
        for sample in family.samples:
            # the hour before is of another pool
            if sample.labels.get("pool") != "other":
                found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


@pytest.mark.parametrize("figure", FIGURES, ids=[figure[0] for figure in FIGURES])
def test_the_arithmetic_gives_the_value(figure: list[str]) -> None:
    """What stands under "by hand" comes to the value, to its last digit."""
    by_hand = figure[1]
    assert re.fullmatch(r"[\d. x/()+-]+", by_hand)
    assert eval(by_hand.replace("x", "*")) == printed(figure)


@pytest.mark.parametrize("figure", [f for f in FIGURES if f[3]], ids=[f[0] for f in FIGURES if f[3]])
def test_the_code_gives_the_value(
    figure: list[str], series: dict[str, list[tuple[dict[str, str], float]]]
) -> None:
    """The series that the page names adds up to the value."""
    name, _, labels = figure[3].strip("`").partition("{")
    wanted = dict(re.findall(r'(\w+)="([^"]*)"', labels))
    values = [value for found, value in series[name] if wanted.items() <= found.items()]
    assert values, f"no series {figure[3]}"
    assert sum(values) == printed(figure)


def test_what_has_no_series_is_what_the_code_reckons_with() -> None:
    """The GPU-hour of the page's book."""
    assert capital_frame(BOOK, [H100]).item(0, "per_gpu_hour") == 1_800_000


def test_the_published_table_is_the_codes() -> None:
    """Every published figure stands on the page as the code has it."""
    rows = [
        (float(hour), float(kw), float(yardstick) if yardstick else None)
        for _, hour, kw, yardstick in table("product")
    ]
    assert rows == [
        (entry.per_gpu_hour / 1e6, entry.utility_w / 1e3, entry.tokens_per_joule) for entry in TABLE
    ]
