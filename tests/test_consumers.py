"""What consumers owe, volume steps included, is the same however rows are read and whoever else is billed."""

import datetime as dt
import random
from typing import Any

import polars as pl
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from idlewatt.processors.economy import consumers, rests, usage_minutes
from idlewatt.processors.economy.book import Book
from idlewatt.processors.economy.book_file import parse_book
from idlewatt.processors.economy.consumers import spend
from idlewatt.processors.economy.prices import VOLUME_COLUMNS
from idlewatt.processors.economy.rests import REST_COLUMNS
from idlewatt.processors.economy.usage import UsageState, fold_usage
from idlewatt.processors.economy.usage_minutes import MINUTE_COLUMNS
from idlewatt.stream import records
from idlewatt.stream.frames import frame_schema
from idlewatt.stream.records import UsageRow

MINUTE_MS = 60_000
START_MS = 1_767_225_600_000
# a micro-unit a token, half of it beyond a million tokens
BOOK = parse_book(
    b"""
[[price]]
model = "m"
input = 1
output = 1
steps = [{ above_mtok = 1, input = 0.5, output = 0.5 }]
""",
    "book",
)
NONE = pl.DataFrame(schema=VOLUME_COLUMNS)
NO_RESTS = pl.DataFrame(schema=REST_COLUMNS)


def book_of(text: str) -> Book:
    return parse_book(text.encode(), "book")


def at(month: int, day: int = 15) -> int:
    return int(dt.datetime(2026, month, day, tzinfo=dt.UTC).timestamp()) * 1000


def minute(team: str, output: int, start_ms: int = START_MS, **changes: Any) -> dict[str, Any]:
    empty = {name: "" if dtype == pl.String else 0 for name, dtype in MINUTE_COLUMNS.items()}
    told = {"site": "hall", "window_start_ms": start_ms, "window_ms": MINUTE_MS, "team": team}
    return empty | told | {"model_name": "m", "output_tokens": output} | changes


def minutes(*rows: dict[str, Any]) -> pl.DataFrame:
    return pl.DataFrame(list(rows), schema=MINUTE_COLUMNS)


def owed(
    *folds: list[dict[str, Any]], book: Book = BOOK, who: tuple[str, str] = ("hall", "search")
) -> tuple[list[int], pl.DataFrame]:
    """What `who` owes row by row, and the volumes after all folds."""
    volumes, rests, amounts = NONE, NO_RESTS, []
    for rows in folds:
        spent = spend(book, minutes(*rows), volumes, rests)
        volumes, rests = spent.volumes, spent.rests
        amounts += spent.rows.filter(site=who[0], team=who[1]).get_column("spend_micro").to_list()
    return amounts, volumes


def test_another_sites_months_change_nobodys_steps() -> None:
    """A site that was cut off goes on in its own month, although another of its partition is months ahead."""
    ahead = [minute("search", 1, at(month), site="other") for month in (3, 4, 5)]
    late = [[minute("search", 1_000_000, at(3))] for _ in range(2)]
    assert owed(ahead, *late)[0] == owed(*late)[0] == [1_000_000, 500_000]


def test_a_sites_older_months_are_forgotten() -> None:
    """Volumes of the newest month and the one before are kept, for usage that comes late, and no others."""
    _, volumes = owed(*([minute("search", 1, at(month))] for month in (3, 4, 5)))
    assert volumes.get_column("month").to_list() == ["2026-04", "2026-05"]


@pytest.mark.parametrize("at_once", [True, False])
def test_a_flood_of_names_takes_nobodys_steps(monkeypatch: pytest.MonkeyPatch, at_once: bool) -> None:
    """Beyond the bound new names owe without steps, and known ones keep theirs, in the next month too."""
    monkeypatch.setattr(consumers, "MAX_SERIES", 10)
    known = minute("search", 1_000_000)
    flood = [minute(f"flood-{n}", 10**9) for n in range(50)]
    late = minute("late", 2_000_000)
    following = START_MS + 31 * 24 * 60 * MINUTE_MS
    after = [known, late, minute("search", 1_000_000, following), minute("search", 1_000_000, following)]
    rows = [known, *flood, *after]
    folds = [rows] if at_once else [[one] for one in rows]
    amounts, volumes = owed(*folds)
    assert amounts == [1_000_000, 500_000, 1_000_000, 500_000]
    assert owed(*folds, who=("hall", "late"))[0] == [2_000_000]
    assert volumes.height == 6


