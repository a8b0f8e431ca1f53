"""What a runner folds while one input of its stage is further behind than the other."""

import dataclasses
from collections.abc import Sequence

import pytest
from prometheus_client.parser import text_string_to_metric_families
from scripted_log import ScriptedLog
from test_economy_stage import BOOK, START_MS, power, sold, used

from idlewatt.processors import runner
from idlewatt.processors.economy.book_file import parse_book
from idlewatt.processors.economy.config import EconomyConfig
from idlewatt.processors.economy.stage import EconomyStage
from idlewatt.processors.pipeline_figures import PipelineFigures
from idlewatt.processors.runner import Runner
from idlewatt.stream import metric_names as names
from idlewatt.stream import topics
from idlewatt.stream.encoding import encode_rows
from idlewatt.stream.log import Message, Poll
from idlewatt.stream.records import POWER, TOKENS, USAGE

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


@pytest.mark.parametrize(("room_for", "least", "most"), [(MINUTES - 1, 0.97, 1), (MINUTES // 2, 0.5, 0.9)])
def test_what_waits_for_usage_is_bounded(
    monkeypatch: pytest.MonkeyPatch, room_for: int, least: float, most: float
) -> None:
    """What there is no room for is sold as nobody's, and no more than that."""
    monkeypatch.setattr(runner, "GATHER_BYTES", room_for * len(ledger(range(1))[0].packed))
    assert least < premium_share(monkeypatch, NOW_MS, backlog()) < most


@pytest.mark.parametrize(("site", "ahead_s", "rows"), [("s", -60, 20), ("other", -1, 80), ("other", 600, 80)])
def test_no_clock_that_is_ahead_ends_the_wait(
    monkeypatch: pytest.MonkeyPatch, site: str, ahead_s: int, rows: int
) -> None:
    """Whether rows say that they are of now, those of another site are, or are refused."""
    odd = dataclasses.replace(used(MINUTES, 1), site=site, ts_ms=NOW_MS + 1000 * ahead_s)
    ahead = Message(topics.USAGE, 0, MINUTES, encode_rows(USAGE, [odd] * rows))
    polls = [dataclasses.replace(told, messages=[*told.messages, ahead]) for told in backlog()]
    assert premium_share(monkeypatch, NOW_MS, polls) > 0.97


@pytest.mark.parametrize(("place", "behind"), [(0, 0), (3, 180)])
def test_usage_of_one_site_ends_no_wait_for_that_of_another(
    monkeypatch: pytest.MonkeyPatch, place: int, behind: int
) -> None:
    """Sites of a partition are live while the usage of another comes in late."""
    live = dataclasses.replace(used(MINUTES, 1), site="live", ts_ms=NOW_MS - 1000)
    alone = poll([Message(topics.USAGE, 0, MINUTES, encode_rows(USAGE, [live]))], behind)
    polls = backlog()
    assert premium_share(monkeypatch, NOW_MS, [*polls[:place], alone, *polls[place:]]) > 0.97


def test_engines_without_gpus_have_no_lag(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their pool's tokens are read, and it has no watts whose windows could end."""
    monkeypatch.setattr(EconomyStage, "gather_s", 0.0)
    book, figures = parse_book(BOOK.encode(), "book"), PipelineFigures()
    log = ScriptedLog([Poll(assigned={0: None}), poll(ledger(range(60)), 0)])
    stage = EconomyStage(lambda: book, EconomyConfig())
    economy = Runner(stage, log, lambda: START_MS + 3_600_000, figures, lambda _: None)
    for _ in range(2):
        economy.step(0)
    (lag,) = (metric for metric in figures.collect() if metric.name == names.EVENT_TIME_LAG.name)
    assert [sample.value for sample in lag.samples] == [50.0]


def test_what_waits_is_seen_in_the_lag(monkeypatch: pytest.MonkeyPatch) -> None:
    """It grows while nothing is folded."""
    clock_ms, lags = START_MS + 3_600_000, []
    row = dataclasses.replace(power(180), window_ms=0)
    watts = [Message(topics.LEDGER, 0, number, encode_rows(POWER, [row])) for number in range(2)]
    log = ScriptedLog([Poll(assigned={0: None}), poll(watts[:1], 0)])
    monkeypatch.setattr(EconomyStage, "gather_s", 0.0)
    book, figures = parse_book(BOOK.encode(), "book"), PipelineFigures()
    stage = EconomyStage(lambda: book, EconomyConfig())
    economy = Runner(stage, log, lambda: clock_ms, figures, lambda _: None)
    for _ in range(4):
        economy.step(0)
        told = [
            sample
            for metric in figures.collect()
            if metric.name == names.EVENT_TIME_LAG.name
            for sample in metric.samples
        ]
        lags.append([sample.value for sample in told])
        clock_ms += 600_000
        log.polls = log.polls or [poll(watts[1:], None)]
    assert lags == [[], [2400.0], [3000.0], [3600.0]]


@pytest.mark.parametrize(
    ("now_ms", "behind"), [(NOW_MS, 0), (START_MS + 60_000 * 60, 7)], ids=["read", "recent"]
)
def test_nothing_waits_for_usage_that_is_not_behind(
    monkeypatch: pytest.MonkeyPatch, now_ms: int, behind: int
) -> None:
    """It may be told seldom; and where it is told all the time there is always some that is not read yet."""
    polls = [
        poll(usage(range(55)), behind),
        poll(usage(range(55, 60)), behind),
        poll(ledger(range(60)), behind),
    ]
    assert premium_share(monkeypatch, now_ms, polls) > 0.9


def test_tokens_wait_while_usage_has_no_leader(monkeypatch: pytest.MonkeyPatch) -> None:
    """How far it goes is not known then."""
    polls = [poll(ledger(range(60)), None), poll([], None), poll(usage(range(60)), 0)]
    assert premium_share(monkeypatch, NOW_MS, polls[:2]) == 0
    assert premium_share(monkeypatch, NOW_MS, polls) > 0.9
