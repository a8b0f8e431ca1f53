"""Log events that may happen many times a second and are worth one line a minute."""

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from typing import Any, Final

import structlog

_INTERVAL_S: Final = 60.0

_log = structlog.get_logger()


class MinuteLog:
    """Logs each event once a minute at most. For use from any thread."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._not_before: defaultdict[str, float] = defaultdict(lambda: float("-inf"))
        self._unsaid: Counter[str] = Counter()
        self._details: dict[str, Mapping[str, Any]] = {}
        self._lock = threading.Lock()

    def is_due(self, event: str) -> bool:
        """True if it was not within the last minute."""
        with self._lock:
            return self._is_due(event)

    def error(self, event: str, count: int, **details: Any) -> None:
        """Log an error that has happened `count` times more, with the count since its last line."""
        with self._lock:
            if count:
                self._unsaid[event] += count
                self._details[event] = details
            if self._unsaid[event] and self._is_due(event):
                self._write(event)

    def flush(self) -> None:
        """Log the errors that wait for their minute."""
        with self._lock:
            for event in +self._unsaid:
                self._write(event)

    def _is_due(self, event: str) -> bool:
        now = self._monotonic()
        if now < self._not_before[event]:
            return False
        self._not_before[event] = now + _INTERVAL_S
        return True

    def _write(self, event: str) -> None:
        _log.error(event, count=self._unsaid.pop(event), **self._details.pop(event))
