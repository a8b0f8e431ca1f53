import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from idlewatt.collectors import engines
from idlewatt.collectors.engine_page import EnginePage
from idlewatt.collectors.engines import EngineMapping, Series, mapping_of
from idlewatt.collectors.exposition import SamplePicker
from idlewatt.collectors.mappings import kinds
from idlewatt.stream.errors import ConfigError, SourceError

CASES = sorted((Path(__file__).parent / "testdata" / "engines").glob("*/*"))
CASE_IDS = ["/".join(case.parts[-2:]) for case in CASES]


def read(mapping: EngineMapping, body: bytes) -> dict[str, Any]:
    picker = SamplePicker(mapping.series_names, [series.name for series in mapping.output_tokens])
    figures, left_out = EnginePage(mapping).read(picker.pick(body), 0)
    return {"rows": [dataclasses.asdict(model) for model in figures], "left_out": dict(left_out)}


def test_every_server_kind_has_cases_and_every_case_a_kind() -> None:
    """A mapping without a page it was tried on is no mapping."""
    assert {case.parent.name for case in CASES} == set(kinds(engines))


@pytest.mark.parametrize("case", CASES, ids=CASE_IDS)
def test_a_page_gives_the_figures_expected_of_it(case: Path) -> None:
    """What is read from metrics.prom is what expected.json says, no more and no less."""
    assert (case / "SOURCE").read_text().strip()
    expected = json.loads((case / "expected.json").read_text())
    assert read(mapping_of(case.parent.name), (case / "metrics.prom").read_bytes()) == expected


@pytest.mark.parametrize("case", CASES, ids=CASE_IDS)
def test_no_page_cut_within_a_line_is_taken(case: Path) -> None:
    """Wherever a page breaks off within a line, it is refused."""
    mapping, body = mapping_of(case.parent.name), (case / "metrics.prom").read_bytes()
    for end in range(1, len(body), 251):
        if body[end - 1 : end] != b"\n":
            with pytest.raises(SourceError) as failed:
                read(mapping, body[:end])
            assert failed.value.reason in ("no_known_series", "truncated", "bad_sample")


@pytest.mark.parametrize("server", kinds(engines))
def test_mappings_are_whole(server: str) -> None:
    """Every mapping can be read: it says when its counter moves and how to tell a restart from a reset."""
    mapping = mapping_of(server)
    assert mapping.advance in ("step", "prefill_end", "request_end")
    assert mapping.output_tokens
    assert mapping.if_absent


def test_an_unknown_server_is_answered_with_the_known_ones() -> None:
    """The error names what there is, and the nearest to what was asked for; paths are no names."""
    with pytest.raises(ConfigError, match=r"'vlm'; known: .*vllm.*Did you mean 'vllm'\?"):
        mapping_of("vlm")
    with pytest.raises(ConfigError, match="known: "):
        mapping_of("..collection")


MAPPING = EngineMapping(
    model_label="model",
    sum_over=frozenset({"rank"}),
    advance="step",
    output_tokens=(Series("s:live_total", only={"mode": "decode"}), Series("s:out_total")),
    input_tokens=(Series("s:in_total", less="s:hit_total"),),
    cached_input_tokens=(Series("s:hit_total"),),
    requests_running=(Series("s:running"),),
    kv_cache_ratio=(Series("s:kv"),),
    epoch=(Series("process_start_time_seconds"), Series("s:out_created")),
    version=("s:build_info", "version"),
)


def test_the_newest_series_on_the_page_counts() -> None:
    """An older name is read only where the newer one, with its labels, is not there."""
    both = b's:out_total{model="m"} 5\ns:live_total{model="m",mode="decode"} 7\n'
    assert read(MAPPING, both)["rows"][0]["output_tokens"] == 7
    other = b's:out_total{model="m"} 5\ns:live_total{model="m",mode="prefill"} 7\n'
    assert read(MAPPING, other)["rows"][0]["output_tokens"] == 5


