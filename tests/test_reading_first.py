"""What a runner folds while one input of its stage is further behind than the other."""

import dataclasses
import itertools
from collections.abc import Sequence

import polars as pl
import pytest
from prometheus_client.parser import text_string_to_metric_families
from scripted_log import ScriptedLog
from test_economy_stage import BOOK, START_MS, power, sold, used

from idlewatt.processors import runner
from idlewatt.processors.economy import arriving as arriving_module
from idlewatt.processors.economy.arriving import HOLD_MS, Arriving
from idlewatt.processors.economy.book_file import parse_book
from idlewatt.processors.economy.config import EconomyConfig
from idlewatt.processors.economy.stage import EconomyStage
from idlewatt.processors.gathering import Gathering
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
    """Of all revenue, after each of these was folded and a minute went by."""
    a_minute_later = now_ms + HOLD_MS, dataclasses.replace(polls[-1], messages=[])
    earned = booked(monkeypatch, [*((now_ms, each) for each in polls), a_minute_later])[-1]
    return earned.get("premium", 0.0) / sum(earned.values()) if earned else 0.0


def booked(monkeypatch: pytest.MonkeyPatch, polls: Sequence[tuple[int, Poll]]) -> list[dict[str, float]]:
    """Revenue by tier after each of these was folded at its time."""
    monkeypatch.setattr(EconomyStage, "gather_s", 0.0)
    book, pages, earned = parse_book(BOOK.encode(), "book"), list[bytes](), list[dict[str, float]]()
    log = ScriptedLog([Poll(assigned={0: None}), *(each for _, each in polls)])
    clock_ms = polls[0][0]
    stage = EconomyStage(lambda: book, EconomyConfig())
    economy = Runner(stage, log, lambda: clock_ms, PipelineFigures(), pages.append)
    economy.step(0)
    for clock_ms, _ in polls:  # noqa: B007
        economy.step(0)
        earned.append(
            {
                sample.labels["tier"]: sample.value
                for family in text_string_to_metric_families(pages[-1].decode())
                for sample in family.samples
                if sample.name == names.REVENUE.name
            }
        )
    return earned


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
    told_ms = START_MS + 60_000 * 60
    polls = [
        (told_ms, poll(usage(range(56, 58)), behind)),
        (told_ms, poll(usage(range(58, 60)), behind)),
        (now_ms, poll(ledger(range(56, 60)), behind)),
    ]
    assert booked(monkeypatch, polls)[-1]


def test_tokens_wait_while_usage_has_no_leader(monkeypatch: pytest.MonkeyPatch) -> None:
    """How far it goes is not known then."""
    polls = [poll(ledger(range(60)), None), poll([], None), poll(usage(range(60)), 0)]
    assert premium_share(monkeypatch, NOW_MS, polls[:2]) == 0
    assert premium_share(monkeypatch, NOW_MS, polls) > 0.9


@pytest.mark.parametrize("piece", [60, 20])
def test_tokens_wait_for_usage_that_still_comes_piece_by_piece(
    monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    """Spools come back when Kafka does: each time all is read that is there, and more of it is under way."""
    pieces = [poll(usage(range(first, first + piece)), 0) for first in range(0, MINUTES, piece)]
    pieces[0] = dataclasses.replace(pieces[0], messages=[*ledger(range(MINUTES)), *pieces[0].messages])
    assert premium_share(monkeypatch, NOW_MS, pieces) > 0.97


@pytest.mark.parametrize(("place", "behind"), [(0, 0), (3, 180)])
def test_usage_of_one_site_ends_no_wait_for_that_of_another(
    monkeypatch: pytest.MonkeyPatch, place: int, behind: int
) -> None:
    """Sites of a partition are live while the spool of another comes back."""
    live = dataclasses.replace(used(MINUTES, 1), site="live", ts_ms=NOW_MS - 1000)
    alone = poll([Message(topics.USAGE, 0, MINUTES, encode_rows(USAGE, [live]))], behind)
    polls = backlog()
    assert premium_share(monkeypatch, NOW_MS, [*polls[:place], alone, *polls[place:]]) > 0.97


@pytest.mark.parametrize(("every", "late"), [(10, 0), (10, 10), (20, 20), (60, 0)])
def test_usage_that_is_always_late_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch, every: int, late: int
) -> None:
    """Who tells an hour's usage at its end, or each ten minutes what is as old, is waited for the first time only."""
    polls = []
    for now in range(10, 190, 10):
        end = now - late
        told = usage(range(max(0, end - every), end)) if end > 0 and end % every == 0 else []
        polls.append((START_MS + 60_000 * now, poll([*told, *ledger(range(now - 10, now))], 0)))
    sums = [0.0, *(sum(each.values()) for each in booked(monkeypatch, polls))]
    assert sum(before == after for before, after in itertools.pairwise(sums)) <= 1


def test_a_restart_does_not_end_the_wait() -> None:
    """Who takes a partition over while a backlog comes in waits for its next piece, and no longer than others."""
    stage = EconomyStage(lambda: parse_book(BOOK.encode(), "book"), EconomyConfig())
    rows, none = Gathering(stage), Gathering(stage)
    rows.add(usage(range(60)))
    read = frozenset({topics.USAGE})
    state = stage.fold(stage.empty(), rows.take().batch(stage, NOW_MS, read)).state
    restored = stage.restore(stage.snapshot(state))
    assert stage.waits(restored, none.take().batch(stage, NOW_MS + HOLD_MS - 1, read))
    assert not stage.waits(restored, none.take().batch(stage, NOW_MS + HOLD_MS, read))


def test_many_sources_that_are_late_once_make_no_long_wait() -> None:
    """Each is waited for as if more of it came; all of them together, one after the other, are not."""
    arriving, waited = Arriving(), []
    for number in range(60):
        now_ms = NOW_MS + 10_000 * number
        row = dataclasses.replace(used(0, 1), source=str(number), ts_ms=now_ms - 3_600_000 + 7_000 * number)
        arriving = arriving.after(pl.DataFrame([row]), now_ms)
        waited.append(arriving.late_ms)
    assert waited == [NOW_MS + 60_000 * (number // 6) for number in range(60)]


def test_no_flood_of_sources_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """What late usage is known of is bounded by what one fold reads."""
    monkeypatch.setattr(arriving_module, "MAX_SOURCES", 10)
    arriving = Arriving()
    for first in range(0, 100, 4):
        rows = [dataclasses.replace(used(0, 1), source=str(n)) for n in range(first, first + 4)]
        arriving = arriving.after(pl.DataFrame(rows), NOW_MS)
        assert len(arriving.ages) < 10 + 4
