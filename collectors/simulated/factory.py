"""The simulated AI factory: a physical model with a known truth. Pure: no threads, no wall clock.

Time moves in ticks on the grid of multiples of `tick_ms`. What can be read at a moment T on the grid:
gauges (requests running and waiting, process, power) hold for the tick that begins at T; counters are what
accumulated before T. Between ticks nothing changes. An engine serves in a tick if and only if requests run in it.
"""

import heapq
import itertools
import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from idlewatt.collectors.simulated import outages as outage_kinds
from idlewatt.collectors.simulated.consumers import Asking, known_consumers
from idlewatt.collectors.simulated.demand import Arrivals, DayCurve
from idlewatt.collectors.simulated.hall import Group, SimulatedEngine, SimulatedNode, build_hall
from idlewatt.collectors.simulated.outages import ALL_OUTAGES, ON_AN_ENGINE, STALL_MS, Outage, OutagePlan
from idlewatt.collectors.simulated.plant import DEFAULT_PLANT
from idlewatt.collectors.simulated.truth import Truth

_FOREIGN_JOB_SHARE: Final = 0.97  # of the power limit, which such a job often touches


@dataclass(slots=True)
class _Service:
    """The engines of one pool that serve one model, and who asks them."""

    curve: DayCurve
    arrivals: Arrivals
    engines: list[SimulatedEngine]
    turn: int = 0


