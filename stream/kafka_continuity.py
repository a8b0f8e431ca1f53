"""Whether what polls bring goes on from what was read before: kafka-python does not say when it goes back or skips."""

import time
from collections.abc import Sequence
from typing import Final

import structlog

from idlewatt.stream.kafka_clients import Consumer, TopicPartition
from idlewatt.stream.kafka_offsets import begins_of_logs, position
from idlewatt.stream.log import Message

_log = structlog.get_logger()
_TIMEOUT_MS: Final = 3_000
# each transaction of a stage leaves a mark, which looks like something skipped
_INTERVAL_S: Final = 5.0
Place = tuple[str, int]


class Continuity:
    """Of the inputs and partitions of a stage; keys are (topic, partition)."""

    def __init__(self) -> None:
        # the offset of the next message, or a later one where marks of transactions stand between
        self._expected: dict[Place, int] = {}
        # what was expected where something else came
        self._skipped: dict[Place, int] = {}
        self._looked_at = float("-inf")

    def begin(self, place: Place, offset: int) -> None:
        """It is read from there."""
        self._expected[place] = offset
        self._skipped.pop(place, None)

    def goes_on(self, consumer: Consumer, place: Place, messages: Sequence[Message]) -> bool:
        """Whether what comes was not read before. It was, where a log has lost its end.

        kafka-python then goes back to that end, or to the first message where it does not know by what leader was read.
        """
        expected = self._expected.get(place, 0)
        at = messages[0].offset if messages else position(consumer, *place)
        if at is None:
            return True
        if at < expected:
            return False
        if messages:
            if at > expected:
                self._skipped.setdefault(place, expected)
            self._expected[place] = messages[-1].offset + 1
        return True

    def look(self, consumer: Consumer) -> None:
        """Ask about what was skipped, and tell of messages that expired. Raises KafkaError when Kafka does not answer."""
        if not self._skipped or time.monotonic() - self._looked_at < _INTERVAL_S:
            return
        begins = begins_of_logs(consumer, [TopicPartition(*p) for p in self._skipped], _TIMEOUT_MS)
        for (topic, partition), begin in begins.items():
            tell_expired(topic, partition, begin - self._skipped.pop((topic, partition)))
        self._looked_at = time.monotonic()


def tell_expired(topic: str, partition: int, messages: int) -> None:
    """Of messages that nobody has read, if there are any."""
    if messages > 0:
        _log.warning(
            "messages_expired_unread",
            topic=topic,
            partition=partition,
            messages=messages,
            mend="give the topic a longer retention.ms or the stage more processors",
        )
