import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import structlog

from idlewatt.collectors.scheduled_source import BACKOFF_LIMIT_S, HUNG_MARGIN_S, ScheduledSource
from idlewatt.collectors.scheduler import Scheduler
from idlewatt.collectors.source import Reading
from idlewatt.stream.errors import SourceError
from idlewatt.stream.records import GpuRow

ROW = GpuRow(ts_ms=1, site="s", pool="p", node="n", gpu_uuid="GPU-1", product="x")
GOOD = Reading([ROW])


class Scripted:
    """A source that does what `act` says."""

    def __init__(
        self, act: Callable[[], Reading] = lambda: GOOD, name: str = "gpu", interval_s: float = 1.0
    ) -> None:
        self.act = act
        self.name = name
        self.interval_s = interval_s
        self.reads = 0
        self.closed = threading.Event()

    def read(self) -> Reading:
        self.reads += 1
        return self.act()

    def close(self) -> None:
        self.closed.set()


def failing(reason: str = "timeout") -> Callable[[], Reading]:
    def act() -> Reading:
        raise SourceError(reason, "no answer")

    return act


class Time:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def now() -> Time:
    return Time()


@pytest.fixture
def logged() -> Iterator[list[structlog.typing.EventDict]]:
    with structlog.testing.capture_logs() as events:
        yield events


def scheduled(source: Scripted, now: Time, seed: int = 1) -> ScheduledSource:
    return ScheduledSource(source, 3.0, now, random.Random(seed))


def wait_until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.002)


def test_sources_start_spread_over_the_interval(now: Time) -> None:
    """A hundred sources of ten seconds do not all begin at once."""
    starts = [scheduled(Scripted(interval_s=10), now, seed).delay_s() for seed in range(100)]
    assert 0 <= min(starts) < 1
    assert 9 < max(starts) <= 10


def test_readings_keep_to_the_grid_however_long_they_take(now: Time) -> None:
    """The time a reading took is not added to the interval."""
    source = scheduled(Scripted(interval_s=10), now)
    now.now += source.delay_s()
    first = now.now
    for took_s in (0.001, 3.0, 9.99):
        source.read()
        began = now.now
        now.now += took_s
        assert source.delay_s() == pytest.approx(10 - took_s)
        now.now = began + 10
    assert now.now == pytest.approx(first + 30)


def test_missed_points_are_not_made_up_for(now: Time) -> None:
    """After a stall of many intervals there is one reading, at the next point of the grid."""
    source = scheduled(Scripted(interval_s=1), now)
    now.now += source.delay_s()
    source.read()
    now.now += 123.4
    assert source.delay_s() == pytest.approx(0.6)
    now.now += 0.6
    source.read()
    assert source.delay_s() == pytest.approx(1.0)


def test_a_failing_source_is_asked_less_and_less_but_at_least_every_30_s(now: Time) -> None:
    """The wait doubles up to the limit, with jitter below it; the first success returns it to its grid."""
    scripted = Scripted(failing())
    source = scheduled(scripted, now)
    now.now += source.delay_s()
    grid = now.now
    for longest_s in (1, 2, 4, 8, 16, 30, 30, 30):
        source.read()
        delays = [source.delay_s() for _ in range(50)]
        assert longest_s / 2 <= min(delays)
        assert max(delays) <= longest_s <= BACKOFF_LIMIT_S
        assert max(delays) - min(delays) > longest_s / 4
        now.now += delays[0]
    for _ in range(5_000):
        source.read()
    assert 15 <= source.delay_s() <= 30
    scripted.act = lambda: GOOD
    assert source.read() == GOOD
    on_grid = (now.now + source.delay_s() - grid) % 1
    assert min(on_grid, 1 - on_grid) < 1e-6
    assert source.delay_s() <= 1


def test_a_slow_source_that_fails_is_asked_again_within_30_s(now: Time) -> None:
    """The limit holds for intervals that are longer."""
    source = scheduled(Scripted(failing(), interval_s=60), now)
    source.read()
    assert 15 <= source.delay_s() <= 30


def test_failures_are_counted_by_reason(now: Time) -> None:
    """Errors of the source have theirs, whatever else goes wrong in a source is unexpected."""
    scripted = Scripted(failing("http_status"))
    source = scheduled(scripted, now)
    assert source.state().success is None
    for act in (failing("http_status"), failing("timeout"), failing("timeout"), lambda: 1 / 0):
        scripted.act = act  # type: ignore[assignment]
        assert source.read() is None
    assert source.state().errors == {"http_status": 1, "timeout": 2, "unexpected": 1}
    assert source.state().success is False


