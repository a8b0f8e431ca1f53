"""Rows of all sources to packed messages, and these to the log."""

import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import structlog

from idlewatt.stream import records, topics
from idlewatt.stream.encoding import encode_rows
from idlewatt.stream.errors import LogUnavailableError
from idlewatt.stream.log import Appender, Record
from idlewatt.stream.records import EngineRow, GpuRow, Schema

# Ten minutes of a node with 16 GPUs and 16 engines at two readings a second, and some to spare.
MAX_WAITING_ROWS: Final = 50_000
# well under the megabyte that Kafka takes in one message
MAX_ROWS_PER_MESSAGE: Final = 2_000
_RECORDS_PER_APPEND: Final = 64
_RETRY_INTERVAL_S: Final = 0.2
_LOG_INTERVAL_S: Final = 60.0

_DESTINATIONS: Final[Mapping[type, tuple[str, Schema]]] = {
    GpuRow: (topics.GPU, records.GPU),
    EngineRow: (topics.ENGINE, records.ENGINE),
}

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class SinkState:
    """Rows by topic since the start, and bytes that wait for the log."""

    sent_rows: Mapping[str, int]
    dropped_rows: Mapping[str, int]
    unencodable_rows: int
    waiting_bytes: int


@dataclass(frozen=True, slots=True)
class _Packed:
    record: Record
    rows: int


