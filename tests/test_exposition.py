import time
from collections import Counter

import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from idlewatt.collectors.exposition import Sample, SamplePicker
from idlewatt.stream.errors import SourceError

NAMES = ("srv:tokens_total", "srv:running", "process_start_time_seconds")
PICKER = SamplePicker(NAMES, ["srv:tokens_total"], "srv shows it with --metrics")


def reason(body: bytes) -> str:
    with pytest.raises(SourceError) as failed:
        PICKER.pick(body)
    return failed.value.reason


def test_takes_the_named_series_and_nothing_that_only_begins_or_ends_like_them() -> None:
    """_created gauges, histograms called ..._total and longer names are left alone, comments too."""
    body = b"""# HELP srv:tokens_total srv:tokens_total 5
# TYPE srv:tokens_total counter
srv:tokens_total{m="a"} 12
srv:tokens_created{m="a"} 1.7e+09
srv:tokens_total_created{m="a"} 1.7e+09
srv:tokens_total_bucket{m="a",le="+Inf"} 9
srv:tokens_total_sum{m="a"} 9
other_srv:tokens_total{m="a"} 9
srv:tokens{m="a"} 9
  process_start_time_seconds\t1.79e+09\t1790000000000
srv:running {m="a",} 3
"""
    assert PICKER.pick(body) == [
        Sample("srv_tokens_total", {"m": "a"}, 12),
        Sample("process_start_time_seconds", {}, 1.79e9),
        Sample("srv_running", {"m": "a"}, 3),
    ]


def test_colon_and_underscore_are_alike() -> None:
    """A page whose names are escaped as OpenMetrics does is read the same."""
    [sample] = PICKER.pick(b'# TYPE srv:tokens counter\r\nsrv_tokens_total{m="a"} 12\r\n# EOF\r\n')
    assert sample == Sample("srv_tokens_total", {"m": "a"}, 12)


def test_label_values_are_unescaped() -> None:
    """Braces, commas, quotes, line feeds and other alphabets in a model's name arrive as they are."""
    [sample] = PICKER.pick('srv:tokens_total{m="a{b},\\"c\\"\\n\\\\ 模型",n=""} 1\n'.encode())
    assert sample.labels == {"m": 'a{b},"c"\n\\ 模型', "n": ""}


def test_values_that_are_no_numbers_are_left_to_the_reader() -> None:
    """NaN and infinities are samples; what they are worth is decided where the series is known."""
    samples = PICKER.pick(b'srv:tokens_total{m="a"} NaN\nsrv:tokens_total{m="b"} +Inf\n')
    assert [str(sample.value) for sample in samples] == ["nan", "inf"]


def test_duplicate_series_are_refused() -> None:
    """The same name and labels twice, in any order of labels and with either spelling, is an error."""
    twice = b'srv:tokens_total{a="1",b="2"} 1\nsrv:tokens_total{b="2",a="1"} 1\n'
    assert reason(twice) == "duplicate_series"
    assert reason(b"srv:tokens_total 1\nsrv_tokens_total 2\n") == "duplicate_series"


@pytest.mark.parametrize(
    ("body", "looks"),
    [
        (b"", "the page is empty"),
        (b"\n<!doctype html><html><body>Welcome</body></html>", "the page is HTML"),
        (b'[{"iter": 1}]', "the page is JSON"),
        (b"# HELP x y\nother:tokens_total 5\nhttp_requests 1\n", "its series begin with http_, other:"),
        (b"process_start_time_seconds 1.7e9\nsrv:running 3\n", "its series begin with process_, srv:"),
        (b"Hello there!", "the page begins with 'Hello there!'"),
        (b"\xff\xfe\x00", "the page begins with"),
    ],
)
def test_a_page_without_the_series_is_told_from_what_it_is(body: bytes, looks: str) -> None:
    """The error says what was expected, what the page looks like, and what may mend it."""
    with pytest.raises(SourceError) as failed:
        PICKER.pick(body)
    assert failed.value.reason == "no_known_series"
    assert "expected srv:tokens_total" in str(failed.value)
    assert looks in str(failed.value)
    assert "srv shows it with --metrics" in str(failed.value)


