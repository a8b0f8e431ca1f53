import dataclasses
import hashlib
import itertools
import os
import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lz4.frame
import pytest
import structlog
from small_disk import DISK_BYTES, SmallDisk

from idlewatt.collectors.packing import MAX_PACKED_BYTES
from idlewatt.collectors.row_queue import RowQueue
from idlewatt.collectors.sink import Sink
from idlewatt.stream import records, topics
from idlewatt.stream.decoding import decode
from idlewatt.stream.errors import LogUnavailableError
from idlewatt.stream.log import Record
from idlewatt.stream.minute_log import MinuteLog
from idlewatt.stream.records import EngineRow, GpuRow, UsageRow
from idlewatt.stream.spool import Spool, SpoolDiskError
from idlewatt.stream.spool_frames import WaitingMessage

GIB = 1 << 30


class Shelf:
    """An appender that keeps what it is given, unless `refuse` raises."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.refuse: Callable[[Sequence[Record]], None] = lambda records: None

    def append(self, records: Sequence[Record]) -> None:
        self.refuse(records)
        self.records += records

    def close(self) -> None: ...

    def rows(self) -> list[dict[str, object]]:
        return [row for record in self.records for row in decode(record.value)[1].to_dicts()]

    def times(self) -> list[object]:
        return [row["ts_ms"] for row in self.rows()]


def away(records: Sequence[Record]) -> None:
    raise LogUnavailableError("nobody there")


def gpu(ts_ms: int, pool: str = "p", **more: int) -> GpuRow:
    return GpuRow(ts_ms=ts_ms, site="s", pool=pool, node="n", gpu_uuid="GPU-1", product="x", **more)  # type: ignore[arg-type]


def engine(ts_ms: int, pool: str = "p") -> EngineRow:
    return EngineRow(
        ts_ms=ts_ms,
        site="s",
        pool=pool,
        node="n",
        engine="e",
        server="vllm",
        model_name="m",
        output_tokens=5,
        advance="step",
        gpus=["GPU-1"],
    )


def usage(number: int) -> UsageRow:
    """One of many posted events, of which no two are alike."""
    seed = random.Random(number)
    return UsageRow(
        ts_ms=1_790_000_000_000,
        site="s",
        source="api",
        event_id=hashlib.sha256(str(number).encode()).hexdigest(),
        team=f"team-{number % 40}",
        agent_family=f"agents-{number % 7}",
        engineer=f"user{seed.randrange(3000)}@example.com",
        model_name="llama-3.1-70b",
        output_tokens=seed.randrange(5000),
        input_tokens=seed.randrange(50_000),
    )


def books_balance(sink: Sink, rows_put: int) -> bool:
    """Each row that was put, or found in the spool, is in one place."""
    state = sink.state()
    gone = sum(state.sent_rows.values()) + sum(state.dropped_rows.values())
    return rows_put == gone + state.unencodable_rows + state.waiting_rows


def on_disk(folder: Path) -> int:
    return len(list(folder.glob("*.spool")))


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def logged() -> Iterator[list[structlog.typing.EventDict]]:
    with structlog.testing.capture_logs() as events:
        yield events


def wait_until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.002)


def test_rows_are_packed_by_topic_and_pool(shelf: Shelf) -> None:
    """One message for each, keyed by the pool, with the rows in the order they came and nothing changed."""
    sink = Sink(shelf, 1.0)
    sink.put([gpu(1), gpu(2, "q")])
    sink.put([engine(3), gpu(4)])
    assert sink.send()
    assert [(record.topic, record.key) for record in shelf.records] == [
        (topics.GPU, b"s/p"),
        (topics.GPU, b"s/q"),
        (topics.ENGINE, b"s/p"),
    ]
    schema, frame = decode(shelf.records[0].value)
    assert schema is records.GPU
    assert frame.to_dicts() == [dataclasses.asdict(gpu(1)), dataclasses.asdict(gpu(4))]
    assert decode(shelf.records[2].value)[1].to_dicts() == [dataclasses.asdict(engine(3))]
    state = sink.state()
    assert (state.sent_rows, state.waiting_bytes) == ({topics.GPU: 3, topics.ENGINE: 1, topics.USAGE: 0}, 0)
    assert sink.send()
    assert len(shelf.records) == 3


def test_many_rows_are_split_into_messages(shelf: Shelf) -> None:
    """No message grows beyond what a thin line carries, and none is much smaller for it; the rows keep their order."""
    sink = Sink(shelf, 1.0)
    sink.put(gpu(i) for i in range(405))
    sink.send()
    assert shelf.times() == list(range(405))
    assert max(len(lz4.frame.compress(record.value)) for record in shelf.records) <= MAX_PACKED_BYTES
    assert len(shelf.records) <= 3


def test_no_names_make_a_message_longer(shelf: Shelf) -> None:
    """Names as long as may be posted, of four bytes a character, and no two alike."""

    def name(number: int) -> str:
        return "".join(map(chr, random.Random(number).choices(range(0x20000, 0x2A000), k=120)))

    named = ("source", "event_id", "function", "team", "agent_family", "engineer", "model_name", "tier")
    rows = [
        dataclasses.replace(usage(n), **{field: name(8 * n + i) for i, field in enumerate(named)})
        for n in range(40)
    ]
    sink = Sink(shelf, 1.0)
    assert sink.store(rows)
    assert len(shelf.rows()) == 40
    assert max(len(lz4.frame.compress(record.value)) for record in shelf.records) <= MAX_PACKED_BYTES


def test_rows_wait_while_the_log_is_away(shelf: Shelf, logged: list[structlog.typing.EventDict]) -> None:
    """All of them arrive once, in order, when it is back; that it was away and is back is logged once."""
    sink = Sink(shelf, 1.0)
    shelf.refuse = away
    for ts_ms in range(300):
        sink.put([gpu(ts_ms)])
        assert not sink.send()
    assert sink.state().waiting_bytes > 0
    assert sink.state().sent_rows == {topics.GPU: 0, topics.ENGINE: 0, topics.USAGE: 0}
    shelf.refuse = lambda records: None
    assert sink.send()
    assert shelf.times() == list(range(300))
    assert sink.state().waiting_bytes == 0
    assert sink.state().sent_rows[topics.GPU] == 300
    assert [event["event"] for event in logged] == ["log_away", "log_back"]


def test_a_log_that_goes_away_midway_gets_the_rest_later(shelf: Shelf) -> None:
    """What was taken is not sent twice, what was not is not lost."""
    sink = Sink(shelf, 1.0)
    shelf.refuse = away
    for ts_ms in range(200):
        sink.put([gpu(ts_ms)])
        sink.send()
    taken = iter([None, None])

    def twice(records: Sequence[Record]) -> None:
        if next(taken, away) is away:
            away(records)

    shelf.refuse = twice
    assert not sink.send()
    assert 0 < len(shelf.records) < 200
    shelf.refuse = lambda records: None
    assert sink.send()
    assert shelf.times() == list(range(200))


def test_the_oldest_rows_are_dropped_first_and_counted(
    shelf: Shelf, logged: list[structlog.typing.EventDict]
) -> None:
    """Beyond the bound memory does not grow; the newest rows are the ones that are kept."""
    sink = Sink(shelf, 1.0, max_waiting_rows=100)
    shelf.refuse = away
    for ts_ms in range(250):
        sink.put([gpu(ts_ms)] if ts_ms % 2 else [engine(ts_ms)])
        sink.send()
    assert sink.state().dropped_rows == {topics.GPU: 75, topics.ENGINE: 75, topics.USAGE: 0}
    shelf.refuse = lambda records: None
    sink.send()
    assert shelf.times() == list(range(150, 250))
    state = sink.state()
    assert sum(state.sent_rows.values()) + sum(state.dropped_rows.values()) == 250
    assert [event["event"] for event in logged].count("rows_dropped") == 1


def test_rows_are_bounded_while_an_append_hangs(shelf: Shelf) -> None:
    """Putting never waits for the log, and what waits behind a hanging append is bounded too."""
    sink = Sink(shelf, 0.01, max_waiting_rows=100)
    release, entered = threading.Event(), threading.Event()

    def hang(records: Sequence[Record]) -> None:
        entered.set()
        release.wait(20)

    shelf.refuse = hang
    sink.put([gpu(0)])
    sink.start()
    assert entered.wait(5)
    started = time.monotonic()
    for ts_ms in range(1, 1001):
        sink.put([gpu(ts_ms)])
    assert time.monotonic() - started < 1
    assert sink.state().dropped_rows[topics.GPU] == 901
    release.set()
    sink.stop(5)
    assert shelf.times() == [0, *range(902, 1001)]


def test_a_row_that_cannot_be_encoded_costs_only_itself(
    shelf: Shelf, logged: list[structlog.typing.EventDict]
) -> None:
    """A number too large for its column is left out, counted and logged; its neighbours are sent."""
    sink = Sink(shelf, 1.0)
    sink.put([gpu(1), gpu(2, energy_mj=2**70), gpu(3), gpu(4, power_mw="x"), gpu(5)])  # type: ignore[arg-type]
    assert sink.send()
    assert sorted(shelf.times()) == [1, 3, 5]  # type: ignore[type-var]
    assert sink.state().unencodable_rows == 2
    assert [event["event"] for event in logged] == ["row_unencodable"]


def test_a_message_the_log_will_never_take_holds_up_nobody(
    shelf: Shelf, logged: list[structlog.typing.EventDict]
) -> None:
    """It is dropped, counted and logged; all others are sent."""

    def picky(records: Sequence[Record]) -> None:
        if any(record.key == b"s/bad" for record in records):
            raise ValueError("too large")

    shelf.refuse = picky
    sink = Sink(shelf, 1.0)
    sink.put([gpu(1), gpu(2, "bad"), gpu(3, "q"), engine(4, "bad"), engine(5)])
    assert sink.send()
    assert sorted(shelf.times()) == [1, 3, 5]  # type: ignore[type-var]
    assert sink.state().dropped_rows == {topics.GPU: 1, topics.ENGINE: 1, topics.USAGE: 0}
    assert sink.state().waiting_bytes == 0
    assert [event["event"] for event in logged] == ["append_failed"]


def test_it_sends_once_per_interval(shelf: Shelf) -> None:
    """Rows that come within one interval travel in one message."""
    sink = Sink(shelf, 0.1)
    sink.start()
    for ts_ms in range(50):
        sink.put([gpu(ts_ms)])
    wait_until(lambda: len(shelf.records) > 0)
    sink.stop(5)
    assert shelf.times() == list(range(50))
    assert len(shelf.records) <= 2


def test_stop_sends_what_waits(shelf: Shelf) -> None:
    """Nothing is left behind by an orderly end, not even if the log is away for a moment."""
    sink = Sink(shelf, 60.0)
    sink.start()
    sink.put([gpu(1), engine(2)])
    refusals = iter([away, away])
    shelf.refuse = lambda records: next(refusals, lambda records: None)(records)
    sink.stop(5)
    assert shelf.times() == [1, 2]
    unstarted = Sink(shelf, 60.0)
    unstarted.put([gpu(3)])
    unstarted.stop(5)
    assert shelf.times() == [1, 2, 3]


@pytest.mark.parametrize("hangs", [False, True])
def test_stop_returns_in_time_and_says_what_is_lost(
    shelf: Shelf, hangs: bool, logged: list[structlog.typing.EventDict]
) -> None:
    """Whether the log refuses or hangs, the end is not held up."""
    release = threading.Event()

    def hang(records: Sequence[Record]) -> None:
        release.wait(20)

    shelf.refuse = hang if hangs else away
    sink = Sink(shelf, 60.0)
    sink.start()
    sink.put([gpu(1), gpu(2)])
    started = time.monotonic()
    sink.stop(0.4)
    assert 0.3 < time.monotonic() - started < 1.5
    release.set()
    assert [(event["event"], event["rows"]) for event in logged if event["event"] == "rows_lost"] == [
        ("rows_lost", 2)
    ]


def test_the_disk_is_left_alone_while_the_log_is_there(shelf: Shelf, tmp_path: Path) -> None:
    """In normal running the spool is not written, not even for a moment."""
    sink = Sink(shelf, 1.0, spool=Spool(tmp_path, GIB))
    before = tmp_path.stat().st_mtime_ns
    for ts_ms in range(50):
        sink.put([gpu(ts_ms), engine(ts_ms)])
        assert sink.send()
    assert tmp_path.stat().st_mtime_ns == before
    assert books_balance(sink, 100)
    sink.stop(1)


def test_rows_wait_on_the_disk_while_the_log_is_away(
    shelf: Shelf, tmp_path: Path, logged: list[structlog.typing.EventDict]
) -> None:
    """Memory holds none of them; all arrive once and in order when it is back, and the disk is empty again."""
    spool = Spool(tmp_path, GIB)
    sink = Sink(shelf, 1.0, spool=spool)
    shelf.refuse = away
    for ts_ms in range(300):
        sink.put([gpu(ts_ms)])
        assert not sink.send()
        assert spool.waiting_rows == ts_ms + 1
        assert books_balance(sink, ts_ms + 1)
    assert sink.state().waiting_bytes == spool.waiting_bytes > 0
    shelf.refuse = lambda records: None
    sink.put([gpu(300)])
    assert sink.send()
    assert shelf.times() == list(range(301))
    assert on_disk(tmp_path) == 0
    assert sink.state().waiting_bytes == 0
    sink.put([gpu(301)])
    assert sink.send()
    assert on_disk(tmp_path) == 0
    assert books_balance(sink, 302)
    assert [event["event"] for event in logged] == ["log_away", "log_back"]
    sink.stop(1)


def test_new_rows_queue_up_behind_old_ones(shelf: Shelf, tmp_path: Path) -> None:
    """A log that takes a few appends and goes away again never gets a pool's reading before an older one."""
    sink = Sink(shelf, 1.0, spool=Spool(tmp_path, GIB))
    seed = random.Random(1)

    def moody(records: Sequence[Record]) -> None:
        if seed.random() < 0.5:
            away(records)

    for ts_ms in range(200):
        shelf.refuse = away if seed.random() < 0.8 else moody
        sink.put([gpu(ts_ms, "p"), gpu(ts_ms, "q"), engine(ts_ms, "p")])
        sink.send()
        assert books_balance(sink, 3 * (ts_ms + 1))
    shelf.refuse = lambda records: None
    assert sink.send()
    for topic, key in ((topics.GPU, b"s/p"), (topics.GPU, b"s/q"), (topics.ENGINE, b"s/p")):
        taken = [r for r in shelf.records if (r.topic, r.key) == (topic, key)]
        assert [row["ts_ms"] for r in taken for row in decode(r.value)[1].to_dicts()] == list(range(200))
    sink.stop(1)


