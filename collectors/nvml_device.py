"""One NVIDIA GPU through NVML: which calls it answers, and one row's figures from them.

Facts about the calls are from NVIDIA's nvml.h unless another source is named.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any, Final

import pynvml

from idlewatt.collectors.energy_check import EnergyCheck
from idlewatt.collectors.nvml_driver import (
    DRIVER_CODES,
    GONE_CODES,
    UNSUPPORTED_CODES,
    Code,
    GpuGoneError,
    reason_of,
    sees_every_instance,
    sees_every_process,
)
from idlewatt.stream.clock import Clock
from idlewatt.stream.records import GpuRow

# Where a figure comes from: (field id, scope id) of nvmlDeviceGetFieldValues, or a call's name.
Origin = tuple[int, int] | str

_GPU, _MODULE = 0, 1  # NVML_POWER_SCOPE_*; a module is a Grace superchip: CPU, GPUs and their memories
ENERGY_FIELD: Final = (83, _GPU)
ENERGY_CALL: Final = "nvmlDeviceGetTotalEnergyConsumption"
AVERAGE_POWER: Final = (185, _GPU)  # one-second average; A100, Volta and Turing have none
INSTANT_POWER: Final = (186, _GPU)
MODULE_AVERAGE_POWER: Final = (185, _MODULE)
MODULE_INSTANT_POWER: Final = (186, _MODULE)
POWER_CALL: Final = "nvmlDeviceGetPowerUsage"
_LIMIT_CALL: Final = "nvmlDeviceGetEnforcedPowerLimit"
_CONSTRAINTS_CALL: Final = "nvmlDeviceGetPowerManagementLimitConstraints"
_MODULE_LIMIT: Final = (190, _MODULE)  # enforced, out-of-band limits included
_MODULE_MAX_LIMIT: Final = (188, _MODULE)
_LIMITS: Final = frozenset((_LIMIT_CALL, _CONSTRAINTS_CALL, _MODULE_LIMIT, _MODULE_MAX_LIMIT))
_MIG_CALL: Final = "nvmlDeviceGetMigMode"

# in the order in which they are preferred
POWER_NAMES: Final[dict[Origin, str]] = {
    AVERAGE_POWER: "power as one-second average",
    INSTANT_POWER: "power at an instant",
    MODULE_AVERAGE_POWER: "power of the whole module as one-second average",
    MODULE_INSTANT_POWER: "power of the whole module at an instant",
    POWER_CALL: "power",
}
# By product name, superchips of which each has one GPU; their counter is the module's (ml-energy/zeus#172).
ONE_GPU_MODULE: Final = "GH200"
_MODULE_POWERS: Final = (MODULE_AVERAGE_POWER, MODULE_INSTANT_POWER)
_ENERGIES: Final[tuple[Origin, ...]] = (ENERGY_FIELD, ENERGY_CALL)

# nvmlValueType_t -> member of the nvmlValue_t union
_UNION_MEMBERS: Final = {0: "dVal", 1: "uiVal", 2: "ulVal", 3: "ullVal", 4: "sllVal", 5: "siVal", 6: "usVal"}

_UINT_SENTINEL: Final = 2**32 - 1
_INT64_MAX: Final = 2**63 - 1
# Short peaks pass the limit, faulty sensors pass it by far: 593 W were seen on 35 W laptop GPUs
# (NVIDIA/open-gpu-kernel-modules#1236).
_POWER_TOLERANCE: Final = 1.3

# A process list takes milliseconds and holds the driver's lock (flightlessmango/MangoHud#2104).
OCCUPANCY_EVERY_MS: Final = 5_000
LIMITS_EVERY_MS: Final = 30_000
# After so many attempts or so long, in which a call failed for no clear reason or told nothing, those that answered decide
# until it does. Some drivers tell nothing of a module for good, and meanwhile no joule of the GPU is counted.
_PROBE_ATTEMPTS: Final = 5
_PROBE_WAIT_MS: Final = 5_000
PROBE_EVERY_MS: Final = 60_000
# A counter that does not answer for so long is done without: it is looked for anew before.
_COUNTER_WAIT_MS: Final = PROBE_EVERY_MS + 30_000


def is_due(last_ms: int | None, now_ms: int, every_ms: int) -> bool:
    """Whether it is time again; a clock that was set back makes it so."""
    return last_ms is None or not 0 <= now_ms - last_ms < every_ms


@dataclass(frozen=True, slots=True)
class Meters:
    """What a GPU's energy and power are read from, and what both of them and the limit cover.

    A row has one scope, or draw and limit could not be set against each other. The GPU's own scope is
    preferred. On a superchip the energy counter covers the module, CPU included (ml-energy/zeus#172),
    and each GPU of a module repeats it, so there it goes with module power only.
    """

    energy: Origin | None
    power: Origin | None
    scope: str | None

    def renewed(self, found: "Meters") -> "Meters":
        """What answers now, and these where nothing does: that may answer later. Only power that is preferred changes the scope."""
        if found.scope != self.scope:
            return found if found.power in _preferred_to(self.power) else self
        return Meters(found.energy or self.energy, found.power or self.power, self.scope)


def _preferred_to(power: Origin | None) -> list[Origin]:
    """What a GPU's power is read from rather than from this; anything rather than none."""
    return list(takewhile(lambda origin: origin != power, POWER_NAMES))


class NvmlDevice:
    """One GPU. `leave_out` is told the reason of every reading that is left out of a row."""

    def __init__(self, handle: Any, uuid: str, product: str, leave_out: Callable[[str], None]) -> None:
        self.handle = handle
        self.uuid = uuid
        self.product = product
        self.meters: Meters | None = None
        self._energy_check = EnergyCheck()
        # the first and the last of the readings that have power and no counter, since one that has it
        self._uncounted_ms: int | None = None
        self._uncounted_last_ms = 0
        self._leave_out = leave_out
        self._answered: set[Origin] = set()
        self._unsupported: set[Origin] = set()
        self._has_module = ONE_GPU_MODULE in product
        self._probe_attempts = 0
        self._first_probe_ms: int | None = None
        # while calls fail for no clear reason, or what is read does not answer
        self._probed_ms: int | None = None
        self._limits_ms: int | None = None
        self._limit_mw: int | None = None
        self._max_limit_mw: int | None = None
        self._occupancy_ms: int | None = None
        self._memory_used_bytes: int | None = None
        self._has_process: bool | None = None

    def read(self, site: str, pool: str, node: str, clock: Clock) -> GpuRow:
        """Read one row. Raises GpuGoneError, and pynvml.NVMLError where the whole driver is at fault."""
        if self.meters is None:
            self.meters = self._probe(clock())
        elif self._probed_ms is not None and is_due(self._probed_ms, now_ms := clock(), PROBE_EVERY_MS):
            self._look_again(self.meters, now_ms)
        meters = self.meters or Meters(None, None, None)
        values = self._values([origin for origin in (meters.energy, meters.power) if origin is not None])
        ts_ms = clock()
        if meters.energy is None and meters.power is None:
            self._leave_out("no_power_reading")
        if meters.scope is not None and is_due(self._limits_ms, ts_ms, LIMITS_EVERY_MS):
            self._read_limits(ts_ms, meters.scope)
        if is_due(self._occupancy_ms, ts_ms, OCCUPANCY_EVERY_MS):
            self._read_occupancy(ts_ms)
        top_mw = self._max_limit_mw or self._limit_mw
        most_mw = int(_POWER_TOLERANCE * top_mw) if top_mw else _UINT_SENTINEL - 1
        power_mw = self._within("power", values.get(meters.power), 1, most_mw)
        energy_mj = self._within("energy", values.get(meters.energy), 1, _INT64_MAX)
        is_missed = (meters.energy is not None and energy_mj is None) or (
            meters.power is not None and power_mw is None
        )
        if is_missed and self._probed_ms is None:
            # a minute later, another call may stand in for one that still does not answer
            self._probed_ms = ts_ms
        if energy_mj is not None and power_mw is not None:
            # without a limit nobody knows what power is too much to be true
            is_average = meters.power == AVERAGE_POWER and top_mw is not None
            self._energy_check.take(ts_ms, energy_mj, power_mw, is_average)
        elif power_mw is None and self._energy_check.is_blind(ts_ms):
            self._energy_check = EnergyCheck()
        if self._energy_check.is_refuted:
            energy_mj = None
            self._leave_out("energy_suspect")
        utilization = self._ask(pynvml.nvmlDeviceGetUtilizationRates)
        percent = None if utilization is None else self._within("utilization", utilization.gpu, 0, 100)
        reasons = self._ask(pynvml.nvmlDeviceGetCurrentClocksEventReasons)
        return GpuRow(
            ts_ms=ts_ms,
            site=site,
            pool=pool,
            node=node,
            gpu_uuid=self.uuid,
            product=self.product,
            energy_mj=energy_mj,
            power_mw=power_mw,
            power_limit_mw=self._limit_mw,
            epoch_ms=self._epoch_ms(ts_ms, energy_mj is not None, power_mw is not None),
            sm_activity=None if percent is None else percent / 100,
            memory_used_bytes=self._memory_used_bytes,
            clocks_event_reasons=self._within("clocks_event_reasons", reasons, 0, _INT64_MAX),
            has_process=self._has_process,
            power_scope=meters.scope,
        )

    def _look_again(self, before: Meters, now_ms: int) -> None:
        found = self._probe(now_ms)
        self.meters = self._of_one_scope(before if found is None else before.renewed(found))
        if self.meters.scope != before.scope:
            self._limits_ms = self._limit_mw = self._max_limit_mw = None
        if self.meters.scope != before.scope or self.meters.energy is None:
            # what counter and power said of each other was said of another pair
            self._energy_check = EnergyCheck()

    def _of_one_scope(self, meters: Meters) -> Meters:
        """Without the counter, if that covers more than the rest."""
        return replace(meters, energy=None) if self._is_of_more(meters.scope) else meters

    def _is_of_more(self, scope: str | None) -> bool:
        """Whether the counter covers more than this."""
        return self._has_module and scope == "gpu"

    def _epoch_ms(self, ts_ms: int, is_counted: bool, has_power: bool) -> int | None:
        """Since when the counter is done without: an epoch of its own is what lets the meter go on without it."""
        if is_counted:
            self._uncounted_ms = None
        if is_counted or not has_power:
            return None
        # what a clock ahead told would be refused
        if self._uncounted_ms is None or not 0 <= ts_ms - self._uncounted_last_ms <= _COUNTER_WAIT_MS:
            self._uncounted_ms = ts_ms
        self._uncounted_last_ms = ts_ms
        # it will tell what it gained meanwhile
        meters = self.meters or Meters(None, None, None)
        is_there = meters.energy is not None
        is_looked_for = self._probed_ms is not None and not self._unsupported.issuperset(_ENERGIES)
        is_looked_for &= not self._is_of_more(meters.scope)
        may_answer = (is_there or is_looked_for) and not self._energy_check.is_refuted
        return None if may_answer and ts_ms - self._uncounted_ms < _COUNTER_WAIT_MS else self._uncounted_ms

    def _probe(self, now_ms: int) -> Meters | None:
        """Find what energy and power can be read from; None while a failed call leaves that open, but not for long."""
        origins = (*_ENERGIES, *POWER_NAMES)
        values = self._values(origins)
        # some drivers answer 0 or all ones where they have nothing, of energy too
        working = {origin for origin in POWER_NAMES if 0 < values.get(origin, 0) < _UINT_SENTINEL}
        power = next((origin for origin in POWER_NAMES if origin in working), None)
        # a module whose power does not answer now has the counter even so
        self._has_module |= not working.isdisjoint(_MODULE_POWERS)
        there = [origin for origin in _ENERGIES if origin in values]
        counting = next((origin for origin in there if 0 < values[origin] <= _INT64_MAX), None)
        energy = counting or (there[0] if there else None)
        is_of_module = power in _MODULE_POWERS or (power is None and self._has_module)
        found = self._of_one_scope(Meters(energy, power, "module" if is_of_module else "gpu"))
        answered = values.keys() | self._unsupported
        looked_for = self._looked_for(found, counting)
        # what tells nothing now may do so later, as in a driver's first second
        is_empty = any(origin in values for origin in POWER_NAMES if origin in looked_for)
        is_open = is_empty or not answered.issuperset(looked_for)
        self._probed_ms = now_ms if is_open else None
        self._probe_attempts += 1
        if self._first_probe_ms is None:
            self._first_probe_ms = now_ms
        is_early = self._probe_attempts < _PROBE_ATTEMPTS and now_ms - self._first_probe_ms < _PROBE_WAIT_MS
        if is_open and self.meters is None and is_early:
            return None
        return found

    def _looked_for(self, found: Meters, counting: Origin | None) -> list[Origin]:
        """What would be read instead of what was found, if it answered, or would tell that the counter is the module's."""
        powers = _preferred_to(found.power)
        if self._is_of_more(found.scope):
            return powers
        if found.scope == "gpu" and found.energy is not None:
            powers += _MODULE_POWERS
        return [*powers, *takewhile(lambda origin: origin != counting, _ENERGIES)]

    def _read_limits(self, now_ms: int, scope: str) -> None:
        # what had no limit when the GPU was first read, as while its driver starts, may have one now
        self._unsupported -= _LIMITS
        if scope == "module":
            origin: Origin = _MODULE_LIMIT
            values = self._values([_MODULE_LIMIT, _MODULE_MAX_LIMIT])
            most = values.get(_MODULE_MAX_LIMIT)
        else:
            origin = _LIMIT_CALL
            values = self._values([_LIMIT_CALL])
            constraints = self._ask(getattr(pynvml, _CONSTRAINTS_CALL))
            most = None if constraints is None else constraints[1]
        # limits hardly ever change: the one known is nearer than none
        self._limit_mw = self._within("limit", values.get(origin), 1, _UINT_SENTINEL - 1) or self._limit_mw
        self._max_limit_mw = self._within("limit", most, 1, _UINT_SENTINEL - 1) or self._max_limit_mw
        if origin in self._unsupported:
            self._leave_out("no_power_limit")
        # a limit that could not be read is asked for again at the next reading
        self._limits_ms = now_ms if origin in values or origin in self._unsupported else None

    def _read_occupancy(self, now_ms: int) -> None:
        self._occupancy_ms = now_ms
        memory = self._ask(pynvml.nvmlDeviceGetMemoryInfo)
        used = None if memory is None else memory.used
        self._memory_used_bytes = self._within("memory", used, 0, _INT64_MAX)
        # the unversioned name answers a missing function with an error of another family
        processes = self._ask(pynvml.nvmlDeviceGetComputeRunningProcesses_v3)
        if processes:
            self._has_process = True
        elif (
            processes is None
            or not sees_every_process()
            or (self._may_be_mig() and not sees_every_instance())
        ):
            self._has_process = None
        else:
            self._has_process = False

    def _may_be_mig(self) -> bool:
        mode = self._ask(getattr(pynvml, _MIG_CALL))
        return _MIG_CALL not in self._unsupported if mode is None else mode[0] == 1

    def _ask(self, call: Callable[[Any], Any]) -> Any:
        """The call's answer, or None if it has none."""
        if call.__name__ in self._unsupported:
            return None
        try:
            answer = call(self.handle)
        except pynvml.NVMLError as error:
            self._judge(call.__name__, error)
            return None
        self._answered.add(call.__name__)
        return answer

    def _values(self, origins: Sequence[Origin]) -> dict[Origin | None, int]:
        """The origins that answered, all fields by one call."""
        values: dict[Origin | None, int] = {}
        fields = [o for o in origins if not isinstance(o, str) and o not in self._unsupported]
        for field, answer in zip(fields, self._ask_fields(fields), strict=False):
            code = int(answer.nvmlReturn)
            if code == Code.INVALID_ARGUMENT:
                self._lack(field)  # an id that this driver does not know yet
            elif code:
                self._judge(field, pynvml.NVMLError(code))
            else:
                number = getattr(answer.value, _UNION_MEMBERS.get(answer.valueType, "ullVal"))
                values[field] = round(number) if math.isfinite(number) else -1
                self._answered.add(field)
        for name in origins:
            if isinstance(name, str):
                answer = self._ask(getattr(pynvml, name))
                if answer is not None:
                    values[name] = answer
        return values

    def _ask_fields(self, fields: list[tuple[int, int]]) -> Sequence[Any]:
        if not fields:
            return ()
        try:
            # succeeds if any of the fields does
            answers: Sequence[Any] = pynvml.nvmlDeviceGetFieldValues(self.handle, fields)
        except pynvml.NVMLError as error:
            if error.value in UNSUPPORTED_CODES:
                for field in fields:  # others may well be there
                    self._lack(field)
            else:
                self._judge("nvmlDeviceGetFieldValues", error)
            return ()
        return answers

    def _judge(self, origin: Origin, error: Any) -> None:
        """Remember what is missing, count what failed, raise what is more than one reading's trouble."""
        if error.value in DRIVER_CODES:
            raise error
        if error.value in GONE_CODES:
            raise GpuGoneError(reason_of(error))
        if error.value in UNSUPPORTED_CODES:
            self._lack(origin)
        else:
            self._leave_out(reason_of(error))

    def _lack(self, origin: Origin) -> None:
        """What has answered before is there: it is asked again, and until then missed."""
        if origin in self._answered:
            self._leave_out("meter_lost")
        else:
            self._unsupported.add(origin)

    def _within(self, what: str, value: int | None, least: int, most: int) -> int | None:
        if value is None or least <= value <= most:
            return value
        self._leave_out(f"implausible_{what}")
        return None