class Sink:
    """Takes rows from any thread and appends them to the log on its own, once per `send_interval_s`.

    While the log is away rows wait in memory, MAX_WAITING_ROWS at most; then the oldest are dropped and
    counted. Counters in rows are cumulative, so a dropped row costs resolution, not truth.
    """

    def __init__(
        self,
        appender: Appender,
        send_interval_s: float,
        *,
        max_waiting_rows: int = MAX_WAITING_ROWS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._appender = appender
        self._send_interval_s = send_interval_s
        self._max_waiting_rows = max_waiting_rows
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._fresh: deque[GpuRow | EngineRow] = deque()
        self._packed: deque[_Packed] = deque()
        self._waiting_rows = 0
        self._in_flight_bytes = 0
        self._sent_rows = Counter({topic: 0 for topic, _ in _DESTINATIONS.values()})
        self._dropped_rows = Counter(self._sent_rows)
        self._unencodable_rows = 0
        self._log_after: defaultdict[str, float] = defaultdict(lambda: float("-inf"))
        self._away = False
        self._stopping = threading.Event()
        self._give_up_at = float("inf")
        self._thread = threading.Thread(target=self._run, name="sink", daemon=True)

    def start(self) -> None:
        """Start sending."""
        self._thread.start()

    def put(self, rows: Iterable[GpuRow | EngineRow]) -> None:
        """Take rows to be sent. Never blocks on the log."""
        with self._lock:
            before = len(self._fresh)
            self._fresh.extend(rows)
            self._waiting_rows += len(self._fresh) - before
            self._drop_oldest()

    def send(self) -> bool:
        """Send all that waits; False if the log did not take it. Used from one thread."""
        self._pack()
        size = _RECORDS_PER_APPEND
        while batch := self._take(size):
            try:
                self._appender.append([packed.record for packed in batch])
            except LogUnavailableError as error:
                self._put_back(batch)
                self._say_away(str(error))
                return False
            except Exception:
                if len(batch) > 1:
                    # one of them is at fault: sent one by one, it is the only one that is lost
                    self._put_back(batch)
                    size = 1
                    continue
                self._count(self._dropped_rows, batch)
                if self._may_log("failed"):
                    _log.exception("append_failed", topic=batch[0].record.topic, rows=batch[0].rows)
            else:
                self._count(self._sent_rows, batch)
                if self._away:
                    self._away = False
                    _log.info("log_back")
        return True

    def stop(self, timeout_s: float) -> None:
        """Send what waits and end; what the log has not taken after `timeout_s` is lost, which is logged."""
        self._give_up_at = time.monotonic() + timeout_s
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        else:
            self.send()
        with self._lock:
            lost = self._waiting_rows
        if lost:
            _log.error("rows_lost", rows=lost, reason="the log did not take them before the end")

    def state(self) -> SinkState:
        """Counts as of now."""
        with self._lock:
            waiting_bytes = self._in_flight_bytes + sum(len(packed.record.value) for packed in self._packed)
            return SinkState(
                dict(self._sent_rows), dict(self._dropped_rows), self._unencodable_rows, waiting_bytes
            )

    def _run(self) -> None:
        while not self._stopping.wait(self._send_interval_s):
            self.send()
        while not self.send() and time.monotonic() < self._give_up_at:
            time.sleep(min(_RETRY_INTERVAL_S, max(self._give_up_at - time.monotonic(), 0)))

    def _pack(self) -> None:
        with self._lock:
            fresh, self._fresh = self._fresh, deque()
        groups: defaultdict[tuple[type, str, str], list[GpuRow | EngineRow]] = defaultdict(list)
        for row in fresh:
            groups[type(row), row.site, row.pool].append(row)
        packed: list[_Packed] = []
        for (kind, site, pool), rows in groups.items():
            topic, schema = _DESTINATIONS[kind]
            key = topics.pool_key(site, pool)
            for start in range(0, len(rows), MAX_ROWS_PER_MESSAGE):
                for value, count in self._encoded(schema, rows[start : start + MAX_ROWS_PER_MESSAGE]):
                    packed.append(_Packed(Record(topic, key, value), count))
        with self._lock:
            self._waiting_rows -= len(fresh) - sum(each.rows for each in packed)
            self._packed.extend(packed)
            self._drop_oldest()

    def _encoded(self, schema: Schema, rows: Sequence[GpuRow | EngineRow]) -> Iterable[tuple[bytes, int]]:
        """Messages with their number of rows: one, unless a row has a value its column cannot hold."""
        try:
            yield encode_rows(schema, rows), len(rows)
        except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
            if len(rows) > 1:
                middle = len(rows) // 2
                yield from self._encoded(schema, rows[:middle])
                yield from self._encoded(schema, rows[middle:])
                return
            self._unencodable_rows += 1
            if self._may_log("unencodable"):
                _log.error("row_unencodable", row=repr(rows[0]), error=str(error))

    def _take(self, size: int) -> list[_Packed]:
        with self._lock:
            batch = [self._packed.popleft() for _ in range(min(len(self._packed), size))]
            self._in_flight_bytes = sum(len(packed.record.value) for packed in batch)
            return batch

    def _put_back(self, batch: Sequence[_Packed]) -> None:
        with self._lock:
            self._in_flight_bytes = 0
            self._packed.extendleft(reversed(batch))
            self._drop_oldest()

    def _count(self, counter: Counter[str], batch: Sequence[_Packed]) -> None:
        with self._lock:
            self._in_flight_bytes = 0
            for packed in batch:
                counter[packed.record.topic] += packed.rows
                self._waiting_rows -= packed.rows

    def _drop_oldest(self) -> None:
        """Under the lock: drop until the rest fits. What is being appended is counted but cannot be dropped."""
        dropped = 0
        while self._waiting_rows > self._max_waiting_rows and (self._packed or self._fresh):
            if self._packed:
                packed = self._packed.popleft()
                topic, rows = packed.record.topic, packed.rows
            else:
                topic, rows = _DESTINATIONS[type(self._fresh.popleft())][0], 1
            self._dropped_rows[topic] += rows
            self._waiting_rows -= rows
            dropped += rows
        if dropped and self._may_log("dropped"):
            _log.error("rows_dropped", rows=dropped, reason="the log has been away for too long")

    def _say_away(self, detail: str) -> None:
        self._away = True
        if self._may_log("away"):
            _log.warning("log_away", detail=detail, waiting_rows=self._waiting_rows)

    def _may_log(self, what: str) -> bool:
        now = self._monotonic()
        if now < self._log_after[what]:
            return False
        self._log_after[what] = now + _LOG_INTERVAL_S
        return True
