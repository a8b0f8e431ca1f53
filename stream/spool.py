"""Messages that wait for the log, on disk: bounded, oldest out first, safe from SIGKILL at any instruction.

A folder of small segment files. Messages are written behind the last one and segments removed from the front:
removing needs no room, so that a full disk can always be answered by dropping the oldest. There is no cursor: a
segment goes when its last message was acknowledged, and a restart sends again what it still holds.
"""

import errno
import fcntl
import os
import re
import threading
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Final

from idlewatt.stream.errors import ConfigError
from idlewatt.stream.spool_frames import WaitingMessage, to_frame
from idlewatt.stream.spool_segment import Segment

# What is dropped, held in memory, or sent again after a crash at a time: a minute or so of a node with 8 GPUs. What was
# appended as a whole may be more.
_SEGMENT_BYTES: Final = 256 * 1024
# of a small spool
_LEAST_SEGMENTS: Final = 16
SEGMENT_NAME: Final = re.compile(r"\d{12}\.spool")
LOCK_NAME: Final = "spool.lock"
# the last one is a limit on the size of a file
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# what no setting mends
_BROKEN: Final = frozenset({errno.EROFS, errno.EIO, errno.ENOSPC, errno.EDQUOT})
# what will be no better the next time
_LOST: Final = frozenset({errno.ENOENT, errno.EIO})


class SpoolDiskError(ConfigError):
    """The disk of a spool is broken, full or read-only: a collector can do without it for as long as the log is there."""


