"""The simulated hall's things and the state they are in: nodes, GPUs, and the engines that hold them."""

import random
import uuid
from dataclasses import dataclass

from idlewatt.collectors.simulated.engine_model import EngineModel
from idlewatt.collectors.simulated.outages import PAGE_REFUSES
from idlewatt.collectors.simulated.plant import Holding, Node, Plant, Workload
from idlewatt.stream.clock import HOUR_MS


@dataclass(slots=True)
class SimulatedGpu:
    """One GPU as its driver would tell it."""

    uuid: str
    trim: float  # no two chips draw the same
    energy_mj: int
    epoch_ms: int
    power_mw: int = 0
    # microjoules that are not yet a whole millijoule
    energy_rest_uj: int = 0


class SimulatedEngine:
    """One inference server and its page; `model` is its physics."""

    def __init__(self, name: str, node: "SimulatedNode", holding: Holding, model: EngineModel) -> None:
        self.name = name
        self.node = node
        self.model = model
        self.asked = holding.asked
        self.gpus_told = holding.gpus_told
        self.model_name = model.deployment.model_name
        self.page_outage: str | None = None

    @property
    def page(self) -> str | None:
        """What is wrong with its page now: an outage's kind, None if it answers."""
        return self.page_outage if self.model.up else PAGE_REFUSES


class Group:
    """GPUs of one node in one hand: all in the same state, drawing the same but for their trim."""

    def __init__(self, node: "SimulatedNode", holding: Holding, gpus: list[SimulatedGpu]) -> None:
        self.node = node
        self.gpus = gpus
        self.foreign_job = holding.foreign_job
        self.engine: SimulatedEngine | None = None

    @property
    def state(self) -> str:
        """State in the tick that begins now; dark is the node's affair."""
        if self.foreign_job:
            return "other"
        if self.engine is None or not self.engine.model.up:
            return "idle_free"
        return "serving" if self.engine.model.running else "idle_loaded"

    @property
    def has_process(self) -> bool:
        return self.state != "idle_free"


class SimulatedNode:
    """One host with its GPUs."""

    def __init__(self, node: Node) -> None:
        self.name = node.name
        self.pool = node.pool
        self.product = node.product
        self.groups: list[Group] = []
        self.engines: list[SimulatedEngine] = []
        self.dark = False
        self.in_outage = False


def build_hall(
    plant: Plant, start_ms: int, rng: random.Random, *, has_past: bool
) -> tuple[SimulatedNode, ...]:
    """Put up the plant's nodes: with drivers loaded days ago and engines started hours ago, or all at the start."""
    return tuple(_node(spec, plant.workloads[spec.pool], start_ms, rng, has_past) for spec in plant.nodes)


def _node(spec: Node, workload: Workload, start_ms: int, rng: random.Random, has_past: bool) -> SimulatedNode:
    node = SimulatedNode(spec)
    # what is drawn is the same, so that GPUs have the same names and engines the same load
    epoch_ms = start_ms - has_past * rng.randint(72 * HOUR_MS, 1440 * HOUR_MS)
    for holding in spec.holdings:
        gpus = [
            SimulatedGpu(
                uuid=f"GPU-{uuid.UUID(int=rng.getrandbits(128), version=4)}",
                trim=rng.uniform(0.97, 1.03),
                energy_mj=(start_ms - epoch_ms) * rng.randint(100_000, 400_000) // 1000,
                epoch_ms=epoch_ms,
            )
            for _ in range(holding.gpus)
        ]
        group = Group(node, holding, gpus)
        node.groups.append(group)
        if holding.deployment is not None:
            model = EngineModel(holding.deployment, workload, random.Random(rng.getrandbits(64)))
            age_ms = has_past * rng.randint(HOUR_MS, 48 * HOUR_MS)
            requests = int(model.requests_per_s * age_ms / 1000 * 0.4) if holding.asked else 0
            model.assume_past(start_ms - age_ms, requests)
            name = f"{spec.name}:{8000 + len(node.engines)}"
            group.engine = SimulatedEngine(name, node, holding, model)
            node.engines.append(group.engine)
    return node
