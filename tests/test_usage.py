"""What counters and events of usage say somebody spent is booked once, to the minute, however the rows travel."""

import dataclasses
import itertools
import random
from collections import Counter
from typing import Any

import polars as pl
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from idlewatt.processors.economy import usage, usage_gains
from idlewatt.processors.economy.usage import Usage, UsageState, fold_usage
from idlewatt.processors.economy.usage_minutes import NAMES
from idlewatt.processors.snapshot import read_snapshot, write_snapshot
from idlewatt.stream import records
from idlewatt.stream.frames import frame_schema
from idlewatt.stream.records import TOKEN_COUNTS, UsageRow
from idlewatt.stream.topics import EVENT_HORIZON_MS

START_MS = 1_767_225_600_000
MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS
FAR_MS = START_MS + 1000 * DAY_MS


def row(ts_ms: int, output: int, **changes: Any) -> UsageRow:
    told: dict[str, Any] = {
        "site": "hall",
        "source": "gateway",
        "counter": "c",
        "team": "search",
        "model_name": "m",
    }
    return UsageRow(ts_ms=ts_ms, output_tokens=output, **told | changes)


def frame(rows: list[UsageRow]) -> pl.DataFrame:
    schema = frame_schema(records.USAGE)
    return pl.DataFrame([dataclasses.astuple(one) for one in rows], schema=schema, orient="row")


def fold(state: UsageState, *rows: UsageRow, now_ms: int = FAR_MS) -> Usage:
    return fold_usage(state, frame(list(rows)), now_ms)


def folded(*batches: list[UsageRow]) -> tuple[pl.DataFrame, Counter[str], UsageState]:
    """All minutes and reasons of batches folded one after the other, each from a restored snapshot."""
    state, minutes, rejected = UsageState.empty(), [], Counter[str]()
    for batch in batches:
        snapshot = write_snapshot("test/1", {}, state.frames())
        done = fold(UsageState.of(read_snapshot("test/1", snapshot)[1]), *batch)
        state = done.state
        minutes.append(done.minutes)
        rejected.update(done.rejected)
    return pl.concat(minutes), rejected, state


