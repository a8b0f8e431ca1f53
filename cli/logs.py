"""How log events look: one line each on stderr, JSON for machines, readable on a terminal."""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any, Final

import structlog

from idlewatt.stream.minute_log import MinuteLog

# libraries whose ordinary goings-on are nobody's news
_QUIET: Final = ("kafka", "urllib3")


def _event_first(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    # what a person looks for in a line of JSON
    head = {key: event.pop(key) for key in ("timestamp", "level", "event") if key in event}
    return head | dict(event)


class _SeldomAlike(logging.Filter):
    """Of what one line of kafka-python says, something passes once a minute: while Kafka is away, it is five a second."""

    def __init__(self) -> None:
        super().__init__()
        self._minute_log = MinuteLog()

    def filter(self, record: logging.LogRecord) -> bool:
        ours = record.name.partition(".")[0] != "kafka"
        return ours or self._minute_log.is_due(f"{record.pathname}:{record.lineno}")


def configure_logs(level: int = logging.INFO) -> None:
    """Send every event from `level` up, ours and the libraries', to stderr. Call before anything logs."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    terminal = sys.stderr.isatty()
    renderer: list[Any] = (
        # rich tracebacks fill a screen
        [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
        if terminal
        else [structlog.processors.format_exc_info, _event_first, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
        )
    )
    handler.addFilter(_SeldomAlike())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
