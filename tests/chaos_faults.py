"""The faults of a chaos run: drawn beforehand from a seed, each begun and later undone while others go on."""

import contextlib
import heapq
import itertools
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from chaos_garbage import SORTS, Injection
from chaos_scene import EXTRA, SESSION_S, Scene
from kafka_broker import KafkaBroker

from idlewatt.stream.errors import LogUnavailableError

_MEAN_PAUSE_S: Final = 1.3
# After a fault the target is left alone for as long as it takes, roughly, to be at work again: a fault on what only
# starts shows little.
_BROKER_AT_WORK_S: Final = 10.0
_PROCESS_AT_WORK_S: Final = 5.0
_TRY_AGAIN_S: Final = 1.0
_TICK_S: Final = 0.1


@dataclass(frozen=True)
class Kind:
    """A kind of fault: on what it falls, for how long (seconds, from to), and how often beside the others."""

    name: str
    targets: Sequence[str]
    length_s: tuple[float, float]
    after_s: float
    weight: int = 1


@dataclass(frozen=True)
class Fault:
    """One fault as it is drawn."""

    at_s: float
    kind: str
    target: str
    length_s: float
    seed: int


def kinds(scene: Scene) -> list[Kind]:
    """All that can happen to this scene."""
    processors = [name for name in scene.processors if name != EXTRA]
    collectors = [member.name for member in scene.collectors.values()]
    found = [
        Kind("kill a processor", processors, (0.1, 2.0), _PROCESS_AT_WORK_S, 3),
        Kind("terminate a processor", processors, (0.1, 2.0), _PROCESS_AT_WORK_S, 2),
        # it wakes as a zombie: its partitions have gone to others meanwhile
        Kind("freeze a processor", processors, (SESSION_S + 1, SESSION_S + 4), _PROCESS_AT_WORK_S, 2),
        Kind("add a processor, and remove it", [EXTRA], (4.0, 12.0), _PROCESS_AT_WORK_S, 2),
        Kind("kill a broker", ["broker"], (0.1, 5.0), _BROKER_AT_WORK_S),
        Kind("freeze a broker", ["broker"], (1.0, 7.0), _BROKER_AT_WORK_S),
        Kind("kill a collector", collectors, (0.1, 4.0), _PROCESS_AT_WORK_S, 2),
        Kind("freeze a collector", collectors, (1.0, 12.0), _PROCESS_AT_WORK_S),
        *(Kind(f"inject {sort}", ["log"], (0.0, 0.0), 0.0) for sort in SORTS),
    ]
    if len(scene.brokers) > 1:
        # it hands what it leads over to others before it ends, as in a rolling upgrade
        found.append(Kind("terminate a broker", ["broker"], (0.1, 5.0), _BROKER_AT_WORK_S, 2))
    if all(disk.is_small for disk in scene.disks.values()):
        name = "fill the spools' disks while the broker is away"
        found.append(Kind(name, ["broker"], (4.0, 9.0), _BROKER_AT_WORK_S))
    return found


def plan(seed: int, count: int, kinds: Sequence[Kind]) -> list[Fault]:
    """`count` faults, the kinds by weight; no two at a time on one target, else as they come."""
    rng = random.Random(f"{seed}/faults")
    free_at: dict[str, float] = {}
    deck: list[Kind] = []
    found: list[Fault] = []
    now_s = 0.0
    for _ in range(count):
        now_s += rng.expovariate(1 / _MEAN_PAUSE_S)
        if not deck:
            weights = [kind.weight for kind in kinds]
            deck = rng.sample(kinds, sum(weights), counts=weights)
        # the first that falls on something whole; if nothing is, the next kind waits for its target
        kind = next((k for k in deck if any(free_at.get(t, 0.0) <= now_s for t in k.targets)), deck[0])
        deck.remove(kind)
        now_s = max(now_s, min(free_at.get(t, 0.0) for t in kind.targets))
        target = rng.choice([t for t in kind.targets if free_at.get(t, 0.0) <= now_s])
        length_s = rng.uniform(*kind.length_s)
        free_at[target] = now_s + length_s + kind.after_s
        found.append(Fault(now_s, kind.name, target, length_s, rng.getrandbits(32)))
    return found


