"""Runs collectors, stages or both in this process, beside /metrics, and stops them in order."""

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import structlog
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.registry import Collector

from idlewatt.cli.exit_codes import ExitCode
from idlewatt.stream.errors import LogUnavailableError
from idlewatt.stream.http_routes import Route
from idlewatt.stream.log import Appender
from idlewatt.stream.metrics_server import MetricsServer, PortTakenError
from idlewatt.stream.opening import open_appender, prepare
from idlewatt.stream.settings import Serve, Settings

# A stop takes at most 5 s; what is left is for /metrics and the interpreter.
_COLLECTION_STOP_S: Final = 1.5
_PROCESSING_STOP_S: Final = 2.0
_APPENDER_CLOSE_S: Final = 0.5
_WATCH_INTERVAL_S: Final = 0.5

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Service:
    """What runs."""

    url: str
    # what ended a stage that ended by itself
    failure: Callable[[], BaseException | None]


def serve(settings: Settings, *, collect: bool, process: bool) -> ExitCode:
    """Serve until KeyboardInterrupt, or until a stage fails: then raise what ended it."""
    with running(settings, [settings.serve.port], collect=collect, process=process) as service:
        _log.info("serving", metrics=service.url, site=settings.site, log=settings.log.kind)
        pause = threading.Event()
        while (failure := service.failure()) is None:
            pause.wait(_WATCH_INTERVAL_S)
        raise failure


@contextlib.contextmanager
def running(settings: Settings, ports: Iterable[int], *, collect: bool, process: bool) -> Iterator[Service]:
    """Start what is asked for, with /metrics on the first free port; on leaving, drain and checkpoint.

    Raises ConfigError, LogUnavailableError.
    """
    with contextlib.ExitStack() as stack:
        bodies: list[Callable[[], bytes]] = []
        routes: list[Route] = []
        # first, because a port that is taken is the commonest fault; last to go, so that the end can be scraped
        server = _listen(settings.serve, ports, lambda: b"".join(body() for body in list(bodies)))
        stack.callback(server.stop)
        _prepare(settings, process=process)
        failure: Callable[[], BaseException | None] = lambda: None  # noqa: E731
        if process:
            from idlewatt.processors.tuning import tune

            tune()
            # imported when asked for: a node that collects needs no polars
            from idlewatt.processors.processing import Processing

            processing = Processing(settings)
            stack.callback(_stop_processing, processing.stop)
            processing.start()
            bodies.append(processing.metrics_body)
            routes += processing.routes
            failure = lambda: processing.failure  # noqa: E731
        if collect:
            from idlewatt.collectors.collection import Collection

            appender = open_appender(settings, f"idlewatt-{settings.collect.node}")
            stack.callback(_close, appender)
            collection = Collection(settings, appender)
            stack.callback(collection.stop, _COLLECTION_STOP_S)
            collection.start()
            bodies.append(_page_of(collection.metrics))
            routes += collection.routes
        server.open(routes)
        stack.callback(_log.info, "stopping")
        yield Service(server.url, failure)


def _prepare(settings: Settings, *, process: bool) -> None:
    """Make the log ready. A collector restarted while Kafka is away must not lose what it could spool meanwhile."""
    try:
        prepare(settings, process=process)
    except LogUnavailableError as error:
        # a log in a file has no spool: nothing that is read could be kept
        if process or settings.log.kind != "kafka":
            raise
        _log.warning("log_unavailable", error=str(error), meanwhile="rows wait in collect.spool_path")


def _listen(serve: Serve, ports: Iterable[int], body: Callable[[], bytes]) -> MetricsServer:
    taken: PortTakenError | None = None
    for port in ports:
        server = MetricsServer(serve.host, port, body, serve.token)
        try:
            server.start()
        except PortTakenError as error:
            taken = taken or error
        else:
            return server
    raise taken or ValueError("no port to listen on")


def _page_of(metrics: Collector) -> Callable[[], bytes]:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(metrics)
    return lambda: generate_latest(registry)


def _close(appender: Appender) -> None:
    # a log that hangs holds its lock for as long as an append may take, and cannot be closed meanwhile
    closing = threading.Thread(target=appender.close, name="close appender", daemon=True)
    closing.start()
    closing.join(_APPENDER_CLOSE_S)


def _stop_processing(stop: Callable[[float], bool]) -> None:
    if not stop(_PROCESSING_STOP_S):
        _log.error("stopped_without_checkpoint", after_s=_PROCESSING_STOP_S)