class Spool:
    """The messages of one collector that wait for the log. May be used from several threads.

    `waiting_bytes` is the size of its files, at most `max_bytes`; `waiting_rows` are the rows not acknowledged. `damaged`
    counts records that were skipped, `failures` what the disk refused, a full one included; `fault` says what was last
    wrong.

    A message that append() has taken is in a file, where SIGKILL cannot touch it. append() also syncs the file
    before it returns, for what takes the log away, such as a loss of power, may take this node next.
    """

    def __init__(self, path: str | Path, max_bytes: int) -> None:
        """Take the folder for this process, with what a predecessor left in it. Raises ConfigError (SpoolDiskError)."""
        self.waiting_bytes = 0
        self.waiting_rows = 0
        self.damaged = 0
        self.failures = 0
        self.fault = ""
        self._folder = Path(path)
        self.max_bytes = max_bytes
        self._segment_bytes = min(_SEGMENT_BYTES, max_bytes // _LEAST_SEGMENTS)
        self._dropped_rows: Counter[str] = Counter()
        self._segments: deque[Segment] = deque()
        self._next_number = 1
        # of the first segment: how far it was read, and what of that is not acknowledged
        self._read_bytes = 0
        self._ahead: deque[WaitingMessage] = deque()
        # how many of these oldest() gave last
        self._lent = 0
        self._mutex = threading.Lock()
        self._lock_fd: int | None = _hold(self._folder)
        try:
            self._take_over()
        except OSError as error:
            os.close(self._lock_fd)
            raise refused(self._folder, error) from error

    @property
    def dropped_rows(self) -> Mapping[str, int]:
        """Rows by topic that were dropped for want of room, or could not be read any more."""
        return dict(self._dropped_rows)

    def append(self, messages: Sequence[WaitingMessage], *, drop_if_disk_full: bool = True) -> int:
        """Put messages behind all others and return how many of them were taken; the rest stays the caller's.

        Where they exceed `max_bytes` or the disk is full, the oldest go, or of a full disk with `drop_if_disk_full`
        false, the rest is not taken. Nor is it if the disk refuses all the same; then `fault` says why.
        """
        taken = 0
        with self._mutex:
            if self._lock_fd is None:
                return 0
            try:
                for message in messages:
                    self._append(message, drop_if_disk_full)
                    taken += 1
            except OSError as error:
                self._failed(error)
            if self._segments:
                self._sync(self._segments[-1])
            return taken

    def append_all(self, messages: Sequence[WaitingMessage]) -> bool:
        """Put all messages behind all others, or none, and drop nothing for them; False if there is no room.

        Also if the disk does not say that it holds them: only then they may be sent even so.
        """
        # in one piece, of which nothing stays where the disk has no room for the whole
        frames = b"".join(map(to_frame, messages))
        with self._mutex:
            if self._lock_fd is None:
                return False
            if self.waiting_bytes + len(frames) > self.max_bytes:
                return False
            failures = self.failures
            try:
                self._write(frames, messages, drop_if_disk_full=False)
                self._sync(self._segments[-1])
            except OSError as error:
                self._failed(error)
            return self.failures == failures

    def oldest(self, limit: int) -> list[WaitingMessage]:
        """Some of the oldest messages, `limit` at most, in their order; none if none waits or they cannot be read now.

        They wait on, and are given again, until acknowledge().
        """
        with self._mutex:
            if self._lock_fd is None:
                return []
            try:
                while not self._ahead and self._segments:
                    self._read_on()
            except OSError as error:
                self._failed(error)
            self._lent = min(limit, len(self._ahead))
            return list(islice(self._ahead, self._lent))

    def acknowledge(self) -> None:
        """Forget the messages that oldest() gave last."""
        with self._mutex:
            if self._lock_fd is None:
                # another process may have taken over
                return
            for _ in range(self._lent):
                message = self._ahead.popleft()
                self._segments[0].rows[message.record.topic] -= message.rows
                self.waiting_rows -= message.rows
            self._lent = 0
            if self._segments and not self._ahead and self._read_bytes == self._segments[0].bytes:
                self._remove_first()

    def close(self) -> None:
        """Give the folder free; what waits stays in it."""
        with self._mutex:
            if self._segments:
                self._segments[-1].end()
            if self._lock_fd is not None:
                os.close(self._lock_fd)
                self._lock_fd = None

    def _take_over(self) -> None:
        for path in sorted(self._folder.iterdir()):
            if not SEGMENT_NAME.fullmatch(path.name):
                continue
            self._next_number = int(path.stem) + 1
            segment = Segment(path)
            try:
                segment.count()
            except PermissionError as error:
                # root has copied it here, say: it is left aside until a start at which this user may read it
                self._failed(error)
                continue
            except OSError as error:
                self._fail_lost(error)
            self._segments.append(segment)
            self.waiting_bytes += segment.bytes
            self.waiting_rows += segment.rows.total()
        while self.waiting_bytes > self.max_bytes:
            self._remove_first()

    def _append(self, message: WaitingMessage, drop_if_disk_full: bool) -> None:
        frame = to_frame(message)
        if len(frame) > self.max_bytes:
            self._dropped_rows[message.record.topic] += message.rows
            return
        while self.waiting_bytes + len(frame) > self.max_bytes:
            self._remove_first()
        self._write(frame, [message], drop_if_disk_full)

    def _write(self, frames: bytes, messages: Sequence[WaitingMessage], drop_if_disk_full: bool) -> None:
        """Write the frames of messages behind the last one. Raises OSError, after which nothing of them is there."""
        freed = 0
        while True:
            try:
                segment = self._segment_for(frames)
                segment.write(frames)
                break
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                if self._end_segment():
                    # a new file helps where the size of a file is limited
                    continue
                # For one message the spool gives up neither all it has, nor more than its size if others take the
                # room as fast as it is made.
                if not drop_if_disk_full or freed > len(frames) or self._holds_one_segment():
                    raise
                self._failed(error)
                freed += self._segments[0].bytes
                self._remove_first()
        self.waiting_bytes += len(frames)
        for message in messages:
            segment.rows[message.record.topic] += message.rows
            self.waiting_rows += message.rows

    def _holds_one_segment(self) -> bool:
        return not self._segments or self.waiting_bytes == self._segments[0].bytes

    def _segment_for(self, frame: bytes) -> Segment:
        last = self._segments[-1] if self._segments else None
        if last is not None and last.is_open:
            if last.is_removed:
                # what is written to it now, nobody reads
                last.end()
            elif last.bytes + len(frame) > self._segment_bytes:
                self._end_segment()
        if last is None or not last.is_open:
            try:
                last = self._new_segment()
            except FileNotFoundError:
                self._hold_again()
                last = self._new_segment()
            self._segments.append(last)
        return last

    def _new_segment(self) -> Segment:
        while True:
            path = self._folder / f"{self._next_number:012d}.spool"
            try:
                segment = Segment.create(path)
            except FileExistsError:
                # somebody has copied it here; it is taken over at the next start
                self._next_number += 1
                continue
            self._next_number += 1
            return segment

    def _hold_again(self) -> None:
        """Make the folder anew that somebody removed with all that was in it. Raises OSError."""
        fd = _lock(self._folder)
        assert self._lock_fd is not None
        os.close(self._lock_fd)
        self._lock_fd = fd
        while self._segments:
            self._remove_first()

    def _end_segment(self) -> bool:
        """Have the next frame begin a segment; False if it would anyway."""
        last = self._segments[-1] if self._segments else None
        if last is None or not last.is_open or last.bytes == 0:
            return False
        self._sync(last)
        last.end()
        return True

    def _sync(self, segment: Segment) -> None:
        try:
            segment.sync()
        except OSError as error:
            self._failed(error)

    def _read_on(self) -> None:
        """Have more messages of the first segment in `_ahead`, or remove it if there are none. Raises OSError."""
        segment = self._segments[0]
        if self._read_bytes == segment.bytes:
            self._remove_first()
            return
        messages, damaged = self._read(segment, self._read_bytes)
        if damaged:
            self.damaged += damaged
            self.fault = f"{segment.path}: {damaged} torn or damaged records"
        self._ahead.extend(messages)
        self._read_bytes = segment.bytes

    def _read(self, segment: Segment, start: int) -> tuple[list[WaitingMessage], int]:
        try:
            return segment.read(start)
        except OSError as error:
            # its rows count as dropped when the segment goes
            self._fail_lost(error)
            return [], 0

    def _remove_first(self) -> None:
        """Remove the oldest segment; what of it is not acknowledged is dropped, and counted."""
        segment = self._segments.popleft()
        self._ahead.clear()
        self._read_bytes = 0
        self._lent = 0
        self._dropped_rows += segment.rows
        self.waiting_rows -= segment.rows.total()
        self.waiting_bytes -= segment.bytes
        try:
            segment.remove()
        except OSError as error:
            # the next start will send it once more, which is harmless
            self._failed(error)

    def _fail_lost(self, error: OSError) -> None:
        # a process without a file descriptor left would drop all it has, one file after the other
        if error.errno not in _LOST:
            raise error
        self._failed(error)

    def _failed(self, error: OSError) -> None:
        self.failures += 1
        self.fault = f"{error.filename or self._folder}: {error.strerror}"


def _hold(folder: Path) -> int:
    """Like _lock(); raises ConfigError."""
    try:
        return _lock(folder)
    except BlockingIOError as error:
        raise ConfigError(
            f"collect.spool_path: another collector uses {folder}; give each a folder of its own"
        ) from error
    except OSError as error:
        raise refused(folder, error) from error


def _lock(folder: Path) -> int:
    """Make the folder and lock it: two collectors would remove each other's messages. Raises OSError."""
    folder.mkdir(exist_ok=True)
    fd = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o640)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise
    return fd


def refused(folder: Path, error: OSError) -> ConfigError:
    kind = SpoolDiskError if error.errno in _BROKEN else ConfigError
    return kind(
        f"collect.spool_path: {folder} cannot be used: {error.strerror}; "
        "name a folder on a local disk that this user may write to (IDLEWATT_COLLECT__SPOOL_PATH)"
    )
