"""GET /v1/envelopes/{consumer} says what may still be used, from memory, and never what is not known."""

import gc
import json
import time
import urllib.error
import urllib.parse
import urllib.request
import weakref
from http import HTTPStatus
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from idlewatt_command import Serving, serving, wait_until
from stage_driver import Driver, Message

from idlewatt.processors.economy import envelope_answers
from idlewatt.processors.economy.book_file import parse_book
from idlewatt.processors.economy.config import EconomyConfig
from idlewatt.processors.economy.envelope_answers import PATH, STALE_MS, EnvelopeAnswers
from idlewatt.processors.economy.stage import EconomyStage
from idlewatt.stream import topics
from idlewatt.stream.http_routes import Answer, Request
from idlewatt.stream.records import USAGE, UsageRow

# a Monday, and the first day of a month
START_MS = 1_780_272_000_000
HOUR_MS = 3_600_000
TOKEN = "the token of this test"
BOOK = """
[[price]]
model = "m"
input = 0
output = 1
[[envelope]]
name = "research"
kind = "function"
match = "research"
limit = 1000
unit = "USD"
period = "month"
[[envelope]]
name = "engineers"
kind = "engineer"
match = "*"
each = true
limit = 100
unit = "USD"
period = "day"
within = "research"
[[envelope]]
name = "new engineers"
kind = "engineer"
match = "new-*"
each = true
limit = 5_000_000
unit = "tokens"
period = "day"
within = "engineers"
[[envelope]]
name = "agents"
kind = "agent_family"
match = "support-*"
limit = 50_000_000
unit = "tokens"
period = "week"
"""


def event(number: int, at_ms: int, mtok: int, **names: str) -> UsageRow:
    told: dict[str, Any] = {"site": "hall", "source": "s", "model_name": "m", "engineer": "kim"} | names
    return UsageRow(ts_ms=at_ms, event_id=str(number), output_tokens=mtok * 1_000_000, **told)


class Desk:
    """Answers over a stage that reads events, as a runner would tell them."""

    def __init__(self, *events: UsageRow) -> None:
        self.book = parse_book(BOOK.encode(), "book")
        self.now_ms = START_MS + 12 * HOUR_MS
        self.ours = True
        self.driver = Driver(EconomyStage(lambda: self.book, EconomyConfig()))
        self.answers = EnvelopeAnswers(lambda: self.book, lambda: self.now_ms, lambda: self.ours)
        # the site is watched from the first one on
        self.read(*events[:1])
        self.read(*events[1:])

    def read(self, *events: UsageRow) -> None:
        self.driver.append([Message(topics.USAGE, USAGE, events)])
        self.driver.fold(self.now_ms)
        self.answers.hold([self.driver.state.envelopes])

    def ask(self, name: str, **query: str) -> Answer:
        return self.answers.answer(Request(name, {}, b"", query))

    def envelopes(self, name: str, **query: str) -> dict[str, Any]:
        answer = self.ask(name, **query)
        assert answer.status == HTTPStatus.OK, answer.content
        json.loads(answer.body, parse_constant=lambda word: pytest.fail(f"{word} is no number"))
        return {one["envelope"]: one for one in answer.content["envelopes"]}


def test_who_used_nothing_lately_has_no_rate_of_it() -> None:
    """That he used something three days ago is known, and not shown as nothing."""
    desk = Desk(event(1, START_MS - 80 * HOUR_MS, 1), event(2, START_MS - 60 * HOUR_MS, 40))
    desk.read(event(3, START_MS + 11 * HOUR_MS, 1, engineer="ada"))
    kim, eve = (desk.envelopes(name, kind="engineer")["engineers"] for name in ("kim", "eve"))
    assert (kim["used"], kim["burn_rate"]) == (0, dict.fromkeys(("5m", "1h", "6h", "3d")))
    assert (eve["used"], eve["burn_rate"]["3d"]) == (0, 0)


