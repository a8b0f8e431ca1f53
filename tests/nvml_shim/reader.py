"""Runs NvmlGpus in a process of its own, over whichever libnvidia-ml.so.1 the loader finds there.

Reads one JSON request a line from standard input and answers each with one line of JSON.
"""

import dataclasses
import json
import os
import sys
import threading
import time
from collections.abc import MutableMapping
from typing import Any

import pynvml
import structlog

from idlewatt.collectors import nvml_device
from idlewatt.collectors.gpu_nvml import NvmlGpus
from idlewatt.collectors.nvml_probe import probe_driver
from idlewatt.stream.errors import SourceError

DEADLINE_S = 20.0


class Reader:
    """One request is one method."""

    def __init__(self) -> None:
        self.now_ms = 0
        self.events: list[dict[str, Any]] = []
        self.source = self._source()
        self.reading: threading.Thread | None = None
        self.result: dict[str, Any] = {}

    def _source(self) -> NvmlGpus:
        return NvmlGpus("north", "chat", "node-1", 1.0, lambda: self.now_ms)

    def log(self, _logger: object, level: str, event: MutableMapping[str, Any]) -> str:
        self.events.append({"level": level, **event})
        raise structlog.DropEvent

    def open(self, sees_every_process: bool, sees_every_instance: bool = False) -> None:
        nvml_device.sees_every_process = lambda: sees_every_process
        nvml_device.sees_every_instance = lambda: sees_every_instance
        self.source = self._source()

    def read(self, at_s: float) -> dict[str, Any]:
        self.now_ms = round(at_s * 1000)
        self.events.clear()
        try:
            reading = self.source.read()
        except SourceError as error:
            return {"error": error.reason, "message": str(error), "events": self.events}
        rows = [dataclasses.asdict(row) for row in reading.rows]  # type: ignore[call-overload]
        return {"rows": rows, "left_out": dict(reading.left_out), "events": self.events}

    def read_in_fork(self, at_s: float) -> dict[str, Any]:
        here, there = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(there, json.dumps(self.read(at_s)).encode())
            os._exit(0)
        os.close(there)
        with os.fdopen(here) as pipe:
            answer: dict[str, Any] = json.load(pipe)
        os.waitpid(child, 0)
        return answer

    def start_read(self, at_s: float) -> None:
        """Read on another thread, and return once the driver hangs."""
        self.reading = threading.Thread(target=lambda: self.result.update(self.read(at_s)))
        self.reading.start()
        self._await(lambda: pynvml.nvmlLib.nvml_shim_hanging() > 0)

    def finish_read(self) -> dict[str, Any]:
        assert self.reading is not None
        self.reading.join(DEADLINE_S)
        assert not self.reading.is_alive()
        return self.result

    def close(self) -> float:
        began = time.monotonic()
        self.source.close()
        return time.monotonic() - began

    def await_calls(self, call: str, times: int) -> None:
        self._await(lambda: self.calls(call) >= times)

    def calls(self, call: str) -> int:
        # nobody has called it before it is loaded
        return int(pynvml.nvmlLib.nvml_shim_calls(call.encode())) if pynvml.nvmlLib else 0

    def cpu_per_read(self, reads: int) -> float:
        """Seconds of CPU that one reading takes at one reading a second."""
        began = time.process_time()
        for second in range(reads):
            self.now_ms = (1000 + second) * 1000
            self.source.read()
        return (time.process_time() - began) / reads

    def probe(self, timeout_s: float) -> list[tuple[bool, str, str]]:
        return probe_driver(timeout_s)

    def _await(self, condition: Any) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.002)


def main() -> None:
    reader = Reader()
    structlog.configure(processors=[reader.log])
    for line in sys.stdin:
        request = json.loads(line)
        answer = getattr(reader, request.pop("do"))(**request)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
