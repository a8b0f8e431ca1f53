"""A transactional producer that never outlives an error."""

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from idlewatt.stream.errors import ConfigError, LogUnavailableError, RewindError
from idlewatt.stream.kafka_clients import (
    REFUSED,
    GroupMetadata,
    KafkaError,
    OffsetAndMetadata,
    Producer,
    TopicPartition,
    close_producer,
    open_producer,
    refusal,
)
from idlewatt.stream.settings import Log

_COMMIT_TIMEOUT_S: Final = 20.0
_DELIVERY_TIMEOUT_MS: Final = 10_000
_ABORT_TIMEOUT_S: Final = 2.0


class Outgoing(NamedTuple):
    """A message of a transaction; `partition` None lets the key decide."""

    topic: str
    key: bytes
    value: bytes
    partition: int | None = None


class TransactionalProducer:
    """One transaction after another under one transactional id.

    Any exception inside a transaction ends the producer, because kafka-python's is not fit for another: offsets of
    an aborted transaction leak into the next one, a fenced producer bumps its own epoch and so fences its
    successor, and after a timeout nobody knows whether the commit happened. A new producer under the same id
    settles what the old one left open.
    """

    def __init__(self, log: Log, owner: str, transactional_id: str) -> None:
        """`owner` is what the ids of all that do the same begin with."""
        self._log = log
        self._owner = owner
        self._id = transactional_id
        self._producer: Producer | None = None

    def prepare(self) -> None:
        """Have a producer, with nothing of an earlier one left open. Raises LogUnavailableError, ConfigError."""
        if self._producer is not None:
            return
        producer = open_producer(self._log, self._id, _DELIVERY_TIMEOUT_MS, self._id)
        try:
            producer.init_transactions()
        except KafkaError as error:
            close_producer(producer)
            raise refusal(error, self._log, self._owner) or LogUnavailableError(
                f"log.bootstrap_servers: Kafka at {self._log.bootstrap_servers} begins no transactions: {error}"
            ) from error
        self._producer = producer

    def commit(
        self,
        messages: Sequence[Outgoing],
        offsets: Mapping[tuple[str, int], int],
        group: Callable[[], GroupMetadata],
    ) -> None:
        """Write messages and offsets in one transaction. Raises RewindError.

        `group` is asked for the membership at the last moment: a rebalance that leaves the partitions where they are
        changes it, and the broker refuses the one before.
        """
        try:
            self.prepare()
        except (LogUnavailableError, ConfigError) as error:
            raise RewindError(str(error)) from error
        producer = self._producer
        assert producer is not None

        def transact() -> None:
            producer.begin_transaction()
            deliveries = [producer.send(m.topic, m.value, m.key, partition=m.partition) for m in messages]
            # all is written before the offsets are: whoever owns the partitions next can tell from the ends of
            # the topics that this transaction is there (see SnapshotRestore)
            for delivery in deliveries:
                delivery.get(timeout=_COMMIT_TIMEOUT_S)
            producer.send_offsets_to_transaction(
                {TopicPartition(*tp): OffsetAndMetadata(offset, "", -1) for tp, offset in offsets.items()},
                group(),
            )
            producer.commit_transaction()

        try:
            _within(_COMMIT_TIMEOUT_S, transact)
        except Exception as error:  # kafka-python documents no complete list of what it raises
            # Left open, the transaction would hold up every reader of its topics until it times out.
            with suppress(Exception):
                _within(_ABORT_TIMEOUT_S, producer.abort_transaction)
            self.close()
            mend = "; it is refused again until max.message.bytes of the topic is raised"
            raise RewindError(
                f"the transaction of {self._id} failed: {error!r}{mend if isinstance(error, REFUSED) else ''}"
            ) from error

    def close(self) -> None:
        if self._producer is not None:
            close_producer(self._producer)
            self._producer = None


def _within(timeout_s: float, action: Callable[[], None]) -> None:
    """Run `action`, but wait no longer than `timeout_s`: kafka-python waits for a lost broker without limit."""
    errors: list[Exception] = []

    def run() -> None:
        try:
            action()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="idlewatt-transaction", daemon=True)
    thread.start()
    thread.join(timeout_s)
    if thread.is_alive():
        raise TimeoutError(f"no answer within {timeout_s:.0f} s")
    if errors:
        raise errors[0]