def test_what_was_left_out_of_a_good_reading_is_counted(now: Time) -> None:
    """By reason, without failing; a reading that brought no row is no success."""
    scripted = Scripted(lambda: Reading([ROW], {"nan": 2}))
    source = scheduled(scripted, now)
    source.read()
    assert (source.state().success, source.state().left_out, source.state().errors) == (True, {"nan": 2}, {})
    scripted.act = lambda: Reading([], {"nan": 1, "negative": 1})
    source.read()
    assert (source.state().success, source.state().left_out) == (False, {"nan": 3, "negative": 1})


def test_a_clock_set_back_leaves_out_readings_until_it_has_passed_the_newest(now: Time) -> None:
    """Between those of before they would make counters zigzag. A GPU read after the step waits like one read before it."""
    scripted = Scripted()
    source = scheduled(scripted, now)

    def taken(*times_ms: int) -> list[int]:
        scripted.act = lambda: Reading([replace(ROW, ts_ms=ts_ms) for ts_ms in times_ms], {"nan": 1})
        reading = source.read()
        assert reading is not None
        return [row.ts_ms for row in reading.rows]

    assert taken(100_000, 100_010) == [100_000, 100_010]
    assert taken(101_000, 99_010) == [101_000]
    assert taken(100_000, 100_010) == []
    assert source.state().success is False
    assert taken(101_000, 101_010) == [101_000, 101_010]
    assert source.state().left_out == {"nan": 4, "clock_set_back": 3}


def test_a_gpu_whose_driver_answers_late_is_no_clock_set_back(now: Time) -> None:
    """Its row is older than those of the others that were passed on before; each GPU goes on from its own."""
    scripted = Scripted()
    source = scheduled(scripted, now)
    taken = []
    for ts_ms, gpu_uuid in ((500, "GPU-2"), (2_000, "GPU-1"), (1_000, "GPU-2"), (900, "GPU-2")):
        row = replace(ROW, ts_ms=ts_ms, gpu_uuid=gpu_uuid)
        scripted.act = lambda row=row: Reading([row])  # type: ignore[misc]
        reading = source.read()
        assert reading is not None
        taken += [row.ts_ms for row in reading.rows]
    assert taken == [500, 2_000, 1_000]
    assert source.state().left_out == {"clock_set_back": 1}


def test_a_clock_set_back_by_more_than_a_minute_is_gone_by_at_once(now: Time) -> None:
    """To wait until it has passed the newest could take days; it is held to the new time from there on."""
    scripted = Scripted()
    source = scheduled(scripted, now)
    taken = []
    for ts_ms in (200_000, 201_000, 141_000, 140_999, 141_999, 140_000, 142_000):
        scripted.act = lambda ts_ms=ts_ms: Reading([replace(ROW, ts_ms=ts_ms)])  # type: ignore[misc]
        reading = source.read()
        assert reading is not None
        taken += [row.ts_ms for row in reading.rows]
    assert taken == [200_000, 201_000, 140_999, 141_999, 142_000]


def test_a_source_with_nothing_to_tell_is_well(now: Time) -> None:
    """A gateway that nobody has asked yet, of which nothing was left out."""
    source = scheduled(Scripted(lambda: Reading([], {})), now)
    source.read()
    assert (source.state().success, source.state().errors) == (True, {})


@pytest.mark.parametrize("ends_well", [True, False])
def test_a_reading_that_hangs_is_told_while_it_hangs(now: Time, ends_well: bool) -> None:
    """Past its time it has failed, once, and its duration grows; how it ends is not a second failure."""
    release = threading.Event()

    def hang() -> Reading:
        assert release.wait(10)
        return GOOD if ends_well else failing()()

    scripted = Scripted(hang)
    source = scheduled(scripted, now)
    results: list[Reading | None] = []
    thread = threading.Thread(target=lambda: results.append(source.read()))
    thread.start()
    wait_until(lambda: scripted.reads == 1)
    source.report_hang()
    assert source.state().success is None
    now.now += 3.0 + HUNG_MARGIN_S + 0.01
    for _ in range(3):
        source.report_hang()
        now.now += 10
    state = source.state()
    assert (state.success, state.errors) == (False, {"hung": 1})
    assert state.duration_s == pytest.approx(33 + HUNG_MARGIN_S, abs=0.1)
    release.set()
    thread.join(5)
    assert results == [GOOD if ends_well else None]
    assert source.state().errors == {"hung": 1}
    assert source.state().success is ends_well
    source.report_hang()
    assert source.state().errors == {"hung": 1}


