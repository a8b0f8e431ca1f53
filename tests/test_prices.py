"""Prices in force, and what consumers owe: exact at every edge, whatever is read together."""

import datetime as dt
import fnmatch
from collections import defaultdict
from collections.abc import Sequence
from zoneinfo import ZoneInfo

import polars as pl
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from idlewatt.processors.amounts import rounded
from idlewatt.processors.economy.book import MICRO, Book
from idlewatt.processors.economy.book_file import parse_book
from idlewatt.processors.economy.prices import VOLUME_COLUMNS, price_frame, price_minutes
from idlewatt.processors.economy.rests import REST_COLUMNS
from idlewatt.processors.economy.usage_minutes import MINUTE_COLUMNS

MINUTE_MS = 60_000
STEPPED = """
currency = "EUR"
time_zone = "Europe/Berlin"
[[tier]]
name = "standard"
[[tier]]
name = "gift"
sold = false
[[price]]
model = "m"
input = 0.1
cached_input = 0.02
output = 0.7
steps = [{above_mtok = 1, output = 0.5}, {above_mtok = 3, input = 0.03, output = 0.3}]
"""


def book_of(text: str) -> Book:
    return parse_book(text.encode(), "book") if text else Book()


def ms(text: str, zone: str) -> int:
    return round(dt.datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()) * 1000


def minute(
    tokens: tuple[int, int, int], at_ms: int = 1_760_000_040_000, team: str = "t", tier: str = "standard"
) -> dict[str, object]:
    """One row of usage: output, input and cached input tokens."""
    names = {"function": "", "agent_family": "", "engineer": "", "model_name": "m", "source": "gateway"}
    counts = dict(zip(("output_tokens", "input_tokens", "cached_input_tokens"), tokens, strict=True))
    where = {"site": "s", "window_start_ms": at_ms, "window_ms": MINUTE_MS, "team": team, "tier": tier}
    return names | counts | where


def owed(
    book: Book, rows: Sequence[dict[str, object]], sizes: Sequence[int] = ()
) -> tuple[list[int | None], list[int | None], dict[str, int]]:
    """Spend and list value of each row, read in batches of the sizes; and the volumes by month."""
    volumes, rests = pl.DataFrame(schema=VOLUME_COLUMNS), pl.DataFrame(schema=REST_COLUMNS)
    spent: list[int | None] = []
    listed: list[int | None] = []
    at = 0
    for size in sizes or [len(rows)]:
        priced, volumes, rests = price_minutes(
            book, pl.DataFrame(list(rows[at : at + size]), schema=MINUTE_COLUMNS), volumes, rests
        )
        spent += priced.get_column("spend_micro").to_list()
        listed += priced.select(rounded(pl.col("worth"), MICRO)).to_series().to_list()
        at += size
    assert at == len(rows)
    return spent, listed, dict(volumes.select("month", "tokens").iter_rows())


def test_brackets_of_a_name_are_brackets() -> None:
    """`*` and `?` match; a bracket stands for itself, as names of models may have them."""
    book = book_of('[[price]]\nmodel = "m[12]*"\ninput = 0\noutput = 1\n')
    wanted = pl.DataFrame({"model_name": ["m[12]", "m1", "m[12]-fp8"]}).with_columns(
        tier=pl.lit("standard"), window_start_ms=pl.lit(0, pl.Int64)
    )
    assert set(price_frame(book, wanted)["model_name"]) == {"m[12]", "m[12]-fp8"}


def test_the_first_glob_in_force_and_of_it_the_newest_price_count() -> None:
    """A glob further down serves only where none above it has a price in force yet."""
    book = book_of("""
time_zone = "America/New_York"
[[price]]
model = "llama-3*"
input = 1
output = 1
effective_from = 2026-03-01
[[price]]
model = "llama-3*"
input = 2
output = 2
effective_from = 2026-06-01T12:30:00
[[price]]
model = "llama*"
input = 3
output = 3
""")

    def price(model: str, at: str, tier: str = "standard") -> int | None:
        wanted = pl.DataFrame(
            {"model_name": [model], "tier": [tier], "window_start_ms": [ms(at, "America/New_York")]}
        )
        found = price_frame(book, wanted).get_column("price_output").to_list()
        return found[0] // 1_000_000 if found else None

    assert price("llama-3.3", "2026-02-28T23:59:50") == 3
    assert price("llama-3.3", "2026-03-01T00:00:00") == 1
    assert price("llama-3.3", "2026-06-01T12:29:50") == 1
    assert price("llama-3.3", "2026-06-01T12:30:00") == 2
    assert price("llama-2", "2027-01-01T00:00:00") == 3
    assert price("qwen", "2027-01-01T00:00:00") is None
    assert price("llama-2", "2027-01-01T00:00:00", "premium") is None


