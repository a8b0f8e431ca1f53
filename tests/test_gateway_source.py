"""A gateway's page becomes usage rows: who spent how many tokens, by the rules of the settings, each token once."""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from loopback_http import LoopbackServer, page, says, serving

from idlewatt.collectors import gateways
from idlewatt.collectors.consumer_names import ConsumerNames
from idlewatt.collectors.engines import Series
from idlewatt.collectors.exposition import SamplePicker
from idlewatt.collectors.gateway_page import GatewayPage
from idlewatt.collectors.gateway_source import GatewaySource
from idlewatt.collectors.gateways import GatewayMapping, mapping_of
from idlewatt.collectors.http_page import HttpPage
from idlewatt.collectors.mappings import kinds
from idlewatt.processors.economy.usage import UsageState, fold_usage
from idlewatt.stream import records
from idlewatt.stream.errors import ConfigError, SourceError
from idlewatt.stream.frames import frame_schema
from idlewatt.stream.records import UsageRow
from idlewatt.stream.settings import Consumer, Gateway

CASES = sorted((Path(__file__).parent / "testdata" / "gateways").glob("*/*"))
CASE_IDS = ["/".join(case.parts[-2:]) for case in CASES]
START_MS = 1_790_001_000_000
LITELLM = mapping_of("litellm")


def read(mapping: GatewayMapping, body: bytes) -> dict[str, Any]:
    picker = SamplePicker(mapping.series_names, [series.name for series in mapping.output_tokens])
    counters, left_out = GatewayPage(mapping).read(picker.pick(body))
    names = ConsumerNames((), mapping.names, mapping.unset)
    told = []
    for counter in counters:
        figures = dataclasses.asdict(counter)
        del figures["name"], figures["labels"]
        told.append(figures | {"names": names.of(counter.labels)})
    return {"counters": told, "left_out": dict(Counter(left_out.values()))}


def test_every_gateway_kind_has_cases() -> None:
    """A mapping without a page it was tried on is no mapping."""
    assert {case.parent.name for case in CASES} == set(kinds(gateways))


@pytest.mark.parametrize("case", CASES, ids=CASE_IDS)
def test_a_page_gives_the_figures_expected_of_it(case: Path) -> None:
    """What is read from metrics.prom is what expected.json says, no more and no less."""
    assert (case / "SOURCE").read_text().strip()
    expected = json.loads((case / "expected.json").read_text())
    assert read(mapping_of(case.parent.name), (case / "metrics.prom").read_bytes()) == expected


def test_an_unknown_gateway_is_answered_with_the_known_ones() -> None:
    """The error names what there is, and the nearest to what was asked for."""
    with pytest.raises(ConfigError, match=r"'litelm'; known: .*litellm.*Did you mean 'litellm'\?"):
        mapping_of("litelm")


def litellm(
    output: int, input_: int = 0, cached: int | None = None, *, created: float | None = 1.79e9, **labels: str
) -> str:
    told = {"api_key_alias": "k", "model": "m", "team_alias": "None", "user": "None"} | labels
    of_cache = {name: value for name, value in told.items() if not name.startswith("org_")}

    def line(name: str, labels: dict[str, str], value: float) -> str:
        told = ",".join(f'{label}="{text}"' for label, text in labels.items())
        return f"litellm_{name}{{{told}}} {value}\n"

    text = line("output_tokens_metric_total", told, output) + line("input_tokens_metric_total", told, input_)
    if created is not None:
        text += line("output_tokens_metric_created", told, created)
    if cached is not None:
        text += line("input_cached_tokens_metric_total", of_cache, cached)
    return text


class Scraped:
    """A gateway whose page and time a test sets, read by a source."""

    def __init__(self, server: LoopbackServer, *rules: Consumer, **gateway: Any) -> None:
        self.now_ms = START_MS
        self.server = server
        self.rules = rules
        self.gateway = Gateway(url=server.url, name="gate", **gateway)
        self.restart()

    def restart(self, node: str = "n1") -> None:
        self.source = GatewaySource(
            self.gateway,
            self.rules,
            site="hall",
            node=node,
            interval_s=15.0,
            timeout_s=5.0,
            max_body_bytes=1_000_000,
            clock=lambda: self.now_ms,
        )

    def read(self, *text: str, after_ms: int = 0) -> tuple[list[UsageRow], dict[str, int]]:
        self.now_ms += after_ms
        self.server.answer = says(page("".join(text).encode()))
        reading = self.source.read()
        return [row for row in reading.rows if isinstance(row, UsageRow)], dict(reading.left_out)


