"""What `idlewatt doctor` says of the servers it reads: each is read once, as the collector would."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Literal

from idlewatt.collectors.collection import engine_source, gateway_source, refuse_alike
from idlewatt.collectors.source import Reading, Source
from idlewatt.stream.errors import ConfigError, SourceError
from idlewatt.stream.records import EngineRow, UsageRow
from idlewatt.stream.settings import Engine, Gateway, Settings


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was seen, and what to do about it."""

    level: Literal["ok", "warn", "FAIL"]
    part: str
    seen: str
    mend: str = ""

    def __str__(self) -> str:
        return f"{self.level:<4}  {self.part:<7}  {self.seen}" + (f": {self.mend}" if self.mend else "")


def source_findings(settings: Settings) -> Iterator[Finding]:
    """All that is wrong with the names of engines and gateways, and what each of them says."""
    makers: list[Callable[[], Source]] = [
        *(partial(engine_source, settings, engine) for engine in settings.collect.engine),
        *(partial(gateway_source, settings, gateway) for gateway in settings.collect.gateway),
    ]
    sources: list[Source] = []
    for make in makers:
        # said below, of the one that is at fault
        with suppress(ConfigError):
            sources.append(make())
    try:
        refuse_alike(sources)
    except ConfigError as error:
        yield Finding("FAIL", "config", str(error))
    for source in sources:
        source.close()
    yield from (_engine(settings, engine) for engine in settings.collect.engine)
    yield from (_gateway(settings, gateway) for gateway in settings.collect.gateway)


def _engine(settings: Settings, engine: Engine) -> Finding:
    """Whether an engine answers, and which models it serves."""

    def seen(name: str, reading: Reading) -> Finding:
        models = ", ".join(sorted({row.model_name for row in reading.rows if isinstance(row, EngineRow)}))
        if reading.left_out:
            return Finding(
                "warn", "engine", f"{name} serves {models or 'no model'}; left out: {_reasons(reading)}"
            )
        if not models:
            return Finding("warn", "engine", f"{name} names no model yet", "send it a request, ask again")
        own = settings.collect.pool or settings.collect.node
        if settings.collect.gpu != "none" and engine.pool not in (None, own):
            seen = f"{name} serves {models} in pool {engine.pool}, this node's GPUs are in {own}"
            return Finding("warn", "engine", seen, "leave out its pool, unless other nodes have GPUs there")
        return Finding("ok", "engine", f"{name} serves {models}")

    return _read("engine", engine.url, lambda: engine_source(settings, engine), seen)


def _gateway(settings: Settings, gateway: Gateway) -> Finding:
    """Whether a gateway answers, and whether the rules name those who spend its tokens."""

    def seen(name: str, reading: Reading) -> Finding:
        rows = [row for row in reading.rows if isinstance(row, UsageRow)]
        named = [row for row in rows if row.function or row.team or row.agent_family or row.engineer]
        told = f"{name} has {len(rows)} counters, {len(named)} of a consumer with a name"
        if reading.left_out:
            return Finding("warn", "gateway", f"{told}; left out: {_reasons(reading)}")
        if not rows:
            return Finding(
                "warn", "gateway", f"{name} has counted nothing yet", "send it a request, ask again"
            )
        if len(named) < len(rows):
            return Finding("warn", "gateway", told, "name the others with [[collect.consumer]]")
        return Finding("ok", "gateway", told)

    return _read("gateway", gateway.url, lambda: gateway_source(settings, gateway), seen)


def _read(
    part: str, url: str, make: Callable[[], Source], seen: Callable[[str, Reading], Finding]
) -> Finding:
    try:
        source = make()
    except ConfigError as error:
        return Finding("FAIL", part, url, str(error))
    try:
        reading = source.read()
    except SourceError as error:
        return Finding("FAIL", part, f"{source.name}: {error.reason}", str(error))
    finally:
        source.close()
    return seen(source.name, reading)


def _reasons(reading: Reading) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(reading.left_out.items()))