def test_new_rows_do_not_overtake_those_that_cannot_be_read_now(shelf: Shelf, tmp_path: Path) -> None:
    """The log is back, and the disk is not yet."""
    sink = Sink(shelf, 1.0, spool=Spool(tmp_path, GIB))
    shelf.refuse = away
    sink.put([gpu(1)])
    sink.send()
    shelf.refuse = lambda records: None
    (file,) = tmp_path.glob("*.spool")
    aside = file.rename(tmp_path / "aside")
    file.mkdir()
    sink.put([gpu(2)])
    assert not sink.send()
    assert shelf.times() == []
    file.rmdir()
    aside.rename(file)
    sink.put([gpu(3)])
    assert sink.send()
    assert shelf.times() == [1, 2, 3]
    assert books_balance(sink, 3)
    sink.stop(1)


def test_what_a_predecessor_left_is_sent_first(
    shelf: Shelf, tmp_path: Path, logged: list[structlog.typing.EventDict]
) -> None:
    """Rows of a process that ended while the log was away come before the first of its successor."""
    before = Sink(shelf, 1.0, spool=Spool(tmp_path, GIB))
    shelf.refuse = away
    for ts_ms in range(20):
        before.put([gpu(ts_ms)])
        before.send()
    before.put([gpu(20)])
    before.stop(0.1)
    assert before.state().waiting_rows == 21
    assert [event["rows"] for event in logged if event["event"] == "rows_left_in_spool"] == [21]
    shelf.refuse = lambda records: None

    after = Sink(shelf, 0.01, spool=Spool(tmp_path, GIB))
    assert after.state().waiting_rows == 21
    after.put([gpu(21)])
    after.start()
    wait_until(lambda: after.state().waiting_rows == 0)
    assert shelf.times() == list(range(22))
    after.stop(1)
    assert books_balance(after, 21 + 1)
    assert [event["rows"] for event in logged if event["event"] == "spool_found"] == [21]


