"""Rows of all sources to the log, or to the spool while the log is away."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

import structlog

from idlewatt.collectors.packing import Row, pack
from idlewatt.collectors.row_queue import MAX_WAITING_ROWS, RowQueue
from idlewatt.stream import topics
from idlewatt.stream.errors import ConfigError, LogUnavailableError
from idlewatt.stream.log import Appender
from idlewatt.stream.minute_log import MinuteLog
from idlewatt.stream.spool import Spool
from idlewatt.stream.spool_frames import WaitingMessage

_MAX_MESSAGES_PER_APPEND: Final = 64
_RETRY_INTERVAL_S: Final = 0.2
_OPEN_SPOOL_EVERY_S: Final = 60.0
# for one's turn to ask a log that may be slow for good, while others come faster than it answers
_TURN_WITHIN_S: Final = 1.0
# at the end, should the disk hang
_LEAVE_S: Final = 0.5

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class SinkState:
    """Rows since the start, by topic, what waits for the log in memory and in the spool, and how much the spool holds.

    While nothing moves: rows put and rows found in the spool = sent + dropped + unencodable + waiting.
    """

    sent_rows: Mapping[str, int]
    dropped_rows: Mapping[str, int]
    unencodable_rows: int
    waiting_rows: int
    waiting_bytes: int
    spool_max_bytes: int | None
    spool_failures: int
    damaged_records: int


class _Answer(Enum):
    """What became of messages that were to be appended."""

    TAKEN = "the log has them"
    AWAY = "the log does not answer"
    REFUSED = "the log will never take one of them"


class Sink:
    """Takes rows from any thread and appends them to the log on its own, once per `send_interval_s`.

    While the log is away messages wait in the spool; as long as one does, all new ones queue up behind it, because
    a processor drops a reading that is older than the last one it took. A backlog is sent as fast as the log takes
    it, one append at a time, each of what the line to it may carry in time; once per interval the sink turns from it
    to bring new rows to the disk.
    Without a spool, or while its disk takes nothing, messages wait in memory; on a full disk the oldest make room for
    them once memory is half full. Beyond either bound the oldest are dropped and counted. Counters in rows are
    cumulative, so a dropped row costs resolution, not truth.
    """

    def __init__(
        self,
        appender: Appender,
        send_interval_s: float,
        *,
        spool: Spool | None = None,
        open_spool: Callable[[], Spool] | None = None,
        max_waiting_rows: int = MAX_WAITING_ROWS,
        minute_log: MinuteLog | None = None,
    ) -> None:
        """`max_waiting_rows` is the bound of memory; the spool has its own, and is closed by stop().

        `open_spool`: there should be one, and its disk refused it; it is tried again once a minute. Raises ConfigError.
        `minute_log`: what others have logged in it is said in time too, and when stop() ends.
        """
        self._appender = appender
        self._send_interval_s = send_interval_s
        self._spool = spool
        self._open_spool = open_spool
        self._spool_refusals = int(open_spool is not None)
        self._minute_log = minute_log or MinuteLog()
        self._queue = RowQueue(max_waiting_rows, self._minute_log)
        self._sent_rows = Counter(dict.fromkeys(topics.RAW, 0))
        self._refused_rows = Counter(self._sent_rows)
        self._counting = threading.Lock()
        # held by the one caller of store() that waits for what the log says
        self._asking = threading.Lock()
        self._spooling = threading.Lock()
        self._spool_losses: Counter[str] = Counter()
        self._away = False
        self._messages_per_append = _MAX_MESSAGES_PER_APPEND
        self._has_backlog = False
        self._stopping = threading.Event()
        self._give_up_at = float("inf")
        self._thread = threading.Thread(target=self._run, name="sink", daemon=True)

    def start(self) -> None:
        """Start sending, beginning with what a predecessor left in the spool."""
        if self._spool is not None and self._spool.waiting_bytes:
            _log.info("spool_found", rows=self._spool.waiting_rows, bytes=self._spool.waiting_bytes)
        if self._open_spool is not None:
            # a disk may hang, and the log is there all the same
            threading.Thread(
                target=self._seek_spool, args=(self._open_spool,), name="spool-seeker", daemon=True
            ).start()
        self._thread.start()

    def put(self, rows: Iterable[Row]) -> None:
        """Take rows to be sent. Never blocks on the log or the disk."""
        self._queue.put(rows)

    def store(self, rows: Iterable[Row]) -> bool:
        """Bring rows to the log or, while it is away or slow, to the spool before returning; False if it is not sure that
        either has all.

        For rows that count in any order. After False the log may have some or all of them. What others were told to be
        kept is not dropped for them. May be used from any thread.
        """
        if self._stopping.is_set():
            return False
        packed = list(pack(rows))
        batch = [each for each in packed if isinstance(each, WaitingMessage)]
        if len(batch) < len(packed):
            return False
        spool, is_known_away = self._spool, self._away
        answer = _Answer.AWAY if is_known_away else self._ask(batch, _TURN_WITHIN_S)
        if answer is _Answer.AWAY and spool is not None and spool.append_all(batch):
            return True
        if is_known_away:
            # where nothing waits to be sent, nobody else finds out that it is back
            answer = self._ask(batch, 0, even_if_away=True)
        if answer is _Answer.TAKEN:
            self._count(batch, answer)
        return answer is _Answer.TAKEN

    def _ask(
        self, batch: Sequence[WaitingMessage], within_s: float, *, even_if_away: bool = False
    ) -> _Answer:
        """Append when it is the caller's turn; AWAY if that does not come in time."""
        if not self._asking.acquire(timeout=within_s):
            return _Answer.AWAY
        try:
            # it may have gone away for the one before: to ask it would hold the caller up for seconds more
            return _Answer.AWAY if self._away and not even_if_away else self._append(batch, says_why=True)
        finally:
            self._asking.release()

    def send(self) -> bool:
        """Send what waits, oldest first; False if some of it still waits. Used from one thread."""
        self._queue.pack()
        sent = self._send_spooled() and self._send_queued()
        self._say_losses()
        return sent

    def stop(self, timeout_s: float) -> None:
        """Send what waits and end. What the log has not taken after `timeout_s` is left in the spool.

        Without a spool it is lost, which is logged; as is that it may be, where the spool's disk does not answer.
        """
        self._give_up_at = time.monotonic() + timeout_s
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        else:
            self.send()
        is_left = True
        if self._spool is not None:
            leaving = threading.Thread(target=self._leave, args=(self._spool,), name="spool", daemon=True)
            leaving.start()
            leaving.join(_LEAVE_S)
            is_left = not leaving.is_alive()
        self._minute_log.flush()
        if waiting := self._queue.waiting_rows:
            if is_left:
                _log.error("rows_lost", rows=waiting, reason="the log did not take them before the end")
            else:
                reason = "the disk of the spool did not answer before the end"
                _log.error("rows_may_be_lost", up_to_rows=waiting, reason=reason)

    def state(self) -> SinkState:
        """Counts as of now."""
        queue, spool = self._queue, self._spool
        dropped = Counter(self._refused_rows)
        dropped.update(queue.dropped_rows)
        if spool is not None:
            dropped.update(spool.dropped_rows)
        return SinkState(
            sent_rows=dict(self._sent_rows),
            dropped_rows=dict(dropped),
            unencodable_rows=queue.unencodable_rows,
            waiting_rows=queue.waiting_rows + (spool.waiting_rows if spool else 0),
            waiting_bytes=queue.waiting_bytes + (spool.waiting_bytes if spool else 0),
            spool_max_bytes=spool.max_bytes if spool else None,
            spool_failures=self._spool_refusals + (spool.failures if spool else 0),
            damaged_records=spool.damaged if spool else 0,
        )

    def _run(self) -> None:
        while not self._stopping.wait(0 if self._has_backlog else self._send_interval_s):
            self._try_to_send()
        while not self._try_to_send() and time.monotonic() < self._give_up_at:
            if not self._has_backlog:
                time.sleep(min(_RETRY_INTERVAL_S, max(self._give_up_at - time.monotonic(), 0)))

    def _seek_spool(self, open_spool: Callable[[], Spool]) -> None:
        while not self._stopping.wait(_OPEN_SPOOL_EVERY_S):
            try:
                spool = open_spool()
            except ConfigError as error:
                self._spool_refusals += 1
                self._say_spool_failed(1, str(error))
                continue
            _log.info("spool_back", rows=spool.waiting_rows, bytes=spool.waiting_bytes)
            self._spool = spool
            return

    def _try_to_send(self) -> bool:
        self._has_backlog = False
        try:
            return self.send()
        except Exception as error:
            # a fault of ours may cost some rows, but not all that come after them
            self._minute_log.error("send_failed", 1, exc_info=error)
            return False

    def _send_spooled(self) -> bool:
        spool = self._spool
        if spool is None or not spool.waiting_bytes:
            return True
        self._queue_to_spool(spool)
        until = min(time.monotonic() + self._send_interval_s, self._give_up_at)
        one_by_one = False
        while batch := spool.oldest(1 if one_by_one else self._messages_per_append):
            answer = self._offer(batch)
            if answer is _Answer.AWAY:
                return False
            if answer is _Answer.REFUSED and len(batch) > 1:
                # the one at fault is then the only one that is lost
                one_by_one = True
                continue
            spool.acknowledge()
            self._count(batch, answer)
            if spool.waiting_bytes and time.monotonic() >= until:
                self._has_backlog = True
                return False
        # what cannot be read now is not overtaken
        return not spool.waiting_bytes

    def _send_queued(self) -> bool:
        one_by_one = False
        while batch := self._queue.take(1 if one_by_one else self._messages_per_append):
            answer = self._offer(batch)
            if answer is _Answer.AWAY:
                self._queue.settle(batch, 0)
                if self._spool is not None:
                    self._queue_to_spool(self._spool)
                return False
            if answer is _Answer.REFUSED and len(batch) > 1:
                one_by_one = True
                continue
            # none, if stop() did not wait for them any longer and left them to the spool
            self._count(self._queue.settle(batch, len(batch)), answer)
        return True

    def _offer(self, batch: Sequence[WaitingMessage]) -> _Answer:
        """Append; what a thin line does not carry within an append's time would be sent again for ever."""
        # of several, the one at fault says so when it is offered alone
        answer = self._append(batch, says_why=len(batch) == 1)
        if answer is _Answer.AWAY:
            self._messages_per_append = max(len(batch) // 2, 1)
        elif answer is _Answer.TAKEN:
            self._messages_per_append = min(2 * self._messages_per_append, _MAX_MESSAGES_PER_APPEND)
        return answer

    def _append(self, batch: Sequence[WaitingMessage], *, says_why: bool) -> _Answer:
        try:
            self._appender.append([message.record for message in batch])
        except LogUnavailableError as error:
            self._away = True
            if self._minute_log.is_due("log_away"):
                _log.warning("log_away", detail=str(error), waiting_rows=self.state().waiting_rows)
            return _Answer.AWAY
        except Exception as error:
            if says_why:
                self._minute_log.error("append_failed", 1, topic=batch[0].record.topic, exc_info=error)
            return _Answer.REFUSED
        if self._away:
            self._away = False
            _log.info("log_back")
        return _Answer.TAKEN

    def _count(self, batch: Sequence[WaitingMessage], answer: _Answer) -> None:
        counter = self._sent_rows if answer is _Answer.TAKEN else self._refused_rows
        with self._counting:
            for message in batch:
                counter[message.record.topic] += message.rows

    def _queue_to_spool(self, spool: Spool, *, is_last: bool = False) -> None:
        # one after the other, or both store the same where the log answers just as it is left
        with self._spooling:
            if batch := self._queue.take(is_last=is_last):
                # on a full disk others may take the room as fast as it is made, and each try costs minutes of what was kept
                is_worth_drops = is_last or self._queue.is_half_full
                self._queue.settle(batch, spool.append(batch, drop_if_disk_full=is_worth_drops))

    def _leave(self, spool: Spool) -> None:
        """Leave to the spool what waits in memory, also what the sink's own thread may still hang in the log with."""
        self._queue.pack()
        self._queue_to_spool(spool, is_last=True)
        spool.close()
        self._say_losses()
        if spool.waiting_bytes:
            _log.warning("rows_left_in_spool", rows=spool.waiting_rows, bytes=spool.waiting_bytes)

    def _say_losses(self) -> None:
        spool = self._spool
        if spool is None:
            return
        losses = Counter(
            rows_dropped=sum(spool.dropped_rows.values()),
            spool_damaged=spool.damaged,
            spool_failed=spool.failures,
        )
        new = losses - self._spool_losses
        self._spool_losses = losses
        say = self._minute_log.error
        say("rows_dropped", new["rows_dropped"], reason="the log is away for longer than the spool can hold")
        say("spool_damaged", new["spool_damaged"], detail=spool.fault)
        self._say_spool_failed(new["spool_failed"], spool.fault)

    def _say_spool_failed(self, count: int, fault: str) -> None:
        mend = "see to the disk of collect.spool_path"
        self._minute_log.error("spool_failed", count, detail=fault, mend=mend)