def test_it_tells_every_envelope_that_the_name_is_in() -> None:
    """A consumer's own envelopes, and those around them that it shares with others."""
    desk = Desk(
        event(1, START_MS, 1, engineer="ann"),
        event(2, START_MS + 11 * HOUR_MS, 30, function="research"),
        event(3, START_MS + 11 * HOUR_MS, 8, engineer="new-bo", agent_family="support-bot"),
    )
    kim = desk.envelopes("kim")
    assert {name: (one["consumer"], one["used"], one["remaining"]) for name, one in kim.items()} == {
        "engineers": ("kim", 30.0, 70.0),
        "research": ("research", 39.0, 961.0),
    }
    assert kim["engineers"] == {
        "site": "hall",
        "envelope": "engineers",
        "kind": "engineer",
        "consumer": "kim",
        "period": "day",
        "begins": "2026-06-01T00:00:00+00:00",
        "ends": "2026-06-02T00:00:00+00:00",
        "unit": "USD",
        "limit": 100.0,
        "used": 30.0,
        "remaining": 70.0,
        "exhausted": False,
        "unpriced_tokens": 0,
        # 30 USD in an hour, where 100 are for 24
        "burn_rate": {
            "5m": 0.0,
            "1h": pytest.approx(7.2),
            "6h": pytest.approx(1.2),
            "3d": pytest.approx(0.6),
        },
        "exhaustion": "2026-06-01T14:20:00+00:00",
        "known_since": "2026-06-01T00:00:00+00:00",
        "known_until": "2026-06-01T12:00:00+00:00",
    }
    new = desk.envelopes("new-bo")
    assert set(new) == {"research", "engineers", "new engineers"}
    assert (new["new engineers"]["used"], new["new engineers"]["exhausted"]) == (8_000_000, True)
    assert desk.envelopes("support-bot")["agents"]["consumer"] == "support-*"


def test_who_has_used_nothing_yet_is_answered_by_kind() -> None:
    """A first request can be asked for: used 0 where usage is known, if the kind is named."""
    desk = Desk(event(1, START_MS, 3))
    assert desk.ask("ann").status == HTTPStatus.NOT_FOUND
    ann = desk.envelopes("ann", kind="engineer")
    assert (ann["engineers"]["consumer"], ann["engineers"]["used"]) == ("ann", 0.0)
    assert ann["research"]["used"] == 3.0
    assert desk.ask("ann", kind="team").status == HTTPStatus.NOT_FOUND


def test_a_name_of_two_kinds_is_asked_back() -> None:
    """One name of a team and an engineer is ambiguous until the kind is told; a wrong question is refused."""
    desk = Desk(event(1, START_MS, 1, team="kim"))
    refused = desk.ask("kim")
    assert refused.status == HTTPStatus.BAD_REQUEST
    assert "engineer and team" in refused.content["error"]
    assert set(desk.envelopes("kim", kind="engineer")) == {"engineers", "research"}
    assert desk.ask("kim", kind="person").status == HTTPStatus.BAD_REQUEST
    assert desk.ask("kim", knid="engineer").status == HTTPStatus.BAD_REQUEST


def test_what_is_not_known_is_not_told() -> None:
    """Nothing read yet, another site, a log that is silent, a processor that is behind: 503, and no figure."""
    desk = Desk()
    desk.answers.hold([])
    assert desk.ask("kim").status == HTTPStatus.SERVICE_UNAVAILABLE
    desk.answers.hold([desk.driver.stage.empty().envelopes])
    assert desk.ask("kim").status == HTTPStatus.SERVICE_UNAVAILABLE
    desk.read(event(1, START_MS, 3))
    assert desk.ask("kim", site="elsewhere").status == HTTPStatus.SERVICE_UNAVAILABLE
    assert desk.envelopes("kim", site="hall")["engineers"]["used"] == 3.0
    desk.ours = False
    assert desk.ask("kim").status == HTTPStatus.SERVICE_UNAVAILABLE
    desk.ours = True
    desk.now_ms += STALE_MS
    assert desk.ask("kim").status == HTTPStatus.OK
    desk.now_ms += 1
    assert desk.ask("kim").status == HTTPStatus.SERVICE_UNAVAILABLE


