"""Everything one node collects, built from its settings."""

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial

import structlog
from prometheus_client.registry import Collector

from idlewatt.collectors.engine_source import EngineSource
from idlewatt.collectors.gateway_source import GatewaySource
from idlewatt.collectors.scheduler import Scheduler
from idlewatt.collectors.self_metrics import CollectorMetrics
from idlewatt.collectors.sink import Sink
from idlewatt.collectors.source import Source
from idlewatt.collectors.usage_post import UsagePost
from idlewatt.stream.clock import Clock, unix_ms
from idlewatt.stream.errors import ConfigError
from idlewatt.stream.http_routes import Route
from idlewatt.stream.log import Appender
from idlewatt.stream.minute_log import MinuteLog
from idlewatt.stream.settings import Engine, Gateway, Settings
from idlewatt.stream.spool import Spool, SpoolDiskError

_log = structlog.get_logger()


class Collection:
    """Sources, scheduler and sink of one node. The appender stays its owner's to close, after stop()."""

    def __init__(
        self,
        settings: Settings,
        appender: Appender,
        clock: Clock = unix_ms,
        extra_sources: Sequence[Source] = (),
    ) -> None:
        """Raises ConfigError where the settings name nothing to read, two sources alike, or no usable spool."""
        collect = settings.collect
        sources, self._close_gpus = _gpu_sources(settings, clock)
        try:
            sources += [
                *(engine_source(settings, engine, clock) for engine in collect.engine),
                *(gateway_source(settings, gateway, clock) for gateway in collect.gateway),
            ]
            sources += extra_sources
            _check(sources, takes_usage=settings.serve.token is not None)
            spool, open_spool = _spool(settings)
        except ConfigError:
            for source in sources:
                source.close()
            self._close_gpus()
            raise
        # one for both: the sink has it say what waits for its minute, and at the end
        minute_log = MinuteLog()
        self._sink = Sink(
            appender, collect.send_interval_s, spool=spool, open_spool=open_spool, minute_log=minute_log
        )
        self._usage_post = UsagePost(settings.site, self._sink.store, clock, minute_log)
        self._scheduler = Scheduler(sources, lambda reading: self._sink.put(reading.rows), collect.timeout_s)

    @property
    def metrics(self) -> Collector:
        """The collector's own figures, to be registered with a prometheus_client registry."""
        return CollectorMetrics(self._scheduler.states, self._sink.state, lambda: self._usage_post.refused)

    @property
    def routes(self) -> list[Route]:
        """What is to be served beside the metrics."""
        return [self._usage_post.route]

    def start(self) -> None:
        """Start reading and sending."""
        self._sink.start()
        self._scheduler.start()

    def stop(self, timeout_s: float) -> None:
        """Stop reading, send what waits, and return within `timeout_s` whatever hangs."""
        deadline = time.monotonic() + timeout_s
        # a source that hangs must leave the sink time to send
        self._scheduler.stop(timeout_s / 2)
        self._close_gpus()
        self._sink.stop(max(deadline - time.monotonic(), 0))


def engine_source(settings: Settings, engine: Engine, clock: Clock = unix_ms) -> EngineSource:
    """An engine of the settings as a source. Raises ConfigError."""
    collect = settings.collect
    return EngineSource(
        engine,
        site=settings.site,
        pool=collect.pool or collect.node,
        node=collect.node,
        interval_s=collect.engine_interval_s,
        timeout_s=collect.timeout_s,
        max_body_bytes=collect.max_body_bytes,
        grace_s=settings.process.grace_s,
        clock=clock,
    )


def gateway_source(settings: Settings, gateway: Gateway, clock: Clock = unix_ms) -> GatewaySource:
    """A gateway of the settings as a source. Raises ConfigError."""
    collect = settings.collect
    return GatewaySource(
        gateway,
        collect.consumer,
        site=settings.site,
        node=collect.node,
        interval_s=collect.gateway_interval_s,
        timeout_s=collect.timeout_s,
        max_body_bytes=collect.max_body_bytes,
        clock=clock,
    )


def _gpu_sources(settings: Settings, clock: Clock) -> tuple[list[Source], Callable[[], None]]:
    """Sources of GPU readings, and what to call when they have been stopped."""
    collect = settings.collect
    # imported when asked for: a node without GPUs needs no driver library, one with GPUs no factory
    if collect.gpu == "nvml":
        from idlewatt.collectors.gpu_nvml import NvmlGpus

        pool = collect.pool or collect.node
        return [NvmlGpus(settings.site, pool, collect.node, collect.gpu_interval_s, clock)], lambda: None
    if collect.gpu == "simulated":
        from idlewatt.collectors.simulated.building import build_simulated_sources

        return build_simulated_sources(settings, clock)
    return [], lambda: None


def _spool(settings: Settings) -> tuple[Spool | None, Callable[[], Spool] | None]:
    """The spool, or what opens it later where its disk refuses it now. Raises ConfigError."""
    # the embedded log is on this node's own disk: a spool beside it would be away when it is
    if settings.log.kind == "embedded":
        return None, None
    open_spool = partial(Spool, settings.collect.spool_path, settings.collect.spool_max_bytes)
    try:
        return open_spool(), None
    except SpoolDiskError as error:
        _log.error(
            "spool_failed",
            detail=str(error),
            meanwhile="what Kafka does not take waits in memory, and is lost at the end",
            mend="see to the disk of collect.spool_path: it is tried once a minute",
        )
        return None, open_spool


def _check(sources: Sequence[Source], *, takes_usage: bool) -> None:
    if not sources and not takes_usage:
        raise ConfigError(
            'nothing to read: collect.gpu is "none", no [[collect.engine]] or [[collect.gateway]] is configured, and '
            "without serve.token no POST /v1/usage is taken; set one of them"
        )
    refuse_alike(sources)


def refuse_alike(sources: Sequence[Source]) -> None:
    """Raise ConfigError where two have one name, whose counters would be one that falls and rises, or read one page."""
    named = defaultdict(list)
    for source in sources:
        named[source.name].append(source)
    twice = sorted(name for name, alike in named.items() if len(alike) > 1)
    if twice:
        raise ConfigError(
            f"two sources are called {', '.join(twice)}: give each [[collect.engine]] and [[collect.gateway]] a name of its own"
        )
    for kind, table in ((EngineSource, "engine"), (GatewaySource, "gateway")):
        read_by: dict[str, str] = {}
        for source in sources:
            if not isinstance(source, kind):
                continue
            if source.address in read_by:
                raise ConfigError(
                    f"[[collect.{table}]] {read_by[source.address]} and {source.name} have one url: its tokens would count "
                    "twice; remove one of them"
                )
            read_by[source.address] = source.name
