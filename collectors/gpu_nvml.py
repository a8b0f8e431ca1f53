"""NVIDIA GPUs of this node, read through NVML (nvidia-ml-py, whose module is called pynvml)."""

import threading
from collections import Counter
from dataclasses import replace
from functools import partial
from typing import Any, Final

import pynvml
import structlog

from idlewatt.collectors.in_turn import InTurn
from idlewatt.collectors.nvml_device import ONE_GPU_MODULE, NvmlDevice, is_due
from idlewatt.collectors.nvml_driver import (
    DRIVER_CODES,
    GPU_MENDS,
    NO_GPU_MEND,
    Code,
    GpuGoneError,
    close_driver,
    driver_error,
    open_driver,
    reason_of,
)
from idlewatt.collectors.source import Reading
from idlewatt.stream.clock import Clock, unix_ms
from idlewatt.stream.errors import SourceError
from idlewatt.stream.records import GpuRow

log = structlog.get_logger()

DEVICES_EVERY_MS: Final = 30_000
# Counts are logged by whoever schedules the source; here it is said which GPU they are about.
_LOG_EVERY_MS: Final = 600_000
_CLOSE_WAIT_S: Final = 1.0
# A GPU's figures take milliseconds; one that is lost was seen to take its driver 12 s to say so.
_PATIENCE_S: Final = 1.0
# until they are known, GPUs may have to be woken
_FIRST_PATIENCE_S: Final = 2.0


