"""What a processor tells of itself: messages, rejects, lag, commits. Its own life only, unlike the ledger's counters."""

import threading
from collections import Counter
from collections.abc import Iterable

from idlewatt.processors.families import Family, family
from idlewatt.stream import metric_names as names


class PipelineFigures:
    """Counters and gauges by label values. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters: dict[names.Metric, Counter[tuple[str, ...]]] = {
            metric: Counter()
            for metric in (
                names.MESSAGES,
                names.REJECTED_MESSAGES,
                names.ROWS,
                names.REJECTED_ROWS,
                names.LATE_ROWS,
                names.REWINDS,
                names.BOOK_READS,
            )
        }
        self._gauges: dict[names.Metric, dict[tuple[str, ...], float]] = {
            metric: {}
            for metric in (
                names.EVENT_TIME_LAG,
                names.BEHIND,
                names.CATCH_UP,
                names.CHECKPOINT_SECONDS,
                names.CHECKPOINT_BYTES,
                names.BOOK_VALID,
                names.BOOK_PRICES,
            )
        }

    def count(self, metric: names.Metric, *labels: str, by: int = 1) -> None:
        with self._lock:
            self._counters[metric][labels] += by

    def show(self, metric: names.Metric, *labels: str, value: float) -> None:
        with self._lock:
            self._gauges[metric][labels] = value

    def forget(self, metric: names.Metric, *labels: str) -> None:
        """No stale series for what this processor no longer reads."""
        with self._lock:
            self._gauges[metric].pop(labels, None)

    def collect(self) -> Iterable[Family]:
        with self._lock:
            counters = [family(metric, list(samples.items())) for metric, samples in self._counters.items()]
            gauges = [family(metric, list(samples.items())) for metric, samples in self._gauges.items()]
        return counters + gauges
