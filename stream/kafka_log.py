"""A stage's log in Apache Kafka, for many boxes: partitions are the unit of scale, transactions the guarantee."""

import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Final

import structlog
from kafka.errors import RetriableError

from idlewatt.stream.errors import ConfigError, LogUnavailableError, RewindError
from idlewatt.stream.kafka_clients import (
    STABLE,
    Consumer,
    GroupMetadata,
    RebalanceListener,
    TopicPartition,
    answered_heartbeat,
    close_consumer,
    connection_options,
    open_group_consumer,
    refusal,
)
from idlewatt.stream.kafka_continuity import Continuity, tell_expired
from idlewatt.stream.kafka_offsets import ask_for_topics, begins_of_logs, ends_of_logs, topic_ids
from idlewatt.stream.kafka_progress import Progress
from idlewatt.stream.kafka_snapshots import Snapshot, SnapshotRestore, another_number, encode_chunks
from idlewatt.stream.kafka_transactions import Outgoing, TransactionalProducer
from idlewatt.stream.log import Commit, Message, Poll
from idlewatt.stream.settings import Log
from idlewatt.stream.topics import STATE

_log = structlog.get_logger()


# How a partition came to be ours: as which member, and by which change of each input. Another one is another stay,
# with what others did in between.
Grant = tuple[str, tuple[int, ...]]
_NO_LONGER: Final[Grant] = ("", ())