def test_stop_leaves_to_the_spool_what_hangs_in_the_log(
    shelf: Shelf, tmp_path: Path, logged: list[structlog.typing.EventDict]
) -> None:
    """Rows in an append that does not come back, and those behind it, are on the disk when stop() returns."""
    spool = Spool(tmp_path, GIB)
    sink = Sink(shelf, 0.01, spool=spool)
    release, entered = threading.Event(), threading.Event()

    def hang(records: Sequence[Record]) -> None:
        entered.set()
        release.wait(20)

    shelf.refuse = hang
    sink.put([gpu(1)])
    sink.start()
    assert entered.wait(5)
    sink.put([gpu(2), engine(3)])
    started = time.monotonic()
    sink.stop(0.2)
    assert time.monotonic() - started < 1
    assert spool.waiting_rows == 3
    assert books_balance(sink, 3)
    release.set()
    # the hanging append succeeds after all, and must not touch what may be another process's by now
    wait_until(lambda: shelf.times() == [1])
    shelf.refuse = lambda records: None
    after = Sink(shelf, 1.0, spool=Spool(tmp_path, GIB))
    assert after.send()
    assert shelf.times() == [1, 1, 2, 3]
    after.stop(1)
    assert "rows_lost" not in [event["event"] for event in logged]


@pytest.mark.parametrize("is_taken", [False, True])
def test_a_log_that_answers_just_as_it_is_left_changes_nothing(
    shelf: Shelf, tmp_path: Path, logged: list[structlog.typing.EventDict], is_taken: bool
) -> None:
    """What stop() brings to the spool is there once, and none of it is called lost."""
    release, entered = threading.Event(), threading.Event()

    class SlowSpool(Spool):
        def append(self, messages: Sequence[WaitingMessage], *, drop_if_disk_full: bool = True) -> int:
            # the sink's own thread does meanwhile what it does when the log answers
            release.set()
            if threading.current_thread() is not sink._thread:
                sink._thread.join(0.2)
            return super().append(messages, drop_if_disk_full=drop_if_disk_full)

    def hang(records: Sequence[Record]) -> None:
        is_first = not entered.is_set()
        entered.set()
        assert release.wait(20)
        if not (is_first and is_taken):
            away(records)

    shelf.refuse = hang
    sink = Sink(shelf, 0.01, spool=SlowSpool(tmp_path, GIB))
    sink.put([gpu(1)])
    sink.start()
    assert entered.wait(5)
    sink.put([gpu(2)])
    sink.stop(0.1)
    sink._thread.join(5)
    assert "rows_lost" not in [event["event"] for event in logged]
    assert books_balance(sink, 2)
    left = Spool(tmp_path, GIB)
    assert left.waiting_rows == 2
    left.close()


