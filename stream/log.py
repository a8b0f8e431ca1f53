"""The log, behind one small protocol with two homes: Apache Kafka and an embedded SQLite file."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol


@dataclass(frozen=True, slots=True)
class Record:
    """A message to be written."""

    topic: str
    key: bytes
    value: bytes


class Message(NamedTuple):
    """A message that was read; its value is opened when it is asked for, to be used while the core's cache has it."""

    topic: str
    partition: int
    offset: int
    packed: bytes
    # what makes the value of it, without ever failing; None: that is the value
    opened_by: Callable[[bytes], bytes] | None = None

    @property
    def value(self) -> bytes:
        return self.packed if self.opened_by is None else self.opened_by(self.packed)


class Values:
    """Of messages; each is opened whenever it is asked for. To go through them ends once `most_bytes` were opened."""

    def __init__(self, messages: Sequence[Message], most_bytes: int) -> None:
        self._messages = messages
        self._most_bytes = most_bytes
        # messages that were gone through, and the size of their values
        self.opened = 0
        self.opened_bytes = 0

    def __iter__(self) -> Iterator[bytes]:
        for message in self._messages:
            if self.opened_bytes >= self._most_bytes:
                return
            value = message.value
            self.opened += 1
            self.opened_bytes += len(value)
            yield value

    def __getitem__(self, place: int) -> bytes:
        return self._messages[place].value


@dataclass(frozen=True, slots=True)
class Poll:
    """What one poll of a stage's inputs brought."""

    messages: Sequence[Message] = ()
    # partition -> the snapshot of its last commit, None if it never had one. Comes before its messages.
    assigned: Mapping[int, bytes | None] = field(default_factory=dict)
    revoked: frozenset[int] = frozenset()
    # (topic, partition) -> messages still to be read after this poll; 0 means caught up
    behind: Mapping[tuple[str, int], int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Commit:
    """What becomes true at once, or not at all."""

    records: Sequence[Record]
    # partition -> the state that has folded everything before `resume`; each partition in `resume` needs one,
    # and an input left out of `resume` stays where the last commit put it
    snapshots: Mapping[int, bytes]
    # (topic, partition) -> offset to read from after a restart
    resume: Mapping[tuple[str, int], int]


class Appender(Protocol):
    """Writes messages of collectors."""

    def append(self, records: Sequence[Record]) -> None:
        """Return when the log holds the records; raise LogUnavailableError when it does not take them.

        RefusedMessageError: it will never take one of them; the others may or may not be there.
        """

    def close(self) -> None: ...


class StageLog(Protocol):
    """One stage's inputs, and the transaction in which it moves on. Used from one thread."""

    def poll(self, timeout_s: float) -> Poll:
        """Wait for messages, at most `timeout_s`. Raises LogUnavailableError while the log is away.

        ConfigError: the log refuses at the start what no waiting mends.
        """

    def commit(self, commit: Commit) -> None:
        """Commit as one transaction. Raises RewindError if that did not happen or nobody knows.

        ValueError: no snapshot, or a partition that moves on without one.
        """

    def unconfirmed_s(self) -> float:
        """Seconds since it was last sure that what poll() gave is still ours. May be asked from any thread."""

    def close(self) -> None:
        """Give the partitions back without committing anything."""
