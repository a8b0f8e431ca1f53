"""Reads a Kafka topic as it is now, for reports and tests."""

import time
from collections.abc import Iterator
from typing import Final

from idlewatt.stream.errors import ConfigError, LogUnavailableError
from idlewatt.stream.kafka_clients import KafkaError, TopicPartition, close_consumer, open_reader
from idlewatt.stream.log import Message
from idlewatt.stream.settings import Log

_STALLED_S: Final = 30.0
_TIMEOUT_MS: Final = 10_000


def read_messages(log: Log, topic: str) -> Iterator[Message]:
    """Every committed message of a topic, from the oldest to those that are there now; in order by partition."""
    consumer = open_reader(log, "idlewatt-reader")
    try:
        partitions = consumer.partitions_for_topic(topic)
        if not partitions:
            raise ConfigError(f"Kafka at {log.bootstrap_servers} has no topic {topic}")
        left = [TopicPartition(topic, n) for n in sorted(partitions)]
        consumer.assign(left)
        consumer.seek_to_beginning(*left)
        ends = consumer.end_offsets(left, timeout_ms=_TIMEOUT_MS)
        deadline = time.monotonic() + _STALLED_S
        while True:
            for records in consumer.poll(200).values():
                deadline = time.monotonic() + _STALLED_S
                for record in records:
                    if record.offset < ends[(topic, record.partition)]:
                        yield Message(topic, record.partition, record.offset, record.value or b"")
            # positions, because the marks of ended transactions take offsets too
            left = [tp for tp in left if (consumer.position(tp, _TIMEOUT_MS) or 0) < ends[tp]]
            if not left:
                return
            if time.monotonic() > deadline:
                raise LogUnavailableError(
                    f"topic {topic}: Kafka at {log.bootstrap_servers} gives no messages"
                )
    except KafkaError as error:
        raise LogUnavailableError(
            f"topic {topic} cannot be read at {log.bootstrap_servers}: {error}"
        ) from error
    finally:
        close_consumer(consumer)