def test_who_stores_when_stop_gives_up_stores_alone(shelf: Shelf, tmp_path: Path) -> None:
    """The sink's own thread has written a row and not settled it yet: stop() does not write it once more."""
    is_written, is_written_twice = threading.Event(), threading.Event()

    class SlowSpool(Spool):
        def append(self, messages: Sequence[WaitingMessage], *, drop_if_disk_full: bool = True) -> int:
            taken = super().append(messages, drop_if_disk_full=drop_if_disk_full)
            if threading.current_thread() is sink._thread:
                is_written.set()
                is_written_twice.wait(0.2)
            else:
                is_written_twice.set()
            return taken

    shelf.refuse = away
    sink = Sink(shelf, 0.01, spool=SlowSpool(tmp_path, GIB))
    sink.put([gpu(1)])
    sink.start()
    assert is_written.wait(5)
    sink.stop(0)
    sink._thread.join(5)
    left = Spool(tmp_path, GIB)
    assert left.waiting_rows == 1
    left.close()


def test_rows_are_not_called_lost_while_the_disk_of_the_spool_hangs(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: list[structlog.typing.EventDict]
) -> None:
    """Where its answer does not come before the end, nobody knows; here they are safe."""
    monkeypatch.setattr("idlewatt.collectors.sink._LEAVE_S", 0.05)
    over = threading.Event()
    fdatasync = os.fdatasync

    def hang(fd: int) -> None:
        assert over.wait(10)
        fdatasync(fd)

    monkeypatch.setattr(os, "fdatasync", hang)
    shelf.refuse = away
    spool = Spool(tmp_path, GIB)
    sink = Sink(shelf, 1.0, spool=spool)
    sink.put([gpu(1), gpu(2)])
    sink.start()
    try:
        sink.stop(0.05)
        said = [event for event in logged if "lost" in event["event"]]
        assert [(event["event"], event["up_to_rows"]) for event in said] == [("rows_may_be_lost", 2)]
    finally:
        over.set()
    wait_until(lambda: sink.state().waiting_rows == spool.waiting_rows == 2)


