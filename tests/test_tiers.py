"""The tiers a model's tokens are sold on: shares of usage that conserve every token."""

from typing import Any

import polars as pl
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from idlewatt.processors.economy import tiers
from idlewatt.processors.economy.tiers import ENGINE_COLUMNS, TIER_COLUMNS
from idlewatt.stream.frames import empty_frame, frame_schema
from idlewatt.stream.records import TOKENS

MINUTE_MS = 60_000
NOW_MS = 1_760_000_040_000
KINDS = ("output_tokens", "input_tokens", "cached_input_tokens")


def usage(*rows: tuple[str, tuple[int, int, int], int]) -> pl.DataFrame:
    """(tier, tokens by kind, minutes ago)."""
    told: list[Any] = [
        ("s", "m", tier, NOW_MS - ago * MINUTE_MS, *tokens, 10, 20) for tier, tokens, ago in rows
    ]
    return pl.DataFrame(told, schema=TIER_COLUMNS, orient="row")


def engines(*rows: tuple[tuple[int, int, int], int]) -> pl.DataFrame:
    made: list[Any] = [("s", "m", NOW_MS - ago * MINUTE_MS, *tokens) for tokens, ago in rows]
    return pl.DataFrame(made, schema=ENGINE_COLUMNS, orient="row")


def made(*counts: tuple[int, int, int], at_ms: int = NOW_MS) -> pl.DataFrame:
    rows = pl.DataFrame(
        [
            {"site": "s", "model_name": "m", "window_start_ms": at_ms} | dict(zip(KINDS, c, strict=True))
            for c in counts
        ]
    )
    return pl.concat([empty_frame(TOKENS), rows], how="diagonal").cast(frame_schema(TOKENS))  # type: ignore[arg-type]


def test_shares_are_usage_over_the_engines_tokens_of_the_same_time() -> None:
    """Half of the output was asked for on tier a, an eighth on b; the rest nobody claims."""
    found = usage(("a", (40, 0, 0), 1), ("a", (10, 0, 0), 0), ("b", (12, 0, 0), 1))
    # what was made before the trailing hour says nothing
    shares = tiers.shares(found, engines(((500, 0, 0), 60), ((80, 0, 0), 2), ((20, 8, 0), 0)))
    rows = tiers.split(made((1000, 8, 0)), shares, "standard")
    assert rows.select("tier", "attributed", *KINDS).rows() == [
        ("a", True, 500, 0, 0),
        ("b", True, 120, 0, 0),
        ("standard", False, 380, 8, 0),
    ]


def test_usage_waits_for_engines_that_are_behind_and_not_for_those_that_are_gone() -> None:
    """A gateway that goes on with another provider's engines is not remembered for ever."""
    hours = usage(*(("a", (1, 0, 0), 60 * ago) for ago in range(100)))
    for made_ago, kept in ((10, 11), (73, 74), (74, 1), (99, 1)):
        behind = tiers.reached(engines(((1, 0, 0), 60 * made_ago)))
        assert tiers.recent(hours.clear(), hours, behind).height == kept


