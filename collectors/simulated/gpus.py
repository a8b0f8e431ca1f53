"""The driver of one simulated node."""

from typing import Final

from idlewatt.collectors.simulated.clocked import ClockedFactory
from idlewatt.collectors.simulated.hall import Group, SimulatedGpu, SimulatedNode
from idlewatt.collectors.source import Reading
from idlewatt.stream.errors import SourceError
from idlewatt.stream.records import GpuRow

# NVML's clocks-event bits
_GPU_IDLE: Final = 0x1
_SW_POWER_CAP: Final = 0x4
_DRIVER_MEMORY_BYTES: Final = 550 << 20


class SimulatedGpus:
    """Reads the GPUs of one node as NVML would; a dark node raises SourceError `unreachable`."""

    def __init__(self, clocked: ClockedFactory, node: SimulatedNode, *, interval_s: float) -> None:
        self._clocked = clocked
        self._node = node
        self._interval_s = interval_s

    @property
    def name(self) -> str:
        return f"gpus:{self._node.name}"

    @property
    def interval_s(self) -> float:
        return self._interval_s

    def read(self) -> Reading:
        with self._clocked.now() as now_ms:
            if self._node.dark:
                raise SourceError(
                    "unreachable", f"the simulated GPUs of {self._node.name} are in an outage; wait it out"
                )
            return Reading(
                [self._row(now_ms, group, gpu) for group in self._node.groups for gpu in group.gpus]
            )

    def _row(self, now_ms: int, group: Group, gpu: SimulatedGpu) -> GpuRow:
        node, state = self._node, group.state
        busy = state in ("serving", "other")
        reasons = _GPU_IDLE if state == "idle_free" else 0
        if gpu.power_mw >= node.product.limit_mw:
            reasons |= _SW_POWER_CAP
        return GpuRow(
            ts_ms=now_ms,
            site=self._clocked.factory.site,
            pool=node.pool,
            node=node.name,
            gpu_uuid=gpu.uuid,
            product=node.product.name,
            energy_mj=gpu.energy_mj,
            power_mw=gpu.power_mw,
            power_limit_mw=node.product.limit_mw,
            epoch_ms=gpu.epoch_ms,
            sm_activity=min(1.0, gpu.power_mw / node.product.limit_mw + 0.2) if busy else 0.0,
            memory_used_bytes=node.product.memory_bytes * 9 // 10
            if group.has_process
            else _DRIVER_MEMORY_BYTES,
            clocks_event_reasons=reasons,
            has_process=group.has_process,
            power_scope="gpu",
        )

    def close(self) -> None:
        """Nothing is held."""
