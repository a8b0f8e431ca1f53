"""Clients of kafka-python, which carries no types: what we ask of them, their options, opening and closing.

Whatever it raises while a client is opened becomes ConfigError or LogUnavailableError here.
"""

import functools
import socket
import ssl
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol

import crc32c  # noqa: F401  without it kafka-python computes checksums in Python, at a fifth of the speed
import lz4.frame  # type: ignore[import-untyped]  # noqa: F401  kafka-python would say "libraries not found" at the first message
import zstandard  # noqa: F401  the same
from kafka import ConsumerRebalanceListener, KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka import TopicPartition as TopicPartition
from kafka.errors import AuthorizationError as AuthorizationError
from kafka.errors import (
    GroupAuthorizationFailedError,
    InvalidRecordError,
    InvalidSessionTimeoutError,
    KafkaConfigurationError,
    MessageSizeTooLargeError,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailedError,
)
from kafka.errors import KafkaError as KafkaError
from kafka.net.compat import KafkaNetClient
from kafka.structs import MemberState
from kafka.structs import OffsetAndMetadata as OffsetAndMetadata

from idlewatt.stream.errors import ConfigError, LogUnavailableError
from idlewatt.stream.kafka_assignor import CopartitionedAssignor
from idlewatt.stream.kafka_joins import keep_answers
from idlewatt.stream.kafka_sockets import LONG_READS
from idlewatt.stream.kafka_unpacking import PartitionRecords
from idlewatt.stream.settings import Log
from idlewatt.stream.topics import MAX_MESSAGE_BYTES

STABLE: Final = MemberState.STABLE
# of a message that is as wrong the next time
REFUSED: Final = (MessageSizeTooLargeError, RecordListTooLargeError, InvalidRecordError)
_BOOTSTRAP_TIMEOUT_MS: Final = 4_000
_REQUEST_TIMEOUT_MS: Final = 8_000
# to tell who is away from who does not let us in
_LISTENS_TIMEOUT_S: Final = 0.5
# Members hear of a rebalance with a heartbeat, and all wait for the last.
_HEARTBEAT_INTERVAL_MS: Final = 1_000
# A member that hangs holds up a rebalance for this long; longer than a commit may take.
_MAX_POLL_INTERVAL_MS: Final = 60_000
# A transaction whose process died is aborted after this long, and until then holds up its readers.
_TRANSACTION_TIMEOUT_MS: Final = 30_000


class ConsumedRecord(Protocol):
    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None


class GroupMetadata(Protocol):
    generation_id: int
    member_id: str
    # STABLE where no rebalance is under way
    state: str


class Consumer(Protocol):
    """What we use of KafkaConsumer. A TopicPartition equals the tuple (topic, partition)."""

    def subscribe(self, topics: Sequence[str], *, listener: Any) -> None: ...
    def assign(self, partitions: Sequence[Any]) -> None: ...
    def poll(
        self, timeout_ms: int, max_records: int | None = None
    ) -> Mapping[tuple[str, int], Sequence[ConsumedRecord]]: ...
    def seek(self, partition: Any, offset: int) -> None: ...
    def seek_to_beginning(self, *partitions: Any) -> None: ...
    def committed(self, partition: Any, timeout_ms: int) -> int | None: ...
    def partitions_for_topic(self, topic: str) -> set[int]: ...
    def group_metadata(self) -> GroupMetadata: ...
    def close(self, *, timeout_ms: int) -> None: ...


class Delivery(Protocol):
    """The future of one sent message."""

    def get(self, timeout: float) -> Any: ...


class Producer(Protocol):
    """What we use of KafkaProducer."""

    def send(self, topic: str, value: bytes, key: bytes, *, partition: int | None = None) -> Delivery: ...
    def init_transactions(self) -> None: ...
    def begin_transaction(self) -> None: ...
    def send_offsets_to_transaction(self, offsets: Mapping[Any, Any], group: GroupMetadata) -> None: ...
    def commit_transaction(self) -> None: ...
    def abort_transaction(self) -> None: ...
    def close(self, timeout: float) -> None: ...


class RebalanceListener(ConsumerRebalanceListener):  # type: ignore[misc]
    """Keeps what the group has given us. Called on kafka-python's IO thread, where nothing may block."""

    def __init__(self) -> None:
        # (topic, partition) -> number of the change that gave it; replaced whole, so reading needs no lock
        self.given: Mapping[tuple[str, int], int] = {}
        self._changes = 0

    def on_partitions_revoked(self, revoked: Any) -> None:
        gone = {(tp.topic, tp.partition) for tp in revoked}
        self.given = {tp: change for tp, change in self.given.items() if tp not in gone}

    def on_partitions_lost(self, lost: Any) -> None:
        self.on_partitions_revoked(lost)

    def on_partitions_assigned(self, assigned: Any) -> None:
        self._changes += 1
        self.given = {**self.given, **{(tp.topic, tp.partition): self._changes for tp in assigned}}


