"""Three brokers that move what they lead to one another."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final

import pytest
from idlewatt_command import wait_until
from kafka_broker import KafkaBroker, cluster_of, java_command, start_all
from stage_reader import StageReader
from structlog.testing import capture_logs

from idlewatt.stream import kafka_reading
from idlewatt.stream.clock import unix_ms
from idlewatt.stream.errors import LogUnavailableError, RewindError
from idlewatt.stream.kafka_appender import KafkaAppender
from idlewatt.stream.kafka_clients import TopicPartition, close_producer, open_producer
from idlewatt.stream.kafka_log import KafkaStageLog
from idlewatt.stream.kafka_reading import read_messages
from idlewatt.stream.kafka_snapshots import Snapshot, SnapshotRestore, encode_chunks
from idlewatt.stream.log import Record
from idlewatt.stream.opening import prepare
from idlewatt.stream.settings import Log, Settings
from idlewatt.stream.topics import ENGINE, GPU, LEDGER, STATE

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

MOVES: Final = 6
_log = logging.getLogger(__name__)


@pytest.fixture(scope="module")
def brokers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[KafkaBroker]]:
    command = java_command()
    if command is None:
        pytest.skip("needs java here: brokers in containers do not find one another")
    found = cluster_of(tmp_path_factory.mktemp("cluster"), command, 3)
    try:
        start_all(found)
        yield found
    finally:
        for broker in found:
            broker.remove()


@pytest.fixture(autouse=True)
def all_run(brokers: list[KafkaBroker]) -> None:
    """Start what a test that failed has left stopped."""
    for broker in brokers:
        broker.start()


@pytest.fixture
def three_brokers(brokers: list[KafkaBroker]) -> Settings:
    """Settings whose topics are new, with a copy at each broker."""
    return brokers[0].fresh_topics(brokers[0].settings(log={"partitions": 1}))


def test_what_is_there_is_read_whoever_leads(brokers: list[KafkaBroker], three_brokers: Settings) -> None:
    """A leader of a moment ago tells an end that is too low; a snapshot before the newest would book windows twice."""
    log = three_brokers.log
    producer = open_producer(log, "writer", 10_000)
    try:
        for number in range(MOVES):
            chunks = encode_chunks("group", 0, Snapshot(str(number).encode(), {}, 1, {}))
            deliveries = [producer.send(STATE, value, key, partition=0) for key, value in chunks]
            deliveries.append(producer.send(LEDGER, b"%d" % number, b"", partition=0))
            for delivery in deliveries:
                delivery.get(timeout=20)
            _move(brokers[0], STATE)
            assert _restored(log) == str(number).encode()
            _move(brokers[0], LEDGER)
            assert [message.value for message in read_messages(log, LEDGER)][-1] == b"%d" % number
    finally:
        close_producer(producer)


def test_each_message_counts_once_while_leaders_move(
    brokers: list[KafkaBroker], three_brokers: Settings
) -> None:
    """Leaders of what is read, of what is written, of the group and of its transactions; and a broker that ends."""
    line = _Line(three_brokers)
    try:
        for topic in (GPU, LEDGER, STATE, "__consumer_offsets", "__transaction_state"):
            _move(brokers[0], topic)
            line.until_more_is_booked()
        brokers[0].stop()
        line.until_more_is_booked()
        brokers[0].start()
        line.until_all_is_booked()
    finally:
        line.close()
    # what was not sure to be there was sent again
    there = [message.value for message in read_messages(three_brokers.log, GPU)]
    booked = [message.value for message in read_messages(three_brokers.log, LEDGER)]
    assert booked == there
    assert sorted(set(there)) == line.sent


@pytest.mark.parametrize("state_led_by", [2, 0])
def test_partitions_without_a_leader_hold_up_no_others(brokers: list[KafkaBroker], state_led_by: int) -> None:
    """Where topics have no copies and a broker is away, a processor that starts reads what the others lead.

    Whether or not the partitions that nobody leads can be restored.
    """
    settings = brokers[0].settings(log={"partitions": 3, "replication_factor": 1})
    brokers[0].fresh_topics(settings)
    read = (GPU, ENGINE, STATE)
    leaders = {
        TopicPartition(topic, n): [broker.number] for topic in read for n, broker in enumerate(brokers)
    }
    leaders[TopicPartition(STATE, 2)] = [brokers[state_led_by].number]
    _put(brokers[0], leaders)
    brokers[2].stop()
    wait_until(lambda: not _leads(brokers[0], GPU, 2), "nobody leads what it led")
    begins = time.monotonic()
    with capture_logs() as logged:
        prepare(settings)
    assert time.monotonic() - begins < 12
    # what doctor warns of, too
    unread = [line["found"] for line in logged if line["event"] == "topic_settings"]
    assert [STATE in told and "gives no messages" in told for told in unread] == [True] * (state_led_by == 2)
    if state_led_by == 2:
        # where another group has a state, this one's may be what cannot be read: then it is tried again
        producer = open_producer(settings.log, "test", 10_000)
        for key, value in encode_chunks("other-meter", 0, Snapshot(b"state", {GPU: 1, ENGINE: 0}, 3, {})):
            producer.send(STATE, value=value, key=key, partition=0).get(10)
        close_producer(producer)
        with pytest.raises(
            LogUnavailableError, match=r"gives no messages\n.*group other has: all that it books"
        ):
            prepare(settings)
    member = StageReader(KafkaStageLog(settings.log, settings.process.group, "meter", (GPU, ENGINE)))

    def holds(partitions: set[int]) -> bool:
        try:
            member.poll(0.1)
        except LogUnavailableError as error:
            _log.warning("%s", error)
        return set(member.snapshots) == partitions

    try:
        wait_until(lambda: holds({0, 1}), "it has what the others lead", 60)
        brokers[2].start()
        wait_until(lambda: holds({0, 1, 2}), "it has all", 60)
    finally:
        member.log.close()
        brokers[2].start()


def test_a_leader_that_comes_back_is_read_as_the_others_are(
    brokers: list[KafkaBroker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No less of its partition, as a report would leave out a part of an interval; and no more."""
    settings = brokers[0].settings(log={"partitions": 3, "replication_factor": 1})
    brokers[0].fresh_topics(settings)
    _put(brokers[0], {TopicPartition(LEDGER, n): [broker.number] for n, broker in enumerate(brokers)})
    producer = open_producer(settings.log, "writer", 10_000)
    try:
        for n in range(3):
            for value in [b"old"] * 3:
                producer.send(LEDGER, value, b"", partition=n).get(timeout=20)
        time.sleep(0.1)
        since_ms = unix_ms()
        # and of the first there is nothing since
        for n in (1, 2):
            for value in [b"new"] * 2:
                producer.send(LEDGER, value, b"", partition=n).get(timeout=20)
    finally:
        close_producer(producer)
    monkeypatch.setattr(kafka_reading, "_TIMEOUT_MS", 60_000)
    brokers[2].stop()
    wait_until(lambda: not _leads(brokers[0], LEDGER, 2), "nobody leads its last partition")
    asked: list[tuple[dict[str, int], list[bytes]]] = [
        ({}, [b"new"] * 2 + [b"old"] * 3),
        ({"since_ms": since_ms}, [b"new"] * 2),
        ({"newest": 1}, [b"new"] * 2),
    ]
    try:
        readings = [read_messages(settings.log, LEDGER, **how) for how, _ in asked]
        firsts = [next(reading) for reading in readings]
        brokers[2].start()
        for (how, told), first, reading in zip(asked, firsts, readings, strict=True):
            found = sorted((m.partition, m.value) for m in [first, *reading])
            assert [[value for n, value in found if n == led] for led in (1, 2)] == [told, told], how
    finally:
        brokers[2].start()


