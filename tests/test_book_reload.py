"""The book of a running processor: what changes in its file counts without a restart, and a bad one is told."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from idlewatt.processors.processing import Processing
from idlewatt.stream.errors import ConfigError
from idlewatt.stream.opening import prepare
from idlewatt.stream.settings import Economy, Log, Settings

GOOD = '[[price]]\nmodel = "*"\ninput = 0\noutput = 1\n'
BAD = GOOD.replace("output = 1", "output = -1")
COSTS = "[tariff]\nper_kwh = 0.12\n"


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def test_a_running_processor_reads_the_book_again(tmp_path: Path) -> None:
    """A bad book is refused in a metric and a log line, the processor goes on, and a mended one is accepted."""
    book = tmp_path / "book.toml"
    book.write_text(GOOD)
    settings = Settings(log=Log(path=str(tmp_path / "log.db")), economy=Economy(book=str(book)))
    prepare(settings)
    with capture_logs() as logs:
        processing = Processing(settings)
        processing.start()
        try:
            for text, line in (
                (GOOD, "idlewatt_book_valid 1.0"),
                (GOOD, "idlewatt_book_prices 1.0"),
                (BAD, 'idlewatt_book_reads_total{result="refused"} 1.0'),
                (BAD, "idlewatt_book_valid 0.0"),
                (BAD, "idlewatt_book_prices 1.0"),
                (GOOD + "\n", 'idlewatt_book_reads_total{result="accepted"} 1.0'),
                (GOOD + "\n", "idlewatt_book_valid 1.0"),
                (COSTS, "idlewatt_book_prices 0.0"),
            ):
                if book.read_text() != text:
                    book.write_text(text)
                until(lambda line=line: line in processing.metrics_body().decode(), line)  # type: ignore[misc]
            assert processing.failure is None
        finally:
            assert processing.stop(20)
    refused = [entry for entry in logs if entry["event"] == "book_refused"]
    assert len(refused) == 1
    assert "output must be 0 to 1000000000; it is -1" in refused[0]["error"]
    assert refused[0]["in_force"] == "the book before"


def test_a_processor_does_not_start_with_a_bad_book(tmp_path: Path) -> None:
    """There is no book before it that could be kept."""
    (tmp_path / "book.toml").write_text(BAD)
    settings = Settings(
        log=Log(path=str(tmp_path / "log.db")), economy=Economy(book=str(tmp_path / "book.toml"))
    )
    prepare(settings)
    with pytest.raises(ConfigError, match="output must be 0"):
        Processing(settings)
