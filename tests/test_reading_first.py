"""What a runner folds while one input of its stage is further behind than the other."""

import dataclasses
from collections.abc import Sequence

import pytest
from prometheus_client.parser import text_string_to_metric_families
from scripted_log import ScriptedLog
from test_economy_stage import BOOK, START_MS, sold, used

from idlewatt.processors import gathering, runner
from idlewatt.processors.economy.book_file import parse_book
from idlewatt.processors.economy.config import EconomyConfig
from idlewatt.processors.economy.stage import EconomyStage
from idlewatt.processors.pipeline_figures import PipelineFigures
from idlewatt.processors.runner import Runner
from idlewatt.stream import metric_names as names
from idlewatt.stream import topics
from idlewatt.stream.encoding import encode_rows
from idlewatt.stream.log import Message, Poll
from idlewatt.stream.records import TOKENS, USAGE

MINUTES = 360
NOW_MS = START_MS + 60_000 * MINUTES
MADE = 60_000


def ledger(minutes: range) -> list[Message]:
    rows = [dataclasses.replace(sold(6 * m, MADE), input_tokens=0, cached_input_tokens=0) for m in minutes]
    return [
        Message(topics.LEDGER, 0, m, encode_rows(TOKENS, [row])) for m, row in zip(minutes, rows, strict=True)
    ]


def usage(minutes: range) -> list[Message]:
    rows = [
        dataclasses.replace(used(m, MADE, tier="premium"), input_tokens=0, ts_ms=START_MS + 60_000 * m)
        for m in minutes
    ]
    return [
        Message(topics.USAGE, 0, m, encode_rows(USAGE, [row])) for m, row in zip(minutes, rows, strict=True)
    ]


def poll(messages: Sequence[Message], usage_behind: int | None) -> Poll:
    behind = {(topics.LEDGER, 0): 0} | ({} if usage_behind is None else {(topics.USAGE, 0): usage_behind})
    return Poll(messages, behind=behind)


def premium_share(monkeypatch: pytest.MonkeyPatch, now_ms: int, polls: Sequence[Poll]) -> float:
    """Of all revenue, after each of these was folded."""
    monkeypatch.setattr(EconomyStage, "gather_s", 0.0)
    book, pages = parse_book(BOOK.encode(), "book"), list[bytes]()
    log, stage = ScriptedLog([Poll(assigned={0: None}), *polls]), EconomyStage(lambda: book, EconomyConfig())
    economy = Runner(stage, log, lambda: now_ms, PipelineFigures(), pages.append)
    for _ in range(1 + len(polls)):
        economy.step(0)
    earned = {
        sample.labels["tier"]: sample.value
        for family in text_string_to_metric_families(pages[-1].decode())
        for sample in family.samples
        if sample.name == names.REVENUE.name
    }
    return earned.get("premium", 0.0) / sum(earned.values()) if earned else 0.0


def backlog() -> list[Poll]:
    """All of the ledger comes at once, usage an hour a poll."""
    hours = [usage(range(first, first + 60)) for first in range(0, MINUTES, 60)]
    polls = [poll(hour, MINUTES - 60 * number) for number, hour in enumerate(hours, 1)]
    return [dataclasses.replace(polls[0], messages=[*ledger(range(MINUTES)), *hours[0]]), *polls[1:]]


def test_a_backlog_of_tokens_is_sold_when_usage_has_told_whose_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Usage comes in a hundred times as many messages, so that the ledger would be read long before it."""
    polls = backlog()
    assert premium_share(monkeypatch, NOW_MS, polls[:-1]) == 0
    assert premium_share(monkeypatch, NOW_MS, polls) > 0.97


def test_what_waits_for_usage_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What there is no room for is sold as nobody's."""
    monkeypatch.setattr(runner, "GATHER_BYTES", MINUTES * gathering.LEAST_MESSAGE_BYTES)
    assert 0 < premium_share(monkeypatch, NOW_MS, backlog()) < 0.9


@pytest.mark.parametrize(
    ("now_ms", "behind"), [(NOW_MS, 0), (START_MS + 60_000 * 60, 7)], ids=["read", "recent"]
)
def test_nothing_waits_for_usage_that_is_not_behind(
    monkeypatch: pytest.MonkeyPatch, now_ms: int, behind: int
) -> None:
    """It may be told seldom; and where it is told all the time there is always some that is not read yet."""
    told = usage(range(60))
    polls = [poll(told, behind), poll(ledger(range(60)), behind)]
    assert premium_share(monkeypatch, now_ms, polls) > 0.9


def test_tokens_wait_while_usage_has_no_leader(monkeypatch: pytest.MonkeyPatch) -> None:
    """How far it goes is not known then."""
    polls = [poll(ledger(range(60)), None), poll([], None), poll(usage(range(60)), 0)]
    assert premium_share(monkeypatch, NOW_MS, polls[:2]) == 0
    assert premium_share(monkeypatch, NOW_MS, polls) > 0.9