@examples(60)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["*", "a*", "ab", "b?"]),
            st.none() | st.integers(0, 5),
            st.integers(0, 9),
        ),
        max_size=6,
        unique_by=lambda entry: entry[:2],
    ),
    st.sampled_from(["ab", "ac", "bc", "c"]),
    st.integers(0, 6 * 1440 - 1),
)
def test_prices_in_force_are_those_of_the_definition(
    entries: list[tuple[str, int | None, int]], model: str, minute_of_days: int
) -> None:
    """For any book and minute the price is what the rule, read literally, gives."""
    first = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    text = "".join(
        f'[[price]]\nmodel = "{glob}"\ninput = 0\noutput = {price}\n'
        + (f"effective_from = {(first + dt.timedelta(days=day)).date()}\n" if day is not None else "")
        for glob, day, price in entries
    )
    at = first + dt.timedelta(minutes=minute_of_days)
    expected = None
    for glob in dict.fromkeys(entry[0] for entry in entries):
        in_force = [
            (-1 if day is None else day, price)
            for other, day, price in entries
            if other == glob and (day is None or first + dt.timedelta(days=day) <= at)
        ]
        if fnmatch.fnmatchcase(model, glob) and in_force:
            expected = max(in_force)[1] * 1_000_000
            break
    wanted = pl.DataFrame(
        {"model_name": [model], "tier": ["standard"], "window_start_ms": [round(at.timestamp()) * 1000]}
    )
    found = price_frame(book_of(text), wanted).get_column("price_output").to_list()
    assert found == ([] if expected is None else [expected])


def test_a_row_over_the_edge_of_a_step_is_split_at_the_edge() -> None:
    """A million tokens at the first price, the next at the second, and so on, to the micro-unit."""
    # 4 million tokens, half of them output: 1 below the first edge, 2 to the second, 1 above
    spent, listed, volumes = owed(book_of(STEPPED), [minute((2_000_000, 2_000_000, 0))])
    expected = (0.5 * 0.7 + 0.5 * 0.1) + (1 * 0.5 + 1 * 0.1) + (0.5 * 0.3 + 0.5 * 0.03)
    assert spent == [round(expected * 1_000_000)]
    assert listed == [1_600_000]
    assert volumes == {"2025-10": 4_000_000}


def test_a_step_begins_after_its_volume() -> None:
    """The last token up to the edge has the price below it, the next one the price above."""
    rows = [minute((999_999, 0, 0)), minute((1, 0, 0)), minute((1_000_000, 0, 0))]
    assert owed(book_of(STEPPED), rows)[0] == [699_999, 1, 500_000]


@pytest.mark.parametrize(
    ("entry", "step", "later", "prices"),
    [
        ("", "", "", (50_000, 30_000)),
        ("", "0.04", "", (40_000, 40_000)),
        ("0.02", "", "0.01", (20_000, 10_000)),
    ],
)
def test_input_from_cache_that_no_line_prices_costs_what_computed_input_does(
    entry: str, step: str, later: str, prices: tuple[int, int]
) -> None:
    """Also above a step that lowers input: what an entry or a step names holds until another step names it."""
    own, first, second = (f"cached_input = {price}" if price else "" for price in (entry, step, later))
    steps = (
        f"{{above_mtok = 1, {', '.join(filter(None, ('input = 0.05', first)))}}}",
        f"{{above_mtok = 2, {', '.join(filter(None, ('input = 0.03', second)))}}}",
    )
    text = f'[[price]]\nmodel = "m"\ninput = 0.1\noutput = 1\n{own}\nsteps = [{", ".join(steps)}]\n'
    rows = [minute((0, 0, 1_000_000))] * 3
    assert owed(book_of(text), rows)[0] == [20_000 if entry else 100_000, *prices]