def open_group_consumer(
    log: Log,
    client_id: str,
    group: str,
    instance: str | None,
    topics: Sequence[str],
    listener: RebalanceListener,
) -> Consumer:
    """A member of a consumer group that commits nothing by itself. What it polls are Message."""
    session_timeout_ms = round(log.session_timeout_s * 1000)
    consumer = _open_consumer(
        log,
        client_id,
        group_id=group,
        group_instance_id=instance,
        partition_assignment_strategy=(CopartitionedAssignor(lambda: listener.given),),
        session_timeout_ms=session_timeout_ms,
        heartbeat_interval_ms=min(_HEARTBEAT_INTERVAL_MS, session_timeout_ms // 3),
        max_poll_interval_ms=_MAX_POLL_INTERVAL_MS,
    )
    consumer._fetcher.PartitionRecords = PartitionRecords  # type: ignore[attr-defined]
    keep_answers(consumer._coordinator)  # type: ignore[attr-defined]
    consumer.subscribe(topics, listener=listener)
    return consumer


def open_reader(log: Log, client_id: str) -> Consumer:
    """A consumer outside any group, for partitions that are assigned by hand."""
    return _open_consumer(log, client_id, group_id=None)


def _open_consumer(log: Log, client_id: str, **options: Any) -> Consumer:
    consumer: Consumer = _open(
        KafkaConsumer,
        log,
        client_id,
        isolation_level="read_committed",
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        allow_auto_create_topics=False,
        fetch_max_wait_ms=250,
        # kafka-python copies an answer five times: not more than the core's third cache can hold at once
        fetch_max_bytes=6 * 1024 * 1024,
        proxy_url=LONG_READS,
        **options,
    )
    return consumer


def open_producer(log: Log, client_id: str, timeout_ms: int, transactional_id: str | None = None) -> Producer:
    """A message that was not delivered within `timeout_ms` has failed."""
    producer: Producer = _open(
        KafkaProducer,
        log,
        client_id,
        # said aloud: otherwise a conflicting option turns it off with no more than a warning
        enable_idempotence=True,
        acks="all",
        transactional_id=transactional_id,
        transaction_timeout_ms=_TRANSACTION_TIMEOUT_MS,
        # What many collectors send arrives in batches of one message, each opened by itself: lz4 does so three
        # times faster than zstd through kafka-python. What a stage writes comes in large batches and is kept long.
        compression_type="lz4" if transactional_id is None else "zstd",
        batch_size=256 * 1024,
        linger_ms=5,
        max_request_size=MAX_MESSAGE_BYTES,
        max_block_ms=timeout_ms,
        request_timeout_ms=timeout_ms - 100,
        delivery_timeout_ms=timeout_ms,
        allow_auto_create_topics=False,
    )
    # At the interpreter's exit it would wait a second for a broker that does not answer, each producer after the
    # other, and print a traceback. What is to be sent by then is what our own end has waited for.
    producer._unregister_cleanup()  # type: ignore[attr-defined]
    return producer


def open_admin(log: Log) -> Any:
    """An admin client, a context manager."""
    return _open(KafkaAdminClient, log, "idlewatt-admin")


def refusal(error: Exception, log: Log, owner: str) -> ConfigError | None:
    """What a person must mend where brokers refuse a stage for good; None where they may take it the next time.

    `owner` is the consumer group, and begins its transactional ids.
    """
    match error:
        case InvalidSessionTimeoutError():
            why = (
                f"log.session_timeout_s: the brokers at {log.bootstrap_servers} do not take {log.session_timeout_s:g}; "
                "they take 6 to 1800 unless group.min.session.timeout.ms or group.max.session.timeout.ms of theirs is another"
            )
        case GroupAuthorizationFailedError():
            why = (
                f"the brokers at {log.bootstrap_servers} do not let us into the consumer group {owner}: "
                "allow log.sasl_username Read on groups that begin with process.group"
            )
        case TransactionalIdAuthorizationFailedError():
            why = (
                f"the brokers at {log.bootstrap_servers} do not let us use transactional ids that begin with {owner}: "
                "allow log.sasl_username Describe and Write on those that begin with process.group"
            )
        case TopicAuthorizationFailedError(args=(named,)):
            return may_not_read(log, named if isinstance(named, str) else ", ".join(sorted(named)))
        case _:
            return None
    return ConfigError(why)


def answered_heartbeat(consumer: Consumer) -> float | None:
    """When the last heartbeat was sent, by time.monotonic(), if the coordinator has answered it; None if not yet.

    When it was sent and not when the answer was read: a process that was frozen reads an old one.
    """
    heartbeat = consumer._coordinator.heartbeat  # type: ignore[attr-defined]
    sent: float = heartbeat.last_send
    return sent if heartbeat.last_receive >= sent else None


def may_not_read(log: Log, topic: str) -> ConfigError:
    """What is said where brokers let nobody of this name read a topic."""
    return ConfigError(f"this user may not read topic {topic} at {log.bootstrap_servers}: grant it READ")


def close_consumer(consumer: Consumer) -> None:
    """Leave the group and close, in bounded time, whatever state the consumer is in."""
    with suppress(KafkaError, OSError, RuntimeError):
        consumer.close(timeout_ms=2_000)


def close_producer(producer: Producer) -> None:
    """Close in bounded time without waiting for what is unsent, whatever state the producer is in."""
    try:
        producer.close(timeout=0.5)
    except KafkaError:
        # close() first flushes; when that fails it leaves its thread running, which could still send
        producer._sender.force_close()  # type: ignore[attr-defined]
        with suppress(KafkaError):
            producer.close(timeout=0.5)


def _open(kind: Callable[..., Any], log: Log, client_id: str, **options: Any) -> Any:
    connections: list[Any] = []

    def connect(**configs: Any) -> Any:
        connections.append(KafkaNetClient(**configs))
        return connections[-1]

    try:
        return kind(
            **connection_options(log),
            client_id=client_id,
            bootstrap_timeout_ms=_BOOTSTRAP_TIMEOUT_MS,
            # the default of 30 s would go on long after the broker is back
            reconnect_backoff_max_ms=1_000,
            kafka_client=connect,
            **{"request_timeout_ms": _REQUEST_TIMEOUT_MS} | options,
        )
    except (KafkaConfigurationError, ValueError) as error:
        _close_all(connections)
        raise ConfigError(
            f"[log] with bootstrap_servers {log.bootstrap_servers!r} is refused by the Kafka client: {error}"
        ) from error
    except (KafkaError, OSError) as error:
        _close_all(connections)
        raise LogUnavailableError(f"log.bootstrap_servers: {_why_nobody_answers(log)}: {error}") from error


def _why_nobody_answers(log: Log) -> str:
    # what a wrong password or protocol brings kafka-python 3.0.12 tries again until its time is over, and does not tell
    listening = next((server for server in log.servers if _listens(server)), None)
    if listening is None:
        return f"no Kafka broker answers at {log.bootstrap_servers}"
    return (
        f"something listens at {listening} but does not let us in: check log.security_protocol, which is "
        f"{log.security_protocol}, log.sasl_* and log.ssl_*, unless it is only starting, or hangs"
    )


def _listens(server: str) -> bool:
    host, _, port = server.rpartition(":")
    with suppress(OSError), socket.create_connection((host.strip("[]"), int(port)), _LISTENS_TIMEOUT_S):
        return True
    return False


def _close_all(connections: Sequence[Any]) -> None:
    # A constructor that fails leaves its IO thread and sockets behind.
    for connection in connections:
        connection.close()


def connection_options(log: Log) -> dict[str, Any]:
    options: dict[str, Any] = {
        "bootstrap_servers": log.servers,
        "security_protocol": log.security_protocol,
    }
    if log.security_protocol in ("SSL", "SASL_SSL"):
        options["ssl_context"] = _ssl_context(log)
    if log.security_protocol.startswith("SASL"):
        options["sasl_mechanism"] = log.sasl_mechanism
        options["sasl_plain_username"] = log.sasl_username
        options["sasl_plain_password"] = log.sasl_password
    return options


def _ssl_context(log: Log) -> ssl.SSLContext:
    for name in ("ssl_cafile", "ssl_certfile", "ssl_keyfile"):
        path = getattr(log, name)
        if path is not None and not Path(path).is_file():
            raise ConfigError(f"log.{name}: there is no file {path}")
    try:
        context = ssl.create_default_context(cafile=log.ssl_cafile)
        if log.ssl_certfile is not None:
            keyfile = "ssl_certfile" if log.ssl_keyfile is None else "ssl_keyfile"
            context.load_cert_chain(
                log.ssl_certfile, log.ssl_keyfile, functools.partial(_refuse_pass_phrase, keyfile)
            )
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(f"log.ssl_*: the certificates cannot be used: {error}") from error
    return context


def _refuse_pass_phrase(key: str) -> str:
    # OpenSSL would ask for it on the terminal, and wait
    raise ConfigError(f"log.{key}: the client's key is encrypted: give one without a pass phrase")
