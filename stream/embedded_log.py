"""The log in one SQLite file, for one box: no Kafka needed, the same promises.

Every topic has one partition, 0. Offsets count through all topics, so that a stage reads its inputs in the
order in which they were written, also when it catches up.
"""

import heapq
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Final

import zstandard

from idlewatt.stream.clock import Clock, unix_ms
from idlewatt.stream.embedded_file import (
    bell_of,
    hold_stage,
    make_durable,
    open_file,
    open_readonly,
    transaction,
)
from idlewatt.stream.errors import LogUnavailableError, RewindError
from idlewatt.stream.log import Commit, Message, Poll, Record
from idlewatt.stream.topics import RETENTION_MS, USAGE

# Appends of another process do not ring our bell.
_OTHER_PROCESS_POLL_S: Final = 0.2
_READ_PAGE: Final = 1000
_NO_END: Final = 2**63 - 1


class EmbeddedAppender:
    """Writes messages, and forgets old ones by topics.RETENTION_MS. May be used from several threads."""

    RETENTION_INTERVAL_MS: Final = 60_000
    # What one clearing looks at per topic and place: it never holds the file for long.
    RETENTION_ROWS: Final = 2500
    # How far past the message that is due first a clearing goes: a clock that is years ahead takes ten minutes' worth a
    # minute, of raw rows before books that are younger than 400 days, and not all there is at once.
    RETENTION_STEP_MS: Final = 10 * 60_000

    def __init__(self, path: str | Path, clock: Clock = unix_ms) -> None:
        self._connection = open_file(path)
        self._path = path
        self._bell = bell_of(path)
        self._clock = clock
        self._next_clearing_ms = 0
        # Where in each topic the next clearing looks besides its front, all the way round: messages of a clock that was ahead
        # may be more than it looks at, and what comes after them is due before they are.
        self._further: dict[str, int] = {}
        self._lock = threading.Lock()

    def append(self, records: Sequence[Record]) -> None:
        """Write all records or none. Raises LogUnavailableError."""
        now_ms = self._clock()
        with self._lock:
            try:
                # an event of usage comes once: whoever posted it was told that no crash takes it
                make_durable(self._connection, any(record.topic == USAGE for record in records))
                with transaction(self._connection):
                    _insert(self._connection, records, now_ms)
            except sqlite3.Error as error:
                raise LogUnavailableError(f"log.path: {self._path} takes no messages: {error}") from error
            self._bell.ring()
            # also where the clock has gone back
            if not self._next_clearing_ms - self.RETENTION_INTERVAL_MS <= now_ms < self._next_clearing_ms:
                self._clear(now_ms)

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def _clear(self, now_ms: int) -> None:
        """Delete what is older than its topic's retention and behind every known stage."""
        more = False
        try:
            with transaction(self._connection):
                ends = dict(
                    self._connection.execute('SELECT topic, min("offset") FROM resume GROUP BY topic')
                )
                looked_at = {topic: self._look(topic, ends.get(topic, _NO_END)) for topic in RETENTION_MS}
                due_ms = (
                    appended_ms + RETENTION_MS[topic]
                    for topic, found in looked_at.items()
                    for _, appended_ms in chain(*found)
                )
                until_ms = min(now_ms, min(due_ms, default=now_ms) + self.RETENTION_STEP_MS)
                for topic, found in looked_at.items():
                    before_ms = until_ms - RETENTION_MS[topic]
                    front, further = ([offset for offset, ms in part if ms < before_ms] for part in found)
                    self._connection.executemany(
                        'DELETE FROM messages WHERE "offset" = ?',
                        ((offset,) for offset in chain(front, further)),
                    )
                    is_end = len(found[1]) < self.RETENTION_ROWS
                    self._further[topic] = further[0] if further else 0 if is_end else found[1][-1][0] + 1
                    more = more or self.RETENTION_ROWS in (len(front), len(further))
        except sqlite3.Error:
            # the messages are written; clearing can wait for a better minute
            more = False
        self._next_clearing_ms = now_ms if more else now_ms + self.RETENTION_INTERVAL_MS

    def _look(self, topic: str, end: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Offset and appended_ms of the first that all stages have read, and of as many further on."""
        query = """SELECT "offset", appended_ms FROM messages WHERE topic = ? AND "offset" >= ? AND "offset" < ?
            ORDER BY "offset" LIMIT ?"""
        front = self._connection.execute(query, (topic, 0, end, self.RETENTION_ROWS)).fetchall()
        behind = front[-1][0] + 1 if front else end
        from_offset = max(behind, self._further.get(topic, 0))
        further = self._connection.execute(query, (topic, from_offset, end, self.RETENTION_ROWS)).fetchall()
        return front, further


class EmbeddedStageLog:
    """One stage on the embedded log. Used from one thread.

    The file's other processes cannot open the same stage. Where their file system does not tell them, they cannot both
    count a message either: whoever commits second gets RewindError.
    """

    POLL_MESSAGES: Final = 2000
    POLL_BYTES: Final = 64 * 1024 * 1024

    def __init__(self, path: str | Path, stage: str, inputs: tuple[str, ...], clock: Clock = unix_ms) -> None:
        """Raises ConfigError, LogUnavailableError."""
        self._connection = open_file(path)
        self._hold = hold_stage(path, stage)
        self._path = path
        self._bell = bell_of(path)
        self._clock = clock
        self._stage = stage
        self._inputs = inputs
        # topic -> next offset to read; None until assigned
        self._positions: dict[str, int] | None = None
        self._commits = 0

    def poll(self, timeout_s: float) -> Poll:
        """The first poll, and the first after RewindError, assigns partition 0 and brings no messages."""
        deadline = time.monotonic() + timeout_s
        try:
            if self._positions is None:
                return self._assign()
            while True:
                rings = self._bell.rings
                poll = self._read(self._positions)
                left_s = deadline - time.monotonic()
                if poll.messages or left_s <= 0:
                    return poll
                self._bell.wait(rings, min(left_s, _OTHER_PROCESS_POLL_S))
        except sqlite3.Error as error:
            raise LogUnavailableError(f"log.path: {self._path} gives no messages: {error}") from error

    def commit(self, commit: Commit) -> None:
        """Write records, state and offsets in one SQLite transaction. Raises RewindError."""
        if set(commit.snapshots) != {0} or {partition for _, partition in commit.resume} - {0}:
            raise ValueError(
                "a commit needs the snapshot of every partition that moves on; here there is one, 0"
            )
        if self._positions is None:
            raise RewindError(f"stage {self._stage} is not assigned; poll first")
        try:
            with transaction(self._connection):
                self._write(commit)
        except sqlite3.Error as error:
            self._positions = None
            raise RewindError(f"log.path: {self._path} took no commit: {error}") from error
        except RewindError:
            self._positions = None
            raise
        self._commits += 1
        if commit.records:
            self._bell.ring()

    def unconfirmed_s(self) -> float:
        # the file has one reader at a time
        return 0.0

    def close(self) -> None:
        self._connection.close()
        if self._hold is not None:
            os.close(self._hold)
            self._hold = None

    def _assign(self) -> Poll:
        with transaction(self._connection):
            self._connection.execute("INSERT OR IGNORE INTO stages VALUES (?, 0, NULL)", (self._stage,))
            # Retention asks these rows what is still to be read.
            self._connection.executemany(
                "INSERT OR IGNORE INTO resume VALUES (?, ?, 0)",
                [(self._stage, topic) for topic in self._inputs],
            )
            self._commits, snapshot = self._connection.execute(
                "SELECT commits, snapshot FROM stages WHERE stage = ?", (self._stage,)
            ).fetchone()
            resume: dict[str, int] = dict(
                self._connection.execute('SELECT topic, "offset" FROM resume WHERE stage = ?', (self._stage,))
            )
            positions = {topic: resume[topic] for topic in self._inputs}
            behind = self._behind(positions)
        self._positions = positions
        return Poll(assigned={0: snapshot}, behind=behind)

    def _read(self, positions: Mapping[str, int]) -> Poll:
        # a read that fails midway brings nothing, and is done again
        positions = dict(positions)
        messages: list[Message] = []
        size = 0
        with transaction(self._connection, "DEFERRED"):
            cursors = [
                self._connection.execute(
                    'SELECT topic, 0, "offset", value FROM messages WHERE topic = ? AND "offset" >= ? ORDER BY "offset"',
                    (topic, offset),
                )
                for topic, offset in positions.items()
            ]
            streams = (map(_message, cursor) for cursor in cursors)
            full = False
            for message in heapq.merge(*streams, key=attrgetter("offset")):
                messages.append(message)
                size += len(message.value)
                positions[message.topic] = message.offset + 1
                if full := len(messages) >= self.POLL_MESSAGES or size >= self.POLL_BYTES:
                    break
            for cursor in cursors:
                cursor.close()
            # counting is only needed where reading stopped early
            behind = self._behind(positions) if full else {(topic, 0): 0 for topic in positions}
        self._positions = positions
        return Poll(messages=messages, behind=behind)

    def _behind(self, positions: dict[str, int]) -> dict[tuple[str, int], int]:
        query = 'SELECT count(*) FROM messages WHERE topic = ? AND "offset" >= ?'
        return {
            (topic, 0): self._connection.execute(query, (topic, offset)).fetchone()[0]
            for topic, offset in positions.items()
        }

    def _write(self, commit: Commit) -> None:
        moved = self._connection.execute(
            "UPDATE stages SET commits = commits + 1, snapshot = ? WHERE stage = ? AND commits = ?",
            (commit.snapshots[0], self._stage, self._commits),
        ).rowcount
        if not moved:
            raise RewindError(
                f"another process runs stage {self._stage} on {self._path}: stop one, or let them share by Kafka"
            )
        _insert(self._connection, commit.records, self._clock())
        self._connection.executemany(
            'UPDATE resume SET "offset" = ? WHERE stage = ? AND topic = ?',
            [(offset, self._stage, topic) for (topic, _), offset in commit.resume.items()],
        )


def read_messages(
    path: str | Path,
    topic: str,
    *,
    since_ms: int = 0,
    newest: int | None = None,
    follow: bool = False,
) -> Iterator[Message]:
    """Every message of a topic up to the newest there is now; those appended before `since_ms` are left out.

    `newest`: only the last so many. `follow`: and all that come after, without end. Raises ConfigError,
    LogUnavailableError.
    """
    connection = open_readonly(path)
    try:
        from_offset = 0
        (end,) = connection.execute('SELECT coalesce(max("offset"), -1) FROM messages').fetchone()
        if newest is not None:
            (first,) = connection.execute(
                """SELECT coalesce(min("offset"), 0) FROM (
                    SELECT "offset" FROM messages WHERE topic = ? ORDER BY "offset" DESC LIMIT ?)""",
                (topic, newest),
            ).fetchone()
            from_offset = first if newest else end + 1
        while True:
            page = connection.execute(
                """SELECT topic, 0, "offset", value FROM messages
                WHERE topic = ? AND "offset" >= ? AND "offset" <= ? AND appended_ms >= ?
                ORDER BY "offset" LIMIT ?""",
                (topic, from_offset, _NO_END if follow else end, since_ms, _READ_PAGE),
            ).fetchall()
            yield from map(_message, page)
            if page:
                from_offset = page[-1][2] + 1
            elif follow:
                time.sleep(_OTHER_PROCESS_POLL_S)
            else:
                return
    except sqlite3.Error as error:
        raise LogUnavailableError(f"log.path: {path} cannot be read: {error}") from error
    finally:
        connection.close()


def _insert(connection: sqlite3.Connection, records: Sequence[Record], now_ms: int) -> None:
    connection.executemany(
        "INSERT INTO messages (topic, appended_ms, key, value) VALUES (?, ?, ?, ?)",
        [(record.topic, now_ms, record.key, zstandard.compress(record.value)) for record in records],
    )


def _message(row: tuple[str, int, int, bytes]) -> Message:
    topic, partition, offset, value = row
    try:
        return Message(topic, partition, offset, zstandard.decompress(value))
    except zstandard.ZstdError:
        # no reader takes it for a message of ours
        return Message(topic, partition, offset, value)