class NvmlGpus:
    """All NVIDIA GPUs the driver shows to this process: one row per physical GPU, by UUID.

    NVML lists physical GPUs only, so that a GPU with MIG instances is measured once.
    """

    def __init__(self, site: str, pool: str, node: str, interval_s: float, clock: Clock = unix_ms) -> None:
        self._site = site
        self._pool = pool
        self._node = node
        self._interval_s = interval_s
        self._clock = clock
        self._lock = threading.Lock()
        self._is_open = False
        self._is_closed = False
        # times that the driver was opened and is to be shut down for
        self._shutdowns_owed = 0
        # a call that hangs takes no other GPU with it
        self._calls = InTurn()
        self._devices: dict[str, NvmlDevice] = {}
        self._devices_ms: int | None = None
        self._absent: list[str] = []  # reasons, one for each GPU that is there and cannot be read
        self._left_out: Counter[str] = Counter()
        self._said_ms: dict[tuple[str, str], int] = {}

    @property
    def name(self) -> str:
        return "nvml"

    @property
    def interval_s(self) -> float:
        return self._interval_s

    def read(self) -> Reading:
        """One row per GPU; GPUs and figures that could not be read are counted as left out.

        Raises SourceError if the driver is at fault, or if no GPU could be read.
        """
        with self._lock:
            if self._is_closed:
                raise SourceError("closed", "the NVML source is closed")
            try:
                try:
                    return self._read()
                except pynvml.NVMLError as error:
                    if error.value != Code.UNINITIALIZED:
                        raise
                # after a fork, or when somebody else in this process shut NVML down
                self._release()
                return self._read()
            except pynvml.NVMLError as error:
                self._release()
                raise driver_error(error) from error

    def close(self) -> None:
        """Let go of the driver. Returns within a second even while a call to the driver hangs."""
        self._is_closed = True
        # A hung call holds the lock and may never return; whoever waits for it must not hold up the exit.
        closer = threading.Thread(target=self._close, name="nvml-close", daemon=True)
        closer.start()
        closer.join(_CLOSE_WAIT_S)

    def _close(self) -> None:
        with self._lock:
            for thread in self._calls.out.values():
                thread.join()
            self._calls.close()
            self._release()

    def _release(self) -> None:
        if self._is_open:
            self._is_open = False
            self._devices = {}
            self._devices_ms = None
            self._calls.forget()
            self._shutdowns_owed += 1
        self._shut_down()

    def _shut_down(self) -> None:
        # to be shut down under a call is more than a driver may stand
        while self._shutdowns_owed and not self._calls.out:
            close_driver()
            self._shutdowns_owed -= 1

    def _read(self) -> Reading:
        self._shut_down()
        if not self._is_open:
            open_driver()
            self._is_open = True
        self._left_out = Counter()
        now_ms = self._clock()
        if is_due(self._devices_ms, now_ms, DEVICES_EVERY_MS):
            self._find_devices()
            self._devices_ms = now_ms
        self._left_out.update(self._absent)
        rows: list[GpuRow] = []
        calls = {
            uuid: partial(device.read, self._site, self._pool, self._node, self._clock)
            for uuid, device in self._devices.items()
        }
        answers = self._calls.answers(calls, _PATIENCE_S)
        lacking = list(self._absent)
        for uuid in calls:
            answer = answers.get(uuid)
            if isinstance(answer, GpuRow):
                rows.append(answer)
            elif answer is None or isinstance(answer, GpuGoneError):
                reason = "hung" if answer is None else answer.reason
                lacking.append(reason)
                self._leave_out(uuid, reason)
                if answer is not None:
                    # its handle is of no use any more; the next look at the device list takes it up again
                    del self._devices[uuid]
                    self._absent.append(reason)
            else:
                raise answer
        if not rows and not lacking:
            raise SourceError("no_gpu", f"the NVIDIA driver shows no GPU: {NO_GPU_MEND}")
        if not rows:
            reason = lacking[0]
            raise SourceError(reason, f"no GPU of {len(lacking)} can be read: {GPU_MENDS[reason]}")
        return Reading(self._without_shared(rows, len(lacking)), dict(self._left_out))

    def _without_shared(self, rows: list[GpuRow], lacking: int) -> list[GpuRow]:
        """Leave out what a GPU tells of a module that others may belong to: NVML does not say which belong together.

        Others tell of the whole, too, or of their own part of it. `lacking`: how many there are that cannot be read.
        """
        may_share = [row for row in rows if ONE_GPU_MODULE not in row.product]
        if len(may_share) + lacking < 2:
            return rows
        shared = [row for row in may_share if row.power_scope == "module"]
        for row in shared:
            self._leave_out(row.gpu_uuid, "module_shared")
        return [
            replace(row, energy_mj=None, power_mw=None, power_limit_mw=None, power_scope=None)
            if row in shared
            else row
            for row in rows
        ]

    def _find_devices(self) -> None:
        found: dict[str, NvmlDevice] = {}
        self._absent = []
        calls = {
            f"index {index}": partial(self._device, index) for index in range(pynvml.nvmlDeviceGetCount())
        }
        answers = self._calls.answers(calls, _PATIENCE_S if self._devices else _FIRST_PATIENCE_S)
        for name in calls:
            answer = answers.get(name)
            if isinstance(answer, NvmlDevice):
                found[answer.uuid] = answer
                if self._devices.get(answer.uuid) is not answer and self._is_news("found", answer.uuid):
                    log.info("gpu_found", source=self.name, gpu=answer.uuid, product=answer.product)
            elif answer is None:
                self._log_left_out(name, "hung")
            elif isinstance(answer, (pynvml.NVMLError, UnicodeDecodeError)):
                if getattr(answer, "value", 0) in DRIVER_CODES:
                    raise answer
                self._absent.append(reason_of(answer))
                self._log_left_out(name, reason_of(answer))
            else:
                raise answer
        if len(answers) < len(calls):
            # which GPU a call was about that is still out is not known: none is gone for it
            found = self._devices | found
            self._absent += ["hung"] * (len(calls) - len(found) - len(self._absent))
        for uuid in self._devices.keys() - found.keys():
            if self._is_news("disappeared", uuid):
                log.warning("gpu_disappeared", source=self.name, gpu=uuid)
        self._devices = found

    def _device(self, index: int) -> NvmlDevice:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        uuid = pynvml.nvmlDeviceGetUUID(handle)
        device = self._devices.get(uuid)
        if device is not None and _is_same(device.handle, handle):
            return device
        return NvmlDevice(handle, uuid, pynvml.nvmlDeviceGetName(handle), partial(self._leave_out, uuid))

    def _leave_out(self, gpu: str, reason: str) -> None:
        self._left_out[reason] += 1
        self._log_left_out(gpu, reason)

    def _log_left_out(self, gpu: str, reason: str) -> None:
        if self._is_news(reason, gpu):
            mend = {"mend": GPU_MENDS[reason]} if reason in GPU_MENDS else {}
            log.warning("gpu_reading_left_out", source=self.name, gpu=gpu, reason=reason, **mend)

    def _is_news(self, what: str, gpu: str) -> bool:
        """Whether this was not said of the GPU lately."""
        now_ms = self._clock()
        if not is_due(self._said_ms.get((what, gpu)), now_ms, _LOG_EVERY_MS):
            return False
        self._said_ms[what, gpu] = now_ms
        return True


def _is_same(one: Any, other: Any) -> bool:
    return bytes(one) == bytes(other)
