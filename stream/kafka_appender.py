"""What collectors write to Apache Kafka with."""

import threading
import time
from collections.abc import Sequence
from typing import Final

from idlewatt.stream.errors import LogUnavailableError, RefusedMessageError
from idlewatt.stream.kafka_clients import (
    REFUSED,
    Producer,
    close_producer,
    connection_options,
    open_producer,
)
from idlewatt.stream.kafka_topics import create_topics
from idlewatt.stream.log import Record
from idlewatt.stream.settings import Log
from idlewatt.stream.topics import RAW


class KafkaAppender:
    """Writes messages, keyed, idempotent. Connects at the first append. May be used from several threads."""

    # Short, so that a collector that is told to end can still do so; what was not sure is appended again.
    _DELIVERY_TIMEOUT_MS: Final = 4_000
    _APPEND_TIMEOUT_S: Final = 6.0

    def __init__(self, log: Log, client_id: str) -> None:
        connection_options(log)  # a wrong setting is an error now, not at the first message
        self._log = log
        self._client_id = client_id
        self._producer: Producer | None = None
        self._lock = threading.Lock()

    def append(self, records: Sequence[Record]) -> None:
        """Return when Kafka holds all records; raise LogUnavailableError when that is not sure for each.

        RefusedMessageError: one of them, alone if it was alone, is nothing Kafka will ever take. Appending them again is
        harmless: rows carry cumulative counters, and a row that came before adds nothing.
        """
        with self._lock:
            try:
                if self._producer is None:
                    # a broker that was away at the start would make them up at the first message, unlike ours
                    create_topics(self._log, RAW)
                    self._producer = open_producer(self._log, self._client_id, self._DELIVERY_TIMEOUT_MS)
                # whoever waited for others, or for a connection over a slow line, has as long as everybody
                deadline = time.monotonic() + self._APPEND_TIMEOUT_S
                deliveries = [self._producer.send(r.topic, r.value, r.key) for r in records]
                for delivery in deliveries:
                    delivery.get(timeout=max(deadline - time.monotonic(), 0.0))
            except REFUSED as error:
                self._drop()
                named = ", ".join(sorted({record.topic for record in records}))
                raise RefusedMessageError(
                    f"Kafka at {self._log.bootstrap_servers} refuses a message for {named}: {error}; "
                    "if it is too large, raise max.message.bytes of the topic"
                ) from error
            except Exception as error:  # kafka-python documents no complete list of what it raises
                self._drop()
                raise LogUnavailableError(
                    f"log.bootstrap_servers: Kafka at {self._log.bootstrap_servers} takes no messages: {error}"
                ) from error

    def close(self) -> None:
        with self._lock:
            self._drop()

    def _drop(self) -> None:
        if self._producer is not None:
            close_producer(self._producer)
            self._producer = None