@pytest.fixture
def server() -> Iterator[LoopbackServer]:
    with serving(says(page(b""))) as server:
        yield server


def spent(*readings: list[UsageRow]) -> dict[tuple[str, ...], int]:
    """Output tokens by team and engineer, as the economy counts them."""
    state, parts = UsageState.empty(), []
    for rows in readings:
        told = [dataclasses.astuple(row) for row in rows]
        frame = pl.DataFrame(told, schema=frame_schema(records.USAGE), orient="row")
        usage = fold_usage(state, frame, 2 * START_MS)
        state = usage.state
        parts.append(usage.minutes)
        assert set(usage.rejected) <= {"repeat"}
    sums = pl.concat(parts).group_by("team", "engineer").agg(pl.col("output_tokens").sum())
    return {(team, engineer): tokens for team, engineer, tokens in sums.iter_rows()}


def test_two_nodes_with_one_file_have_two_gateways(server: LoopbackServer) -> None:
    """Each has a gateway of the same name on its loopback address: their counters are not one's that jumps."""
    one, other = Scraped(server), Scraped(server)
    other.restart(node="n2")
    told = []
    for tokens in range(5):
        told.append(one.read(litellm(100_000 + tokens, team_alias="t", created=None), after_ms=15_000)[0])
        other.now_ms = one.now_ms - 7_000
        told.append(other.read(litellm(60_000 + tokens, team_alias="t", created=None))[0])
    assert spent(*told) == {("t", ""): 8}


@pytest.mark.parametrize(
    ("host", "is_this_node"),
    [
        ("localhost", True),
        ("LocalHost", True),
        ("localhost.localdomain", True),
        ("127.0.0.1", True),
        ("127.1", True),
        ("0.0.0.0", True),
        ("[::1]", True),
        ("[::]", True),
        ("[::ffff:127.0.0.1]", True),
        ("host.docker.internal", True),
        ("host.containers.internal", True),
        ("gateway", False),
        ("10.0.0.1", False),
        ("[fd00::1]", False),
        ("localhost.example", False),
    ],
)
def test_a_name_that_means_another_host_on_each_node_carries_the_nodes(host: str, is_this_node: bool) -> None:
    """Two nodes' gateways under one name would be one counter that jumps up and down."""
    name = HttpPage(f"http://{host}:4000/metrics/", 1.0, 1000).name_seen_from("n1")
    assert name == ("n1:4000" if is_this_node else f"{host}:4000")


def test_a_counter_that_could_not_be_read_did_not_begin_since(server: LoopbackServer) -> None:
    """A page was rendered while it changed; what it had counted before is nobody's new tokens."""
    gate = Scraped(server)
    torn, left_out = gate.read(litellm(9_000_000, 100, 120, team_alias="t"))
    assert (torn, list(left_out.values())) == ([], [1])
    first, _ = gate.read(litellm(9_000_100, 150, 120, team_alias="t"), after_ms=15_000)
    second, _ = gate.read(litellm(9_000_107, 170, 120, team_alias="t"), after_ms=15_000)
    assert spent(torn, first, second) == {("t", ""): 7}


def test_a_token_that_is_no_header_is_not_shown(server: LoopbackServer, tmp_path: Path) -> None:
    """A file with a second line, or with marks of an editor."""
    for content in ("sk-secret\nsk-more", "\ufeffsk-secret"):
        file = tmp_path / "token"
        file.write_text(content, encoding="utf-8")
        with pytest.raises(SourceError) as error:
            Scraped(server, token_file=str(file)).read(litellm(1))
        assert error.value.reason == "token_file"
        assert "secret" not in str(error.value)