def test_a_restore_waits_for_no_leader(brokers: list[KafkaBroker]) -> None:
    """What others lead is restored at once, however many partitions it is: meanwhile a stage does not poll."""
    settings = brokers[0].settings(log={"partitions": 8, "replication_factor": 1})
    brokers[0].fresh_topics(settings)
    _put(brokers[0], {TopicPartition(STATE, n): [brokers[2 if n == 7 else 0].number] for n in range(8)})
    brokers[2].stop()
    wait_until(lambda: not _leads(brokers[0], STATE, 7), "nobody leads its last partition")
    restore = SnapshotRestore(settings.log, "reader", "group", frozenset(range(8)))
    try:
        begins, found = time.monotonic(), set[int]()
        while found < set(range(7)):
            found |= restore.step(0.25).keys()
        assert time.monotonic() - begins < 4
    finally:
        restore.close()
        brokers[2].start()


class _Line:
    """A collector that sends numbers and a processor that books each message it reads."""

    def __init__(self, settings: Settings) -> None:
        self.sent: list[bytes] = []
        self._booked = 0
        self._appender = KafkaAppender(settings.log, "collector")
        self._member = StageReader(
            KafkaStageLog(settings.log, settings.process.group, "meter", (GPU, ENGINE))
        )

    def until_more_is_booked(self) -> None:
        enough = self._booked + 5
        self._until(lambda: self._booked >= enough, sends=True)

    def until_all_is_booked(self) -> None:
        self._until(
            lambda: self._booked >= len(self.sent) and not any(self._member.behind.values()), sends=False
        )

    def close(self) -> None:
        self._member.log.close()
        self._appender.close()

    def _until(self, condition: Callable[[], bool], *, sends: bool) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, f"sent {len(self.sent)}; {self._member.state()}"
            if sends:
                self._send()
            self._book()

    def _send(self) -> None:
        value = b"%04d" % len(self.sent)
        with suppress(LogUnavailableError):
            self._appender.append([Record(GPU, b"site", value)])
            self.sent.append(value)

    def _book(self) -> None:
        with suppress(LogUnavailableError, RewindError):
            self._member.poll(0.1)
            if rows := tuple(Record(LEDGER, b"site", m.value) for m in self._member.messages):
                self._member.commit(b"state", rows)
                self._booked += len(rows)
                self._member.messages.clear()