def test_messages_are_in_one_hand_at_a_time() -> None:
    """Who comes back late with messages that another thread has taken over settles nothing of them."""
    queue = RowQueue(100, MinuteLog())
    queue.put([gpu(1), gpu(2, "q")])
    queue.pack()
    hanging = queue.take(1)
    taken_over = queue.take()
    assert len(taken_over) == 2
    assert queue.settle(hanging, 1) == ()
    assert queue.waiting_rows == 2
    assert queue.settle(taken_over, 2) == taken_over
    assert queue.waiting_rows == 0


def test_a_fault_of_ours_does_not_end_the_sending(
    shelf: Shelf, logged: list[structlog.typing.EventDict]
) -> None:
    """Something that is no row breaks one sending, which is logged with its traceback; the next one works."""
    sink = Sink(shelf, 0.01)
    sink.put([object()])  # type: ignore[list-item]
    sink.start()

    def failed() -> list[structlog.typing.EventDict]:
        # the sink of a test before may still say something
        return [event for event in logged if event["event"] == "send_failed"]

    wait_until(lambda: bool(failed()))
    sink.put([gpu(1)])
    wait_until(lambda: shelf.times() == [1])
    sink.stop(1)
    assert len(failed()) == 1
    assert isinstance(failed()[0]["exc_info"], AttributeError)


def test_a_backlog_does_not_keep_new_rows_from_the_disk(shelf: Shelf, tmp_path: Path) -> None:
    """While a long outage is caught up, rows that come in are spooled once per interval, and sent in their turn."""
    spool = Spool(tmp_path, GIB)
    sink = Sink(shelf, 0.05, spool=spool)
    shelf.refuse = away
    for ts_ms in range(1000):
        sink.put([gpu(ts_ms)])
        sink.send()
    appends: list[float] = []

    def slow(records: Sequence[Record]) -> None:
        time.sleep(0.02)
        appends.append(time.monotonic())

    shelf.refuse = slow
    ts_ms = 1000
    turns = 0
    while not sink.send():
        turns += 1
        # a turn is one interval, and the append with which it ends
        assert 1 <= len(appends) <= 4
        assert spool.waiting_rows == sink.state().waiting_rows
        appends.clear()
        sink.put([gpu(ts_ms)])
        ts_ms += 1
    assert turns >= 4
    assert shelf.times() == list(range(ts_ms))
    assert books_balance(sink, ts_ms)
    assert on_disk(tmp_path) == 0
    sink.stop(1)


def test_a_backlog_is_sent_without_pause(shelf: Shelf, tmp_path: Path) -> None:
    """Catching up takes as long as the log needs, with no interval between its steps."""
    sink = Sink(shelf, 0.1, spool=Spool(tmp_path, GIB))
    shelf.refuse = away
    for ts_ms in range(700):
        sink.put([gpu(ts_ms)])
        sink.send()
    taken: list[float] = []

    def slow(records: Sequence[Record]) -> None:
        time.sleep(0.1)
        taken.append(time.monotonic())

    shelf.refuse = slow
    sink.start()
    wait_until(lambda: len(shelf.records) == 700, 20)
    assert statistics.median(after - before for before, after in itertools.pairwise(taken)) < 0.17
    sink.stop(1)
    assert shelf.times() == list(range(700))