def test_money_that_is_not_known_is_null() -> None:
    """With unpriced tokens in it an envelope in money says null, not what is left over."""
    desk = Desk(event(1, START_MS, 3), event(2, START_MS, 2, model_name="unknown"))
    engineers = desk.envelopes("kim")["engineers"]
    assert engineers["unpriced_tokens"] == 2_000_000
    assert {engineers[key] for key in ("used", "remaining", "exhausted", "exhaustion")} == {None}


def test_answers_come_from_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request computes nothing: no state and no frame is looked at between commits."""
    desk = Desk(event(1, START_MS, 3), *(event(i, START_MS, 1, engineer=f"e{i}") for i in range(2, 200)))

    def computing(*_: object) -> None:
        pytest.fail("a request computes")

    monkeypatch.setattr(envelope_answers, "envelope_figures", computing)
    for method in ("filter", "join", "group_by", "select", "iter_rows", "with_columns", "to_dicts"):
        monkeypatch.setattr(pl.DataFrame, method, computing)
    for i in range(2, 200):
        assert desk.envelopes(f"e{i}")["engineers"]["used"] == 1.0
    assert desk.envelopes("stranger", kind="engineer")["engineers"]["used"] == 0.0


def test_a_million_names_cost_others_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the names that are kept apart new ones are counted together, shared envelopes go on, nobody is told 0."""
    monkeypatch.setattr("idlewatt.processors.economy.envelopes.MAX_CONSUMERS", 3)
    desk = Desk(event(1, START_MS, 3), event(2, START_MS, 4, function="research", engineer="ann"))
    desk.read(*(event(i, START_MS, 1, function="research", engineer=f"e{i}") for i in range(10, 20)))
    desk.read(event(3, START_MS, 5), event(4, START_MS, 7, function="unheard-of", engineer="new-bo"))
    assert desk.driver.state.envelopes.periods.select("function", "engineer").unique().height == 4
    assert desk.envelopes("kim")["engineers"]["used"] == 8.0
    # (other) is an engineer as well, and kim's own lies within research
    assert desk.envelopes("research")["research"]["used"] == 3 + 5 + 4 + 10 + 7
    assert desk.ask("e10", kind="engineer").status == HTTPStatus.SERVICE_UNAVAILABLE
    assert desk.driver.sample("idlewatt_envelope_used", envelope="engineers", consumer="(other)") == 17


