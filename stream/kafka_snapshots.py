"""Snapshots of a stage's partitions in idlewatt.state: cut into messages, written in a commit's transaction, read back.

A snapshot carries the offsets its state stands for. They, and not the group's committed offsets, say where to
read on: Kafka forgets the offsets of a group that was away for a week, and the two topics show a commit at
slightly different moments.
"""

import json
import struct
import time
import uuid
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from idlewatt.stream.errors import LogUnavailableError
from idlewatt.stream.kafka_clients import Consumer, TopicPartition, close_consumer, open_reader
from idlewatt.stream.kafka_offsets import ends_of_logs, is_read
from idlewatt.stream.kafka_reading import read_records
from idlewatt.stream.settings import Log
from idlewatt.stream.topics import STATE

CHUNK_BYTES: Final = 900_000
# How long nothing may come, however long all of it takes: longer than the broker takes to abort the transaction of a
# process that died.
_RESTORE_TIMEOUT_S: Final = 120.0
_ENDS_TIMEOUT_MS: Final = 5_000
_POLL_RECORDS: Final = 64
# magic, id of the commit, number of this chunk, how many there are
_HEADER: Final = struct.Struct(">4s16sII")
_MAGIC: Final = b"IWS1"
# what cannot be read at the start is looked at again when it is restored
_PATIENCE_S: Final = 5.0
_TOLD_LENGTH: Final = struct.Struct(">I")
# told beside the offsets by topic
_OWNER, _PARTITIONS, _TOPIC_IDS = "owner", "partitions", "topic_ids"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """State of one partition, of so many `partitions`, that has folded everything before `resume` (topic -> offset)."""

    state: bytes
    resume: Mapping[str, int]
    partitions: int
    # by topic the id that Kafka gave it: one that is deleted and made anew has another, and offsets of its own
    topic_ids: Mapping[str, str]
    # of one that was looked at at the start: when it came, by the brokers' clocks
    written_ms: int = 0

    def place(self, topic: str, topic_id: str | None) -> int | None:
        """Its offset, where that is one of the topic that has this id; it is where nobody knows an id."""
        is_another = topic_id not in (None, self.topic_ids.get(topic, topic_id))
        return None if is_another else self.resume.get(topic)


