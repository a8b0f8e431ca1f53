"""Looks at the NVIDIA driver as a visitor would, for `idlewatt doctor`: reads each GPU once."""

import threading

import pynvml

from idlewatt.collectors.nvml_device import POWER_NAMES, NvmlDevice
from idlewatt.collectors.nvml_driver import (
    DRIVER_CODES,
    GPU_MENDS,
    NO_GPU_MEND,
    GpuGoneError,
    close_driver,
    driver_error,
    open_driver,
    reason_of,
)
from idlewatt.stream.clock import unix_ms
from idlewatt.stream.errors import SourceError


def probe_driver(timeout_s: float = 10.0) -> list[tuple[bool, str, str]]:
    """What NVML can do here, as lines of (ok, what was found, what mends it or ""). Raises nothing."""
    lines: list[tuple[bool, str, str]] = []
    prober = threading.Thread(target=_probe_driver, args=(lines,), name="nvml-probe", daemon=True)
    prober.start()
    prober.join(timeout_s)
    if prober.is_alive():
        mend = "look for Xid lines in the kernel log (dmesg), then reset the GPU or reboot"
        return [*lines, (False, f"the NVIDIA driver did not answer for {timeout_s:g} s", mend)]
    return lines


def _probe_driver(lines: list[tuple[bool, str, str]]) -> None:
    try:
        open_driver()
        try:
            version, count = pynvml.nvmlSystemGetDriverVersion(), pynvml.nvmlDeviceGetCount()
            what = f"NVIDIA driver {version} shows {count} GPU{'s' if count != 1 else ''}"
            lines.append((count > 0, what, "" if count else NO_GPU_MEND))
            for index in range(count):
                _probe_gpu(index, lines)
        except pynvml.NVMLError as error:
            raise driver_error(error) from error
        finally:
            close_driver()
    except SourceError as error:
        lines.append((False, f"NVIDIA driver: {error.reason}", str(error)))
    except Exception as error:
        # whatever a broken driver or binding does, the other checks must go on
        lines.append((False, f"NVIDIA driver: {error!r}", "see whether nvidia-smi works"))


def _probe_gpu(index: int, lines: list[tuple[bool, str, str]]) -> None:
    name, reasons = f"GPU {index}", list[str]()
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        uuid, product = pynvml.nvmlDeviceGetUUID(handle), pynvml.nvmlDeviceGetName(handle)
        name = f"{product} {uuid}"
        device = NvmlDevice(handle, uuid, product, reasons.append)
        row = device.read("", "", "", unix_ms)
        while device.meters is None:
            row = device.read("", "", "", unix_ms)
    except (GpuGoneError, pynvml.NVMLError) as error:
        if getattr(error, "value", 0) in DRIVER_CODES:
            raise
        reason = error.reason if isinstance(error, GpuGoneError) else reason_of(error)
        lines.append((False, f"{name}: {reason}", GPU_MENDS.get(reason, "")))
        return
    energy, power = device.meters.energy, device.meters.power
    if power is None and energy is None:
        mend = "update its driver; a virtual GPU can only be metered on its host"
        lines.append((False, f"{name}: has neither an energy counter nor a power reading", mend))
    else:
        counted = "energy counter" if energy else "no energy counter (energy is estimated from power)"
        drawn = POWER_NAMES[power] if power else "no power reading"
        limit = f"limit {row.power_limit_mw / 1000:g} W" if row.power_limit_mw else "no power limit"
        lines.append((True, f"{name}: {counted}, {drawn}, {limit}", ""))
    if row.has_process is None:
        mend = (
            "run on the host or in its PID namespace (--pid=host, hostPID: true); "
            "for MIG GPUs as root with CAP_SYS_ADMIN (--cap-add=SYS_ADMIN)"
        )
        lines.append((False, f"{name}: cannot tell whether a process holds it", mend))
    for reason in sorted(set(reasons)):
        lines.append((False, f"{name}: {reason}", GPU_MENDS.get(reason, "such readings are left out")))