def test_who_may_have_used_more_is_not_told_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound a name that is known is answered, even if it has used nothing today, unless it was folded."""
    monkeypatch.setattr("idlewatt.processors.economy.envelopes.MAX_CONSUMERS", 3)
    desk = Desk(
        *(event(i, START_MS - 26 * HOUR_MS, 1, engineer=e) for i, e in enumerate(("bo", "ann", "kim")))
    )
    desk.read(event(11, START_MS, 30, engineer="kim", team="search"), event(12, START_MS, 2, engineer="bo"))
    status = {name: desk.ask(name, kind="engineer").status for name in ("bo", "ann", "kim", "stranger")}
    unknown = HTTPStatus.SERVICE_UNAVAILABLE
    assert status == {"bo": HTTPStatus.OK, "ann": HTTPStatus.OK, "kim": unknown, "stranger": unknown}
    assert [desk.envelopes(name)["engineers"]["used"] for name in ("bo", "ann")] == [2.0, 0.0]
    assert desk.ask("stranger").status == unknown
    assert desk.driver.sample("idlewatt_envelope_used", envelope="engineers", consumer="kim") is None
    assert desk.driver.sample("idlewatt_envelope_used", envelope="engineers", consumer="bo") == 2


def test_nobody_can_call_himself_other() -> None:
    """A row that says (other) is refused: it would make what everybody else has used unknown."""
    desk = Desk(
        event(1, START_MS, 3),
        event(2, START_MS, 1, engineer="(other)"),
        event(3, START_MS, 1, team="(other)"),
    )
    assert desk.driver.rejected == {("usage", "reserved_name"): 2}
    assert desk.envelopes("newcomer", kind="engineer")["engineers"]["used"] == 0.0
    assert desk.envelopes("kim")["engineers"]["used"] == 3.0


@pytest.mark.parametrize("name", ["", "(other)"])
def test_who_cannot_be_is_refused(name: str) -> None:
    """Nobody is told what is left for a consumer that no usage can name."""
    for query in ({}, {"kind": "engineer"}):
        assert Desk(event(1, START_MS, 3)).ask(name, **query).status == HTTPStatus.BAD_REQUEST


def test_a_name_is_matched_whole_and_at_once() -> None:
    """A name with a newline after it is another name, and one of hyphens only holds nobody up."""
    desk = Desk(event(1, START_MS, 3))
    desk.book = parse_book(
        BOOK.replace('match = "*"', 'match = "kim"').replace("new-*", "*-*-*-*-x").encode(), "book"
    )
    desk.answers.hold([desk.driver.state.envelopes])
    assert desk.ask("kim", kind="engineer").status == HTTPStatus.OK
    assert desk.ask("kim\n", kind="engineer").status == HTTPStatus.NOT_FOUND
    begin_s = time.monotonic()
    assert desk.ask("-" * 400, kind="engineer").status == HTTPStatus.NOT_FOUND
    assert time.monotonic() - begin_s < 2


def test_no_more_is_held_than_is_answered_from() -> None:
    """A commit lets go of the states that it replaces, and looks at those that stay no second time."""
    desk = Desk(event(1, START_MS, 3))
    held = [weakref.ref(desk.driver.state.envelopes)]
    for number in range(2, 6):
        desk.read(event(number, START_MS, 1))
        held.append(weakref.ref(desk.driver.state.envelopes))
    gc.collect()
    assert [one() is None for one in held] == [True] * 4 + [False]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(envelope_answers, "envelope_figures", lambda *_: pytest.fail("it is looked at again"))
        desk.answers.hold([desk.driver.state.envelopes])
    assert desk.envelopes("kim")["engineers"]["used"] == 7.0


def test_metrics_say_the_same() -> None:
    """Gauges are the same figures, by the same names; what is not known has no series."""
    desk = Desk(event(2, START_MS + 11 * HOUR_MS, 30, function="research"))
    labels = {
        "site": "hall",
        "envelope": "engineers",
        "consumer_kind": "engineer",
        "consumer": "kim",
        "unit": "USD",
    }
    sample = desk.driver.sample
    assert sample("idlewatt_envelope_limit", **labels) == 100
    assert sample("idlewatt_envelope_used", **labels) == 30
    assert sample("idlewatt_envelope_burn_rate", **labels, window="1h") == pytest.approx(7.2)
    assert sample("idlewatt_envelope_burn_rate", **labels, window="3d") is None
    exhaustion_s = sample("idlewatt_envelope_exhaustion_timestamp_seconds", **labels)
    assert exhaustion_s == START_MS / 1000 + 14 * 3600 + 20 * 60
    assert (
        sample(
            "idlewatt_envelope_used",
            **labels | {"envelope": "research", "consumer_kind": "function", "consumer": "research"},
        )
        == 30
    )
    families = desk.driver.stage.families([desk.driver.state])
    consumers = {
        s.labels["consumer"] for family in families if "envelope" in family.name for s in family.samples
    }
    # nobody's envelope has no series
    assert consumers == {"kim", "research", "support-*"}
    # a whole day later nobody has used anything
    desk.now_ms += 24 * HOUR_MS
    assert desk.driver.fold(desk.now_ms).moved
    assert sample("idlewatt_envelope_used", **labels) == 0
    assert not desk.driver.fold(desk.now_ms).moved


def test_a_state_that_was_restored_goes_on() -> None:
    """Through a snapshot and a crash the stage's envelopes are what they were, and count on from there."""
    desk = Desk(event(1, START_MS, 3))
    desk.driver.commit()
    desk.read(event(2, START_MS + HOUR_MS, 4))
    told = desk.envelopes("kim")
    desk.driver.crash()
    desk.answers.hold([desk.driver.state.envelopes])
    assert desk.envelopes("kim")["engineers"]["used"] == 3.0
    desk.driver.fold(desk.now_ms)
    desk.answers.hold([desk.driver.state.envelopes])
    assert desk.envelopes("kim") == told