def test_a_page_becomes_whole_rows(server: LoopbackServer) -> None:
    """Everything the settings and the page know stands in the row; cached tokens are no longer in the input's."""
    gate = Scraped(
        server,
        Consumer(label="api_key_alias", match="bot-*", agent_family="{value}", function="support"),
        Consumer(label="team_alias", match="growth-*", team="growth", tier="premium"),
        Consumer(label="team_alias", match="*", tier="standard"),
    )
    labels: dict[str, Any] = {
        "team_alias": "growth-eu",
        "api_key_alias": "bot-7",
        "user": "u1",
        "org_id": "o",
    }
    rows, left_out = gate.read(litellm(7, 100, 64, created=1.79e9, **labels))
    [row] = rows
    assert row == UsageRow(
        ts_ms=START_MS,
        site="hall",
        source="n1:gate",
        counter=row.counter,
        function="support",
        team="growth",
        agent_family="bot-7",
        engineer="u1",
        model_name="m",
        tier="premium",
        output_tokens=7,
        input_tokens=36,
        cached_input_tokens=64,
        epoch_ms=1_790_000_000_000,
    )
    assert not left_out
    assert (gate.source.name, gate.source.interval_s) == ("n1:gate", 15.0)


def test_the_first_rule_that_fits_gives_a_name(server: LoopbackServer) -> None:
    """A rule names what it says; a later one adds only what is missing; labels that are unset fit no rule."""
    rules = [
        Consumer(label="team", match="a*", team="first", tier="t1"),
        Consumer(label="team", match="*", team="second", function="f"),
        Consumer(label="user", engineer="{value}"),
    ]
    names = ConsumerNames(rules, [("user", "team"), ("model", "model")], {"", "None"})
    assert names.of({"team": "ab", "user": "None", "model": "m"}) == {
        "team": "first",
        "tier": "t1",
        "function": "f",
        "model": "m",
    }
    assert names.of({"team": "None", "user": "kim"}) == {"engineer": "kim", "team": "kim"}
    assert names.of({}) == {}


def test_brackets_of_a_rule_are_themselves() -> None:
    """As in the book: `*` and `?` stand for others, and nothing else does."""
    names = ConsumerNames([Consumer(label="team_alias", match="[eu] *", team="europe")], (), frozenset())
    assert names.of({"team_alias": "[eu] sales"}) == {"team": "europe"}
    assert names.of({"team_alias": "u sales"}) == {}


def test_a_newcomer_loses_nothing(server: LoopbackServer) -> None:
    """A counter that appears while the gateway is watched began at zero: its first request counts too."""
    gate = Scraped(server)
    first, _ = gate.read(litellm(100, team_alias="old"))
    second, _ = gate.read(litellm(100, team_alias="old"), litellm(9, team_alias="new"), after_ms=15_000)
    third, _ = gate.read(litellm(130, team_alias="old"), litellm(10, team_alias="new"), after_ms=15_000)
    assert spent(first, second, third) == {("old", ""): 30, ("new", ""): 10}
    assert [row.output_tokens for row in second if row.team == "new"] == [0, 9]


def test_a_gateway_that_has_counted_nothing_is_no_fault(server: LoopbackServer) -> None:
    """A page without a token yet is read as empty, so that the first request after it counts; another page is not."""
    gate = Scraped(server)
    empty, _ = gate.read("# TYPE litellm_output_tokens_metric_total counter\n")
    assert not empty
    first, _ = gate.read(litellm(9, team_alias="new"), after_ms=15_000)
    assert spent(first) == {("new", ""): 9}
    with pytest.raises(SourceError) as failed:
        gate.read("# TYPE python_info gauge\npython_info 1\n")
    assert failed.value.reason == "no_known_series"


@pytest.mark.parametrize("created", [True, False])
def test_restarts_count_once(server: LoopbackServer, created: bool) -> None:
    """A restart of the gateway or of the collector counts no token twice, whether the page has epochs or not."""
    gate = Scraped(server)

    def told(output: int, since_s: float) -> str:
        return litellm(output, team_alias="t", created=since_s if created else None)

    start_s = START_MS / 1000
    readings = [gate.read(told(1000, start_s - 500))[0]]
    readings.append(gate.read(told(1010, start_s - 500), after_ms=15_000)[0])
    readings.append(gate.read(told(4, start_s + 20), after_ms=15_000)[0])
    gate.restart()
    readings.append(gate.read(told(6, start_s + 20), after_ms=15_000)[0])
    readings.append(gate.read(told(8, start_s + 20), after_ms=15_000)[0])
    assert spent(*readings) == {("t", ""): 18}


