"""The NVIDIA driver as seen through NVML: opening it, and what its error codes mean.

Codes are nvmlReturn_t of NVIDIA's nvml.h.
"""

import contextlib
import os
from enum import IntEnum
from pathlib import Path
from typing import Any, Final

import pynvml

from idlewatt.stream.errors import SourceError


class Code(IntEnum):
    """The nvmlReturn_t values that are told apart."""

    UNINITIALIZED = 1
    INVALID_ARGUMENT = 2
    NOT_SUPPORTED = 3
    NO_PERMISSION = 4
    INSUFFICIENT_POWER = 8
    DRIVER_NOT_LOADED = 9
    LIBRARY_NOT_FOUND = 12
    FUNCTION_NOT_FOUND = 13
    GPU_IS_LOST = 15
    RESET_REQUIRED = 16
    OPERATING_SYSTEM = 17
    LIB_RM_VERSION_MISMATCH = 18
    ARGUMENT_VERSION_MISMATCH = 25
    DEPRECATED = 26


# Not this GPU's trouble but the driver's.
DRIVER_CODES: Final = frozenset(
    (Code.UNINITIALIZED, Code.DRIVER_NOT_LOADED, Code.LIBRARY_NOT_FOUND, Code.LIB_RM_VERSION_MISMATCH)
)
GONE_CODES: Final = frozenset((Code.GPU_IS_LOST, Code.RESET_REQUIRED))
# The bindings know more calls than most drivers, so a missing function means a missing capability.
UNSUPPORTED_CODES: Final = frozenset(
    (Code.NOT_SUPPORTED, Code.FUNCTION_NOT_FOUND, Code.ARGUMENT_VERSION_MISMATCH, Code.DEPRECATED)
)
_REASONS: Final[dict[int, str]] = {
    Code.NO_PERMISSION: "no_permission",
    Code.INSUFFICIENT_POWER: "insufficient_power",
    Code.DRIVER_NOT_LOADED: "driver_not_loaded",
    Code.LIBRARY_NOT_FOUND: "driver_missing",
    Code.GPU_IS_LOST: "gpu_lost",
    Code.RESET_REQUIRED: "reset_required",
    Code.OPERATING_SYSTEM: "blocked_by_system",
    Code.LIB_RM_VERSION_MISMATCH: "driver_mismatch",
}
_MENDS: Final[dict[int, str]] = {
    Code.LIBRARY_NOT_FOUND: "libnvidia-ml.so.1 was not found: install the NVIDIA driver and restart Idlewatt; "
    "in a container, pass the GPUs in (--gpus all)",
    Code.DRIVER_NOT_LOADED: "the NVIDIA kernel module is not loaded: load it (modprobe nvidia) and see that "
    "nvidia-smi works",
    # pynvml never unloads the library, so a running process cannot change over to a new one
    Code.LIB_RM_VERSION_MISMATCH: "the NVIDIA library and kernel module are of different versions: reload the "
    "module or reboot; if the driver was upgraded while Idlewatt ran, restart Idlewatt",
    Code.NO_PERMISSION: "this user may not talk to the NVIDIA driver: give it read and write access to "
    "/dev/nvidiactl and /dev/nvidia*",
}

_CAP_SYS_ADMIN: Final = 21  # of Linux's capability.h

NO_GPU_MEND: Final = "see nvidia-smi; in a container, pass the GPUs in (--gpus all)"
# reason -> what mends it, for troubles of one GPU
GPU_MENDS: Final = {
    "no_permission": "give this user read and write access to its /dev/nvidia* file; in a container pass it in",
    "blocked_by_system": "the system or a cgroup bars the device: pass it in to the container",
    "insufficient_power": "attach the GPU's power cables",
    "gpu_lost": "it fell off the bus: look for Xid lines in the kernel log (dmesg), then reboot",
    "reset_required": "stop Idlewatt and all else that uses it, reset it with nvidia-smi --gpu-reset, or reboot",
    "hung": "its driver does not answer: look for Xid lines in the kernel log (dmesg), then reset the GPU or reboot",
    "energy_suspect": "its energy counter stands still, or gains far from what its power says, by which it is metered now: "
    "reset the GPU, or try another version of the driver",
    "no_power_limit": "set provisioned_watts_per_gpu of its pool where processors run: without either it has no headroom",
    "nvml_error": "see nvidia-smi and the kernel log (dmesg)",
}


class GpuGoneError(Exception):
    """This GPU fell off the bus or waits for a reset."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def reason_of(error: Exception) -> str:
    """The metric label for an NVML error; codes without a name of their own share one."""
    return _REASONS.get(getattr(error, "value", 0), "nvml_error")


def driver_error(error: Any) -> SourceError:
    """An NVML error that concerns the whole driver, with what mends it."""
    mend = _MENDS.get(
        error.value,
        f"NVML failed with code {error.value} ({error}): see whether nvidia-smi works; in a container, whether "
        "/dev/nvidia* are still there",
    )
    return SourceError(reason_of(error), mend)


def open_driver() -> None:
    """Load and initialise NVML in this process. Raises SourceError."""
    if not hasattr(pynvml, "nvmlDeviceGetCurrentClocksEventReasons"):
        raise SourceError(
            "wrong_bindings",
            "another package hides NVIDIA's pynvml module: pip uninstall pynvml nvidia-ml-py3, "
            "then pip install --force-reinstall nvidia-ml-py",
        )
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise driver_error(error) from error


def close_driver() -> None:
    """Let go of NVML; the library itself stays loaded."""
    with contextlib.suppress(pynvml.NVMLError):
        pynvml.nvmlShutdown()


def sees_every_process() -> bool:
    """Whether this process is in the host's PID namespace: elsewhere an empty process list means nothing."""
    try:
        return os.readlink("/proc/self/ns/pid") == "pid:[4026531836]"  # PROC_PID_INIT_INO of Linux
    except OSError:
        return False


def sees_every_instance() -> bool:
    """Whether the driver lists the processes of all instances of a MIG GPU: it does so to the host's CAP_SYS_ADMIN only."""
    try:
        is_of_host = os.readlink("/proc/self/ns/user") == "user:[4026531837]"  # PROC_USER_INIT_INO of Linux
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    effective = next((line.split()[1] for line in status.splitlines() if line.startswith("CapEff:")), "0")
    return is_of_host and bool(int(effective, 16) >> _CAP_SYS_ADMIN & 1)