class Gateway:
    """Somebody who posts usage and asks before it serves."""

    def __init__(self, command: Serving) -> None:
        self.base = command.url.removesuffix("/metrics")
        self.now_ms = time.time_ns() // 1_000_000

    def ask(
        self, path: str, body: bytes | None = None, token: str | None = TOKEN
    ) -> tuple[int, dict[str, Any]]:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        request = urllib.request.Request(self.base + path, body, headers)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def post(self, number: int, engineer: str) -> None:
        said = {"event_id": str(number), "engineer": engineer, "model_name": "m", "output_tokens": 1_500_000}
        said |= {"ts_ms": self.now_ms}
        assert self.ask("/v1/usage", json.dumps(said).encode())[0] == HTTPStatus.ACCEPTED

    def used(self, engineer: str) -> float | None:
        status, said = self.ask(f"{PATH}{urllib.parse.quote(engineer)}?kind=engineer&site=hall")
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            return None
        assert status == HTTPStatus.OK, said
        (found,) = [one["used"] for one in said["envelopes"] if one["envelope"] == "engineers"]
        assert isinstance(found, float)
        return found


def test_a_gateway_asks_a_real_processor_before_and_after_it_was_killed(tmp_path: Path) -> None:
    """What is posted is in the answer of the same process; after a kill it says what it knew, or nothing, never less."""
    (tmp_path / "book.toml").write_text(BOOK.replace('"day"', '"month"'))
    env = {
        "IDLEWATT_SITE": "hall",
        "IDLEWATT_LOG__PATH": str(tmp_path / "log.db"),
        "IDLEWATT_COLLECT__GPU": "none",
        "IDLEWATT_SERVE__TOKEN": TOKEN,
        "IDLEWATT_ECONOMY__BOOK": str(tmp_path / "book.toml"),
    }
    name = "kim ö/x"
    with serving("run", log=tmp_path / "first.txt", env=env) as first:
        gateway = Gateway(first)
        wait_until(lambda: gateway.ask(f"{PATH}{name[:3]}")[0] != 404, "the route is open")
        assert gateway.ask(PATH + "kim", token=None)[0] == HTTPStatus.UNAUTHORIZED
        assert gateway.ask(PATH + "kim", token="another")[0] == HTTPStatus.UNAUTHORIZED
        assert gateway.used(name) is None
        for number in range(4):
            gateway.post(number, name)
        wait_until(lambda: gateway.used(name) == 6.0, "the usage is in the envelope")
        first.process.kill()
        first.process.wait()
    with serving("run", log=tmp_path / "second.txt", env=env) as second:
        gateway = Gateway(second)
        said: list[float | None] = []
        deadline = time.monotonic() + 60
        while 6.0 not in said:
            assert time.monotonic() < deadline, said
            said.append(gateway.used(name))
        assert set(said) <= {None, 6.0}
        gateway.post(0, name)
        gateway.post(9, name)
        wait_until(lambda: gateway.used(name) == 7.5, "the new event counts, and the repeated one does not")
        assert 'idlewatt_envelope_used{site="hall",envelope="engineers"' in second.page()
        assert second.stop()[0] == 0