def test_after_a_restart_without_an_epoch_who_asks_later_loses_nothing(server: LoopbackServer) -> None:
    """Once it is seen that the gateway began anew, who is not on its page has been taken back to zero."""
    gate = Scraped(server)

    def told(**outputs: int) -> list[UsageRow]:
        pages = [litellm(output, team_alias=team, created=None) for team, output in outputs.items()]
        nothing = "# TYPE litellm_output_tokens_metric_total counter\n"
        return gate.read(*pages, nothing, after_ms=15_000)[0]

    readings = [told(a=1000, b=100, c=70), told(a=1001, b=100, c=70), told(a=3), told(a=5, b=150)]
    assert spent(*readings) == {("a", ""): 6, ("b", ""): 150}
    readings += [told(), told(b=20, c=90)]
    assert spent(*readings) == {("a", ""): 6, ("b", ""): 170, ("c", ""): 90}


def test_who_is_missing_on_a_page_without_a_restart_is_not_counted_again(server: LoopbackServer) -> None:
    """A page that was cut shows nobody with less than before."""
    gate = Scraped(server)
    pages = [{"a": 1000, "b": 100}, {"a": 1001}, {"a": 1002, "b": 101}]
    readings = [
        gate.read(*(litellm(n, team_alias=team, created=None) for team, n in page.items()), after_ms=15_000)
        for page in pages
    ]
    assert spent(*(rows for rows, _ in readings)) == {("a", ""): 2, ("b", ""): 1}


def test_a_page_without_input_tokens_is_refused(server: LoopbackServer) -> None:
    """Nobody is answered without having asked: what is not shown would be sold for nothing."""
    output = litellm(7, 100).splitlines(keepends=True)[0]
    with pytest.raises(SourceError, match="expected litellm_input_tokens_metric_total") as failed:
        Scraped(server).read(output)
    assert failed.value.reason == "no_input_tokens"


@pytest.mark.parametrize("length", range(1850, 2150, 10))
def test_labels_are_too_long_for_all_counters_of_a_consumer_or_for_none(
    server: LoopbackServer, length: int
) -> None:
    """Names and values of series differ in length: one that is left out alone would count as 0."""
    long = litellm(7, 1_000_000, 900, user="x" * length, created=None)
    rows, _ = Scraped(server).read(litellm(1, 5, user="a", created=None), long)
    told = [(row.output_tokens, row.input_tokens, row.cached_input_tokens) for row in rows]
    assert told in ([(1, 5, 0)], [(1, 5, 0), (7, 999_100, 900)])


def test_a_restart_long_ago_is_counted_where_the_gateway_was_watched(server: LoopbackServer) -> None:
    """A gateway that restarted and could not be read for hours still tells all it counted since."""
    gate = Scraped(server)
    first, _ = gate.read(litellm(1000, team_alias="t", created=START_MS / 1000 - 500))
    second, _ = gate.read(litellm(600, team_alias="t", created=START_MS / 1000 + 60), after_ms=5 * 3_600_000)
    assert spent(first, second) == {("t", ""): 600}


def test_a_clock_of_the_gateway_that_is_ahead_harms_nothing(server: LoopbackServer) -> None:
    """Epochs in the future count a newcomer's tokens once and no more."""
    gate = Scraped(server)
    ahead = START_MS / 1000 + 300
    readings = [gate.read(litellm(5, team_alias="old"))[0]]
    for output in (3, 4, 9):
        lines = litellm(5, team_alias="old"), litellm(output, team_alias="new", created=ahead)
        readings.append(gate.read(*lines, after_ms=15_000)[0])
    assert spent(*readings) == {("new", ""): 9}


def test_who_appears_while_the_clock_is_set_back_loses_nothing(server: LoopbackServer) -> None:
    """Pages are left out until it has passed the newest; who is new by then began at zero since that one."""
    gate = Scraped(server)
    old, new = litellm(100, team_alias="old"), litellm(9, team_alias="new")
    readings = [gate.read(old)[0]]
    for after_ms in (-45_000, 15_000, 15_000):
        assert gate.read(old, new, after_ms=after_ms) == ([], {"clock_set_back": 1})
    readings.append(gate.read(litellm(130, team_alias="old"), new, after_ms=16_000)[0])
    assert spent(*readings) == {("old", ""): 30, ("new", ""): 9}
    # by more than a minute: it is gone by at once
    assert len(gate.read(old, new, after_ms=-61_000)[0]) == 2


