"""Reads a Kafka topic as it is now, for reports and tests."""

import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

from idlewatt.stream.errors import ConfigError, LogUnavailableError
from idlewatt.stream.kafka_clients import (
    AuthorizationError,
    ConsumedRecord,
    Consumer,
    KafkaError,
    TopicPartition,
    close_consumer,
    may_not_read,
    open_reader,
)
from idlewatt.stream.kafka_offsets import begins_of_logs, ends_of_logs, is_read, offsets_since
from idlewatt.stream.log import Message
from idlewatt.stream.settings import Log

# longer than the broker takes to abort the transaction of a process that died
_STALLED_S: Final = 60.0
_TIMEOUT_MS: Final = 10_000
_NO_END: Final = 2**63 - 1


def read_messages(
    log: Log,
    topic: str,
    *,
    since_ms: int = 0,
    newest: int | None = None,
    follow: bool = False,
) -> Iterator[Message]:
    """What read_records() gives, as messages."""
    for record in read_records(log, topic, since_ms=since_ms, newest=newest, follow=follow):
        yield Message(topic, record.partition, record.offset, record.value or b"")


def read_records(
    log: Log,
    topic: str,
    *,
    since_ms: int = 0,
    newest: int | None = None,
    follow: bool = False,
    patience_s: float = _STALLED_S,
) -> Iterator[ConsumedRecord]:
    """Every committed message of a topic, from the oldest to those that are there now; in order by partition.

    `since_ms`: those appended before are left out. `newest`: of each partition only the last so many, or a few more.
    `follow`: and all that come after, without end. `patience_s`: how long nothing may come before the end. A
    transaction that is about to end is waited for: Kafka answers a commit a moment before it shows what was committed.
    Raises ConfigError, LogUnavailableError.
    """
    consumer = open_reader(log, "idlewatt-reader")
    try:
        partitions = consumer.partitions_for_topic(topic)
        if not partitions:
            raise ConfigError(
                f"Kafka at {log.bootstrap_servers} has no topic {topic}, or hides it from this user"
            )
        left = [TopicPartition(topic, n) for n in sorted(partitions)]
        # of those that are read; the others have had no leader yet, of which nobody knows where to begin
        ends: dict[tuple[str, int], int] = {}
        deadline = time.monotonic() + patience_s
        # of a partition without a leader nobody knows how long it will have none
        leaders_by = time.monotonic() + min(patience_s, _TIMEOUT_MS / 1000)
        while left:
            if lacking := [tp for tp in left if tp not in ends]:
                # not what fetches tell, which is too low for a moment where another broker has just become the leader
                found = ends_of_logs(consumer, lacking, _TIMEOUT_MS)
                begins = _begins(consumer, found, since_ms, newest)
                ends |= {tp: _NO_END if follow else found[tp] for tp in begins}
                consumer.assign([TopicPartition(*tp) for tp in sorted(ends)])
                for tp, begin in begins.items():
                    consumer.seek(tp, begin)
            fetched = consumer.poll(200)
            for records in fetched.values():
                for record in records:
                    if record.offset < ends.get((topic, record.partition), _NO_END):
                        yield record
            if fetched:
                # the time that the caller took does not count
                deadline = time.monotonic() + patience_s
            left = [tp for tp in left if not is_read(consumer, tp, ends.get(tp))]
            until = deadline if ends.keys() >= set(left) else leaders_by
            if left and not follow and time.monotonic() > until:
                raise LogUnavailableError(
                    f"topic {topic}: Kafka at {log.bootstrap_servers} gives no messages"
                )
    except AuthorizationError as error:
        raise may_not_read(log, topic) from error
    except KafkaError as error:
        raise LogUnavailableError(
            f"topic {topic} cannot be read at {log.bootstrap_servers}: {error}"
        ) from error
    finally:
        close_consumer(consumer)


def _begins(
    consumer: Consumer, ends: Mapping[Any, int], since_ms: int, newest: int | None
) -> dict[tuple[str, int], int]:
    """Where to begin to read partitions that end there, of those that have a leader still."""
    if newest is None and since_ms > 0:
        return offsets_since(consumer, list(ends), since_ms, _TIMEOUT_MS)
    begins = begins_of_logs(consumer, list(ends), _TIMEOUT_MS)
    if newest is None:
        return begins
    # each transaction, which has at least one message, ends with a mark that takes an offset too
    return {tp: max(begin, ends[tp] - 2 * newest) for tp, begin in begins.items()}