@pytest.mark.parametrize("spooled", [True, False])
def test_a_backlog_drains_over_a_thin_line(shelf: Shelf, tmp_path: Path, spooled: bool) -> None:
    """What 5 kB/s do not carry within an append's time is offered in smaller parts, down to one message alone.

    That is of a large post as well: nothing behind it would ever be sent. Over a line that carries more again the parts grow.
    """
    sink = Sink(shelf, 1.0, spool=Spool(tmp_path, GIB) if spooled else None)
    shelf.refuse = away
    post = [usage(n) for n in range(2000)]
    sink.put(post)
    for ts_ms in range(300):
        sink.put([gpu(ts_ms)])
        sink.send()
    carried_bytes = 4 * 5_000
    offered_bytes: list[int] = []

    def thin(records: Sequence[Record]) -> None:
        # compressed as on the way to Kafka
        offered_bytes.append(sum(len(lz4.frame.compress(record.value)) for record in records))
        if offered_bytes[-1] > carried_bytes:
            away(records)

    shelf.refuse = thin
    for _ in range(100):
        sink.send()
    assert books_balance(sink, 2300)
    assert sink.state().sent_rows == {topics.GPU: 300, topics.ENGINE: 0, topics.USAGE: 2000}
    # about every other one tries more
    assert sum(size <= carried_bytes for size in offered_bytes) > 0.4 * len(offered_bytes)
    assert max(offered_bytes) < 3 * carried_bytes
    shelf.refuse = away
    for ts_ms in range(300, 600):
        sink.put([gpu(ts_ms)])
        sink.send()
    parts: list[int] = []
    shelf.refuse = lambda records: parts.append(len(records))
    assert sink.send()
    assert [row["ts_ms"] for row in shelf.rows() if "gpu_uuid" in row] == list(range(600))
    assert max(parts) == 64
    sink.stop(1)


def test_the_books_balance_whatever_happens(
    shelf: Shelf, tmp_path: Path, logged: list[structlog.typing.EventDict]
) -> None:
    """Outages, a spool too small for them, restarts: each row is sent, dropped or waits, and the newest are kept."""
    bound = 32 * 1024
    seed = random.Random(7)
    sink = Sink(shelf, 1.0, spool=Spool(tmp_path, bound))
    ts_ms = rows = dropped = 0
    for _ in range(400):
        shelf.refuse = away if seed.random() < 0.97 else lambda records: None
        for _ in range(seed.randrange(3)):
            sink.put([gpu(ts_ms), engine(ts_ms)])
            ts_ms += 1
            rows += 2
        sink.send()
        assert books_balance(sink, rows)
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= bound
        if seed.random() < 0.02:
            dropped += sum(sink.state().dropped_rows.values())
            sink.stop(0)
            waiting = sink.state().waiting_rows
            sink = Sink(shelf, 1.0, spool=Spool(tmp_path, bound))
            # what was sent of a file that still held others comes again
            rows = sink.state().waiting_rows
            assert rows >= waiting
    shelf.refuse = lambda records: None
    assert sink.send()
    assert sink.state().waiting_rows == 0
    dropped += sum(sink.state().dropped_rows.values())
    assert dropped > 100
    arrived = {(row["ts_ms"], "engine" in row) for row in shelf.rows()}
    # some were dropped and some came twice, but none is missing that was not counted
    assert 2 * ts_ms - dropped <= len(arrived) < 2 * ts_ms
    assert sum(event["count"] for event in logged if event["event"] == "rows_dropped") <= dropped
    sink.stop(1)
    assert sum(event["count"] for event in logged if event["event"] == "rows_dropped") == dropped


def test_drops_are_said_once_a_minute_with_their_number(
    shelf: Shelf, tmp_path: Path, logged: list[structlog.typing.EventDict]
) -> None:
    """An hour of dropping is some sixty lines, and their counts add up to the rows that are gone."""
    now_s = 0.0
    sink = Sink(shelf, 1.0, spool=Spool(tmp_path, 16 * 1024), minute_log=MinuteLog(lambda: now_s))
    shelf.refuse = away
    for second in range(3600):
        now_s = float(second)
        if second % 6 == 0:
            sink.put([gpu(second)])
        sink.send()
    said = [event["count"] for event in logged if event["event"] == "rows_dropped"]
    dropped = sum(sink.state().dropped_rows.values())
    assert 55 <= len(said) <= 60
    assert 0 < dropped - sum(said) <= 20
    sink.stop(0)
    assert sum(event["count"] for event in logged if event["event"] == "rows_dropped") == dropped
    assert [event["event"] for event in logged].count("log_away") == 60