def test_a_timeout_of_its_own_is_not_called_a_hang(now: Time) -> None:
    """A source that ends just after its time says itself why."""

    def slow() -> Reading:
        now.now += 3.1
        source.report_hang()
        return failing("timeout")()

    source = scheduled(Scripted(slow), now)
    source.read()
    assert source.state().errors == {"timeout": 1}


def test_errors_are_logged_once_a_minute_and_the_end_of_them_once(
    now: Time, logged: list[structlog.typing.EventDict]
) -> None:
    """A source that fails every second says so once a minute, and once that it is well again."""
    scripted = Scripted(failing())
    source = scheduled(scripted, now)
    for _ in range(150):
        source.read()
        now.now += 1
    assert [(event["event"], event["source"], event["reason"]) for event in logged] == [
        ("scrape_failed", "gpu", "timeout")
    ] * 3
    logged.clear()
    scripted.act = lambda: Reading([ROW], {"nan": 1})
    for _ in range(50):
        source.read()
        now.now += 1
    assert [event["event"] for event in logged] == ["readings_left_out", "scrape_recovered"]


def test_one_bad_source_harms_nobody(logged: list[structlog.typing.EventDict]) -> None:
    """Beside one that hangs and one that raises, the third is read on time; stop returns while one still hangs."""
    release = threading.Event()

    def hang() -> Reading:
        release.wait(30)
        return GOOD

    hanging = Scripted(hang, "hanging", 0.02)
    raising = Scripted(lambda: 1 / 0, "raising", 0.02)  # type: ignore[arg-type, return-value]
    good = Scripted(lambda: GOOD, "good", 0.02)
    brought: list[Reading] = []
    scheduler = Scheduler([hanging, raising, good], brought.append, timeout_s=0.05)
    started = time.monotonic()
    scheduler.start()
    wait_until(lambda: len(brought) >= 50)
    assert time.monotonic() - started < 3
    assert hanging.reads == 1
    assert raising.reads >= 2
    wait_until(lambda: scheduler.states()[0].errors == {"hung": 1})
    hung, raised, well = scheduler.states()
    assert (hung.success, hung.errors) == (False, {"hung": 1})
    assert hung.duration_s > 0.5
    assert set(raised.errors) == {"unexpected"}
    assert (well.success, well.errors) == (True, {})

    before = time.monotonic()
    scheduler.stop(0.3)
    assert time.monotonic() - before < 1.0
    assert raising.closed.wait(1)
    assert good.closed.wait(1)
    assert not hanging.closed.is_set()
    assert scheduler.states() == []
    assert [event["source"] for event in logged if event["event"] == "source_left_behind"] == ["hanging"]
    reads, release_at = good.reads, len(brought)
    release.set()
    assert hanging.closed.wait(5)
    assert good.reads == reads
    # what it brought in the end is true and still wanted
    wait_until(lambda: len(brought) == release_at + 1)


def test_a_scheduler_that_never_started_closes_its_sources() -> None:
    """Nobody else would."""
    source = Scripted()
    Scheduler([source], lambda reading: None, timeout_s=1).stop(1)
    assert source.closed.is_set()
    assert source.reads == 0


@pytest.mark.parametrize("begins", [True, False])
def test_a_start_that_a_signal_cuts_off_is_stopped_like_any_other(
    monkeypatch: pytest.MonkeyPatch, begins: bool
) -> None:
    """Whatever came of the thread that was being started: every source is closed, and the rest is never read."""
    begin = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        if begins or thread.name != "read second":
            begin(thread)
        if thread.name == "read second":
            raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", start)
    sources = [Scripted(name=name, interval_s=0.01) for name in ("first", "second", "third")]
    scheduler = Scheduler(sources, lambda reading: None, timeout_s=1)
    with pytest.raises(KeyboardInterrupt):
        scheduler.start()
    wait_until(lambda: sources[0].reads > 2)
    scheduler.stop(5)
    assert all(source.closed.is_set() for source in sources)
    assert sources[2].reads == 0


def test_a_source_whose_closing_fails_holds_up_nothing() -> None:
    """Its error is logged and the stop goes on."""

    class Stubborn(Scripted):
        def close(self) -> None:
            super().close()
            raise RuntimeError("not now")

    source = Stubborn(interval_s=0.01)
    scheduler = Scheduler([source], lambda reading: None, timeout_s=1)
    scheduler.start()
    wait_until(lambda: source.reads > 2)
    scheduler.stop(5)
    assert source.closed.is_set()