def test_a_number_cut_short_is_not_taken() -> None:
    """A page that ends within a line is refused: the last digits may be missing."""
    assert reason(b"srv:tokens_total 123") == "truncated"


@pytest.mark.parametrize(
    "line",
    [
        b"srv:tokens_total{m=a} 1",
        b'srv:tokens_total{m="a" 1',
        b'srv:tokens_total{m="a"}',
        b'srv:tokens_total{m="a"} twelve',
        b'srv:tokens_total{m="a"} 1_000',
        b'srv:tokens_total{m="a",m="b"} 1',
        b'srv:tokens_total{m="' + b"a" * 3_000 + b'"} 1',
    ],
)
def test_a_wanted_line_that_cannot_be_read_fails_the_page(line: bytes) -> None:
    """Leaving it out would make a sum too small, so the page is refused and the line shown."""
    with pytest.raises(SourceError, match="srv:tokens_total") as failed:
        PICKER.pick(b"srv:running 1\n" + line + b"\n")
    assert failed.value.reason == "bad_sample"


def test_lines_that_are_not_wanted_may_be_anything() -> None:
    """What nobody reads cannot fail a page."""
    assert len(PICKER.pick(b'\xff\xfe{{{\nfoo{bar="baz} x\n# TYPE\nsrv:tokens_total 1\n')) == 1


def test_a_million_labels_are_refused() -> None:
    """More samples of known series than any server has end the reading early."""
    body = b"".join(b'srv:tokens_total{m="%d"} 1\n' % i for i in range(200_000))
    started = time.monotonic()
    assert reason(body) == "too_many_series"
    assert time.monotonic() - started < 5


def test_a_hostile_page_costs_seconds_at_most() -> None:
    """Sixteen megabytes that look like wanted lines, and quotes that the parser is slow on."""
    started = time.monotonic()
    assert reason(b"srv:tokens_tota" * 1_100_000) == "no_known_series"
    assert reason(b'srv:tokens_total{m="' + b'\\"' * 8_000_000 + b'"} 1\n') == "bad_sample"
    assert time.monotonic() - started < 5


LINES = st.builds(
    "{} {}".format,
    st.sampled_from(
        [
            "srv:tokens_total",
            'srv:tokens_total{m="a"}',
            'srv_tokens_total{m="a"}',
            'srv:tokens_total{m="a} 7 #"}',
            'srv:tokens_total{m="a"} 7 # {t="1"}',
            'srv:running {n="1",m="b",}',
            'srv:running{m="b",n="1"}',
            "srv:running{m=b}",
        ]
    ),
    st.sampled_from(
        ["0", "7", "12.5", "1.79e+09", "  3\t", "7 1790000000000", "1_0", "+Inf", "-1", "7 # {} 8", "}"]
    ),
)
PAGES = st.lists(LINES, max_size=6).map(lambda lines: "".join(f"{line}\n" for line in lines).encode())


@given(st.lists(PAGES, min_size=1, max_size=4))
@examples(300)
def test_a_page_says_the_same_whatever_came_before_it(pages: list[bytes]) -> None:
    """Series that were there before are known again by how they stand on the page, and their values are those of now."""
    going_on, left_out = SamplePicker(NAMES, NAMES), Counter[str]()
    for page in pages:
        afresh: Counter[str] = Counter()
        left_out.clear()
        assert _picked(going_on, page, left_out) == _picked(SamplePicker(NAMES, NAMES), page, afresh)
        assert left_out == afresh


def _picked(picker: SamplePicker, page: bytes, left_out: Counter[str]) -> list[Sample] | str:
    try:
        return picker.pick(page, left_out)
    except SourceError as error:
        return error.reason
