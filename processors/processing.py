"""The stages of one process: a runner and a log for each, and the page that /metrics serves."""

import math
import threading
import time
from pathlib import Path
from typing import Any, Literal

from idlewatt.processors.economy.book import MICRO, Book
from idlewatt.processors.economy.book_file import BookFile
from idlewatt.processors.economy.config import EconomyConfig
from idlewatt.processors.economy.envelope_answers import EnvelopeAnswers
from idlewatt.processors.economy.stage import EconomyStage
from idlewatt.processors.families import rendered
from idlewatt.processors.meter.config import MeterConfig
from idlewatt.processors.meter.stage import MeterStage
from idlewatt.processors.pipeline_figures import PipelineFigures
from idlewatt.processors.runner import Runner
from idlewatt.processors.stage import Stage
from idlewatt.stream import metric_names as names
from idlewatt.stream.clock import Clock, unix_ms
from idlewatt.stream.http_routes import Route
from idlewatt.stream.opening import open_stage_log
from idlewatt.stream.settings import Settings


class Processing:
    """Runs settings.process.stages, each on a thread of its own, until stopped."""

    def __init__(self, settings: Settings, clock: Clock = unix_ms) -> None:
        """Reads the book and opens the log. Raises ConfigError or LogUnavailableError."""
        self._figures = PipelineFigures()
        path = settings.economy.book
        self._book = BookFile(Path(path) if path else None, self._tell_book)
        if path:
            self._show_book("accepted", self._book.current())
        self._stop = threading.Event()
        self._pages: dict[str, bytes] = {}
        # served over HTTP beside /metrics
        self.routes: list[Route] = []
        self._failure: BaseException | None = None
        # A processor that was stopped or cut off may find its partitions with another one: beside that one's
        # counters, its own old ones would look like resets. The embedded log has no other.
        self._page_valid_s = settings.log.session_timeout_s / 2 if settings.log.kind == "kafka" else math.inf
        self._runners: dict[str, Runner[Any]] = {
            name: self._runner(name, settings, clock) for name in dict.fromkeys(settings.process.stages)
        }
        self._threads = [
            threading.Thread(target=self._guard, args=(runner,), name=f"idlewatt-{name}", daemon=True)
            for name, runner in self._runners.items()
        ]

    def _runner(self, name: str, settings: Settings, clock: Clock) -> Runner[Any]:
        pue = self._book.current().tariff.pue
        stage: Stage[Any] = (
            MeterStage(MeterConfig.of(settings, None if pue is None else pue / MICRO))
            if name == "meter"
            else EconomyStage(self._book.current, EconomyConfig.of(settings))
        )
        log = open_stage_log(settings, stage.name, stage.inputs)
        runner = Runner(stage, log, clock, self._figures, lambda page: self._publish(name, page))
        if isinstance(stage, EconomyStage):
            answers = EnvelopeAnswers(self._book.current, clock, lambda: self._is_ours(runner))
            runner.on_commit(lambda states: answers.hold([state.envelopes for state in states]))
            self.routes = [answers.route]
        return runner

    def _tell_book(self, result: Literal["accepted", "refused"], book: Book) -> None:
        self._figures.count(names.BOOK_READS, result)
        self._show_book(result, book)

    def _show_book(self, result: Literal["accepted", "refused"], book: Book) -> None:
        self._figures.show(names.BOOK_VALID, value=float(result == "accepted"))
        self._figures.show(names.BOOK_PRICES, value=len(book.price))

    def _guard(self, runner: Runner[Any]) -> None:
        try:
            runner.run(self._stop)
        except BaseException as error:
            self._failure = error
            self._stop.set()

    def _publish(self, name: str, page: bytes) -> None:
        # Rendered once per commit, served many times: a scrape never holds up the loop.
        self._pages[name] = page

    def _is_ours(self, runner: Runner[Any]) -> bool:
        return runner.silent_for_s() < self._page_valid_s

    @property
    def failure(self) -> BaseException | None:
        """What ended a stage, if one ended by itself; the process should end then, to be started afresh."""
        return self._failure

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Commit what is folded and end; False if a stage did not end in time."""
        self._stop.set()
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            # those that a start that was cut off left out are not
            if thread.is_alive():
                thread.join(max(deadline - time.monotonic(), 0.0))
        return not any(thread.is_alive() for thread in self._threads)

    def metrics_body(self) -> bytes:
        """The page of /metrics: what is committed and surely still ours, and this process's own figures."""
        pages = [page for name, page in list(self._pages.items()) if self._is_ours(self._runners[name])]
        own = rendered(self._figures.collect())
        return b"".join([*pages, own])