def test_a_full_disk_stops_nothing(
    shelf: Shelf, small_disk: SmallDisk, logged: list[structlog.typing.EventDict]
) -> None:
    """Rows that the disk does not take wait in memory, behind those it took; all arrive in order and are accounted for."""
    sink = Sink(shelf, 1.0, spool=Spool(small_disk.folder / "spool", 2 * DISK_BYTES), max_waiting_rows=40)
    shelf.refuse = away
    for ts_ms in range(20):
        sink.put([gpu(ts_ms)])
        sink.send()
    small_disk.fill()
    for ts_ms in range(20, 200):
        sink.put([gpu(ts_ms)])
        sink.send()
        assert books_balance(sink, ts_ms + 1)
    small_disk.empty()
    for ts_ms in range(200, 210):
        sink.put([gpu(ts_ms)])
        sink.send()
    shelf.refuse = lambda records: None
    assert sink.send()
    arrived = shelf.times()
    assert arrived == sorted(set(arrived))  # type: ignore[type-var]
    # the newest that memory holds, and what is on the disk already
    assert arrived[:20] == list(range(20))
    assert arrived[-40:] == list(range(170, 210))
    assert len(arrived) + sum(sink.state().dropped_rows.values()) == 210
    assert books_balance(sink, 210)
    assert "spool_failed" in [event["event"] for event in logged]
    sink.stop(1)


def test_a_full_disk_costs_nothing_that_was_kept_while_memory_has_room(
    shelf: Shelf, small_disk: SmallDisk
) -> None:
    """Another program takes the room as fast as it is made: each try would cost a file. Half full, memory needs it."""
    spool = Spool(small_disk.folder / "spool", 2 * DISK_BYTES)
    sink = Sink(shelf, 1.0, spool=spool, max_waiting_rows=400)
    shelf.refuse = away
    for ts_ms in range(300):
        sink.put([gpu(ts_ms)])
        sink.send()
    assert on_disk(small_disk.folder / "spool") > 2
    small_disk.fill()
    for ts_ms in range(300, 499):
        sink.put([gpu(ts_ms)])
        sink.send()
        small_disk.fill()
    assert sum(sink.state().dropped_rows.values()) == 0
    assert spool.failures > 100
    for ts_ms in range(499, 700):
        sink.put([gpu(ts_ms)])
        sink.send()
    dropped = sum(sink.state().dropped_rows.values())
    shelf.refuse = lambda records: None
    assert sink.send()
    assert 0 < dropped < 500
    assert shelf.times() == list(range(dropped, 700))
    assert books_balance(sink, 700)
    sink.stop(1)


def test_a_spool_whose_disk_is_mended_is_taken_into_use(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: list[structlog.typing.EventDict]
) -> None:
    """Each refusal counts. What a predecessor left and what waited in memory arrive once, in order."""
    monkeypatch.setattr("idlewatt.collectors.sink._OPEN_SPOOL_EVERY_S", 0.02)
    shelf.refuse = away
    before = Sink(shelf, 1.0, spool=Spool(tmp_path, GIB))
    before.put([gpu(ts_ms) for ts_ms in range(20)])
    before.stop(0)
    is_mended = threading.Event()

    def open_spool() -> Spool:
        if not is_mended.is_set():
            raise SpoolDiskError("read-only")
        return Spool(tmp_path, GIB)

    sink = Sink(shelf, 0.005, open_spool=open_spool)
    assert sink.state().spool_failures == 1
    sink.start()
    for ts_ms in range(20, 40):
        sink.put([gpu(ts_ms)])
    wait_until(lambda: sink.state().spool_failures > 3)
    assert (sink.state().waiting_rows, sink.state().spool_max_bytes) == (20, None)
    is_mended.set()
    wait_until(lambda: on_disk(tmp_path) == 2 and sink.state().waiting_rows == 40)
    state = sink.state()
    assert state.spool_max_bytes == GIB
    assert state.spool_failures > 3
    assert sink.store([gpu(40)])
    shelf.refuse = lambda records: None
    wait_until(lambda: sink.state().waiting_rows == 0)
    sink.stop(1)
    assert shelf.times() == list(range(41))
    assert books_balance(sink, 41)
    assert [event["rows"] for event in logged if event["event"] == "spool_back"] == [20]
    assert [event["detail"] for event in logged if event["event"] == "spool_failed"][:1] == ["read-only"]
    Spool(tmp_path, GIB).close()


def test_callers_that_wait_while_the_log_goes_away_do_not_wait_one_after_another(
    shelf: Shelf, tmp_path: Path
) -> None:
    """The sink's own thread would stand in the same queue, with all that is read meanwhile in memory alone."""
    asked, over = threading.Event(), threading.Event()
    times: list[int] = []

    def hang(records: Sequence[Record]) -> None:
        times.append(len(records))
        asked.set()
        assert over.wait(10)
        raise LogUnavailableError("nobody there")

    shelf.refuse = hang
    sink = Sink(shelf, 1, spool=Spool(tmp_path, GIB))
    with ThreadPoolExecutor(10) as callers:
        answers = [callers.submit(sink.store, [gpu(ts_ms)]) for ts_ms in range(10)]
        assert asked.wait(10)
        over.set()
        assert [answer.result(10) for answer in answers] == [True] * 10
    assert len(times) == 1
    shelf.refuse = lambda records: None
    assert sink.send()
    assert sorted(map(str, shelf.times())) == [str(ts_ms) for ts_ms in range(10)]


