"""Log events that may happen many times a second and are worth one line a minute."""

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from typing import Any, Final

import structlog

_INTERVAL_S: Final = 60.0
# an event and, where it has several, its reason
_Kind = tuple[str, str | None]

_log = structlog.get_logger()


class MinuteLog:
    """Logs each event, and each `reason` of one, once a minute at most. For use from any thread."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._not_before: defaultdict[_Kind, float] = defaultdict(lambda: float("-inf"))
        self._unsaid: Counter[_Kind] = Counter()
        self._details: dict[_Kind, Mapping[str, Any]] = {}
        self._lock = threading.Lock()

    def is_due(self, event: str) -> bool:
        """True if it was not within the last minute."""
        with self._lock:
            return self._is_due((event, None))

    def error(self, event: str, count: int, **details: Any) -> None:
        """Log an error that has happened `count` times more, with the count since its last line, and others that waited."""
        with self._lock:
            if count:
                kind = event, details.get("reason")
                self._unsaid[kind] += count
                self._details[kind] = details
            for kind in +self._unsaid:
                if self._is_due(kind):
                    self._write(kind)

    def flush(self) -> None:
        """Log the errors that wait for their minute."""
        with self._lock:
            for kind in +self._unsaid:
                self._write(kind)

    def _is_due(self, kind: _Kind) -> bool:
        now = self._monotonic()
        if now < self._not_before[kind]:
            return False
        self._not_before[kind] = now + _INTERVAL_S
        return True

    def _write(self, kind: _Kind) -> None:
        _log.error(kind[0], count=self._unsaid.pop(kind), **self._details.pop(kind))
