import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest
import structlog

from idlewatt.collectors.sink import MAX_ROWS_PER_MESSAGE, Sink
from idlewatt.stream import records, topics
from idlewatt.stream.decoding import decode
from idlewatt.stream.errors import LogUnavailableError
from idlewatt.stream.log import Record
from idlewatt.stream.records import EngineRow, GpuRow


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
    assert (state.sent_rows, state.waiting_bytes) == ({topics.GPU: 3, topics.ENGINE: 1}, 0)
    assert sink.send()
    assert len(shelf.records) == 3


def test_many_rows_are_split_into_messages(shelf: Shelf) -> None:
    """No message grows beyond what Kafka takes."""
    sink = Sink(shelf, 1.0)
    sink.put(gpu(i) for i in range(2 * MAX_ROWS_PER_MESSAGE + 5))
    sink.send()
    assert [decode(record.value)[1].height for record in shelf.records] == [
        MAX_ROWS_PER_MESSAGE,
        MAX_ROWS_PER_MESSAGE,
        5,
    ]
    assert max(len(record.value) for record in shelf.records) < 500_000


def test_rows_wait_while_the_log_is_away(shelf: Shelf, logged: list[structlog.typing.EventDict]) -> None:
    """All of them arrive once, in order, when it is back; that it was away and is back is logged once."""
    sink = Sink(shelf, 1.0)
    shelf.refuse = away
    for ts_ms in range(300):
        sink.put([gpu(ts_ms)])
        assert not sink.send()
    assert sink.state().waiting_bytes > 0
    assert sink.state().sent_rows == {topics.GPU: 0, topics.ENGINE: 0}
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
    assert sink.state().dropped_rows == {topics.GPU: 75, topics.ENGINE: 75}
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
    assert sink.state().dropped_rows == {topics.GPU: 1, topics.ENGINE: 1}
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