def test_changed_rules_count_nothing_twice(server: LoopbackServer) -> None:
    """After a change of the rules the same counter goes on under its new names."""
    gate = Scraped(server)
    readings = [gate.read(litellm(100, team_alias="t"))[0]]
    readings.append(gate.read(litellm(110, team_alias="t"), after_ms=15_000)[0])
    gate.rules = (Consumer(label="team_alias", team="renamed"),)
    gate.restart()
    readings.append(gate.read(litellm(125, team_alias="t"), after_ms=15_000)[0])
    assert spent(*readings) == {("t", ""): 10, ("renamed", ""): 15}


def test_a_shared_label_that_the_cached_tokens_lack_is_summed_over(server: LoopbackServer) -> None:
    """One key seen under two organisations is one counter, so that its cached tokens are taken off once."""
    gate = Scraped(server)
    lines = litellm(7, 100, 64, org_id="a"), litellm(3, 50, org_id="b")
    [row], _ = gate.read(*lines)
    assert (row.output_tokens, row.input_tokens, row.cached_input_tokens) == (10, 86, 64)


def test_a_page_with_other_labels_is_refused(server: LoopbackServer) -> None:
    """Cached tokens that cannot be joined to their input would be sold at the price of computed ones."""
    gate = Scraped(server)
    odd = litellm(7, 100, 64, region="eu").replace(',region="eu"} 64', "} 64")
    with pytest.raises(SourceError, match="region") as failed:
        gate.read(odd)
    assert failed.value.reason == "labels_differ"


def test_bad_samples_cost_only_themselves(server: LoopbackServer) -> None:
    """One user's senseless label or value is left out and counted; everybody else's tokens are read."""
    gate = Scraped(server)
    rows, left_out = gate.read(
        litellm(1, user="a", end_user="e"),
        litellm(7, user="x" * 5000, end_user="e"),
        litellm(-5, user="b", end_user="e"),
        litellm(2, user="c", end_user="e").replace("} 2\n", "} 2.5\n"),
        litellm(3, user="d", end_user="e", model="None"),
        litellm(5, 10, 11, user="f", end_user="e"),
    )
    assert [row.engineer for row in rows] == ["a"]
    assert left_out == {"bad_sample": 3, "negative": 2, "not_whole": 1, "no_model": 1}


def test_a_page_that_is_read_while_it_is_written(server: LoopbackServer) -> None:
    """Cached tokens that are counted before the input they are part of make no counter fall."""
    gate = Scraped(server)
    told = [(100, 60), (100, 70), (130, 70)]
    rows = [gate.read(litellm(1, *counts, team_alias="t"), after_ms=1000)[0][-1] for counts in told]
    assert [row.input_tokens for row in rows] == [40, 40, 60]


def split(*readings: list[UsageRow]) -> tuple[int, int, int]:
    """Output, input and cached input tokens that the economy counts, none refused."""
    state, parts = UsageState.empty(), []
    for rows in readings:
        frame = pl.DataFrame(
            [dataclasses.astuple(row) for row in rows], schema=frame_schema(records.USAGE), orient="row"
        )
        usage = fold_usage(state, frame, 2 * START_MS)
        assert not usage.rejected
        state = usage.state
        parts.append(usage.minutes)
    sums = pl.concat(parts).select(pl.col("output_tokens", "input_tokens", "cached_input_tokens").sum())
    return sums.row(0)


def test_cached_tokens_that_the_gateway_forgets_by_themselves(server: LoopbackServer) -> None:
    """LiteLLM's time to live takes each counter by itself, and only when the same counter is next used."""
    gate = Scraped(server)
    pages = [
        litellm(10, 100, 90),
        litellm(20, 200, 180),
        # nobody's hits for a while: forgotten, and counted anew
        litellm(30, 300),
        litellm(40, 400, 45),
        litellm(50, 500, 135),
        # all of it forgotten, but not yet the cached ones, which somebody must hit for that
        litellm(3, 40, 135, created=1.7900031e9),
        litellm(5, 60, 135, created=1.7900031e9),
        litellm(9, 200, 70, created=1.7900031e9),
    ]
    readings = [gate.read(text, after_ms=400_000)[0] for text in pages]
    assert split(*readings) == (40 + 9, 400 - 90 - 135 + 130, 90 + 135 + 70)


