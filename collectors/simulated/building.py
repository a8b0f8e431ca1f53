"""The simulated factory as sources for the scheduler."""

from collections.abc import Callable

import structlog

from idlewatt.collectors.engine_source import EngineSource
from idlewatt.collectors.simulated.clocked import ClockedFactory
from idlewatt.collectors.simulated.engine_servers import EngineServers
from idlewatt.collectors.simulated.factory import Factory
from idlewatt.collectors.simulated.gateway import SimulatedGateway
from idlewatt.collectors.simulated.gpus import SimulatedGpus
from idlewatt.collectors.source import Source
from idlewatt.stream.clock import HOUR_MS, Clock
from idlewatt.stream.settings import Engine, Settings

_log = structlog.get_logger()


def build_simulated_sources(
    settings: Settings, clock: Clock, factory: Factory | None = None
) -> tuple[list[Source], Callable[[], None]]:
    """Start the factory's engine servers; return one source per node, one per engine, the gateway, and what closes
    the servers.

    The factory goes by `clock` alone. Whoever wants to know the truth, or another tick, passes a factory that
    starts at the clock's time and has the site of the settings.
    """
    collect = settings.collect
    if factory is None:
        start_ms = settings.simulate.start_ms
        factory = Factory(
            settings.simulate.seed,
            clock() if start_ms is None else start_ms,
            site=settings.site,
            day_s=settings.simulate.day_s,
            outage_every_s=settings.simulate.outage_every_s,
            # the log may know one that ran before under the same names: what had restarted in its outages would be older now,
            # and a reading of an older process is refused
            has_past=start_ms is not None,
        )
        now_ms = clock()
        if start_ms is not None:
            # each is seconds of work, for which no reading should wait
            _log.info("simulated_past", hours=round((now_ms - start_ms) / HOUR_MS, 1))
        factory.advance(now_ms)
    elif factory.site != settings.site:
        raise ValueError(f"the factory stands at site {factory.site!r}, the settings say {settings.site!r}")
    clocked = ClockedFactory(factory, clock)
    servers = EngineServers(clocked)
    sources: list[Source] = [SimulatedGateway(clocked, interval_s=collect.gateway_interval_s)]
    for node in factory.nodes:
        sources.append(SimulatedGpus(clocked, node, interval_s=collect.gpu_interval_s))
        for group in node.groups:
            engine = group.engine
            if engine is not None:
                told = tuple(gpu.uuid for gpu in group.gpus) if engine.gpus_told else ()
                sources.append(
                    EngineSource(
                        Engine(url=servers.urls[engine.name], name=engine.name, pool=node.pool, gpus=told),
                        site=settings.site,
                        pool=node.pool,
                        node=node.name,
                        interval_s=collect.engine_interval_s,
                        timeout_s=collect.timeout_s,
                        max_body_bytes=collect.max_body_bytes,
                        clock=clock,
                    )
                )
    return sources, servers.close