@pytest.mark.parametrize("at_once", [1, 7, 10_000])
def test_a_million_small_requests_owe_what_one_large_one_does(at_once: int) -> None:
    """0.4 and 0.5 micro-units each: rounded one by one they would owe nothing and twice as much."""
    cheap = book_of('[[price]]\nmodel = "*"\ninput = 0\noutput = 0.02\n')
    rows = [minute(team, tokens) for _ in range(20) for team, tokens in (("search", 20), ("chat", 25))]
    folds = [rows[begin : begin + at_once] for begin in range(0, len(rows), at_once)]
    for team, owes in (("search", 8), ("chat", 10)):
        amounts, _ = owed(*folds, book=cheap, who=("hall", team))
        assert sum(amounts) == owes
        assert set(amounts) == {0, 1}


def test_beyond_the_bound_rows_are_rounded_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flood of names takes nobody's rests, and leaves none."""
    monkeypatch.setattr(rests, "MAX_RESTS", 3)
    cheap = book_of('[[price]]\nmodel = "*"\ninput = 0\noutput = 0.02\n')
    flood = [minute(f"flood-{n}", 25) for n in range(50)]
    folds = [[minute("search", 20)], flood, [minute("search", 20)] * 4, flood]
    for team, owes in (("search", 2), ("flood-0", 1), ("flood-49", 2)):
        assert sum(owed(*folds, book=cheap, who=("hall", team))[0]) == owes


@examples(30)
@given(
    st.lists(
        st.tuples(st.sampled_from(["c", "d", None]), st.integers(0, 400_000), st.integers(0, 400_000)),
        min_size=1,
        max_size=15,
    ),
    st.randoms(use_true_random=False),
)
def test_steps_are_reached_by_the_same_rows_however_they_are_read(
    told: list[tuple[str | None, int, int]], rng: random.Random
) -> None:
    """Counters (c, d) and events of one consumer, cut anywhere: each row owes the same."""
    rows, values = [], {"c": [0, 0], "d": [0, 0]}
    for place, (counter, output, uncached) in enumerate(told):
        now = values.get(counter or "", [0, 0])
        now[:] = [now[0] + output, now[1] + uncached]
        rows.append(
            UsageRow(
                ts_ms=START_MS + place * 20_000,
                site="hall",
                source="gateway",
                counter=counter,
                event_id=f"{place}" if counter is None else None,
                team="search",
                model_name="m",
                output_tokens=now[0],
                input_tokens=now[1],
            )
        )
    read = pl.DataFrame(rows, schema=frame_schema(records.USAGE))

    def priced(sizes: list[int]) -> pl.DataFrame:
        state, volumes, rests, parts, begin = UsageState.empty(), NONE, NO_RESTS, [], 0
        for size in sizes:
            done = fold_usage(state, read.slice(begin, size), START_MS + 10**9)
            spent = spend(BOOK, done.minutes, volumes, rests)
            state, volumes, rests, begin = done.state, spent.volumes, spent.rests, begin + size
            parts.append(spent.rows)
        return pl.concat(parts)

    sizes = []
    while sum(sizes) < len(rows):
        sizes.append(rng.randint(1, len(rows) - sum(sizes)))
    assert priced(sizes).equals(priced([len(rows)]))


def test_rows_are_the_same_however_few_are_cut_and_priced_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """How many rows are worked on at once bounds memory and changes no figure."""
    gateway = {"site": "hall", "source": "gateway", "team": "search", "model_name": "m"}
    rows = [
        UsageRow(ts_ms=START_MS + ms, counter=f"c{n}", output_tokens=ms * (n + 1) // 90, **gateway)
        for ms in (0, 50 * MINUTE_MS)
        for n in range(7)
    ]
    read = pl.DataFrame(rows, schema=frame_schema(records.USAGE))

    def priced() -> pl.DataFrame:
        done = fold_usage(UsageState.empty(), read, START_MS + 10**9)
        return spend(BOOK, done.minutes, NONE, NO_RESTS).rows

    whole = priced()
    monkeypatch.setattr(usage_minutes, "_SPLIT_AT_ONCE", 2)
    monkeypatch.setattr(consumers, "_PRICED_AT_ONCE", 33)
    assert whole.height == 7 * 50
    assert priced().equals(whole)