@pytest.mark.parametrize(("cached_s", "counted"), [(39, (30, 30, 270)), (38.999, (30, 120, 180))])
def test_a_gateway_that_was_started_anew_forgets_nothing_by_itself(
    server: LoopbackServer, cached_s: float, counted: tuple[int, int, int]
) -> None:
    """It counts as many cached tokens as before within one reading: its counter of them says when that began.

    More than a second before the others it is not their request's, and lingers.
    """
    gate = Scraped(server)

    def text(output: int, input_: int, cached: int, start: float, cached_start: float) -> str:
        of_cache = f'litellm_input_cached_tokens_metric_created{{api_key_alias="k",model="m",team_alias="None",user="None"}} {cached_start}'
        return litellm(output, input_, cached, created=start) + of_cache + "\n"

    began_s = START_MS / 1000
    began, anew = (began_s, began_s), (began_s + 40, began_s + cached_s)
    pages = [
        (0, 0, 0, *began),
        (10, 100, 90, *began),
        (10, 100, 90, *anew),
        (20, 200, 180, *anew),
    ]
    readings = [gate.read(text(*page), after_ms=15_000)[0] for page in pages]
    assert split(*readings) == counted


def test_a_gateway_that_lumps_labels_by_counter_is_refused(server: LoopbackServer) -> None:
    """With a limit of two sets of labels, c's output stands under "other" and its cached input under c."""
    gate = Scraped(server)
    lumped = litellm(30, 900, user="other", team_alias="other", model="other", api_key_alias="other")
    of_cache = litellm(1, 1, 80, user="c").splitlines(keepends=True)[-1]
    two = litellm(5, 50, user="a") + litellm(5, 50, user="b")
    with pytest.raises(SourceError, match="prometheus_metrics_max_series_per_metric") as failed:
        gate.read(two, lumped, of_cache)
    assert failed.value.reason == "series_limited"
    # forgotten by one counter and not yet by the other, without a limit
    assert [row.output_tokens for row in gate.read(two, of_cache)[0]] == [5, 5]
    assert len(gate.read(two, lumped, after_ms=1000)[0]) >= 3


def test_the_token_of_a_page_comes_from_a_file(server: LoopbackServer, tmp_path: Path) -> None:
    """The key is sent as a bearer token and read anew each time; a file that is missing is named."""
    key = tmp_path / "key"
    gate = Scraped(server, token_file=str(key))
    with pytest.raises(SourceError, match=str(key)) as failed:
        gate.read(litellm(1))
    assert failed.value.reason == "token_file"
    for secret in ("sk-1", "sk-2"):
        key.write_text(f"{secret}\n")
        gate.read(litellm(1))
        assert f"Authorization: Bearer {secret}\r\n".encode() in server.requests[-1]


def test_histograms_with_a_label_for_the_kind() -> None:
    """A gateway that tells input and output apart by a label, as others do, is a matter of data alone."""
    name = "gen_ai_client_token_usage_sum"
    mapping = GatewayMapping(
        output_tokens=(Series(name, only={"type": "output"}),),
        input_tokens=(Series(name, only={"type": "input"}),),
        cached_input_tokens=(Series(name, only={"type": "cached_input"}),),
        names=(("user_id", "engineer"), ("model", "model")),
    )
    lines = [
        f'{name}{{type="{kind}",user_id="{user}",model="m"}} {value}\n'
        for kind, user, value in [
            ("input", "a", 70),
            ("output", "a", 5),
            ("cached_input", "a", 30),
            ("input", "b", 9),
            ("output", "b", 1),
        ]
    ]
    told = read(mapping, "".join(lines).encode())["counters"]
    assert [
        (one["names"]["engineer"], one["output_tokens"], one["input_tokens"], one["cached_input_tokens"])
        for one in told
    ] == [("a", 5, 40, 30), ("b", 1, 9, 0)]
