"""How far a stage has read its inputs in Kafka."""

import time
from collections.abc import Iterable, Sequence
from typing import Final

from idlewatt.stream.kafka_clients import Consumer, TopicPartition
from idlewatt.stream.kafka_offsets import ends_of_logs, position

_ENDS_INTERVAL_S: Final = 1.0
_TIMEOUT_MS: Final = 3_000


class Progress:
    """Of the partitions that a stage reads. Keys are (topic, partition)."""

    def __init__(self, inputs: Sequence[str]) -> None:
        self._inputs = inputs
        self._ends: dict[tuple[str, int], int] = {}
        self._ends_at = float("-inf")

    def ask(self, consumer: Consumer, partitions: Iterable[int]) -> None:
        """Ask where the inputs end, at most once a second; raises KafkaError when Kafka does not answer.

        Consumers of kafka-python wait for a broker that is away without a word; this is how it is noticed, and
        how a silent input is told from one that cannot be read. Nor can one behind a transaction that is left open.
        """
        if time.monotonic() - self._ends_at < _ENDS_INTERVAL_S:
            return
        wanted = [TopicPartition(topic, n) for n in partitions for topic in self._inputs]
        # to whom an input is hidden, the group gives nothing
        wanted = wanted or [TopicPartition(topic, 0) for topic in self._inputs]
        self._ends = ends_of_logs(consumer, wanted, _TIMEOUT_MS)
        self._ends_at = time.monotonic()

    def begin(self, partition: int) -> None:
        """A partition was given to the stage: nothing is known of it."""
        self._ends_at = float("-inf")
        for topic in self._inputs:
            self._ends.pop((topic, partition), None)

    def behind(self, consumer: Consumer, partitions: Iterable[int]) -> dict[tuple[str, int], int]:
        """Messages and transaction marks still to be read, also those that cannot be yet; at least 1 where that is not
        known."""
        behind = {}
        for n in partitions:
            for topic in self._inputs:
                at, end = position(consumer, topic, n), self._ends.get((topic, n))
                behind[(topic, n)] = 1 if at is None or end is None else max(end - at, 0)
        return behind
