"""Looks at a Kafka as a visitor would, for `idlewatt doctor`: creates and changes nothing."""

import time
from dataclasses import dataclass
from typing import Final

from idlewatt.stream import topics
from idlewatt.stream.errors import LogUnavailableError
from idlewatt.stream.kafka_clients import (
    AuthorizationError,
    KafkaError,
    TopicPartition,
    close_consumer,
    may_not_read,
    open_admin,
    open_reader,
)
from idlewatt.stream.kafka_offsets import begins_of_logs, ends_of_logs
from idlewatt.stream.settings import Log

_TIMEOUT_MS: Final = 5_000


@dataclass(frozen=True, slots=True)
class NewestMessage:
    """The last message of a partition."""

    topic: str
    # the broker's clock when it came in, where the topic says LogAppendTime, as those Idlewatt creates do
    appended_ms: int
    value: bytes


def missing_topics(log: Log) -> frozenset[str]:
    """Idlewatt's topics that are not there. Raises ConfigError, LogUnavailableError."""
    try:
        with open_admin(log) as admin:
            return frozenset(topics.ALL) - frozenset(admin.list_topics())
    except KafkaError as error:
        raise LogUnavailableError(
            f"log.bootstrap_servers: Kafka at {log.bootstrap_servers} does not list its topics: {error}"
        ) from error


def newest_messages(log: Log, topic: str) -> list[NewestMessage]:
    """The last message of each partition of a topic that collectors write.

    Raises ConfigError where this user may not read it, LogUnavailableError.
    """
    consumer = open_reader(log, "idlewatt-doctor")
    try:
        partitions = [TopicPartition(topic, n) for n in consumer.partitions_for_topic(topic) or ()]
        ends = ends_of_logs(consumer, partitions, _TIMEOUT_MS)
        begins = begins_of_logs(consumer, partitions, _TIMEOUT_MS)
        filled = {place for place, end in ends.items() if end > begins.get(place, end)}
        consumer.assign(list(filled))
        for place in filled:
            consumer.seek(place, ends[place] - 1)
        newest = []
        deadline = time.monotonic() + _TIMEOUT_MS / 1000
        while filled and time.monotonic() < deadline:
            for place, records in consumer.poll(200).items():
                if place in filled:
                    filled -= {place}
                    last = records[-1]
                    newest.append(NewestMessage(topic, last.timestamp, last.value or b""))
        return newest
    except AuthorizationError as error:
        raise may_not_read(log, topic) from error
    except KafkaError as error:
        raise LogUnavailableError(
            f"topic {topic} cannot be read at {log.bootstrap_servers}: {error}"
        ) from error
    finally:
        close_consumer(consumer)
