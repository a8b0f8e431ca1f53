"""Rows in memory, on their way from the sources to the log or to the spool."""

import threading
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from idlewatt.collectors.packing import Row, Unencodable, pack, topic_of
from idlewatt.stream.minute_log import MinuteLog
from idlewatt.stream.spool_frames import WaitingMessage

# Ten minutes of a node with 16 GPUs and 16 engines at two readings a second, and some to spare.
MAX_WAITING_ROWS: Final = 50_000


class RowQueue:
    """Takes rows from any thread and gives messages, oldest first.

    Messages that were taken stay in hand until they are settled. Beyond `max_rows` the oldest are
    dropped and counted; what is in hand counts and cannot be dropped.
    """

    def __init__(self, max_rows: int, minute_log: MinuteLog) -> None:
        self._max_rows = max_rows
        self._minute_log = minute_log
        self._fresh: deque[Row] = deque()
        self._packed: deque[WaitingMessage] = deque()
        self._in_hand: Sequence[WaitingMessage] = ()
        self._is_over = False
        # of the three
        self._rows = 0
        self._dropped_rows: Counter[str] = Counter()
        self._unencodable_rows = 0
        self._lock = threading.Lock()

    @property
    def waiting_rows(self) -> int:
        return self._rows

    @property
    def is_half_full(self) -> bool:
        return 2 * self._rows >= self._max_rows

    @property
    def waiting_bytes(self) -> int:
        """Of the messages; rows that are not packed yet have no size."""
        with self._lock:
            return sum(len(message.record.value) for message in (*self._in_hand, *self._packed))

    @property
    def dropped_rows(self) -> Mapping[str, int]:
        """By topic, for want of room."""
        return dict(self._dropped_rows)

    @property
    def unencodable_rows(self) -> int:
        return self._unencodable_rows

    def put(self, rows: Iterable[Row]) -> None:
        """Put rows behind all others. Never blocks for long."""
        with self._lock:
            before = len(self._fresh)
            self._fresh.extend(rows)
            self._rows += len(self._fresh) - before
            self._drop_oldest()

    def pack(self) -> None:
        """Make messages of the rows that came since the last time."""
        with self._lock:
            fresh, self._fresh = self._fresh, deque()
        packed = list(pack(fresh))
        with self._lock:
            for each in packed:
                if isinstance(each, Unencodable):
                    self._rows -= 1
                    self._unencodable_rows += 1
                    self._minute_log.error("row_unencodable", 1, row=repr(each.row), error=each.error)
                else:
                    self._packed.append(each)
            self._drop_oldest()

    def take(self, limit: int | None = None, *, is_last: bool = False) -> Sequence[WaitingMessage]:
        """Take the oldest messages into hand, `limit` at most, those that are in hand already included.

        `is_last`: from now on nobody is given any.
        """
        with self._lock:
            if self._is_over:
                return ()
            self._is_over = is_last
            self._packed.extendleft(reversed(self._in_hand))
            size = len(self._packed) if limit is None else min(len(self._packed), limit)
            self._in_hand = [self._packed.popleft() for _ in range(size)]
            return self._in_hand

    def settle(self, batch: Sequence[WaitingMessage], count: int) -> Sequence[WaitingMessage]:
        """Be done with the first `count` messages of what take() gave, return these and put the rest back.

        A batch that was taken by another thread since is no longer the caller's, and nothing of it is settled.
        """
        with self._lock:
            if batch is not self._in_hand:
                return ()
            self._in_hand = ()
            done = batch[:count]
            self._rows -= sum(message.rows for message in done)
            self._packed.extendleft(reversed(batch[count:]))
            self._drop_oldest()
            return done

    def _drop_oldest(self) -> None:
        dropped = 0
        while self._rows > self._max_rows and (self._packed or self._fresh):
            if self._packed:
                message = self._packed.popleft()
                topic, rows = message.record.topic, message.rows
            else:
                topic, rows = topic_of(self._fresh.popleft()), 1
            self._dropped_rows[topic] += rows
            self._rows -= rows
            dropped += rows
        self._minute_log.error(
            "rows_dropped", dropped, reason="the log is away for longer than memory can hold"
        )
