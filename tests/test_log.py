"""What both homes of the log promise, asked of each."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from stage_reader import StageReader

from idlewatt.stream import topics
from idlewatt.stream.clock import unix_ms
from idlewatt.stream.log import Appender, Commit, Record
from idlewatt.stream.opening import open_appender, open_stage_log, prepare, read_topic
from idlewatt.stream.settings import Settings

METER = (topics.GPU, topics.ENGINE)
OpenStage = Callable[..., StageReader]


@pytest.fixture(params=["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """An empty log in either home."""
    if request.param == "kafka":
        kafka: Settings = request.getfixturevalue("fresh_topics")
        return kafka
    embedded = Settings.model_validate({"log": {"kind": "embedded", "path": str(tmp_path / "log.db")}})
    prepare(embedded)
    return embedded


@pytest.fixture
def appender(settings: Settings) -> Iterator[Appender]:
    appender = open_appender(settings, "test")
    yield appender
    appender.close()


@pytest.fixture
def open_stage(settings: Settings) -> Iterator[OpenStage]:
    """Opens the log of a stage, and closes all of them at the end."""
    opened: list[StageReader] = []

    def open_one(stage: str = "meter", inputs: tuple[str, ...] = METER) -> StageReader:
        opened.append(StageReader(open_stage_log(settings, stage, inputs)))
        return opened[-1]

    yield open_one
    for reader in opened:
        reader.log.close()


def gpu(value: bytes, pool: str = "rack-1") -> Record:
    return Record(topics.GPU, topics.pool_key("site", pool), value)


def engine(value: bytes, pool: str = "rack-1") -> Record:
    return Record(topics.ENGINE, topics.pool_key("site", pool), value)


def ledger(value: bytes) -> Record:
    return Record(topics.LEDGER, topics.site_key("site"), value)


def values(settings: Settings, topic: str) -> list[bytes]:
    return [message.value for message in read_topic(settings, topic)]


def test_messages_of_a_pool_keep_their_order(appender: Appender, open_stage: OpenStage) -> None:
    """What is appended for one pool is read in that order, with rising offsets, from one partition."""
    sent = [b"%d" % i for i in range(300)]
    for start in range(0, 300, 100):
        appender.append([gpu(value) for value in sent[start : start + 100]])
    stage = open_stage()
    stage.until_values(set(sent))
    assert [m.value for m in stage.messages] == sent
    offsets = [m.offset for m in stage.messages]
    assert offsets == sorted(set(offsets))
    assert len({m.partition for m in stage.messages}) == 1


def test_joules_and_tokens_of_a_pool_meet(appender: Appender, open_stage: OpenStage) -> None:
    """GPU and engine messages of one pool come from the same partition, whichever pool it is."""
    pools = [f"rack-{i}" for i in range(20)]
    appender.append([gpu(pool.encode(), pool) for pool in pools])
    appender.append([engine(b"e" + pool.encode(), pool) for pool in pools])
    stage = open_stage()
    stage.until(lambda: len(stage.messages) == 40)
    of_gpu = {m.value: m.partition for m in stage.messages if m.topic == topics.GPU}
    of_engine = {m.value[1:]: m.partition for m in stage.messages if m.topic == topics.ENGINE}
    assert of_gpu == of_engine


def test_a_stage_reads_on_after_its_last_commit(appender: Appender, open_stage: OpenStage) -> None:
    """After a restart the snapshot of the last commit comes back, and only the messages after it."""
    first = open_stage()
    appender.append([gpu(b"a"), engine(b"b")])
    first.until_values({b"a", b"b"})
    first.commit(b"state after b")
    appender.append([gpu(b"c"), engine(b"d")])
    first.until_values({b"a", b"b", b"c", b"d"})
    first.log.close()

    second = open_stage()
    second.until_values({b"c", b"d"})
    assert set(second.snapshots.values()) == {b"state after b"}


def test_an_input_without_new_messages_stays_where_it_was(appender: Appender, open_stage: OpenStage) -> None:
    """A commit that moves one input on keeps the place of the other."""
    first = open_stage()
    appender.append([gpu(b"a"), engine(b"b")])
    first.until_values({b"a", b"b"})
    first.commit(b"1")
    appender.append([gpu(b"c")])
    first.until(lambda: b"c" in {m.value for m in first.messages})
    moved = {(m.topic, m.partition): m.offset + 1 for m in first.messages if m.value == b"c"}
    first.log.commit(Commit((), dict.fromkeys(first.snapshots, b"2"), moved))
    first.log.close()
    appender.append([engine(b"d")])

    second = open_stage()
    second.until_values({b"d"})
    assert set(second.snapshots.values()) == {b"2"}


def test_output_and_state_come_with_the_commit(
    appender: Appender, open_stage: OpenStage, settings: Settings
) -> None:
    """Records of a commit can be read once it has returned, each once; before it there is nothing."""
    stage = open_stage()
    appender.append([gpu(b"a")])
    stage.until_values({b"a"})
    assert values(settings, topics.LEDGER) == []
    stage.commit(b"1", (ledger(b"row 1"), ledger(b"row 2")))
    assert values(settings, topics.LEDGER) == [b"row 1", b"row 2"]
    stage.commit(b"2", (ledger(b"row 3"),))
    assert values(settings, topics.LEDGER) == [b"row 1", b"row 2", b"row 3"]


def test_large_snapshots_come_back_whole(appender: Appender, open_stage: OpenStage) -> None:
    """A snapshot of 3.5 MB is restored to the byte, and a smaller one after it replaces it."""
    state = os.urandom(3_500_000)
    first = open_stage()
    appender.append([gpu(b"a")])
    first.until_values({b"a"})
    first.log.commit(Commit((), {first.messages[0].partition: state}, first.resume))
    first.log.close()

    second = open_stage()
    second.until(lambda: state in second.snapshots.values())
    (partition,) = (n for n, snapshot in second.snapshots.items() if snapshot)
    second.log.commit(Commit((), {partition: b"small"}, {}))
    second.log.close()

    third = open_stage()
    third.until(lambda: partition in third.snapshots)
    assert third.snapshots[partition] == b"small"


def test_two_stages_do_not_see_each_other(
    appender: Appender, open_stage: OpenStage, settings: Settings
) -> None:
    """Each stage has its own place and state; one reads what the other commits."""
    meter = open_stage("meter", METER)
    economy = open_stage("economy", (topics.LEDGER,))
    appender.append([gpu(b"a")])
    meter.until_values({b"a"})
    meter.commit(b"meter's", (ledger(b"row"),))
    economy.until_values({b"row"})
    economy.commit(b"economy's", (Record(topics.MONEY, b"site", b"money"),))
    for reader in (meter, economy):
        reader.log.close()

    meter, economy = open_stage("meter", METER), open_stage("economy", (topics.LEDGER,))
    meter.until(lambda: bool(meter.snapshots))
    economy.until(lambda: bool(economy.snapshots))
    assert set(meter.snapshots.values()) == {b"meter's"}
    assert set(economy.snapshots.values()) == {b"economy's"}
    assert values(settings, topics.MONEY) == [b"money"]


@pytest.mark.parametrize("value", [b"", b"\x00", b"\xff" * 4, b"not Arrow", bytes(range(256)) * 4000])
def test_any_bytes_pass_through(appender: Appender, open_stage: OpenStage, value: bytes) -> None:
    """The log carries bytes that are no Arrow at all, unchanged; judging them is the processor's work."""
    appender.append([gpu(value)])
    stage = open_stage()
    stage.until_values({value})