def test_ranks_are_added_up_and_their_cache_use_averaged() -> None:
    """Only labels that the mapping says may be summed are."""
    body = b"".join(
        b's:out_total{model="m",rank="%d"} %d\ns:running{model="m",rank="%d"} 2\ns:kv{model="m",rank="%d"} 0.%d\n'
        % (rank, 10**rank, rank, rank, rank)
        for rank in (1, 2, 3)
    )
    [row] = read(MAPPING, body)["rows"]
    assert (row["output_tokens"], row["requests_running"]) == (1110, 6)
    assert row["kv_cache_ratio"] == pytest.approx(0.2)


def test_a_label_nobody_foresaw_is_not_added_up() -> None:
    """One value of it is harmless; with several, nobody knows whether they are parts of one sum."""
    one = (
        b's:out_total{model="m",pod="a"} 5\ns:running{model="m",pid="1"} 1\ns:running{model="m",pid="2"} 1\n'
    )
    outcome = read(MAPPING, one)
    assert outcome["rows"][0]["output_tokens"] == 5
    assert outcome["rows"][0]["requests_running"] is None
    assert outcome["left_out"] == {"ambiguous_series": 1}
    several = (
        b's:out_total{model="m",pod="a"} 5\ns:out_total{model="m",pod="b"} 5\ns:out_total{model="n"} 1\n'
    )
    outcome = read(MAPPING, several)
    assert [row["model_name"] for row in outcome["rows"]] == ["n"]
    assert outcome["left_out"] == {"ambiguous_series": 1}


def test_the_epoch_is_the_process_start_else_the_first_creation() -> None:
    """An implausible start is passed over; without any the epoch is unknown."""
    page = b's:out_total{model="m",rank="0"} 5\ns:out_total{model="m",rank="1"} 5\n'
    created = (
        b's:out_created{model="m",rank="0"} 1790000001.5\ns:out_created{model="m",rank="1"} 1790000002\n'
    )
    assert read(MAPPING, page)["rows"][0]["epoch_ms"] is None
    assert read(MAPPING, page + created)["rows"][0]["epoch_ms"] == 1790000001500
    for start in (b"0", b"NaN", b"-5", b"+Inf"):
        body = page + created + b"process_start_time_seconds " + start + b"\n"
        assert read(MAPPING, body)["rows"][0]["epoch_ms"] == 1790000001500
    assert read(MAPPING, page + created + b"process_start_time_seconds 1.78e9\n")["rows"][0]["epoch_ms"] == (
        1780000000000
    )


def test_the_version_is_read_where_the_server_tells_it() -> None:
    """From the label of its info series, which may have no model."""
    [row] = read(MAPPING, b's:out_total{model="m"} 5\ns:build_info{version="1.2.3"} 1\n')["rows"]
    assert row["server_version"] == "1.2.3"


def test_a_difference_of_counters_does_not_step_back() -> None:
    """A request that ends while the page is written is in one counter and not yet in the other: no restart."""
    picker = SamplePicker(MAPPING.series_names, ["s:out_total"])
    page = EnginePage(MAPPING)

    def input_tokens(whole: int, part: int) -> int | None:
        body = (
            f's:out_total{{model="m"}} 5\ns:in_total{{model="m"}} {whole}\ns:hit_total{{model="m"}} {part}\n'
        )
        [figures], _ = page.read(picker.pick(body.encode()), 0)
        return figures.input_tokens

    assert input_tokens(1000, 400) == 600
    assert input_tokens(1000, 450) == 600
    assert input_tokens(1100, 450) == 650
    # a fall of either counter is a restart, and the new difference counts
    page.miss()
    assert input_tokens(30, 10) == 20


def test_a_page_of_many_models_is_refused() -> None:
    """A server that invents model names cannot flood the log."""
    body = b"".join(b's:out_total{model="%d"} 1\n' % i for i in range(300))
    with pytest.raises(SourceError) as failed:
        read(MAPPING, body)
    assert failed.value.reason == "too_many_models"


def test_a_counter_without_a_model_is_left_out() -> None:
    """Tokens of nobody cannot be priced; the models beside them count."""
    outcome = read(MAPPING, b's:out_total 5\ns:out_total{model="m"} 6\n')
    assert [row["output_tokens"] for row in outcome["rows"]] == [6]
    assert outcome["left_out"] == {"no_model": 1}