@pytest.mark.parametrize("spooled", [True, False])
def test_callers_do_not_pile_up_before_a_log_that_is_slow(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spooled: bool
) -> None:
    """Who is not heard soon leaves the rows to the spool or, where there is none, is told that they are not kept."""
    monkeypatch.setattr("idlewatt.collectors.sink._TURN_WITHIN_S", 0.05)
    asked, over = threading.Event(), threading.Event()

    def slow(records: Sequence[Record]) -> None:
        asked.set()
        assert over.wait(10)

    shelf.refuse = slow
    sink = Sink(shelf, 1, spool=Spool(tmp_path, GIB) if spooled else None)
    with ThreadPoolExecutor(10) as callers:
        first = callers.submit(sink.store, [gpu(0)])
        assert asked.wait(10)
        others = [callers.submit(sink.store, [gpu(ts_ms)]) for ts_ms in range(1, 10)]
        try:
            assert [other.result(5) for other in others] == [spooled] * 9
            assert not first.done()
        finally:
            over.set()
        assert first.result(10)
    assert sink.send()
    assert sorted(map(str, shelf.times())) == [str(ts_ms) for ts_ms in range(10 if spooled else 1)]
    sink.stop(1)


def test_one_caller_at_a_time_asks_a_log_that_is_away(shelf: Shelf) -> None:
    """Where there is no spool, or it takes nothing: the others are told so at once, and the first finds it when it is back."""
    shelf.refuse = away
    sink = Sink(shelf, 1)
    assert not sink.store([gpu(0)])
    asked, over = threading.Event(), threading.Event()

    def hang(records: Sequence[Record]) -> None:
        asked.set()
        assert over.wait(10)

    shelf.refuse = hang
    with ThreadPoolExecutor(1) as callers:
        first = callers.submit(sink.store, [gpu(1)])
        assert asked.wait(10)
        assert not sink.store([gpu(2)])
        over.set()
        assert first.result(10)
    assert sink.store([gpu(3)])
    assert shelf.times() == [1, 3]
    assert sink.state().sent_rows[topics.GPU] == 2


def test_a_disk_that_hangs_while_the_spool_is_opened_holds_nothing_up(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log is there: rows go to it, and stop() does not wait."""
    monkeypatch.setattr("idlewatt.collectors.sink._OPEN_SPOOL_EVERY_S", 0)
    hanging = threading.Event()

    def open_spool() -> Spool:
        hanging.set()
        threading.Event().wait()
        raise AssertionError

    sink = Sink(shelf, 0.005, open_spool=open_spool)
    sink.start()
    assert hanging.wait(5)
    sink.put([gpu(1)])
    wait_until(lambda: shelf.times() == [1])
    started = time.monotonic()
    sink.stop(1)
    assert time.monotonic() - started < 0.5


def test_a_message_the_log_will_never_take_is_no_plug(
    shelf: Shelf, tmp_path: Path, logged: list[structlog.typing.EventDict]
) -> None:
    """In the spool as in memory it is dropped, counted and logged, and all others are sent."""
    sink = Sink(shelf, 1.0, spool=Spool(tmp_path, GIB))
    shelf.refuse = away
    for ts_ms in range(10):
        sink.put([gpu(ts_ms), gpu(ts_ms, "bad")] if ts_ms == 4 else [gpu(ts_ms)])
        sink.send()

    def picky(records: Sequence[Record]) -> None:
        if any(record.key == b"s/bad" for record in records):
            raise ValueError("too large")

    shelf.refuse = picky
    assert sink.send()
    assert shelf.times() == list(range(10))
    assert sink.state().dropped_rows == {topics.GPU: 1, topics.ENGINE: 0, topics.USAGE: 0}
    assert books_balance(sink, 11)
    assert [event["count"] for event in logged if event["event"] == "append_failed"] == [1]
    sink.stop(1)


def test_damage_is_counted_and_said(
    shelf: Shelf, tmp_path: Path, logged: list[structlog.typing.EventDict]
) -> None:
    """A record that the disk has spoilt costs its rows, which are counted as dropped, and holds up no other."""
    sink = Sink(shelf, 1.0, spool=Spool(tmp_path, GIB))
    shelf.refuse = away
    for ts_ms in range(10):
        sink.put([gpu(ts_ms)])
        sink.send()
    (path,) = tmp_path.glob("*.spool")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    shelf.refuse = lambda records: None
    assert sink.send()
    assert len(shelf.times()) == 9
    state = sink.state()
    assert (state.damaged_records, state.dropped_rows[topics.GPU]) == (1, 1)
    assert books_balance(sink, 10)
    (said,) = [event for event in logged if event["event"] == "spool_damaged"]
    assert str(path) in said["detail"]
    sink.stop(1)
