"""One source, when it is read next, and how its readings went."""

import random
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import floor
from typing import Final

import structlog

from idlewatt.collectors.source import Reading, Source, is_set_back
from idlewatt.stream.errors import SourceError
from idlewatt.stream.minute_log import MinuteLog
from idlewatt.stream.records import EngineRow, GpuRow, UsageRow

BACKOFF_LIMIT_S: Final = 30.0
# A source that keeps its own deadline ends just after it; this long it may take to say so itself.
HUNG_MARGIN_S: Final = 0.5

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class SourceState:
    """How one source is doing. `success` is None before its first reading has ended."""

    name: str
    success: bool | None
    duration_s: float
    errors: Mapping[str, int]
    left_out: Mapping[str, int]


class ScheduledSource:
    """Reads one source from one thread; any thread may look at its state.

    `monotonic` gives seconds; nothing here waits.
    """

    def __init__(
        self, source: Source, timeout_s: float, monotonic: Callable[[], float], jitter: random.Random
    ) -> None:
        self.name = source.name
        self._source = source
        self._timeout_s = timeout_s
        self._monotonic = monotonic
        self._jitter = jitter
        # sources of one interval start spread over it, and stay so
        self._grid_start = monotonic() + jitter.uniform(0, source.interval_s)
        self._lock = threading.Lock()
        self._reading_since: float | None = None
        self._hung = False
        self._success: bool | None = None
        self._duration_s = 0.0
        self._failures_in_a_row = 0
        # by GPU: one whose driver answers late tells of a moment before the newest of the others
        self._newest_ms: dict[str, int] = {}
        self._errors: Counter[str] = Counter()
        self._left_out: Counter[str] = Counter()
        self._minute_log = MinuteLog(monotonic)
        self._failure_logged = False

    def delay_s(self) -> float:
        """Seconds until the next reading is due. Points of the grid that were missed are not made up for."""
        interval_s = self._source.interval_s
        if self._failures_in_a_row:
            longest_s = min(BACKOFF_LIMIT_S, interval_s * 2.0 ** min(self._failures_in_a_row - 1, 16))
            return longest_s * self._jitter.uniform(0.5, 1)
        now = self._monotonic()
        # a wait that ended a hair before its point has reached it
        point = floor((now - self._grid_start) / interval_s + 0.001) + 1
        return self._grid_start + point * interval_s - now

    def read(self) -> Reading | None:
        """Read the source now; None if that failed, which is counted and logged here.

        Rows that are older than those of the readings before, since the clock was set back, are left out.
        """
        with self._lock:
            self._reading_since = self._monotonic()
            self._hung = False
        try:
            reading = self._source.read()
        except SourceError as error:
            self._failed(error.reason, str(error))
        except Exception as error:
            self._failed("unexpected", repr(error), _log.exception)
        else:
            reading = self._going_on(reading)
            self._succeeded(reading)
            return reading
        return None

    def report_hang(self) -> None:
        """Count a reading that has not come back in time as failed, once. Called from another thread."""
        with self._lock:
            since = self._reading_since
            if since is None or self._hung:
                return
            if self._monotonic() - since <= self._timeout_s + HUNG_MARGIN_S:
                return
            self._hung = True
            self._errors["hung"] += 1
        self._log_failure(
            "hung",
            f"no answer within {self._timeout_s:g} s; it is not asked again before that one ends",
            _log.warning,
        )

    def state(self) -> SourceState:
        """How it is doing now."""
        with self._lock:
            success, duration_s = self._success, self._duration_s
            if self._reading_since is not None:
                elapsed_s = self._monotonic() - self._reading_since
                if elapsed_s > self._timeout_s:
                    success, duration_s = False, elapsed_s
            return SourceState(self.name, success, duration_s, dict(self._errors), dict(self._left_out))

    def close(self) -> None:
        """Close the source."""
        try:
            self._source.close()
        except Exception:
            _log.exception("close_failed", source=self.name)

    def _going_on(self, reading: Reading) -> Reading:
        rows = [row for row in reading.rows if not is_set_back(row.ts_ms, self._newest_ms.get(_gpu(row)))]
        self._newest_ms.update((_gpu(row), row.ts_ms) for row in sorted(rows, key=lambda row: row.ts_ms))
        if len(rows) == len(reading.rows):
            return reading
        set_back = {"clock_set_back": len(reading.rows) - len(rows)}
        return Reading(rows, Counter(reading.left_out) + Counter(set_back))

    def _ended(self, success: bool) -> None:
        assert self._reading_since is not None
        self._duration_s = self._monotonic() - self._reading_since
        self._reading_since = None
        self._success = success

    def _succeeded(self, reading: Reading) -> None:
        with self._lock:
            # a gateway that nobody has asked yet has nothing to tell
            self._ended(success=bool(reading.rows) or not reading.left_out)
            self._failures_in_a_row = 0
            self._left_out.update(reading.left_out)
        if reading.left_out and self._minute_log.is_due("left_out"):
            _log.warning("readings_left_out", source=self.name, reasons=dict(reading.left_out))
        if self._failure_logged:
            self._failure_logged = False
            _log.info("scrape_recovered", source=self.name)

    def _failed(self, reason: str, detail: str, say: Callable[..., object] | None = None) -> None:
        with self._lock:
            self._ended(success=False)
            self._failures_in_a_row += 1
            # one reading fails once, and this one has already
            if not self._hung:
                self._errors[reason] += 1
        self._log_failure(reason, detail, say or _log.warning)

    def _log_failure(self, reason: str, detail: str, say: Callable[..., object]) -> None:
        if self._minute_log.is_due("failed"):
            self._failure_logged = True
            say("scrape_failed", source=self.name, reason=reason, detail=detail)


def _gpu(row: GpuRow | EngineRow | UsageRow) -> str:
    return row.gpu_uuid if isinstance(row, GpuRow) else ""
