"""Three brokers that move what they lead to one another."""

from collections.abc import Iterator
from typing import Final

import pytest
from kafka_broker import Cluster, KafkaBroker, java_command

from idlewatt.stream.kafka_clients import TopicPartition, close_producer, open_producer
from idlewatt.stream.kafka_reading import read_messages
from idlewatt.stream.kafka_snapshots import Snapshot, SnapshotRestore, encode_chunks
from idlewatt.stream.settings import Log, Settings
from idlewatt.stream.topics import LEDGER, STATE

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

MOVES: Final = 10


@pytest.fixture(scope="module")
def brokers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[KafkaBroker]]:
    command = java_command()
    if command is None:
        pytest.skip("needs java here: brokers in containers do not find one another")
    cluster = Cluster(3)
    found = [KafkaBroker(tmp_path_factory.mktemp("kafka"), command, cluster, n) for n in (1, 2, 3)]
    try:
        for broker in found:
            broker.prepare()
            broker.launch()
        for broker in found:
            broker.start()
        yield found
    finally:
        for broker in found:
            broker.remove()


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
            chunks = encode_chunks("group", 0, Snapshot(str(number).encode(), {}))
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


def _restored(log: Log) -> bytes:
    restore = SnapshotRestore(log, "reader", "group", frozenset({0}))
    try:
        while True:
            for snapshot in restore.step(0.25).values():
                assert snapshot is not None
                return snapshot.state
    finally:
        restore.close()


def _move(broker: KafkaBroker, topic: str) -> None:
    """Have the next of its brokers lead the topic's one partition, at once."""
    with broker.admin() as admin:
        (partition,) = admin.describe_topics([topic])[0]["partitions"]
        replicas = list(partition["replica_nodes"])
        at = replicas.index(partition["leader_id"]) + 1
        order = [*replicas[at:], *replicas[:at]]
        admin.alter_partition_reassignments({TopicPartition(topic, 0): order})
        admin.elect_leaders(0, {topic: [0]}, raise_errors=False)