def test_of_too_much_usage_that_waits_for_a_sites_engines_the_earliest_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is asked for first; a model that no engine serves where others are served is none of it."""
    monkeypatch.setattr(tiers, "MAX_ROWS", 5)
    hours = usage(*(("a", (1, 0, 0), ago) for ago in range(9)))
    began = pl.DataFrame({"site": ["s"], "made_ms": [NOW_MS - 9 * MINUTE_MS]})
    nobody = engines().select(ENGINE_COLUMNS.keys())
    found = tiers.told(hours.clear(), hours, nobody, began)
    assert sorted(found["window_start_ms"]) == [NOW_MS - ago * MINUTE_MS for ago in (8, 7, 6, 5, 4)]
    others = engines(((1, 0, 0), 0)).with_columns(model_name=pl.lit("n"))
    assert tiers.told(hours.clear(), hours, others, began).is_empty()


def test_usage_of_more_than_the_engines_made_takes_all() -> None:
    """A gateway's count may run ahead of the engines': shares never come to more than the tokens there are."""
    shares = tiers.shares(usage(("a", (300, 0, 0), 0), ("b", (100, 0, 0), 0)), engines(((200, 0, 0), 0)))
    rows = tiers.split(made((1001, 0, 0)), shares, "standard")
    assert rows.select("tier", "output_tokens").rows() == [("a", 750), ("b", 251)]


def test_shares_end_an_hour_after_the_last_usage() -> None:
    """Who went silent is sold nothing more."""
    shares = tiers.shares(usage(("a", (10, 0, 0), 0)), engines(((10, 0, 0), 0)))
    for after_ms, tier in ((3_599_000, "a"), (3_600_000, "standard")):
        rows = tiers.split(made((7, 0, 0), at_ms=NOW_MS + after_ms), shares, "standard")
        assert rows.get_column("tier").to_list() == [tier]


@pytest.mark.parametrize(("minutes_ago", "sold"), [(2, 105), (0, 100), (-1, 100)])
def test_one_request_is_no_share_of_an_hour_of_others(minutes_ago: int, sold: int) -> None:
    """Whether its minute was told by the engines long ago, just now or not yet."""
    hour = [((60, 0, 0), ago) for ago in range(60)]
    shares = tiers.shares(usage(("a", (100, 0, 0), minutes_ago)), engines(*hour))
    rows = tiers.split(made((3600, 0, 0)), shares, "standard")
    assert rows.select("tier", "output_tokens").rows() == [("a", sold), ("standard", 3600 - sold)]


def test_shares_that_ended_do_not_come_back() -> None:
    """The next who asks, hours later, pays for his own tier."""
    first = tiers.shares(usage(("a", (10, 0, 0), 300)), engines(((10, 0, 0), 300)))
    assert first.height == 1
    later = tiers.shares(usage(("b", (10, 0, 0), -1)), engines(((0, 0, 0), 0)), first)
    assert later.get_column("tier").to_list() == ["b"]
    # while they hold, the ledger has not told of the newest usage
    still = tiers.shares(usage(("b", (10, 0, 0), 280)), engines(((0, 0, 0), 290)), first)
    assert still.get_column("tier").to_list() == ["a"]


def test_shares_hold_for_an_hour_after_the_minute_that_was_compared() -> None:
    """However far usage was read ahead of the engines."""
    shares = tiers.shares(usage(("a", (10, 0, 0), 180), ("b", (10, 0, 0), 0)), engines(((10, 0, 0), 180)))
    for after_ms, tier in ((3_599_000, "a"), (3_600_000, "standard")):
        rows = tiers.split(made((7, 0, 0), at_ms=NOW_MS - 180 * MINUTE_MS + after_ms), shares, "standard")
        assert rows.get_column("tier").to_list() == [tier]


COUNTS = st.tuples(*[st.integers(0, 10**12)] * 3)


@examples(100)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), COUNTS, st.integers(0, 59)), max_size=6),
    st.lists(st.tuples(COUNTS, st.integers(0, 59)), max_size=4),
    st.lists(COUNTS, min_size=1, max_size=5),
)
def test_every_token_is_sold_once(
    told: list[tuple[str, tuple[int, int, int], int]],
    engine: list[tuple[tuple[int, int, int], int]],
    counts: list[tuple[int, int, int]],
) -> None:
    """For any usage the tiers' parts add up to the tokens, and none is negative."""
    rows = tiers.split(made(*counts), tiers.shares(usage(*told), engines(*engine)), "standard")
    assert [rows.get_column(kind).sum() for kind in KINDS] == [
        sum(count[at] for count in counts) for at in range(3)
    ]
    assert all((rows.get_column(kind) >= 0).all() for kind in KINDS)
