"""Polls a stage's log the way the processor does, and keeps what it brought."""

import time
from collections import Counter
from collections.abc import Callable

from idlewatt.stream.errors import RewindError
from idlewatt.stream.log import Commit, Message, Poll, Record, StageLog


class StageReader:
    """One stage, or one member of it. Messages of a partition are dropped when it is handed out anew."""

    def __init__(self, log: StageLog) -> None:
        self.log = log
        self.messages: list[Message] = []
        # partition -> snapshot with which it was handed out, for all that are ours
        self.snapshots: dict[int, bytes | None] = {}
        self.behind: dict[tuple[str, int], int] = {}

    def poll(self, timeout_s: float = 0.2) -> Poll:
        poll = self.log.poll(timeout_s)
        for partition in poll.revoked | set(poll.assigned):
            self.snapshots.pop(partition, None)
            self.messages = [m for m in self.messages if m.partition != partition]
        self.snapshots.update(poll.assigned)
        self.messages += poll.messages
        self.behind = dict(poll.behind)
        assert {m.partition for m in poll.messages} <= set(self.snapshots), "a message before its snapshot"
        return poll

    def until(self, condition: Callable[[], bool], timeout_s: float = 40.0) -> None:
        """Poll until the condition holds."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, self.state()
            self.poll()

    def state(self) -> str:
        """What to say when a test waited in vain."""
        came = Counter((m.topic, m.partition) for m in self.messages)
        return f"holds {sorted(self.snapshots)}, behind {self.behind}, messages that came: {dict(came)}"

    def until_values(self, values: set[bytes], timeout_s: float = 40.0) -> None:
        """Poll until exactly these messages have come, each once."""
        self.until(lambda: {m.value for m in self.messages} >= values, timeout_s)
        assert sorted(m.value for m in self.messages) == sorted(values)

    def until_assigned(self, partitions: int) -> None:
        self.until(lambda: len(self.snapshots) == partitions)

    def until_assigned_and_caught_up(self) -> None:
        self.until(lambda: bool(self.snapshots) and bool(self.behind) and not any(self.behind.values()))

    @property
    def resume(self) -> dict[tuple[str, int], int]:
        """Behind everything that was read."""
        return {(m.topic, m.partition): m.offset + 1 for m in self.messages}

    def commit(self, state: bytes, records: tuple[Record, ...] = ()) -> None:
        """Commit everything that was read, with `state` as the snapshot of every partition; RewindError drops all."""
        try:
            self.log.commit(Commit(records, dict.fromkeys(self.snapshots, state), self.resume))
        except RewindError:
            self.snapshots.clear()
            self.messages.clear()
            raise