def encode_chunks(owner: str, partition: int, snapshot: Snapshot) -> Iterator[tuple[bytes, bytes]]:
    """Key and value of each message that the snapshot becomes. `owner` is the stage's consumer group."""
    own = {_OWNER: owner, _PARTITIONS: snapshot.partitions, _TOPIC_IDS: dict(snapshot.topic_ids)}
    told = json.dumps({**snapshot.resume, **own}).encode()
    content = _TOLD_LENGTH.pack(len(told)) + told + snapshot.state
    commit_id = uuid.uuid4().bytes
    count = -(-len(content) // CHUNK_BYTES)
    for number in range(count):
        header = _HEADER.pack(_MAGIC, commit_id, number, count)
        chunk = content[number * CHUNK_BYTES : (number + 1) * CHUNK_BYTES]
        yield f"{owner}/{partition}/{number}".encode(), header + chunk


def _opened(content: bytes) -> tuple[str, Snapshot]:
    """The owner, and a snapshot with its state or the beginning of it."""
    (length,) = _TOLD_LENGTH.unpack_from(content)
    start = _TOLD_LENGTH.size + length
    told = json.loads(content[_TOLD_LENGTH.size : start])
    owner, partitions, topic_ids = told.pop(_OWNER), told.pop(_PARTITIONS), told.pop(_TOPIC_IDS, {})
    return owner, Snapshot(content[start:], told, partitions, topic_ids)


def another_number(topic: str, found: int, owner: str, made_with: int) -> str:
    """What is said when a topic has not as many partitions as the state in the log was made with."""
    return (
        f"topic {topic} has {found} partitions, and the state of {owner} in {STATE} was made with {made_with}: keys "
        "went to others, and what was there would count twice; go on as docs/architecture.md says under "
        '"The number of partitions"'
    )


def snapshots_of(
    log: Log, owners: Collection[str], topic_ids: Mapping[str, str | None]
) -> tuple[dict[str, dict[int, Snapshot]], LogUnavailableError | None]:
    """Owner -> partition -> its newest snapshot, the state left out; and why some may be lacking, as nobody leads theirs.

    Every snapshot of every owner is there, unless one of each of `owners` was found that is of topics with these ids: then
    no more are looked for. Raises ConfigError.
    """
    found: dict[bytes, tuple[str, int, Snapshot]] = {}
    seen: set[str] = set()
    unread = None
    try:
        for record in read_records(log, STATE, patience_s=_PATIENCE_S):
            key, value = record.key or b"", record.value or b""
            if not value and key in found:
                # somebody has deleted it
                seen.discard(found.pop(key)[0])
            header = value[: _HEADER.size]
            # of pieces the first
            if header[:4] != _MAGIC or _HEADER.unpack(header)[2]:
                continue
            owner, snapshot = _opened(value[_HEADER.size :])
            found[key] = owner, record.partition, replace(snapshot, state=b"", written_ms=record.timestamp)
            if all(snapshot.place(topic, topic_ids.get(topic)) is not None for topic in snapshot.resume):
                seen.add(owner)
            if seen >= set(owners):
                break
    except LogUnavailableError as error:
        unread = error
    by_owner: dict[str, dict[int, Snapshot]] = defaultdict(dict)
    for owner, partition, snapshot in found.values():
        by_owner[owner][partition] = snapshot
    return dict(by_owner), unread


@dataclass(slots=True)
class _Assembly:
    """The chunks of the newest commit seen so far in one partition."""

    key_prefix: bytes
    commit_id: bytes = b""
    count: int = 0
    chunks: dict[int, bytes] = field(default_factory=dict)

    def add(self, key: bytes, value: bytes) -> None:
        if not key.startswith(self.key_prefix):
            return
        magic, commit_id, number, count = _HEADER.unpack_from(value)
        if magic != _MAGIC:
            raise LogUnavailableError(f"topic {STATE} holds a snapshot this Idlewatt cannot read: upgrade it")
        if commit_id != self.commit_id:
            # compaction leaves odd chunks of older, longer snapshots; a newer commit replaces them all
            self.commit_id, self.count, self.chunks = commit_id, count, {}
        self.chunks[number] = value[_HEADER.size :]

    def snapshot(self) -> Snapshot | None:
        if not self.commit_id:
            return None
        if len(self.chunks) != self.count:
            raise LogUnavailableError(
                f"topic {STATE}: of the newest snapshot {self.key_prefix.decode()}* only {len(self.chunks)} of "
                f"{self.count} pieces are there; was the topic's cleanup.policy ever not compact?"
            )
        content = b"".join(self.chunks[number] for number in range(self.count))
        return _opened(content)[1]


class SnapshotRestore:
    """Reads the newest committed snapshots of some partitions, a step at a time.

    Begin it only when no earlier owner can start another commit, which is so once the group has given us the
    partitions. A commit that is still under way stands below the end of the partition already, because snapshots
    are written before offsets; reading up to there waits for it.
    """

    def __init__(self, log: Log, client_id: str, owner: str, partitions: frozenset[int]) -> None:
        self._consumer: Consumer = open_reader(log, f"{client_id}-restore")
        self._assemblies = {n: _Assembly(f"{owner}/{n}/".encode()) for n in partitions}
        self._deadline = time.monotonic() + _RESTORE_TIMEOUT_S
        wanted = [TopicPartition(STATE, n) for n in sorted(partitions)]
        self._consumer.assign(wanted)
        self._consumer.seek_to_beginning(*wanted)
        # what must have been read of each; not known while it has no leader
        self._ends: dict[int, int] = {}

    @property
    def done(self) -> bool:
        return not self._assemblies

    def step(self, timeout_s: float) -> dict[int, Snapshot | None]:
        """Read on, at most `timeout_s`; returns the partitions that are complete now."""
        if lacking := [TopicPartition(STATE, n) for n in sorted(self._assemblies) if n not in self._ends]:
            # What a fetch tells is too low for a moment where another broker has just become the leader: what was
            # committed last would be taken for not there, and booked again.
            found = ends_of_logs(self._consumer, lacking, _ENDS_TIMEOUT_MS)
            self._ends |= {n: end for (_, n), end in found.items()}
        for (_, n), records in self._consumer.poll(int(timeout_s * 1000), _POLL_RECORDS).items():
            # of a partition that is complete, whatever others commit there still comes
            if n not in self._assemblies:
                continue
            self._deadline = time.monotonic() + _RESTORE_TIMEOUT_S
            for record in records:
                if record.key is not None and record.value is not None:
                    self._assemblies[n].add(record.key, record.value)
        complete = {n: assembly.snapshot() for n, assembly in self._assemblies.items() if self._is_read(n)}
        for n in complete:
            del self._assemblies[n]
        if not self.done and time.monotonic() > self._deadline:
            raise LogUnavailableError(
                f"topic {STATE}: partitions {sorted(self._assemblies)} could not be read to their end, and nothing has come "
                f"for {_RESTORE_TIMEOUT_S:.0f} s; is a transaction left open there (kafka-transactions.sh find-hanging)?"
            )
        return complete

    def close(self) -> None:
        close_consumer(self._consumer)

    def _is_read(self, partition: int) -> bool:
        return is_read(self._consumer, TopicPartition(STATE, partition), self._ends.get(partition))