class Chaos:
    """Lets the faults of a plan happen to a scene."""

    def __init__(
        self, scene: Scene, faults: Sequence[Fault], injection: Injection, say: Callable[[str], None]
    ) -> None:
        self.done: Counter[str] = Counter()
        self._scene = scene
        self._injection = injection
        self._say = say
        # (when, tie-breaker, what)
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        # what has a fault that is not undone yet: a slow machine may be behind the plan
        self._faulty: set[str] = set()
        self._began = time.monotonic()
        for fault in faults:
            self._at(fault.at_s, lambda fault=fault: self._begin(fault))

    def run(self) -> None:
        """Return when every fault has begun and is undone."""
        while self._due:
            if self._due[0][0] <= self._now_s():
                heapq.heappop(self._due)[2]()
            else:
                time.sleep(_TICK_S)
            self._scene.keep()

    def _now_s(self) -> float:
        return time.monotonic() - self._began

    def _at(self, when_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._due, (when_s, next(self._order), action))

    def _begin(self, fault: Fault) -> None:
        if fault.target in self._faulty:
            self._at(self._now_s() + _TRY_AGAIN_S, lambda: self._begin(fault))
            return
        self._say(f"{self._now_s():6.1f} s  {fault.kind}: {fault.target}, {fault.length_s:.1f} s")
        undo = self._apply(fault)
        self.done[fault.kind] += 1
        if undo is not None:
            self._faulty.add(fault.target)
            self._at(self._now_s() + fault.length_s, lambda: self._end(fault, undo))

    def _end(self, fault: Fault, undo: Callable[[], None]) -> None:
        undo()
        self._faulty.discard(fault.target)

    def _apply(self, fault: Fault) -> Callable[[], None] | None:
        scene, broker = self._scene, self._broker(fault)
        member = scene.members.get(fault.target)
        match fault.kind.split()[0], member:
            case "inject", _:
                self._inject(fault)
                return None
            case "kill", None:
                broker.kill()
                return broker.launch
            case "terminate", None:
                broker.stop()
                return broker.launch
            case "freeze", None:
                broker.freeze()
                return broker.thaw
            case "fill", None:
                return self._fill(fault)
            case "add", extra:
                assert extra is not None
                extra.start()
                return lambda: extra.end(signal.SIGTERM)
            case "freeze", frozen:
                assert frozen is not None
                frozen.signal(signal.SIGSTOP)
                return lambda: frozen.signal(signal.SIGCONT)
            case how, ended:
                assert ended is not None
                ended.end(signal.SIGTERM if how == "terminate" else signal.SIGKILL)
                return ended.start
        raise AssertionError(fault)

    def _fill(self, fault: Fault) -> Callable[[], None]:
        """The disks are full first, so that what cannot be sent cannot be spooled; the broker is back last or before."""
        scene = self._scene
        for disk in scene.disks.values():
            disk.fill()
        brokers = scene.brokers
        for broker in brokers:
            broker.kill()

        def free() -> None:
            for disk in scene.disks.values():
                disk.free()

        self._at(self._now_s() + fault.length_s * (0.4 + fault.seed % 100 / 100), free)

        def launch() -> None:
            for broker in brokers:
                broker.launch()

        return launch

    def _broker(self, fault: Fault) -> KafkaBroker:
        return self._scene.brokers[fault.seed % len(self._scene.brokers)]

    def _inject(self, fault: Fault) -> None:
        """A broker that is away is no reason to leave a fault out, and may not hold up its own return."""
        with contextlib.suppress(LogUnavailableError):
            if self._broker(fault).listens:
                self._injection.inject(fault.kind.removeprefix("inject "), random.Random(fault.seed))
                return
        self._at(self._now_s() + _TRY_AGAIN_S, lambda: self._inject(fault))