def test_poll_wakes_for_a_message(appender: Appender, open_stage: OpenStage) -> None:
    """A waiting poll returns soon after a message is appended, long before its timeout."""
    stage = open_stage()
    stage.until_assigned_and_caught_up()
    late = threading.Timer(0.3, lambda: appender.append([gpu(b"a")]))
    start = time.monotonic()
    late.start()
    poll = stage.log.poll(30.0)
    assert [m.value for m in poll.messages] == [b"a"]
    assert time.monotonic() - start < 10.0
    late.join()


def test_poll_returns_when_its_time_is_up(open_stage: OpenStage) -> None:
    """A poll of a silent log ends empty at its timeout."""
    stage = open_stage()
    stage.until_assigned_and_caught_up()
    start = time.monotonic()
    poll = stage.log.poll(0.5)
    assert not poll.messages
    assert 0.4 < time.monotonic() - start < 5.0


def test_behind_tells_how_much_is_left(appender: Appender, open_stage: OpenStage) -> None:
    """A stage is never shown as caught up while there are messages it has not been given."""
    total = 5000
    for _ in range(5):
        appender.append([gpu(b"x") for _ in range(total // 5)])
    stage = open_stage()
    while len(stage.messages) < total:
        left = sum(stage.behind.get((topics.GPU, n), 0) for n in stage.snapshots)
        assert left > 0 or not stage.snapshots
        stage.poll()
    stage.until_assigned_and_caught_up()
    assert len(stage.messages) == total


def test_a_commit_needs_a_snapshot(appender: Appender, open_stage: OpenStage, settings: Settings) -> None:
    """Output or offsets without the state they belong to are refused, and nothing of them is written."""
    stage = open_stage()
    appender.append([gpu(b"a")])
    stage.until_values({b"a"})
    with pytest.raises(ValueError, match="snapshot"):
        stage.log.commit(Commit((ledger(b"row"),), {}, stage.resume))
    assert values(settings, topics.LEDGER) == []


def test_a_topic_is_read_from_a_moment_on(settings: Settings, appender: Appender) -> None:
    """`since_ms` leaves out what was appended before, and nothing else."""
    appender.append([gpu(b"old", f"rack-{n}") for n in range(8)])
    moment_ms = unix_ms() + 1
    while unix_ms() < moment_ms:
        time.sleep(0.001)
    assert list(read_topic(settings, topics.GPU, since_ms=moment_ms)) == []
    appender.append([gpu(b"new", f"rack-{n}") for n in range(3)])
    found = [message.value for message in read_topic(settings, topics.GPU, since_ms=moment_ms)]
    assert found == [b"new"] * 3


def test_a_topic_is_read_from_its_newest_on_and_followed(settings: Settings, appender: Appender) -> None:
    """`newest` brings the last of each partition, `follow` goes on with what comes."""
    appender.append([gpu(b"%d" % n) for n in range(9)])
    newest = [message.value for message in read_topic(settings, topics.GPU, newest=3)]
    assert newest[-3:] == [b"6", b"7", b"8"]
    assert len(newest) < 9
    assert list(read_topic(settings, topics.GPU, newest=0)) == []
    messages = read_topic(settings, topics.GPU, newest=1, follow=True)
    before = [next(messages).value]
    while before[-1] != b"8":
        before.append(next(messages).value)
    assert len(before) <= 2
    appender.append([gpu(b"new")])
    assert next(messages).value == b"new"