def _restored(log: Log) -> bytes:
    restore = SnapshotRestore(log, "reader", "group", frozenset({0}))
    try:
        while True:
            for snapshot in restore.step(0.25).values():
                assert snapshot is not None
                return snapshot.state
    finally:
        restore.close()


def _leads(broker: KafkaBroker, topic: str, partition: int) -> bool:
    """Whether any broker leads the partition."""
    with broker.admin() as admin:
        found = admin.describe_topics([topic])[0]["partitions"]
        return any(p["leader_id"] >= 0 for p in found if p["partition_index"] == partition)


def _put(broker: KafkaBroker, places: dict[TopicPartition, list[int]]) -> None:
    """Have these brokers hold the partitions."""
    with broker.admin() as admin:
        admin.alter_partition_reassignments(places)
        wait_until(lambda: not admin.list_partition_reassignments(), "the brokers hold what they shall")


def _move(broker: KafkaBroker, topic: str) -> None:
    """Have the next of its brokers lead each of the topic's partitions, at once."""
    with broker.admin() as admin:
        orders = {}
        for partition in admin.describe_topics([topic])[0]["partitions"]:
            replicas = list(partition["replica_nodes"])
            at = replicas.index(partition["leader_id"]) + 1
            orders[TopicPartition(topic, partition["partition_index"])] = [*replicas[at:], *replicas[:at]]
        admin.alter_partition_reassignments(orders)
        admin.elect_leaders(0, {topic: [tp.partition for tp in orders]}, raise_errors=False)
