"""The estimate of when a partition is caught up."""

import pytest

from idlewatt.processors.catch_up import CatchUp


def told(behind_by_second: dict[float, int]) -> list[float | None]:
    catch_up = CatchUp()
    return [catch_up.seconds(behind, now_s) for now_s, behind in behind_by_second.items()]


def test_it_is_what_is_left_by_the_speed_at_which_it_shrinks() -> None:
    """A partition that comes 100 messages nearer each second, arrivals included, is there when its last ones are."""
    estimates = told({second: 10_000 - 100 * second for second in range(100)})
    assert estimates[:5] == [None] * 5
    assert estimates[5:] == pytest.approx([100 - second for second in range(5, 100)])


def test_a_change_of_speed_is_seen_within_half_a_minute() -> None:
    """What was long ago says nothing about now."""
    behind = {s: 100_000 - 10 * s for s in range(60)} | {s: 99_400 - 1000 * (s - 60) for s in range(60, 95)}
    assert told(behind)[-1] == pytest.approx(behind[94] / 1000)


def test_caught_up_is_nought_at_once() -> None:
    """Nothing behind is 0, whatever was before, and needs no time to be known."""
    assert told({0: 0}) == [0.0]
    assert told({0: 500, 1: 0, 2: 0}) == [None, 0.0, 0.0]


def test_falling_behind_has_no_end() -> None:
    """Where it grows, or stays, there is no time to tell."""
    assert set(told({s: 1000 + s for s in range(60)})) == {None}
    assert set(told(dict.fromkeys(range(60), 1000))) == {None}


def test_a_backlog_that_is_only_now_known_is_no_growth() -> None:
    """A processor that starts learns late how far it is behind; it is not held against it."""
    behind = {0.0: 1} | {1.0 + s: 5_000 - 100 * s for s in range(20)}
    assert told(behind)[6] == pytest.approx(behind[6.0] / 100)


def test_many_polls_a_second_cost_nothing() -> None:
    """What is kept does not grow with the number of polls."""
    catch_up = CatchUp()
    for poll in range(10_000):
        catch_up.seconds(1_000_000 - poll, poll / 100)
    assert len(catch_up._seen) <= 31