class Factory:
    """The whole hall. The same arguments give the same history, reading by reading.

    `tick_ms` divides 1000, so that every tick lies in one second. `outages` are the kinds that may happen. `has_past`:
    drivers and engines have counted for long; else they begin with the factory, at zero.
    Raises ValueError for arguments that make no factory.
    """

    def __init__(
        self,
        seed: int,
        start_ms: int,
        *,
        site: str = "default",
        tick_ms: int = 100,
        day_s: float = 120.0,
        outage_every_s: float = 90.0,
        outages: frozenset[str] = ALL_OUTAGES,
        has_past: bool = True,
    ) -> None:
        if not 0 < tick_ms <= 1000 or 1000 % tick_ms:
            raise ValueError(f"tick_ms must divide 1000, not {tick_ms}")
        self.site = site
        self.tick_ms = tick_ms
        self.start_ms = start_ms - start_ms % tick_ms
        self.now_ms = self.start_ms
        self.truth = Truth(site)
        self._power_rng = random.Random(f"{seed}/power")
        self._outage_rng = random.Random(f"{seed}/outages")
        every_ms = max(tick_ms, round(outage_every_s * 1000))
        self._plan = OutagePlan(outages, every_ms, self.start_ms, self._outage_rng)
        # (when, tie-breaker, what): the rest of outages that have begun
        self._due: list[tuple[int, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self.nodes = build_hall(
            DEFAULT_PLANT, self.start_ms, random.Random(f"{seed}/plant"), has_past=has_past
        )
        self.engines = tuple(engine for node in self.nodes for engine in node.engines)
        self._groups = tuple(group for node in self.nodes for group in node.groups)
        self._services = self._ask(round(day_s * 1000), seed)
        self._asking = Asking(random.Random(f"{seed}/consumers"))
        for engine in self.engines:
            for consumer in known_consumers(engine.node.pool):
                # a counter that nobody saw at zero would lose what it counts until it is first read
                self.truth.add_usage(self.start_ms, (*consumer, engine.model_name), 0, 0, 0)
        self._begin_tick()

    def _ask(self, day_ms: int, seed: int) -> list[_Service]:
        engines: dict[tuple[str, str], list[SimulatedEngine]] = defaultdict(list)
        for engine in self.engines:
            if engine.asked:
                engines[engine.node.pool, engine.model_name].append(engine)
        services = []
        for (pool, model_name), serving in engines.items():
            # the models of a pool share its curve
            curve = DayCurve(day_ms, DEFAULT_PLANT.workloads[pool].day_phase, random.Random(f"{seed}/{pool}"))
            arrivals = Arrivals(random.Random(f"{seed}/{pool}/{model_name}"))
            services.append(_Service(curve, arrivals, serving))
        return services

    def advance(self, to_ms: int) -> None:
        """Move on to the last tick that begins at or before `to_ms`; the past stays as it was."""
        while self.now_ms + self.tick_ms <= to_ms:
            self._end_tick()
            self.now_ms += self.tick_ms
            self._begin_tick()

    def _begin_tick(self) -> None:
        """Settle the gauges of the tick that begins now."""
        while self._due and self._due[0][0] <= self.now_ms:
            heapq.heappop(self._due)[2]()
        kind = self._plan.due(self.now_ms)
        if kind is not None:
            self._break(kind)
        for service in self._services:
            self._send_requests(service)
        for group in self._groups:
            self._draw_power(group)

    def _send_requests(self, service: _Service) -> None:
        capacity = sum(engine.model.requests_per_s for engine in service.engines)
        level = service.curve.level(self.now_ms - self.start_ms)
        count = service.arrivals.take(capacity * level * self.tick_ms / 1000)
        up = [engine.model for engine in service.engines if engine.model.up]
        for i, model in enumerate(up):
            share = (count + (service.turn + i) % len(up)) // len(up)
            model.begin_tick(self.now_ms, share)
        service.turn += 1

    def _draw_power(self, group: Group) -> None:
        product = group.node.product
        state = group.state
        if state == "other":
            mean_mw = product.limit_mw * _FOREIGN_JOB_SHARE
        elif state == "idle_free" or group.engine is None:
            mean_mw = product.bare_idle_mw
        else:
            mean_mw = group.engine.model.power_mw(product.loaded_idle_mw)
        noise = 0.02 if state in ("serving", "other") else 0.005
        mean_mw *= 1 + self._power_rng.uniform(-noise, noise)
        for gpu in group.gpus:
            gpu.power_mw = min(product.limit_mw, int(mean_mw * gpu.trim))

    def _end_tick(self) -> None:
        """Let the tick that began now pass: counters move, truth is booked."""
        tick_ms, now_ms, truth = self.tick_ms, self.now_ms, self.truth
        waiting = set()
        for group in self._groups:
            node = group.node
            drawn_mj = 0
            for gpu in group.gpus:
                energy_mj, gpu.energy_rest_uj = divmod(gpu.power_mw * tick_ms + gpu.energy_rest_uj, 1000)
                gpu.energy_mj += energy_mj
                drawn_mj += energy_mj
            state = "dark" if node.dark else group.state
            held = group.engine is not None and state in ("serving", "idle_loaded")
            model_name = group.engine.model_name if group.engine is not None and held else ""
            time_ms = len(group.gpus) * tick_ms
            truth.add_power(
                now_ms,
                (node.pool, node.product.name, model_name, state),
                time_ms,
                drawn_mj,
                time_ms * node.product.limit_mw // 1000,
            )
        for engine in self.engines:
            if engine.model.waiting:
                waiting.add(engine.node.pool)
            tokens = engine.model.end_tick(now_ms + tick_ms, tick_ms)
            if any(tokens):
                key = (engine.node.pool, engine.node.name, engine.name, engine.model_name)
                truth.add_tokens(now_ms, key, *tokens)
                truth.add_usage(now_ms, (*self._asking.draw(engine.node.pool), engine.model_name), *tokens)
        for pool in waiting:
            truth.add_waiting(now_ms, pool, tick_ms)

    def _break(self, kind: str) -> None:
        """Begin an outage on something that has none; if everything has one, nothing happens."""
        nodes = [node for node in self.nodes if not node.in_outage]
        if kind in ON_AN_ENGINE:
            nodes = [node for node in nodes if node.engines]
        if not nodes:
            return
        node = self._outage_rng.choice(nodes)
        node.in_outage = True
        engine = self._outage_rng.choice(node.engines) if kind in ON_AN_ENGINE else None
        stops = kind in (outage_kinds.ENGINE_CRASH, outage_kinds.DRIVER_RELOAD)
        start_ms = self.now_ms + (STALL_MS if stops else 0)
        end_ms = start_ms + self._plan.length_ms()
        self.truth.outages.append(Outage(kind, node.name, engine.name if engine else None, start_ms, end_ms))
        if engine is not None and not stops:
            engine.page_outage = kind
        elif kind == outage_kinds.GPUS_DARK:
            node.dark = True
        else:
            ending = node.engines if engine is None else [engine]
            for one in ending:
                one.model.stalled = True
            self._at(start_ms, lambda: self._stop(node, ending, reload=engine is None))
        self._at(end_ms, lambda: self._mend(node))

    def _at(self, when_ms: int, action: Callable[[], None]) -> None:
        heapq.heappush(self._due, (when_ms, next(self._order), action))

    def _stop(self, node: SimulatedNode, engines: list[SimulatedEngine], *, reload: bool) -> None:
        for engine in engines:
            engine.model.stop()
        if reload:
            # the new driver counts from here; the GPUs answer once they are initialised
            node.dark = True
            for group in node.groups:
                for gpu in group.gpus:
                    gpu.energy_mj = gpu.energy_rest_uj = 0
                    gpu.epoch_ms = self.now_ms

    def _mend(self, node: SimulatedNode) -> None:
        node.in_outage = node.dark = False
        for engine in node.engines:
            engine.page_outage = None
            if not engine.model.up:
                engine.model.start(self.now_ms)