class KafkaStageLog:
    """One member of a stage's consumer group. Used from one thread. Connects at the first poll.

    Partition n is ours when the group gives us partition n of every input. A rebalance takes only what moves to
    another member; what comes to us comes with its snapshot, and what was ours under another membership is restored
    too: what others did in between is never guessed.
    `instance` makes the member a static one, which gets its partitions back when it restarts in time; it must be
    unique in the group, and all members have one or none has.
    """

    POLL_MESSAGES: Final = 2000
    _POLL_STEP_S: Final = 1.0
    _JOIN_STEP_S: Final = 0.05
    _RESTORE_STEP_S: Final = 0.25
    _OFFSETS_TIMEOUT_MS: Final = 5_000
    # brokers know by then who leads
    _STALE_S: Final = 30.0

    def __init__(
        self, log: Log, group: str, stage: str, inputs: tuple[str, ...], instance: str | None = None
    ) -> None:
        connection_options(log)  # a wrong setting is an error now, not at the first poll
        self._log = log
        self._inputs = inputs
        self._owner = f"{group}-{stage}"
        self._instance = instance
        self._client_id = f"{self._owner}-{instance or uuid.uuid4().hex[:12]}"
        self._producer = TransactionalProducer(log, self._owner, self._client_id)
        self._consumer: Consumer | None = None
        self._listener = RebalanceListener()
        # As the group knows us; another name means that it had given us up, and our partitions to others.
        self._member = ""
        self._owned: Mapping[int, Grant] = {}
        # of the owned: what poll() has handed out; the others are being restored
        self._handed: Mapping[int, Grant] = {}
        # what the caller may believe to have until it polls again
        self._told: Mapping[int, Grant] = {}
        self._restore: SnapshotRestore | None = None
        self._restoring: Mapping[int, Grant] = {}
        # since when the snapshots of partitions that are being restored are known to be old ones, without an interruption
        self._stale_since: dict[tuple[int, Grant], float] = {}
        # handed out, and poll() has still to say that it is gone
        self._revoked: set[int] = set()
        # where the last commit stands
        self._resume: dict[tuple[str, int], int] = {}
        # Of each input at the start, 0 while that is not known. Keys go to partitions by their number: what is read of
        # a topic with another number is of entities whose state is elsewhere.
        self._partitions = 0
        # of each input, as long as it is the topic that we read
        self._topic_ids: Mapping[str, str] = {}
        self._has_told_added = False
        self._progress = Progress(inputs)
        self._continuity = Continuity()
        self._confirmed_at = float("-inf")
        # whether the brokers have ever taken us: what they refuse later may come back without us
        self._was_taken = False

    def poll(self, timeout_s: float) -> Poll:
        """Raises LogUnavailableError while Kafka is away, and heals by itself.

        ConfigError: the brokers refuse for good what they are asked for at the start.
        """
        deadline = time.monotonic() + timeout_s
        self._told = {**dict.fromkeys(self._revoked, _NO_LONGER), **self._handed}
        try:
            while True:
                poll = self._poll_once(deadline)
                self._was_taken = self._was_taken or bool(self._member)
                if poll.messages or poll.assigned or poll.revoked or time.monotonic() >= deadline:
                    return poll
        except LogUnavailableError:
            self._interrupt_restore()
            raise
        except ConfigError as error:
            self._interrupt_restore()
            if self._was_taken:
                raise LogUnavailableError(str(error)) from error
            raise
        except Exception as error:  # kafka-python documents no complete list of what it raises
            self._interrupt_restore()
            if not isinstance(error, RetriableError):
                self._leave_group()
            refused = refusal(error, self._log, self._owner)
            if refused is not None and not self._was_taken:
                raise refused from error
            silent = (
                f"log.bootstrap_servers: Kafka at {self._log.bootstrap_servers} gives no messages: {error!r}"
            )
            raise LogUnavailableError(str(refused or silent)) from error

    def commit(self, commit: Commit) -> None:
        """One Kafka transaction. Every partition that moves on needs its snapshot. Raises RewindError."""
        partitions = set(commit.snapshots)
        if not partitions or {n for _, n in commit.resume} - partitions:
            raise ValueError("a commit needs the snapshot of every partition that moves on")
        if not partitions <= self._handed.keys():
            self._rewind()
            raise RewindError(f"the group {self._owner} has given partitions to others")
        assert self._consumer is not None
        if self._are_made_anew(self._consumer):
            self._rewind()
            raise RewindError(
                f"a topic of {self._owner} was made anew, and is read from its first message on"
            )
        resume = {
            (topic, n): commit.resume.get((topic, n), self._resume[(topic, n)])
            for n in partitions
            for topic in self._inputs
        }
        messages = [Outgoing(record.topic, record.key, record.value) for record in commit.records]
        for n, state in commit.snapshots.items():
            places = {topic: resume[(topic, n)] for topic in self._inputs}
            snapshot = Snapshot(state, places, self._partitions, self._topic_ids)
            messages += [Outgoing(STATE, *chunk, n) for chunk in encode_chunks(self._owner, n, snapshot)]
        try:
            self._producer.commit(messages, resume, self._membership)
        except RewindError:
            self._rewind()
            raise
        self._resume |= resume

    def unconfirmed_s(self) -> float:
        """Seconds since the group's coordinator last knew us: after log.session_timeout_s it gives us up.

        Polls bring nothing, rather than an error, to a process that hung for so long and has not heard of it yet.
        Infinite while a rebalance has taken something that poll() has still to tell of.
        """
        consumer = self._consumer
        if consumer is None:
            return float("inf")
        self._look_for_heartbeat()
        ours = self._grants(consumer)[1]
        if any(ours.get(n) != grant for n, grant in self._told.items()):
            return float("inf")
        return time.monotonic() - self._confirmed_at

    def close(self) -> None:
        self._leave_group()
        self._producer.close()

    def _membership(self) -> GroupMetadata:
        """As whom a commit is sent, for the coordinator to refuse it if we are no longer a member.

        It may be of a rebalance that is not over: no member is given what another one claims, and we claim what is
        ours until a poll has taken it away. Under another name nothing is ours. Raises RewindError.
        """
        assert self._consumer is not None
        found = self._consumer.group_metadata()
        if found.generation_id < 0 or found.member_id != self._member:
            raise RewindError(f"the group {self._owner} has given this member up")
        return found

    def _poll_once(self, deadline: float) -> Poll:
        consumer = self._consumer or self._join_group()
        self._partitions = self._partitions or len(consumer.partitions_for_topic(self._inputs[0]))
        # settles a transaction of ours whose outcome is not known
        self._producer.prepare()
        self._progress.ask(consumer, self._handed)
        self._continuity.look(consumer)
        restored = self._restore_some(consumer, deadline)
        self._look_for_heartbeat()
        records = consumer.poll(int(self._patience_s(consumer, deadline) * 1000), self.POLL_MESSAGES)
        # From here on nothing may raise, or the messages were lost.
        self._look_what_is_ours(consumer)
        assigned = {}
        for n, state in restored.items():
            if self._owned.get(n) == self._restoring[n]:
                assigned[n] = state
                self._handed = {**self._handed, n: self._owned[n]}
        messages = self._messages(consumer, records)
        assigned = {n: state for n, state in assigned.items() if n in self._handed}
        revoked, self._revoked = frozenset(self._revoked), set()
        behind = self._progress.behind(consumer, self._handed)
        return Poll(messages=messages, assigned=assigned, revoked=revoked, behind=behind)

    def _patience_s(self, consumer: Consumer, deadline: float) -> float:
        """How long to wait for messages."""
        # who joins waits for the others, and applies what it is given, whatever time a restore has taken
        joins = consumer.group_metadata().state != STABLE
        if self._restore is not None and not joins:
            return 0.0
        left_s = max(deadline - time.monotonic(), self._JOIN_STEP_S if joins else 0.0)
        return min(left_s, self._POLL_STEP_S)

    def _join_group(self) -> Consumer:
        self._listener = RebalanceListener()
        self._consumer = open_group_consumer(
            self._log, self._client_id, self._owner, self._instance, self._inputs, self._listener
        )
        return self._consumer

    def _look_for_heartbeat(self) -> None:
        if (consumer := self._consumer) is not None and (sent := answered_heartbeat(consumer)) is not None:
            self._confirmed_at = sent

    def _leave_group(self) -> None:
        self._revoked |= self._handed.keys()
        self._rewind()
        self._owned = {}
        self._member = ""
        consumer, self._consumer = self._consumer, None
        self._confirmed_at = float("-inf")
        if consumer is not None:
            close_consumer(consumer)

    def _look_what_is_ours(self, consumer: Consumer) -> None:
        """Apply a rebalance that the last consumer.poll() went through, if it did."""
        self._member, self._owned = self._grants(consumer)
        self._look_for_added()
        gone = {n for n, grant in self._handed.items() if self._owned.get(n) != grant}
        self._revoked |= gone
        self._handed = {n: grant for n, grant in self._handed.items() if n not in gone}

    def _are_made_anew(self, consumer: Consumer) -> bool:
        """Whether an input is another topic, by now, than the one that was read: its messages have offsets of their own."""
        known, self._topic_ids = self._topic_ids, {**self._topic_ids, **topic_ids(consumer, self._inputs)}
        return any(self._topic_ids[topic] != topic_id for topic, topic_id in known.items())

    def _look_for_added(self) -> None:
        added = sorted({n for _, n in self._listener.given if n >= self._partitions})
        if self._partitions and added and not self._has_told_added:
            self._has_told_added = True
            _log.error(
                "partitions_added",
                topics=self._inputs,
                partitions=self._partitions,
                unread=added,
                mend="they stay unread, and pools that moved to them dark: see docs/architecture.md, "
                "The number of partitions",
            )

    def _grants(self, consumer: Consumer) -> tuple[str, dict[int, Grant]]:
        """As whom the group knows us now, and what it has given us."""
        member = consumer.group_metadata().member_id
        given = self._listener.given
        return member, {
            n: (member, tuple(given[topic, n] for topic in self._inputs))
            for n in {n for _, n in given if n < self._partitions}
            if member and all((topic, n) in given for topic in self._inputs)
        }

    def _rewind(self) -> None:
        """Hand everything that is ours out anew, from its last commit."""
        self._stop_restore()
        self._handed = {}

    def _interrupt_restore(self) -> None:
        self._stop_restore()
        self._stale_since = {}

    def _stop_restore(self) -> None:
        if self._restore is not None:
            self._restore.close()
            self._restore = None

    def _restore_some(self, consumer: Consumer, deadline: float) -> dict[int, bytes | None]:
        """What is ours and not handed out, as far as it could be read and can be read on from."""
        if self._restore is None:
            self._restoring = {n: grant for n, grant in self._owned.items() if n not in self._handed}
            if not self._restoring:
                return {}
            partitions = frozenset(self._restoring)
            self._restore = SnapshotRestore(self._log, self._client_id, self._owner, partitions)
        left_s = max(deadline - time.monotonic(), 0.0)
        found = self._restore.step(min(left_s, self._RESTORE_STEP_S))
        for snapshot in found.values():
            # changed after the start had looked
            if snapshot is not None and snapshot.partitions != self._partitions:
                fault = another_number(self._inputs[0], self._partitions, self._owner, snapshot.partitions)
                raise LogUnavailableError(fault)
        if found:
            ask_for_topics(consumer, self._OFFSETS_TIMEOUT_MS)
            if self._are_made_anew(consumer):
                self._revoked |= self._handed.keys()
                self._rewind()
                return {}
        # one that went away meanwhile may have been moved on by others
        found = {
            n: snapshot
            for n, snapshot in found.items()
            if self._owned.get(n) == self._restoring[n] and not self._is_stale(consumer, n, snapshot)
        }
        found = {n: snapshot for n, snapshot in found.items() if self._seek(consumer, n, snapshot)}
        if self._restore.done:
            self._stop_restore()
        return {n: snapshot.state if snapshot else None for n, snapshot in found.items()}

    def _is_stale(self, consumer: Consumer, partition: int, snapshot: Snapshot | None) -> bool:
        """Whether the group knows of a commit behind the snapshot, which is read once more then.

        A broker that was cut off from the others, or frozen, tells its old end until it knows that another one leads.
        The group has just been told its members by a broker that does lead.
        """
        stay = (partition, self._owned[partition])
        known = (
            (snapshot.place(topic, self._topic_ids.get(topic)) if snapshot is not None else None) or 0
            for topic in self._inputs
        )
        committed = (
            consumer.committed(TopicPartition(topic, partition), timeout_ms=self._OFFSETS_TIMEOUT_MS) or 0
            for topic in self._inputs
        )
        if all(offset <= place for offset, place in zip(committed, known, strict=True)):
            self._stale_since.pop(stay, None)
            return False
        now = time.monotonic()
        if now - self._stale_since.setdefault(stay, now) < self._STALE_S:
            return True
        del self._stale_since[stay]
        _log.error(
            "snapshot_older_than_offsets",
            partition=partition,
            mend="the group's offsets say where to go on, and counters begin anew, as where the state topic was made anew"
            if snapshot is None
            else "what was booked since is booked again, if nobody has set the group's offsets",
        )
        return False

    def _seek(self, consumer: Consumer, partition: int, snapshot: Snapshot | None) -> bool:
        """Read on from where the snapshot stands. Without one: from the group's offsets, or from the beginning.

        False if an input cannot be read now, as it has no leader; then it is to be restored once more.
        """
        inputs = [TopicPartition(topic, partition) for topic in self._inputs]
        beginnings = begins_of_logs(consumer, inputs, self._OFFSETS_TIMEOUT_MS)
        ends = ends_of_logs(consumer, inputs, self._OFFSETS_TIMEOUT_MS)
        if not set(inputs) <= beginnings.keys() & ends.keys():
            return False
        for tp in inputs:
            if snapshot is None:
                offset = consumer.committed(tp, timeout_ms=self._OFFSETS_TIMEOUT_MS)
            elif (offset := snapshot.place(tp.topic, self._topic_ids.get(tp.topic))) is None:
                _log.warning(
                    "topic_made_anew",
                    topic=tp.topic,
                    partition=partition,
                    mend="it is read from its first message on; what nobody had read of the one before is in no book",
                )
            beginning, end = beginnings[tp], ends[tp]
            if offset is not None:
                tell_expired(tp.topic, partition, beginning - offset)
            if offset is not None and offset > end:
                # kafka-python would begin anew with the oldest message, and all that is in the state count twice
                _log.error(
                    "messages_lost_by_kafka",
                    topic=tp.topic,
                    partition=partition,
                    messages=offset - end,
                    mend="have log.replication_factor = 3 brokers that do not lose power together",
                )
            self._resume[(tp.topic, partition)] = at = min(max(offset or 0, beginning), end)
            consumer.seek(tp, at)
            self._continuity.begin((tp.topic, partition), at)
        self._progress.begin(partition)
        return True

    def _messages(self, consumer: Consumer, polled: Mapping[tuple[str, int], Sequence[Any]]) -> list[Message]:
        # What is still being restored is read again from its snapshot. It is not paused meanwhile: a partition
        # that kafka-python 3.0.12 pauses in the middle of a fetched batch may never come back.
        found = {(topic, n): polled.get((topic, n), ()) for n in self._handed for topic in self._inputs}
        back = {
            tp[1] for tp, messages in found.items() if not self._continuity.goes_on(consumer, tp, messages)
        }
        # from the snapshot, which tells how much the log has lost
        self._revoked |= back
        self._handed = {n: grant for n, grant in self._handed.items() if n not in back}
        return [message for tp, messages in found.items() if tp[1] not in back for message in messages]
