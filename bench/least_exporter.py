"""The least that a Python exporter of the same readings can be: nvidia-ml-py and prometheus_client, nothing handled."""

import sys
import time

import pynvml
from prometheus_client import Gauge, start_http_server

READINGS = {
    "energy_mj": pynvml.nvmlDeviceGetTotalEnergyConsumption,
    "power_mw": pynvml.nvmlDeviceGetPowerUsage,
    "power_limit_mw": pynvml.nvmlDeviceGetEnforcedPowerLimit,
    "clocks_event_reasons": pynvml.nvmlDeviceGetCurrentClocksEventReasons,
    "sm_activity": lambda gpu: pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu,
    "memory_used_bytes": lambda gpu: pynvml.nvmlDeviceGetMemoryInfo(gpu).used,
    "processes": lambda gpu: len(pynvml.nvmlDeviceGetComputeRunningProcesses(gpu)),
}


def main(port: int) -> None:
    pynvml.nvmlInit()
    gpus = [pynvml.nvmlDeviceGetHandleByIndex(n) for n in range(pynvml.nvmlDeviceGetCount())]
    gauges = [Gauge(f"gpu_{name}", name, ["uuid"]) for name in READINGS]
    cells = [
        (gauge.labels(pynvml.nvmlDeviceGetUUID(gpu)), read, gpu)
        for gpu in gpus
        for gauge, read in zip(gauges, READINGS.values(), strict=True)
    ]
    start_http_server(port, "127.0.0.1")
    while True:
        began = time.monotonic()
        for cell, read, gpu in cells:
            cell.set(read(gpu))
        time.sleep(max(1.0 - (time.monotonic() - began), 0))


if __name__ == "__main__":
    main(int(sys.argv[1]))
