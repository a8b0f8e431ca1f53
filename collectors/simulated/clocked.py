"""The factory for many threads: it is moved on to the clock whenever somebody reads."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from idlewatt.collectors.simulated.factory import Factory
from idlewatt.stream.clock import Clock


class ClockedFactory:
    """A factory that is where the clock is. Nothing else moves it."""

    def __init__(self, factory: Factory, clock: Clock) -> None:
        self.factory = factory
        self._clock = clock
        self._lock = threading.Lock()

    @contextmanager
    def now(self) -> Iterator[int]:
        """Hold the factory still at the clock's time, Unix ms: within the block it may be read."""
        with self._lock:
            now_ms = self._clock()
            self.factory.advance(now_ms)
            yield now_ms
