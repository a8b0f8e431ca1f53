"""Where partitions begin and end, and how far a consumer has read: kafka-python's own questions wait, or leave something out."""

import copy
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Any

from kafka.errors import RetriableError, TopicAuthorizationFailedError
from kafka.protocol.consumer import IsolationLevel

from idlewatt.stream.kafka_clients import Consumer, TopicPartition

# instead of a time, in a question about offsets (KIP-79)
_LATEST, _EARLIEST = -1, -2


def topic_ids(consumer: Consumer, topics: Sequence[str]) -> dict[str, str]:
    """The ids of those topics that Kafka has told of (KIP-516), by name; nobody is asked."""
    cluster = consumer._fetcher._client.cluster  # type: ignore[attr-defined]
    found = {topic: cluster.topic_id(topic) for topic in topics}
    return {topic: str(topic_id) for topic, topic_id in found.items() if topic_id is not None}


def ask_for_topics(consumer: Consumer, timeout_ms: int) -> None:
    """Have the newest of what topic_ids() tells. Raises KafkaError when Kafka does not answer.

    The question waits for the answer to a fetch that is under way, half a second where nothing comes.
    """
    _ask_for_topics(consumer._fetcher, timeout_ms)  # type: ignore[attr-defined]


def position(consumer: Consumer, topic: str, partition: int) -> int | None:
    """Where the next poll reads on, None where that is not known; nobody is asked.

    KafkaConsumer.position() may ask the broker, and takes fifty times as long when it need not.
    """
    state = consumer._subscription.assignment.get(TopicPartition(topic, partition))  # type: ignore[attr-defined]
    found: int | None = None if state is None or state.position is None else state.position.offset
    return found


def is_read(consumer: Consumer, tp: Any, end: int | None) -> bool:
    """Whether the consumer has read to the end, if that is known; nobody is asked.

    By its position and not by the last record: the marks of ended transactions take offsets too. Not by
    KafkaConsumer.position(), which waits for all partitions that have no position yet, also for those without a leader.
    """
    found = position(consumer, tp.topic, tp.partition)
    return end is not None and found is not None and found >= end


def begins_of_logs(
    consumer: Consumer, partitions: Sequence[Any], timeout_ms: int
) -> dict[tuple[str, int], int]:
    """Where partitions begin, of those that have a leader. Raises KafkaError when Kafka does not answer."""
    return _places(consumer._fetcher, partitions, _EARLIEST, timeout_ms)  # type: ignore[attr-defined]


def ends_of_logs(
    consumer: Consumer, partitions: Sequence[Any], timeout_ms: int
) -> dict[tuple[str, int], int]:
    """Where partitions end, messages of open transactions and what is hidden behind them included; of those with a leader.

    The end that our consumers are told is that of what they may read. What a fetch says of the log's end
    (KafkaConsumer.highwater()) is not said again after a seek where nothing comes, nor taken back by a log that has
    lost its end. Raises KafkaError when Kafka does not answer.
    """
    # the copy asks over the same connections; what is fetched meanwhile stays what is committed
    asking = copy.copy(consumer._fetcher)  # type: ignore[attr-defined]
    asking._isolation_level = IsolationLevel.READ_UNCOMMITTED
    return _places(asking, partitions, _LATEST, timeout_ms)


def offsets_since(
    consumer: Consumer, partitions: Sequence[Any], since_ms: int, timeout_ms: int
) -> dict[tuple[str, int], int]:
    """Of the first message that came at `since_ms` or later, or the end where none did; of partitions with a leader.

    Raises KafkaError when Kafka does not answer.
    """
    fetcher = consumer._fetcher  # type: ignore[attr-defined]
    cluster = fetcher._client.cluster

    def leaders() -> list[tuple[int | None, int | None]]:
        return [
            (cluster.leader_for_partition(tp), cluster.leader_epoch_for_partition(tp)) for tp in partitions
        ]

    before = leaders()
    # whatever is committed after this question stands behind its answer
    ends = _places(fetcher, partitions, _LATEST, timeout_ms)
    found = _places(fetcher, partitions, since_ms, timeout_ms)
    # a partition that has lost its leader is answered for as if nothing had come since
    same = [tp for tp, a, b in zip(partitions, before, leaders(), strict=True) if a == b and tp in ends]
    return {tp: found.get(tp, ends[tp]) for tp in same}


def _places(
    fetcher: Any, partitions: Sequence[Any], time_spec: int, timeout_ms: int
) -> dict[tuple[str, int], int]:
    cluster = fetcher._client.cluster
    _refuse_hidden(
        fetcher, {tp.topic for tp in partitions if cluster.leader_for_partition(tp) is None}, timeout_ms
    )
    # KafkaConsumer's own questions end with a KeyError where one of the partitions has no leader, and the fetcher's waits
    # for all of its time where none of them has
    led = [tp for tp in partitions if cluster.leader_for_partition(tp) != -1]
    if len(led) < len(partitions):
        cluster.request_update()
    found = fetcher.offsets_by_times(dict.fromkeys(led, time_spec), timeout_ms) if led else {}
    return {tp: place.offset for tp, place in found.items() if place is not None}


def _refuse_hidden(fetcher: Any, unknown: Collection[str], timeout_ms: int) -> None:
    """Raise TopicAuthorizationFailedError where topics are unknown because this user may not see them.

    Asked about together with others, kafka-python leaves them out without a word.
    """
    if not unknown:
        return
    cluster = fetcher._client.cluster
    for topic in unknown:
        cluster.add_topic(topic)
    # one that another broker has just created may be known the next time
    with suppress(RetriableError):
        _ask_for_topics(fetcher, timeout_ms)
    if hidden := cluster.unauthorized_topics.intersection(unknown):
        raise TopicAuthorizationFailedError(hidden)


def _ask_for_topics(fetcher: Any, timeout_ms: int) -> None:
    fetcher._net.run(fetcher._manager.wait_for, fetcher._client.cluster.request_update(), timeout_ms)
