"""Keeps every source read on time, whatever the others do."""

import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

import structlog

from idlewatt.collectors.scheduled_source import ScheduledSource, SourceState
from idlewatt.collectors.source import Reading, Source

_WATCH_INTERVAL_S: Final = 0.5

_log = structlog.get_logger()


class Scheduler:
    """Reads each source on a thread of its own and hands what it brought to `deliver`.

    `deliver` is called from those threads and must not block or raise. Threads are daemons: a source that
    hangs for ever holds up neither the others nor the end of the process.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        deliver: Callable[[Reading], None],
        timeout_s: float,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        jitter: random.Random | None = None,
    ) -> None:
        """`timeout_s`: a reading that takes longer counts as failed."""
        jitter = jitter or random.Random()
        self._sources = [ScheduledSource(source, timeout_s, monotonic, jitter) for source in sources]
        self._deliver = deliver
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(
                target=self._read_on_time, args=(source,), name=f"read {source.name}", daemon=True
            )
            for source in self._sources
        ]

    def start(self) -> None:
        """Start reading."""
        watch = threading.Thread(target=self._watch, name="watch sources", daemon=True)
        for thread in (*self._threads, watch):
            thread.start()

    def stop(self, timeout_s: float) -> None:
        """End all reading and close the sources; a source that hangs is left behind after `timeout_s`."""
        self._stopping.set()
        deadline = time.monotonic() + timeout_s
        for source, thread in zip(self._sources, self._threads, strict=True):
            # a signal may have cut the start off: then nobody else closes it
            if thread.ident is None:
                source.close()
            # one that is just beginning cannot be joined yet; it will find that it is to stop
            if thread.is_alive():
                thread.join(max(deadline - time.monotonic(), 0))
            if thread.is_alive():
                _log.warning("source_left_behind", source=source.name)

    def states(self) -> list[SourceState]:
        """How each source is doing now; nothing once stopped."""
        return [] if self._stopping.is_set() else [source.state() for source in self._sources]

    def _read_on_time(self, source: ScheduledSource) -> None:
        while not self._stopping.wait(source.delay_s()):
            if (reading := source.read()) and reading.rows:
                self._deliver(reading)
        # here and not in stop(): closing a source that hangs would hang too
        source.close()

    def _watch(self) -> None:
        while not self._stopping.wait(_WATCH_INTERVAL_S):
            for source in self._sources:
                source.report_hang()
