"""How far a stage has read its inputs in Kafka, and keeping them side by side while it catches up."""

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Final

from idlewatt.stream.kafka_clients import ConsumedRecord, Consumer, KafkaError, TopicPartition

_ENDS_INTERVAL_S: Final = 1.0
_TIMEOUT_MS: Final = 3_000
# One input may be read ahead of another by this much, so that the state of a stage that catches up stays small.
_AHEAD_MS: Final = 30_000


class Progress:
    """Of the partitions that a stage reads. Keys are (topic, partition)."""

    def __init__(self, inputs: Sequence[str]) -> None:
        self._inputs = inputs
        self._ends: dict[tuple[str, int], int] = {}
        self._ends_at = float("-inf")
        # when Kafka took in the newest message that was read, Unix milliseconds
        self._newest_ms: dict[tuple[str, int], int] = {}

    def ask(self, consumer: Consumer, partitions: Iterable[int]) -> None:
        """Ask where the inputs end, at most once a second; raises KafkaError when Kafka does not answer.

        Consumers of kafka-python wait for a broker that is away without a word; this is how it is noticed, and
        how a silent input is told from one that cannot be read.
        """
        if time.monotonic() - self._ends_at < _ENDS_INTERVAL_S:
            return
        wanted = [TopicPartition(topic, n) for n in partitions for topic in self._inputs]
        self._ends = consumer.end_offsets(
            wanted or [TopicPartition(self._inputs[0], 0)], timeout_ms=_TIMEOUT_MS
        )
        self._ends_at = time.monotonic()

    def begin(self, partition: int) -> None:
        """A partition was given to the stage: nothing is known of it."""
        self._ends_at = float("-inf")
        for topic in self._inputs:
            self._ends.pop((topic, partition), None)
            self._newest_ms.pop((topic, partition), None)

    def read(self, records: Mapping[tuple[str, int], Sequence[ConsumedRecord]]) -> None:
        """Take note of messages that are handed out."""
        for tp, batch in records.items():
            self._newest_ms[tp] = batch[-1].timestamp

    def behind(self, consumer: Consumer, partitions: Iterable[int]) -> dict[tuple[str, int], int]:
        """Messages and transaction marks still to be read; at least 1 where that is not known."""
        behind = {}
        for n in partitions:
            for topic in self._inputs:
                position = None
                with suppress(KafkaError):
                    position = consumer.position(TopicPartition(topic, n), timeout_ms=100)
                end = self._ends.get((topic, n))
                behind[(topic, n)] = 1 if position is None or end is None else max(end - position, 0)
        return behind

    def align(self, consumer: Consumer, behind: Mapping[tuple[str, int], int]) -> None:
        """Hold an input back where another one of the same partition has older messages to be read."""
        for n in {n for _, n in behind}:
            oldest_ms = min(
                (self._newest_ms.get((topic, n), 0) for topic in self._inputs if behind[(topic, n)]),
                default=None,
            )
            for topic in self._inputs:
                if oldest_ms is not None and self._newest_ms.get((topic, n), 0) > oldest_ms + _AHEAD_MS:
                    consumer.pause(TopicPartition(topic, n))
                else:
                    consumer.resume(TopicPartition(topic, n))