def test_volumes_begin_anew_with_the_month_of_the_books_time_zone() -> None:
    """Summer time ends on a month's last weekend here: the month turns at local midnight, not at that of UTC."""
    last = ms("2026-10-31T23:59:00", "Europe/Berlin")
    rows = [
        minute((3_000_000, 0, 0), last),
        minute((1_000_000, 0, 0), last),
        minute((1_000_000, 0, 0), last + MINUTE_MS),
    ]
    spent, _, volumes = owed(book_of(STEPPED), rows)
    assert spent == [700_000 + 2 * 500_000, 300_000, 700_000]
    assert volumes == {"2026-10": 4_000_000, "2026-11": 1_000_000}
    # in New York both minutes are of October
    assert owed(book_of(STEPPED.replace("Europe/Berlin", "America/New_York")), rows)[0][2] == 300_000


def test_each_billed_consumer_has_steps_of_its_own_and_an_unknown_one_none() -> None:
    """Nobody gets another's discount, and tokens of nobody add up to none."""
    rows = [
        minute((3_000_000, 0, 0), team="a"),
        minute((1_000_000, 0, 0), team="b"),
        *[minute((3_000_000, 0, 0), team="")] * 2,
    ]
    assert owed(book_of(STEPPED), rows)[0] == [1_700_000, 700_000, 2_100_000, 2_100_000]


def test_a_tier_that_is_not_sold_owes_nothing_and_is_listed() -> None:
    """A free tier without a price of its own is listed at the default tier's; a tier nobody sells has no price."""
    spent, listed, _ = owed(
        book_of(STEPPED), [minute((1_000_000, 0, 0), tier="gift"), minute((5, 0, 0), tier="gold")]
    )
    assert spent == [0, None]
    assert listed == [700_000, None]


TOKENS = st.tuples(*[st.integers(0, 2_000_000)] * 3)


@examples(80)
@given(
    st.lists(
        st.tuples(TOKENS, st.sampled_from(["a", "b", ""]), st.integers(0, 90_000)), min_size=1, max_size=12
    ),
    st.data(),
)
def test_what_is_owed_is_that_of_the_definition_however_rows_are_read(
    told: list[tuple[tuple[int, int, int], str, int]], data: st.DataObject
) -> None:
    """Any batches give the same rows, and each is the sum over the steps of its proportional parts."""
    zone = "Europe/Berlin"
    first = ms("2026-10-01T00:00:00", zone)
    rows = [minute(tokens, first + at * MINUTE_MS, team) for tokens, team, at in told]
    sizes, left = [], len(rows)
    while left:
        sizes.append(data.draw(st.integers(1, left)))
        left -= sizes[-1]
    spent, listed, volumes = owed(book_of(STEPPED), rows, sizes)
    assert (spent, listed, volumes) == owed(book_of(STEPPED), rows)
    before: defaultdict[tuple[str, str], int] = defaultdict(int)
    exact: defaultdict[tuple[str, str], int] = defaultdict(int)
    for (tokens, team, at), found in zip(told, spent, strict=True):
        moment = dt.datetime.fromtimestamp(first / 1000 + at * 60, ZoneInfo(zone))
        who = team, f"{moment:%Y-%m}"
        booked = _whole(exact[who])
        exact[who] += _by_definition(tokens, before[who] if team else 0, stepped=bool(team))
        assert found == _whole(exact[who]) - booked
        before[who] += sum(tokens)


def _whole(exact: int) -> int:
    return (exact + 500_000) // 1_000_000


def _by_definition(tokens: tuple[int, int, int], volume: int, *, stepped: bool) -> int:
    """Micro-units x 10^6, from whole numbers: prices per million tokens of output, input and cached input by step."""
    steps = [
        (0, 700_000, 100_000, 20_000),
        (10**6, 500_000, 100_000, 20_000),
        (3 * 10**6, 300_000, 30_000, 20_000),
    ]
    whole = sum(tokens)
    edges = [edge for edge, *_ in steps[1:]] + [10**18]
    worth = 0
    for (below, *prices), above in zip(
        steps if stepped else steps[:1], edges if stepped else [10**18], strict=True
    ):
        begin, end = (min(max(edge - volume, 0), whole) for edge in (below, above))
        for count, price in zip(tokens, prices, strict=True):
            worth += (count * end // max(whole, 1) - count * begin // max(whole, 1)) * price
    return worth


@pytest.mark.parametrize("rows", [[], [minute((0, 0, 0))]], ids=["no_rows", "no_tokens"])
def test_nothing_costs_nothing(rows: list[dict[str, object]]) -> None:
    """No row, no error; a row without tokens owes 0."""
    assert owed(book_of(STEPPED), rows)[0] == [0] * len(rows)