def output(minutes: pl.DataFrame) -> dict[int, int]:
    """Output tokens by minutes after START_MS."""
    tokens: Counter[int] = Counter()
    for start_ms, count in minutes.select("window_start_ms", "output_tokens").iter_rows():
        tokens[(start_ms - START_MS) // MINUTE_MS] += count
    return dict(tokens)


def test_gain_is_split_over_minutes() -> None:
    """What a counter gains over a minute's edge is split in proportion to time, the remainder to the last part."""
    minutes, rejected, _ = folded([row(START_MS + 50_000, 100), row(START_MS + 65_000, 110)])
    assert output(minutes) == {0: 6, 1: 4}
    assert not rejected


def test_first_reading_gains_nothing() -> None:
    """What a counter had before it was first read is not known to be of today, and counts for nobody."""
    minutes, _, _ = folded([row(START_MS, 1_000_000)])
    assert minutes.is_empty()


def test_new_epoch_counts_from_zero() -> None:
    """After a restart the new value is what was spent since the process started."""
    minutes, _, _ = folded(
        [row(START_MS, 500, epoch_ms=START_MS - HOUR_MS)],
        [row(START_MS + 60_000, 90, epoch_ms=START_MS + 30_000)],
    )
    assert output(minutes) == {0: 90}


def test_an_epoch_that_another_series_tells_is_no_restart() -> None:
    """Of a gateway that was there before and counts no less than then, nothing is counted a second time."""
    minutes, rejected, _ = folded(
        [row(START_MS, 500, epoch_ms=START_MS - 60_000)],
        [row(START_MS + 60_000, 510, epoch_ms=START_MS - 55_000)],
    )
    assert (output(minutes), rejected) == ({0: 10}, {})


def test_a_clock_that_was_ahead_costs_no_later_gateway_its_usage() -> None:
    """It said that a gateway began after it was read; the one that really began after that is newer."""
    minutes, rejected, _ = folded(
        [
            row(START_MS, 500, epoch_ms=START_MS + HOUR_MS // 2),
            row(START_MS + 60_000, 510, epoch_ms=START_MS + HOUR_MS // 2),
        ],
        [row(START_MS + 180_000, 7, epoch_ms=START_MS + 120_000)],
        [row(START_MS + 240_000, 10, epoch_ms=START_MS + 120_000)],
    )
    assert rejected == {}
    assert output(minutes) == {0: 10, 2: 7, 3: 3}


def test_restart_of_long_ago_counts_nothing() -> None:
    """A counter first read hours after its restart says nothing of when its tokens were spent."""
    minutes, _, _ = folded(
        [row(START_MS, 500, epoch_ms=START_MS - HOUR_MS)],
        [row(START_MS + 3 * HOUR_MS, 90, epoch_ms=START_MS + 1)],
        [row(START_MS + 3 * HOUR_MS + 60_000, 97, epoch_ms=START_MS + 1)],
    )
    assert output(minutes) == {180: 7}


def test_fall_without_epoch_is_a_restart() -> None:
    """A counter that tells no epoch and falls within minutes was reset; what it fell to was spent since."""
    minutes, _, _ = folded([row(START_MS, 500)], [row(START_MS + 60_000, 20)])
    assert output(minutes) == {0: 20}
    long_after, _, _ = folded([row(START_MS, 500)], [row(START_MS + HOUR_MS, 20)])
    assert long_after.is_empty()


def test_fall_to_more_than_can_have_been_spent_is_no_restart() -> None:
    """A counter that fell to more than a million tokens for each second since is another one, read for the first time."""
    least = 60_000_000
    for fell_to, spent in ((least, {0: least}), (least + 1, {})):
        minutes, _, _ = folded([row(START_MS, 10**12)], [row(START_MS + 60_000, fell_to)])
        assert output(minutes) == spent


def test_bad_readings_are_left_out_and_counted() -> None:
    """A fall within a known epoch, an older epoch and a repeat add nothing; each is counted by its reason."""
    epoch = {"epoch_ms": START_MS}
    minutes, rejected, _ = folded(
        [row(START_MS + 10_000, 100, **epoch), row(START_MS + 20_000, 90, **epoch)],
        [row(START_MS + 30_000, 5, epoch_ms=START_MS - 1), row(START_MS + 10_000, 100, **epoch)],
        [row(START_MS + 40_000, 130, **epoch)],
    )
    assert output(minutes) == {0: 30}
    assert rejected == {"counter_decrease": 1, "stale_epoch": 1, "repeat": 1}


@pytest.mark.parametrize("at_once", [True, False])
def test_a_reading_is_judged_by_the_last_one_of_its_counter(at_once: bool) -> None:
    """A reading without an epoch says nothing of those before it, whether they are read together or one by one."""
    known = {"epoch_ms": START_MS - HOUR_MS}
    older = {"epoch_ms": START_MS - 2 * HOUR_MS}
    rows = [
        row(START_MS, 100, **known),
        row(START_MS + 10_000, 40),
        row(START_MS + 20_000, 50, **known),
        row(START_MS + 30_000, 60),
        row(START_MS + 40_000, 75, **older),
    ]
    minutes, rejected, _ = folded(rows) if at_once else folded(*([one] for one in rows))
    assert output(minutes) == {0: 75}
    assert not rejected


def test_implausible_rows_are_refused() -> None:
    """Clocks gone wild, negative tokens and endless names cost their row and nothing else."""
    good = [row(START_MS, 0), row(START_MS + 1000, 7)]
    bad = [
        row(FAR_MS + 15_001, 9),
        row(1, 9),
        row(START_MS + 500, -1),
        row(START_MS + 500, 1 << 53),
        row(START_MS + 500, 9, engineer="x" * 513),
        row(START_MS + 500, 9, epoch_ms=START_MS + 500 + HOUR_MS + 1),
    ]
    minutes, rejected, _ = folded([*bad, *good])
    assert output(minutes) == {0: 7}
    assert rejected == {
        "clock_ahead": 1,
        "clock_before_1990": 1,
        "negative": 1,
        "implausible": 1,
        "name_too_long": 1,
        "epoch_ahead": 1,
    }


def test_change_of_rules_moves_no_past() -> None:
    """When the rules name another consumer for a counter, only what it gains from then on is theirs."""
    minutes, _, _ = folded(
        [row(START_MS, 1000, team="a"), row(START_MS + 10_000, 1010, team="a")],
        [row(START_MS + 20_000, 1025, team="b")],
        [row(START_MS + 30_000, 1100, team="a")],
    )
    by_team = minutes.group_by("team").agg(pl.col("output_tokens").sum())
    assert dict(by_team.iter_rows()) == {"a": 85, "b": 15}


@pytest.mark.parametrize(
    ("gap_ms", "window_ms", "parts"),
    [(HOUR_MS, MINUTE_MS, 60), (15 * HOUR_MS, HOUR_MS // 4, 60), (6 * DAY_MS, 6 * HOUR_MS, 24)],
)
def test_long_gaps_are_cut_coarser(gap_ms: int, window_ms: int, parts: int) -> None:
    """However long a gap, it becomes a bounded number of rows that still add up to what was gained."""
    minutes, _, _ = folded([row(START_MS, 0), row(START_MS + gap_ms, 1_000_003)])
    assert minutes.height == parts
    assert minutes.get_column("window_ms").unique().to_list() == [window_ms]
    assert (minutes.get_column("window_start_ms") % window_ms).sum() == 0
    assert minutes.get_column("output_tokens").sum() == 1_000_003


@pytest.mark.parametrize(
    ("gap_ms", "first_ms"), [(61 * MINUTE_MS, 10 * MINUTE_MS), (16 * HOUR_MS, 5 * HOUR_MS + 55 * MINUTE_MS)]
)
def test_nothing_of_a_gap_counts_before_or_after_it(gap_ms: int, first_ms: int) -> None:
    """What was spent from 0:05 on has the price, month and period of 0:05, and not of the quarter or the six hours; and it
    was spent by the gap's last minute."""
    begin_ms = START_MS + 5 * MINUTE_MS
    minutes, _, _ = folded([row(begin_ms + 17_000, 0), row(begin_ms + 17_000 + gap_ms, 1_000_003)])
    windows = minutes.select("window_start_ms", "window_ms").rows()
    assert windows[0] == (begin_ms, first_ms)
    assert sum(windows[-1]) == begin_ms + gap_ms + MINUTE_MS
    assert all(begin + length == after for (begin, length), (after, _) in itertools.pairwise(windows))
    assert minutes.get_column("output_tokens").sum() == 1_000_003


def test_silent_counter_is_forgotten() -> None:
    """A counter not read for a week starts anew, and takes no room once nothing can go on from it."""
    minutes, _, _ = folded([row(START_MS, 5), row(START_MS + 8 * DAY_MS, 900)])
    assert minutes.is_empty()
    _, _, state = folded([row(START_MS, 5)], [row(START_MS + 14 * DAY_MS, 1, counter="another")])
    assert state.counters.get_column("counter").to_list() == ["another"]


BATCHES = [[[0, 1, 2]], [[0], [1], [2]], [[0], [1, 2]], [[0, 1], [2]]]


@pytest.mark.parametrize("batches", BATCHES)
@pytest.mark.parametrize(("silent_ms", "gained"), [(7 * DAY_MS - 1, 895), (7 * DAY_MS, 0)])
def test_a_counter_is_forgotten_after_a_week_to_the_millisecond(
    silent_ms: int, gained: int, batches: list[list[int]]
) -> None:
    """Whatever else of the site is read meanwhile, and however rows are read together."""
    rows = [
        row(START_MS, 5),
        row(START_MS + 7 * DAY_MS, 0, counter="another"),
        row(START_MS + silent_ms, 900),
    ]
    minutes, _, _ = folded(*([rows[place] for place in places] for places in batches))
    assert minutes.get_column("output_tokens").sum() == gained


@pytest.mark.parametrize(
    "lie", [{}, {"epoch_ms": START_MS - HOUR_MS}], ids=["counter_decrease", "stale_epoch"]
)
@pytest.mark.parametrize("at_once", [True, False])
def test_readings_dropped_for_so_long_that_the_last_is_forgotten_begin_anew(
    lie: dict[str, Any], at_once: bool
) -> None:
    """It is forgotten a week after the last reading that was taken, however many are read at once."""
    rows = [row(START_MS, 500, epoch_ms=START_MS)]
    rows += [row(START_MS + n * DAY_MS, 10 * n, **{"epoch_ms": START_MS} | lie) for n in range(1, 10)]
    minutes, rejected, _ = folded(rows) if at_once else folded(*([one] for one in rows))
    assert rejected == dict.fromkeys(rejected, 6) != {}
    assert minutes.get_column("output_tokens").sum() == 20


@pytest.mark.parametrize("at_once", [True, False])
def test_reading_a_week_late_is_refused(at_once: bool) -> None:
    """Sent again when its counter may be forgotten it counts nothing, and one that is less late counts as ever."""
    rows = [row(START_MS, 5), row(START_MS + MINUTE_MS, 9)]
    newest = row(START_MS + 14 * DAY_MS + MINUTE_MS, 1, counter="another")
    late = [row(newest.ts_ms - 7 * DAY_MS + after_ms, 20 + after_ms) for after_ms in (0, 1, 2)]
    told = [*rows, newest, *rows, *late]
    minutes, rejected, _ = folded(told) if at_once else folded(*([one] for one in told))
    assert minutes.get_column("output_tokens").sum() == 4 + 1
    assert rejected == {"too_old": 3}


def event(ts_ms: int, output: int, event_id: str, **changes: Any) -> UsageRow:
    return row(ts_ms, output, event_id=event_id, counter=None, **changes)


def test_event_counts_once() -> None:
    """The same event of the same source counts once, in the minute that it names; another source's is another."""
    minutes, rejected, _ = folded(
        [event(START_MS, 3, "a"), event(START_MS, 3, "a")],
        [event(START_MS, 3, "a"), event(START_MS + 61_000, 4, "b"), event(START_MS, 5, "a", source="other")],
    )
    assert output(minutes) == {0: 8, 1: 4}
    assert rejected == {"repeat": 2}


@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 2), (2, 1), (3,)])
def test_an_event_is_too_old_however_rows_are_read(sizes: tuple[int, ...]) -> None:
    """60 h ago is fine before anything newer was read, 50 h ago is not after it."""
    rows = [event(START_MS - hours * 3_600_000, 1, f"{hours}") for hours in (60, 0, 50)]
    cuts = [0, *itertools.accumulate(sizes)]
    minutes, rejected, _ = folded(*(rows[begin:end] for begin, end in itertools.pairwise(cuts)))
    assert rejected == {"too_old": 1}
    assert sum(output(minutes).values()) == 2


def test_old_event_is_refused() -> None:
    """An event older than ids are remembered is refused, so that a repeat of it can never count twice."""
    old, newest = event(START_MS, 3, "a"), event(START_MS + EVENT_HORIZON_MS, 1, "b")
    minutes, rejected, state = folded([old], [newest], [old])
    assert output(minutes) == {0: 3, EVENT_HORIZON_MS // MINUTE_MS: 1}
    assert rejected == {"too_old": 1}
    assert state.events.height == 1


def test_events_beyond_the_bound_are_never_counted_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are more events than are remembered, the oldest are refused instead of counted again."""
    monkeypatch.setattr(usage, "MAX_EVENTS", 10)
    events = [event(START_MS + i, 1, f"e{i}") for i in range(25)]
    minutes, rejected, state = folded(events, events)
    assert minutes.get_column("output_tokens").sum() == 25
    assert rejected == {"too_old": 15, "repeat": 10}
    assert state.events.height == 10


def test_counters_beyond_the_bound_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A source of a million counters is cut off, and what was known before goes on counting."""
    monkeypatch.setattr(usage_gains, "MAX_COUNTERS", 5)
    flood = [row(START_MS + 1000, i, counter=f"flood-{i}", source="flood") for i in range(50)]
    minutes, rejected, state = folded([row(START_MS, 0)], flood, [row(START_MS + 2000, 8)])
    assert output(minutes) == {0: 8}
    assert rejected["too_many_counters"] == 46
    assert state.counters.height == 5


STEPS = st.one_of(
    st.integers(1, 20_000), st.integers(20_000, 10 * MINUTE_MS), st.integers(10 * MINUTE_MS, 20 * HOUR_MS)
)
GAINS = st.tuples(*[st.integers(0, 10**9)] * 3)


@dataclasses.dataclass
class Told:
    """Rows of one counter in their order, and what they say was spent: (names, minute) -> tokens."""

    rows: list[UsageRow]
    spent: Counter[tuple[Any, ...]]


@st.composite
def counters(draw: st.DrawFn, name: str) -> Told:
    """A counter's life: it gains, restarts, changes hands; with an epoch or without."""
    has_epoch = draw(st.booleans())
    now_ms = START_MS + draw(st.integers(0, DAY_MS))
    epoch_ms = now_ms - draw(st.integers(0, DAY_MS))
    values = list(draw(GAINS))
    spent: Counter[tuple[Any, ...]] = Counter()
    rows = []

    def tell(team: str) -> None:
        rows.append(
            UsageRow(
                ts_ms=now_ms,
                site="hall",
                source="gateway",
                counter=name,
                team=team,
                model_name="m",
                output_tokens=values[0],
                input_tokens=values[1],
                cached_input_tokens=values[2],
                epoch_ms=epoch_ms if has_epoch else None,
            )
        )

    tell("a")
    for _ in range(draw(st.integers(0, 8))):
        team = draw(st.sampled_from(["a", "a", "b"]))
        before_ms, gained, what = now_ms, draw(GAINS), draw(st.sampled_from(["gain", "gain", "restart"]))
        start_ms = before_ms
        if what == "gain":
            now_ms += draw(STEPS)
            values = [value + gain for value, gain in zip(values, gained, strict=True)]
        elif has_epoch:
            epoch_ms = before_ms + draw(st.integers(1, HOUR_MS))
            now_ms = epoch_ms + draw(st.integers(1, HOUR_MS))
            start_ms, values = epoch_ms, list(gained)
        else:
            # seen as a restart only where something falls
            now_ms += draw(st.integers(1, 300_000))
            most = (now_ms - before_ms) * 1000
            gained = tuple(
                min(gain, max(0, value - 1), most) for gain, value in zip(gained, values, strict=True)
            )
            if not any(gain < value for gain, value in zip(gained, values, strict=True)):
                gained = (0, 0, 0)
            values = list(gained)
        tell(team)
        for at_ms, part in _parts(start_ms, now_ms, gained):
            for kind, tokens in zip(TOKEN_COUNTS, part, strict=True):
                spent[name, team, at_ms, kind] += tokens
    return Told(rows, +spent)


def _parts(start_ms: int, end_ms: int, gained: tuple[int, ...]) -> list[tuple[int, tuple[int, ...]]]:
    """The gains by window, from the definition: what was gained by an edge is rounded down."""
    elapsed = end_ms - start_ms
    step = MINUTE_MS if elapsed <= HOUR_MS else 15 * MINUTE_MS if elapsed <= 15 * HOUR_MS else 6 * HOUR_MS
    edges = [start_ms, *range((start_ms // step + 1) * step, end_ms, step), end_ms]
    return [
        (
            max(a // step * step, start_ms // MINUTE_MS * MINUTE_MS),
            tuple(gain * (b - start_ms) // elapsed - gain * (a - start_ms) // elapsed for gain in gained),
        )
        for a, b in itertools.pairwise(edges)
    ]


def _spent(minutes: pl.DataFrame, key: tuple[str, ...]) -> Counter[tuple[Any, ...]]:
    spent: Counter[tuple[Any, ...]] = Counter()
    for one in minutes.iter_rows(named=True):
        for kind in TOKEN_COUNTS:
            spent[*(one[name] for name in key), one["window_start_ms"], kind] += one[kind]
    return +spent


def _batches(rows: list[UsageRow], rng: random.Random) -> list[list[UsageRow]]:
    """The rows cut into batches anywhere, each in any order within; some come again with a later batch."""
    cuts = sorted(rng.sample(range(len(rows) + 1), rng.randint(0, min(6, len(rows)))))
    batches = [rows[a:b] for a, b in zip([0, *cuts], [*cuts, len(rows)], strict=True)]
    for i, batch in enumerate(batches):
        sent = [one for earlier in batches[: i + 1] for one in earlier]
        batch.extend(rng.sample(sent, rng.randint(0, min(4, len(sent)))))
        rng.shuffle(batch)
    return batches


@examples(60)
@given(st.data())
def test_counters_are_conserved(data: st.DataObject) -> None:
    """Sums over minutes are what the counters gained, for any batches, repeats, restarts and order within a batch."""
    told = [data.draw(counters(f"c{i}")) for i in range(data.draw(st.integers(1, 4)))]
    rng = data.draw(st.randoms(use_true_random=False))
    # each counter's rows in their order, those of different counters in any
    waiting = [list(one.rows) for one in told]
    rows = []
    while any(waiting):
        rows.append(rng.choice([queue for queue in waiting if queue]).pop(0))
    expected: Counter[tuple[Any, ...]] = Counter()
    for one in told:
        for (_, *rest), tokens in one.spent.items():
            expected[tuple(rest)] += tokens
    minutes, rejected, state = folded(*_batches(rows, rng))
    assert _spent(minutes, ("team",)) == expected
    assert set(rejected) <= {"repeat"}
    assert state.counters.height == len(told)


@examples(40)
@given(
    st.lists(
        st.tuples(
            st.integers(0, EVENT_HORIZON_MS - 1), st.integers(0, 10**12), st.sampled_from(["a", "b", ""])
        ),
        max_size=30,
    ),
    st.randoms(use_true_random=False),
)
def test_events_are_conserved(told: list[tuple[int, int, str]], rng: random.Random) -> None:
    """Each event counts once for any order, batches, repeats and restarts."""
    events = [
        event(START_MS + after_ms, tokens, f"id-{i}", engineer=engineer or None)
        for i, (after_ms, tokens, engineer) in enumerate(told)
    ]
    expected: Counter[tuple[Any, ...]] = Counter()
    for one in events:
        minute_ms = one.ts_ms // MINUTE_MS * MINUTE_MS
        expected[one.engineer or "", minute_ms, "output_tokens"] += one.output_tokens
    rng.shuffle(events)
    minutes, rejected, _ = folded(*_batches(events, rng))
    assert _spent(minutes, ("engineer",)) == +expected
    assert set(rejected) <= {"repeat"}


def _cut(rows: pl.DataFrame, rng: random.Random) -> pl.DataFrame:
    """The minutes of rows that are read in batches of any size."""
    state, minutes = UsageState.empty(), []
    while rows.height:
        count = rng.randint(1, rows.height)
        done = fold_usage(state, rows.head(count), FAR_MS)
        state, rows = done.state, rows.slice(count)
        minutes.append(done.minutes)
    return pl.concat(minutes)


@examples(40)
@given(st.data())
def test_rows_are_the_same_however_they_are_read(data: st.DataObject) -> None:
    """The minute rows themselves do not depend on batches: money is rounded row by row."""
    told = data.draw(counters("c"))
    rng = data.draw(st.randoms(use_true_random=False))
    whole, _, _ = folded(told.rows)
    cut, _, _ = folded(*_batches(told.rows, rng))
    order = ["window_start_ms", *NAMES, *TOKEN_COUNTS]
    assert cut.sort(order).equals(whole.sort(order))


@examples(40)
@given(st.data())
def test_rows_come_in_the_order_in_which_they_were_read(data: st.DataObject) -> None:
    """Counters and events among each other, cut anywhere: volume steps are reached by the same rows."""
    waiting = [list(data.draw(counters(f"c{i}")).rows) for i in range(data.draw(st.integers(0, 3)))]
    after_ms = data.draw(st.lists(st.integers(0, DAY_MS), min_size=1, max_size=8))
    waiting.append([event(START_MS + ms, 1 + ms, f"e{i}", team="a") for i, ms in enumerate(after_ms)])
    rng = data.draw(st.randoms(use_true_random=False))
    rows = []
    while any(waiting):
        rows.append(rng.choice([queue for queue in waiting if queue]).pop(0))
    read = frame(rows)
    whole = fold_usage(UsageState.empty(), read, FAR_MS).minutes
    assert _cut(read, rng).equals(whole)


def test_rows_stand_in_the_order_of_their_messages() -> None:
    """Messages of several layouts are opened layout by layout; what they tell is in the order of the log."""
    rows = frame([event(START_MS, n, f"e{n}") for n in (1, 2, 3, 4)]).with_columns(
        src=pl.Series([7, 9, 8, 10], dtype=pl.Int64)
    )
    minutes = fold_usage(UsageState.empty(), rows, FAR_MS).minutes
    assert minutes.get_column("output_tokens").to_list() == [1, 3, 2, 4]
